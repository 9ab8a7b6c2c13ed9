"""Head files of the 2023 implementation, the real ones and synthetic ones in their exact layout.

The answers of synthetic files are those of a joint attention that is written out here, in that implementation's order
of tokens, straight from the state dict and its own mask. Measured: its logits and the model's differ by at most 7e-16
in float64; those of the real files and what their own code gave, by 6e-8 in float32.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from learnable_memory import heads
from learnable_memory.legacy import OldFile, preprocessing, read
from learnable_memory.transforms import Preprocessing
from vit import MemoryCapableViT

WIDTH, MLP, LAYERS, PATCH, SIDE, ATTENTION_HEADS = 8, 12, 3, 4, 2, 2
PATCHES = SIDE**2
MASK = "vit.encoder.layer.{}.attention.attention.attention_mask"
MEMORY = "vit.encoder.layer.{}.attention.attention.memory_tokens.{}"


def old_state(
    memory_tokens: Sequence[int] = (1,),
    sees: Sequence[Sequence[int]] = ((),),
    width: int = WIDTH,
    layers: int = LAYERS,
    patch: int = PATCH,
    side: int = SIDE,
) -> OrderedDict[str, Tensor]:
    """A state dict; `sees` has for each head the heads, from 1, whose class tokens and memory it sees beside its own.

    Head i has 3 + i classes, and the base 2.
    """
    shapes = {
        "vit.embeddings.position_embeddings": (1, side**2 + 1, width),
        "vit.embeddings.cls_tokens.0": (1, 1, width),
        "vit.embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "vit.embeddings.patch_embeddings.projection.bias": (width,),
        "vit.layernorm.weight": (width,),
        "vit.layernorm.bias": (width,),
    }
    linear = {
        "attention.attention.query": (width, width), "attention.attention.key": (width, width),
        "attention.attention.value": (width, width), "attention.output.dense": (width, width),
        "intermediate.dense": (MLP, width), "output.dense": (width, MLP), "layernorm_before": (width,),
        "layernorm_after": (width,),
    }  # fmt: skip
    for layer in range(layers):
        for name, shape in linear.items():
            shapes[f"vit.encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"vit.encoder.layer.{layer}.{name}.bias"] = shape[:1]
        for i, m in enumerate(memory_tokens):
            shapes[MEMORY.format(layer, i)] = (1, m, width)
    for i in range(1, len(memory_tokens) + 1):
        shapes[f"vit.embeddings.cls_tokens.{i}"] = (1, 1, width)
    for i in range(len(memory_tokens) + 1):
        shapes[f"classifiers.{i}.weight"] = (3 + i if i else 2, width)
        shapes[f"classifiers.{i}.bias"] = (3 + i if i else 2,)
    generator = torch.Generator().manual_seed(0)
    state = OrderedDict((name, torch.randn(shape, generator=generator) * 0.5) for name, shape in shapes.items())
    for layer in range(layers):
        state[MASK.format(layer)] = old_mask(memory_tokens, sees, side**2)
    return state


def old_mask(memory_tokens: Sequence[int], sees: Sequence[Sequence[int]], patches: int = PATCHES) -> Tensor:
    """0 where a row's token sees a column's, else -inf; columns are patches, base class token, class tokens, memory."""
    base, k = patches + 1, len(memory_tokens)
    mask = torch.full((1, base + k, base + k + sum(memory_tokens)), -math.inf)
    mask[0, :, :base] = 0
    for i in range(1, k + 1):
        for j in (i, *sees[i - 1]):
            start = base + k + sum(memory_tokens[: j - 1])
            mask[0, patches + i, patches + j] = 0
            mask[0, patches + i, start : start + memory_tokens[j - 1]] = 0
    return mask


def written(path: Path, state: dict) -> Path:
    torch.save(state, path)
    return path


@torch.no_grad()
def old_logits(state: dict[str, Tensor], pixels: Tensor) -> list[Tensor]:
    """Logits of the base and of each head, by one joint attention over all tokens."""
    state = {name: tensor.to(pixels.dtype) for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    embeddings, batch, projection = "vit.embeddings", len(pixels), "vit.embeddings.patch_embeddings.projection"
    patches = F.conv2d(pixels, state[f"{projection}.weight"], state[f"{projection}.bias"], stride=PATCH).flatten(2).mT
    positions = state[f"{embeddings}.position_embeddings"]
    k = sum(name.startswith(f"{embeddings}.cls_tokens") for name in state) - 1
    tokens = [patches + positions[:, 1:]]
    tokens += [(state[f"{embeddings}.cls_tokens.{i}"] + positions[:, :1]).expand(batch, 1, -1) for i in range(k + 1)]
    x = torch.cat(tokens, dim=1)
    for layer in range(LAYERS):
        name, inner = f"vit.encoder.layer.{layer}", f"vit.encoder.layer.{layer}.attention.attention"
        normed = norm(x, f"{name}.layernorm_before")
        memory = [state[f"{inner}.memory_tokens.{i}"].expand(batch, -1, -1) for i in range(k)]
        asked = torch.cat([normed, *memory], dim=1)  # memory joins after the norm
        projected = [
            linear(x_, f"{inner}.{what}") for x_, what in ((normed, "query"), (asked, "key"), (asked, "value"))
        ]
        mixed = []
        for query, key, value in zip(*(t.chunk(ATTENTION_HEADS, dim=-1) for t in projected), strict=True):
            scores = query @ key.mT / math.sqrt(query.shape[-1]) + state[f"{inner}.attention_mask"]
            mixed.append(scores.softmax(-1) @ value)
        x = x + linear(torch.cat(mixed, dim=-1), f"{name}.attention.output.dense")
        hidden = F.gelu(linear(norm(x, f"{name}.layernorm_after"), f"{name}.intermediate.dense"))
        x = x + linear(hidden, f"{name}.output.dense")
    x = norm(x, "vit.layernorm")
    return [linear(x[:, PATCHES + i], f"classifiers.{i}") for i in range(k + 1)]


def base_of(state: dict[str, Tensor], folder: Path, dtype: torch.dtype = torch.float32) -> MemoryCapableViT:
    """The base in a state dict as a checkpoint of the transformers of that time, loaded."""
    added = ("memory_tokens", "attention_mask", "cls_tokens", "classifiers")
    stock = {name: tensor for name, tensor in state.items() if not any(word in name for word in added)}
    stock["vit.embeddings.cls_token"] = state["vit.embeddings.cls_tokens.0"]
    stock |= {f"classifier.{leaf}": state[f"classifiers.0.{leaf}"] for leaf in ("weight", "bias")}
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in stock.items()}, folder / "model.safetensors")
    config = {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": WIDTH,
        "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": ATTENTION_HEADS,
        "image_size": SIDE * PATCH, "patch_size": PATCH, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return MemoryCapableViT.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")


def put_on(model: MemoryCapableViT, old: OldFile) -> None:
    for head in old.heads:
        cells = head.tensors["memory"].shape[1] if "memory" in head.tensors else 0
        model.add_head(head.name, len(head.tensors["classifier.bias"]), cells, head.extends, memory_norm=False)
        model.heads[head.name].load(head.tensors)


def refused(path: Path, names: Sequence[str] | None = None) -> str:
    """The message, whose form is that of all messages."""
    with pytest.raises(ValueError) as caught:
        read(path, names)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------ the real files
@pytest.mark.parametrize(("name", "cells", "classes"), [("CIFAR100", 1, 100), ("Places", 4, 365)])
def test_the_real_files(legacy: Path, name: str, cells: int, classes: int) -> None:
    path = legacy / f"{name}_model.pt"
    found, state = read(path), torch.load(path, weights_only=True)
    (head,) = found.heads
    assert (head.name, head.extends) == (name, ())
    assert torch.equal(head.tensors["class_token"], state["vit.embeddings.cls_tokens.1"].view(48))
    for layer in range(3):
        assert torch.equal(head.tensors["memory"][layer], state[MEMORY.format(layer, 0)].view(cells, 48))
    assert head.tensors["memory"].shape == (3, cells, 48)
    assert torch.equal(head.tensors["classifier.weight"], state["classifiers.1.weight"])
    assert torch.equal(head.tensors["classifier.bias"], state["classifiers.1.bias"])
    assert len(head.tensors) == 4 and len(head.tensors["classifier.bias"]) == classes
    assert found.base_id is None and found.image_size == (32, 32)


@pytest.mark.parametrize("name", ["CIFAR100", "Places"])
def test_the_real_files_answer_as_they_did(legacy: Path, name: str) -> None:
    model = MemoryCapableViT.from_pretrained(legacy / "base", attn_implementation="sdpa")
    expected, found = load_file(legacy / "expected.safetensors"), read(legacy / f"{name}_model.pt")
    assert heads.content_hash(found.base) == model.fingerprint
    put_on(model, found)
    with torch.no_grad():
        answers = model(expected["pixel_values"])
    assert (answers[name].logits - expected[f"{name}_logits"]).abs().max() < 1e-4
    assert (answers["base"].logits - expected["base_logits"]).abs().max() < 1e-4


# ------------------------------------------------------------------------------------------------------------- answers
GRAPHS = {
    "one head": ((1,), [[]], [[]]),
    "chain of two": ((1, 1), [[], [1]], [[], ["x-1"]]),
    "chain of three, other counts of cells": ((2, 0, 3), [[], [1], [1, 2]], [[], ["x-1"], ["x-2"]]),
    "concatenation": ((1, 2), [[], []], [[], []]),
    "mixed": ((1, 2, 1, 1), [[], [], [1, 2], [2]], [[], [], ["x-1", "x-2"], ["x-2"]]),
}


@pytest.mark.parametrize(("memory_tokens", "sees", "extends"), GRAPHS.values(), ids=GRAPHS)
def test_answers_are_those_of_joint_attention(tmp_path: Path, memory_tokens, sees, extends) -> None:
    state = old_state(memory_tokens, sees)
    old = read(written(tmp_path / "x_model.pt", state))
    assert [list(head.extends) for head in old.heads] == extends
    assert [head.name for head in old.heads] == [f"x-{i}" for i in range(1, len(sees))] + ["x"]
    model = base_of(state, tmp_path / "base", torch.float64)
    assert heads.content_hash(old.base) == model.fingerprint
    put_on(model, old)
    pixels = torch.randn(3, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        answers = model(pixels)
    expected = old_logits(state, pixels)
    assert len(answers) == len(expected)
    for found, logits in zip(answers.values(), expected, strict=True):
        assert found.logits.shape == logits.shape
        assert (found.logits - logits).abs().max() <= 1e-9


def test_files_without_masks_are_chains(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in old_state((1, 1, 1), [[], [], []]).items() if "mask" not in name}
    old = read(written(tmp_path / "x_model.pt", state))
    assert [head.extends for head in old.heads] == [(), ("x-1",), ("x-2",)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in old_state((2, 1), [[], [1]]).items()}
    old = read(written(tmp_path / "x_model.pt", state))
    tensors = [*old.base.values(), *(tensor for head in old.heads for tensor in head.tensors.values())]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert torch.equal(old.heads[1].tensors["classifier.weight"], state["classifiers.2.weight"].float())
    assert old.heads[1].extends == ("x-1",)


def test_what_no_answer_depends_on_may_be_there_or_not(tmp_path: Path) -> None:
    state = old_state()
    expected = read(written(tmp_path / "x_model.pt", state))
    more = {"vit.embeddings.mask_token": torch.zeros(1, 1, WIDTH), "vit.pooler.dense.bias": torch.full((3,), math.nan)}
    less = ("classifiers.0.weight", "classifiers.0.bias")  # of a base without a classifier
    for changed in (state | more, {name: state[name] for name in state if name not in less}):
        found = read(written(tmp_path / "x_model.pt", changed))
        assert heads.content_hash(found.base) == heads.content_hash(expected.base)
        assert heads.content_hash(found.heads[0].tensors) == heads.content_hash(expected.heads[0].tensors)


@pytest.mark.parametrize(
    ("change", "base_id"),
    [
        ({}, "google/vit-base-patch32-224-in21k"),
        ({"patch": 16}, None),
        *(
            pytest.param(change, None, marks=pytest.mark.slow)
            for change in ({"width": 384}, {"layers": 6}, {"side": 12})
        ),
    ],
)
def test_the_base_that_was_published_has_a_name(tmp_path: Path, change: dict[str, int], base_id: str | None) -> None:
    sizes = {"width": 768, "layers": 12, "patch": 32, "side": 7} | change
    values = torch.zeros(768 * 3 * 32**2)  # one storage for all tensors: a small file
    state = {name: values[: tensor.numel()].view(tensor.shape) for name, tensor in old_state(**sizes).items()}
    state = {name: tensor for name, tensor in state.items() if "mask" not in name}
    found = read(written(tmp_path / "x_model.pt", state))
    assert (found.base_id, found.image_size) == (base_id, (sizes["patch"] * sizes["side"],) * 2)


def test_preprocessing() -> None:
    values = preprocessing((224, 192))
    expected = Preprocessing(
        height=224, width=192, resample="bilinear", rescale=1 / 255, mean=(0, 0, 0), std=(1, 1, 1), resize=(224, 192)
    )
    assert Preprocessing.from_dict(values) == expected
    assert values == expected.to_dict()
    assert json.loads(json.dumps(values)) == values


# --------------------------------------------------------------------------------------------------------------- names
def test_names_can_be_given(tmp_path: Path) -> None:
    path = written(tmp_path / "my old heads.pt", old_state((1, 1), [[], [1]]))
    first, second = read(path, ["a", "b"]).heads
    assert (first.name, second.name, second.extends) == ("a", "b", ("a",))
    assert len(first.tensors["classifier.bias"]) == 4 and len(second.tensors["classifier.bias"]) == 5


@pytest.mark.parametrize(("name", "expected"), [("Sun_model.pt", "Sun"), ("old-1.pt", "old-1")])
def test_names_come_from_the_file(tmp_path: Path, name: str, expected: str) -> None:
    assert read(written(tmp_path / name, old_state())).heads[0].name == expected


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "c"], ["a", "a"], "ab"])
def test_names_that_do_not_fit(tmp_path: Path, names: Sequence[str]) -> None:
    path = written(tmp_path / "x_model.pt", old_state((1, 1), [[], []]))
    assert refused(path, names).endswith(f"needs 2 different names, one for each head; got {names!r}")


@pytest.mark.parametrize("name", ["my head_model.pt", "_model.pt", "-1.pt", "a.b_model.pt"])
def test_files_whose_name_makes_none(tmp_path: Path, name: str) -> None:
    message = refused(written(tmp_path / name, old_state()))
    assert "cannot be called" in message and message.endswith(
        "after their file: give names (letters, digits, '_', '+' and '-'), one for each head"
    )


# ---------------------------------------------------------------------------------------------------------- wrong masks
@pytest.mark.parametrize(
    ("layer", "row", "column", "value", "who"),
    [
        # 4 patches, base class token at 4, class tokens at 5, 6, 7, memory at 8 | 9, 10 | 11
        (1, 6, 5, -math.inf, "class token 2 asks class token 1"),
        (2, 7, 9, -math.inf, "class token 3 asks the memory of head 2"),
        (0, 6, 8, -math.inf, "class token 2 asks the memory of head 1"),
        (0, 7, 5, -math.inf, "class token 3 asks class token 1"),  # as it sees 2, which sees 1
        (0, 5, 5, -math.inf, "class token 1 asks class token 1"),
        (0, 7, 2, -math.inf, "class token 3 asks patch 2"),
        (0, 5, 6, 0, "class token 1 asks class token 2"),
        (0, 4, 5, 0, "the base's class token asks class token 1"),
        (0, 3, 8, 0, "patch 3 asks the memory of head 1"),
        (0, 5, 10, -1e4, "class token 1 asks the memory of head 2"),
        (1, 0, 0, math.nan, "patch 0 asks patch 0"),
    ],
)
def test_masks_that_no_heads_make(tmp_path: Path, layer: int, row: int, column: int, value: float, who: str) -> None:
    state = old_state((1, 2, 1), [[], [1], [1, 2]])
    legal = state[MASK.format(layer)][0, row, column].item()
    state[MASK.format(layer)][0, row, column] = value
    assert refused(written(tmp_path / "x_model.pt", state)).endswith(
        "has an attention mask that neither concatenation nor extension makes: "
        f"layer {layer} has {value:g} where {who}, expected {legal:g}"
    )


# -------------------------------------------------------------------------------------------------------- wrong tensors
def changed(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], None]:
    """Adds or replaces a tensor, or takes it out."""

    def change(state: dict) -> None:
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor

    return change


def without_layer(number: int) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict) -> None:
        for name in [name for name in state if f".layer.{number}." in name]:
            del state[name]

    return change


CLASS_TOKENS = "vit.embeddings.cls_tokens"
LAYER_1 = "vit.encoder.layer.1"
PROJECTION = "vit.embeddings.patch_embeddings.projection.weight"
INCOMPLETE = "is no whole head file of the 2023 implementation"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_layer(1), f"{INCOMPLETE}; missing: {LAYER_1}.attention.attention.memory_tokens.0, {LAYER_1}."),
        (without_layer(0), f"{INCOMPLETE}: it has no vit.encoder.layer.0.intermediate.dense.weight"),
        (changed("vit.layernorm.bias", None), f"{INCOMPLETE}; missing: vit.layernorm.bias"),
        (changed("classifiers.1.weight", None), f"{INCOMPLETE}; missing: classifiers.1.weight"),
        (changed("classifiers.1.bias", None), f"{INCOMPLETE}: it has no classifiers.1.bias"),
        (changed("classifiers.0.weight", None), f"{INCOMPLETE}; missing: classifiers.0.weight"),
        (changed(MEMORY.format(2, 0), None), f"{INCOMPLETE}; missing: {MEMORY.format(2, 0)}"),
        (changed(MASK.format(1), None), f"{INCOMPLETE}; missing: {MASK.format(1)}"),
        (changed(PROJECTION, None), f"{INCOMPLETE}: it has no {PROJECTION}"),
        (changed("vit.extra", torch.ones(1)), f"{INCOMPLETE}; unexpected: vit.extra"),
        (changed(MEMORY.format(0, 1), torch.ones(1, 1, WIDTH)), f"unexpected: {MEMORY.format(0, 1)}"),
        (changed("classifiers.2.bias", torch.ones(3)), "unexpected: classifiers.2.bias"),
        (
            changed("vit.layernorm.bias", torch.ones(7)),
            f"{INCOMPLETE}; of another shape: vit.layernorm.bias (found (7,), expected (8,))",
        ),
        (
            changed(MEMORY.format(2, 0), torch.ones(1, 5, WIDTH)),
            f"of another shape: {MEMORY.format(2, 0)} (found (1, 5, 8), expected (1, 1, 8))",
        ),
        (changed(MASK.format(0), torch.zeros(1, 6, 8)), f"{MASK.format(0)} (found (1, 6, 8), expected (1, 6, 7))"),
        (
            changed("vit.embeddings.cls_tokens.0", torch.ones(WIDTH)),
            "vit.embeddings.cls_tokens.0 has the shape (8,), which must have 3 dimensions",
        ),
        (
            changed("vit.embeddings.position_embeddings", torch.ones(1, 4, WIDTH)),
            "has positions for 3 patches, which make no square image",
        ),
        (
            changed("vit.embeddings.position_embeddings", torch.ones(1, 1, WIDTH)),
            "has positions for 0 patches, which make no square image",
        ),
        (
            changed("vit.layernorm.bias", torch.ones(WIDTH).double()),
            "has values that float32 may not hold: vit.layernorm.bias is torch.float64; legal: torch.float32, torch.fl",
        ),
        (changed("classifiers.1.bias", torch.ones(4).long()), "classifiers.1.bias is torch.int64; legal: "),
        (
            changed("classifiers.1.bias", torch.tensor([1, 2, math.nan, 4])),
            "has values that are not finite in classifiers.1.bias: its training has diverged",
        ),
        (changed(MEMORY.format(1, 0), torch.full((1, 1, WIDTH), math.inf)), f"not finite in {MEMORY.format(1, 0)}"),
        (changed("epoch", 3), "is no head file of the 2023 implementation: 'epoch' is a int, and such a file has tens"),
        (changed(3, torch.ones(1)), "is no head file of the 2023 implementation: 3 is a Tensor"),
    ],
)
def test_files_that_are_not_whole(tmp_path: Path, change: Callable, message: str) -> None:
    state = old_state()
    change(state)
    assert message in refused(written(tmp_path / "x_model.pt", state))


def test_files_without_a_head(tmp_path: Path) -> None:
    state = old_state()
    plain = {"vit.embeddings.cls_token": state["vit.embeddings.cls_tokens.0"], "vit.layernorm.bias": torch.ones(WIDTH)}
    assert "is a base, not a head: load it as the model" in refused(written(tmp_path / "vit.pt", plain))
    other = {"conv1.weight": torch.ones(3)}
    assert "it has no vit.embeddings.cls_tokens.0" in refused(written(tmp_path / "other.pt", other))
    gap = {name: tensor for name, tensor in old_state((1, 1), [[], []]).items() if name != f"{CLASS_TOKENS}.1"}
    assert f"missing: {CLASS_TOKENS}.1" in refused(written(tmp_path / "gap.pt", gap))
    added = ("cls_tokens.1", "classifiers.1", "memory_tokens")
    no_head = {name: tensor for name, tensor in state.items() if not any(word in name for word in added)}
    assert refused(written(tmp_path / "none.pt", no_head)).endswith(
        "has no head: its only class token is that of the base"
    )


def test_files_that_are_no_pickles(tmp_path: Path) -> None:
    (tmp_path / "x_model.pt").write_text("<!DOCTYPE html>")
    assert "it is no checkpoint, is damaged, or holds more than tensors" in refused(tmp_path / "x_model.pt")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "y_model.pt")
