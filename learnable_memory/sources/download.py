"""Fetching data sets: only when allowed."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from learnable_memory.sources.found import Request

NETWORK_TIMEOUT = 20.0  # seconds without an answer after which a download counts as failed


@dataclass(frozen=True)
class Remote:
    """One file to download, and what is to be there afterwards.

    Attributes:
        url: of the file.
        md5: of the file, 32 hex digits; the file counts only if it has this.
        makes: what is there once it was downloaded and unpacked, relative to the folder of all data sets
            ("SUN397", "oxford-iiit-pet/images"); nothing is fetched where all of it is there already.
        packed: how `makes` is called inside the archive, in the same order; None: an ordinary file, `makes[0]` itself.
    """

    url: str
    md5: str
    makes: tuple[str, ...]
    packed: tuple[str, ...] | None = None


def obtain(name: str, request: Request, remotes: Sequence[Remote], expected: str = "") -> None:
    """Make sure that what the data set `name` consists of lies in `request.root`: fetch and unpack what is missing.

    An interrupted download goes on where it broke off. Only a whole file with the right checksum is unpacked, and only
    what was unpacked as a whole gets its place.

    Args:
        expected: what to say was looked for, instead of the paths in `makes`.

    Raises:
        FileNotFoundError: something is missing, and downloading is off or failed; one line that says what, and where.
    """
    raise NotImplementedError


def download_or_explain(name: str, expected: str, root: Path, download: bool) -> None:
    """Let torchvision download the data set `name` into `root`.

    Raises:
        FileNotFoundError: downloading is off or failed; one line that says where what was looked for.
    """
    from torchvision import datasets

    reason = "downloading is off"
    if download:
        try:
            with _patience(NETWORK_TIMEOUT):
                getattr(datasets, name)(root, download=True)
            return
        except (OSError, RuntimeError) as error:  # torchvision hides some network errors in RuntimeErrors
            reason = f"downloading failed ({type(error).__name__}: {' '.join(str(error).split())})"
    raise FileNotFoundError(f"{name}: no {expected} in {root}, and {reason}; put the files there")


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """torchvision opens its connections without a time limit, and a silent network would hold it for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
