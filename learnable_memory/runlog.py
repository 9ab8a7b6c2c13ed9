"""The record of a run: metrics as JSON lines, and the options, versions and commit that led to them.

A run folder holds

    metrics.jsonl    one JSON object a line, flushed as the run goes: {"time": ..., "step": ..., "val/top1": ...}
    options.json     the resolved options, the seed, versions, the commit and the machine's platform

Accuracies are in [0, 1], times are seconds. JSON has no NaN and no infinity: both are written as null, so that a
diverged loss stays visible as a row, and every line can be read by any JSON reader. Standard library only.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import learnable_memory
from learnable_memory.files import replacing

RECORDED_PACKAGES = (
    "torch", "torchvision", "transformers", "accelerate", "safetensors", "numpy", "peft", "timm",
)  # fmt: skip


class RunLog:
    """Writes one run's folder.

    Args:
        folder: made if it is missing.
        overwrite: start anew where a folder holds an earlier run.
        resume_at: go on with the metrics of an earlier run after so many bytes (`position` of then); rows behind them
            are cut off, since the resumed run writes them again.
        mirror: gets each row's values and its step too, such as `accelerator.log`.

    Raises:
        FileExistsError: the folder holds an earlier run, and it is neither overwritten nor resumed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        overwrite: bool = False,
        resume_at: int | None = None,
        mirror: Callable[[dict[str, Any], int], Any] | None = None,
    ) -> None:
        self.folder, self.mirror = Path(folder), mirror
        self.metrics_path = self.folder / "metrics.jsonl"
        self.options_path = self.folder / "options.json"
        if not overwrite and resume_at is None and self.metrics_path.exists():
            raise FileExistsError(
                f"{self.folder} holds an earlier run: choose another folder or name, or replace it with --overwrite."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.metrics_path.open("wb" if resume_at is None else "ab")
        if resume_at is not None:
            self._file.truncate(min(resume_at, self._file.tell()))

    @property
    def position(self) -> int:
        """Bytes of metrics so far."""
        return self._file.seek(0, os.SEEK_END)

    def metrics(self, values: Mapping[str, Any], *, step: int, epoch: int | None = None) -> None:
        """Append one line: `time` (Unix, seconds), `step`, `epoch` if given, and the values.

        Values are numbers, strings, booleans or None; scalars of numpy and torch are converted.
        """
        position = {"step": step} if epoch is None else {"step": step, "epoch": epoch}
        row = {"time": round(time.time(), 3)} | position | dict(values)
        # One write a line: a process killed here leaves at most the last line cut, which read_metrics knows.
        self._file.write((json.dumps(jsonable(row), allow_nan=False) + "\n").encode())
        self._file.flush()
        if self.mirror is not None:
            self.mirror({key: value for key, value in row.items() if key not in ("time", "step")}, step)

    def options(self, options: Mapping[str, Any], places: Mapping[str, str] | None = None) -> None:
        """Write options.json: the resolved options, and what else is needed to repeat the run.

        Args:
            places: where base and data are on this machine, which is not in the files that leave it.
        """
        record = {
            "options": dict(options),
            "places": dict(places or {}),
            "seed": options.get("seed"),
            "versions": versions(),
            "commit": git_commit(),
            "platform": platform.platform(),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        write_json(self.options_path, record)

    def close(self) -> None:
        """Close the metrics file; nothing can be written afterwards."""
        self._file.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics file, null as None. A last line that was cut off by a killed process is left out.

    Raises:
        ValueError: any other line is not a JSON object.
        FileNotFoundError: there is no such file.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    # Every whole line ends in a newline, so what follows the last one is empty or cut.
    return [_parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], start=1)]


def _parse_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}): {line[:60]!r}. Mend or remove the line.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not a JSON object: {line[:60]!r}. Mend or remove the line.")
    return row


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all: beside its place first, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n"
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def jsonable(value: Any) -> Any:
    """`value` as plain JSON types: paths as strings, tuples as lists, numpy and torch scalars as numbers, NaN as None.

    Raises:
        TypeError: a value is nothing that JSON can hold.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0:  # a scalar of numpy or torch, neither of which is imported here
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON: convert it to a number or text.")


_version = functools.cache(metadata.version)  # which reads a file each time


def versions() -> dict[str, str]:
    """The versions that results depend on; "not installed" where a package is missing."""
    found = {"python": platform.python_version(), "learnable_memory": learnable_memory.__version__}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = _version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit(root: str | os.PathLike | None = None) -> str | None:
    """The commit of the checkout at `root` (default: this project's), with `-dirty` behind it if files were changed.

    None where there is no checkout, no commit or no git. Only `root` itself is asked, not the folders above it: an
    installed package may lie inside somebody else's repository.
    """
    root = Path(root) if root is not None else Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
