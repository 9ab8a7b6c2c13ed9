"""Labelled images, wherever they are kept, and how a part of them is held out."""

import errno
import hashlib
import io
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from learnable_memory.contents import contents_of
from learnable_memory.decoding import reduce_decoding
from learnable_memory.formats import image_endings

# The end of errors about an image that is broken.
OR_SKIP = ", or train and predict without such images: --on_bad_image skip"


class Images(Protocol):
    """A row of images that are decoded one at a time; picklable, so that loader processes can be started anywhere."""

    def __len__(self) -> int: ...

    def identity(self, row: int) -> str:
        """What tells this image from the others on every machine: its file's name, or its place in a fixed list."""

    def stamp(self, row: int) -> bytes:
        """Changes when the image's pixels do; cheaper than reading files."""

    def contents(self, row: int) -> bytes:
        """The bytes of its file, or the pixels of a small image. Raises OSError if there is no file."""

    def describe(self, row: int) -> str:
        """What to call this image in an error."""

    def read(self, row: int, side: int = 0) -> Image.Image:
        """The decoded image, a JPEG at a scale that keeps `side` pixels; any exception means that it is broken."""


class ArrayImages:
    """Images in memory: uint8 [n, H, W] (grey) or [n, H, W, 3] (RGB)."""

    def __init__(self, pixels: np.ndarray, name: str) -> None:
        self.pixels, self.name = pixels, name

    def __len__(self) -> int:
        return len(self.pixels)

    def contents(self, row: int) -> bytes:
        return self.pixels[row].tobytes()

    stamp = contents

    def identity(self, row: int) -> str:
        return str(row)

    def describe(self, row: int) -> str:
        return f"row {row} of {self.name}"

    def read(self, row: int, side: int = 0) -> Image.Image:
        return Image.fromarray(self.pixels[row])


class EncodedImages:
    """Image files in memory, as a pyarrow column of bytes: what parquet holds, decoded when asked for."""

    def __init__(self, column: Any, name: str) -> None:
        self.column, self.name = column, name

    def __len__(self) -> int:
        return len(self.column)

    def stamp(self, row: int) -> bytes:
        return self.column[row].as_py()

    def contents(self, row: int) -> bytes:
        # Small images: CIFAR is the same data in torchvision's files, which are pixels, and in the hub's.
        try:
            return np.asarray(self.read(row)).tobytes()
        except Exception:  # of PIL's decoders: it is broken, and a change all the same when it is mended
            return self.column[row].as_py() or b""

    def identity(self, row: int) -> str:
        return str(row)

    def describe(self, row: int) -> str:
        return f"row {row} of {self.name}"

    def read(self, row: int, side: int = 0) -> Image.Image:
        return _decode(io.BytesIO(self.column[row].as_py()), side)


