"""Fixtures of all tests. Files that lie beside the project, where they are: tests that need them skip elsewhere.

Nothing heavy is imported at the top: the process that hands out tests to the others never needs it.
"""

from __future__ import annotations

import copy
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: a second thread costs more than it brings

SHARED = Path(__file__).resolve().parent.parent / "shared"


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays, and looking through it for garbage takes half a second each time


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Figures are composed and not drawn, which takes half of a small training, except in tests of pictures."""
    from matplotlib.figure import Figure
    from PIL import Image

    def save_a_dot(figure: Figure, path: str | os.PathLike, **how: object) -> None:
        Image.new("RGB", (1, 1)).save(path)

    def write_a_dot(metrics: object, path: str | os.PathLike, head: str = "") -> Path:
        save_a_dot(None, path)
        return Path(path)

    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("drawing"):
            patch.setattr(Figure, "savefig", save_a_dot)
            patch.setattr("learnable_memory.plots.training_curves", write_a_dot)  # every training ends with them
        return (yield)


@pytest.fixture
def legacy() -> Path:
    """Files of the 2023 implementation: a base in the old layout, two heads, and the logits that they gave."""
    folder = SHARED / "legacy"
    if not folder.is_dir():
        pytest.skip("the files of the 2023 implementation are not on this machine")
    return folder


# ------------------------------------------------------------------------------------- read by all, and written by none
@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base."""
    from command_lines import save_base

    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pictures of each of three classes, by folders."""
    from command_lines import CHANNELS, in_colour, save_pictures

    return save_pictures(tmp_path_factory.mktemp("pictures") / "colours", list(CHANNELS), in_colour)


@pytest.fixture(scope="session")
def brightness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pictures of each of two classes, by folders."""
    from command_lines import LEVELS, in_grey, save_pictures

    return save_pictures(tmp_path_factory.mktemp("pictures") / "brightness", list(LEVELS), in_grey)


# ----------------------------------------------------------------------------------------------------- what a test sees
@pytest.fixture
def after_each_epoch(monkeypatch: pytest.MonkeyPatch) -> type:
    """Lets a test see the heads as they are after each epoch, and prescribe their accuracies if it wants to."""
    from learnable_memory import train as training
    from learnable_memory.evaluate import Score, evaluate

    class Epochs:
        states: list[dict] = []
        accuracies: list[float] = []

    def observed(model, loader, heads, **options):
        epoch = len(Epochs.states)
        Epochs.states.append(copy.deepcopy(model.heads.state_dict()))
        if Epochs.accuracies:
            return {name: Score(9, Epochs.accuracies[epoch], 1.0, 0.1, 1.0) for name in heads}
        return evaluate(model, loader, heads, **options)

    monkeypatch.setattr(training, "evaluate", observed)
    return Epochs


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved while the test runs."""
    from learnable_memory import plots

    found, save = [], plots.save

    def keep(figure: Figure, path: str | os.PathLike) -> Path:
        found.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return found
