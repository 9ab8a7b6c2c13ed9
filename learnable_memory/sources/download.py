"""Fetching data sets: resumed, checked, unpacked as a whole, and only when allowed.

Beside FILE there may be `FILE.part`, what came of it so far; `FILE.unpacking/`, which counts for nothing; and
`.FILE.lock`, which one process at a time holds: the others wait for it and find everything there. An archive that was
fetched is deleted once it is unpacked, since the largest would take as much room as its images again. One that lay
there already was put there by somebody, and stays.
"""

import gzip
import shutil
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from filelock import FileLock

from learnable_memory.sources.found import Request
from learnable_memory.wording import in_one_line

HEADERS = {"Accept-Encoding": "identity"}  # the file as it is, which the checksum is of


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
                raise OSError("downloading is off")
    except OSError as error:
        raise FileNotFoundError(f"{name}: no {expected} in {request.root}, and {error}; put the files there") from error


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
    def unpacking(self) -> Path:
        return self.file.with_name(f"{self.file.name}.unpacking")

    def missing(self) -> list[str]:
        return [make for make in self.remote.makes if not (self.root / make).exists()]


def _complete(place: _Place) -> None:
    """Fetch and unpack one file, unless another process does it. Raises OSError, which says what failed."""
    from torchvision.datasets.utils import calculate_md5

    if not place.missing() and not place.unpacking.exists():
        return
    place.file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.file.with_name(f".{place.file.name}.lock")):
        shutil.rmtree(place.unpacking, ignore_errors=True)  # of a killed run: whoever is at work holds the lock
        if not place.missing():
            return
        fetched = not place.file.exists()
        if fetched:
            _download(place)
        elif (found := calculate_md5(place.file)) != place.remote.md5:
            raise ValueError(
                f"{place.file} has the md5 {found}, expected {place.remote.md5}; delete it and it is fetched again"
            )
        if place.remote.packed is not None:
            _unpack(place, place.remote.packed)
            if fetched:
                place.file.unlink()


def _download(place: _Place) -> None:
    """Fetch `place.file` from the first address that has it."""
    part, reasons = place.file.with_name(f"{place.file.name}.part"), []
    for url in (place.remote.url, *place.remote.mirrors):
        try:
            _fetch(url, part, place.remote.md5)
        except Exception as error:  # huggingface_hub's network library, and its errors, differ from version to version
            reasons.append(f"{url}: {in_one_line(error)}")
        else:
            part.rename(place.file)
            return
    raise OSError(f"downloading failed ({'; '.join(reasons)})")


def _fetch(url: str, part: Path, md5: str) -> None:
    """Bring `part` to its end, over as many connections as it takes. Raises ValueError if it is not that file then."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from torchvision.datasets.utils import calculate_md5

    start = part.stat().st_size if part.exists() else 0
    try:
        with part.open("ab") as file:
            # An address that gives nothing is given up at once; what has begun is tried again five times.
            http_get(url, file, resume_size=start, headers=HEADERS, displayed_filename=part.stem, _nb_retries=0)
    except HfHubHTTPError as error:
        if error.response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # The part is as long as the file, or longer: its checksum tells.
    found = calculate_md5(part)
    if found == md5:
        return
    part.unlink()
    if not start:
        raise ValueError(f"the file has the md5 {found}, expected {md5}")
    _fetch(url, part, md5)  # it is not the file any more that was fetched in part


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
        raise OSError(f"unpacking {place.file} failed ({in_one_line(error)})") from error
    finally:
        shutil.rmtree(place.unpacking, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    """Unpack an archive; nothing that its members are called leads out of `folder`."""
    if archive.suffix == ".gz" and ".tar" not in archive.suffixes:
        with gzip.open(archive) as content, (folder / archive.stem).open("wb") as file:
            shutil.copyfileobj(content, file)
    elif archive.suffix == ".zip":
        shutil.unpack_archive(archive, folder)  # leaves out every ".." by itself
    else:
        shutil.unpack_archive(archive, folder, filter="data")
