"""What `pip install .` gives: the modules, the files that ship in the package, and commands that need no clone."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMMANDS = PROJECT["project"]["scripts"]  # name -> "module:function"
BASE = ROOT / "models" / "base-tiny"


def test_the_commands_are_the_promised_ones():
    assert {"vit-train", "vit-validation", "vit-predict"} <= COMMANDS.keys()


def test_every_module_of_the_top_level_is_installed():
    modules = {path.stem for path in ROOT.glob("vit*.py")}
    assert set(PROJECT["tool"]["setuptools"]["py-modules"]) == modules


def test_mypy_looks_at_all_that_is_installed():
    modules = {f"{name}.py" for name in PROJECT["tool"]["setuptools"]["py-modules"]}
    assert set(PROJECT["tool"]["mypy"]["files"]) == modules | {"learnable_memory"}


# ----------------------------------------------------------------------------------------------- installed from a wheel
@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The project's wheel, built from a copy: building leaves files beside the sources."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for path in ROOT.glob("vit*.py"):
        shutil.copy(path, sources)
    shutil.copytree(
        ROOT / "learnable_memory", sources / "learnable_memory", ignore=shutil.ignore_patterns("__pycache__")
    )
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(sources), "--no-build-isolation", "--wheel-dir", str(target))
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder that the wheel is installed into; what it depends on is taken from this environment."""
    target = tmp_path_factory.mktemp("site")
    pip("install", str(wheel), "--no-index", "--target", str(target))
    return target


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", arguments[0], "--no-deps", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def installed(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run an installed command in a folder that is no clone of the repository."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(site / "bin" / words[0]), *words[1:]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.release
def test_the_wheel_holds_all_files_of_the_package(wheel):
    package = ROOT / "learnable_memory"
    present = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {path.relative_to(ROOT).as_posix() for path in [*present, *ROOT.glob("vit*.py")]}
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == wanted


@pytest.mark.release
def test_installed_commands_train_evaluate_and_predict_outside_of_a_clone(site, tmp_path):
    code = "import learnable_memory, vit; print(learnable_memory.__file__, vit.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert all(path.startswith(str(site)) for path in where.stdout.split()), where.stdout + where.stderr

    places = ["--directory", str(tmp_path), "--no_download", "--workers", "0"]
    trained = installed(
        site, tmp_path, "vit-train", "--dataset", "Digits", "--base_model", str(BASE), "--epochs", "1",
        "--max_steps", "2", *places,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "models" / "Digits_model.safetensors").is_file()
    evaluated = installed(site, tmp_path, "vit-validation", "--models-list", "Digits", *places)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Digits" in evaluated.stdout
    picture = ROOT / "images" / "two_streams.png"
    answered = installed(site, tmp_path, "vit-predict", str(picture), "--heads", "Digits", *places)
    assert answered.returncode == 0, answered.stderr
    assert picture.name in answered.stdout


@pytest.mark.release
def test_the_data_set_that_ships_is_installed(site, tmp_path):
    shown = installed(
        site, tmp_path, "learnable-memory", "data", "FashionMNIST-subset", "--directory", str(tmp_path), "--no_download"
    )
    assert shown.returncode == 0, shown.stderr
    assert "FashionMNIST-subset: 10 classes" in shown.stdout


@pytest.mark.release
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiments", "list"], "there are no cards in experiments: run this in a clone of the repository"),
        (["experiments", "report", "table2"], "no card 'table2': give a card.yaml, its folder, or the name of one"),
        (["demo"], "the base models/base-tiny comes with a clone of the repository"),
    ],
)
def test_what_needs_a_clone_says_so_in_one_line(site, tmp_path, words, said):
    found = installed(site, tmp_path, "learnable-memory", *words)
    assert found.returncode == 2
    assert found.stdout == ""
    assert re.fullmatch(rf"[^\n]+: error: {re.escape(said)}[^\n]*\n", found.stderr)
