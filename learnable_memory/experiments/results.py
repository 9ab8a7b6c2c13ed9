"""Results of an experiment: one JSON object in a line, only ever appended to."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from learnable_memory.method_spec import MethodSpec
from learnable_memory.runlog import jsonable, read_metrics

KEYS = {  # what a row of each kind has to have
    "run": (
        "grid", "labels", "key", "options", *(field.name for field in fields(MethodSpec)), "lr", "seed", "head",
        "data_seed", "parameters", "epoch", "diverged_at", "select", "eval", "eval_right", "eval_hash", "steps",
        "train_seconds", "eval_seconds", "heads_in_pass", "peak_memory_bytes", "combinable", "versions", "machine",
    ),
    "together": ("analysis", "labels", "key", "data_seed", "members", "top1", "alone_top1", "images"),
}  # fmt: skip


class Results:
    """The file of results at `path`, which need not be there yet."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order in which they came. A last line that a killed process has cut short is left out.

        Raises ValueError, with the line's number, if another line is damaged, or if a row lacks something.
        """
        rows = read_metrics(self.path) if self.path.exists() else []
        for number, row in enumerate(rows, start=1):
            _check(row, f"{self.path}, line {number}")
        return rows

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Add rows, on disk when this returns; what is not finite becomes null."""
        lines = "".join(json.dumps(jsonable(row), allow_nan=False) + "\n" for row in rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may each run a part of a card: none must cut off what another is writing.
        with FileLock(self.path.with_name(f".{self.path.name}.lock")), self.path.open("ab+") as file:
            self._drop_cut_line(file)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def _drop_cut_line(self, file: Any) -> None:
        """A line that was cut short would swallow the one behind it."""
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def _check(row: Mapping[str, Any], where: str) -> None:
    kind = row.get("kind")
    if kind not in KEYS:
        raise ValueError(
            f"{where}: kind is {kind!r}, but it has to be one of {', '.join(KEYS)}; mend or remove the line."
        )
    missing = [key for key in KEYS[kind] if key not in row]
    if missing:
        raise ValueError(f"{where}: a row of kind {kind} lacks {', '.join(missing)}; mend or remove the line.")


def pack_right(right: np.ndarray) -> str:
    """Whether each image was answered rightly, bool [images] -> text of a bit an image (base64 of `numpy.packbits`).

    Raises ValueError for anything but one row of booleans.
    """
    right = np.asarray(right)
    if right.ndim != 1 or right.dtype != bool:
        raise ValueError(f"right is {right.dtype} {list(right.shape)}, but it has to be bool [images].")
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack_right(text: str, images: int) -> np.ndarray:
    """What `pack_right` was given, bool [images].

    Raises ValueError if the text is not of so many images.
    """
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except binascii.Error:
        raise ValueError(f"the answers {text[:20]!r}.. are not base64: they were not written by pack_right.") from None
    if len(packed) != -(-images // 8):
        raise ValueError(f"the answers are {len(packed)} bytes, but {images} images take {-(-images // 8)}.")
    return np.unpackbits(packed, count=images).astype(bool)
