"""Images as they are named on a command line: files, folders, and patterns that the shell has left alone."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learnable_memory.images import ImageFiles, ImageSet
from learnable_memory.sources.folders import IMAGE_SUFFIXES, find_images

ENDINGS = ", ".join(sorted(IMAGE_SUFFIXES))


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
        images = [Path(name, image).as_posix() for image in find_images(Path(name))]
        if not images:
            raise ValueError(f"the folder {name} has no images in or below it (looked for {ENDINGS})")
        return images
    if os.path.exists(name):
        if not _is_image(name):
            raise ValueError(f"{name} is no image file: it has to end in one of {ENDINGS}")
        return [Path(name).as_posix()]
    if not glob.has_magic(name):
        raise FileNotFoundError(f"there is no image file or folder {name}")
    images = sorted(Path(path).as_posix() for path in glob.iglob(name, recursive=True) if _is_image(path))
    if not images:
        raise FileNotFoundError(f"no image matches the pattern {name!r} (looked for {ENDINGS})")
    return images


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES and not os.path.isdir(path)
