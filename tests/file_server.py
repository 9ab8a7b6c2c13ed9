"""A web server for tests of downloads: files in memory, byte ranges, and the ways in which servers misbehave.

And what else these tests share: how archives are made, and what lies on the disk.
"""

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path.

    Attributes:
        files: path without the leading slash -> content.
        requests: (path, value of the Range header or None) of each request, in order.
        ranges: False: Range headers are ignored, as simple servers do.
        sends: the connection ends after so many bytes of an answer's body.
        before_answer: called before each answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.sends: int | None = None
        self.before_answer = lambda: None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    @property
    def asked(self) -> list[str | None]:
        """The Range header of each request."""
        return [byte_range for _, byte_range in self.requests]


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        path, wanted = self.path.partition("?")[0].lstrip("/"), self.headers["Range"]
        self.server.requests.append((path, wanted))
        self.server.before_answer()
        content = self.server.files.get(path)
        if content is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.ranges else None
        if start is not None and start >= len(content):
            self.send_error(416)
            return
        self.send_response(200 if start is None else 206)
        body = content[start or 0 :]
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.sends])

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """The server, in a thread of its own; downloads do not wait before a retry, and keep what comes in small pieces."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    huggingface_hub.close_session()  # of an earlier test: it would keep the proxies of then
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def tar(files: dict[str, bytes], compression: str = "gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tree(root: Path) -> dict[str, bytes]:
    """All files below `root` but the locks, which some versions of filelock leave, with their content."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
