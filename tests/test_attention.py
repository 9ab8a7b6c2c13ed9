"""Where a class token looks: each weight is counted once, under what it really belongs to."""

import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

from learnable_memory.attention import PARTS, Columns, attention_of, columns_of
from tiny import add_random_head, images, tiny_model
from vit import MemoryCapableViT

ROUNDING = 1e-6


def dinov2_with_registers() -> MemoryCapableViT:
    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=2, image_size=16, patch_size=4,
        num_register_tokens=4, num_labels=5,
    )  # fmt: skip
    torch.manual_seed(0)
    return MemoryCapableViT.from_base(Dinov2WithRegistersForImageClassification(config).eval())


def model_of_all_kinds(make=tiny_model):
    """D (3 cells) alone, A (2), B (1) on A, C (none) on B and so on A, and a linear probe."""
    model = make()
    add_random_head(model, "D", 3, 3)
    add_random_head(model, "A", 4, 2)
    add_random_head(model, "B", 3, 1, extends=("A",))
    add_random_head(model, "C", 5, 0, extends=("B",))
    model.add_head("probe", 2, 0, class_token=False)
    return model


def looks_of(model, name, pixel_values=None):
    outputs = model(images() if pixel_values is None else pixel_values, output_attentions=True)
    return attention_of(name, outputs[name].attentions, columns_of(model, name))


# ------------------------------------------------------------------------------------------------------ by hand
def test_every_column_has_its_place():
    """Weights k / 120 of one attention head and 1 / 15 of the other have the means (k + 8) / 240, k = 1 .. 15."""
    rising, even = torch.arange(1, 16) / 120, torch.full((15,), 1 / 15)
    layer = torch.stack([rising, even])[None, :, None]  # [1, 2, 1, 15]
    columns = Columns(special=2, grid=(2, 3), inherited_classes=1, own_class=1, inherited_memory=2, memory=3)
    (look,) = attention_of("A", [layer, layer.flip(1)], columns)
    assert look.maps.shape == (2, 2, 3) and look.shares.shape == (2, len(PARTS))
    expected = {
        "special tokens": 9 + 10,
        "patches": 11 + 12 + 13 + 14 + 15 + 16,
        "inherited": 17 + 19 + 20,
        "own class token": 18,
        "memory": 21 + 22 + 23,
    }
    for part, weight in expected.items():
        assert look.share(part) == pytest.approx([weight / 240] * 2, abs=ROUNDING)
    for of_layer in look.maps:
        assert of_layer == pytest.approx(np.array([[11, 12, 13], [14, 15, 16]]) / 240, abs=ROUNDING)


def test_images_and_layers_are_told_apart():
    patches, own = (torch.eye(2)[[0]], torch.eye(2)[[1]])  # all weight on the one patch, or on the class token
    layers = [torch.stack(pair)[:, None] for pair in ((patches, own), (own, own))]  # 2 of [B = 2, H = 1, 1, 2]
    first, second = attention_of("A", layers, Columns(special=0, grid=(1, 1)))
    assert first.share("patches").tolist() == [1, 0] and second.share("patches").tolist() == [0, 0]
    assert first.maps.tolist() == [[[1]], [[0]]]
    assert second.share("own class token").tolist() == [1, 1]


# --------------------------------------------------------------------------------------------------------- from models
@pytest.mark.parametrize("make", [tiny_model, dinov2_with_registers])
def test_shares_of_a_model_sum_to_one_and_name_what_a_head_has(make):
    model = model_of_all_kinds(make)
    for name in ("base", *model.head_names):
        looks = looks_of(model, name)
        assert len(looks) == 3
        for look in looks:
            assert look.maps.shape == (3, 4, 4)
            assert look.shares.sum(axis=1) == pytest.approx(np.ones(3), abs=ROUNDING)
            assert look.maps.sum(axis=(1, 2)) == pytest.approx(look.share("patches"), abs=ROUNDING)
            has = {part: bool(look.share(part).all()) for part in PARTS}
            assert has == {
                "memory": name in "ABD",
                "inherited": name in "BC",
                "own class token": name in "ABCD",
                "special tokens": True,
                "patches": True,
            }