class TableImages:
    """A column of images in a `datasets.Dataset`, which stays on disk: each is encoded bytes, or the path of a file.

    Args:
        table: of which only `column` is looked at; structs of bytes and path, bytes alone, or paths; not decoded.
        name: what to call the table in errors.
        root: the folder that the table came from, which paths are relative to; None: there is none.
    """

    def __init__(self, table: Any, column: str, name: str, root: Path | None = None) -> None:
        self.table, self.column, self.name, self.root = table.select_columns([column]), column, name, root
        self.version = table._fingerprint  # of the files that it was made from

    def __len__(self) -> int:
        return len(self.table)

    def stamp(self, row: int) -> bytes:
        stored = self._stored(row) if row in self.paths else None
        return _stamp(stored) if isinstance(stored, Path) else f"{self.version} {row}".encode()

    @cached_property
    def _sizes(self) -> np.ndarray:
        """int64 [rows]: bytes of each image, 0 where there is only a path."""
        import pyarrow as pa
        import pyarrow.compute as pc

        stored = self.table.data.column(self.column)
        if pa.types.is_struct(stored.type):
            stored = pc.struct_field(stored, "bytes")
        return pc.fill_null(pc.binary_length(stored.cast(pa.large_binary())), 0).to_numpy()

    @cached_property
    def paths(self) -> dict[int, str]:
        """The rows that hold a path and no bytes: the path relative to the folder of the data, wherever that lies."""
        import pyarrow as pa
        import pyarrow.compute as pc

        stored = self.table.data.column(self.column)
        if pa.types.is_struct(stored.type):
            paths, without_bytes = pc.struct_field(stored, "path"), pc.is_null(pc.struct_field(stored, "bytes"))
            rows = np.flatnonzero(pc.and_(without_bytes, pc.is_valid(paths)).to_numpy())
        elif pa.types.is_string(stored.type) or pa.types.is_large_string(stored.type):
            paths, rows = stored, np.flatnonzero(pc.is_valid(stored).to_numpy())
        else:
            return {}
        found = dict(zip(rows.tolist(), paths.take(pa.array(rows)).to_pylist(), strict=True))
        whole = {row: os.path.normpath(Path(self.root or "", path)) for row, path in found.items()}
        root = str(self.root)
        if self.root is None or not all(Path(path).is_relative_to(root) for path in whole.values()):
            # The library unpacks archives of the hub somewhere in its cache.
            root = os.path.commonpath([os.path.dirname(path) for path in whole.values()]) if whole else ""
        return {row: Path(os.path.relpath(path, root)).as_posix() for row, path in whole.items()}

    def identity(self, row: int) -> str:
        # A row number alone would stay when the rows of a table change places.
        return self.paths[row] if row in self.paths else f"{row}, {self._sizes[row]} bytes"

    def describe(self, row: int) -> str:
        return f"row {row} of {self.name}"

    def _stored(self, row: int) -> bytes | Path:
        stored = self.table[row][self.column]
        if isinstance(stored, dict):
            stored = stored["bytes"] if stored["bytes"] is not None else stored["path"]
        if stored is None:
            return b""
        return Path(self.root or "", stored) if isinstance(stored, str) else stored

    def contents(self, row: int) -> bytes:
        stored = self._stored(row)
        return stored.read_bytes() if isinstance(stored, Path) else stored

    def read(self, row: int, side: int = 0) -> Image.Image:
        stored = self._stored(row)
        return _decode_file(stored, side) if isinstance(stored, Path) else _decode(io.BytesIO(stored), side)


class ImageFiles:
    """Images on disk, under a root that may lie elsewhere on another machine.

    Args:
        root: the folder that all of them lie in.
        names: POSIX paths relative to it.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        # One block of bytes: millions of small objects would be copied into each worker as it touches them.
        self.root, self._names = root, np.array([os.fsencode(name) for name in names], dtype=bytes)

    def __len__(self) -> int:
        return len(self._names)

    def path(self, row: int) -> Path:
        """Where an image lies on this machine."""
        return self.root / self.identity(row)

    def stamp(self, row: int) -> bytes:
        return _stamp(self.path(row))

    def contents(self, row: int) -> bytes:
        return self.path(row).read_bytes()

    def identity(self, row: int) -> str:
        return os.fsdecode(self._names[row])

    def describe(self, row: int) -> str:
        return str(self.path(row))

    def read(self, row: int, side: int = 0) -> Image.Image:
        return _decode_file(self.path(row), side)


def is_of_the_machine(error: BaseException | None) -> bool:
    """Whether what went wrong in reading an image is no fault of the image: a missing file, a failing disk.

    PIL's own OSErrors have no number; EINVAL comes of offsets in a damaged file that lead nowhere. A MemoryError is the
    image's: PIL raises it for headers that claim too much, before it has allocated anything.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _stamp(path: Path) -> bytes:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _decode(encoded: BinaryIO, side: int) -> Image.Image:
    """PIL opens lazily: only `load` finds a truncated file.

    Never given a path: PIL maps some uncompressed files then, and forgets how they are turned.
    """
    image_endings()  # makes plug-ins known: a loader process has not looked for files
    with Image.open(encoded) as image:
        reduce_decoding(image, side)
        image.load()
        return image


def _decode_file(path: Path, side: int) -> Image.Image:
    with path.open("rb") as file:
        return _decode(file, side)


