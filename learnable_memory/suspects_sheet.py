"""A contact sheet of the training images whose own label is least likely out of fold: which of them are mislabelled?"""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from learnable_memory.images import ImageSet
from learnable_memory.out_of_fold import OutOfFold
from learnable_memory.plots import FAINT, HEADS, INK
from learnable_memory.rgb import to_rgb
from learnable_memory.sheet import Sheet, end_of, thumbnail

COLUMNS = 8
CELL, GAP, LINE, HEAD = 1.5, 0.15, 0.15, 0.95  # inches: a picture, between two, a line of text, above all of them
LETTERS, MOST_LINES = 15, 3  # of a class name in a line, and how many lines it may take
NAME_LETTERS = 24  # of an image's name
LONGEST_SIDE = 256  # pixels of an image as it is drawn


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
    below = [_below(found, place) for place in places]
    heights = [max(len(texts[part].lines) for texts in below) for part in range(2)]  # of all cells: rows stay level
    row_height = LINE + CELL + (sum(heights) + 0.5) * LINE + GAP
    rows = -(-len(places) // COLUMNS)
    sheet = Sheet(GAP + COLUMNS * (CELL + GAP), HEAD + rows * row_height)
    sheet.head(GAP, *_explanation(found, len(places)))
    for number, (place, texts) in enumerate(zip(places, below, strict=True)):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (CELL + GAP), sheet.height - HEAD - row * row_height
        sheet.write(left, top - LINE / 2, f"{number + 1}: {end_of(found.image[place], NAME_LETTERS)}", fontsize=7)
        sheet.show(left, top - LINE - CELL, CELL, thumbnail(to_rgb(train.image(place)), LONGEST_SIDE))
        line = top - LINE - CELL - LINE / 2
        for text, height in zip(texts, heights, strict=True):
            how = {"color": text.colour, "fontsize": 8, "va": "top"}
            sheet.write(left, line, "\n".join(text.lines), **how)
            sheet.write(left + CELL, line, f"{text.probability:.1%}", ha="right", **how)
            line -= height * LINE
    return sheet.save(path)


class _Text(NamedTuple):
    """What stands below an image: a class in lines, and its probability."""

    lines: list[str]
    probability: float
    colour: str


def _below(found: OutOfFold, place: int) -> list[_Text]:
    """The image's label, and the predicted class."""
    label, predicted = found.label[place], found.predicted[place]
    return [
        _Text(_wrapped(found.labels[label]), found.probability[place], INK),
        _Text(
            _wrapped(f"→ {found.labels[predicted]}"), found.confidence[place], FAINT if predicted == label else HEADS[0]
        ),
    ]


def _wrapped(name: str) -> list[str]:
    # Not textwrap's own `max_lines`: of a word that is longer than a line it leaves the last part out altogether.
    lines = textwrap.wrap(name, LETTERS) or [""]
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][: LETTERS - 1] + "…"]


def _explanation(found: OutOfFold, shown: int) -> tuple[str, list[str]]:
    """The title, and what is below each picture."""
    name = end_of(found.dataset["name"])
    lines = [
        f"each image was judged by the one of {found.folds} heads that has not learned from it; "
        f"{np.mean(found.label == found.predicted):.1%} of all are recognised as their label",
        "below each image: its label and that label's probability; → the predicted class and its own, coloured where "
        "it is another class",
    ]
    return f"{name}: {shown:,} of {len(found):,} training images, the least likely labels first", lines
