"""Data sets of small images, kept in memory: CIFAR, MNIST and their kind."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learnable_memory.images import ArrayImages, ImageSet, split_off
from learnable_memory.sources.download import download_or_explain
from learnable_memory.sources.found import Found, Request, naming
from learnable_memory.sources.parquet import read_parquet

logger = logging.getLogger(__name__)

DIGITS_SPLIT_SEED = 0  # Digits has no official test split: this one is drawn once for all, whatever the run's seed
DIGITS_HELD_OUT = 0.2
FASHION_SUBSET = Path(__file__).parent.parent / "assets" / "fashion_mnist"


# ----------------------------------------------------------------------------------------------------------- CIFAR-100
def read_cifar100(request: Request, classes: Sequence[int] | None = None) -> Found:
    """CIFAR-100 from torchvision's files or the hub's parquet files, or downloaded.

    Args:
        classes: keep these classes only, relabelled 0, 1, .. in this order; all 100 if left out.

    Raises:
        FileNotFoundError: nothing is there, and downloading is off or failed.
        ValueError: the files are damaged.
    """
    root = request.root
    if not (root / "cifar-100-python").is_dir():
        if any((root / "cifar100").glob("*.parquet")):
            return _keep(_cifar100_parquet(root / "cifar100"), classes)
        download_or_explain("CIFAR100", "cifar-100-python/ or cifar100/{train,test}-*.parquet", root, request.download)
    return _keep(_cifar100_torchvision(root), classes)


def _cifar100_torchvision(root: Path) -> Found:
    from torchvision.datasets import CIFAR100

    with naming(root / "cifar-100-python"):
        parts = {split: CIFAR100(root, train=split == "train") for split in ("train", "test")}
    train, test = (
        ImageSet(ArrayImages(part.data, f"cifar-100-python/{split}"), np.array(part.targets))
        for split, part in parts.items()
    )
    return Found(list(parts["train"].classes), train, "torchvision: cifar-100-python", test)


def _cifar100_parquet(folder: Path) -> Found:
    train, labels = read_parquet(folder, "train-*.parquet", "img", "fine_label")
    test, test_labels = read_parquet(folder, "test-*.parquet", "img", "fine_label")
    if labels != test_labels:
        raise ValueError(f"the class names of train-*.parquet and test-*.parquet in {folder} differ")
    return Found(labels, train, "parquet: cifar100", test)


def _keep(found: Found, classes: Sequence[int] | None) -> Found:
    if classes is None:
        return found
    labels = [found.labels[label] for label in classes]
    return Found(labels, found.train.relabel(classes), found.source, found.eval.relabel(classes))


# -------------------------------------------------------------------------------------------------------------- Digits
def read_digits(request: Request) -> Found:
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn; a fixed fifth is the evaluation split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # [n, 8, 8], values 0..16 -> 0..255
    everything = ImageSet(ArrayImages(pixels, "scikit-learn's digits"), digits.target)
    train, test = split_off(everything, DIGITS_HELD_OUT, DIGITS_SPLIT_SEED)
    return Found([str(name) for name in digits.target_names], train, "scikit-learn: load_digits", test)


# ------------------------------------------------------------------------------------------------------- Fashion-MNIST
def read_fashion_mnist(request: Request) -> Found:
    """Fashion-MNIST from torchvision's files, or downloaded, or else the committed subset.

    Raises:
        ValueError: torchvision's files are damaged.
    """
    root = request.root
    raw = root / "FashionMNIST" / "raw"
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    if not all((raw / name).is_file() for name in names):
        try:
            download_or_explain("FashionMNIST", "FashionMNIST/raw/*-ubyte", root, request.download)
        except FileNotFoundError as error:
            logger.warning("%s; going on with the committed subset in its place", error)
            return read_fashion_subset()
    return _fashion_torchvision(root)


def _fashion_torchvision(root: Path) -> Found:
    from torchvision.datasets import FashionMNIST

    with naming(root / "FashionMNIST" / "raw"):
        parts = {split: FashionMNIST(root, train=split == "train") for split in ("train", "t10k")}
        train, test = (
            ImageSet(ArrayImages(part.data.numpy(), f"FashionMNIST/raw/{split}"), part.targets.numpy())
            for split, part in parts.items()
        )
    return Found(list(FashionMNIST.classes), train, "torchvision: FashionMNIST/raw", test)


def read_fashion_subset() -> Found:
    """The part of Fashion-MNIST that is committed to this repository: balanced, from the official train and test."""
    train, labels = read_parquet(FASHION_SUBSET, "train.parquet", "image", "label")
    test, _ = read_parquet(FASHION_SUBSET, "test.parquet", "image", "label")
    return Found(labels, train, f"committed subset: {len(train)} training and {len(test)} test images", test)
