"""Figures of a report: what the results say is where it belongs, and nothing lies over anything else."""

import numpy as np
import pytest
from matplotlib.figure import Figure as Picture

from experiment_rows import DATA, FIVE, HEAD, ONE, a_card, a_grid, a_run, diverged_run, variant_of
from learnable_memory.experiments import figures
from learnable_memory.experiments.findings import Findings

POINTS = {"kind": "points", "name": "f", "title": "Methods", "grid": "main", "rows": "method", "columns": "data"}
LINES = {**POINTS, "kind": "lines", "x": "memory_tokens", "lines": {"memory": ["1 cell", "5 cells"]}}
RATES = {**POINTS, "kind": "rates"}


def all_runs(card, method, data, rights, **changes):
    variant = variant_of(card, method, data)
    found = [a_run(variant, rate, select=0.1, **changes) for rate in variant.rates if rate != 0.1]
    return found + [a_run(variant, 0.1, seed, right, **changes) for seed, right in enumerate(rights)]


@pytest.fixture
def draw(tmp_path, drawn):
    """The panels by their title, of a figure of the rows that `rows_of(card)` gives; and the figure."""

    def drawn_panels(entry, rows_of, **changes):
        card = a_card(tmp_path, figures=[entry], **changes)
        path = figures.draw(card.figures[0], Findings(card, rows_of(card)), tmp_path / "f.png")
        assert path == tmp_path / "f.png" and path.read_bytes().startswith(b"\x89PNG")
        return {axes.get_title(): axes for axes in drawn[-1].axes}, drawn[-1]

    return drawn_panels


def some(card):
    rows = all_runs(card, "head", "Digits", ("1000", "1000", "1100"))
    rows += all_runs(card, "1 cell", "Digits", ("1100", "1110", "1111"))
    rows += all_runs(card, "5 cells", "Digits", ("1110",)) + all_runs(card, "5 cells", "Fashion", ("1100",))
    return rows


def marks(axes, marker):
    """Where a mark stands, in the order in which it was drawn."""
    return [tuple(xy) for line in axes.lines if line.get_marker() == marker for xy in line.get_xydata()]


def legend(picture: Picture) -> list[str]:
    return [text.get_text() for part in picture.subfigs for each in part.legends for text in each.get_texts()]


def bars(axes):
    return [tuple(map(tuple, box.lines[2][0].get_segments()[0])) for box in axes.containers]


def test_points_are_means_with_bars_and_published_numbers(draw):
    panels, picture = draw({**POINTS, "published": {"head": {"Digits": 85.8}}}, some)
    digits = panels["Digits"]
    assert [label.get_text() for label in digits.get_yticklabels()] == ["head", "1 cell", "5 cells"]
    assert np.array(marks(digits, "o")) == pytest.approx(np.array([(1 / 3, 0), (0.75, 1), (0.75, 2)]))
    assert np.array(marks(digits, "D")) == pytest.approx(np.array([(0.858, 0)]))
    spread = np.std([0.25, 0.25, 0.5], ddof=1)
    assert bars(digits)[0] == (pytest.approx((1 / 3 - spread, 0)), pytest.approx((1 / 3 + spread, 0)))
    assert len(bars(digits)) == 2  # one run alone has no spread
    assert sorted(x for x, _ in marks(digits, ".")) == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]
    assert marks(panels["Fashion"], "o") == [(0.5, 2)]
    assert legend(picture) == ["mean", "± standard deviation over data seeds", "one run", "published"]


def test_lines_go_through_their_rows_and_references_across(draw):
    panels, picture = draw({**LINES, "references": ["head"]}, some)
    digits = panels["Digits"]
    assert [label.get_text() for label in digits.get_xticklabels()] == ["1", "5"]
    (line,) = [line for line in digits.lines if line.get_marker() == "o"]
    assert line.get_xydata() == pytest.approx(np.array([[0, 0.75], [1, 0.75]]))
    (across,) = [line for line in digits.lines if list(line.get_xdata()) == [0, 1] and line.get_marker() != "o"]
    assert list(across.get_ydata()) == pytest.approx([1 / 3, 1 / 3])
    assert marks(panels["Fashion"], "o") == [(1, 0.5)]
    assert legend(picture) == ["memory", "head", "± standard deviation over data seeds"]


