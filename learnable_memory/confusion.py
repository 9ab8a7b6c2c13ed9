"""What a head takes for what: its accuracy class by class, and a confusion matrix.

    found = Confusion(data.labels, data.eval.labels, answers["Digits"].predicted.numpy())
    found.mean_accuracy                                             # over classes, each counting the same
    save(found, "models/Digits_classes.json", "Digits")             # load() gives it back

Written by `vit_train.py`, and by `vit_validation.py --classes`. The file is JSON: `format` (1), `head`, `images`,
`top1`, `mean_accuracy`, `classes` (of each its `label`, `images`, `right` and `accuracy`, which is null without images)
and `confusion`, the cells of the matrix that are not zero as [class, predicted class, images].
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from learnable_memory.runlog import write_json
from learnable_memory.wording import counted, some

ENDING = "_classes.json"
FORMAT = 1
MOST_NAMES = 8  # of classes, in a sentence


@dataclass(frozen=True)
class Confusion:
    """What was said of n images.

    Attributes:
        labels: the name of class 0, 1, .., C - 1.
        label: int64 [n], the class of each image.
        predicted: int64 [n], the first answer.
    """

    labels: list[str]
    label: np.ndarray
    predicted: np.ndarray

    @cached_property
    def images(self) -> np.ndarray:
        """int64 [C]: of each class."""
        return np.bincount(self.label, minlength=len(self.labels))

    @cached_property
    def right(self) -> np.ndarray:
        """int64 [C]: of these, those that were recognised."""
        return np.bincount(self.label[self.label == self.predicted], minlength=len(self.labels))

    @property
    def accuracy(self) -> np.ndarray:
        """float64 [C], in [0, 1]; NaN for a class without images."""
        return np.divide(self.right, self.images, out=np.full(len(self.labels), np.nan), where=self.images > 0)

    @property
    def top1(self) -> float:
        """Over all images, in [0, 1]."""
        return float(self.right.sum() / self.images.sum())

    @property
    def mean_accuracy(self) -> float:
        """Over the classes that have images, each counting the same, in [0, 1]."""
        return float(np.nanmean(self.accuracy))

    @property
    def without_images(self) -> list[str]:
        """The classes that nothing is known of."""
        return [self.labels[index] for index in np.flatnonzero(self.images == 0)]

    @property
    def cells(self) -> np.ndarray:
        """int64 [k, 3]: class, predicted class and images, of the cells of the matrix that are not zero."""
        cells, counts = np.unique(self.label * len(self.labels) + self.predicted, return_counts=True)
        return np.stack([*np.divmod(cells, len(self.labels)), counts], axis=1)

    def matrix(self, classes: np.ndarray) -> np.ndarray:
        """int64 [k, k]: of these classes the images of each (rows) by what they were taken for (columns)."""
        place = np.full(len(self.labels), -1)
        place[classes] = np.arange(len(classes))
        rows, columns = place[self.label], place[self.predicted]
        both = (rows >= 0) & (columns >= 0)
        found = np.bincount(rows[both] * len(classes) + columns[both], minlength=len(classes) ** 2)
        return found.reshape(len(classes), len(classes))


def said_of_missing(without_images: list[str], classes: int) -> str:
    """Which classes an accuracy says nothing of, in words; empty if there is none."""
    if not without_images:
        return ""
    have = "has" if len(without_images) == 1 else "have"
    return (
        f"{len(without_images):,} of {counted(classes, 'class', 'classes')} {have} no evaluation image: "
        f"{some(without_images, MOST_NAMES)}"
    )


def save(found: Confusion, path: str | os.PathLike, head: str) -> Path:
    """Write the file of a head."""
    rows = zip(found.labels, found.images.tolist(), found.right.tolist(), found.accuracy.tolist(), strict=True)
    record = {
        "format": FORMAT,
        "head": head,
        "images": len(found.label),
        "top1": found.top1,
        "mean_accuracy": found.mean_accuracy,
        "classes": [dict(zip(("label", "images", "right", "accuracy"), row, strict=True)) for row in rows],
        "confusion": found.cells.tolist(),
    }
    write_json(path, record)
    return Path(path)


def load(path: str | os.PathLike) -> Confusion:
    """Read what `save` wrote; the images come class by class.

    Raises FileNotFoundError, or ValueError if it is damaged.
    """
    try:
        record: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, and {FORMAT} can be read")
        cells = np.array(record["confusion"], dtype=np.int64).reshape(-1, 3)
        label, predicted = (np.repeat(cells[:, column], cells[:, 2]) for column in (0, 1))
        return Confusion([each["label"] for each in record["classes"]], label, predicted)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of accuracies by class, or is damaged ({error}).") from None
