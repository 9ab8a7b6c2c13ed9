"""The cards that need data, bases and a GPU for days, each whole, on tiny files (`experiments run NAME --smoke`)."""

import pytest

from learnable_memory.__main__ import main
from learnable_memory.experiments.card import read_card
from learnable_memory.experiments.results import Results

CARDS = ["table2", "masking", "memory_update", "sizes", "fine_tuning", "prompts"]


@pytest.mark.release
@pytest.mark.parametrize("name", CARDS)
def test_every_line_of_a_card_runs(name, tmp_path):
    assert main(["experiments", "run", name, "--smoke", "--device", "cpu", "--output", str(tmp_path)]) == 0
    card, rows = read_card(name), Results(tmp_path / "results.jsonl").rows()
    runs = [row for row in rows if row["kind"] == "run"]
    ran = {(row["grid"], tuple(row["labels"].values())) for row in runs}
    assert ran == {(variant.grid, tuple(variant.labels.values())) for variant in card.variants()}
    assert all(row["eval"]["images"] > 0 for row in runs if row["diverged_at"] is None)
    together = [row for row in rows if row["kind"] == "together"]
    assert {row["analysis"] for row in together} == {analysis.name for analysis in card.together}
    assert all(row["top1"] == row["alone_top1"] for row in together if row["analysis"] == "concatenation")
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(f"### {table.title}\n" in report for table in card.tables)
    assert all((tmp_path / f"{figure.name}.png").stat().st_size > 10_000 for figure in card.figures)
    assert "missing" not in report.lower()
