"""Checkpoint files of the original code, in their layouts, against a forward pass written down from the papers.

Measured: features and answers differ by at most 7e-6, the one side being float64.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from families_reference import Evil, assert_same
from learnable_memory.families import PlainViT, from_checkpoint_file, from_timm_names, timm_names
from tiny import images

WIDTH, LAYERS, SIDE, CLASSES = 64, 2, 4, 5  # 16x16 pixels, patches of 4x4


@pytest.fixture(autouse=True)
def tiny_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """No published model is so narrow: one attention head."""
    monkeypatch.setitem(timm_names.USUAL_HEADS, WIDTH, 1)


def encoder(positions: int = 1 + SIDE**2, scales: Sequence[str] = (), width: int = WIDTH) -> dict[str, Tensor]:
    """Random tensors of a ViT with timm's names; `scales` names the layer scales of a block."""
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, positions, width), "norm.weight": (width,), "norm.bias": (width,),
        "patch_embed.proj.weight": (width, 3, 4, 4), "patch_embed.proj.bias": (width,),
    }  # fmt: skip
    linear = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (96, width),
        "mlp.fc2": (width, 96),
    }
    for block in (f"blocks.{layer}" for layer in range(LAYERS)):
        shapes |= {f"{block}.{norm}.{leaf}": (width,) for norm in ("norm1", "norm2") for leaf in ("weight", "bias")}
        shapes |= {f"{block}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{block}.{name}.bias": shape[:1] for name, shape in linear.items()}
        shapes |= {f"{block}.{scale}": (width,) for scale in scales}
    return drawn(shapes, seed=0)


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Large enough that attention is far from uniform; scales around 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.empty(shape).normal_(0, 0.2, generator=generator) for name, shape in shapes.items()}
    scales = re.compile(r"norm\d?\.weight$|gamma")
    return {name: tensor + 1 if scales.search(name) else tensor for name, tensor in state.items()}


def classifier(name: str = "head", seed: int = 1) -> dict[str, Tensor]:
    return drawn({f"{name}.weight": (CLASSES, WIDTH), f"{name}.bias": (CLASSES,)}, seed)


