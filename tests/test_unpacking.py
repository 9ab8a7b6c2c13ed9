"""Archives, fetched or put there by hand: unpacked as a whole, inside their folder, by one process at a time."""

import gzip
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from file_server import FileServer, md5, serving, tar, tree, zipped
from learnable_memory.sources import download
from learnable_memory.sources.download import Remote, obtain
from learnable_memory.sources.found import Request

IMAGES = {"Birds/a/1.jpg": b"first", "Birds/b/2.jpg": b"second", "lists/train.txt": b"1", "rest.txt": b"not wanted"}
BIRDS = {"aves/photos/a/1.jpg": b"first", "aves/photos/b/2.jpg": b"second", "aves/lists/train.txt": b"1"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serving(monkeypatch) as server:
        yield server


@pytest.fixture
def here(tmp_path: Path) -> Request:
    return Request(tmp_path)


def published(server: FileServer, file: str, makes: tuple[str, ...], packed: tuple[str, ...]) -> Remote:
    return Remote(server.url(file), md5(server.files[file]), makes, packed)


def birds(server: FileServer, archive: str = "birds.tar.gz", content: bytes | None = None) -> Remote:
    """An archive with a folder and a file that are wanted under other names, and a file that is not."""
    server.files[archive] = tar(IMAGES) if content is None else content
    return published(server, archive, ("aves/photos", "aves/lists/train.txt"), ("Birds", "lists/train.txt"))


def failure(request: Request, *remotes: Remote) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        obtain("Things", request, remotes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("birds.tar", tar(IMAGES, "")),
        ("birds.tgz", tar(IMAGES)),
        ("birds.tar.gz", tar(IMAGES)),
        ("birds.tar.xz", tar(IMAGES, "xz")),
        ("birds.zip", zipped(IMAGES)),
    ],
)
def test_kinds_of_archives(server: FileServer, here: Request, name: str, content: bytes) -> None:
    obtain("Things", here, [birds(server, name, content)])
    assert tree(here.root) == BIRDS  # neither the archive nor what else was in it
    names = {path.name for path in (here.root / "aves").iterdir()}
    assert names - {f".{name}.lock"} == {"lists", "photos"}


def test_an_archive_that_was_put_there_needs_no_download(server: FileServer, here: Request) -> None:
    remote = birds(server)
    (here.root / "aves").mkdir(parents=True)
    (here.root / "aves" / "birds.tar.gz").write_bytes(server.files["birds.tar.gz"])
    obtain("Things", replace(here, download=False), [remote])
    found = tree(here.root)
    assert found.pop("aves/birds.tar.gz") == server.files["birds.tar.gz"]  # it is somebody's
    assert found == BIRDS and server.requests == []


def test_what_is_there_is_left_alone(server: FileServer, here: Request) -> None:
    archive = birds(server)
    (here.root / "aves" / "lists").mkdir(parents=True)
    (here.root / "aves" / "lists" / "train.txt").write_bytes(b"mine")
    obtain("Things", here, [archive])
    assert tree(here.root) == {**BIRDS, "aves/lists/train.txt": b"mine"}


def test_one_compressed_file(server: FileServer, here: Request) -> None:
    server.files["train-ubyte.gz"] = gzip.compress(b"content")
    obtain("Things", here, [published(server, "train-ubyte.gz", ("set/raw/train-ubyte",), ("train-ubyte",))])
    assert tree(here.root) == {"set/raw/train-ubyte": b"content"}


def test_an_archive_without_a_folder_of_its_own(server: FileServer, here: Request) -> None:
    server.files["flat.zip"] = zipped(IMAGES)
    obtain("Things", here, [published(server, "flat.zip", ("flat",), (".",))])
    assert tree(here.root) == {f"flat/{name}": content for name, content in IMAGES.items()}


@pytest.mark.parametrize("query", ["", "?download=1"])
def test_an_archive_that_lies_there_is_used_and_stays(server: FileServer, here: Request, query: str) -> None:
    archive = birds(server)
    archive = replace(archive, url=archive.url + query)
    (here.root / "aves").mkdir(parents=True)
    (here.root / "aves" / "birds.tar.gz").write_bytes(server.files["birds.tar.gz"])
    obtain("Things", here, [archive])
    assert server.requests == []
    assert tree(here.root) == {**BIRDS, "aves/birds.tar.gz": server.files["birds.tar.gz"]}


