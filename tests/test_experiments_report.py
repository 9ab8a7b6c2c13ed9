"""The report: a page of results only, the same byte for byte whatever the order in which they came."""

import random

import pytest

from experiment_rows import ANALYSIS, a_card, a_run, diverged_run, put, variant_of
from learnable_memory.experiments.findings import Findings, progress
from learnable_memory.experiments.report import duration, write_report

SHOWN = {
    "tables": [{"title": "Accuracy", "grid": "main", "rows": "method", "columns": "data", "value": "top1"}],
    "figures": [
        {"kind": kind, "name": kind, "title": f"The {kind}", "grid": "main", "rows": "method", "columns": "data"}
        for kind in ("points", "rates")
    ],
    "together": [{**ANALYSIS, "title": "Together"}],
}


@pytest.fixture
def card(tmp_path):
    return a_card(tmp_path, **SHOWN)


def whole(card):
    """Everything that the card plans: 0.1 is best of all."""
    rows = []
    for number, variant in enumerate(card.variants()):
        rows += [a_run(variant, rate, select=0.4, right="1000") for rate in variant.rates if rate != 0.1]
        rows += [a_run(variant, 0.1, seed, format(number + 8 + seed, "04b")) for seed in (0, 1, 2)]
    return rows + [put({"data": data}, "10", "01", seed) for data in ("Digits", "Fashion") for seed in (0, 1, 2)]


def page(card, rows, folder) -> str:
    (path, *_) = write_report(card, rows, folder)
    return path.read_text(encoding="utf-8")


def section(text: str, heading: str) -> list[str]:
    """The lines below a heading, without empty ones."""
    return [line for line in text.split(f"## {heading}\n")[1].split("\n## ")[0].split("\n") if line]


def test_the_same_rows_give_the_same_bytes_in_any_order(card, tmp_path):
    rows = whole(card)
    first = write_report(card, rows, tmp_path / "first")
    assert [path.name for path in first] == ["report.md", "points.png", "rates.png"]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert shuffled != rows
    second = write_report(card, shuffled, tmp_path / "somewhere" / "else")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_page_names_no_path_and_ends_its_lines_alike(card, tmp_path):
    path = write_report(card, whole(card), tmp_path)[0]
    assert b"\r" not in path.read_bytes() and path.read_bytes().endswith(b"\n")
    assert str(tmp_path) not in path.read_text()


def test_the_page_says_what_the_card_says(card, tmp_path):
    text = page(card, whole(card), tmp_path)
    assert text.startswith("# Cells on digits\n")
    for words in (
        "`python -m learnable_memory experiments report demo`",
        "**Question.** Do more cells help?",
        "**Paper.** Sandler et al., CVPR 2022",
        "```sh\npython -m learnable_memory experiments run demo\n```",
        "**Expected result.** They do.",
        "**Expected time.** a minute",
        "### Accuracy\n\n| method |",
        "### Together\n\n| data |",
        "![The points](points.png)",
    ):
        assert words in text


def test_how_it_was_run_is_read_off_the_rows(card, tmp_path):
    rows = whole(card)  # 2 data sets: 1 + 3 runs of head, 2 + 3 of 1 cell, 3 of 5 cells; 15 s each
    rows[0].update(versions={"torch": "2.14", "python": "3.12"}, train_seconds=597.0, heads_in_pass=5)  # 120 s
    rows.append(a_run(variant_of(card, "head"), 0.1, options={"epochs": 9}))
    assert section(page(card, rows, tmp_path), "How this was run") == [
        "- Runs: 24, of which 0 diverged; 1 more in the results file are of another form of this card, and left out",
        "- Data seeds: 0, 1, 2",
        "- Time of training steps and of the last evaluation: 8 min",  # 23 * 15 + 120 = 465 s
        "- Machine: device cpu; threads 2",
        "- Versions: python 3.12, torch 2.14, 2.15",
    ]


def test_nothing_is_missing_of_a_whole_card(card, tmp_path):
    assert "Missing runs" not in page(card, whole(card), tmp_path)


def test_missing_runs_are_listed(card, tmp_path):
    one, five = variant_of(card, "1 cell"), variant_of(card, "5 cells")
    rows = [a_run(one, 0.1), a_run(five, 0.1), a_run(five, 0.1, 2)]
    lines = section(page(card, rows, tmp_path), "Missing runs")
    assert lines[:3] == [
        "- main: Digits, head: lr 0.1, 1 with data seed 0; then the best rate with data seed 1, 2.",
        "- main: Digits, 1 cell: lr 0.01, 1 with data seed 0; then the best rate with data seed 1, 2.",
        "- main: Digits, 5 cells: lr 0.1 with data seed 1.",
    ]
    assert lines[6:] == [
        "- analysis all: data seed 0, 1, 2; it needs the runs of head on Digits, Fashion; a diverged run cannot be put "
        "together."
    ]


