"""download_models.sh: what it asks `heads fetch` for; and once in earnest, against a stand-in for the hub."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hub_server import Repository, serving_hub
from learnable_memory import heads
from test_legacy import old_state

SCRIPT = Path(__file__).resolve().parent.parent / "download_models.sh"
NAMES = ("CIFAR100", "INaturalist", "Places", "Sun")
REPOSITORY = "necrashter/transformers-learnable-memory"

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs the script with a `python` that says what it was asked to do."""
    python = tmp_path / "programs" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "python $*"')
    python.chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        settings = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
        return subprocess.run([SCRIPT, *arguments], env=settings, cwd=tmp_path, capture_output=True, text=True)

    return run


def fetch(name: str, folder: str) -> str:
    return f"python -m learnable_memory heads fetch {REPOSITORY} --filename {name}_model.pt --output {folder}"


def test_what_is_not_there_is_fetched(run: Callable, tmp_path: Path) -> None:
    assert run().stdout.splitlines() == [fetch(name, str(SCRIPT.parent / "models")) for name in NAMES]
    (tmp_path / "some where").mkdir()
    (tmp_path / "some where" / "Sun_model.pt").write_bytes(b"there")
    ran = run("--output", "some where", "Sun", "Places")
    assert ran.stdout == f"Sun: some where/Sun_model.pt is there already\n{fetch('Places', 'some where')}\n"
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MNIST"], "unknown name MNIST; legal: CIFAR100, INaturalist, Places, Sun"),
        (["--verbose"], "unknown name --verbose; legal: CIFAR100, INaturalist, Places, Sun"),
        (["Sun", "--output"], "--output needs a folder"),
    ],
)
def test_wrong_use(run: Callable, arguments: list[str], message: str) -> None:
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"download_models.sh: {message}\n")


def test_help(run: Callable) -> None:
    ran = run("--help")
    assert ran.returncode == 0 and ran.stdout.startswith("usage: download_models.sh")


@pytest.mark.slow
def test_heads_come_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(old_state(), tmp_path / "Sun_model.pt")
    content = (tmp_path / "Sun_model.pt").read_bytes()
    with serving_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.repositories[REPOSITORY] = Repository({"main": {"Sun_model.pt": content}})
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "PATH": path}
        ran = subprocess.run([SCRIPT, "-o", tmp_path / "new", "Sun", "CIFAR100"], env=settings, capture_output=True)
    assert heads.load(tmp_path / "new" / "Sun_model.pt").metadata["name"] == "Sun"
    assert ran.returncode == 2 and f"{REPOSITORY} has no file CIFAR100_model.pt".encode() in ran.stderr
