"""README and guides say what is true: commands have their options, those that need nothing run, tables are results."""

import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import vit_predict
import vit_train
import vit_validation
from learnable_memory import commands as learnable_memory_commands
from learnable_memory import options
from learnable_memory.__main__ import main as learnable_memory
from vit import MemoryCapableViT

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAINS = {"vit_train.py": vit_train.main, "vit_validation.py": vit_validation.main, "vit_predict.py": vit_predict.main}
# Of README's commands, those that tests cannot run, by how they begin or what they need.
NOT_RUN = {
    "make ": "runs this test, or what CI runs beside it",
    "source ": "of a shell",
    "accelerate launch": "takes four GPUs",
    "torchrun": "takes real CIFAR-100; tests/test_processes.py has one like it",
    "bash download_models.sh": "takes the network",
    "OWNER/": "takes an account on the hub",
    "--directory DIR": "takes data that does not ship",
    "CIFAR100_model.pt": "takes what download_models.sh fetches",
}


def commands(page: Path) -> list[str]:
    """The commands of a page's sh blocks, each on one line."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.partition(" #")[0].split()) for line in lines if line.strip()]


def ours(command: str) -> tuple[str, list[str]] | None:
    """Our script or `learnable_memory`, and its arguments, whatever launches it."""
    words = shlex.split(command)
    for i, word in enumerate(words):
        if word in MAINS or word == "learnable_memory":
            return word, words[i + 1 :]
    return None


ALL = [(page, command) for page in PAGES for command in commands(page) if ours(command)]


class Parsed(BaseException):
    """The options are legal; nothing more is asked."""


@pytest.fixture
def parse_only(monkeypatch):
    """Command lines end once their options are parsed."""

    def parse(*args, **kwargs):
        real(*args, **kwargs)
        raise Parsed

    real = options.parse
    for module in pkgutil.iter_modules(learnable_memory_commands.__path__, "learnable_memory.commands."):
        importlib.import_module(module.name)
    for module in list(sys.modules.values()):
        if getattr(module, "parse", None) is real:
            monkeypatch.setattr(module, "parse", parse)


def test_every_command_has_the_options_that_it_is_given(parse_only):
    refused = []
    for page, command in ALL:
        script, arguments = ours(command)
        arguments = [argument.replace("RANK", "0") for argument in arguments]
        try:
            MAINS[script](arguments) if script in MAINS else learnable_memory(arguments)
        except (Parsed, SystemExit) as ended:
            if isinstance(ended, Parsed):
                continue
        refused.append(f"{page.stem}: {command}")
    assert refused == [] and ALL


def test_wrong_options_would_be_seen(parse_only):
    with pytest.raises(SystemExit):
        vit_train.main(["--dataset", "Digits", "--learning_rate", "1"])


def reason_not_run(command: str) -> str | None:
    return next((reason for part, reason in NOT_RUN.items() if part in f"{command} "), None)


def test_what_is_not_run_is_what_cannot_be():
    every = commands(ROOT / "README.md")
    assert all(any(part in f"{command} " for command in every) for part in NOT_RUN)
    assert sum(reason_not_run(command) is None for command in every) >= 10


@pytest.fixture
def workplace(tmp_path):
    """A folder as a clone is, with `photos/` beside: what README takes for granted."""
    for name in (*MAINS, "vit.py", "learnable_memory"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base-tiny").symlink_to(ROOT / "models" / "base-tiny")
    for label, colour in {"cat": (200, 60, 40), "dog": (40, 90, 200)}.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(20):
            shade = tuple(min(255, channel + 2 * i) for channel in colour)
            Image.new("RGB", (64 + i, 80), shade).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path


@pytest.mark.release
def test_the_readmes_commands_run_one_after_the_other(workplace):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"HF_HUB_OFFLINE": "1", "HOME": str(workplace)}
    for command in commands(ROOT / "README.md"):
        if reason_not_run(command) is None:
            done = subprocess.run(
                command, shell=True, cwd=workplace, env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    models = workplace / "models"
    left = {"photos_model.safetensors", "photos_curves.png", "photos_run", "grid_grid.json", "grid_grid.png"}
    assert left <= {path.name for path in models.iterdir()}
    assert (models / "both_model.safetensors").is_file()


PYTHON = [ROOT / "README.md", ROOT / "docs" / "guide" / "python.md"]


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.stem)
def test_the_first_python_block_runs(page, tmp_path, monkeypatch):
    """On the base that ships; what a reader has at that point, the test brings."""
    block = re.search(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base-tiny").symlink_to(ROOT / "models" / "base-tiny")
    monkeypatch.chdir(tmp_path)
    base, another = (MemoryCapableViT.from_pretrained("models/base-tiny") for _ in range(2))
    base.add_head("Digits", 10, 5)
    base.save_head("Digits", "models/Digits_model.safetensors")
    another.add_head("Birds", 200, 1)
    pixel_values, targets = torch.randn(2, 3, 32, 32), torch.tensor([0, 101])
    known = {"pixel_values": pixel_values, "targets": targets, "another_model": another}
    exec(block, known)
    assert {"Flowers", "Digits"} <= set(known["model"].head_names)
