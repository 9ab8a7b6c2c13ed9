"""download_models.sh against a local server that behaves as the HuggingFace hub: it sends on to another address, and
tells size and SHA-256 of the file on the way. Each test runs with curl alone and with wget alone."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from file_server import FileServer, serving, tree

SCRIPT = Path(__file__).resolve().parent.parent / "download_models.sh"
TOOLS = ("bash", "cut", "dirname", "env", "grep", "head", "mkdir", "mv", "od", "rm", "sha256sum", "tail", "tr", "wc")
REPOSITORY = "necrashter/transformers-learnable-memory/resolve/main"
CONTENT = b"PK\x03\x04" + (bytes(range(256)) * 40)[:-22] + b"PK\x05\x06" + bytes(18)  # 10,244 bytes, as a zip ends
NAMES = ("CIFAR100", "INaturalist", "Places", "Sun")

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, (*TOOLS, "curl", "wget"))), reason="needs bash, coreutils, curl and wget"
)


class Hub(FileServer):
    """What the tests set besides.

    Attributes:
        tells: the hub tells size and SHA-256 before it sends on.
        told: what it tells of each file; by default what is true.
        broken: answers of this status instead of a file.
    """

    tells = True
    told: dict[str, str]
    broken: int | None = None
    storage_refuses_head: int | None = None  # with this status

    def offer(self, name: str, content: bytes = CONTENT) -> None:
        self.files[f"storage/{name}"] = content

    @property
    def fetched(self) -> list[tuple[str, str | None]]:
        """Name and Range header of each transfer."""
        return [(path.removeprefix("storage/"), asked) for path, asked in self.requests if path.startswith("storage/")]


def hub_handler(handler: type) -> type:
    class HubHandler(handler):
        def do_HEAD(self) -> None:
            self.answer(lambda: self.send_file_headers())

        def do_GET(self) -> None:
            self.answer(super().do_GET)

        def answer(self, answer_file: Callable) -> None:
            folder, _, file = self.path.lstrip("/").rpartition("/")
            if self.server.broken:
                self.send_error(self.server.broken)
            elif folder == REPOSITORY and f"storage/{file}" in self.server.files:
                self.send_on(file)
            else:
                answer_file()

        def send_on(self, file: str) -> None:
            content = self.server.files[f"storage/{file}"]
            told = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"'}
            self.send_response(302)
            self.send_header("Location", f"/storage/{file}")
            for name, value in {**told, **self.server.told}.items() if self.server.tells else ():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_file_headers(self) -> None:
            content = self.server.files.get(self.path.lstrip("/"))
            if self.server.storage_refuses_head:
                return self.send_error(self.server.storage_refuses_head)
            self.send_response(404 if content is None else 200)
            if content is not None and self.server.lengths:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()

    return HubHandler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch) as server:
        server.__class__, server.told = Hub, {}
        server.RequestHandlerClass = hub_handler(server.RequestHandlerClass)
        yield server


class Ran(NamedTuple):
    code: int
    output: str
    error: str


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """What the script finds installed; waiting takes no time."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    (folder / "sleep").symlink_to(shutil.which("true"))
    return folder


@pytest.fixture(params=["curl", "wget"])
def download(request: pytest.FixtureRequest, tmp_path: Path, programs: Path, hub: Hub) -> Callable[..., Ran]:
    (programs / request.param).symlink_to(shutil.which(request.param))
    return runner(tmp_path, programs, hub.url(""))


def runner(tmp_path: Path, programs: Path, endpoint: str) -> Callable[..., Ran]:
    """Runs a copy of the script, beside which its folder `models` comes to lie."""
    (tmp_path / "project").mkdir()
    script = shutil.copy(SCRIPT, tmp_path / "project")

    def run(*arguments: str, before: str = "", environment: dict[str, str] | None = None) -> Ran:
        settings = {"PATH": str(programs), "HF_ENDPOINT": endpoint, "no_proxy": "127.0.0.1", **(environment or {})}
        command = ["bash", "-c", f'{before} exec bash "$0" "$@"', script, *arguments]
        ran = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run


