"""What training and validation do alike before they start: the device, the base, and its preprocessing."""

import logging

import torch
import transformers

from learnable_memory.bases import find_base, load_processor
from learnable_memory.config import RunOptions
from learnable_memory.transforms import Preprocessing
from vit import MemoryCapableViT


def start_logging() -> None:
    """Messages of this project on stderr; those of the libraries only if something is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("learnable_memory").setLevel(logging.INFO)
    transformers.utils.logging.disable_progress_bar()


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ValueError for a device that this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device is {name}, which this machine does not have ({reason}): use cpu or auto.") from None


def load_base(
    base: str, options: RunOptions, device: torch.device | None = None
) -> tuple[MemoryCapableViT, Preprocessing]:
    """The base model by the name that was given for it, frozen and without heads, and how its pixels are made.

    `device` stands for that of the options.
    """
    folder = find_base(base, options.directory / "ceng502", download=not options.no_download)
    model = MemoryCapableViT.from_pretrained(folder)
    model.base_id = base  # not the folder in the cache
    for name in reversed(model.head_names):  # a folder with heads of its own serves as a base all the same
        model.remove_head(name)
    # A copy in bfloat16 instead of autocast, which would convert the frozen weights again in every step.
    model.to(device or resolve_device(options.device), getattr(torch, options.precision or "float32"))
    if options.compile:
        model.compile()
    return model, Preprocessing.from_processor(load_processor(folder))
