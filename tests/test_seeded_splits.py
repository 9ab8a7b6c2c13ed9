"""Splits that are drawn (Sun, INaturalist, folders) depend on nothing but the paths of the images and the seed.

An evaluation split that changed with the file system or a library would hold images that the head was trained on.
"""

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from image_trees import write_images, write_lines
from learnable_memory.data import DataSet, load_data_set

CLASSES = {
    "Sun": ["a/abbey", "a/apse/indoor", "z/zoo"],
    "INaturalist": ["Aves/Anas acuta", "Plantae/Acer rubrum", "Plantae/Iris"],
    "folder": ["abbey", "apse", "zoo"],
}
FILES = ["sun_b.jpg", "sun_C.jpg", "sun_10.jpg", "sun_9.jpg", "sun_é.jpg", "sun_.jpg", "sun_a-1.jpg", "sun_a.jpg"]


def paths(name: str) -> list[str]:
    return [f"{folder}/{file}" for folder in CLASSES[name] for file in FILES]


def write(name: str, directory: Path, order: int = 0) -> None:
    """The data set `name` in `directory`, its files made in one of many orders."""
    root = directory / "datasets" / {"Sun": "SUN397", "INaturalist": "2017", "folder": "folder"}[name]
    write_images(root, random.Random(order).sample(paths(name), len(paths(name))))
    if name == "Sun":
        write_lines(root / "ClassName.txt", [f"/{folder}" for folder in CLASSES[name]])


def load(name: str, directory: Path, seed: int = 3) -> DataSet:
    full_name = f"folder:{directory / 'datasets' / 'folder'}" if name == "folder" else name
    return load_data_set(full_name, directory, seed, download=False)


def hashes(found: DataSet) -> list[str]:
    return [found.train.hash, found.select.hash, found.eval.hash]


@pytest.fixture
def shuffled_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories list their entries in an order that is another one at each call."""
    chance, walk, iterdir = random.Random(0), os.walk, Path.iterdir

    def shuffled_walk(*args: object, **options: object) -> Iterator[tuple[str, list[str], list[str]]]:
        for parent, inner, files in walk(*args, **options):
            chance.shuffle(inner)
            chance.shuffle(files)
            yield parent, inner, files

    def shuffled_iterdir(path: Path) -> Iterator[Path]:
        return iter(chance.sample(entries := list(iterdir(path)), len(entries)))

    monkeypatch.setattr(os, "walk", shuffled_walk)
    monkeypatch.setattr(Path, "iterdir", shuffled_iterdir)


@pytest.mark.parametrize("name", CLASSES)
def test_evaluation_split_is_what_its_definition_says(tmp_path: Path, name: str) -> None:
    """Of each class, in the order of its paths, the first fifth of a permutation drawn from (seed, class)."""
    write(name, tmp_path)
    digest = hashlib.sha256()
    for label, folder in enumerate(CLASSES[name]):
        members = sorted(f"{folder}/{file}" for file in FILES)
        drawn = np.random.RandomState([3, label]).permutation(8)[:2]  # 1.6 of 8
        for index in sorted(drawn):
            digest.update(f"{members[index]}\0{label}\0".encode())
    assert load(name, tmp_path).eval.hash == digest.hexdigest()[:16]


@pytest.mark.parametrize("name", CLASSES)
def test_splits_do_not_depend_on_the_order_in_which_files_were_made_or_where(tmp_path: Path, name: str) -> None:
    for place in range(3):
        write(name, tmp_path / str(place), order=place)
    one, *others = (hashes(load(name, tmp_path / str(place))) for place in range(3))
    assert others == [one, one]


@pytest.mark.usefixtures("shuffled_listings")
@pytest.mark.parametrize("name", CLASSES)
def test_splits_do_not_depend_on_the_order_of_listings(tmp_path: Path, name: str) -> None:
    write(name, tmp_path)
    assert len({tuple(hashes(load(name, tmp_path))) for _ in range(5)}) == 1
    orders = {tuple(files) for _ in range(9) for *_, files in os.walk(tmp_path) if len(files) == len(FILES)}
    assert len(orders) > 1  # or nothing was tested


@pytest.mark.parametrize("name", CLASSES)
def test_another_seed_is_another_split_and_the_same_seed_the_same(tmp_path: Path, name: str) -> None:
    write(name, tmp_path)
    assert hashes(load(name, tmp_path, seed=4)) == hashes(load(name, tmp_path, seed=4))
    assert load(name, tmp_path, seed=4).eval.hash != load(name, tmp_path, seed=3).eval.hash


@pytest.mark.parametrize("name", CLASSES)
def test_splits_share_no_image(tmp_path: Path, name: str) -> None:
    write(name, tmp_path)
    found = load(name, tmp_path)
    rows = np.concatenate([split.indices for split in (found.train, found.select, found.eval)])
    assert sorted(rows) == list(range(len(paths(name))))
