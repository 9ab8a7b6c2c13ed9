"""Figures of a report: made of its frame only. Colours tell apart no more than markers do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from experiments.frames import view
from experiments.results import Finding, diverged
from learnable_memory import plots
from learnable_memory.grid import shortest

MARKERS, LINES = "osD^vPX", ("-", "--", ":")
DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def draw(
    every: pd.DataFrame, *, kind: str, path: Path, title: str, rows: str | Sequence[str],
    columns: str | Sequence[str] = (), grid: str | None = None, where: Mapping[str, str] | None = None, **own: Any,
) -> Path | None:  # fmt: skip
    """Write a figure as PNG, a panel for each column; None, and no file, where no run can be shown yet.

    Args:
        every: of `frames.frame`.
        kind: points, lines or rates.
        rows, columns, grid, where: as of `report.table`.
        own: of the function of this kind.
    """
    shown = view(every, rows, columns, grid, where or {})
    shown = shown[shown["finding"].map(lambda found: bool(found.scored))]
    panels = shown["column"].unique()
    if not len(panels):
        return None
    across = 2 if len(panels) in (2, 4) else min(len(panels), 3)
    down = -(-len(panels) // across)
    height = 0.8 + 0.3 * shown["row"].nunique() if kind == "points" else 2.8
    figure = Figure(figsize=(max(6.0, 0.8 + 3.5 * across), 1.1 + height * down), layout="constrained")
    grid_of_axes = list(figure.subplots(down, across, squeeze=False, sharey=kind == "points").flat)
    marks: list[Line2D] = []
    for axes, column in zip(grid_of_axes, panels, strict=False):
        axes.set_title(column, color=plots.INK, fontsize=10)
        marks = KINDS[kind](axes, shown, column, **own)
    for axes in grid_of_axes[len(panels) :]:
        axes.remove()
    figure.suptitle(title, color=plots.INK, fontsize=12, fontweight="bold")
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=8, labelcolor=plots.INK)
    return plots.save(figure, path)


def points(axes: Axes, shown: pd.DataFrame, column: str) -> list[Line2D]:
    """A row for each row label: mean, standard deviation over data seeds, and single runs."""
    rows, colour = list(shown["row"].unique()), plots.HEADS[4]
    single: dict[str, Any] = dict(color=plots.lighter(colour, 0.5), marker=".", markersize=4, linestyle="none")
    plots.style(axes, "top-1")
    axes.grid(axis="x", color=plots.BASE_LIGHT, linewidth=0.8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    axes.locator_params(axis="x", nbins=5)
    for each in shown[shown["column"] == column].itertuples():
        height, top1 = rows.index(each.row), [row["eval"]["top1"] for row in each.finding.scored]
        axes.plot(top1, [height + 0.22] * len(top1), **single)
        axes.errorbar(each.top1, height, xerr=each.deviation, color=colour, marker="o", capsize=2, linewidth=1.2)
    mean = Line2D([], [], color=colour, marker="o", label="mean ± standard deviation over data seeds")
    return [mean, Line2D([], [], label="one run", **single)]


def lines(
    axes: Axes, shown: pd.DataFrame, column: str, x: str, lines: Mapping[str, Sequence[str]],
    references: Sequence[str] = (),
) -> list[Line2D]:  # fmt: skip
    """Top-1 over what `x` names, a key of a result or of its options: a line through rows, and references across."""
    panel = shown[shown["column"] == column].set_index("row")
    of_x = {row: _number(panel.loc[row, "finding"], x) for of in lines.values() for row in of if row in panel.index}
    ticks = sorted(set(of_x.values()))
    plots.style(axes, x.replace("_", " "))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    axes.set_xticks(range(len(ticks)), map(shortest, ticks))
    marks = []
    for number, (line, rows) in enumerate(lines.items()):
        there = panel.loc[[row for row in rows if row in of_x]]
        shift = 0.08 * (number - (len(lines) - 1) / 2)  # bars of lines that meet would hide each other
        places = [ticks.index(of_x[row]) + shift for row in there.index]
        axes.errorbar(places, there["top1"], yerr=there["deviation"], capsize=2, **_look(number))
        marks.append(Line2D([], [], label=f"{line} (± standard deviation over data seeds)", **_look(number)))
    for row, dashes in zip(references, DASHES, strict=False):
        if row in panel.index:
            axes.axhline(panel.loc[row, "top1"], color=plots.FAINT, linewidth=1.2, linestyle=dashes)
        marks.append(Line2D([], [], label=row, color=plots.FAINT, linewidth=1.2, linestyle=dashes))
    return marks


def rates(axes: Axes, shown: pd.DataFrame, column: str) -> list[Line2D]:
    """Top-1 on the selection split over the learning rate, without diverged runs; the chosen rate stands out."""
    rows = list(shown["row"].unique())
    plots.style(axes, "learning rate")
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    for each in shown[shown["column"] == column].itertuples():
        found, look = each.finding, _look(rows.index(each.row))
        top1: dict[float, list[float]] = {}
        for (rate, seed), run in sorted(found.runs.items()):
            if seed in found.variant.compared and not diverged(run):
                top1.setdefault(rate, []).append(run["select"]["top1"])
        axes.plot(list(top1), list(map(fmean, top1.values())), **look)
        chosen = look | {"markersize": 9, "markeredgecolor": plots.INK, "markeredgewidth": 1.5}
        axes.plot(found.best, fmean(top1[found.best]), **chosen)
    marks = [Line2D([], [], label=row, **_look(number)) for number, row in enumerate(rows)]
    ring: dict[str, Any] = dict(color="white", marker="o", markersize=9, markeredgecolor=plots.INK)
    return [*marks, Line2D([], [], label="chosen", **ring)]


def _number(found: Finding, key: str) -> float:
    row = found.scored[0]
    return float(row.get(key, row["options"].get(key)))


def _look(number: int) -> dict[str, Any]:
    line = LINES[number // len(plots.HEADS) % len(LINES)]
    look = {"color": plots.head_colour(number), "marker": MARKERS[number % len(MARKERS)], "linestyle": line}
    return {**look, "markersize": 5, "linewidth": 1.5}


KINDS: dict[str, Callable[..., list[Line2D]]] = {"points": points, "lines": lines, "rates": rates}