def test_an_analysis_that_is_not_whole_is_listed_by_its_data_seeds(card, tmp_path):
    rows = [row for row in whole(card) if row["kind"] == "run" or row["data_seed"] == 1]
    rows.append(put({"data": "Digits"}, "10", "01", 2))  # Fashion was not reached
    lines = section(page(card, rows, tmp_path), "Missing runs")
    assert [line.partition(";")[0] for line in lines] == ["- analysis all: data seed 0, 2"]


def test_what_was_put_together_of_other_runs_than_are_chosen_now_is_left_out(card, tmp_path):
    rows = whole(card)
    (former,) = (row for row in rows if row["key"] == "Fashion, head 0.1 0")
    former["select"]["top1"] = 0.3  # now another rate is the best
    text = page(card, rows, tmp_path)
    assert "### Together\n\nNo results yet." in text
    assert "- analysis all: data seed 0, 1, 2; " in text
    words = "of which 0 diverged; 6 results of heads put together are of runs that are no longer chosen, and left out"
    assert words in section(text, "How this was run")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"members": ["Fashion, head 0.1 0", "Digits, head 0.1 0"]},  # in another order
        {"members": ["Digits, head 0.1 0"]},
        {"labels": {"data": "Digits", "together": "Digits"}},  # of another kind of analysis
        {"analysis": "former"},
        {"data_seed": 1},  # of members that are of data seed 0
        {"key": "0123456789abcdef"},  # of other settings
    ],
    ids=str,
)
def test_a_result_of_another_form_of_an_analysis_is_left_out(card, changes):
    runs = [row for row in whole(card) if row["kind"] == "run"]
    mine = put({"data": "Digits"}, "10", "01")
    findings = Findings(card, [*runs, mine, {**mine, **changes}])
    assert (findings.together, findings.together_left_out) == ([mine], 1)


def test_progress_counts_the_runs_of_the_card(card):
    # By hand: of each of 2 data sets 2 + 2 runs of head, 3 + 2 of 1 cell and 1 + 2 of 5 cells.
    assert progress(card, []) == (0, 24)
    assert progress(card, whole(card)) == (24, 24)
    one = variant_of(card, "1 cell")
    rows = [a_run(one, 0.1), a_run(one, 0.1, 1), a_run(one, 0.1, options={"epochs": 9})]
    assert progress(card, rows) == (1, 24)  # whether data seed 1 wants this rate is not known yet
    assert progress(card, [*rows, a_run(one, 0.01, select=0.1), a_run(one, 1.0, select=0.1)]) == (4, 24)


def test_progress_awaits_nothing_behind_rates_that_all_diverged(card):
    head = variant_of(card, "head")
    assert progress(card, [diverged_run(head, rate) for rate in head.rates]) == (2, 22)


def test_a_card_without_results_has_a_page_too(card, tmp_path):
    (path,) = write_report(card, [], tmp_path / "new")
    text = path.read_text()
    assert section(text, "How this was run") == ["There are no results yet."]
    assert len(section(text, "Missing runs")) == 7
    assert "The points: no results yet." in text and "### Together\n\nNo results yet." in text


def test_a_rate_at_the_edge_is_a_warning_and_one_rate_alone_is_none(card, tmp_path):
    warning, *lines = section(page(card, whole(card), tmp_path), "Rates at the edge")
    assert warning.startswith("**Warning:** the best learning rate is at the edge of its grid")
    assert lines == [f"- main: {data}, head: 0.1 is the lowest of 0.1, 1." for data in ("Digits", "Fashion")]


def test_without_a_rate_at_the_edge_there_is_no_warning(card, tmp_path):
    one = variant_of(card, "1 cell")
    rows = [a_run(one, 0.1, select=0.9), a_run(one, 0.01), a_run(one, 1.0)]
    assert "Warning" not in page(card, rows, tmp_path)
    rows = [a_run(one, 0.1), a_run(one, 0.01), a_run(one, 1.0, select=0.9)]
    assert "1 cell: 1 is the highest of 0.01, 0.1, 1." in page(card, rows, tmp_path)


def test_where_all_rates_diverged_nothing_is_missing(card, tmp_path):
    head = variant_of(card, "head")
    text = page(card, [diverged_run(head, rate) for rate in head.rates], tmp_path)
    assert "Digits, head:" not in text and "- Runs: 2, of which 2 diverged\n" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(59.4, "59 s"), (60, "1 min"), (3570, "1 h 0 min"), (5400, "1 h 30 min")]
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words
