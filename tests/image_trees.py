"""Tiny data sets of image files, in the exact layout of the real ones."""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from learnable_memory.data import ImageSet


def jpeg(brightness: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), brightness).save(file, "JPEG")
    return file.getvalue()


def write_images(root: Path, names: Iterable[str]) -> None:
    """A small JPEG for each name, the first the darkest."""
    for brightness, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(brightness))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def pack(archive: Path, members: Mapping[str, Path]) -> str:
    """Put files and folders into an archive, under these names; returns its md5."""
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as file:
        for name, path in members.items():
            file.add(path, name)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return hashlib.md5(archive.read_bytes()).hexdigest()


def names_of(images: ImageSet, root: Path) -> list[str]:
    """The images of a split as paths below `root`, in order."""
    return [Path(images.describe(index)).relative_to(root).as_posix() for index in range(len(images))]


def labelled(images: ImageSet, root: Path) -> list[tuple[str, int]]:
    return list(zip(names_of(images, root), images.labels.tolist(), strict=True))
