"""Fixtures of all tests. Files that lie beside the project, where they are: tests that need them skip elsewhere.

Nothing heavy is imported at the top: the process that hands out tests to the others never needs it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: a second thread costs more than it brings

SHARED = Path(__file__).resolve().parent.parent / "shared"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Figures are composed and not drawn, which takes half of a small training, except in tests of pictures."""
    from matplotlib.figure import Figure
    from PIL import Image

    def save_a_dot(figure: Figure, path: str | os.PathLike, **how: object) -> None:
        Image.new("RGB", (1, 1)).save(path)

    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("drawing"):
            patch.setattr(Figure, "savefig", save_a_dot)
        return (yield)


@pytest.fixture
def legacy() -> Path:
    """Files of the 2023 implementation: a base in the old layout, two heads, and the logits that they gave."""
    folder = SHARED / "legacy"
    if not folder.is_dir():
        pytest.skip("the files of the 2023 implementation are not on this machine")
    return folder


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
