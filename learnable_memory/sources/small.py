"""Data sets of small images, kept in memory: CIFAR, MNIST and their kind.

The files are torchvision's, and so are their addresses and checksums: they are read from its classes at run time.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learnable_memory.images import ArrayImages, ImageSet, split_off
from learnable_memory.sources.download import Remote, obtain
from learnable_memory.sources.found import Found, Request, naming
from learnable_memory.sources.parquet import read_parquet

logger = logging.getLogger(__name__)

DIGITS_SPLIT_SEED = 0  # Digits has no official test split: this one is drawn once for all, whatever the run's seed
DIGITS_HELD_OUT = 0.2
FASHION_SUBSET = Path(__file__).parent.parent / "assets" / "fashion_mnist"


# --------------------------------------------------------------------------------------------------------------- CIFAR
def read_cifar10(request: Request) -> Found:
    """CIFAR-10 from `cifar-10-batches-py/` or the hub's `cifar10/{train,test}-*.parquet`, or else downloaded.

    Raises:
        FileNotFoundError: nothing is there, and downloading is off or failed.
        ValueError: the files are damaged.
    """
    return _read_cifar("CIFAR10", "label", request)


def read_cifar100(request: Request, classes: Sequence[int] | None = None) -> Found:
    """CIFAR-100 from `cifar-100-python/` or the hub's `cifar100/{train,test}-*.parquet`, or else downloaded.

    Args:
        classes: keep these classes only, relabelled 0, 1, .. in this order; all 100 if left out.

    Raises:
        FileNotFoundError: nothing is there, and downloading is off or failed.
        ValueError: the files are damaged.
    """
    found = _read_cifar("CIFAR100", "fine_label", request)
    if classes is None:
        return found
    assert found.eval is not None  # CIFAR comes with a test split
    labels = [found.labels[label] for label in classes]
    return Found(labels, found.train.relabel(classes), found.source, found.eval.relabel(classes))


def _read_cifar(name: str, label: str, request: Request) -> Found:
    """The data set of torchvision's class `name`, whose labels are in the column `label` of the hub's files."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    folder, tables = kind.base_folder, request.root / name.lower()
    if not (request.root / folder).is_dir() and any(tables.glob("*.parquet")):
        return _cifar_tables(tables, label)
    remote = Remote(kind.url, kind.tgz_md5, makes=(folder,), packed=(folder,))
    obtain(name, request, [remote], expected=f"{folder}/ or {tables.name}/{{train,test}}-*.parquet")
    with naming(request.root / folder):
        # torchvision compares the checksum of each pickle before it loads it.
        parts = {split: kind(request.root, train=split == "train") for split in ("train", "test")}
        train, test = (
            ImageSet(ArrayImages(part.data, f"{folder}/{split}"), np.array(part.targets))
            for split, part in parts.items()
        )
    return Found(list(parts["train"].classes), train, f"torchvision: {folder}", test)


def _cifar_tables(folder: Path, label: str) -> Found:
    train, labels = read_parquet(folder, "train-*.parquet", "img", label)
    test, _ = read_parquet(folder, "test-*.parquet", "img", label, labels)
    return Found(labels, train, f"parquet: {folder.name}", test)


# --------------------------------------------------------------------------------------------------------------- MNIST
def read_mnist(request: Request) -> Found:
    """MNIST from `MNIST/raw/*-ubyte`, or else downloaded.

    Raises:
        FileNotFoundError: files are missing, and downloading is off or failed.
        ValueError: the files are damaged.
    """
    return _read_mnist("MNIST", request)


def read_fashion_mnist(request: Request) -> Found:
    """Fashion-MNIST from `FashionMNIST/raw/*-ubyte`, or downloaded, or else the committed subset.

    Raises:
        ValueError: the files are damaged.
    """
    try:
        return _read_mnist("FashionMNIST", request)
    except FileNotFoundError as error:
        logger.warning("%s; going on with the committed subset in its place", error)
        return read_fashion_subset()


def _read_mnist(name: str, request: Request) -> Found:
    """The data set of torchvision's class `name`, in a folder of that name."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    folder = f"{name}/raw"
    remotes = []
    for archive, md5 in kind.resources:
        file = archive.removesuffix(".gz")
        url, *mirrors = (f"{mirror}{archive}" for mirror in kind.mirrors)
        remotes.append(Remote(url, md5, makes=(f"{folder}/{file}",), packed=(file,), mirrors=tuple(mirrors)))
    obtain(name, request, remotes, expected=f"{folder}/*-ubyte")
    with naming(request.root / folder):
        parts = {split: kind(request.root, train=split == "train") for split in ("train", "t10k")}
        train, test = (
            ImageSet(ArrayImages(part.data.numpy(), f"{folder}/{split}"), part.targets.numpy())
            for split, part in parts.items()
        )
    return Found(list(kind.classes), train, f"torchvision: {folder}", test)


def read_fashion_subset(request: Request | None = None) -> Found:
    """The part of Fashion-MNIST that is committed to this repository: balanced, from the official train and test."""
    train, labels = read_parquet(FASHION_SUBSET, "train.parquet", "image", "label")
    test, _ = read_parquet(FASHION_SUBSET, "test.parquet", "image", "label", labels)
    return Found(labels, train, f"committed subset: {len(train)} training and {len(test)} test images", test)


# -------------------------------------------------------------------------------------------------------------- Digits
def read_digits(request: Request) -> Found:
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn; a fixed fifth is the evaluation split.

    Raises:
        ValueError: the official split was asked for.
    """
    from sklearn.datasets import load_digits

    if request.split == "official":
        raise ValueError("Digits has no official split; take --split seeded")
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # [n, 8, 8], values 0..16 -> 0..255
    everything = ImageSet(ArrayImages(pixels, "scikit-learn's digits"), digits.target)
    train, test = split_off(everything, DIGITS_HELD_OUT, DIGITS_SPLIT_SEED)
    return Found([str(name) for name in digits.target_names], train, "scikit-learn: load_digits", test)
