"""Data sets by name, and their splits.

    data = load_data_set("CIFAR100", Path("~"))                     # data.train, data.select, data.eval

A further data set is one reader in `sources.py` and one line in `DATA_SETS`.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from learnable_memory.images import ImageSet, split_off
from learnable_memory.sources import Found, read_cifar100, read_digits, read_fashion_mnist, read_folder

__all__ = ["DataSet", "ImageSet", "data_set_names", "load_data_set"]

SELECT_FRACTION = 0.1  # of train, for data sets without a selection split of their own


@dataclass(frozen=True)
class DataSet:
    """A data set in its three roles: `train` on, `select` (choose) on, `eval` (report) on.

    Attributes:
        labels: the name of class 0, 1, ..
        views: which random views it is trained on, one of `transforms.VIEWS`.
        source: what was read.
        split_seed: what `eval` was drawn with, where the data has no split at all.
        select_seed: what `select` was drawn with, where the data has none.
    """

    name: str
    labels: list[str]
    train: ImageSet
    select: ImageSet
    eval: ImageSet
    views: str
    source: str
    split_seed: int
    select_seed: int

    def record(self) -> dict[str, Any]:
        """What a head file keeps of it, JSON-able: enough to tell whether two runs saw the same images."""
        splits = {"train": self.train, "select": self.select, "eval": self.eval}
        return {
            "name": self.name,
            "source": self.source,
            "split_seed": self.split_seed,
            "select_seed": self.select_seed,
            "splits": {role: {"images": len(split), "hash": split.hash} for role, split in splits.items()},
        }


# ------------------------------------------------------------------------------------------------------------ registry
@dataclass(frozen=True)
class _Named:
    """A data set with a name of its own: `read(directory, download)`."""

    read: Callable[[Path, bool], Found]
    views: str


@dataclass(frozen=True)
class _Prefixed:
    """A kind of data set, named PREFIX:ARGUMENT: `read(argument, split_seed)`, and how the name is made unique."""

    read: Callable[[str, int], Found]
    views: str
    full_name: Callable[[str], str]
    usage: str


DATA_SETS = {
    "CIFAR100": _Named(read_cifar100, "crop_flip"),
    "CIFAR100-new20": _Named(partial(read_cifar100, classes=range(4, 100, 5)), "crop_flip"),  # not seen by base-tiny
    "Digits": _Named(read_digits, "shift"),
    "FashionMNIST": _Named(read_fashion_mnist, "flip"),
}
PREFIXES = {
    "folder": _Prefixed(read_folder, "resized_crop_flip", lambda path: str(Path(path).expanduser().resolve()), "PATH"),
}


def data_set_names() -> list[str]:
    """The names that `load_data_set` knows; it takes `folder:PATH` besides."""
    return list(DATA_SETS)


def load_data_set(
    name: str, directory: Path, split_seed: int = 0, download: bool = True, select_seed: int | None = None
) -> DataSet:
    """A data set by name, with its three splits.

    Args:
        name: one of `data_set_names()`, or `folder:PATH` for a folder with one folder of images for each class.
        directory: the folder that holds `datasets/`; not used by Digits and `folder:PATH`.
        split_seed: 0 to 2**32 - 1; draws the splits that the data set does not have.
        download: whether missing files may be fetched into `directory`.
        select_seed: draws `select`, a stratified tenth of train, instead of `split_seed`.

    Raises:
        ValueError: unknown name, damaged files, or a split seed out of range.
        FileNotFoundError: the files are not there and were not downloaded.
    """
    prefix, colon, argument = name.partition(":")
    if colon and prefix in PREFIXES:
        entry = PREFIXES[prefix]
        found = entry.read(argument, split_seed)
        name = f"{prefix}:{entry.full_name(argument)}"
    elif name in DATA_SETS:
        entry = DATA_SETS[name]
        found = entry.read(Path(directory).expanduser(), download)
    else:
        raise ValueError(_unknown(name))
    train, select = found.train, found.select
    select_seed = split_seed if select_seed is None else select_seed
    if select is None:
        train, select = split_off(train, SELECT_FRACTION, select_seed)
    return DataSet(name, found.labels, train, select, found.eval, entry.views, found.source, split_seed, select_seed)


def _unknown(name: str) -> str:
    legal = [*DATA_SETS, *(f"{prefix}:{entry.usage}" for prefix, entry in PREFIXES.items())]
    lower_case = {known.lower(): known for known in legal}
    close = difflib.get_close_matches(name.lower(), lower_case, n=1)
    suggestion = f", did you mean {lower_case[close[0]]}?" if close else ";"
    return f"unknown data set {name!r}{suggestion} legal: {', '.join(legal)}"