def test_the_first_layer_of_a_model_is_what_the_method_says():
    """Computed here from the weights: what each token's key scores with the class token's query."""
    model = model_of_all_kinds()
    vit, layer, pixel_values = model.vit, model.vit.layers[0], images(1)
    position = vit.embeddings.position_embeddings[0, 0]
    tokens = {"base": vit.embeddings(pixel_values)[0]}  # [17, 32], the class token first
    tokens |= {name: (head.class_token + position)[None] for name, head in model.heads.items() if name != "probe"}
    tokens |= {f"{name} cells": model.heads[name].memory[0] for name in "ABD"}
    normed = {name: F.layer_norm(x, [32], layer.layernorm_before.weight, layer.layernorm_before.bias, 1e-12)
              for name, x in tokens.items()}  # fmt: skip

    def weights(query, seen):
        """Those of each group of tokens, their mean over the four attention heads of eight numbers each."""
        q = layer.attention.q_proj(normed[query][:1]).view(4, 1, 8)
        k = layer.attention.k_proj(torch.cat([normed[name] for name in seen])).view(-1, 4, 8).transpose(0, 1)
        found = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1).mean(0)[0].detach()
        return dict(zip(seen, found.split([len(normed[name]) for name in seen]), strict=True))

    sees = {
        "D": ["base", "D", "D cells"],
        "A": ["base", "A", "A cells"],
        "B": ["base", "A", "B", "A cells", "B cells"],
        "C": ["base", "A", "B", "C", "A cells", "B cells"],
        "probe": ["base"],
    }
    for name, seen in sees.items():
        (look,) = looks_of(model, name, pixel_values)
        of = weights("base" if name == "probe" else name, seen)
        own = {name, f"{name} cells"}
        inherited = sum(float(of[other].sum()) for other in seen if other != "base" and other not in own)
        expected = [
            float(of[f"{name} cells"].sum()) if name in "ABD" else 0,
            inherited,
            float(of[name].sum()) if name != "probe" else 0,
            float(of["base"][0]),
            float(of["base"][1:].sum()),
        ]
        assert look.shares[0].tolist() == pytest.approx(expected, abs=1e-5)
        assert look.maps[0].ravel().tolist() == pytest.approx(of["base"][1:].tolist(), abs=1e-5)


def test_a_linear_probe_looks_where_the_base_looks():
    model = model_of_all_kinds()
    for probe, base in zip(looks_of(model, "probe"), looks_of(model, "base"), strict=True):
        assert np.array_equal(probe.maps, base.maps) and np.array_equal(probe.shares, base.shares)


def test_rows_and_columns_of_patches_that_are_no_square():
    """Patches are listed row by row, after the class token."""
    model = tiny_model(image_size=[8, 24])
    add_random_head(model, "A", 2, 1)
    assert columns_of(model, "A").grid == (2, 6)
    pixel_values = images(1, 24)[:, :, :8]
    (look,) = looks_of(model, "A", pixel_values)
    row = model(pixel_values, output_attentions=True)["A"].attentions[0].detach()[0, :, 0].mean(0)  # [columns]
    assert look.maps[0, 1, 4] == pytest.approx(float(row[1 + 1 * 6 + 4]), abs=ROUNDING)


def test_half_precision_gives_float32_numbers():
    model = tiny_model(dtype=torch.bfloat16)
    add_random_head(model, "A", 2, 1)
    look = looks_of(model, "A")[0]
    assert look.maps.dtype == look.shares.dtype == np.float32
    assert look.shares.sum(axis=1) == pytest.approx(np.ones(3), abs=2e-3)  # 4e-4 measured


def test_images_of_another_size_than_the_model_has_now():
    model = tiny_model()
    add_random_head(model, "A", 2, 1)
    attentions = model(images(), output_attentions=True)["A"].attentions
    model.set_image_size(32)
    said = "The attention of A is over 19 tokens, but Columns(special=1, grid=(8, 8), "
    with pytest.raises(ValueError, match=re.escape(said) + r".* are 67: ask columns_of while the model has the size"):
        attention_of("A", attentions, columns_of(model, "A"))
