"""Fetching data sets: resumed, checked, unpacked as a whole, and only when allowed.

Beside FILE there may be `FILE.part`, what came of it so far; `FILE.unpacking/`, which counts for nothing; and
`.FILE.lock`, which one process at a time holds: the others wait for it and find everything there. An archive that was
fetched is deleted once it is unpacked, since the largest would take as much room as its images again. One that lay
there already was put there by somebody, and stays.
"""

import gzip
import hashlib
import http.client
import logging
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

import learnable_memory
from learnable_memory.progress import progress_bar
from learnable_memory.sources.found import Request

logger = logging.getLogger(__name__)

NETWORK_TIMEOUT = 20.0  # seconds without an answer after which a connection counts as broken
RETRIES = 5  # connections in a row that bring nothing new before a download counts as failed
RETRY_PAUSE = 5.0  # seconds before each
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Remote:
    """One file to download, and what is to be there afterwards.

    Attributes:
        url: of the file.
        md5: of the file, 32 hex digits; the file counts only if it has this.
        makes: what is there once it was downloaded and unpacked, relative to the folder of all data sets
            ("SUN397", "oxford-iiit-pet/images"); nothing is fetched where all of it is there already.
        packed: how `makes` is called inside the archive (.zip, .tar in any compression, or one file in .gz), in the
            same order; None: an ordinary file, `makes[0]` itself.
        mirrors: further addresses of the same file, tried in turn.
    """

    url: str
    md5: str
    makes: tuple[str, ...]
    packed: tuple[str, ...] | None = None
    mirrors: tuple[str, ...] = ()


def obtain(name: str, request: Request, remotes: Sequence[Remote], expected: str = "") -> None:
    """Make sure that what the data set `name` consists of lies in `request.root`: fetch and unpack what is missing.

    An interrupted download goes on where it broke off. Only a whole file with the right checksum is unpacked, and only
    what was unpacked as a whole gets its place. An archive that lies beside its `makes[0]` is not fetched again.

    Args:
        expected: what to say was looked for, instead of the missing paths of `makes`.

    Raises:
        FileNotFoundError: something is missing, and downloading is off or failed; one line that says what, and where.
        ValueError: an archive that lies there already has another checksum.
    """
    places = [_Place(request.root, remote) for remote in remotes]
    expected = expected or ", ".join(make for place in places for make in place.missing())
    try:
        for place in places:
            # An archive that somebody put there is unpacked in any case: that takes no network.
            if request.download or (place.remote.packed is not None and place.file.exists()):
                _complete(place)
            elif place.missing():
                raise _Failure("downloading is off")
    except (_Failure, OSError) as error:
        why = error if isinstance(error, _Failure) else f"it cannot be written ({_in_one_line(error)})"
        raise FileNotFoundError(f"{name}: no {expected} in {request.root}, and {why}; put the files there") from error


class _Failure(Exception):
    """There is no use in going on; the reason goes into the sentence of `obtain`."""


class _BrokenOff(Exception):
    """The connection failed; another one may go on."""


@dataclass(frozen=True)
class _Place:
    """Where a download and its parts lie: beside what it makes, as torchvision has it, so that renaming is enough."""

    root: Path
    remote: Remote

    @property
    def file(self) -> Path:
        first = self.root / self.remote.makes[0]
        name = Path(urllib.parse.urlsplit(self.remote.url).path).name
        return first if self.remote.packed is None else first.with_name(name)

    @property
    def part(self) -> Path:
        return self.file.with_name(f"{self.file.name}.part")

    @property
    def unpacking(self) -> Path:
        return self.file.with_name(f"{self.file.name}.unpacking")

    @property
    def lock(self) -> Path:
        return self.file.with_name(f".{self.file.name}.lock")

    def missing(self) -> list[str]:
        return [make for make in self.remote.makes if not (self.root / make).exists()]


def _complete(place: _Place) -> None:
    """Fetch and unpack one file, unless another process does it."""
    if not place.missing() and not place.unpacking.exists():
        return
    place.file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        shutil.rmtree(place.unpacking, ignore_errors=True)  # of a killed run: whoever is at work holds the lock
        if not place.missing():
            return
        fetched = not place.file.exists()
        if fetched:
            _download(place)
        elif (found := _md5(place.file)) != place.remote.md5:
            raise ValueError(
                f"{place.file} has the md5 {found}, expected {place.remote.md5}; delete it and it is fetched again"
            )
        if place.remote.packed is not None:
            _unpack(place, place.remote.packed)
            if fetched:
                place.file.unlink()


def _alone(place: _Place) -> AcquireReturnProxy:
    lock = FileLock(place.lock)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process, which fetches %s", place.file)
        return lock.acquire()


# ---------------------------------------------------------------------------------------------------------- downloading
def _download(place: _Place) -> None:
    """Fetch `place.file` from the first address that has it."""
    reasons = []
    for url in (place.remote.url, *place.remote.mirrors):
        try:
            return _download_from(url, place)
        except _Failure as reason:
            reasons.append(f"{url}: {reason}")
    raise _Failure(f"downloading failed ({'; '.join(reasons)})")