def forward(state: dict[str, Tensor], tokens: Tensor, heads: int, scales: Sequence[str] = ()) -> Tensor:
    """Layers and final norm, in float64: [B, N, D] -> [B, N, D]."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = tokens.double()
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        first, second = (state[f"{block}.{name}"] for name in scales) if scales else (1.0, 1.0)
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, d] each
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + first * linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        inner = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + second * linear(0.5 * inner * (1 + torch.erf(inner / 2**0.5)), f"{block}.mlp.fc2")
    return norm(x, "norm")


def patches_of(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    return F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4).flatten(2).mT


def with_class_token(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """What DeiT, DINO, DINOv2, MAE and MoCo v3 have in common: [B, 1 + P, D]."""
    first = state["cls_token"].expand(len(pixels), -1, -1)
    return torch.cat([first, patches_of(state, pixels)], dim=1) + state["pos_embed"]


def written(path: Path, content: object) -> PlainViT:
    torch.save(content, path)
    return from_checkpoint_file(path)


def check(
    plain: PlainViT, state: dict[str, Tensor], tokens: Tensor, heads: int = 1, scales: Sequence[str] = ()
) -> None:
    """Compares all tokens, and the answers if there is a classifier, given what enters the first layer."""
    expected = forward(state, tokens, heads, scales)
    answers = None
    if "head.weight" in state and "head_dist.weight" not in state:
        answers = F.linear(expected[:, 0], state["head.weight"].double(), state["head.bias"].double())
    if "head_dist.weight" in state:
        both = [
            F.linear(expected[:, i], state[f"{head}.weight"].double(), state[f"{head}.bias"].double())
            for i, head in enumerate(("head", "head_dist"))
        ]
        answers = (both[0] + both[1]) / 2
    assert_same(plain, images(), expected, answers)


# ------------------------------------------------------------------------------------------------------------ families
def test_deit(tmp_path: Path) -> None:
    state = encoder() | classifier()
    plain = written(tmp_path / "deit.pth", {"model": state})
    assert plain.config.num_labels == CLASSES and plain.config.num_attention_heads == 1
    check(plain, state, with_class_token(state, images()))


def test_distilled_deit(tmp_path: Path) -> None:
    """Its second token has a position of its own, and the answer is the mean of two classifiers."""
    state = encoder(2 + SIDE**2) | classifier() | classifier("head_dist", seed=2)
    state |= drawn({"dist_token": (1, 1, WIDTH)}, seed=3)
    plain = written(tmp_path / "deit_distilled.pth", {"model": state})
    assert plain.family == "DeiT, distilled"
    assert plain.config.base_layout == {"extra_tokens": 1, "readout": "class+extra", "interpolation": "bicubic"}
    first = torch.cat([state["cls_token"], state["dist_token"]], dim=1).expand(3, -1, -1)
    check(plain, state, torch.cat([first, patches_of(state, images())], dim=1) + state["pos_embed"])


def test_deit_three(tmp_path: Path) -> None:
    """Layer scale under its own names, and a class token without position."""
    scales = ("gamma_1", "gamma_2")
    state = encoder(SIDE**2, scales) | classifier()
    plain = written(tmp_path / "deit3.pth", {"model": state})
    assert plain.family == "DeiT III"
    first = state["cls_token"].expand(3, -1, -1)
    check(plain, state, torch.cat([first, patches_of(state, images()) + state["pos_embed"]], dim=1), scales=scales)


def test_mae(tmp_path: Path) -> None:
    """The file of the visualisation has the decoder too."""
    state = encoder()
    state["pos_embed"][:, 0] = 0
    decoder = {"mask_token": (1, 1, 8), "decoder_embed.weight": (8, WIDTH), "decoder_pos_embed": (1, 17, 8)}
    plain = written(tmp_path / "mae.pth", {"model": state | drawn(decoder, seed=3)})
    assert plain.family == "ViT-MAE"
    check(plain, state, with_class_token(state, images()))


def test_dino(tmp_path: Path) -> None:
    state = encoder()
    check(written(tmp_path / "dino.pth", state), state, with_class_token(state, images()))


DINOV2 = ("ls1.gamma", "ls2.gamma")


def test_dinov2(tmp_path: Path) -> None:
    state = encoder(scales=DINOV2)
    plain = written(tmp_path / "dinov2.pth", state | {"mask_token": torch.ones(1, WIDTH)})
    assert plain.family == "DINOv2"
    assert plain.config.base_layout == {"extra_tokens": 0, "readout": "class", "interpolation": "bicubic_offset"}
    check(plain, state, with_class_token(state, images()), scales=DINOV2)


def test_dinov2_with_registers(tmp_path: Path) -> None:
    """Registers come after the class token, once positions are added."""
    state = encoder(scales=DINOV2) | drawn({"register_tokens": (1, 4, WIDTH)}, seed=3)
    plain = written(tmp_path / "dinov2_reg4.pth", state | {"mask_token": torch.ones(1, WIDTH)})
    assert plain.family == "DINOv2 with registers"
    assert plain.config.base_layout == {"extra_tokens": 4, "readout": "class", "interpolation": "bicubic_antialias"}
    tokens = with_class_token(state, images())
    registers = state["register_tokens"].expand(3, -1, -1)
    check(plain, state, torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1), scales=DINOV2)


@pytest.mark.parametrize("everywhere", [False, True])
def test_files_of_timm_with_registers(tmp_path: Path, everywhere: bool) -> None:
    """timm writes DINOv2's class token with its position added, and positions for patches alone; of others, for all."""
    state = encoder(SIDE**2 + 5 * everywhere, DINOV2) | drawn({"reg_token": (1, 4, WIDTH)}, seed=3)
    save_file(state, tmp_path / "model.safetensors")
    plain = from_checkpoint_file(tmp_path / "model.safetensors")
    first = torch.cat([state["cls_token"], state["reg_token"]], dim=1).expand(3, -1, -1)
    tokens = torch.cat([first, patches_of(state, images())], dim=1)
    tokens[:, 0 if everywhere else 5 :] += state["pos_embed"]
    check(plain, state, tokens, scales=DINOV2)


def moco(base: dict[str, Tensor], momentum: dict[str, Tensor], **changes) -> dict:
    """What main_moco.py saves."""
    shapes = {"head.0.weight": (8, WIDTH), "head.1.running_mean": (8,), "head.3.weight": (8, 8)}
    projector = drawn(shapes, seed=3)
    state = {f"module.base_encoder.{name}": tensor for name, tensor in (base | projector).items()}
    state |= {f"module.momentum_encoder.{name}": tensor for name, tensor in (momentum | projector).items()}
    state |= {"module.predictor.0.weight": torch.ones(8, 8)}
    return {"epoch": 300, "arch": "vit_small", "state_dict": state, "optimizer": {"state": {}}, "scaler": {}} | changes


