"""Tiny random networks in the place of pretrained ones, in the files that the hub has of the real ones."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

SIDE = 32  # pixels
PATCH = 16  # pixels


def write_base(name: str, folder: Path) -> Path:
    """Write a tiny network of the same kind as a base model; bases of different names have different weights.

    Args:
        name: of the real one, on the hub or a path.
        folder: of all tiny bases.

    Returns:
        Where it is, a folder below `folder`.

    Raises:
        ValueError: the name does not say what kind of network it is.
        ModuleNotFoundError: one of timm's, without timm.
    """
    import torch

    write = next((write for part, write in KINDS.items() if part in name.lower()), None)
    if write is None:
        parts = ", ".join(KINDS)
        raise ValueError(f"{name} has no tiny form for --smoke; its name has to contain one of {parts}.")
    place = folder / name.replace("/", "--")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(name.encode()))
        write(place)
    return place


def _write_vit(place: Path) -> None:
    """transformers' files, without a classifier, as the checkpoints of ImageNet-21k on the hub."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        image_size=SIDE, patch_size=PATCH, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(place)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(place)


def _write_bit(place: Path) -> None:
    """timm's files, since transformers' own BiT has no gradient checkpointing.

    timm's own function to save them is left aside: transformers cannot read what its newest versions record.
    """
    from safetensors.torch import save_file

    try:
        import timm
    except ModuleNotFoundError as error:
        what = f"{place.name} takes the place of a model of timm, which is missing: pip install 'timm>=1.0.12'"
        raise ModuleNotFoundError(what, name="timm") from error

    architecture, sizes = "resnetv2_50x1_bit", {"channels": [128] * 4, "stem_chs": 32}  # group norm has 32 groups
    model = timm.create_model(architecture, num_classes=0, **sizes)
    pixels = {
        "input_size": [3, SIDE, SIDE], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center",
        "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    config = {"architecture": architecture, "num_classes": 0, "model_args": sizes, "pretrained_cfg": pixels}
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(model.state_dict(), place / "model.safetensors", {"format": "pt"})


KINDS = {"vit": _write_vit, "resnetv2": _write_bit}  # by a part of the name
