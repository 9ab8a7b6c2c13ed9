"""Downloads from a server in the next thread: resumed, checked, whole or not there."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm

from file_server import FileServer, md5, serving, tree
from learnable_memory.sources import download
from learnable_memory.sources.download import Remote, obtain
from learnable_memory.sources.found import Request

CONTENT = np.random.default_rng(0).bytes(300_000)  # more than one read from a socket, and does not compress


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(download, "RETRY_PAUSE", 0)
    monkeypatch.setattr(download, "RETRIES", 0)
    with serving(monkeypatch) as server:
        server.files["data.bin"] = CONTENT
        yield server


@pytest.fixture
def here(tmp_path: Path) -> Request:
    return Request(tmp_path)


def data(server: FileServer, content: bytes = CONTENT) -> Remote:
    """An ordinary file whose checksum is that of `content`, whatever is served."""
    return Remote(server.url("data.bin"), md5(content), ("set/data.bin",))


def failure(request: Request, *remotes: Remote) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        obtain("Things", request, remotes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ what is fetched
def test_only_what_is_missing_is_fetched(server: FileServer, here: Request) -> None:
    server.files["list.txt"] = b"as published"
    remotes = [data(server), Remote(server.url("list.txt"), md5(b"as published"), ("list.txt",))]
    here.root.mkdir()
    (here.root / "list.txt").write_bytes(b"mine")
    obtain("Things", here, remotes)
    assert server.requests == [("data.bin", None)]
    assert tree(here.root) == {"set/data.bin": CONTENT, "list.txt": b"mine"}


@pytest.mark.parametrize("allowed", [True, False])
def test_nothing_is_asked_for_where_everything_is_there(server: FileServer, tmp_path: Path, allowed: bool) -> None:
    obtain("Things", Request(tmp_path), [data(server)])
    server.requests.clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    obtain("Things", Request(tmp_path, download=allowed), [data(server)])
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_downloading_is_off(server: FileServer, tmp_path: Path) -> None:
    request = Request(tmp_path, download=False)
    remotes = [data(server), Remote(server.url("x.tar"), md5(b""), ("birds", "lists/birds.txt"), (".", "b.txt"))]
    assert failure(request, *remotes) == (
        f"Things: no set/data.bin, birds, lists/birds.txt in {tmp_path / 'datasets'}, and downloading is off; "
        "put the files there"
    )
    (request.root / "birds").mkdir(parents=True)
    assert "Things: no set/data.bin, lists/birds.txt in " in failure(request, *remotes)
    with pytest.raises(FileNotFoundError, match=r"Things: no set/ or things/\*.parquet in .*downloading is off"):
        obtain("Things", request, remotes, "set/ or things/*.parquet")
    assert server.requests == []
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("ranges", [True, False])
def test_progress_counts_bytes_and_those_that_were_there(
    server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    bars = []

    class Bar(tqdm):
        def close(self) -> None:
            if self.desc.startswith("data.bin"):
                bars.append((self.initial, self.n, self.total, self.unit))
            super().close()

    monkeypatch.setattr(download, "progress_bar", Bar)
    server.sends = 100_000
    failure(here, data(server))
    server.sends, server.ranges = None, ranges
    obtain("Things", here, [data(server)])
    assert set(bars) == {(0, 100_000, 300_000, "B"), (100_000 if ranges else 0, 300_000, 300_000, "B")}


# ------------------------------------------------------------------------------------------------------------- resuming
def test_an_interrupted_download_goes_on_in_the_next_run(server: FileServer, here: Request) -> None:
    server.sends = 123_456
    assert failure(here, data(server)) == (
        f"Things: no set/data.bin in {here.root}, and downloading failed ({server.url('data.bin')}: "
        "the connection ended 176544 bytes too early); put the files there"
    )
    assert tree(here.root) == {"set/data.bin.part": CONTENT[:123_456]}
    server.sends = None
    obtain("Things", here, [data(server)])
    assert server.asked == [None, "bytes=123456-"]
    assert tree(here.root) == {"set/data.bin": CONTENT}


def test_a_connection_that_breaks_is_made_again(
    server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each brings something new, so that one retry in a row is enough for any number of breaks."""
    monkeypatch.setattr(download, "RETRIES", 1)
    server.sends = 90_000
    obtain("Things", here, [data(server)])
    assert server.asked == [None, "bytes=90000-", "bytes=180000-", "bytes=270000-"]
    assert tree(here.root) == {"set/data.bin": CONTENT}