def test_moco_v3_pretraining(tmp_path: Path) -> None:
    """Its ViT-S has 12 heads, which no shape tells; its `head` is no classifier."""
    state = encoder(width=96)
    momentum = {name: tensor + 1 for name, tensor in state.items()}
    plain = written(tmp_path / "vit-s-300ep.pth.tar", moco(state, momentum))
    assert plain.family == "MoCo v3"
    assert plain.config.num_attention_heads == 12 and plain.config.num_labels == 0
    assert plain.preprocessing.resample == "bilinear"
    check(plain, state, with_class_token(state, images()), heads=12)


@pytest.mark.parametrize(("arch", "heads"), [("vit_small", 12), ("vit_base", 12), ("vit_large", 16), ("vit_huge", 16)])
def test_moco_v3_heads(tmp_path: Path, arch: str, heads: int) -> None:
    state = encoder(width=192)
    assert written(tmp_path / "x.pth.tar", moco(state, state, arch=arch)).config.num_attention_heads == heads


def test_moco_v3_linear_probe(tmp_path: Path) -> None:
    state = encoder() | classifier()
    content = {"arch": "vit_large", "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    plain = written(tmp_path / "linear.pth.tar", content | {"best_acc1": torch.tensor(70.0)})
    assert plain.family == "MoCo v3" and plain.config.num_labels == CLASSES
    check(plain, state, with_class_token(state, images()), heads=16)


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16)])
def test_number_of_heads_by_width(width: int, heads: int) -> None:
    assert from_timm_names("x", encoder(width=width), "ViT").config.num_attention_heads == heads


def test_number_of_heads_can_be_given() -> None:
    state = encoder()
    check(from_timm_names("x", state, "ViT", num_attention_heads=8), state, with_class_token(state, images()), heads=8)


def test_tensors_share_no_memory() -> None:
    """Neither with the state dict nor with each other (queries, keys and values are one tensor there)."""
    state = encoder()
    plain = from_timm_names("x", state, "ViT")
    addresses = {tensor.untyped_storage().data_ptr() for tensor in plain.tensors.values()}
    assert len(addresses) == len(plain.tensors)
    assert addresses.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in state.values())


@pytest.mark.parametrize(("side", "size", "resize"), [(8, 32, 37), (56, 224, 256)])
def test_sizes_and_preprocessing_follow_from_the_positions(tmp_path: Path, side: int, size: int, resize: int) -> None:
    prep = written(tmp_path / "x.pth", encoder(1 + side**2)).preprocessing
    assert (prep.height, prep.width, prep.resize, prep.resample) == (size, size, (resize,), "bicubic")


def test_dinov2_is_evaluated_on_224_pixels(tmp_path: Path) -> None:
    plain = written(tmp_path / "x.pth", encoder(1 + 60**2, DINOV2) | {"mask_token": torch.ones(1, WIDTH)})
    assert plain.config.image_size == 240
    assert (plain.preprocessing.height, plain.preprocessing.resize) == (224, (256,))


