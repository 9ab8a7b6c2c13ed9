"""Image files below a folder, and what lies beside them: counted, so that nothing is passed over in silence."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from learnable_memory.formats import advice, ending_of, image_endings
from learnable_memory.images import ImageFiles, ImageSet
from learnable_memory.wording import counted, some

logger = logging.getLogger(__name__)

# What systems and network disks leave in folders: thumbnails, bins, the second halves of macOS's files.
SYSTEM = frozenset(
    name.lower()
    for name in (
        "@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot", "$RECYCLE.BIN",
        "System Volume Information", "__MACOSX", "lost+found", "Thumbs.db", "ehthumbs.db", "desktop.ini",
    )
)  # fmt: skip
NOTABLE = 0.1  # share of a folder's files; from there on it is a warning
SHOWN = 5  # folders that have a line each


def is_system(name: str) -> bool:
    """Whether a file or folder is the system's and not its owner's, or hidden."""
    return name.startswith(".") or name.lower() in SYSTEM


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, in code-point order, without the system's; none if there is no `folder`."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_system(path.name))


def has_images(folder: Path) -> bool:
    """Whether an image lies in `folder` itself."""
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) and not entry.is_dir() for entry in entries)


def is_image(name: str) -> bool:
    """Whether a file of this name is an image of the owner's."""
    return not is_system(name) and ending_of(name) in image_endings()


@dataclass(frozen=True)
class FoundImages:
    """What lies below a folder.

    Attributes:
        names: the image files, as POSIX paths relative to the folder, in code-point order.
        others: how many files are no images, by their ending; "no ending" for those without.
        system: how many files and folders of the system were skipped, by their name; "hidden" with a dot before it.
    """

    names: list[str]
    others: Counter[str] = field(default_factory=Counter)
    system: Counter[str] = field(default_factory=Counter)


def find_images(folder: Path, below: bool = True) -> FoundImages:
    """The image files in and below `folder`. Links to folders are followed; what `is_system` says is not looked into.

    Args:
        below: False: those in the folder itself.

    Raises:
        ValueError: a link leads back to a folder that it lies in.
        OSError: a folder cannot be read.
    """
    found = FoundImages([])
    for parent, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        found.system.update(_called(name) for name in (*folders, *files) if is_system(name))
        folders[:] = [name for name in folders if below and not is_system(name)]
        for name in folders:
            link = Path(parent, name)
            if link.is_symlink() and Path(parent).resolve().is_relative_to(link.resolve()):
                raise ValueError(f"{link} links to a folder that it lies in; remove the link")
        relative = Path(parent).relative_to(folder).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        found.names.extend(prefix + name for name in files if is_image(name))
        found.others.update(
            ending_of(name) or "no ending" for name in files if not is_image(name) and not is_system(name)
        )
    found.names.sort()
    return found


def _fail(error: OSError) -> None:
    raise error


def _called(name: str) -> str:
    return "hidden" if name.startswith(".") else name


def report(folders: Mapping[str, FoundImages]) -> None:
    """Say in the log what was passed over, by what each folder is called; as a warning where it is a notable share."""
    passed_over = {name: found for name, found in folders.items() if found.others}
    many = sorted(passed_over, key=lambda name: -passed_over[name].others.total())
    for name in many[:SHOWN]:
        found = passed_over[name]
        _log([found], "%s: %s", name, _not_looked_at(found.others))
    if rest := [passed_over[name] for name in many[SHOWN:]]:
        others = sum((found.others for found in rest), Counter())
        _log(rest, "and in %s: %s", counted(len(rest), "folder"), _not_looked_at(others))
    system = sum((found.system for found in folders.values()), Counter())
    if system:
        logger.info("skipped what is the system's: %s", _in_words(system))


def _log(found: list[FoundImages], message: str, *values: str) -> None:
    others, images = (sum(counts) for counts in zip(*((f.others.total(), len(f.names)) for f in found), strict=True))
    logger.log(logging.WARNING if others >= NOTABLE * (others + images) else logging.INFO, message, *values)


def _not_looked_at(others: Counter[str]) -> str:
    return f"{counted(others.total(), 'file')} not looked at ({_in_words(others)}{advice(set(others))})"


def _in_words(counts: Counter[str]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0].lower()))
    return some([f"{name} {count:,}" for name, count in ordered], 5)


def image_set(root: Path, labels: Mapping[str, int]) -> ImageSet:
    """The images with these POSIX paths relative to `root`, ordered by path, so that no listing or list decides."""
    names = sorted(labels)
    return ImageSet(ImageFiles(root, names), np.array([labels[name] for name in names]))
