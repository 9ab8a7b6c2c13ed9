"""A contact sheet: a few images of a data set, as they are stored and as a model gets them."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from learnable_memory.data import DataSet
from learnable_memory.images import ImageSet
from learnable_memory.loading import Views
from learnable_memory.plots import INK
from learnable_memory.rgb import to_rgb
from learnable_memory.sheet import Sheet, end_of, thumbnail
from learnable_memory.transforms import Preprocessing

ROWS = 8
EPOCHS = 4  # training views of each image
CELL, GAP, LABELS, HEAD = 1.5, 0.1, 1.8, 0.95  # inches: an image, between two, left of them, above them
LETTERS = 22  # in a line of a class name
LONGEST_SIDE = 512  # pixels of a stored image as it is drawn


def contact_sheet(data: DataSet, preprocessing: Preprocessing, path: str | os.PathLike) -> Path:
    """Draw eight training images, of as many classes, in a row each: as stored, its evaluation view, training views.

    The training views are those of the first four epochs with `--seed 0`; a data set that is not augmented has none.

    Args:
        path: where the PNG goes.

    Raises:
        ValueError: an image that is to be shown cannot be read.
    """
    shown = some_images(data.train, ROWS)
    epochs = range(EPOCHS if data.views else 0)
    headings = ["stored", "evaluation", *(f"training, epoch {epoch + 1}" for epoch in epochs)]
    sheet = Sheet(LABELS + len(headings) * (CELL + GAP), HEAD + len(shown) * (CELL + GAP))
    how = [preprocessing.words, f"training views: {data.views or 'as in evaluation'}"]
    sheet.head(GAP, f"{end_of(data.name)}: {len(data.labels):,} classes", how)
    top = sheet.height - HEAD
    for column, heading in enumerate(headings):
        sheet.write(LABELS + column * (CELL + GAP) + CELL / 2, top + 0.12, heading, ha="center", fontsize=9)
    for row, index in enumerate(shown):
        bottom = top - row * (CELL + GAP) - CELL
        stored = data.train.image(index)
        upright = to_rgb(stored)
        lines = textwrap.wrap(data.labels[data.train.labels[index]], LETTERS, max_lines=4, placeholder=" …")
        sheet.write(GAP, bottom + CELL / 2, "\n".join(lines), color=INK, fontsize=9, va="bottom")
        size = f"{upright.width}x{upright.height}, {stored.mode}"
        sheet.write(GAP, bottom + CELL / 2 - 0.05, size, fontsize=8, va="top")
        pictures = [thumbnail(upright, LONGEST_SIDE), *views(data, preprocessing, index, epochs)]
        for column, picture in enumerate(pictures):
            sheet.show(LABELS + column * (CELL + GAP), bottom, CELL, picture)
    return sheet.save(path)


def some_images(image_set: ImageSet, most: int) -> list[int]:
    """Indices of at most `most` images: one of each of many classes, evenly spread, and several of each of few."""
    classes = _spread(np.unique(image_set.labels), most)
    each = max(1, most // len(classes))
    return [int(i) for label in classes for i in _spread(np.flatnonzero(image_set.labels == label), each)]


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly from first to last; a single one is the first."""
    return values[np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)]


def views(data: DataSet, preprocessing: Preprocessing, index: int, epochs: Sequence[int]) -> list[np.ndarray]:
    """The evaluation view of a training image, and its training view of each epoch: uint8 [height, width, 3]."""
    made = [preprocessing.eval_transform()(data.train.image(index, preprocessing.decoded_side))]
    if epochs and data.views:
        training = Views(data.train, preprocessing.train_transform(data.views), seed=0)
        made += [training[epoch, index][0] for epoch in epochs]
    return [visible(view, preprocessing) for view in made]


def visible(pixel_values: torch.Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """What a model gets, float32 [3, H, W], as colours: uint8 [H, W, 3]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    values = (pixel_values * std + mean) / preprocessing.rescale  # [3, H, W], 0..255
    return values.round().clamp(0, 255).to(torch.uint8).movedim(0, 2).numpy()
