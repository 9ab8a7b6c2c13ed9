"""Downloads from a server in the next thread, and archives: whole with the right checksum, or not there."""

import gzip
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from file_server import FileServer, md5, serving, tar, tree, zipped
from learnable_memory.sources.download import Remote, obtain
from learnable_memory.sources.found import Request

CONTENT = np.random.default_rng(0).bytes(300_000)  # more than one read from a socket, and does not compress
IMAGES = {"Birds/a/1.jpg": b"first", "Birds/b/2.jpg": b"second", "lists/train.txt": b"1", "rest.txt": b"not wanted"}
BIRDS = {"aves/photos/a/1.jpg": b"first", "aves/photos/b/2.jpg": b"second", "aves/lists/train.txt": b"1"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serving(monkeypatch) as server:
        server.files["data.bin"] = CONTENT
        yield server


@pytest.fixture
def here(tmp_path: Path) -> Request:
    return Request(tmp_path)


def data(server: FileServer) -> Remote:
    """An ordinary file whose checksum is that of `CONTENT`, whatever is served."""
    return Remote(server.url("data.bin"), md5(CONTENT), ("set/data.bin",))


def birds(server: FileServer, archive: str = "birds.tar.gz", content: bytes | None = None) -> Remote:
    """An archive with a folder and a file that are wanted under other names, and a file that is not."""
    server.files[archive] = tar(IMAGES) if content is None else content
    wanted = {"aves/photos": "Birds", "aves/lists/train.txt": "lists/train.txt"}
    return Remote(server.url(archive), md5(server.files[archive]), tuple(wanted), tuple(wanted.values()))


def leave(request: Request, path: str, content: bytes) -> Path:
    """A file that an earlier run, or somebody, has left below the folder of all data sets."""
    file = request.root / path
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def failure(request: Request, *remotes: Remote) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        obtain("Things", request, remotes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ what is fetched
def test_only_what_is_missing_is_fetched(server: FileServer, here: Request) -> None:
    server.files["list.txt"] = b"as published"
    remotes = [data(server), Remote(server.url("list.txt"), md5(b"as published"), ("list.txt",))]
    leave(here, "list.txt", b"mine")
    obtain("Things", here, remotes)
    assert server.requests == [("data.bin", None)]
    assert tree(here.root) == {"set/data.bin": CONTENT, "list.txt": b"mine"}
    for allowed in (True, False):  # now everything is there
        obtain("Things", replace(here, download=allowed), remotes)
    assert len(server.requests) == 1


def test_downloading_is_off(server: FileServer, tmp_path: Path) -> None:
    request = Request(tmp_path, download=False)
    remotes = [data(server), Remote(server.url("x.tar"), md5(b""), ("birds", "lists/birds.txt"), (".", "b.txt"))]
    assert failure(request, *remotes) == (
        f"Things: no set/data.bin, birds, lists/birds.txt in {request.root}, and downloading is off; "
        "put the files there"
    )
    (request.root / "birds").mkdir(parents=True)
    assert "Things: no set/data.bin, lists/birds.txt in " in failure(request, *remotes)
    with pytest.raises(FileNotFoundError, match=r"Things: no set/ or things/\*.parquet in .*downloading is off"):
        obtain("Things", request, remotes, "set/ or things/*.parquet")
    assert server.requests == [] and tree(tmp_path) == {}


def test_a_connection_that_breaks_is_made_again(server: FileServer, here: Request) -> None:
    server.sends = 90_000
    obtain("Things", here, [data(server)])
    assert server.asked == [None, "bytes=90000-", "bytes=180000-", "bytes=270000-"]
    assert tree(here.root) == {"set/data.bin": CONTENT}


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    ("part", "again"),
    [
        (CONTENT[:100], False), (CONTENT, False),
        (CONTENT + b"more", True), (b"x" * len(CONTENT), True), (b"of another file", True),
    ],
    ids=["begun", "whole", "longer", "as long", "other"],
)  # fmt: skip
def test_a_part_that_was_left(server: FileServer, here: Request, part: bytes, again: bool, ranges: bool) -> None:
    """It goes on where it ended; anew if it is of another file, or if the server knows no ranges."""
    leave(here, "set/data.bin.part", part)
    server.ranges = ranges
    obtain("Things", here, [data(server)])
    assert server.asked == [f"bytes={len(part)}-", *[None] * (again and ranges)]
    assert tree(here.root) == {"set/data.bin": CONTENT}


# ------------------------------------------------------------------------------------------------------------- failures
def test_what_came_before_a_failure_stays(server: FileServer, here: Request) -> None:
    server.sends = 123_400
    server.before_answer = lambda: server.files.clear() if len(server.requests) > 1 else None
    assert f"no set/data.bin in {here.root}, and downloading failed ({server.url('data.bin')}: " in failure(
        here, data(server)
    )
    assert tree(here.root) == {"set/data.bin.part": CONTENT[:123_400]}


@pytest.mark.parametrize("part", [b"", b"of another file"])
def test_a_wrong_file_is_refused(server: FileServer, here: Request, part: bytes) -> None:
    leave(here, "set/data.bin.part", part)
    server.files["data.bin"] = b"<html>moved</html>"
    found = f"{server.url('data.bin')}: ValueError: the file has the md5 {md5(b'<html>moved</html>')}"
    assert f"({found}, expected {md5(CONTENT)})" in failure(here, data(server))
    assert server.asked == (["bytes=15-", None] if part else [None])  # a file in one piece would only come again
    assert tree(here.root) == {}


def test_mirrors_are_tried_in_turn(server: FileServer, here: Request) -> None:
    server.files["wrong.bin"], server.files["right.bin"] = b"wrong", CONTENT
    gone, wrong, right = map(server.url, ("gone.bin", "wrong.bin", "right.bin"))
    message = failure(here, Remote(gone, md5(CONTENT), ("x",), None, (wrong,)))
    assert f"downloading failed ({gone}: HfHubHTTPError: Client error '404 Not Found'" in message
    assert f"; {wrong}: ValueError: the file has the md5 {md5(b'wrong')}, expected" in message
    obtain("Things", here, [Remote(gone, md5(CONTENT), ("x",), None, (wrong, right))])
    assert tree(here.root) == {"x": CONTENT}


def test_no_server(here: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch) as server:
        remote = data(server)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: pytest.fail("it was tried again"))
    assert f"downloading failed ({remote.url}: ConnectError: " in failure(here, remote)


