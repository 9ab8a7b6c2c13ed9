"""Folders of image files: a folder for each class."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from learnable_memory.images import ImageFiles, ImageSet
from learnable_memory.sources.found import Found, Request
from learnable_memory.wording import some

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"}
IMAGE_SUFFIXES |= {".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VALIDATION_FOLDERS = ("val", "valid", "validation")


# ------------------------------------------------------------------------------------------------------------- folder:
def read_folder(request: Request) -> Found:
    """One folder for each class, under the path `request.argument` itself or under its train/, val/ and test/.

    With `train/`: `test/` is the evaluation split and `val/` (or `valid/`, `validation/`) the selection split; one of
    them alone is the evaluation split. Without: a seeded fifth of each class is held out for evaluation.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no class folders, a class without images, nothing to evaluate on, two validation folders, or
            classes that differ.
    """
    root = Path(request.argument).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{root} is not a folder; it should hold one folder of images for each class")
    if not subfolders(root / "train"):
        (everything,), labels = read_class_folders(root, [""])
        return Found(labels, everything, "folder, a fifth held out")
    validation = [name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
    if len(validation) > 1:
        raise ValueError(f"folder:{root} has {'/ and '.join(validation)}/, which mean the same; keep one of them")
    splits = ["train", *validation, *(["test"] if (root / "test").is_dir() else [])]
    if splits == ["train"]:
        raise ValueError(f"folder:{root} has train/ but neither val/ nor test/ to evaluate on")
    (train, *select, evaluation), labels = read_class_folders(root, splits)
    return Found(labels, train, f"folder with {', '.join(splits)}", evaluation, *select)


def read_class_folders(root: Path, splits: Sequence[str]) -> tuple[list[ImageSet], list[str]]:
    """The images of `root`/SPLIT/CLASS/ for each split, and the names of the classes, which all splits share.

    Raises:
        ValueError: no class folders, a class without images, or classes that differ from those of the first split.
    """
    labels = subfolders(root / splits[0])
    image_sets = []
    for split in splits:
        names = subfolders(root / split)
        if not names:
            raise ValueError(f"{root / split} has no class folders; it should hold one folder of images for each class")
        if names != labels:
            differing = some(sorted(set(names) ^ set(labels)), 10)
            raise ValueError(f"the classes in {root / split} and {root / splits[0]} differ: {differing}")
        image_sets.append(image_set(root, label_folders(root, [str(PurePosixPath(split, name)) for name in names])))
    return image_sets, labels


# --------------------------------------------------------------------------------------------- for readers of any kind
def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, in code-point order, hidden ones left out; none if there is no `folder`."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def find_images(folder: Path) -> list[str]:
    """The image files below `folder`: POSIX paths relative to it, in code-point order.

    Links to folders are followed. Hidden files and folders are left out: macOS keeps a "._x.jpg" beside "x.jpg" in
    its archives, which is no image.

    Raises:
        ValueError: a link leads back to a folder that it lies in.
        OSError: a folder cannot be read.
    """
    names: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            link = Path(parent, name)
            if link.is_symlink() and Path(parent).resolve().is_relative_to(link.resolve()):
                raise ValueError(f"{link} links to a folder that it lies in; remove the link")
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        names += [prefix + name for name in files if _is_image(name)]
    return sorted(names)


def _fail(error: OSError) -> None:
    raise error


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def label_folders(root: Path, classes: Sequence[str]) -> dict[str, int]:
    """The images below the folders `classes`, each with the place of its folder in `classes`.

    Args:
        classes: POSIX paths relative to `root`, as are the images returned.

    Raises:
        ValueError: a class without images, or an image that lies in two classes.
    """
    labels: dict[str, int] = {}
    for label, folder in enumerate(classes):
        images = find_images(root / folder) if (root / folder).is_dir() else []
        if not images:
            raise ValueError(f"{root / folder} has no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
        for image in images:
            name = f"{folder}/{image}"
            if name in labels:
                raise ValueError(f"{root / name} lies in two classes, {classes[labels[name]]} and {folder}; keep one")
            labels[name] = label
    return labels


def image_set(root: Path, labels: Mapping[str, int]) -> ImageSet:
    """The images with these POSIX paths relative to `root`, ordered by path, so that no listing or list decides."""
    names = sorted(labels)
    return ImageSet(ImageFiles(root, names), np.array([labels[name] for name in names]))
