"""A stand-in for the HuggingFace hub: repositories in memory, and as much of its API as its own library asks for."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

TOKEN = "hf_writer"


@dataclass
class Repository:
    """`branches`: branch -> file -> content. `gated`: its files are refused, though not their names. `sha256`: what it
    says of each file, instead of what is true."""

    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    private: bool = False
    gated: bool = False
    sha256: str | None = None

    def about(self, content: bytes) -> dict:
        """What is said of a large file."""
        digest = self.sha256 or hashlib.sha256(content).hexdigest()
        return {"sha256": digest, "size": len(content), "pointerSize": 0}

    def commit(self, branch: str) -> str:
        """The hash of what a branch holds."""
        content = repr(sorted(self.branches[branch].items())).encode()
        return hashlib.sha1(content).hexdigest()

    def find(self, revision: str) -> str | None:
        """The branch of this name, or with this commit."""
        return next((branch for branch in self.branches if revision in (branch, self.commit(branch))), None)


class HubServer(ThreadingHTTPServer):
    """Serves `repositories` by OWNER/NAME.

    Attributes:
        requests: (method, path) of each request, in order.
        commits: what each commit held: {"header": .., "files": file -> content, "pull_request": ..}.
        validated: the cards that were given to be checked.
        invalid: what that check finds wrong, if anything.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.commits: list[dict] = []
        self.validated: list[str] = []
        self.invalid: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self._path()
        if path == "/api/validate-yaml":
            self.server.validated.append(json.loads(body)["content"])
            problems = [{"message": self.server.invalid}] if self.server.invalid else []
            self._json({"errors": problems, "warnings": []}, 400 if problems else 200)
        elif not self._may_write():
            self._refuse(401, None)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("private", asked.get("visibility") == "private")
            self.server.repositories[name] = Repository(private=private)
            self._json({"url": f"{self.server.url}/{name}"})
        else:
            name, what, revision = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/(.+)", path).groups()
            getattr(self, f"_{what}")(name, unquote(revision), body)

    # What a request body asks for, by the last part of its path but one.
    def _branch(self, name: str, branch: str, body: bytes) -> None:
        branches = self.server.repositories[name].branches
        branches[branch] = dict(branches["main"])
        self._json({})

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                 for file in json.loads(body)["files"]]  # fmt: skip
        self._json({"files": files})

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
        pull_request = "create_pr=1" in self.path
        self.server.commits.append({"header": lines[0]["value"], "files": files, "pull_request": pull_request})
        repository = self.server.repositories[name]
        if not pull_request:
            repository.branches[revision].update(files)
        commit, url = repository.commit(revision), f"{self.server.url}/{name}"
        found = {"commitUrl": f"{url}/commit/{commit}", "commitOid": commit}
        self._json({**found, "pullRequestUrl": f"{url}/discussions/1" if pull_request else None})

    def _read(self) -> None:
        path = self._path()
        asked = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        asked = asked or re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if asked is None:  # the library asks for other things too
            self._refuse(404, None)
            return
        name, revision, *file = map(unquote, asked.groups("main"))
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self._may_write()):
            self._refuse(401, "RepoNotFound")
        elif (branch := repository.find(revision)) is None:
            self._refuse(404, "RevisionNotFound")
        elif not file:
            siblings = [{"rfilename": file, "lfs": repository.about(content)}
                        for file, content in repository.branches[branch].items()]  # fmt: skip
            about = {"id": name, "sha": repository.commit(branch), "private": repository.private}
            self._json({**about, "siblings": siblings})
        elif repository.gated:
            self._refuse(403, "GatedRepo")
        else:
            self._send_file(repository, branch, file[0])

    def _send_file(self, repository: Repository, branch: str, file: str) -> None:
        content = repository.branches[branch][file]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", repository.commit(branch))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _path(self) -> str:
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        return path

    def _may_write(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def _refuse(self, status: int, code: str | None) -> None:
        self._json({"error": "no"}, status, {"X-Error-Code": code} if code else {})

    def _json(self, answer: dict, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        for header, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def point_library_at(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub ask this address, keep files here, and know no token of this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)


@contextmanager
def serving_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    huggingface_hub.close_session()  # of an earlier test: it would keep the proxies of then
    with HubServer() as server:
        point_library_at(server.url, cache, monkeypatch)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            huggingface_hub.close_session()
            server.shutdown()
            thread.join()
