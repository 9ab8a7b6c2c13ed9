"""Tensors with timm's names, which the original code of DeiT, DINO, DINOv2, DINOv3, MAE, MoCo v3 and BEiT shares."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from learnable_memory.bases.refused import refuse_names

# Those of timm and of the original code -> those of `Encoder`. Applied in this order.
RENAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^patch_embed\.proj\.": "patches.",
    r"^patch_embed\.norm\.": "patch_norm.",
    r"^cls_token$": "class_token",
    r"^dist_token$": "distillation_token",
    r"^(reg_token|register_tokens|storage_tokens)$": "registers",
    r"^norm_pre\.": "first_norm.",
    r"^fc_norm\.": "pooled_norm.",
    r"^head\.": "classifier.",
    r"^head_dist\.": "distillation_classifier.",
    r"^rel_pos_bias\.relative_position_bias_table$": "relative_positions",
    r"^attn_pool\.latent$": "probe",
    r"^attn_pool\.(q|proj)\.": lambda found: {"q": "pool.query.", "proj": "pool.output."}[found[1]],
    r"^attn_pool\.": "pool.",
    r"^blocks\.": "layers.",
    r"\.attn\.proj\.": ".output.",
    r"\.attn\.(q|k|v)_(proj\.)?": lambda found: {"q": ".query.", "k": ".key.", "v": ".value."}[found[1]],
    r"\.attn\.relative_position_bias_table$": ".relative_positions",
    r"\.(ls|gamma_)(\d)(\.gamma)?$": r".scale\2",
    r"\.mlp\.(fc1_g|w1)\.": ".gate.",
    r"\.mlp\.(fc1_x|w2)\.": ".up.",
    r"\.mlp\.w3\.": ".down.",
    r"(\.|^pool\.)mlp\.fc1\.": r"\1mlp_in.",
    r"(\.|^pool\.)mlp\.fc2\.": r"\1mlp_out.",
}
# What is one tensor there and several here.
SPLIT = {".attn.qkv.": ("query", "key", "value"), ".mlp.w12.": ("gate", "up"), "pool.kv.": ("key", "value")}
# MAE's decoder, tokens for masked patches, what only pretraining used, and what follows from the configuration.
UNUSED = r"^mask_token$|^decoder_|^local_cls_norm\.|\.relative_position_index$|^rope(_embed)?\.periods$|\.bias_mask$"


def from_timm_names(
    source: Path | str, state: Mapping[str, Tensor], name: str, patches: int | None = None
) -> dict[str, Tensor]:
    """The tensors of an `Encoder` from those with timm's names.

    Args:
        source: where they come from, for messages.
        state: `cls_token`, `pos_embed`, `blocks.N.attn.qkv.weight` [3D, D], and so on; not changed.
        name: of the family, for messages.
        patches: P, how many of the positions are those of patches; left out: those of a square image.

    Raises:
        ValueError: there is something that no class of transformers has, or tensors do not go together.
    """
    refuse_names(source, state)
    tensors = {}
    for key, tensor in state.items():
        if not re.search(UNUSED, key):
            for pattern, replacement in RENAMES.items():
                key = re.sub(pattern, replacement, key)
            tensors[key] = tensor
    try:
        for whole, parts in SPLIT.items():
            for key in [key for key in tensors if whole in key]:
                where, leaf = key.split(whole)
                for part, chunk in zip(parts, tensors.pop(key).chunk(len(parts)), strict=True):
                    tensors[f"{where or 'pool'}.{part}.{leaf}"] = chunk
        if "pos_embed" in tensors:
            _place_positions(tensors, _square(source, state) if patches is None else patches)
    except (KeyError, RuntimeError) as error:  # a part is not there, or of another shape
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{source} is no whole {name} checkpoint; its tensors do not go together: {reason}") from error
    return tensors


def _square(source: Path | str, state: Mapping[str, Tensor]) -> int:
    """P, if that of a square image is what is left of the positions without those of other tokens."""
    positions = state["pos_embed"].shape[1]
    special = [0, 1, 1 + ("dist_token" in state)]
    if "reg_token" in state:  # of timm, which may give them positions; the original code does not
        special.append(special[-1] + state["reg_token"].shape[1])
    for patches in (positions - number for number in special):
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            return patches
    raise ValueError(
        f"{source} has positions for {positions - 1} patches, which make no square image: only those of square images "
        "can be read from a file that does not give their size"
    )


def _place_positions(tensors: dict[str, Tensor], patches: int) -> None:
    """Give each kind of token the positions that it has; registers keep theirs in themselves."""
    positions = tensors.pop("pos_embed")  # [1, .., D]
    special, tensors["positions"] = positions.split([positions.shape[1] - patches, patches], dim=1)
    for token, position in (("class_token", "class_position"), ("distillation_token", "distillation_position")):
        if token in tensors:
            tensors[position] = special[:, :1] if special.shape[1] else positions.new_zeros(1, 1, positions.shape[2])
            special = special[:, 1:]
    if special.shape[1]:
        tensors["registers"] = tensors["registers"] + special