def _download_from(url: str, place: _Place) -> None:
    resumed = _size(place.part) > 0
    _fetch(url, place)
    found = _md5(place.part)
    if resumed and found != place.remote.md5:
        logger.warning("%s is not the file any more that was fetched in part: it is fetched anew", url)
        place.part.unlink()
        _fetch(url, place)
        found = _md5(place.part)
    if found != place.remote.md5:
        place.part.unlink()
        raise _Failure(f"the file has the md5 {found}, expected {place.remote.md5}")
    place.part.rename(place.file)


def _fetch(url: str, place: _Place) -> None:
    """Bring `place.part` to its end. An address from which nothing new came at all is given up at once."""
    retries, farthest = 0, _size(place.part)
    while True:
        try:
            return _fetch_rest(url, place)
        except _BrokenOff as reason:
            size = _size(place.part)
            if size > farthest:
                retries, farthest = RETRIES, size
            if not retries:
                raise _Failure(str(reason)) from reason
            retries -= 1
            logger.warning("%s: %s; going on in %g seconds", url, reason, RETRY_PAUSE)
            time.sleep(RETRY_PAUSE)


def _fetch_rest(url: str, place: _Place) -> None:
    """Append what `place.part` lacks, or write it anew where the server only sends whole files; over one connection."""
    start = _size(place.part)
    response = _connect(url, start)
    if response is None:
        return
    with response, place.part.open("ab") as part:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0
            part.truncate(0)
        length = response.headers["Content-Length"]
        left = int(length) if length else None
        total = start + left if left is not None else None
        if left is not None and total is not None:
            _check_space(place, left, total)
        with progress_bar(total=total, initial=start, unit="B", unit_scale=True, desc=place.file.name) as bar:
            for chunk in _chunks(response, left):
                part.write(chunk)
                bar.update(len(chunk))


def _connect(url: str, start: int) -> http.client.HTTPResponse | None:
    """The server's answer from byte `start` on, or from 0 if it cannot; None: the file has no byte `start`.

    None comes where the part is whole, and where it is longer than the file: its checksum will tell.
    """
    headers = {"User-Agent": f"learnable-memory-vit/{learnable_memory.__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=NETWORK_TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                return None
        raise _BrokenOff(_in_one_line(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(_in_one_line(error)) from error


def _chunks(response: http.client.HTTPResponse, left: int | None) -> Iterator[bytes]:
    """What arrives, `left` bytes of it if that is known."""
    while left is None or left > 0:
        try:
            chunk = response.read1(CHUNK)  # `read` would lose up to a chunk where the connection breaks
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenOff(_in_one_line(error)) from error
        if not chunk and left:
            raise _BrokenOff(f"the connection ended {left} bytes too early")
        if not chunk:
            return
        yield chunk
        if left is not None:
            left -= len(chunk)


def _check_space(place: _Place, left: int, total: int) -> None:
    """What is unpacked takes at least the room of its archive; that there is none is better said hours earlier."""
    needed = left if place.remote.packed is None else left + total
    free = shutil.disk_usage(place.file.parent).free
    if needed > free:
        what = "to fetch it" if place.remote.packed is None else "to fetch and unpack it"
        raise _Failure(f"{what} takes {needed:,} bytes of disk space at least, and {free:,} are free")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        path.open("rb") as file,
        progress_bar(total=_size(path), unit="B", unit_scale=True, desc="md5", leave=False) as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------ unpacking
def _unpack(place: _Place, packed: tuple[str, ...]) -> None:
    """Unpack beside the archive, then rename what is missing to its place, so that nothing is ever half there."""
    wanted = zip(place.remote.makes, packed, strict=True)
    place.unpacking.mkdir()
    try:
        _extract(place.file, place.unpacking)
        for make, inside in wanted:
            if make in place.missing():
                (place.root / make).parent.mkdir(parents=True, exist_ok=True)
                (place.unpacking / inside).rename(place.root / make)
    except Exception as error:  # each kind of archive has its own
        raise _Failure(f"unpacking {place.file} failed ({_in_one_line(error)})") from error
    finally:
        shutil.rmtree(place.unpacking, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    """Unpack an archive; nothing that its members are called leads out of `folder`."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as members:
            members.extractall(folder)  # leaves out every ".." by itself
    elif archive.suffix == ".gz" and ".tar" not in archive.suffixes:
        with gzip.open(archive) as content, (folder / archive.stem).open("wb") as file:
            shutil.copyfileobj(content, file)
    else:
        if not hasattr(tarfile, "data_filter"):
            raise RuntimeError("this Python cannot unpack safely; update it to 3.10.12, 3.11.4 or later")
        with tarfile.open(archive) as members:
            bar = progress_bar(members, unit=" files", unit_scale=True, desc=f"unpacking {archive.name}")
            members.extractall(folder, members=bar, filter="data")


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