class ImageSet(Dataset):
    """One split: images with a label each. `image_set[i]` is (PIL image, label).

    Args:
        images: where the images are.
        labels: int64 [rows], the class of each row of `images`.
        indices: int64 [n], the rows that belong to this split, in order; all of them if left out.

    Raises:
        ValueError: not one label for each image.
    """

    def __init__(self, images: Images, labels: np.ndarray, indices: np.ndarray | None = None) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        self.images = images
        self._all_labels = np.asarray(labels, dtype=np.int64)
        self.indices = np.arange(len(labels)) if indices is None else np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), self.label(index)

    def label(self, index: int) -> int:
        """The class of an image."""
        return int(self._all_labels[self.indices[index]])

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]"""
        return self._all_labels[self.indices]

    @cached_property  # asked for once by each head of a grid, and a split may have millions of images
    def hash(self) -> str:
        """16 hex characters over which images belong to the split, in which order, and their labels."""
        digest = hashlib.sha256()
        for row, label in zip(self.indices, self.labels, strict=True):
            digest.update(f"{self.images.identity(int(row))}\0{label}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def record(self, contents: bool = False) -> dict[str, Any]:
        """What tells this split from another, JSON-able: how many images, and their hash.

        Args:
            contents: also their size in bytes, and a digest of all that is in them (see `contents.contents_of`).
        """
        return {"images": len(self), "hash": self.hash, **(self._contents if contents else {})}

    @cached_property  # each image is read
    def _contents(self) -> dict[str, Any]:
        return contents_of(self)

    @property
    def content_hash(self) -> str:
        """16 hex characters that also change when an image does (a file: its size or time of change)."""
        digest = hashlib.sha256(self.hash.encode())
        for row in self.indices:
            digest.update(hashlib.sha256(self.images.stamp(int(row))).digest())
        return digest.hexdigest()[:16]

    def image(self, index: int, side: int = 0) -> Image.Image:
        """The image as it is stored, in whatever mode.

        Args:
            side: decode a JPEG at the smallest scale that keeps so many pixels of both sides; 0: whole.

        Raises:
            ValueError: it cannot be decoded; the message names the file, or the row.
        """
        row = int(self.indices[index])
        try:
            return self.images.read(row, side)
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"the image {self.images.describe(row)} is too large to be decoded ({error}): the limit is twice "
                f"PIL's Image.MAX_IMAGE_PIXELS; make it smaller or remove it{OR_SKIP}"
            ) from error
        except Exception as error:  # PIL's decoders raise anything from SyntaxError to struct.error
            raise ValueError(
                f"cannot read the image {self.images.describe(row)} ({type(error).__name__}: {error}); "
                f"repair it or remove it{'' if is_of_the_machine(error) else OR_SKIP}"
            ) from error

    def identity(self, index: int) -> str:
        """What an image is called on every machine: its file relative to the data set's folder, or its row."""
        return self.images.identity(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """The file of an image, or its row: what to call it in an error."""
        return self.images.describe(int(self.indices[index]))

    def subset(self, indices: np.ndarray | Sequence[int]) -> "ImageSet":
        """The images at these positions of this set, in this order; nothing is copied."""
        return ImageSet(self.images, self._all_labels, self.indices[np.asarray(indices, dtype=np.int64)])

    def relabel(self, classes: Sequence[int]) -> "ImageSet":
        """The images of these classes only; the class `classes[k]` becomes k."""
        new_labels = np.full(max(self._all_labels.max(initial=0), *classes) + 1, -1)
        new_labels[list(classes)] = np.arange(len(classes))
        kept = np.flatnonzero(new_labels[self.labels] >= 0)
        return ImageSet(self.images, new_labels[self._all_labels], self.indices[kept])


def split_off(image_set: ImageSet, fraction: float, seed: int, way_out: str | None = None) -> tuple[ImageSet, ImageSet]:
    """Hold out a fraction of each class, at least one image of it and never the last; the same for the same seed.

    Args:
        fraction: between 0 and 1.
        seed: 0 to 2**32 - 1.
        way_out: what else than adding images an error is to advise.

    Returns:
        The rest and the held-out part, both in the order of `image_set`.

    Raises:
        ValueError: a seed out of range, or no class has two images.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"the split seed is {seed}; legal: 0 to 2**32 - 1")
    labels = image_set.labels
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        # RandomState, because its stream is promised never to change (NEP 19); a split must outlive NumPy's versions.
        held_out[np.random.RandomState([seed, label]).permutation(members)[:count]] = True
    if not held_out.any():
        raise ValueError(
            f"cannot hold out {fraction:.0%} of {len(labels)} images: no class has two images left; add images"
            + (f", or {way_out}" if way_out else "")
        )
    return image_set.subset(np.flatnonzero(~held_out)), image_set.subset(np.flatnonzero(held_out))
