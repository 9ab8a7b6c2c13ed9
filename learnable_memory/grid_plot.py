"""The picture of a grid: accuracy of its methods and numbers of memory tokens, in a colour for each learning rate.

It is drawn from the rows of the results, so that it can be drawn again without training:

    grid_accuracy([outcome.row() for outcome in outcomes], "grid.png", "CIFAR100")
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from learnable_memory import plots
from learnable_memory.grid import Kind, Outcome, Split, accuracies, by_kind, shortest
from learnable_memory.plots import BASE_LIGHT, FAINT, INK

MARKERS = "osD^vPX"  # a second way to tell rates apart, for eyes and printers without colour
LINES = ("-", "--", ":")  # and a third, where the colours come round again
LEGEND_COLUMNS = 10
PANELS: tuple[tuple[Split, str], ...] = (("eval", "Evaluation split"), ("select", "Selection split"))
SIDE_BY_SIDE = 8  # as many places; with more the panels stand above each other
LETTER, LONGEST_LINE = 0.072, 13  # inches and letters, of the marks below the axis


class Place(NamedTuple):
    """On the horizontal axis: one of a family of methods, which differ in their memory tokens, or prompts."""

    family: str
    tokens: int


@dataclass(frozen=True)
class Layout:
    """Where things stand in both panels.

    Attributes:
        places: with their marks, in their order, evenly spaced; those of a family stand together.
        families: what stands in a second line below the places of a family, and where.
        rates: the learning rates, rising; in each place they stand side by side.
        floor: the accuracy below which no run is drawn.
        crosses: the height at which diverged runs are marked, or None if there are none.
        top: the upper end of the vertical axis.
    """

    places: Mapping[Place, str]
    families: Mapping[str, float]
    rates: Sequence[float]
    floor: float
    crosses: float | None
    top: float

    @property
    def step(self) -> float:
        """From one rate to the next, in places."""
        return min(0.2, 0.72 / len(self.rates))

    def x(self, kind: Kind) -> float:
        """Where a kind of run stands on the horizontal axis, in places."""
        shift = self.rates.index(kind.lr) - (len(self.rates) - 1) / 2
        return list(self.places).index(place(kind)) + shift * self.step

    @property
    def title(self) -> str:
        """Of the horizontal axis."""
        numbers = [mark.isdigit() for mark in self.places.values()]
        return ", or ".join(["method"] * (not all(numbers)) + ["memory tokens in each layer"] * any(numbers))

    @property
    def width(self) -> float:
        """Of a place, in inches: what its rates need, its name, or its part of the family's."""
        members = [place.family for place in self.places]
        letters: list[float] = [len(line) + 1 for mark in self.places.values() for line in mark.splitlines()]
        letters += [(len(family) + 2) / members.count(family) for family in self.families]
        return max(0.62, 0.13 * len(self.rates), LETTER * max(letters))


def place(kind: Kind) -> Place:
    """The place that a kind of run belongs to."""
    return Place("-".join(filter(None, (kind.spec.family, kind.fit.name))), kind.spec.memory_tokens)


def grid_accuracy(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str = "") -> Path:
    """Top-1 of all heads of a grid on the evaluation and the selection split, side by side.

    A line is the mean over the runs of a learning rate that differ in their seeds only, its bars the sample standard
    deviation where there are several, and beside them each run is a faint point. Diverged runs are in no mean: each
    group of them is a cross at the bottom, with their number if it is above one. The linear probe has no memory, so it
    stands apart at the left, and methods that cannot be put together at the right, each in its own group of places.

    Args:
        rows: of `Outcome.row()`, or the same read back from JSON. Accuracies are in [0, 1].
        path: where the PNG goes.
        title: above both panels, such as the data set's name.

    Raises:
        ValueError: there is no row, or one lacks something.
    """
    groups = by_kind(Outcome.from_row(row) for row in rows)
    if not groups:
        raise ValueError("There are no rows, so there is nothing to draw: check that these are a grid's results.")
    layout = _layout(groups)
    down, across = (1, 2) if len(layout.places) <= SIDE_BY_SIDE else (2, 1)
    width, height = 1.6 + across * len(layout.places) * layout.width, 0.4 + 3.7 * down
    legend = 0.28 + 0.22 * math.ceil(len(layout.rates) / LEGEND_COLUMNS)
    figure = Figure(figsize=(max(9.5, width), height + legend), layout="constrained")
    panels, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(height, legend)).flat
    _draw_legends(below.subplots(), groups, layout)
    folded = any(row.get("folds") for row in rows)
    for axes, (split, heading) in zip(panels.subplots(down, across, sharey=True).flat, PANELS, strict=True):
        plots.style(axes, layout.title)
        axes.set_title("Out of fold" if folded and split == "select" else heading, color=INK, fontsize=10)
        _set_axes(axes, layout)
        _draw_runs(axes, groups, layout, split)
        _draw_diverged(axes, groups, layout)
    panels.supylabel("top-1 accuracy", color=FAINT, fontsize=9)
    panels.suptitle(title or "Grid", color=INK, fontsize=12, fontweight="bold")
    return plots.save(figure, path)