def test_a_folder_that_cannot_be_written(server: FileServer, here: Request) -> None:
    here.root.write_text("a file where the folder should be")
    assert "Things: no set/data.bin in " in (message := failure(here, data(server)))
    assert "Not a directory" in message


# ------------------------------------------------------------------------------------------------------------- archives
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("birds.tar", tar(IMAGES, "")), ("birds.tgz", tar(IMAGES)), ("birds.tar.gz", tar(IMAGES)),
        ("birds.tar.xz", tar(IMAGES, "xz")), ("birds.zip", zipped(IMAGES)),
    ],
)  # fmt: skip
def test_kinds_of_archives(server: FileServer, here: Request, name: str, content: bytes) -> None:
    obtain("Things", here, [birds(server, name, content)])
    assert tree(here.root) == BIRDS  # neither the archive nor what else was in it
    names = {path.name for path in (here.root / "aves").iterdir()}
    assert names - {f".{name}.lock"} == {"lists", "photos"}


def test_one_compressed_file_and_an_archive_without_a_folder(server: FileServer, here: Request) -> None:
    server.files |= {"train.gz": gzip.compress(b"content"), "flat.zip": zipped(IMAGES)}
    made = {"train.gz": ("set/raw/train", "train"), "flat.zip": ("flat", ".")}
    obtain("Things", here, [Remote(server.url(file), md5(server.files[file]), (make,), (inside,))
                            for file, (make, inside) in made.items()])  # fmt: skip
    assert tree(here.root) == {"set/raw/train": b"content", **{f"flat/{name}": IMAGES[name] for name in IMAGES}}


@pytest.mark.parametrize("allowed", [True, False])
def test_an_archive_that_was_put_there_is_used_and_stays(server: FileServer, here: Request, allowed: bool) -> None:
    archive = birds(server)
    leave(here, "aves/birds.tar.gz", server.files["birds.tar.gz"])
    obtain("Things", replace(here, download=allowed), [replace(archive, url=f"{archive.url}?download=1")])
    assert server.requests == []
    assert tree(here.root) == {**BIRDS, "aves/birds.tar.gz": server.files["birds.tar.gz"]}


def test_half_an_archive_that_lies_there_is_refused(server: FileServer, here: Request) -> None:
    archive = birds(server)
    half = server.files["birds.tar.gz"][:-1]
    path = leave(here, "aves/birds.tar.gz", half)
    with pytest.raises(ValueError) as caught:
        obtain("Things", here, [archive])
    assert str(caught.value) == (
        f"{path} has the md5 {md5(half)}, expected {archive.md5}; delete it and it is fetched again"
    )
    assert server.requests == [] and list(tree(here.root)) == ["aves/birds.tar.gz"]


def test_what_is_there_is_left_alone(server: FileServer, here: Request) -> None:
    archive = birds(server)
    leave(here, "aves/lists/train.txt", b"mine")
    obtain("Things", here, [archive])
    assert tree(here.root) == {**BIRDS, "aves/lists/train.txt": b"mine"}


def through_a_link() -> bytes:
    """The first member is a link out of the folder, the second is written through it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        link, member = tarfile.TarInfo("Birds"), tarfile.TarInfo("Birds/outside.txt")
        link.type, link.linkname, member.size = tarfile.SYMTYPE, "../..", 4
        archive.addfile(link)
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
    path = here.root / "aves" / "birds.tar.gz"
    with pytest.raises(FileNotFoundError, match=rf", and unpacking {path} failed \({reason}") as caught:
        obtain("Things", here, [birds(server, content=content)])
    assert "\n" not in str(caught.value)
    assert tree(here.directory) == {"datasets/aves/birds.tar.gz": content}


def test_what_a_killed_run_had_unpacked_counts_for_nothing(server: FileServer, here: Request) -> None:
    archive = birds(server)
    for _ in range(2):  # killed before anything had its place; killed after everything had
        leave(here, "aves/birds.tar.gz.unpacking/Birds/a/1.jpg", b"fir")
        obtain("Things", here, [archive])
        assert tree(here.root) == BIRDS
    assert len(server.requests) == 1


def test_processes_wait_for_the_one_that_fetches(server: FileServer, here: Request) -> None:
    """Threads stand for processes: the lock belongs to the opened file, which each has for itself."""
    archive = birds(server)
    others = [threading.Thread(target=obtain, args=("Things", here, [archive])) for _ in range(2)]

    def let_the_others_want_it_too() -> None:
        for other in others:
            other.start()
            other.join(timeout=0.3)
            assert other.is_alive()

    server.before_answer = let_the_others_want_it_too
    obtain("Things", here, [archive])
    for other in others:
        other.join(timeout=10)
        assert not other.is_alive()
    assert len(server.requests) == 1 and tree(here.root) == BIRDS
