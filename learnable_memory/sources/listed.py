"""Splits that are published as lists of image files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from learnable_memory.images import ImageSet
from learnable_memory.sources.found import naming
from learnable_memory.sources.image_files import image_set


def read_columns(path: Path, *kinds: type) -> tuple[list[Any], ...]:
    """A text file of columns, blank lines left out: `names, numbers = read_columns(path, str, int)`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line with other columns than these; the message names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; put it there")
    columns: tuple[list[Any], ...] = tuple([] for _ in kinds)
    with naming(path), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not (fields := line.split()):
                continue
            try:
                for column, kind, field in zip(columns, kinds, fields, strict=True):
                    column.append(kind(field))
            except ValueError:
                expected = " ".join("NUMBER" if kind is int else "TEXT" for kind in kinds)
                raise ValueError(f"line {number} is {line.strip()[:80]!r}; expected {expected}") from None
    return columns


def check_numbering(path: Path, numbers: Sequence[int], first: int) -> range:
    """The numbers of the classes that a file lists, first, first + 1, ..

    Raises:
        ValueError: there are none, or others, or in another order.
    """
    if not numbers:
        raise ValueError(f"{path} lists no classes; replace it")
    expected = range(first, first + len(numbers))
    for number, right in zip(numbers, expected, strict=True):
        if number != right:
            raise ValueError(f"{path} has class {number} where class {right} should be; its classes go {first}, ..")
    return expected


def label_listed(source: object, names: Sequence[str], numbers: Sequence[int], classes: range) -> dict[str, int]:
    """The images `names` of a list, each with its class number made to count from 0.

    Args:
        source: what to call the list in an error; most often its path.
        classes: the legal numbers.

    Raises:
        ValueError: no images, one listed twice, or a class number that is not legal.
    """
    labels = dict(zip(names, numbers, strict=True))
    if not labels:
        raise ValueError(f"{source} lists no images; replace it")
    if len(labels) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{source} lists {twice} twice; remove one of the two")
    for name, number in labels.items():
        if number not in classes:
            raise ValueError(f"{source} gives {name} the class {number}; legal: {classes[0]} to {classes[-1]}")
    return {name: number - classes[0] for name, number in labels.items()}


def label_from_folders(path: Path, names: Sequence[str], root: Path, labels: Mapping[str, int]) -> dict[str, int]:
    """The images `names` that the list `path` holds, with the labels that the folders below `root` give them.

    Raises:
        FileNotFoundError: an image that is not there.
        ValueError: no images, or one listed twice.
    """
    for name in names:
        if name not in labels:
            raise FileNotFoundError(f"{path} lists {name}, which is not in {root}; put it there")
    return label_listed(path, names, [labels[name] for name in names], range(max(labels.values()) + 1))


def split_sets(root: Path, splits: Mapping[Any, Mapping[str, int]]) -> list[ImageSet]:
    """The splits as image sets.

    Args:
        splits: the labelled images of each split, under what to call its list in an error.

    Raises:
        ValueError: an image is in two splits.
    """
    for one, two in combinations(splits, 2):
        if common := splits[one].keys() & splits[two].keys():
            raise ValueError(f"{min(common)} is in {one} and in {two}; an image belongs to one split")
    return [image_set(root, labels) for labels in splits.values()]


def require_images(root: Path, splits: Mapping[Any, Mapping[str, int]]) -> None:
    """Lists and images may come from different places: what does not fit is found now, not after hours of training.

    Args:
        splits: as for `split_sets`.

    Raises:
        FileNotFoundError: images of a list are not in `root`.
    """
    for source, labels in splits.items():
        missing = [name for name in labels if not (root / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{source} lists {len(missing)} images that are not in {root}, such as {min(missing)}; put them there"
            )


def require_lists(name: str, lists: Sequence[Path], origin: str) -> None:
    """The lists of an official split cannot be done without.

    Args:
        origin: where they are published.

    Raises:
        FileNotFoundError: one is missing; the line says which, and where to put it.
    """
    for path in lists:
        if not path.is_file():
            raise FileNotFoundError(
                f"{name}: --split official needs {path} (from {origin}); put it there, or take --split seeded, "
                "which needs no lists"
            )
