"""The command lines as tests call them, in this process: a tiny base, pictures, and what is said and left."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessor

import vit_train
import vit_validation
from learnable_memory import heads
from tiny import tiny_base

QUICK = ["--workers", "0", "--batch_size", "8", "--device", "cpu", "--no_download"]
CHANNELS = {"blue": 2, "green": 1, "red": 0}  # as folders are sorted
LEVELS = {"bright": 150, "dark": 0}
TITLES = ["head", "cells", "images", "top-1", "mean of classes", "top-5", "images/s", "against the file"]


# -------------------------------------------------------------------------------------------------------- what is given
def save_base(folder: Path, seed: int = 0, **changes) -> Path:
    tiny_base(seed, **changes).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_pictures(folder: Path, classes: list[str], paint: Callable[[np.ndarray, str], None]) -> Path:
    """20 noisy PNGs of 20x20 pixels for each class; `paint(pixels, name)` makes the class visible."""
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 100, (20, 20, 3))
            paint(pixels, name)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def in_colour(pixels: np.ndarray, name: str) -> None:
    """Classes are the names of CHANNELS."""
    pixels[..., CHANNELS[name]] += 120


def in_grey(pixels: np.ndarray, name: str) -> None:
    """Classes are the names of LEVELS."""
    pixels += LEVELS[name]


# --------------------------------------------------------------------------------------------------------- what is done
def train(base: Path, output: Path, *flags: str) -> None:
    assert vit_train.main([*QUICK, "--base_model", str(base), "--output", str(output), *flags]) == 0


def validate(folder: Path, *flags: str) -> None:
    assert vit_validation.main([*QUICK, "--models_folder", str(folder), *flags]) == 0


# --------------------------------------------------------------------------------------------------------- what is left
def rows_of(printed: str) -> dict[str, dict[str, str]]:
    """The rows of the table by head, each as column -> text without the speed, which no run repeats."""
    lines = printed.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["head", "cells"])
    titles = re.split(r"\s{2,}", lines[start].strip())
    without_top5 = [title for title in TITLES if title in titles or title != "top-5"]  # where no head has six classes
    assert [title for title in titles if title != "rank"] == without_top5
    entries = [line.split() for line in lines[start + 1 :]]
    rows = [dict(zip(titles, entry, strict=True)) for entry in entries if len(entry) == len(titles)]
    return {row["head"]: {title: text for title, text in row.items() if title != "images/s"} for row in rows}


def same_tensors(first: Path, second: Path) -> bool:
    first, second = heads.load(first).tensors, heads.load(second).tensors
    return first.keys() == second.keys() and all(torch.equal(first[name], value) for name, value in second.items())
