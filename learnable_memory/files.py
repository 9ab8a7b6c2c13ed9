"""Files that are whole or not there: written beside their place, then renamed. Standard library only."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give the path of a new file beside `path`, and put it in `path`'s place only when the block ends well.

    Whatever happens, a full disk or a killed process, `path` holds what it held before or all of the new file.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".unfinished")
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)  # mkstemp makes files that only their owner can read; these are there to be shared
        os.umask(umask)
        unfinished.chmod(0o666 & ~umask)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
