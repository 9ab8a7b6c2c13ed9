"""The examples of CONTRIBUTING.md, on a copy of the project: files as they are given there, changes as patches."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = {path: content for path, _, content in re.findall(r"^`([^`\n]+)`:\n\n```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)}
PATCHES = re.findall(r"^```diff\n(.*?)^```$", TEXT, re.M | re.S)
COPIED = ("learnable_memory", "models/base-tiny", "pyproject.toml", "tests/tiny.py", "tests/families_reference.py")


@pytest.fixture
def copy(tmp_path) -> Path:
    """The project with all examples in it."""
    for name in (*COPIED, *(path.name for path in ROOT.glob("vit*.py"))):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    for name, content in FILES.items():
        assert not (ROOT / name).exists(), f"{name} is there already"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    for patch in PATCHES:
        done = run(tmp_path, "git", "apply", "--unidiff-zero", "-", told=patch)
        assert done.returncode == 0, done.stderr
    return tmp_path


def run(folder: Path, *command: str, told: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, input=told, capture_output=True, text=True)


def test_every_kind_of_addition_has_an_example_and_a_test():
    headings = re.findall(r"^## (An? .*)$", TEXT, re.M)
    assert headings == ["A data set", "A base family", "A method", "An experiment card"]
    assert sum(name.startswith("tests/") for name in FILES) == len(headings)


def test_all_code_is_an_example():
    assert len(FILES) + len(PATCHES) + 1 == len(re.findall(r"^```\w+$", TEXT, re.M))  # 1: the commands at the top


def test_the_files_that_are_named_exist():
    named = set(re.findall(r"`((?:\w+/)*[\w-]+\.(?:py|md|toml))`", TEXT)) - FILES.keys() - {"report.md"}  # of each card
    places = (ROOT, ROOT / "learnable_memory")  # where the text has named a folder, it leaves the package out
    assert [name for name in sorted(named) if not any((place / name).is_file() for place in places)] == []


def test_the_examples_can_be_applied_and_keep_the_style(copy):
    changed = [name for patch in PATCHES for name in re.findall(r"^\+\+\+ b/(.+)$", patch, re.M)]
    files = [name for name in (*FILES, *changed) if name.endswith(".py")]
    for check in (("check",), ("format", "--check")):
        done = run(copy, sys.executable, "-m", "ruff", *check, *files)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.release
def test_the_tests_of_the_examples_pass(copy):
    tests = [name for name in FILES if name.startswith("tests/")]
    done = run(copy, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^5 passed", done.stdout, re.M), done.stdout
