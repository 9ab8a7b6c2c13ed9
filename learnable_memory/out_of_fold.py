"""Out-of-fold predictions: what cross-validation says of each training image, by a head that has not learned from it.

    found = load(find("Digits", "models"))                          # models/Digits_out_of_fold.json
    found.probability[found.label != found.predicted]               # float64; pandas.DataFrame(found.columns()) as well

Written by `vit_train.py --folds K` beside the head. The file is JSON: `format` (1), `head`, `folds`, `labels` (names of
the classes), `dataset` (as in a head's file) and `images`, which has for each image of `train`, in its order, what the
image is called (`image`), its `label`, the `fold` that held it out, the class that was `predicted`, the `probability`
of its own label and the `confidence` in the predicted class.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learnable_memory.runlog import write_json

ENDING = "_out_of_fold.json"
FORMAT = 1
WHOLE, PARTS = ("label", "fold", "predicted"), ("probability", "confidence")  # columns of int64 and of float64


@dataclass(frozen=True)
class OutOfFold:
    """One prediction for each of n training images.

    Attributes:
        head: whose folds predicted.
        folds: K.
        labels: the name of class 0, 1, ..
        dataset: the record of the data set, `DataSet.record()`.
        image: what each image is called, as `ImageSet.identity`.
        label: int64 [n].
        fold: int64 [n], 0 to K - 1: the one that held the image out.
        predicted: int64 [n].
        probability: float64 [n], in [0, 1], of the image's own label.
        confidence: float64 [n], in [0, 1], of the predicted class.
    """

    head: str
    folds: int
    labels: list[str]
    dataset: Mapping[str, Any]
    image: list[str]
    label: np.ndarray
    fold: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def columns(self) -> dict[str, list]:
        """Lists of plain values, one for each column of `images` in the file."""
        return {"image": self.image, **{name: getattr(self, name).tolist() for name in (*WHOLE, *PARTS)}}

    def least_likely(self, most: int) -> np.ndarray:
        """Positions of the images whose own label got the lowest probability, the lowest first: int64 [<= most]."""
        return np.argsort(self.probability, kind="stable")[:most]


def save(found: OutOfFold, path: str | os.PathLike) -> Path:
    """Write the file; probabilities are rounded to six significant digits, so that tiny ones keep their order."""
    images = found.columns()
    images.update({name: [float(f"{value:.6g}") for value in images[name]] for name in PARTS})
    record = {"format": FORMAT, "head": found.head, "folds": found.folds, "labels": found.labels}
    write_json(Path(path), {**record, "dataset": dict(found.dataset), "images": images})
    return Path(path)


def load(path: str | os.PathLike) -> OutOfFold:
    """Read what `save` wrote. Raises FileNotFoundError, or ValueError if it is no such file."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, and {FORMAT} can be read")
        images = record["images"]
        whole = {name: np.array(images[name], dtype=np.int64) for name in WHOLE}
        parts = {name: np.array(images[name], dtype=np.float64) for name in PARTS}
        found = OutOfFold(
            record["head"], record["folds"], record["labels"], record["dataset"], list(images["image"]), **whole,
            **parts,
        )  # fmt: skip
        _check(found)
    except KeyError as error:
        raise ValueError(f"{_no_such_file(path)} (it has no {error}).") from None
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError) as error:  # also of JSON
        raise ValueError(f"{_no_such_file(path)} ({error}).") from None
    return found


def _no_such_file(path: Path) -> str:
    return f"{path} is no file of out-of-fold predictions, as vit_train.py --folds writes"


def _check(found: OutOfFold) -> None:
    """Raise ValueError, KeyError or TypeError for what would not be found out before it is used."""
    words = [found.head, found.dataset["name"], *found.labels, *found.image]
    if not isinstance(found.labels, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("its names are not texts")
    if type(found.folds) is not int or found.folds < 2 or found.dataset["folds"] != found.folds:
        raise ValueError(f"it says {found.folds!r} folds, and its data {found.dataset['folds']!r}")
    _ = found.dataset["split_seed"], found.dataset["splits"]["train"]["hash"]
    limits = {"label": len(found.labels), "predicted": len(found.labels), "fold": found.folds}
    for name in (*WHOLE, *PARTS):
        column = getattr(found, name)
        if column.shape != (len(found),):
            raise ValueError(f"its columns differ in length: {len(found)} in image, {len(column)} in {name}")
        highest = limits.get(name, 2) - 1  # of a probability 1
        if not ((column >= 0) & (column <= highest)).all():  # NaN is neither
            raise ValueError(f"its column {name} has values that are not between 0 and {highest}")


def find(name: str, folder: str | os.PathLike) -> Path:
    """A name as a file: a path is taken as it is, the name of a head is looked up in the folder.

    Raises FileNotFoundError that lists what the folder has.
    """
    folder = Path(folder)
    place = Path(name) if Path(name).is_file() else folder / f"{name}{ENDING}"
    if not place.is_file():
        there = sorted(path.name.removesuffix(ENDING) for path in folder.glob(f"*{ENDING}"))
        raise FileNotFoundError(
            f"There is no file {name}, and no {name}{ENDING} in {folder} (there: {', '.join(there) or 'none'}): "
            "vit_train.py --folds K writes one."
        )
    return place
