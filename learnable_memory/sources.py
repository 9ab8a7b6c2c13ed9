"""Where data sets come from: one reader for each kind of files.

A reader finds its files, checks them and returns a `Found`. It never draws the `select` split (`data.py` does, in one
way for all), and nothing is written to disk except by a download that was allowed.
"""

import json
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learnable_memory.images import ArrayImages, EncodedImages, ImageFiles, ImageSet, split_off

logger = logging.getLogger(__name__)

DIGITS_SPLIT_SEED = 0  # Digits has no official test split: this one is drawn once for all, whatever the run's seed
FASHION_SUBSET = Path(__file__).parent / "assets" / "fashion_mnist"
HELD_OUT_FRACTION = 0.2  # of data without an official test split
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
NETWORK_TIMEOUT = 20.0  # seconds without an answer after which a download counts as failed


@dataclass(frozen=True)
class Found:
    """A data set as its files give it.

    Attributes:
        labels: the name of class 0, 1, ..
        train, eval: the official splits, or fixed ones where there are none.
        source: what was read, without the path of the machine.
        select: the split to choose on, if the data set has one of its own.
    """

    labels: list[str]
    train: ImageSet
    eval: ImageSet
    source: str
    select: ImageSet | None = None


# ----------------------------------------------------------------------------------------------------------- CIFAR-100
def read_cifar100(directory: Path, download: bool, classes: Sequence[int] | None = None) -> Found:
    """CIFAR-100 from torchvision's files or the hub's parquet files under `directory`/datasets, or downloaded.

    Args:
        directory: the folder that holds `datasets/`.
        download: whether torchvision may fetch what is not there.
        classes: keep these classes only, relabelled 0, 1, .. in this order; all 100 if left out.

    Raises:
        FileNotFoundError: nothing is there, and downloading is off or failed.
        ValueError: the files are damaged.
    """
    root = directory / "datasets"
    if not (root / "cifar-100-python").is_dir():
        if any((root / "cifar100").glob("*.parquet")):
            return _keep(_cifar100_parquet(root / "cifar100"), classes)
        _download_or_explain("CIFAR100", "cifar-100-python/ or cifar100/{train,test}-*.parquet", root, download)
    return _keep(_cifar100_torchvision(root), classes)


def _cifar100_torchvision(root: Path) -> Found:
    from torchvision.datasets import CIFAR100

    with _naming(root / "cifar-100-python"):
        parts = {split: CIFAR100(root, train=split == "train") for split in ("train", "test")}
    train, test = (
        ImageSet(ArrayImages(part.data, f"cifar-100-python/{split}"), np.array(part.targets))
        for split, part in parts.items()
    )
    return Found(list(parts["train"].classes), train, test, "torchvision: cifar-100-python")


def _cifar100_parquet(folder: Path) -> Found:
    train, labels = read_parquet(folder, "train-*.parquet", "img", "fine_label")
    test, test_labels = read_parquet(folder, "test-*.parquet", "img", "fine_label")
    if labels != test_labels:
        raise ValueError(f"the class names of train-*.parquet and test-*.parquet in {folder} differ")
    return Found(labels, train, test, "parquet: cifar100")


def _keep(found: Found, classes: Sequence[int] | None) -> Found:
    if classes is None:
        return found
    labels = [found.labels[label] for label in classes]
    return Found(labels, found.train.relabel(classes), found.eval.relabel(classes), found.source)


# -------------------------------------------------------------------------------------------------------------- Digits
def read_digits(directory: Path, download: bool) -> Found:
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn; a fixed fifth is the evaluation split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # [n, 8, 8], values 0..16 -> 0..255
    everything = ImageSet(ArrayImages(pixels, "scikit-learn's digits"), digits.target)
    train, test = split_off(everything, HELD_OUT_FRACTION, DIGITS_SPLIT_SEED)
    return Found([str(name) for name in digits.target_names], train, test, "scikit-learn: load_digits")


# ------------------------------------------------------------------------------------------------------- Fashion-MNIST
def read_fashion_mnist(directory: Path, download: bool) -> Found:
    """Fashion-MNIST from torchvision's files under `directory`/datasets, or downloaded, or else the committed subset.

    Raises:
        ValueError: torchvision's files are damaged.
    """
    root = directory / "datasets"
    raw = root / "FashionMNIST" / "raw"
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    if not all((raw / name).is_file() for name in names):
        try:
            _download_or_explain("FashionMNIST", "FashionMNIST/raw/*-ubyte", root, download)
        except FileNotFoundError as error:
            logger.warning("%s; going on with the committed subset in its place", error)
            return read_fashion_subset()
    return _fashion_torchvision(root)


def _fashion_torchvision(root: Path) -> Found:
    from torchvision.datasets import FashionMNIST

    with _naming(root / "FashionMNIST" / "raw"):
        parts = {split: FashionMNIST(root, train=split == "train") for split in ("train", "t10k")}
        train, test = (
            ImageSet(ArrayImages(part.data.numpy(), f"FashionMNIST/raw/{split}"), part.targets.numpy())
            for split, part in parts.items()
        )
    return Found(list(FashionMNIST.classes), train, test, "torchvision: FashionMNIST/raw")


