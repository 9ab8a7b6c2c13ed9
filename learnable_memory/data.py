"""Data sets by name, their splits, and loaders whose randomness does not depend on the machine.

    data = load_data_set("CIFAR100", Path("~"))                     # data.train, data.select, data.eval
    loader = make_loader(data.train, preprocessing.train_transform(data.views), 64, workers=4, seed=0, shuffle=True)
    loader.sampler.set_epoch(1)                                     # before each epoch
    for pixel_values, labels in loader: ...                         # float32 [B, 3, H, W], int64 [B]

A further data set is one reader in `sources.py` and one line in `DATA_SETS`.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from learnable_memory.images import ImageSet, split_off
from learnable_memory.sources import Found, read_cifar100, read_digits, read_fashion_mnist, read_folder
from learnable_memory.transforms import Transform

__all__ = ["DataSet", "EpochSampler", "ImageSet", "Views", "data_set_names", "load_data_set", "make_loader"]

SELECT_FRACTION = 0.1  # of train, for data sets without a selection split of their own


@dataclass(frozen=True)
class DataSet:
    """A data set in its three roles: `train` on, `select` (choose) on, `eval` (report) on.

    Attributes:
        labels: the name of class 0, 1, ..
        views: which random views it is trained on, one of `transforms.VIEWS`.
        source: what was read.
        split_seed: what `select` was drawn with (and `eval`, where the data has no split at all).
    """

    name: str
    labels: list[str]
    train: ImageSet
    select: ImageSet
    eval: ImageSet
    views: str
    source: str
    split_seed: int

    def record(self) -> dict[str, Any]:
        """What a head file keeps of it, JSON-able: enough to tell whether two runs saw the same images."""
        splits = {"train": self.train, "select": self.select, "eval": self.eval}
        return {
            "name": self.name,
            "source": self.source,
            "split_seed": self.split_seed,
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


def load_data_set(name: str, directory: Path, split_seed: int = 0, download: bool = True) -> DataSet:
    """A data set by name, with its three splits.

    Args:
        name: one of `data_set_names()`, or `folder:PATH` for a folder with one folder of images for each class.
        directory: the folder that holds `datasets/`; not used by Digits and `folder:PATH`.
        split_seed: 0 to 2**32 - 1; draws `select`, a stratified tenth of train, if the data set has none of its own.
        download: whether missing files may be fetched into `directory`.

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
    if select is None:
        train, select = split_off(train, SELECT_FRACTION, split_seed)
    return DataSet(name, found.labels, train, select, found.eval, entry.views, found.source, split_seed)


def _unknown(name: str) -> str:
    legal = [*DATA_SETS, *(f"{prefix}:{entry.usage}" for prefix, entry in PREFIXES.items())]
    lower_case = {known.lower(): known for known in legal}
    close = difflib.get_close_matches(name.lower(), lower_case, n=1)
    suggestion = f", did you mean {lower_case[close[0]]}?" if close else ";"
    return f"unknown data set {name!r}{suggestion} legal: {', '.join(legal)}"


# ------------------------------------------------------------------------------------------------------------- loading
class Views(Dataset):
    """Transformed images: `views[epoch, index]` is (float32 [3, H, W], label), a function of seed, epoch and index.

    Args:
        image_set: the images.
        transform: PIL image -> float32 [3, H, W]; may draw from torch's global CPU generator, and from nothing else.
        seed: at least 0.
    """

    def __init__(self, image_set: ImageSet, transform: Transform, seed: int = 0) -> None:
        self.image_set, self.transform, self.seed = image_set, transform, seed

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, index = key
        image, label = self.image_set[index]
        seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0]
        # fork_rng restores the CPU generator. torch.manual_seed would seed those of the GPUs too; nobody restores them
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            try:
                return self.transform(image), label
            except ValueError as error:
                raise ValueError(f"{self.image_set.describe(index)}: {error}") from error


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) for each index once, shuffled by (seed, epoch) or in order."""

    def __init__(self, length: int, seed: int = 0, shuffle: bool = False) -> None:
        self.length, self.seed, self.shuffle, self.epoch = length, seed, shuffle, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = self.epoch, np.arange(self.length)
        if self.shuffle:
            # The spawn key keeps this stream apart from those of the views, which are keyed by three numbers.
            key = np.random.SeedSequence((self.seed, epoch), spawn_key=(0,))
            order = np.random.default_rng(key).permutation(order)
        return ((epoch, int(index)) for index in order)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass over the loader; 0 at the start."""
        self.epoch = epoch


def make_loader(
    image_set: ImageSet,
    transform: Transform,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
) -> DataLoader:
    """Batches of (pixel_values float32 [B, 3, H, W], labels int64 [B]), the same bits for any number of workers.

    Order and views depend on (seed, epoch, index) only; call `loader.sampler.set_epoch(epoch)` before each epoch. No
    global random state is read or changed. Each image comes once an epoch; the last batch may be smaller, and only
    `drop_last` leaves it out.

    Raises:
        ValueError: a negative seed; from the batches, an image that cannot be decoded.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it has to be 0 or more")
    return DataLoader(
        Views(image_set, transform, seed),
        batch_size,
        sampler=EpochSampler(len(image_set), seed, shuffle),
        num_workers=workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),  # else each pass would draw a number from the global generator
    )
