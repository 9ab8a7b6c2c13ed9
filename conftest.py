"""Fixtures of all tests. Files that lie beside the project, where they are: tests that need them skip elsewhere."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it brings

SHARED = Path(__file__).resolve().parent.parent / "shared"


@pytest.fixture
def legacy() -> Path:
    """Files of the 2023 implementation: a base in the old layout, two heads, and the logits that they gave."""
    folder = SHARED / "legacy"
    if not folder.is_dir():
        pytest.skip("the files of the 2023 implementation are not on this machine")
    return folder
