"""Tiny data sets of random pictures, on disk as the real ones are: the readers of `sources/` take them for real.

Three classes each, and a few images of a class in every split; Flowers and CIFAR keep the real number of class names.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, EVAL = 6, 2  # images of each class; 8 where the reader draws the split itself
NOISE = 40.0  # standard deviation of the pixels around their class's colour, of 255
COLOURS = ((200, 80, 60), (60, 180, 90), (70, 90, 200))  # of class 0, 1, 2


def write_data_sets(names: Iterable[str], directory: Path) -> None:
    """Write data sets below `directory`/datasets.

    Args:
        names: as `data.load_data_set` takes them.

    Raises:
        ValueError: a data set without a tiny form.
    """
    for name in names:
        if name not in WRITERS:
            raise ValueError(f"{name} has no tiny form for --smoke; those that have one: {', '.join(WRITERS)}.")
        WRITERS[name](directory / "datasets")


# ----------------------------------------------------------------------------------------------------- pictures, lists
def _encode(name: str, label: int, size: tuple[int, int], file_format: str) -> bytes:
    """A picture of the class's colour, with noise that depends on its name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    pixels = random.normal(COLOURS[label], NOISE, (size[1], size[0], 3)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def _write_images(root: Path, labels: Mapping[str, int]) -> None:
    """A JPEG for each path below `root`; not square, as photographs are."""
    for name, label in labels.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(name, label, (48, 40), "JPEG"))


def _write_lines(path: Path, lines: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- CIFAR
def _write_cifar(root: Path, folder: str, column: str, classes: int) -> None:
    """The hub's parquet files, with the class names where the `datasets` library keeps them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"class {number}" for number in range(classes)]
    features = {"img": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema({"img": image, column: pa.int64()}, metadata=metadata)
    (root / folder).mkdir(parents=True, exist_ok=True)
    for split, count in (("train", TRAIN), ("test", EVAL)):
        labels = [label for label in range(len(COLOURS)) for _ in range(count)]
        images = [_encode(f"{folder} {split} {row}", label, (32, 32), "PNG") for row, label in enumerate(labels)]
        columns = {"img": [{"bytes": data, "path": None} for data in images], column: labels}
        pq.write_table(pa.table(columns, schema=schema), root / folder / f"{split}-00000-of-00001.parquet")


def _write_cifar10(root: Path) -> None:
    _write_cifar(root, "cifar10", "label", 10)


def _write_cifar100(root: Path) -> None:
    _write_cifar(root, "cifar100", "fine_label", 100)


# -------------------------------------------------------------------------------------------------------------- scenes
SCENES = ("a/abbey", "a/airport_terminal", "b/bakery/shop")


def _write_places(root: Path) -> None:
    train = {f"{scene}/{row:08d}.jpg": label for label, scene in enumerate(SCENES) for row in range(1, TRAIN + 1)}
    numbered = enumerate(sorted([*range(len(SCENES))] * EVAL), 1)
    val = {f"Places365_val_{row:08d}.jpg": label for row, label in numbered}
    _write_lines(root / "categories_places365.txt", [f"/{scene} {label}" for label, scene in enumerate(SCENES)])
    _write_lines(root / "places365_train_standard.txt", [f"/{name} {label}" for name, label in train.items()])
    _write_lines(root / "places365_val.txt", [f"{name} {label}" for name, label in val.items()])
    _write_images(root / "data_256_standard", train)
    _write_images(root / "val_256", val)


def _write_sun(root: Path) -> None:
    rows = range(TRAIN + EVAL)
    images = {f"{scene}/sun_{row:04d}.jpg": label for label, scene in enumerate(SCENES) for row in rows}
    _write_lines(root / "SUN397" / "ClassName.txt", [f"/{scene}" for scene in SCENES])
    _write_images(root / "SUN397", images)


# ------------------------------------------------------------------------------------------------- species and breeds
SPECIES = ("Aves/Anas acuta", "Insecta/Apis mellifera", "Plantae/Acer rubrum")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
BREEDS = ("Abyssinian", "american_bulldog", "beagle")
FLOWERS = (1, 50, 102)  # class numbers; all 102 have a name


def _write_inaturalist(root: Path) -> None:
    rows = range(TRAIN + EVAL)
    images = {f"{species}/{row:032x}.jpg": label for label, species in enumerate(SPECIES) for row in rows}
    _write_images(root / "2017", images)


def _write_cub(root: Path) -> None:
    images = {
        f"{bird}/{bird[4:]}_{row:04d}.jpg": (label, int(row < TRAIN))
        for label, bird in enumerate(BIRDS)
        for row in range(TRAIN + EVAL)
    }
    folder = root / "CUB_200_2011"
    _write_lines(folder / "classes.txt", [f"{number} {bird}" for number, bird in enumerate(BIRDS, 1)])
    _write_lines(folder / "images.txt", [f"{number} {name}" for number, name in enumerate(images, 1)])
    numbered = list(enumerate(images.values(), 1))
    _write_lines(folder / "image_class_labels.txt", [f"{number} {label + 1}" for number, (label, _) in numbered])
    _write_lines(folder / "train_test_split.txt", [f"{number} {role}" for number, (_, role) in numbered])
    _write_images(folder / "images", {name: label for name, (label, _) in images.items()})


def _write_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for file, rows in (("trainval.txt", range(TRAIN)), ("test.txt", range(TRAIN, TRAIN + EVAL))):
        images = {f"{breed}_{row}": label for label, breed in enumerate(BREEDS) for row in rows}
        _write_lines(folder / "annotations" / file, [f"{name} {label + 1} 1 1" for name, label in images.items()])
        _write_images(folder / "images", {f"{name}.jpg": label for name, label in images.items()})


def _write_flowers(root: Path) -> None:
    from scipy.io import savemat

    labels = [*range(len(FLOWERS))] * (TRAIN + 2 * EVAL)  # of image 1, 2, ..
    folder = root / "flowers-102"
    _write_images(folder / "jpg", {f"image_{number:05d}.jpg": label for number, label in enumerate(labels, 1)})
    train, select = TRAIN * len(FLOWERS), (TRAIN + EVAL) * len(FLOWERS)
    numbers = np.arange(1, len(labels) + 1, dtype=np.uint16)
    splits = {"trnid": numbers[:train], "valid": numbers[train:select], "tstid": numbers[select:]}
    savemat(folder / "setid.mat", {key: part[None] for key, part in splits.items()})
    savemat(folder / "imagelabels.mat", {"labels": np.array([[FLOWERS[label] for label in labels]], dtype=np.uint8)})


def _write_imagenet(root: Path) -> None:
    synsets = ("n01440764", "n01443537", "n15075141")
    train = {f"{wnid}/{wnid}_{row}.JPEG": label for label, wnid in enumerate(synsets) for row in range(TRAIN)}
    numbered = enumerate(sorted([*range(len(synsets))] * EVAL), 1)
    val = {f"{synsets[label]}/ILSVRC2012_val_{row:08d}.JPEG": label for row, label in numbered}
    _write_images(root / "imagenet" / "train", train)
    _write_images(root / "imagenet" / "val", val)


WRITERS: dict[str, Callable[[Path], None]] = {
    "CIFAR10": _write_cifar10,
    "CIFAR100": _write_cifar100,
    "CUB": _write_cub,
    "Flowers": _write_flowers,
    "ImageNet": _write_imagenet,
    "INaturalist": _write_inaturalist,
    "Pets": _write_pets,
    "Places": _write_places,
    "Sun": _write_sun,
}
