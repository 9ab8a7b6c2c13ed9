"""Checkpoint files of the original code: DeiT, DINO, DINOv2, MAE, MoCo v3, and any other with timm's names."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from learnable_memory import pickles
from learnable_memory.families.plain import PlainViT, dinov2_preprocessing, imagenet_preprocessing
from learnable_memory.families.refused import refuse_names
from learnable_memory.families.timm_names import from_timm_names
from learnable_memory.pickles import unreadable
from learnable_memory.transforms import Preprocessing

# In MoCo v3's own vits.py, whose small one is no usual ViT-S.
MOCO_HEADS = {"vit_small": 12, "vit_base": 12, "vit_large": 16, "vit_huge": 16}
MOCO_SMALL = 384  # the width at which other ViTs have 6 heads
MOCO_PREFIXES = ("module.base_encoder.", "module.momentum_encoder.")
DISTRIBUTED = "module."


def from_checkpoint_file(path: Path) -> PlainViT:
    """A base from one file with timm's names, a pickle with tensors only (.pth, .pt, .pth.tar) or safetensors.

    - MoCo v3: {"state_dict": .., "arch": ..}, where `arch` tells the number of heads. Of a pretraining checkpoint the
      base encoder, as its linear probe takes it, and no classifier (`head` is a projector); of a linear probe both.
    - DeiT, DeiT III, MAE: {"model": ..}; DINO, DINOv2: the state dict itself.

    Positions of other image sizes are made by bicubic interpolation: antialiased for DINOv2 with registers, to a scale
    with 0.1 patches added for DINOv2 without (HuggingFace's conversion of it leaves that out). DINO does the same, but
    its files cannot be told from those of DeiT, which goes to the exact size, and so does this.

    Raises:
        ValueError: the file is damaged, unsafe, or no plain ViT; the message says why.
    """
    checkpoint = read_checkpoint(path)
    state, pretraining = _take_encoder(_unwrap(path, checkpoint))
    refuse_names(path, state)
    arch = str(checkpoint.get("arch"))
    if pretraining and arch not in MOCO_HEADS:
        raise ValueError(
            f"{path} is a MoCo v3 checkpoint of arch {arch!r}, whose number of attention heads is not known; "
            f"known: {', '.join(MOCO_HEADS)}"
        )
    known = _recognise(state, is_moco=arch in MOCO_HEADS)
    if known.family == "ViT-MAE" and state["cls_token"].shape[-1] == MOCO_SMALL:
        raise ValueError(
            f"{path} may be MoCo v3's small ViT, which has 12 attention heads, or another one with 6: give the "
            "checkpoint that has its 'arch'"
        )
    return from_timm_names(
        path, state, known.family, num_attention_heads=MOCO_HEADS.get(arch),
        interpolation=known.interpolation, preprocessing=known.preprocessing,
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


class Known(NamedTuple):
    """What a family does outside of its layers, as in `plain_vit`."""

    family: str
    interpolation: str = "bicubic"
    preprocessing: Callable[[int, int], Preprocessing] = imagenet_preprocessing


def deit_three_preprocessing(height: int, width: int) -> Preprocessing:
    """At 384 pixels nothing is cut away, and at 224 an eighth; not so for files that saw ImageNet-21k."""
    usual = imagenet_preprocessing(height, width)
    return replace(usual, resize=(height, width)) if min(height, width) >= 384 else usual


def _recognise(state: Mapping[str, Tensor], is_moco: bool) -> Known:
    """The family that a state dict is of, by what it alone has."""
    if is_moco:
        return Known("MoCo v3", preprocessing=partial(imagenet_preprocessing, resample="bilinear"))
    if "mask_token" in state and "blocks.0.ls1.gamma" in state:
        if "register_tokens" in state:
            return Known("DINOv2 with registers", "bicubic_antialias", dinov2_preprocessing)
        return Known("DINOv2", "bicubic_offset", dinov2_preprocessing)
    if "blocks.0.gamma_1" in state:
        return Known("DeiT III", preprocessing=deit_three_preprocessing)
    if "dist_token" in state:
        return Known("DeiT, distilled")
    if "pos_embed" in state and not state["pos_embed"][:, 0].any():  # fixed waves, the class token at zero
        return Known("ViT-MAE")
    return Known("ViT with timm's names")  # DeiT and DINO among them, which do not differ


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
