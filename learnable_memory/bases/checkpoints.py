"""Checkpoint files of the original code: DeiT, DINO, DINOv2, DINOv3, MAE, MoCo v3, BEiT, others with timm's names."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from learnable_memory import pickles
from learnable_memory.bases.encoder import BOTH, CLASS, POOLED, Encoder
from learnable_memory.bases.names import from_timm_names
from learnable_memory.bases.refused import refuse_names
from learnable_memory.pickles import unreadable

# In MoCo v3's own vits.py, whose small one is no usual ViT-S.
MOCO_HEADS = {"vit_small": 12, "vit_base": 12, "vit_large": 16, "vit_huge": 16}
MOCO_SMALL = 384  # the width at which other ViTs have 6 heads
USUAL_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}  # by width, where nothing else tells
MOCO_PREFIXES = ("module.base_encoder.", "module.momentum_encoder.")
DISTRIBUTED = "module."
PERIODS = "rope_embed.periods"  # DINOv3's, of its rotary positions
ROPE_THETA = 100.0  # of all of its models
ANY_SIZE = 224  # of an encoder without positions of its own size


def from_checkpoint_file(path: Path) -> Encoder:
    """An encoder from one file with timm's names, a pickle with tensors only (.pth, .pt, .pth.tar) or safetensors.

    - MoCo v3: {"state_dict": .., "arch": ..}, where `arch` tells the number of heads. Of a pretraining checkpoint the
      base encoder, as its linear probe takes it, and no classifier (`head` is a projector); of a linear probe both.
    - DeiT, DeiT III, MAE, BEiT: {"model": ..}; DINO, DINOv2, DINOv3: the state dict itself.

    Raises:
        ValueError: the file is damaged, unsafe, or holds no such encoder; the message says why.
    """
    checkpoint = read_checkpoint(path)
    state, pretraining = _take_encoder(_unwrap(path, checkpoint))
    _check_names(path, state)
    arch = str(checkpoint.get("arch"))
    if pretraining and arch not in MOCO_HEADS:
        raise ValueError(
            f"{path} is a MoCo v3 checkpoint of arch {arch!r}, whose number of attention heads is not known; "
            f"known: {', '.join(MOCO_HEADS)}"
        )
    name = "MoCo v3" if arch in MOCO_HEADS else _recognise(state)
    rotary = PERIODS in state
    if rotary:
        _check_periods(path, state[PERIODS])
        state = _without_key_bias(state)
    tensors = from_timm_names(path, state, name)
    gated = any(name.endswith((".mlp.w12.weight", ".mlp.w1.weight")) for name in state)
    return Encoder(
        path, name, tensors, num_attention_heads=MOCO_HEADS.get(arch) or _num_heads(path, name, state),
        layer_norm_eps=1e-5 if rotary else 1e-6, hidden_act="silu" if gated else "gelu",
        image_size=_image_size(tensors), reads=_reads(state), rope_theta=ROPE_THETA if rotary else None,
    )  # fmt: skip


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What a safetensors file or a pickle holds, on the CPU; a pickle may name tensors and containers, nothing else.

    Raises:
        ValueError: the file is damaged, or a pickle with something else, which could run any code.
    """
    if path.suffix != ".safetensors":
        return pickles.read(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise unreadable(path, error) from error


# ------------------------------------------------------------------------------------------------ where the tensors are
def _unwrap(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, wherever the training loop has put them."""
    inner = next((checkpoint[key] for key in ("state_dict", "model") if isinstance(checkpoint.get(key), Mapping)), None)
    state = checkpoint if inner is None else inner
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        raise ValueError(
            f"{path} has no tensors by name (found {', '.join(map(str, others[:3])) or 'nothing'}); "
            "looked under 'state_dict', under 'model', and at its top"
        )
    return dict(state)


def _take_encoder(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Without the names of the modules around it; True if it was taken out of MoCo v3's pretraining model."""
    for prefix in (*MOCO_PREFIXES, DISTRIBUTED):
        taken = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if taken and prefix in MOCO_PREFIXES:  # its head is a projector, thrown away after pretraining
            return {name: tensor for name, tensor in taken.items() if not name.startswith("head.")}, True
        if taken:
            return taken, False
    return state, False


def _check_names(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if this is none of the encoders of which a file without a config tells enough."""
    refuse_names(path, state)
    elsewhere = [name for name in state if name.endswith(".cls_token")]
    if elsewhere and "cls_token" not in state:
        raise ValueError(
            f"{path} has tensors of other names than timm's (found {elsewhere[0]}): give the folder with its "
            "config.json"
        )
    for name in ("norm_pre.weight", "attn_pool.latent"):
        if name in state:
            raise ValueError(
                f"{path} is one tower of a CLIP or SigLIP (found {name}), and does not say which activation it has: "
                "give the folder with its config.json"
            )
    if "cls_token" not in state:
        raise ValueError(
            f"{path} has no cls_token, and is none of the models that can be read without a config.json: DeiT, DINO, "
            "DINOv2, DINOv3, MAE, MoCo v3, BEiT"
        )
    if not {"pos_embed", PERIODS} & state.keys() and not any("relative_position_bias" in name for name in state):
        raise ValueError(f"{path} has no pos_embed, and no positions of another kind that can be read from a file")


# ---------------------------------------------------------------------------------------------------- what they are
def _recognise(state: Mapping[str, Tensor]) -> str:
    """The family that a state dict is of, by what it alone has; for people, and for the pixels that are usual."""
    if PERIODS in state:
        return "DINOv3"
    if "mask_token" in state and "blocks.0.ls1.gamma" in state:
        return "DINOv2 with registers" if "register_tokens" in state else "DINOv2"
    if "blocks.0.attn.q_bias" in state:
        return "BEiT"
    if "blocks.0.gamma_1" in state:
        return "DeiT III"
    if "dist_token" in state:
        return "DeiT, distilled"
    if not state["pos_embed"][:, 0].any():  # fixed waves, the class token at zero
        return "ViT-MAE"
    return "ViT with timm's names"  # DeiT and DINO among them, which do not differ


def _reads(state: Mapping[str, Tensor]) -> str:
    if "head_dist.weight" in state:
        return BOTH
    return POOLED if "fc_norm.weight" in state else CLASS


def _num_heads(path: Path, name: str, state: Mapping[str, Tensor]) -> int:
    """H, if a tensor tells it, or else as is usual for the width."""
    width = state["cls_token"].shape[-1]
    if PERIODS in state:
        return width // (4 * len(state[PERIODS]))
    tables = [tensor for key, tensor in state.items() if key.endswith("relative_position_bias_table")]
    if tables:
        return tables[0].shape[1]
    if name == "ViT-MAE" and width == MOCO_SMALL:
        raise ValueError(
            f"{path} may be MoCo v3's small ViT, which has 12 attention heads, or another one with 6: give the "
            "checkpoint that has its 'arch'"
        )
    if width not in USUAL_HEADS:
        raise ValueError(
            f"{path} is {width} wide, and does not say its number of attention heads; known without that: "
            f"{', '.join(map(str, USUAL_HEADS))}"
        )
    return USUAL_HEADS[width]


def _image_size(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(height, width), of a square, in pixels: as many patches as there are positions for."""
    patch = tensors["patches.weight"].shape[-1] if "patches.weight" in tensors else 1
    tables = [tensor for name, tensor in tensors.items() if name.endswith("relative_positions")]
    if "positions" in tensors:
        side = math.isqrt(tensors["positions"].shape[1]) * patch
    elif tables:  # of all differences of rows and of columns, and 3 for the class token
        side = (math.isqrt(tables[0].shape[0] - 3) + 1) // 2 * patch
    else:
        side = ANY_SIZE
    return side, side


def _check_periods(path: Path, periods: Tensor) -> None:
    """transformers computes them anew, where the files have them rounded to bfloat16."""
    expected = ROPE_THETA ** (torch.arange(len(periods)) / len(periods))
    if not torch.allclose(periods.float(), expected, rtol=0.01):
        raise ValueError(
            f"{path} has rotary positions of other periods than DINOv3's (up to {periods.max():.4g} instead of "
            f"{expected.max():.4g}), and no class of transformers has them"
        )


def _without_key_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3 masks a third of each bias, that of the keys: without it, if it counts nothing."""
    found = dict(state)
    for name in [name for name in state if name.endswith(".attn.qkv.bias")]:
        masked = f"{name}_mask" in state
        for part, bias in zip("qkv", found.pop(name).chunk(3), strict=True):
            if part != "k" or (bias.any() and not masked):
                found[name.replace(".qkv.", f".{part}_")] = bias
    return found