def models(tmp_path: Path) -> dict[str, bytes]:
    return tree(tmp_path / "project" / "models")


def assert_failed(ran: Ran, message: str) -> None:
    """One line and exit code 2."""
    assert (ran.code, ran.output) == (2, "")
    assert ran.error.startswith("download_models.sh: ") and ran.error.count("\n") == 1
    assert message in ran.error


# ------------------------------------------------------------------------------------------------------ what it fetches
def test_all_four_files(tmp_path: Path, hub: Hub, download: Callable) -> None:
    contents = {name: CONTENT + name.encode() for name in NAMES}
    for name, content in contents.items():
        hub.offer(f"{name}_model.pt", content)
    ran = download()
    assert (ran.code, ran.error) == (0, "")
    assert ran.output.splitlines() == [
        f"{name}: {tmp_path}/project/models/{name}_model.pt, {len(content)} bytes, SHA-256 checked"
        for name, content in contents.items()
    ]
    assert models(tmp_path) == {f"{name}_model.pt": content for name, content in contents.items()}


def test_what_is_there_is_left_alone(tmp_path: Path, hub: Hub, download: Callable) -> None:
    hub.offer("Sun_model.pt")
    assert download("Sun").code == 0
    hub.requests.clear()
    hub.offer("Sun_model.pt", CONTENT + b"new")
    ran = download("Sun")
    assert ran == Ran(0, f"Sun: {tmp_path}/project/models/Sun_model.pt is there already\n", "")
    assert hub.requests == [] and models(tmp_path) == {"Sun_model.pt": CONTENT}


def test_another_folder_and_old_pickles(tmp_path: Path, hub: Hub, download: Callable) -> None:
    hub.offer("Places_model.pt", b"\x80\x02" + CONTENT)
    assert download("--output", "some where/else", "Places").code == 0
    assert tree(tmp_path / "some where") == {"else/Places_model.pt": b"\x80\x02" + CONTENT}
    assert not (tmp_path / "project" / "models").exists()


@pytest.mark.parametrize("lengths", [True, False])
def test_servers_that_tell_less(tmp_path: Path, hub: Hub, download: Callable, lengths: bool) -> None:
    hub.tells, hub.lengths = False, lengths
    hub.offer("Sun_model.pt")
    ran = download("Sun")
    assert ran.output.endswith(f"{len(CONTENT)} bytes, SHA-256 not checked\n")
    assert models(tmp_path) == {"Sun_model.pt": CONTENT}


def test_other_programs_for_sha256(tmp_path: Path, programs: Path, hub: Hub, download: Callable) -> None:
    hub.offer("Sun_model.pt")
    hub.offer("Places_model.pt")
    (programs / "sha256sum").unlink()
    assert download("Sun").output.endswith("SHA-256 not checked\n")
    (programs / "shasum").write_text('#!/bin/sh\n[ "$*" = "-a 256" ] && exec ' + str(shutil.which("sha256sum")))
    (programs / "shasum").chmod(0o755)
    assert download("Places").output.endswith("SHA-256 checked\n")


# ------------------------------------------------------------------------------------------------------------- resuming
@pytest.mark.parametrize("lengths", [True, False])  # without, curl and wget take an early end for the end
def test_transfers_that_break_off_go_on(tmp_path: Path, hub: Hub, download: Callable, lengths: bool) -> None:
    """Three attempts of 4,000 bytes each."""
    hub.offer("Sun_model.pt")
    hub.sends, hub.lengths = 4000, lengths
    if download("Sun").code:  # on a busy machine two of the four attempts may get no answer
        assert download("Sun").code == 0
    asked = list(dict.fromkeys(hub.fetched))
    assert asked == [("Sun_model.pt", None), ("Sun_model.pt", "bytes=4000-"), ("Sun_model.pt", "bytes=8000-")]
    assert models(tmp_path) == {"Sun_model.pt": CONTENT}


