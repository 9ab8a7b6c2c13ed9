"""Folders of image files: a folder for each class."""

from pathlib import Path

import numpy as np

from learnable_memory.images import ImageFiles, ImageSet
from learnable_memory.sources.found import Found, Request

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read_folder(request: Request) -> Found:
    """One folder for each class, under the path `request.argument` itself or under its train/, val/ and test/.

    With `train/`: `test/` is the evaluation split and `val/` the selection split; one of them alone is the evaluation
    split. Without: a seeded fifth of each class is held out for evaluation.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no class folders, a class without images, nothing to evaluate on, or classes that differ.
    """
    root = Path(request.argument).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{root} is not a folder; it should hold one folder of images for each class")
    if not subfolders(root / "train"):
        everything, labels = read_class_folders(root)
        return Found(labels, everything, "folder, a fifth held out")
    splits = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if splits == ["train"]:
        raise ValueError(f"folder:{root} has train/ but neither val/ nor test/ to evaluate on")
    sets = {}
    for split in splits:
        sets[split], labels = read_class_folders(root / split)
        if split == "train":
            expected = labels
        elif labels != expected:
            differing = ", ".join(sorted(set(labels) ^ set(expected)))
            raise ValueError(f"the classes in {root / split} and {root / 'train'} differ: {differing}")
    evaluation = sets.pop("test") if "test" in sets else sets.pop("val")
    source = f"folder with {', '.join(splits)}"
    return Found(expected, sets["train"], source, evaluation, sets.get("val"))


def subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_class_folders(root: Path) -> tuple[ImageSet, list[str]]:
    """All images of the class folders under `root`, class by class, files in the order of their names."""
    folders = subfolders(root)
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