# -------------------------------------------------------------------------------------------------------------- errors
def refused(path: Path, content: object, message: str) -> None:
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        from_checkpoint_file(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def adding(name: str, *shape: int) -> dict[str, Tensor]:
    return drawn({name: shape or (WIDTH,)}, seed=4)


def without(name: str) -> dict[str, None]:
    return {name: None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("cls_token"), "has no class token, which heads start from"),
        (adding("fc_norm.weight"), r"reads an average of the patches.*\(found fc_norm.weight\)"),
        (adding("norm_pre.weight"), "a layer norm stands before its first layer"),
        (adding("blocks.0.attn.q_norm.weight"), "it normalises queries and keys"),
        (adding("blocks.0.attn.norm.weight"), "layer norms inside attention or MLP"),
        (adding("blocks.0.attn.gate.weight"), "its attention is gated"),
        (adding("blocks.0.mlp.w12.weight"), r"its MLP is gated \(SwiGLU\)"),
        (adding("patch_embed.proj.0.weight"), "come from a stack of convolutions"),
        (adding("blocks.0.attn.relative_position_bias_table"), "relative position bias"),
        (adding("rope.periods"), "rotary positions"),
        (without("pos_embed"), "has no pos_embed: a base adds positions to its patches"),
        (without("norm.bias"), r"is no whole .* checkpoint; missing: vit\.layernorm\.bias; unexpected: nothing;"),
        (without("patch_embed.proj.weight"), r"missing: vit\.embeddings\.patch_embeddings\.projection\.weight$"),
        (adding("head.0.weight"), r"unexpected: classifier\.0\.weight;"),
        (adding("norm.bias", 7), r"of another shape: vit\.layernorm\.bias$"),
        (adding("pos_embed", 1, 13, WIDTH), "positions for 12 patches of size 4, which make no square image"),
        (
            adding("dist_token", 1, 1, WIDTH) | adding("register_tokens", 1, 1, WIDTH),
            "has dist_token and register_tokens: one kind of extra tokens is supported",
        ),
    ],
)
def test_tensors_that_make_no_plain_vit(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    state = {name: tensor for name, tensor in (encoder() | change).items() if tensor is not None}
    refused(tmp_path / "x.pth", {"model": state}, message)


def test_reasons_are_given_for_a_state_dict_too() -> None:
    with pytest.raises(ValueError, match="x cannot be a base: its attention is gated"):
        from_timm_names("x", encoder() | adding("blocks.0.attn.gate.weight"), "ViT")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.0.attn.proj.weight"), "'layers.0.attention.o_proj.weight'"),
        (adding("blocks.0.ls2.gamma", 7), "The size of tensor a "),
        (adding("head_dist.weight", CLASSES, WIDTH) | adding("head.weight", CLASSES, WIDTH), "'classifier.bias'"),
    ],
)
def test_tensors_that_do_not_go_together(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    state = {name: tensor for name, tensor in (encoder(scales=DINOV2) | change).items() if tensor is not None}
    refused(tmp_path / "x.pth", state, f"is no whole .* checkpoint; its tensors do not go together: {message}")


def test_unknown_number_of_heads(tmp_path: Path) -> None:
    message = (
        "is 96 wide, and does not say its number of attention heads; known without that: 192, 384, 768, 1024, 1280"
    )
    refused(tmp_path / "x.pth", encoder(width=96), message)
    state = encoder(width=384)
    state["pos_embed"][:, 0] = 0  # fixed waves, as in MoCo v3, whose small ViT has 12 heads instead of 6
    refused(
        tmp_path / "y.pth", {"model": state}, "may be MoCo v3's small ViT, which has 12 attention heads, or another"
    )


def test_moco_v3_of_unknown_architecture(tmp_path: Path) -> None:
    state = encoder()
    message = (
        "MoCo v3 checkpoint of arch 'vit_tiny', whose number of attention heads is not known; known: vit_small, vit"
    )
    refused(tmp_path / "x.pth.tar", moco(state, state, arch="vit_tiny"), message)
    stem = state | adding("patch_embed.proj.0.weight")
    refused(tmp_path / "x.pth.tar", moco(stem, state, arch="vit_conv_small"), "come from a stack of convolutions")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor; a checkpoint is a dict of tensors"),
        (
            {"epoch": 3, "loss": 0.1},
            r"no tensors by name \(found epoch, loss\); looked under 'state_dict', under 'model'",
        ),
        ({}, r"has no tensors by name \(found nothing\)"),
        ({"model": encoder(), "args": argparse.Namespace(lr=1)}, "holds argparse.Namespace beside its tensors"),
    ],
    ids=["tensor", "no tensors", "empty", "namespace"],
)
def test_files_without_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    refused(tmp_path / "x.pth", content, message)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    refused(tmp_path / "x.pth", {"model": encoder(), "evil": Evil(tmp_path / "ran")}, "such a pickle can run any code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(encoder(), path) if name == "x.safetensors" else torch.save(encoder(), path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=rf"cannot read .*{name} .*: it is damaged, or no checkpoint") as caught:
        from_checkpoint_file(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        from_checkpoint_file(tmp_path / f"no_{name}")


@pytest.mark.parametrize(("side", "resize"), [(56, (256,)), (96, (384, 384))])
def test_deit_three_cuts_nothing_away_at_384(tmp_path: Path, side: int, resize: tuple[int, ...]) -> None:
    state = encoder(positions=side**2, scales=("gamma_1", "gamma_2"))
    assert written(tmp_path / "deit_3.pth", {"model": state}).preprocessing.resize == resize
