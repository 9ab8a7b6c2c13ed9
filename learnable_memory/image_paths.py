"""Images as they are named on a command line: files, folders, and patterns that the shell has left alone."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learnable_memory.formats import advice, ending_of, image_endings, listed_endings
from learnable_memory.images import ImageFiles, ImageSet
from learnable_memory.sources.image_files import SYSTEM, FoundImages, find_images, report


def named_images(names: Sequence[str | os.PathLike]) -> ImageSet:
    """The images that `names` stand for, each once, in that order; their label, which nobody knows, is 0.

    Args:
        names: image files; folders, for all images in and below them, by path; patterns of `glob` (`**` for any number
            of folders), for the image files that match, by path. What exists is never read as a pattern.

    Raises:
        FileNotFoundError: a name is no file or folder, a pattern matches no image.
        ValueError: a file is no image by its ending, a folder has no images.
    """
    found = dict.fromkeys(path for name in names for path in _paths(os.path.expanduser(name)))
    return ImageSet(ImageFiles(Path(), list(found)), np.zeros(len(found), dtype=np.int64))


def _paths(name: str) -> list[str]:
    if os.path.isdir(name):
        found = find_images(Path(name))
        report({name: found})
        if not found.names:
            raise ValueError(
                f"the folder {name} has no images in or below it (looked for {listed_endings()}"
                f"{advice(set(found.others))})"
            )
        return [Path(name, image).as_posix() for image in found.names]
    if os.path.exists(name):
        if not _is_image(name):
            raise ValueError(
                f"{name} is no image file: it has to end in one of {listed_endings()}{advice({ending_of(name)})}"
            )
        return [Path(name).as_posix()]
    if not glob.has_magic(name):
        raise FileNotFoundError(f"there is no image file or folder {name}")
    return _matching(name)


def _matching(pattern: str) -> list[str]:
    """The images that match, without those in folders of the system that the pattern does not name."""
    files = [path for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path)]
    # What begins with a dot only matches where the pattern has that dot.
    foreign = {part for path in files for part in Path(path).parts if part.lower() in SYSTEM} - {*Path(pattern).parts}
    kept = [path for path in files if foreign.isdisjoint(Path(path).parts)]
    images = sorted(Path(path).as_posix() for path in kept if _is_image(path))
    others = Counter(ending_of(path) or "no ending" for path in kept if not _is_image(path))
    report({pattern: FoundImages(images, others, Counter(dict.fromkeys(foreign, 1)))})
    if not images:
        raise FileNotFoundError(
            f"no image matches the pattern {pattern!r} (looked for {listed_endings()}{advice(set(others))})"
        )
    return images


def _is_image(path: str) -> bool:
    return ending_of(path) in image_endings() and not os.path.isdir(path)