def test_what_broke_off_is_resumed_by_the_next_run(tmp_path: Path, hub: Hub, download: Callable) -> None:
    hub.offer("Sun_model.pt")
    hub.sends = 1000
    ran = download("Sun")
    # On a busy machine one of the four attempts may get no answer.
    kept = int(re.search(r"broke off at ([234]000) of 10244 bytes, 4 times: run this again to resume", ran.error)[1])
    assert_failed(ran, f"broke off at {kept} of 10244 bytes")
    assert models(tmp_path) == {"Sun_model.pt.part": CONTENT[:kept]}
    hub.sends = None
    hub.requests.clear()
    assert download("Sun").code == 0
    assert hub.fetched == [("Sun_model.pt", f"bytes={kept}-")]
    assert models(tmp_path) == {"Sun_model.pt": CONTENT}


def test_all_bytes_were_there(tmp_path: Path, hub: Hub, download: Callable) -> None:
    """The run before ended between the last byte and the new name."""
    hub.offer("Sun_model.pt")
    part(tmp_path, CONTENT)
    assert download("Sun").code == 0
    assert hub.fetched == [] and models(tmp_path) == {"Sun_model.pt": CONTENT}


def part(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "project" / "models").mkdir()
    (tmp_path / "project" / "models" / "Sun_model.pt.part").write_bytes(content)


def test_servers_that_cannot_resume(tmp_path: Path, hub: Hub, download: Callable) -> None:
    hub.offer("Sun_model.pt")
    hub.ranges = False
    part(tmp_path, CONTENT[:3000])
    assert download("Sun").code == 0
    assert models(tmp_path) == {"Sun_model.pt": CONTENT}


@pytest.mark.parametrize("lengths", [True, False])
def test_a_part_that_cannot_be_of_this_file_is_dropped(
    tmp_path: Path, hub: Hub, download: Callable, lengths: bool
) -> None:
    hub.tells, hub.lengths = False, lengths
    hub.offer("Sun_model.pt")
    part(tmp_path, CONTENT + b"more" if lengths else b"unknown")
    assert download("Sun").code == 0
    assert hub.fetched == [("Sun_model.pt", None)]
    assert models(tmp_path) == {"Sun_model.pt": CONTENT}


# ---------------------------------------------------------------------------------------------------------- wrong files
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a git-lfs pointer"),
        (b"PK\x05\x06" + bytes(18), "something else"),
        (b"", "an empty file"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, hub: Hub, download: Callable, content: bytes, kind: str) -> None:
    hub.offer("Sun_model.pt", content)
    assert_failed(download("Sun"), f"{REPOSITORY}/Sun_model.pt gave {kind} instead of a head file: removed")
    assert models(tmp_path) == {}


def test_a_wrong_file_that_is_there_is_not_touched(tmp_path: Path, hub: Hub, download: Callable) -> None:
    part(tmp_path, b"")
    (tmp_path / "project" / "models" / "Sun_model.pt").write_text("<html>")
    assert_failed(download("Sun"), "Sun_model.pt is there already, and is a web page: remove it and run this again")
    assert models(tmp_path) == {"Sun_model.pt": b"<html>", "Sun_model.pt.part": b""}


def test_a_file_that_a_browser_left_half_is_not_taken_for_whole(tmp_path: Path, hub: Hub, download: Callable) -> None:
    part(tmp_path, b"")
    (tmp_path / "project" / "models" / "Sun_model.pt").write_bytes(CONTENT[:5000])
    message = "Sun_model.pt is there already, and is a file that is cut short: remove it and run this again"
    assert_failed(download("Sun"), message)
    assert models(tmp_path)["Sun_model.pt"] == CONTENT[:5000]


@pytest.mark.parametrize("status", [403, 405])
def test_a_storage_that_gives_files_but_no_headers(tmp_path: Path, hub: Hub, download: Callable, status: int) -> None:
    hub.offer("Sun_model.pt")
    hub.storage_refuses_head = status
    assert download("Sun").code == 0
    assert models(tmp_path) == {"Sun_model.pt": CONTENT}


