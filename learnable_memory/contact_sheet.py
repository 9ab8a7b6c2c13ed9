"""Contact sheets: images of a data set as they are stored and as a model gets them, and those with doubtful labels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid

from learnable_memory import plots
from learnable_memory.data import DataSet
from learnable_memory.images import ImageSet
from learnable_memory.loading import Views
from learnable_memory.out_of_fold import OutOfFold
from learnable_memory.plots import DPI, FAINT, HEADS, INK
from learnable_memory.rgb import to_rgb
from learnable_memory.transforms import Preprocessing

ROWS = 8
EPOCHS = 4  # training views of each image
SUSPECTS_IN_A_ROW = 8
SIDE, GAP, LINE, HEAD = 240, 16, 26, 120  # pixels: an image, between two, a line below it, and above all of them
WIDTH = 1200  # pixels that a title takes
LETTERS = 24  # in a line
TITLE_LETTERS = 80  # of a name in the title

Caption = Sequence[tuple[str, str]]  # lines of text, each with its colour


def contact_sheet(data: DataSet, preprocessing: Preprocessing, path: str | os.PathLike) -> Path:
    """Draw eight training images, of as many classes, in a row each: as stored, its evaluation view, training views.

    The training views are those of the first four epochs with `--seed 0`; a data set that is not augmented has none.

    Args:
        path: where the PNG goes.

    Raises:
        ValueError: an image that is to be shown cannot be read.
    """
    epochs = range(EPOCHS if data.views else 0)
    kinds = ["evaluation", *(f"training, epoch {epoch + 1}" for epoch in epochs)]
    pictures: list[Image.Image] = []
    captions: list[Caption] = []
    for index in some_images(data.train, ROWS):
        stored = data.train.image(index)
        upright = to_rgb(stored)
        pictures += [upright, *map(Image.fromarray, views(data, preprocessing, index, epochs))]
        label = _start_of(data.labels[data.train.labels[index]])
        captions += [[(label, INK), (f"stored: {upright.width}x{upright.height}, {stored.mode}", FAINT)]]
        captions += [[(kind, FAINT)] for kind in kinds]
    title = f"{end_of(data.name, TITLE_LETTERS)}: {len(data.labels):,} classes"
    lines = [preprocessing.words, f"training views: {data.views or 'as in evaluation'}"]
    return _save(pictures, captions, 1 + len(kinds), title, lines, path)


def suspects_sheet(train: ImageSet, found: OutOfFold, places: Sequence[int], path: str | os.PathLike) -> Path:
    """Draw images as they are stored, eight in a row; below each its label and the predicted class, both with their
    out-of-fold probabilities.

    Args:
        train: the images that `found` is of, in its order.
        places: which of them, in the order in which they are shown.
        path: where the PNG goes.

    Raises:
        ValueError: an image that is to be shown cannot be read.
    """
    captions: list[Caption] = []
    for number, place in enumerate(places, start=1):
        label, predicted = found.label[place], found.predicted[place]
        own = f"{found.probability[place]:.1%} {found.labels[label]}"
        other = f"{found.confidence[place]:.1%} → {found.labels[predicted]}"
        colour = FAINT if predicted == label else HEADS[0]
        name = end_of(found.image[place], LETTERS - len(f"{number}: "))
        captions.append([(f"{number}: {name}", FAINT), (_start_of(own), INK), (_start_of(other), colour)])
    title = f"{end_of(found.dataset['name'], TITLE_LETTERS)}: {len(places):,} of {len(found):,} training images, the "
    lines = [
        f"each image was judged by the one of {found.folds} heads that has not learned from it; "
        f"{np.mean(found.label == found.predicted):.1%} of all are recognised as their label",
        "below each image: its label and that label's probability; → the predicted class and its own, coloured where "
        "it is another class",
    ]
    pictures = [to_rgb(train.image(place)) for place in places]
    return _save(pictures, captions, SUSPECTS_IN_A_ROW, f"{title}least likely labels first", lines, path)


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


def _save(
    pictures: Sequence[Image.Image], captions: Sequence[Caption], columns: int, title: str, lines: Sequence[str],
    path: str | os.PathLike,
) -> Path:  # fmt: skip
    """A grid of pictures with a caption below each, under a title and lines that explain it."""
    # A box is the mean of the pixels in it where a photograph gets smaller, and a square pixel where it gets larger.
    fitted = [ImageOps.pad(each, (SIDE, SIDE), Image.Resampling.BOX, color="white") for each in pictures]
    fitted += [Image.new("RGB", (SIDE, SIDE), "white")] * (len(fitted) == 1)  # of a single one make_grid has no margin
    below = LINE * max(map(len, captions))
    tiles = F.pad(torch.stack([F.pil_to_tensor(each) for each in fitted]), [0, 0, 0, below], fill=255)
    grid = make_grid([*tiles], nrow=columns, padding=GAP, pad_value=255)  # [3, height, width]
    height, width = grid.shape[1:]
    whole = max(width, WIDTH), height + HEAD
    figure = Figure(figsize=(whole[0] / DPI, whole[1] / DPI))
    axes = figure.add_axes((0, 0, width / whole[0], height / whole[1]))
    axes.imshow(grid.movedim(0, 2).numpy())
    axes.set_axis_off()

    def write(left: float, top: float, text: str, **how: Any) -> None:
        # Without parse_math a dollar in a name would begin a formula.
        axes.text(left, top, text, va="top", parse_math=False, **{"color": FAINT, "fontsize": 8, **how})

    write(GAP, GAP - HEAD, title, color=INK, fontsize=12, fontweight="bold")
    for number, line in enumerate(lines):
        write(GAP, 3.5 * GAP - HEAD + LINE * number, line)
    for place, caption in enumerate(captions):
        row, column = divmod(place, columns)
        left, top = GAP + column * (SIDE + GAP), 1.25 * GAP + row * (SIDE + below + GAP) + SIDE
        for number, (text, colour) in enumerate(caption):
            write(left, top + LINE * number, text, color=colour)
    return plots.save(figure, path)


def _start_of(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def end_of(name: str, most: int) -> str:
    """A name of at most `most` letters, of a longer one the end: that is what tells paths apart."""
    return name if len(name) <= most else "…" + name[1 - most :]
