"""State dicts with timm's names, which the original code of DeiT, DINO, DINOv2, MAE and MoCo v3 shares."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from learnable_memory.families.plain import (
    PlainViT,
    fold_scale,
    imagenet_preprocessing,
    mean_of_classifiers,
    place_extra_tokens,
    plain_vit,
)
from learnable_memory.families.refused import refuse_names
from learnable_memory.transforms import Preprocessing

RENAMES = {
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^cls_token$": "embeddings.cls_token",
    r"^blocks\.": "layers.",
    r"^norm\.": "layernorm.",
    r"^head\.": "classifier.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.attn\.proj\.": ".attention.o_proj.",
}
SCALES = {r"\.(ls1\.gamma|gamma_1)$": ".attention.o_proj", r"\.(ls2\.gamma|gamma_2)$": ".mlp.fc2"}
USUAL_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # by width, in all families of these names but MoCo v3
Positions = Literal["patches", "class and patches", "all tokens"]
# The decoder of MAE, and the token for masked patches.
UNUSED = r"^mask_token$|^decoder_"


def from_timm_names(
    source: Path | str, state: Mapping[str, Tensor], family: str, *,
    num_attention_heads: int | None = None, positions_of: Positions | None = None, interpolation: str = "bicubic",
    layer_norm_eps: float = 1e-6, hidden_act: str = "gelu", image_size: tuple[int, int] | None = None,
    id2label: Mapping[int, str] | None = None,
    preprocessing: Callable[[int, int], Preprocessing] = imagenet_preprocessing,
) -> PlainViT:  # fmt: skip
    """A base from tensors with timm's names: `cls_token`, `pos_embed`, `blocks.N.attn.qkv.weight` [3D, D], and so on.

    Layer scale (`ls1.gamma`, in DeiT III `gamma_1`) is folded into the output projections; `reg_token` (in DINOv2
    `register_tokens`) and `dist_token` become extra tokens; `head` and `head_dist` one classifier, their mean.

    Args:
        source: where the tensors come from, for messages.
        num_attention_heads: left out: as usual for the width, see `USUAL_HEADS`.
        positions_of: which tokens `pos_embed` has positions for; the others' are zero. Left out: patches alone if their
            number is a square; else class and patches in DINOv2, all tokens in others.
        interpolation, image_size, id2label, preprocessing: as in `plain_vit`.

    Raises:
        ValueError: the tensors do not make a plain ViT; the message says why.
    """
    state = {name: tensor for name, tensor in state.items() if not re.search(UNUSED, name)}
    refuse_names(source, state)
    heads = num_attention_heads or _usual_heads(source, state["cls_token"].shape[-1])
    tensors = {}
    for name, tensor in state.items():
        for pattern, replacement in RENAMES.items():
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    distilled = "head_dist.weight" in tensors
    try:
        _split_queries_keys_values(tensors)
        _fold_layer_scale(tensors)
        _place_tokens(source, tensors, positions_of)
        if distilled:
            pair = (
                (tensors.pop(f"{head}.weight"), tensors.pop(f"{head}.bias")) for head in ("classifier", "head_dist")
            )
            tensors |= mean_of_classifiers(*pair)
    except (KeyError, RuntimeError) as error:  # what is folded is not there, or of another shape
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{source} is no whole {family} checkpoint; its tensors do not go together: {reason}"
        ) from error
    return plain_vit(
        source, family, tensors, readout="class+extra" if distilled else "class",
        interpolation=interpolation, num_attention_heads=heads, layer_norm_eps=layer_norm_eps,
        hidden_act=hidden_act, image_size=image_size, id2label=id2label, preprocessing=preprocessing,
    )  # fmt: skip


def _usual_heads(source: Path | str, width: int) -> int:
    if width not in USUAL_HEADS:
        raise ValueError(
            f"{source} is {width} wide, and does not say its number of attention heads; known without that: "
            f"{', '.join(map(str, USUAL_HEADS))}"
        )
    return USUAL_HEADS[width]


def _split_queries_keys_values(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".attn.qkv." in name]:
        layer, leaf = name.split(".attn.qkv.")
        for projection, part in zip(("q_proj", "k_proj", "v_proj"), tensors.pop(name).chunk(3), strict=True):
            tensors[f"{layer}.attention.{projection}.{leaf}"] = part


def _fold_layer_scale(tensors: dict[str, Tensor]) -> None:
    for pattern, output in SCALES.items():
        for name in [name for name in tensors if re.search(pattern, name)]:
            fold_scale(tensors, re.sub(pattern, output, name), tensors.pop(name))


def _place_tokens(source: Path | str, tensors: dict[str, Tensor], positions_of: Positions | None) -> None:
    """Set positions and extra tokens under the names of `plain_vit`."""
    positions = tensors.pop("pos_embed", None)  # [1, .., D]
    if positions is None:
        raise ValueError(f"{source} has no pos_embed: a base adds positions to its patches")
    kinds = [kind for kind in ("dist_token", "reg_token", "register_tokens") if kind in tensors]
    if len(kinds) > 1:
        raise ValueError(f"{source} has {' and '.join(kinds)}: one kind of extra tokens is supported")
    extra = tensors.pop(kinds[0]) if kinds else positions[:, :0]  # [1, n, D]
    if positions_of is None:
        positions_of = "all tokens" if kinds in (["dist_token"], ["reg_token"]) else "class and patches"
        if math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
            positions_of = "patches"
    without = {"patches": 1 + extra.shape[1], "class and patches": extra.shape[1], "all tokens": 0}[positions_of]
    at = 1 if positions_of == "class and patches" else 0
    none = positions.new_zeros(1, without, positions.shape[2])
    place_extra_tokens(tensors, extra, torch.cat([positions[:, :at], none, positions[:, at:]], dim=1))
    if not kinds:
        del tensors["embeddings.extra_tokens"]
