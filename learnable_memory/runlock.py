"""One run at a time in a folder: a second one of the same name would destroy both."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

LOCK = "lock.json"


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder within the block; it is made if it is missing, and removed again if it stays empty.

    `lock.json` in it says which process holds it. That of a process of this machine which is gone is taken over.

    Raises FileExistsError at once, before anything is changed, if another process holds it.
    """
    path, made = folder / LOCK, [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _take(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # it holds something, as it should
            for each in made:
                each.rmdir()


def _take(path: Path) -> None:
    """Write that this process holds it. Two that come at the same time are let in one after the other."""
    while True:
        with path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file.fileno()):
                continue  # its owner has just removed it
            file.seek(0)
            holder = _parsed(file.read())
            if holder is not None and _is_alive(holder):
                raise FileExistsError(_refusal(holder, path))
            file.truncate(0)
            file.write(json.dumps(_identity(os.getpid())))
            return


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _parsed(text: str) -> dict[str, Any] | None:
    """Who holds it; None for what no run has written, such as half a line of one that was killed."""
    try:
        holder = json.loads(text)
        return holder if holder.keys() == _identity(os.getpid()).keys() else None
    except (ValueError, AttributeError):
        return None


def _identity(process: int) -> dict[str, Any]:
    # Numbers of processes come round again: the time when it started tells whether it is the same.
    return {"host": socket.gethostname(), "process": process, "started": psutil.Process(process).create_time()}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Of a process on another machine nobody can tell: it counts as alive."""
    if holder["host"] != socket.gethostname():
        return True
    try:
        return abs(_identity(holder["process"])["started"] - holder["started"]) < 1
    except (psutil.Error, TypeError, ValueError):
        return False


def _refusal(holder: dict[str, Any], path: Path) -> str:
    here = holder["host"] == socket.gethostname()
    where = "" if here else f" on {holder['host']}"
    gone = "" if here else f"; if that one is gone, remove {path}"
    return (
        f"another run of this name is under way, process {holder['process']}{where}: wait for it, or choose another "
        f"--name or --output{gone}."
    )
