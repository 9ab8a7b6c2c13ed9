"""Bases that differ from the stock ViT: further special tokens, other classifiers, images of other sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom
from torch.nn import functional as F
from transformers import ViTForImageClassification

from oracle import joint_logits
from tiny import add_random_head, images, tiny_base, tiny_config
from vit import BaseLayout, BaseTokens, MemoryCapableViT

LAYOUTS = [
    {"extra_tokens": 1, "readout": "class+extra"},
    {"extra_tokens": 4, "readout": "class+mean", "interpolation": "bicubic_antialias"},
    {"extra_tokens": 0, "readout": "class+mean"},
    {"extra_tokens": 3},
    {"interpolation": "bilinear_corners"},
]


def model_with(layout: dict, dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> MemoryCapableViT:
    """A model with random weights all of which matter, put together by `from_tensors`."""
    config = tiny_config(base_layout=layout, **changes)
    model = MemoryCapableViT(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.empty(tensor.shape).normal_(0, 0.3, generator=generator)
        for name, tensor in model.state_dict().items()
    }
    return MemoryCapableViT.from_tensors(config, tensors, "random").to(dtype)


def with_heads(model: MemoryCapableViT) -> MemoryCapableViT:
    add_random_head(model, "A", 4, 2)
    add_random_head(model, "B", 3, 1, extends=("A",))
    add_random_head(model, "C", 5, 0, memory_norm=False)
    return model


# ------------------------------------------------------------------------------------------------------ the two streams
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_heads_and_base_equal_the_joint_masked_attention(layout, dtype, bound):
    model = with_heads(model_with(layout, dtype, attn_implementation="sdpa"))
    with torch.no_grad():
        answers, expected = model(images(dtype=dtype)), joint_logits(model, images(dtype=dtype))
    assert answers.keys() == expected.keys() == {"base", "A", "B", "C"}
    for name, logits in expected.items():
        assert (answers[name].logits - logits).abs().max() < bound


@settings(max_examples=15, deadline=None)
@given(extra=st.integers(0, 5), rows=st.integers(1, 4), columns=st.integers(1, 4), batch=st.integers(1, 3))
def test_tokens_are_counted_and_ordered_for_any_layout_and_size(extra, rows, columns, batch):
    model = model_with({"extra_tokens": extra})
    model.set_image_size((4 * rows, 4 * columns))
    pixel_values = torch.randn(batch, 3, 4 * rows, 4 * columns)
    with torch.no_grad():
        hidden = model(pixel_values, output_hidden_states=True)["base"].hidden_states[0]
    assert hidden.shape[1] == model.num_tokens == 1 + extra + rows * columns
    embeddings = model.vit.embeddings
    if extra:
        assert torch.equal(hidden[:, 1 : 1 + extra], embeddings.extra_tokens.expand(batch, -1, -1))
    first = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(batch, -1, -1)
    assert torch.equal(hidden[:, :1], first)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_probe_reads_the_class_token_alone(layout):
    model = model_with(layout)
    weight, _ = add_random_head(model, "probe", 3, 0, class_token=False)
    with torch.no_grad():
        states = model(images(), output_hidden_states=True)["base"].hidden_states[-1]
        expected = F.linear(model.vit.layernorm(states)[:, 0], weight, model.heads["probe"].classifier.bias)
        assert torch.equal(model(images())["probe"].logits, expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("keys_and_values", [True, False])
def test_kept_tokens_answer_as_pixels(layout, keys_and_values):
    model = with_heads(model_with(layout))
    add_random_head(model, "probe", 3, 0, class_token=False)
    with torch.no_grad():
        kept, pixels = model.base_tokens(images(), keys_and_values), model(images())
        answers = model(kept)
        for name, output in pixels.items():
            difference = (answers[name].logits - output.logits).abs().max()
            assert difference == 0 if keys_and_values else difference < 1e-5
        narrow = BaseTokens(kept.layers, kept.output[:, :32])  # what a cache keeps
        for name, output in model(narrow, with_base=False).items():
            assert torch.equal(output.logits, answers[name].logits)
        if model.layout.readout != "class":
            with pytest.raises(ValueError, match="reads 64 numbers, but only 32 of an image were kept: "):
                model(narrow)


# ---------------------------------------------------------------------------------------------------- save, load, share
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_save_pretrained_brings_layout_size_and_heads_back(layout, tmp_path):
    model = with_heads(model_with(layout, attn_implementation="sdpa"))
    model.set_image_size((24, 8))
    model.save_pretrained(tmp_path)
    again = MemoryCapableViT.from_pretrained(tmp_path)
    assert (again.layout, again.image_size, again.fingerprint) == (model.layout, (24, 8), model.fingerprint)
    shared = MemoryCapableViT.from_base(model)
    pixel_values = torch.randn(2, 3, 24, 8)
    with torch.no_grad():
        before = model(pixel_values)
        for name, output in again(pixel_values).items():
            assert torch.equal(output.logits, before[name].logits)
        assert torch.equal(shared(pixel_values)["base"].logits, before["base"].logits)


def test_extra_tokens_belong_to_the_fingerprint_and_the_image_size_does_not():
    model = model_with({"extra_tokens": 2})
    other = MemoryCapableViT.from_tensors(
        model.config, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    )
    other.set_image_size(32)
    assert other.fingerprint == model.fingerprint
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed["vit.embeddings.extra_tokens"][0, 1, 3] += 1
    assert MemoryCapableViT.from_tensors(model.config, changed).fingerprint != model.fingerprint


def test_the_same_tensors_with_another_activation_are_another_base():
    """Google's .npz files are for the tanh form of GELU; HuggingFace runs the same tensors with the exact one."""
    tensors = model_with({}).state_dict()
    exact, tanh, again = (
        MemoryCapableViT.from_tensors(tiny_config(hidden_act=activation), tensors)
        for activation in ("gelu", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    )
    assert exact.fingerprint != tanh.fingerprint == again.fingerprint
    with torch.no_grad():
        assert not torch.equal(exact(images())["base"].logits, tanh(images())["base"].logits)


def test_tensors_of_a_stock_vit_are_the_stock_model():
    base = tiny_base()
    model = MemoryCapableViT.from_tensors(base.config, base.state_dict(), "here", attn_implementation="eager")
    assert model.fingerprint == MemoryCapableViT.from_base(base).fingerprint and model.base_id == "here"
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(images())["base"].logits, base(images()).logits)