def test_other_bytes_than_the_hub_tells(tmp_path: Path, hub: Hub, download: Callable) -> None:
    hub.offer("Sun_model.pt")
    hub.told = {"X-Linked-Etag": f'"{"0" * 64}"'}
    found = hashlib.sha256(CONTENT).hexdigest()
    assert_failed(download("Sun"), f"gave a file with SHA-256 {found} instead of {'0' * 64}: removed")
    hub.told = {"X-Linked-Size": "100"}
    assert_failed(download("Sun"), f"gave {len(CONTENT)} bytes instead of 100: removed")
    assert models(tmp_path) == {}


def test_etags_that_are_no_sha256(tmp_path: Path, hub: Hub, download: Callable) -> None:
    hub.offer("Sun_model.pt")
    hub.told = {"X-Linked-Etag": f'"{"0" * 40}"'}  # small files have that of git
    assert download("Sun").output.endswith("SHA-256 not checked\n")


# ----------------------------------------------------------------------------------------------------- nothing to fetch
def test_no_such_file(tmp_path: Path, hub: Hub, download: Callable) -> None:
    hub.offer("CIFAR100_model.pt")
    ran = download()
    assert ran.output.count("\n") == 1 and models(tmp_path) == {"CIFAR100_model.pt": CONTENT}
    assert_failed(ran._replace(output=""), "the server answers 404 for http://127.0.0.1:")
    assert f"{REPOSITORY}/INaturalist_model.pt: nothing to download there" in ran.error


def test_servers_in_trouble(tmp_path: Path, hub: Hub, download: Callable) -> None:
    hub.broken = 503
    assert_failed(download("Sun"), "Sun_model.pt, 4 times: run this again later")
    assert models(tmp_path) == {}


@pytest.mark.parametrize("client", ["curl", "wget"])
def test_no_network(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, client: str) -> None:
    with serving(monkeypatch) as server:
        address = server.url("").rstrip("/")
    (programs / client).symlink_to(shutil.which(client))  # and nobody listens any more
    ran = runner(tmp_path, programs, address)("Sun")
    assert_failed(
        ran, f"no answer from {address}: is there a network? Tried 4 times for {address}/{REPOSITORY}/Sun_mod"
    )
    assert models(tmp_path) == {}


def test_full_disks(tmp_path: Path, hub: Hub, download: Callable) -> None:
    hub.offer("Sun_model.pt")
    limit = "trap '' XFSZ; ulimit -f 4;"  # a file of 4 KiB is full, which programs are told as of a disk
    ran = download("Sun", before=limit)
    assert_failed(ran, f"cannot write {tmp_path}/project/models/Sun_model.pt.part: is the disk full? What is there is")
    assert CONTENT.startswith(models(tmp_path)["Sun_model.pt.part"])
    assert download("Sun").code == 0
    assert models(tmp_path) == {"Sun_model.pt": CONTENT}


def test_neither_curl_nor_wget(tmp_path: Path, programs: Path) -> None:
    assert_failed(runner(tmp_path, programs, "http://127.0.0.1:9")(), "needs curl or wget, and neither is installed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MNIST"], "unknown name MNIST; legal: CIFAR100, INaturalist, Places, Sun"),
        (["--verbose"], "unknown name --verbose; legal: "),
        (["Sun", "--output"], "--output needs a folder"),
        (["-o", "/dev/null/x"], "cannot make the folder /dev/null/x"),
    ],
)
def test_wrong_use(hub: Hub, download: Callable, arguments: list[str], message: str) -> None:
    assert_failed(download(*arguments), message)
    assert hub.requests == []


def test_help_and_defaults(tmp_path: Path, programs: Path) -> None:
    ran = runner(tmp_path, programs, "http://127.0.0.1:9")("--help")
    assert ran.code == 0 and ran.output.startswith("usage: download_models.sh") and ran.error == ""
    assert "https://huggingface.co}" in SCRIPT.read_text() and os.access(SCRIPT, os.X_OK)