def test_a_line_is_drawn_from_left_to_right_and_may_have_two_rows_in_a_place(draw):
    def rows(card):
        return some(card) + all_runs(card, "again", "Digits", ("1111",))

    methods = [FIVE, HEAD, {**FIVE, "label": "again"}, ONE]
    panels, _ = draw(
        {**LINES, "lines": {"memory": ["5 cells", "again", "1 cell"]}},
        rows,
        grids=[a_grid(over={"data": DATA, "method": methods})],
    )
    assert marks(panels["Digits"], "o") == [(0, 0.75), (1, 0.75), (1, 1.0)]


def test_lines_that_meet_stand_side_by_side(draw):
    panels, _ = draw({**LINES, "lines": {"one": ["1 cell"], "five": ["5 cells"]}, "x": "epochs"}, some)
    (one, _), (five, _) = marks(panels["Digits"], "o")[0], marks(panels["Digits"], "s")[0]
    assert one < 0 < five and [label.get_text() for label in panels["Digits"].get_xticklabels()] == ["3"]


@pytest.mark.parametrize("x", ["cells", "method", "memory_norm"])
def test_x_has_to_be_a_number(draw, x):
    with pytest.raises(ValueError, match=rf"figure 'f': x is '{x}', which is .* in a run, but it has to be a number"):
        draw({**LINES, "x": x}, some)


def test_rates_are_drawn_over_select_with_what_was_chosen_and_what_diverged(draw):
    def rows(card):
        variant = variant_of(card, "1 cell")
        return [
            a_run(variant, 0.01, select=0.5),
            a_run(variant, 0.1, select=0.75),
            a_run(variant, 0.1, 1, select=0.25),
            diverged_run(variant, 1.0),
        ]

    panels, picture = draw(RATES, rows)
    assert list(panels) == ["Digits"]  # of the other nothing was run
    line, chosen = [line for line in panels["Digits"].lines if line.get_marker() == "s"]
    assert [tuple(xy) for xy in line.get_xydata()] == [(0.01, 0.5), (0.1, 0.75)]  # of data seed 0
    assert [tuple(xy) for xy in chosen.get_xydata()] == [(0.1, 0.75)]
    assert [x for x, _ in marks(panels["Digits"], "x")] == [1.0]
    assert panels["Digits"].get_xscale() == "log"
    assert legend(picture) == ["head", "1 cell", "5 cells", "chosen", "diverged"]


@pytest.mark.parametrize("entry", [POINTS, LINES, RATES], ids=lambda entry: entry["kind"])
def test_without_results_there_is_no_file(tmp_path, entry):
    card = a_card(tmp_path, figures=[entry])
    assert figures.draw(card.figures[0], Findings(card, []), tmp_path / "f.png") is None
    assert not (tmp_path / "f.png").exists()


@pytest.mark.drawing
@pytest.mark.parametrize("entry", [POINTS, LINES, RATES], ids=lambda entry: entry["kind"])
@pytest.mark.parametrize("tasks", [1, 5])
@pytest.mark.filterwarnings("error")  # matplotlib warns where a layout does not fit
def test_nothing_overlaps(draw, entry, tasks):
    """Of many methods with long names, on some data sets, with a title and a legend."""
    long = [f"unmasked memory after the norm, {count} cells" for count in range(1, 10)]
    over = {
        "data": [{"label": f"Task {task}", "dataset": "Digits"} for task in range(tasks)],
        "method": [{"label": name, "number_of_memory_tokens": i, "lr": 0.1} for i, name in enumerate(long)],
    }
    lines = {"lines": {name: [name] for name in long[1:]}, "references": long[:1]} if entry is LINES else {}
    _, picture = draw(
        {**entry, **lines},
        lambda card: [a_run(variant, 0.1, seed) for variant in card.variants() for seed in (0, 1)],
        grids=[a_grid(over=over)],
    )
    above, below = picture.subfigs
    (key,) = below.legends
    boxes = [axes.get_tightbbox() for axes in above.axes]
    boxes += [key.get_window_extent(), above._suptitle.get_window_extent()]
    assert len(boxes) == tasks + 2
    for index, box in enumerate(boxes):
        assert picture.bbox.x0 <= box.x0 and box.x1 <= picture.bbox.x1 and picture.bbox.y0 <= box.y0
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
