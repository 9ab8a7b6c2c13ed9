"""Files that are not in HuggingFace's layout, as a model of transformers: tensor by tensor, exactly, or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING

from learnable_memory.bases.checkpoints import from_checkpoint_file
from learnable_memory.bases.families import build
from learnable_memory.bases.find import CONFIG, is_huggingface, is_timm, read_config
from learnable_memory.bases.npz import from_npz
from learnable_memory.bases.timm_models import from_timm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def convert(place: Path) -> "PreTrainedModel":
    """The base in a file, or in timm's folder, as the class of transformers that computes the same.

    It is in float32, in eval mode, and has a classifier if the file has one that such a class reads as it is meant to;
    one that is left out is logged. Features are those of the family's own code to 1e-5, at the size of images that the
    file's positions are of; at other sizes, positions are interpolated as transformers does it. Nothing here runs code
    that comes with a model. `config.converted_from` says what it was: "DINOv2 with registers".

    Args:
        place: from `find_base`: a folder in timm's layout, a Google `.npz` file, or a PyTorch file with timm's names
            (DeiT, DINO, DINOv2, DINOv3, MAE, MoCo v3, BEiT).

    Raises:
        ValueError: the files are damaged, or no class of transformers computes the same; the message says why.
        ModuleNotFoundError: a timm folder, without timm.
        FileNotFoundError: the folder has no weights.
    """
    if place.suffix == ".npz":
        return build(from_npz(place))
    if place.is_file():
        return build(from_checkpoint_file(place))
    if is_huggingface(place):
        raise ValueError(f"{place} is in HuggingFace's layout: load it with MemoryCapableViT.from_pretrained")
    if is_timm(place):
        return build(from_timm(place, read_config(place)))
    raise ValueError(
        f"{place / CONFIG} has neither a model_type, as HuggingFace's, nor an architecture, as timm's: give a folder "
        "that one of them saved"
    )
