"""The picture of a grid: every run is in it, in its place, and what it shows is what the rows say."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from learnable_memory import plots
from learnable_memory.grid import Outcome
from learnable_memory.grid_plot import grid_accuracy
from learnable_memory.method_spec import MethodSpec
from outcomes import outcome

ORANGE, GREEN = plots.HEADS[:2]


def draw(outcomes: list[Outcome], path, drawn: list[Figure]) -> tuple[Axes, Axes, Axes]:
    """The panels of the evaluation and of the selection split, and what lies below them; drawn from JSON."""
    grid_accuracy(json.loads(json.dumps([outcome.row() for outcome in outcomes])), path / "grid.png", "Digits")
    by_title = {axes.get_title(): axes for axes in drawn[-1].axes}
    return by_title["Evaluation split"], by_title["Selection split"], by_title[""]


def lines(axes: Axes, marker: str, colour: str | None = None) -> list[Line2D]:
    """The lines with this mark, and in this colour if one is named."""
    found = [line for line in axes.lines if line.get_marker() == marker]
    return [line for line in found if colour is None or to_hex(line.get_color()) == colour]


def places(axes: Axes) -> dict[str, float]:
    return {label.get_text(): x for x, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}


def legend(axes: Axes) -> list[str]:
    """What all legends in `axes` say."""
    children = [child for child in axes.get_children() if hasattr(child, "get_texts")]
    return [text.get_text() for child in children for text in child.get_texts()]


def bars(axes: Axes) -> list[tuple[float, float, float]]:
    """Place and ends of each error bar."""
    found = []
    for container in axes.containers:
        (segment,) = container.lines[2][0].get_segments()
        found.append((segment[0][0], segment[0][1], segment[1][1]))
    return found


GRID = [
    outcome(0.80, 0.70, tokens=20, seed=0),
    outcome(0.90, 0.72, tokens=20, seed=1),
    outcome(0.50, 0.40, tokens=5),
    outcome(0.45, 0.35, tokens=0),
    outcome(0.30, 0.20, tokens=None),
]


@pytest.mark.drawing
def test_the_picture_is_written_where_it_was_asked_for(tmp_path):
    path = grid_accuracy([run.row() for run in GRID], tmp_path / "new" / "grid.png", "Digits")
    assert path == tmp_path / "new" / "grid.png"
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 1200


def test_places_are_evenly_spaced_with_the_probe_left_of_all_memory(tmp_path, drawn):
    for axes in draw(GRID, tmp_path, drawn)[:2]:
        assert places(axes) == {"probe": 0, "0": 1, "5": 2, "20": 3}
        assert axes.get_xlim()[0] < 0 and axes.get_xlim()[1] > 3


def test_a_line_goes_through_the_means_and_leaves_the_probe_out(tmp_path, drawn):
    evaluation, selection, _ = draw(GRID, tmp_path, drawn)
    for axes, probe, means in ((evaluation, 0.20, [0.35, 0.40, 0.71]), (selection, 0.30, [0.45, 0.50, 0.85])):
        alone, joined = sorted(lines(axes, "o"), key=lambda line: len(line.get_xdata()))
        assert alone.get_xydata() == pytest.approx(np.array([[0, probe]]))
        assert joined.get_xydata() == pytest.approx(np.array([[1, means[0]], [2, means[1]], [3, means[2]]]))


def test_several_runs_have_a_deviation_and_a_point_each(tmp_path, drawn):
    evaluation, selection, _ = draw(GRID, tmp_path, drawn)
    # Of two runs the sample deviation is their distance over the root of 2.
    for axes, mean, distance in ((evaluation, 0.71, 0.02), (selection, 0.85, 0.10)):
        half = distance / math.sqrt(2)
        assert bars(axes) == [pytest.approx((3, mean - half, mean + half))]
        (points,) = lines(axes, ".")
        assert sorted(points.get_ydata()) == pytest.approx([mean - distance / 2, mean + distance / 2])
        assert all(3 < x < 3.5 for x in points.get_xdata())


def test_each_rate_has_a_line_of_its_own_side_by_side(tmp_path, drawn):
    runs = [outcome(top1, top1, tokens=tokens, lr=lr) for lr, top1 in ((0.3, 0.6), (0.01, 0.5)) for tokens in (1, 5)]
    evaluation, _, below = draw(runs, tmp_path, drawn)
    (low,), (high,) = lines(evaluation, "o", ORANGE), lines(evaluation, "s", GREEN)
    assert low.get_ydata().tolist() == [0.5, 0.5] and high.get_ydata().tolist() == [0.6, 0.6]
    assert np.all(low.get_xdata() < [0, 1]) and np.all(high.get_xdata() > [0, 1])
    assert np.all(np.abs([*low.get_xdata(), *high.get_xdata()] - np.array([0, 1, 0, 1])) < 0.5)
    assert legend(below) == ["lr 0.01", "lr 0.3"]


def test_no_two_rates_of_a_long_list_look_the_same_or_leave_their_place(tmp_path, drawn):
    rates = [0.001 * 2**step for step in range(12)]
    evaluation, *_ = draw([outcome(0.5, 0.5, tokens=t, lr=lr) for lr in rates for t in (1, 5)], tmp_path, drawn)
    joined = [line for line in evaluation.lines if len(line.get_xdata()) == 2 and line.get_marker() in tuple("osD^vPX")]
    assert len(joined) == len(rates)
    # Where colours come round again, two lines that cross between their marks must differ as lines too.
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in joined}) == len(rates)
    assert len({(to_hex(line.get_color()), line.get_marker()) for line in joined}) == len(rates)
    assert max(line.get_xdata()[0] for line in joined) < 0.5 < min(line.get_xdata()[1] for line in joined)


DIVERGED = [
    outcome(0.99, 0.99, tokens=1, seed=0, diverged_at=30),
    outcome(0.50, 0.40, tokens=1, seed=1),
    outcome(None, tokens=5, seed=0, diverged_at=1),
    outcome(None, tokens=5, seed=1, diverged_at=1),
    outcome(0.60, 0.50, tokens=20),
]


def test_diverged_runs_are_crosses_at_the_bottom_and_in_no_mean(tmp_path, drawn):
    evaluation, selection, below = draw(DIVERGED, tmp_path, drawn)
    for axes, means in ((evaluation, [0.4, math.nan, 0.5]), (selection, [0.5, math.nan, 0.6])):
        (line,) = lines(axes, "o")
        assert line.get_ydata() == pytest.approx(means, nan_ok=True)
        crosses = lines(axes, "x")
        assert [cross.get_xdata()[0] for cross in crosses] == [0, 1]
        heights = {cross.get_ydata()[0] for cross in crosses}
        assert axes.get_ylim()[0] < max(heights) < 0.4  # inside the picture, below every run
        assert [text.get_text() for text in axes.texts] == ["2"]
        assert [text.xy[0] for text in axes.texts] == [1]
    assert "diverged (how many, if several)" in legend(below)
    assert [label.get_text() for label in evaluation.get_yticklabels(minor=True)] == ["diverged"]


@pytest.mark.parametrize("reached", [(0.0, 1.0), (0.0, 0.4)])
def test_bars_beyond_0_and_100_percent_are_drawn_whole_but_not_marked_as_accuracies(tmp_path, drawn, reached):
    evaluation, *_ = draw([outcome(0.3, top1, seed=seed) for seed, top1 in enumerate(reached)], tmp_path, drawn)
    low, high = evaluation.get_ylim()
    # Of two runs the sample deviation is their distance over the root of 2.
    mean, deviation = sum(reached) / 2, (reached[1] - reached[0]) / math.sqrt(2)
    assert low < mean - deviation < 0 and mean + deviation < high
    assert all(0 <= tick <= 1 for tick in evaluation.get_yticks())


def test_the_legend_explains_only_what_is_there(tmp_path, drawn):
    *_, below = draw(GRID[2:], tmp_path, drawn)
    assert legend(below) == ["lr 0.1"]
    *_, below = draw(GRID, tmp_path, drawn)
    assert sorted(legend(below)) == ["lr 0.1", "mean ± standard deviation over seeds", "one run"]


def test_a_grid_that_has_diverged_altogether_is_drawn(tmp_path, drawn):
    evaluation, *_ = draw([outcome(None, tokens=tokens, diverged_at=1) for tokens in (1, 5)], tmp_path, drawn)
    assert len(lines(evaluation, "x")) == 2
    assert [text.get_text() for text in evaluation.texts] == ["every run diverged"]


def test_runs_that_were_not_evaluated_are_not_called_diverged(tmp_path, drawn):
    evaluation, selection, below = draw([outcome(0.5, tokens=1), outcome(0.6, tokens=5)], tmp_path, drawn)
    assert [text.get_text() for text in evaluation.texts] == ["no run was evaluated here"]
    assert lines(selection, "o")[0].get_ydata().tolist() == [0.5, 0.6]
    assert legend(below) == ["lr 0.1"]


@pytest.mark.parametrize("accuracies", [(0.0, 0.3), (0.97, 1.0), (0.5, 0.5), (0.6312, 0.6318)])
def test_the_axis_holds_every_run_and_has_no_mark_outside_of_0_to_100_percent(tmp_path, drawn, accuracies):
    runs = [outcome(accuracies[0], accuracies[1], tokens=1), outcome(None, tokens=5, diverged_at=1)]
    for axes in draw(runs, tmp_path, drawn)[:2]:
        low, high = axes.get_ylim()
        assert low < min(accuracies) and max(accuracies) < high
        assert len(axes.get_yticks()) >= 2
        assert all(0 <= tick <= 1 for tick in axes.get_yticks())
        assert min(axes.get_yticks()) > lines(axes, "x")[0].get_ydata()[0]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert len(set(labels)) == len(labels)  # enough digits to tell them apart


@pytest.mark.drawing
@pytest.mark.parametrize("runs", [GRID, *(pytest.param(runs, marks=pytest.mark.slow) for runs in (DIVERGED, GRID[:1]))])
def test_nothing_reaches_out_of_the_picture_or_over_the_panels(tmp_path, drawn, runs):
    rates = (0.001, 0.003, 0.01, 0.03)
    many = [outcome(0.5, 0.5, lr=lr, seed=seed) for lr in rates for seed in (0, 1)]
    evaluation, selection, below = draw([*runs, *many], tmp_path, drawn)
    figure = drawn[-1]
    boxes = [child.get_window_extent() for child in below.get_children() if hasattr(child, "get_texts")]
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
        assert box.y1 < min(axes.get_tightbbox().y0 for axes in (evaluation, selection))


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There are no rows, so there is nothing to draw"):
        grid_accuracy([], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="A row has no 'method'"):
        grid_accuracy([{"step": 1}], tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()


# ------------------------------------------------------------------------------------------------------- other methods
def of(method: str, tokens: int = 0, top1: float = 0.5, **switches) -> Outcome:
    plain = outcome(top1, top1)
    spec = MethodSpec(method, tokens, **switches)
    return dataclasses.replace(plain, cell=dataclasses.replace(plain.cell, spec=spec), head=spec.name)


def below(axes: Axes) -> tuple[list[str], dict[str, float]]:
    """The marks of the places in their order, and what stands in the line below them, where."""
    second = zip(axes.get_xticks(minor=True), axes.get_xticklabels(minor=True), strict=True)
    return [label.get_text() for label in axes.get_xticklabels()], {label.get_text(): x for x, label in second}


METHODS = [
    of("vpt-deep", 5, prompt_dropout=0.1), of("vpt-deep", 10, prompt_dropout=0.1), of("full"), of("memory", 10),
    of("memory", 1, 0.6, masking="none"), of("memory", 10, 0.7, masking="none"), of("memory", 5, 0.8, masking="none"),
    of("lora", rank=8), of("memory", 1), of("head+class"), of("head"), of("bias"),
]  # fmt: skip


def test_each_family_has_places_and_lines_of_its_own(tmp_path, drawn):
    evaluation, selection, _ = draw(METHODS, tmp_path, drawn)
    for axes in (evaluation, selection):
        marks = ["probe", "0", "1", "10", "5", "10", "full", "1", "5", "10", "lora8", "bias"]
        assert below(axes) == (marks, {"memory": 2, "vpt-deep-dropout0p1": 4.5, "unmasked": 8})
        assert axes.get_xlabel() == "method, or memory tokens in each layer"
        joined = sorted(lines(axes, "o"), key=lambda line: line.get_xdata()[0])
        assert [len(line.get_xdata()) for line in joined] == [1, 3, 2, 1, 3, 1, 1]
        assert joined[4].get_xydata() == pytest.approx(np.array([[7, 0.6], [8, 0.8], [9, 0.7]]))
        borders = [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
        assert borders == [0.5, 3.5, 5.5, 6.5, 9.5, 10.5]


def test_of_one_number_each_method_has_its_name(tmp_path, drawn):
    runs = [of("memory", 5), of("memory", 5, masking="none"), of("vpt-deep", 10, prompt_dropout=0.1), of("full")]
    axes, *_ = draw(runs, tmp_path, drawn)
    assert below(axes) == (["m5", "m5-unmasked", "vpt-deep10-\ndropout0p1", "full"], {})
    assert axes.get_xlabel() == "method"


@pytest.mark.parametrize(
    ("runs", "title"),
    [
        (GRID[:-1], "memory tokens in each layer"),
        (GRID, "method, or memory tokens in each layer"),
        ([of("memory", 5, memory_norm=False), of("head+class")], "memory tokens in each layer"),
    ],
)
def test_numbers_of_masked_memory_alone_need_no_name(tmp_path, drawn, runs, title):
    axes, *_ = draw(runs, tmp_path, drawn)
    assert axes.get_xlabel() == title and below(axes)[1] == {}


LONG = [
    of("memory", tokens, masking="none", memory_update="additive", train_class_token=False) for tokens in (1, 5)
]  # fmt: skip


@pytest.mark.parametrize("runs", [METHODS, METHODS[::3], LONG, LONG[1:] * 2 + METHODS[1:4]])
def test_marks_below_the_axis_do_not_touch(tmp_path, drawn, runs):
    panels = draw(runs, tmp_path, drawn)[:2]
    drawn[-1].draw_without_rendering()  # in its own resolution, which extents are measured in
    for axes in panels:
        labels = [*axes.get_xticklabels(), *axes.get_xticklabels(minor=True), axes.xaxis.label]
        boxes = [label.get_window_extent() for label in labels]
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        assert all(box.x0 >= 0 and box.x1 <= drawn[-1].bbox.width for box in boxes)


def test_many_places_stand_in_two_rows(tmp_path, drawn):
    evaluation, selection, _ = draw(METHODS, tmp_path, drawn)
    assert evaluation.get_position().x0 == pytest.approx(selection.get_position().x0)
    evaluation, selection, _ = draw(METHODS[:4], tmp_path, drawn)
    assert evaluation.get_position().x1 < selection.get_position().x0