@pytest.mark.parametrize("retries", [0, 3])
def test_it_ends_when_nothing_new_comes(
    server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    monkeypatch.setattr(download, "RETRIES", retries)
    server.ranges, server.sends = False, 90_000
    assert "the connection ended 210000 bytes too early" in failure(here, data(server))
    assert server.asked == [None] + ["bytes=90000-"] * retries


def test_there_is_a_pause_before_it_is_tried_again(
    server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []
    monkeypatch.setattr(download, "RETRIES", 2)
    monkeypatch.setattr(download, "RETRY_PAUSE", 7)
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.sends = 200_000
    obtain("Things", here, [data(server)])
    assert pauses == [7]


def leave_part(request: Request, content: bytes) -> None:
    part = request.root / "set" / "data.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)


def test_a_server_without_ranges_starts_anew(server: FileServer, here: Request) -> None:
    leave_part(here, CONTENT[:100])
    server.ranges = False
    obtain("Things", here, [data(server)])
    assert server.asked == ["bytes=100-"]
    assert tree(here.root) == {"set/data.bin": CONTENT}


def test_a_server_that_tells_no_length(server: FileServer, here: Request) -> None:
    server.lengths = False
    obtain("Things", here, [data(server)])
    assert tree(here.root) == {"set/data.bin": CONTENT}


def test_a_part_that_is_whole_is_not_fetched_again(server: FileServer, here: Request) -> None:
    leave_part(here, CONTENT)
    obtain("Things", here, [data(server)])
    assert server.asked == ["bytes=300000-"]  # answered by 416
    assert tree(here.root) == {"set/data.bin": CONTENT}


@pytest.mark.parametrize(
    "part", [CONTENT + b"more", b"x" * len(CONTENT), b"of another file"], ids=["longer", "as long", "shorter"]
)
def test_a_part_that_does_not_fit_is_fetched_anew(server: FileServer, here: Request, part: bytes) -> None:
    leave_part(here, part)
    obtain("Things", here, [data(server)])
    assert server.asked == [f"bytes={len(part)}-", None]
    assert tree(here.root) == {"set/data.bin": CONTENT}


# ------------------------------------------------------------------------------------------------------------- failures
@pytest.mark.parametrize("part", [b"", b"of another file"])
def test_a_wrong_file_is_refused(server: FileServer, here: Request, part: bytes) -> None:
    leave_part(here, part)
    server.files["data.bin"] = b"<html>moved</html>"
    message = failure(here, data(server))
    found, expected = md5(b"<html>moved</html>"), md5(CONTENT)
    assert f"({server.url('data.bin')}: the file has the md5 {found}, expected {expected})" in message
    assert server.asked == (["bytes=15-", None] if part else [None])  # a file in one piece would only come again
    assert tree(here.root) == {}


def test_a_missing_file_is_given_up_at_once(server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRIES", 5)
    server.files.clear()
    assert f"downloading failed ({server.url('data.bin')}: HTTPError: HTTP Error 404: Not Found); put" in failure(
        here, data(server)
    )
    assert server.asked == [None]


def test_no_server(here: Request) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/data.bin"
    message = failure(here, Remote(url, md5(CONTENT), ("set/data.bin",)))
    assert f"downloading failed ({url}: URLError: " in message and "refused" in message


def test_a_server_that_never_answers(server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, connect = [], urllib.request.urlopen

    def record(*args: object, timeout: float) -> object:
        limits.append(timeout)
        return connect(*args, timeout=timeout)

    assert 0 < download.NETWORK_TIMEOUT <= 60
    monkeypatch.setattr(download, "NETWORK_TIMEOUT", 0.2)
    monkeypatch.setattr("urllib.request.urlopen", record)
    server.silent = True
    assert "timed out" in failure(here, data(server))
    assert limits == [0.2]


def test_a_server_that_falls_silent(server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "NETWORK_TIMEOUT", 0.5)
    server.sends, server.stalls = 100_000, True
    assert f"downloading failed ({server.url('data.bin')}: TimeoutError: timed out)" in failure(here, data(server))
    assert tree(here.root) == {"set/data.bin.part": CONTENT[:100_000]}  # all that came


def test_a_mirror_goes_on_where_the_first_address_broke_off(server: FileServer, here: Request) -> None:
    server.files["copy.bin"] = CONTENT
    server.before_answer = lambda: setattr(server, "sends", {1: 100_000}.get(len(server.requests)))
    obtain("Things", here, [Remote(server.url("data.bin"), md5(CONTENT), ("x",), None, (server.url("copy.bin"),))])
    assert server.requests == [("data.bin", None), ("copy.bin", "bytes=100000-")]
    assert tree(here.root) == {"x": CONTENT}


def test_all_addresses_are_in_the_error(server: FileServer, here: Request) -> None:
    server.files["copy.bin"] = b"wrong"
    wrong = Remote(server.url("gone.bin"), md5(CONTENT), ("x",), None, (server.url("copy.bin"),))
    assert (
        f"downloading failed ({server.url('gone.bin')}: HTTPError: HTTP Error 404: Not Found; "
        f"{server.url('copy.bin')}: the file has the md5 {md5(b'wrong')}, expected"
    ) in failure(here, wrong)


@pytest.mark.parametrize(("free", "enough"), [(299_999, False), (300_000, True)])
def test_a_file_needs_its_length_of_disk_space(
    server: FileServer, here: Request, monkeypatch: pytest.MonkeyPatch, free: int, enough: bool
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    if enough:
        obtain("Things", here, [data(server)])
    else:
        wanted = "to fetch it takes 300,000 bytes of disk space at least, and 299,999 are free"
        assert wanted in failure(here, data(server))
        assert tree(here.root) == {"set/data.bin.part": b""}


def test_a_folder_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "datasets").write_text("a file where the folder should be")
    message = failure(Request(tmp_path), data(server))
    assert message.startswith(f"Things: no set/data.bin in {tmp_path / 'datasets'}, and it cannot be written (")


# --------------------------------------------------------------------------------------------------------------- killed
OBTAIN = """
import sys
from pathlib import Path
from learnable_memory.sources.download import Remote, obtain
from learnable_memory.sources.found import Request
obtain("Things", Request(Path(sys.argv[1])), [Remote(sys.argv[2], sys.argv[3], ("set/data.bin",))])
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_it_had_and_no_lock(server: FileServer, here: Request) -> None:
    server.sends, server.stalls = 200_000, True
    part = here.root / "set" / "data.bin.part"
    command = [sys.executable, "-c", OBTAIN, here.directory, server.url("data.bin"), md5(CONTENT)]
    killed = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 100_000):
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        killed.kill()
        killed.wait()
    there = part.stat().st_size
    assert 100_000 < there <= 200_000
    server.sends = None
    obtain("Things", here, [data(server)])
    assert server.asked == [None, f"bytes={there}-"]
    assert tree(here.root) == {"set/data.bin": CONTENT}
