"""Folders of image files: a folder for each class."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from learnable_memory.formats import advice, listed_endings
from learnable_memory.images import ImageSet
from learnable_memory.sources.folder_levels import EVAL, SELECT, TRAIN, check_deepest, check_level, split_folders
from learnable_memory.sources.found import Found, Request
from learnable_memory.sources.image_files import NOTABLE, FoundImages, find_images, image_set, report, subfolders
from learnable_memory.sources.label_files import read_label_files
from learnable_memory.wording import counted, some

logger = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------------------- folder:
def read_folder(request: Request) -> Found:
    """One folder for each class, under the path `request.argument` itself or under the folders of its splits.

    Splits are called train or training, val, valid, validation or dev, test or testing, in any case. With a training
    split the test split is the evaluation split and the validation split the selection split; one of them alone is the
    evaluation split. Without either a seeded fifth of each class is held out for evaluation. A class is a folder with
    all that is below it; with `request.class_folders` "deepest" each folder that has images of its own.

    With `request.label_files` lists say what each image shows: see `label_files.read_label_files`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no class folders, or what is most likely none (see `folder_levels`), a class without images, two
            folders for one split, or classes that differ.
    """
    root = Path(request.argument).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{root} is not a folder; it should hold one folder of images for each class")
    if request.label_files:
        return read_label_files(root, request)
    names = split_folders(root)
    if not subfolders(root / names.get(TRAIN, "train")):
        names = {}
    splits = [names[role] for role in (TRAIN, SELECT, EVAL) if role in names] or [""]
    for split in splits:
        if request.class_folders == "deepest":
            check_deepest(root / split, _classes(root / split, deepest=True))
        else:
            check_level(root / split, subfolders(root / split), merge=request.class_folders == "first")
    (train, *others), labels = read_class_folders(root, splits, request.class_folders)
    if not others:
        return Found(labels, train, "folder, a fifth held out")
    *select, evaluation = others
    return Found(labels, train, f"folder with {', '.join(splits)}", evaluation, *select)


def read_class_folders(
    root: Path, splits: Sequence[str], class_folders: str | None = "first"
) -> tuple[list[ImageSet], list[str]]:
    """The images of `root`/SPLIT/CLASS/ for each split, and the names of the classes, which all splits share.

    Args:
        class_folders: "first": a class is a folder in SPLIT with all that is below it; "deepest": each folder below
            SPLIT that has images of its own. None is "first", and where a class merges folders the log says so.

    Raises:
        ValueError: no class folders, a class without images, or classes that differ from those of the first split.
    """
    deepest = class_folders == "deepest"
    classes = _classes(root / splits[0], deepest)
    image_sets = []
    for split in splits:
        names = _classes(root / split, deepest)
        if not names:
            raise ValueError(
                f"{root / split} has no class folders; it should hold one folder of images for each class"
                + ("" if split == splits[0] else ", or be moved away")
            )
        if names != classes:
            differing = some(sorted(set(names) ^ set(classes)), 10)
            raise ValueError(f"the classes in {root / split} and {root / splits[0]} differ: {differing}")
        labels = label_folders(root, [str(PurePosixPath(split, name)) for name in names], below=not deepest)
        _say_what_lies_beside(root / split, len(labels))
        if class_folders is None:
            _say_merged(root / split, names, labels)
        image_sets.append(image_set(root, labels))
    return image_sets, short_names(classes)


def _classes(folder: Path, deepest: bool) -> list[str]:
    """The folders in `folder`, or else those below it that have images of their own, as POSIX paths."""
    if not deepest:
        return subfolders(folder)
    return sorted({str(PurePosixPath(name).parent) for name in find_images(folder).names} - {"."})


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path; the whole path where two have the same last part."""
    count = Counter(PurePosixPath(path).name for path in paths)
    return [name if count[name := PurePosixPath(path).name] == 1 else path for path in paths]


def _say_what_lies_beside(folder: Path, images: int) -> None:
    """Images beside the folders of `images` others, and system folders there, would be passed over in silence."""
    beside = find_images(folder, below=False)
    report({"": FoundImages([], system=beside.system)})
    if loose := len(beside.names):
        level = logging.WARNING if loose >= NOTABLE * (loose + images) else logging.INFO
        logger.log(level, "%s in %s itself: of no class, not looked at", counted(loose, "image"), folder)


def _say_merged(folder: Path, classes: Sequence[str], labels: Mapping[str, int]) -> None:
    """Folders below a class may be a finer division that is meant, and nobody would notice."""
    inside: list[set[PurePosixPath]] = [set() for _ in classes]
    for image, label in labels.items():
        inside[label].add(PurePosixPath(image).parent)
    merging = {name: len(folders) for name, folders in zip(classes, inside, strict=True) if len(folders) > 1}
    if merging:
        first, count = next(iter(merging.items()))
        logger.info(
            "%s: %s the images of several folders (%s of %d); --class_folders deepest makes each of these a class, "
            "--class_folders first says that they are meant to be merged",
            folder, "1 class merges" if len(merging) == 1 else f"{len(merging):,} classes merge", first, count,
        )  # fmt: skip


# --------------------------------------------------------------------------------------------- for readers of any kind
def label_folders(root: Path, classes: Sequence[str], below: bool = True) -> dict[str, int]:
    """The images in and below the folders `classes`, each with the place of its folder; others are counted in the log.

    Args:
        classes: POSIX paths relative to `root`, as are the images returned.
        below: False: only the images in the folders themselves.

    Raises:
        ValueError: a class without images, or an image that lies in two classes.
    """
    labels: dict[str, int] = {}
    found = {name: find_images(root / name, below) for name in classes if (root / name).is_dir()}
    report(found)
    for label, folder in enumerate(classes):
        if folder not in found or not found[folder].names:
            other = advice(set(found[folder].others)) if folder in found else ""
            raise ValueError(f"{root / folder} has no images (looked for {listed_endings()}{other})")
        for image in found[folder].names:
            name = f"{folder}/{image}"
            if name in labels:
                raise ValueError(f"{root / name} lies in two classes, {classes[labels[name]]} and {folder}; keep one")
            labels[name] = label
    return labels
