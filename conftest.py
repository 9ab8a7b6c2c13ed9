"""Fixtures of all tests. Files that lie beside the project, where they are: tests that need them skip elsewhere."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from learnable_memory import plots

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it brings

SHARED = Path(__file__).resolve().parent.parent / "shared"


@pytest.fixture
def legacy() -> Path:
    """Files of the 2023 implementation: a base in the old layout, two heads, and the logits that they gave."""
    folder = SHARED / "legacy"
    if not folder.is_dir():
        pytest.skip("the files of the 2023 implementation are not on this machine")
    return folder


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved while the test runs."""
    found, save = [], plots.save

    def keep(figure, path):
        found.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return found
