"""What is committed of experiments that were really run: reports come from their results."""

from pathlib import Path

import pytest

from learnable_memory.experiments.card import read_card
from learnable_memory.experiments.report import write_report
from learnable_memory.experiments.results import Results

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = sorted(path.parent for path in (ROOT / "experiments").glob("*/results.jsonl"))


def tables_of(text: str) -> list[str]:
    return [block for block in text.split("\n\n") if block.startswith("| ")]


def test_there_are_results():
    assert [folder.name for folder in COMMITTED] == ["fitting", "here_and_now", "interpretation", "stronger_heads"]


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_the_report_is_what_the_results_say(folder, tmp_path):
    card, rows = read_card(folder), Results(folder / "results.jsonl").rows()
    written = write_report(card, rows, tmp_path)
    assert (tmp_path / "report.md").read_bytes() == (folder / "report.md").read_bytes()
    assert all((folder / path.name).is_file() for path in written)
    # In whatever order the runs came.
    write_report(card, rows[::-1], tmp_path)
    assert (tmp_path / "report.md").read_bytes() == (folder / "report.md").read_bytes()


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_no_run_of_the_card_is_missing(folder):
    assert "Missing runs" not in (folder / "report.md").read_text(encoding="utf-8")