def _layout(groups: Mapping[Kind, Sequence[Outcome]]) -> Layout:
    reached = [value for split, _ in PANELS for same in groups.values() for value in _extent(accuracies(same, split))]
    low, high = (min(reached), max(reached)) if reached else (0.0, 1.0)
    margin = max(0.005, 0.06 * (high - low))
    floor, top = low - margin, high + margin
    diverged = any(outcome.diverged for same in groups.values() for outcome in same)
    crosses = floor - 0.08 * (top - floor) if diverged else None
    return Layout(*_marks(groups), sorted({kind.lr for kind in groups}), floor, crosses, top)


def _marks(groups: Iterable[Kind]) -> tuple[dict[Place, str], dict[str, float]]:
    """`Layout.places` and `Layout.families`.

    A place has a number where its family has several, and else its name, broken at dashes.
    """
    names = {place(kind): "-".join(filter(None, (kind.spec.name, kind.fit.name))) for kind in groups}
    order = list(dict.fromkeys(["probe", "memory", *(one.family for one in names)]))
    places = sorted(names, key=lambda one: (order.index(one.family), one.tokens))
    members: dict[str, list[int]] = {}
    for index, one in enumerate(places):
        members.setdefault(one.family, []).append(index)
    only_memory = members.keys() <= {"probe", "memory"}  # then numbers need no name of their family
    counted = ["memory"] if only_memory else [family for family, indices in members.items() if len(indices) > 1]
    marks = {
        one: str(one.tokens) if one.family in counted else textwrap.fill(names[one], LONGEST_LINE) for one in places
    }
    return marks, {} if only_memory else {family: float(np.mean(members[family])) for family in counted}


def _extent(values: Sequence[float]) -> tuple[float, ...]:
    """All heights that these runs take in the picture: their own, and the ends of their bar."""
    mean, deviation = _mean(values), _deviation(values)
    return (*values, mean - deviation, mean + deviation) if values else ()


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _set_axes(axes: Axes, layout: Layout) -> None:
    """Marks of both axes; the strip for diverged runs has its name in place of a percentage."""
    empty = max(0, 3 - len(layout.places)) / 2  # at both sides of a place or two, which would be too wide
    axes.set_xlim(-0.55 - empty, len(layout.places) - 0.45 + empty)
    axes.set_xticks(range(len(layout.places)), list(layout.places.values()))
    axes.xaxis.remove_overlapping_locs = False  # the middle of a family may be a place, too
    axes.set_xticks(list(layout.families.values()), list(layout.families), minor=True)
    axes.tick_params(axis="x", which="minor", length=0, pad=16, colors=INK, labelsize=8)
    for left, (one, next_one) in enumerate(pairwise(layout.places)):
        if one.family != next_one.family:
            axes.axvline(left + 0.5, color=BASE_LIGHT, linewidth=0.8)
    ticks = [round(tick, 6) for tick in MaxNLocator(6).tick_values(layout.floor, layout.top)]
    axes.set_yticks([tick for tick in ticks if max(0.0, layout.floor) <= tick <= min(1.0, layout.top)])
    whole = all(math.isclose(100 * tick, round(100 * tick), abs_tol=1e-3) for tick in ticks)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0 if whole else None))
    bottom = layout.floor
    if layout.crosses is not None:
        bottom -= 2 * (layout.floor - layout.crosses)
        axes.axhspan(bottom, layout.floor, color=plots.HIDDEN, zorder=0)
        axes.set_yticks([layout.crosses], ["diverged"], minor=True)
        axes.tick_params(axis="y", which="minor", length=0, colors=FAINT, labelsize=8)
    axes.set_ylim(bottom, layout.top)