def test_half_an_archive_that_lies_there_is_refused(server: FileServer, here: Request) -> None:
    archive = birds(server)
    path = here.root / "aves" / "birds.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(server.files["birds.tar.gz"][:-1])
    with pytest.raises(ValueError) as caught:
        obtain("Things", here, [archive])
    found = md5(server.files["birds.tar.gz"][:-1])
    assert str(caught.value) == (
        f"{path} has the md5 {found}, expected {archive.md5}; delete it and it is fetched again"
    )
    assert server.requests == []
    assert list(tree(here.root)) == ["aves/birds.tar.gz"]


@pytest.mark.parametrize(("missing", "enough"), [(1, False), (0, True)])
def test_an_archive_needs_what_is_left_of_it_and_its_length_again(
    server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch, missing: int, enough: bool
) -> None:
    archive = birds(server)
    length = len(server.files["birds.tar.gz"])
    part = here.root / "aves" / "birds.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files["birds.tar.gz"][:10])
    free = (length - 10) + length - missing
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    if enough:
        obtain("Things", here, [archive])
    else:
        assert f"to fetch and unpack it takes {2 * length - 10:,} bytes" in failure(here, archive)
        assert part.stat().st_size == 10


def link(target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("Birds")
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def through_a_link() -> bytes:
    """The first member is a link out of the folder, the second is written through it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(link("../.."))
        member = tarfile.TarInfo("Birds/outside.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tar({"../outside.txt": b"evil"}), "OutsideDestinationError"),
        (through_a_link(), "LinkOutsideDestinationError"),
        (tar({"other/1.jpg": b"first"}), "FileNotFoundError: .*Birds"),
        (b"not an archive", "ReadError"),
    ],
)
def test_a_bad_archive_leaves_nothing_unpacked(server: FileServer, here: Request, content: bytes, reason: str) -> None:
    archive = birds(server, content=content)
    path = here.root / "aves" / "birds.tar.gz"
    with pytest.raises(FileNotFoundError, match=rf", and unpacking {path} failed \({reason}") as caught:
        obtain("Things", here, [archive])
    assert "\n" not in str(caught.value)
    assert tree(here.directory) == {"datasets/aves/birds.tar.gz": content}


def test_a_python_that_cannot_unpack_safely_does_not(
    server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    assert "this Python cannot unpack safely; update it to 3.10.12, 3.11.4 or later" in failure(here, birds(server))


def test_what_a_killed_run_had_unpacked_counts_for_nothing(server: FileServer, here: Request) -> None:
    archive = birds(server)
    for _ in range(2):  # killed before anything had its place; killed after everything had
        leftover = here.root / "aves" / "birds.tar.gz.unpacking" / "Birds" / "a"
        leftover.mkdir(parents=True)
        (leftover / "1.jpg").write_bytes(b"fir")
        obtain("Things", here, [archive])
        assert tree(here.root) == BIRDS
    assert len(server.requests) == 1


# --------------------------------------------------------------------------------------------------- several at a time
def test_processes_wait_for_the_one_that_fetches(server: FileServer, here: Request) -> None:
    """Threads stand for processes: the lock belongs to the opened file, which each has for itself."""
    waiting = threading.Semaphore(0)
    archive = birds(server)

    class Waits(threading.Thread):
        def run(self) -> None:
            waiting.release()
            obtain("Things", here, [archive])

    others = [Waits(), Waits()]

    def hold_the_answer_until_the_others_want_it_too() -> None:
        for other in others:
            other.start()
        assert all(waiting.acquire(timeout=10) for _ in others)
        for other in others:
            other.join(timeout=0.3)

    server.before_answer = hold_the_answer_until_the_others_want_it_too
    obtain("Things", here, [archive])
    for other in others:
        other.join(timeout=10)
        assert not other.is_alive()
    assert len(server.requests) == 1
    assert tree(here.root) == BIRDS