def read_fashion_subset() -> Found:
    """The part of Fashion-MNIST that is committed to this repository: balanced, from the official train and test."""
    train, labels = read_parquet(FASHION_SUBSET, "train.parquet", "image", "label")
    test, _ = read_parquet(FASHION_SUBSET, "test.parquet", "image", "label")
    return Found(labels, train, test, f"committed subset: {len(train)} training and {len(test)} test images")


# -------------------------------------------------------------------------------------------------------------- folder
def read_folder(path: str, split_seed: int) -> Found:
    """One folder for each class, under `path` itself or under `path`/train, /val and /test.

    With `train/`: `test/` is the evaluation split and `val/` the selection split; one of them alone is the evaluation
    split. Without: a seeded fifth of each class is held out for evaluation.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no class folders, a class without images, nothing to evaluate on, or classes that differ.
    """
    if not path:
        raise ValueError("folder: needs a path, as in folder:PATH")
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{root} is not a folder; it should hold one folder of images for each class")
    if not _subfolders(root / "train"):
        everything, labels = _read_class_folders(root)
        train, held_out = split_off(everything, HELD_OUT_FRACTION, split_seed)
        return Found(labels, train, held_out, "folder, a fifth held out")
    splits = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if splits == ["train"]:
        raise ValueError(f"folder:{root} has train/ but neither val/ nor test/ to evaluate on")
    sets = {}
    for split in splits:
        sets[split], labels = _read_class_folders(root / split)
        if split == "train":
            expected = labels
        elif labels != expected:
            differing = ", ".join(sorted(set(labels) ^ set(expected)))
            raise ValueError(f"the classes in {root / split} and {root / 'train'} differ: {differing}")
    evaluation = sets.pop("test") if "test" in sets else sets.pop("val")
    return Found(expected, sets["train"], evaluation, f"folder with {', '.join(splits)}", select=sets.get("val"))


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_class_folders(root: Path) -> tuple[ImageSet, list[str]]:
    """All images of the class folders under `root`, class by class, files in the order of their names."""
    folders = _subfolders(root)
    if not folders:
        raise ValueError(f"{root} has no class folders; it should hold one folder of images for each class")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not files:
            raise ValueError(f"{folder} has no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
        paths += files
        labels += [label] * len(files)
    return ImageSet(ImageFiles(paths, root), np.array(labels)), [folder.name for folder in folders]


# ------------------------------------------------------------------------------------------------------------- parquet
def read_parquet(folder: Path, pattern: str, image: str, label: str) -> tuple[ImageSet, list[str]]:
    """Parquet files in the hub's layout: `image` is a struct with the file's bytes, `label` a ClassLabel.

    Returns:
        The images (kept encoded in memory) and the class names from the files' own metadata.

    Raises:
        FileNotFoundError: no file fits the pattern.
        ValueError: not parquet, no such columns, no class names, or labels without a name.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no {pattern} in {folder}")
    chunks: list[pa.Array] = []
    labels: list[np.ndarray] = []
    for file in files:
        with _naming(file):
            schema = pq.read_schema(file)
            if not {image, label} <= set(schema.names):
                raise ValueError(f"its columns are {', '.join(schema.names)}; expected {image} and {label}")
            names = _class_names(schema.metadata, label)
            # pre_buffer would keep the raw file in memory beside the column: 213 MiB for CIFAR-100 instead of 106.
            table = pq.read_table(file, columns=[image, label], pre_buffer=False)
            chunks += pc.struct_field(table[image], "bytes").chunks
            labels.append(table[label].to_numpy())
            if not np.isin(labels[-1], range(len(names))).all():
                raise ValueError(f"the column {label} has values outside 0..{len(names) - 1}")
    images = EncodedImages(pa.chunked_array(chunks, type=pa.binary()), str(folder / pattern))
    return ImageSet(images, np.concatenate(labels)), names


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str]:
    """The names of a ClassLabel column, which the `datasets` library keeps as JSON beside the schema."""
    features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names")
    if not names:
        raise ValueError(f"its metadata has no class names for the column {label}; save it with the datasets library")
    return names


# --------------------------------------------------------------------------------------------------- downloads, errors
def _download_or_explain(name: str, expected: str, root: Path, download: bool) -> None:
    """Let torchvision download the data set `name` into `root`.

    Raises:
        FileNotFoundError: downloading is off or failed; one line that says where what was looked for.
    """
    from torchvision import datasets

    reason = "downloading is off"
    if download:
        try:
            with _patience(NETWORK_TIMEOUT):
                getattr(datasets, name)(root, download=True)
            return
        except (OSError, RuntimeError) as error:  # torchvision hides some network errors in RuntimeErrors
            reason = f"downloading failed ({type(error).__name__}: {' '.join(str(error).split())})"
    raise FileNotFoundError(f"{name}: no {expected} in {root}, and {reason}; put the files there")


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """torchvision opens its connections without a time limit, and a silent network would hold it for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong in reading `path` becomes a ValueError that names it."""
    try:
        yield
    except Exception as error:  # pickle, struct, pyarrow and torchvision each have their own
        raise ValueError(f"cannot read {path} ({' '.join(str(error).split())}); delete it or replace it") from error