def _draw_runs(axes: Axes, groups: Mapping[Kind, Sequence[Outcome]], layout: Layout, split: Split) -> None:
    """For each rate and family a line over the memory tokens, broken where no run is left."""
    for lr in layout.rates:
        look = _look(layout, lr)
        of_rate = {kind: accuracies(same, split) for kind, same in groups.items() if kind.lr == lr}
        for _, family in groupby(sorted(of_rate, key=layout.x), key=lambda kind: place(kind).family):
            joined = list(family)
            means = [_mean(of_rate[kind]) for kind in joined]
            axes.plot([layout.x(kind) for kind in joined], means, zorder=4, **look)
        for kind, values in of_rate.items():
            if len(values) > 1:  # one run alone is its own mean
                _draw_spread(axes, layout.x(kind), layout.x(kind) + 0.42 * layout.step, values, look["color"])
    if not any(accuracies(same, split) for same in groups.values()):
        whole = any(not outcome.diverged for same in groups.values() for outcome in same)
        words = "no run was evaluated here" if whole else "every run diverged"
        axes.text(0.5, 0.55, words, transform=axes.transAxes, color=FAINT, fontsize=9, ha="center")


def _draw_spread(axes: Axes, x: float, beside: float, values: Sequence[float], colour: str) -> None:
    axes.errorbar(x, _mean(values), _deviation(values), color=colour, linewidth=1.2, capsize=2, zorder=3)
    axes.plot([beside] * len(values), values, **_faint_points(colour))


def _draw_diverged(axes: Axes, groups: Mapping[Kind, Sequence[Outcome]], layout: Layout) -> None:
    for kind, same in groups.items():
        diverged = sum(outcome.diverged for outcome in same)
        if not diverged or layout.crosses is None:
            continue
        colour = plots.head_colour(layout.rates.index(kind.lr))
        axes.plot(layout.x(kind), layout.crosses, "x", color=colour, markersize=5, markeredgewidth=1.5)
        if diverged > 1:
            axes.annotate(
                str(diverged), (layout.x(kind), layout.crosses), (0, -5), textcoords="offset points", color=colour,
                fontsize=6.5, ha="center", va="top",
            )  # fmt: skip


def _look(layout: Layout, lr: float) -> dict[str, Any]:
    index = layout.rates.index(lr)
    line = LINES[index // len(plots.HEADS) % len(LINES)]
    marker = MARKERS[index % len(MARKERS)]
    return {"color": plots.head_colour(index), "marker": marker, "markersize": 4.5, "linestyle": line, "linewidth": 1.5}


def _faint_points(colour: str) -> dict[str, Any]:
    return {"color": plots.lighter(colour, 0.5), "marker": ".", "markersize": 4, "linestyle": "none", "zorder": 2}


def _draw_legends(axes: Axes, groups: Mapping[Kind, Sequence[Outcome]], layout: Layout) -> None:
    """Below the panels, where they hide no point: the rates, then what the marks mean that are in this picture."""
    axes.set_axis_off()
    rates = [Line2D([], [], label=f"lr {shortest(lr)}", **_look(layout, lr)) for lr in layout.rates]
    marks = []
    if any(len(accuracies(same, split)) > 1 for same in groups.values() for split, _ in PANELS):
        bar: dict[str, Any] = {
            "color": FAINT,
            "marker": "|",
            "markersize": 9,
            "markeredgewidth": 1.2,
            "linestyle": "none",
        }
        marks += [
            Line2D([], [], label="mean ± standard deviation over seeds", **bar),
            Line2D([], [], label="one run", **_faint_points(FAINT)),
        ]
    if layout.crosses is not None:
        cross: dict[str, Any] = {
            "color": FAINT,
            "marker": "x",
            "markersize": 5,
            "markeredgewidth": 1.5,
            "linestyle": "none",
        }
        marks.append(Line2D([], [], label="diverged (how many, if several)", **cross))
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": INK, "borderaxespad": 0}
    first = axes.legend(handles=rates, loc="upper center", ncols=min(len(rates), LEGEND_COLUMNS), **look)
    if marks:
        axes.add_artist(first)  # a second legend of the same axes would take its place
        axes.legend(handles=marks, loc="lower center", ncols=len(marks), **look)