def test_tensors_without_a_classifier_have_no_base_answers():
    tensors = {name: t for name, t in tiny_base().state_dict().items() if not name.startswith("classifier")}
    model = MemoryCapableViT.from_tensors(tiny_config(num_labels=0), tensors)
    assert not model.has_base_classifier and "base" not in model(images())


def test_tensors_that_do_not_fit_are_named():
    base = tiny_base()
    tensors = dict(base.state_dict())
    del tensors["vit.layernorm.bias"]
    tensors["vit.embeddings.extra_tokens"] = torch.zeros(1, 1, 32)
    tensors["classifier.bias"] = torch.zeros(7)
    with pytest.raises(ValueError) as caught:
        MemoryCapableViT.from_tensors(base.config, tensors, "mine")
    assert str(caught.value) == (
        "mine are no whole ViT. Missing: vit.layernorm.bias; unexpected: vit.embeddings.extra_tokens; "
        "of another shape: classifier.bias."
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"readout": "mean"}, "readout is 'mean'; legal: class, class.extra, class.mean"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; legal: bicubic, bicubic_offset, bicubic_antialias"),
    ],
)
def test_unknown_layouts_are_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        BaseLayout(**layout)


# -------------------------------------------------------------------------------------------------------- image sizes
@pytest.mark.parametrize("size", [24, 8, (8, 20)])
def test_a_stock_base_resizes_its_positions_as_huggingface(size):
    base = tiny_base()
    model = MemoryCapableViT.from_base(base)
    model.set_image_size(size)
    height, width = (size, size) if isinstance(size, int) else size
    pixel_values = torch.randn(2, 3, height, width)
    with torch.no_grad():
        expected = base(pixel_values, interpolate_pos_encoding=True).logits
        assert torch.equal(model(pixel_values)["base"].logits, expected)


def test_google_positions_are_resized_as_scipy_does_it():
    """The original code zooms with order 1, which keeps the corners where they are."""
    model = model_with({"interpolation": "bilinear_corners"})
    embeddings = model.vit.embeddings
    ours = embeddings.interpolate_pos_encoding(torch.zeros(1, 1, 32), 28, 20)[0, 1:].detach()
    grid = embeddings.position_embeddings[0, 1:].detach().view(4, 4, 32).numpy()
    theirs = zoom(grid, (7 / 4, 5 / 4, 1), order=1)  # 7 x 5 patches
    assert abs(ours.view(7, 5, 32).numpy() - theirs).max() < 1e-6


