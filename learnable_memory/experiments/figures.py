"""Figures of a report: made of results only.

Percentages are of top-1. Colours tell apart no more than markers do, for eyes and printers without colour.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from learnable_memory import plots
from learnable_memory.experiments.card_types import Figure
from learnable_memory.experiments.choice import Row, compared_seeds, diverged
from learnable_memory.experiments.findings import Finding, Findings
from learnable_memory.experiments.significance import Spread
from learnable_memory.grid import shortest
from learnable_memory.plots import BASE_LIGHT, FAINT, INK

MARKERS = "osD^vPX"
DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
LINES = ("-", "--", ":")  # where the colours come round again
PANEL_WIDTH = 3.5  # inches, as are all sizes here
LETTER = 0.075  # of a legend's
Cells = Mapping[tuple[str, str], Finding]


def draw(figure: Figure, findings: Findings, path: str | os.PathLike) -> Path | None:
    """Write the figure as PNG; None, and no file, where no run can be shown yet.

    Raises ValueError if what a figure of lines has as `x` is in no run, or is no number.
    """
    grid = findings.card.grid(figure.view.grid)
    cells = {place: findings[variant] for place, variant in figure.view.cells(grid).items()}
    shown = {place for place, found in cells.items() if (found.runs if figure.kind == "rates" else found.top1)}
    panels = [column for column in figure.view.column_labels(grid) if any(column == other for _, other in shown)]
    if not panels:
        return None
    return {"points": _points, "lines": _lines, "rates": _rates}[figure.kind](figure, cells, panels, path)


# ------------------------------------------------------------------------------------------------------------- points


def _points(figure: Figure, cells: Cells, panels: Sequence[str], path: str | os.PathLike) -> Path:
    """A row for each row label: mean, standard deviation, single runs, and the published number."""
    rows = list(dict.fromkeys(row for row, _ in cells))
    marks = [_mark("mean", marker="o", color=plots.HEADS[4], markersize=6), *_spread_marks(cells)]
    marks += [Line2D([], [], label="published", **_hollow())] * bool(figure.published)
    picture, every = _panels(figure, panels, marks, height=0.8 + 0.3 * len(rows), sharey=True)
    for axes, column in zip(every, panels, strict=True):
        plots.style(axes, "top-1")
        axes.grid(axis="x", color=BASE_LIGHT, linewidth=0.8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        _percent_axis(axes.xaxis, ticks=5)
        axes.margins(x=0.12)
        for height, row in enumerate(rows):
            found = cells[row, column]
            if found.top1 is not None:
                single = [run["eval"]["top1"] for run in found.scored]
                axes.plot(single, [height + 0.22] * len(single), **_single(plots.HEADS[4]))
                _bar(axes, found.top1, height, plots.HEADS[4], upright=False)
                axes.plot(found.top1.mean, height, "o", color=plots.HEADS[4], markersize=6, zorder=4)
            if (row, column) in figure.published:
                axes.plot(figure.published[row, column] / 100, height, **_hollow())
    return plots.save(picture, path)


# -------------------------------------------------------------------------------------------------------------- lines


def _lines(figure: Figure, cells: Cells, panels: Sequence[str], path: str | os.PathLike) -> Path:
    """Top-1 over what `x` names, evenly spaced, a line for each of `lines`, and references across."""
    of_line = {row for rows in figure.lines.values() for row in rows}
    xs = {
        place: _number(figure, found.scored[0])
        for place, found in cells.items()
        if found.scored and place[0] in of_line
    }
    ticks = sorted(set(xs.values()))
    looks = {line: _look(index) for index, line in enumerate(figure.lines)}
    marks = [Line2D([], [], label=line, **look) for line, look in looks.items()]
    marks += [Line2D([], [], label=row, **_reference(index)) for index, row in enumerate(figure.references)]
    marks += [mark for mark in _spread_marks(cells) if mark.get_label() != "one run"]
    picture, every = _panels(figure, panels, marks, height=2.6)
    for axes, column in zip(every, panels, strict=True):
        plots.style(axes, figure.x.replace("_", " "))
        _percent_axis(axes.yaxis, ticks=6)
        axes.set_xticks(range(len(ticks)), map(shortest, ticks))
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        for index, row in enumerate(figure.references):
            if (top1 := cells[row, column].top1) is not None:
                axes.axhline(top1.mean, **_reference(index))
        for number, (line, rows) in enumerate(figure.lines.items()):
            places = {(row, column): ticks.index(xs[row, column]) for row in rows if (row, column) in xs}
            shown = [(x, top1) for place, x in places.items() if (top1 := cells[place].top1) is not None]
            points = sorted(shown, key=lambda point: point[0])
            shift = 0.08 * (number - (len(figure.lines) - 1) / 2)  # bars of lines that meet would hide each other
            axes.plot([x + shift for x, _ in points], [top1.mean for _, top1 in points], **looks[line])
            for x, top1 in points:
                _bar(axes, top1, x + shift, looks[line]["color"], upright=True)
    return plots.save(picture, path)


def _number(figure: Figure, row: Row) -> float:
    value = row.get(figure.x, row["options"].get(figure.x))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"figure {figure.name!r}: x is {figure.x!r}, which is {value!r} in a run, but it has to be a number: "
            "name a key of the results or an option."
        )
    return float(value)


# -------------------------------------------------------------------------------------------------------------- rates


def _rates(figure: Figure, cells: Cells, panels: Sequence[str], path: str | os.PathLike) -> Path:
    """Top-1 on the selection split over the learning rate, a line for each row label; what was chosen stands out."""
    rows = list(dict.fromkeys(row for row, _ in cells))
    looks = {row: _look(index) for index, row in enumerate(rows)}
    rates = sorted({rate for found in cells.values() for rate in found.variant.rates})
    lost = any(diverged(run) for found in cells.values() for run in found.runs.values())
    marks = [Line2D([], [], label=row, **look) for row, look in looks.items()]
    marks.append(_mark("chosen", **_chosen({**_look(0), "color": "white"})))
    marks += [_mark("diverged", marker="x", color=FAINT, markersize=6)] * lost
    picture, every = _panels(figure, panels, marks, height=2.9)
    for axes, column in zip(every, panels, strict=True):
        plots.style(axes, "learning rate")
        axes.set_xscale("log")
        axes.set_xlim(rates[0] / 1.5, rates[-1] * 1.5)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if rates[-1] / rates[0] < 2e4 else (1,), numticks=99))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        _percent_axis(axes.yaxis, ticks=6)
        for row in rows:
            _draw_rates(axes, cells[row, column], looks[row])
    return plots.save(picture, path)


def _draw_rates(axes: Axes, found: Finding, look: Mapping[str, Any]) -> None:
    """One line, over the data seeds that rates are compared on; a rate of which a run has diverged is a cross at the
    lower edge."""
    by_rate: dict[float, list[Row]] = {}
    for rate, seed in sorted(found.runs):
        if seed in compared_seeds(found.variant):
            by_rate.setdefault(rate, []).append(found.runs[rate, seed])
    means = {
        rate: fmean(run["select"]["top1"] for run in runs)
        for rate, runs in by_rate.items()
        if not any(map(diverged, runs))
    }
    axes.plot(list(means), list(means.values()), **look)
    if found.best in means:
        axes.plot(found.best, means[found.best], **_chosen(look))
    crosses = [rate for rate in by_rate if rate not in means]
    if crosses:  # an empty line without clipping would upset the layout
        look = {"color": look["color"], "markersize": 6, "clip_on": False, "transform": axes.get_xaxis_transform()}
        axes.plot(crosses, [0.02] * len(crosses), "x", **look)


# ------------------------------------------------------------------------------------------------------ what all share


def _panels(
    figure: Figure, panels: Sequence[str], marks: Sequence[Line2D], height: float, sharey: bool = False
) -> tuple[Picture, Sequence[Axes]]:
    """A panel of `height` for each column label, the title above, and the legend below, where it hides nothing."""
    across = 2 if len(panels) in (2, 4) else min(len(panels), 3)
    down = -(-len(panels) // across)
    width = max(6.0, 0.8 + PANEL_WIDTH * across)
    wide = 0.6 + LETTER * max(len(str(mark.get_label())) for mark in marks)
    columns = max(1, min(len(marks), int(width / wide)))
    heights = (0.5 + height * down, 0.1 + 0.19 * -(-len(marks) // columns))
    picture = Picture(figsize=(width, sum(heights)), layout="constrained")
    above, below = picture.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    below.legend(handles=marks, loc="center", ncols=columns, frameon=False, fontsize=8, labelcolor=INK, handlelength=3)
    every = list(above.subplots(down, across, squeeze=False, sharey=sharey).flat)
    for axes, column in zip(every, panels, strict=False):
        axes.set_title(column, color=INK, fontsize=10)
    for axes in every[len(panels) :]:
        axes.remove()
    above.suptitle(figure.title, color=INK, fontsize=12, fontweight="bold")
    return picture, every[: len(panels)]


def _percent_axis(axis: Axis, ticks: int) -> None:
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))


def _bar(axes: Axes, spread: Spread, place: float, colour: str, upright: bool) -> None:
    if spread.deviation is None:
        return
    look: dict[str, Any] = {"color": colour, "linewidth": 1.2, "capsize": 2, "zorder": 3, "linestyle": "none"}
    if upright:
        axes.errorbar(place, spread.mean, yerr=spread.deviation, **look)
    else:
        axes.errorbar(spread.mean, place, xerr=spread.deviation, **look)


def _look(index: int) -> dict[str, Any]:
    marker = MARKERS[index % len(MARKERS)]
    line = LINES[index // len(plots.HEADS) % len(LINES)]
    colour = plots.head_colour(index)
    return {"color": colour, "marker": marker, "markersize": 5, "linestyle": line, "linewidth": 1.5, "zorder": 4}


def _reference(index: int) -> dict[str, Any]:
    return {"color": FAINT, "linewidth": 1.2, "linestyle": DASHES[index % len(DASHES)], "zorder": 2}


def _single(colour: str) -> dict[str, Any]:
    return {"color": plots.lighter(colour, 0.5), "marker": ".", "markersize": 4, "linestyle": "none", "zorder": 2}


def _hollow() -> dict[str, Any]:
    return {"color": INK, "marker": "D", "markersize": 6, "fillstyle": "none", "linestyle": "none", "zorder": 5}


def _chosen(look: Mapping[str, Any]) -> dict[str, Any]:
    return {**look, "markersize": 9, "markeredgecolor": INK, "markeredgewidth": 1.5, "zorder": 5}


def _mark(label: str, **look: Any) -> Line2D:
    return Line2D([], [], label=label, **{**look, "linestyle": "none"})


def _spread_marks(cells: Cells) -> list[Line2D]:
    """What explains bars and faint points, if there are any."""
    if not any(found.top1 is not None and found.top1.runs > 1 for found in cells.values()):
        return []
    bar = _mark("± standard deviation over data seeds", color=FAINT, marker="|", markersize=9, markeredgewidth=1.2)
    return [bar, Line2D([], [], label="one run", **_single(FAINT))]