def cubic_weights(new: int, old: int) -> torch.Tensor:
    """[new, old]: cubic convolution (a = -0.75) at the places of DINO's scale, the border repeated; in float64."""
    scale, a = (new + 0.1) / old, -0.75
    weights = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        place = (row + 0.5) / scale - 0.5
        for column in range(int(place // 1) - 1, int(place // 1) + 3):
            x = abs(place - column)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[row, min(max(column, 0), old - 1)] += near if x <= 1 else far
    return weights


def test_dinov2_positions_are_resized_with_a_tenth_of_a_patch_added():
    embeddings = model_with({"interpolation": "bicubic_offset"}).vit.embeddings
    ours = embeddings.interpolate_pos_encoding(torch.zeros(1, 1, 32), 28, 8)[0, 1:].detach()
    grid = embeddings.position_embeddings[0, 1:].detach().double().view(4, 4, 32)
    expected = torch.einsum("rR,cC,RCd->rcd", cubic_weights(7, 4), cubic_weights(2, 4), grid)
    assert (ours.view(7, 2, 32) - expected).abs().max() < 1e-5


def test_a_base_of_oblong_images_cannot_be_resized_by_huggingfaces_code():
    model = MemoryCapableViT(tiny_config(image_size=[16, 32]))
    model.set_image_size((16, 32))
    with pytest.raises(ValueError, match="resizes positions of square images only; this base takes 16x32"):
        model.set_image_size(32)
    converted = model_with({"extra_tokens": 1}, image_size=[16, 32])
    converted.set_image_size((24, 8))
    assert converted(torch.zeros(1, 3, 24, 8))["base"].logits.shape == (1, 5)


def test_the_same_tensors_with_other_ways_of_resizing_are_other_bases():
    tensors = model_with({}).state_dict()
    prints = {
        MemoryCapableViT.from_tensors(tiny_config(base_layout={"interpolation": way}), tensors).fingerprint
        for way in ("bicubic", "bicubic_antialias", "bicubic_offset", "bilinear_corners")
    }
    stock = MemoryCapableViT.from_tensors(tiny_config(), tensors).fingerprint
    assert len(prints) == 4 and stock in prints


def test_antialiasing_is_a_way_of_its_own():
    tensors = model_with({"interpolation": "bicubic_antialias"}).state_dict()
    small = {}
    for way in ("bicubic", "bicubic_antialias"):
        model = MemoryCapableViT.from_tensors(
            tiny_config(base_layout={"interpolation": way, "extra_tokens": 0, "readout": "class"}), tensors
        )
        model.set_image_size(8)
        with torch.no_grad():
            small[way] = model(images(size=8))["base"].logits
    assert (small["bicubic"] - small["bicubic_antialias"]).abs().max() > 1e-3


def test_positions_are_resized_in_float32_whatever_the_base_is_cast_to():
    model = model_with({"extra_tokens": 1}).to(torch.bfloat16)
    embeddings = model.vit.embeddings
    ours = embeddings.interpolate_pos_encoding(torch.zeros(1, 1, 32), 24, 24)
    grid = embeddings.position_embeddings[:, 1:].float().unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    precise = F.interpolate(grid, (6, 6), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours[:, 1:], precise.to(torch.bfloat16))


@pytest.mark.parametrize("size", [18, (16, 6), 0, (-4, 8)])
def test_images_that_cannot_be_cut_into_patches_are_refused(size):
    with pytest.raises(ValueError, match="pixels cannot be cut into patches of 4x4: take multiples of these"):
        model_with({}).set_image_size(size)


def test_images_of_another_size_are_refused_until_the_size_is_set():
    model = model_with({"extra_tokens": 1})
    with pytest.raises(ValueError, match=r"images have 24x24 pixels, but the model takes 16x16\. Resize them"):
        model(images(size=24))
    model.set_image_size(24)
    model(images(size=24))
    with pytest.raises(ValueError, match="images have 16x16 pixels, but the model takes 24x24"):
        model(images())


def test_heads_trained_at_one_size_answer_at_another():
    """One base, two image sizes in turn: neither the fingerprint nor the answers at the first size change."""
    model = with_heads(model_with({"extra_tokens": 1}))
    with torch.no_grad():
        before = model(images())["A"].logits
        model.set_image_size(32)
        assert model(images(size=32))["A"].logits.shape == before.shape
        model.set_image_size(16)
        assert torch.equal(model(images())["A"].logits, before)


def test_another_kind_of_model_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(ValueError, match=r"is a 'dinov2' model, not a plain ViT\. .*commands\.model\.open_base"):
        MemoryCapableViT.from_pretrained(tmp_path)


def test_a_stock_config_makes_the_stock_modules():
    stock = ViTForImageClassification(tiny_config())
    ours = MemoryCapableViT(tiny_config())
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert type(ours.vit.embeddings) is type(stock.vit.embeddings)
