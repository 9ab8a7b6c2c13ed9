"""The picture of what many heads cost, from the files that benchmarks/many_heads.py writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator

from learnable_memory import plots
from learnable_memory.plots import BASE, FAINT, HEADS, INK, style

SERIES = {
    "one model": ("one model, all heads and the base", HEADS[1]),
    "separate models": ("separate models", HEADS[3]),
}


def many_heads(results: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> Path:
    """Images a second against the number of heads, a panel for each size of the base.

    Args:
        results: contents of the files: `size`, `batch_size`, `heads` (number -> images a second of each case) and
            `arithmetic` (number -> share of the plain base's speed).
        path: where the PNG goes.
    """
    figure = Figure(figsize=(5.0 * len(results), 3.9), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        _panel(axes, result)
    figure.axes[0].set_ylabel("images a second", color=INK)
    figure.axes[0].legend(frameon=False, fontsize=8.5, loc="lower left", labelcolor=INK)
    return plots.save(figure, path)


def _panel(axes: Axes, result: Mapping[str, Any]) -> None:
    counts = sorted(map(int, result["heads"]))
    rows = [result["heads"][str(count)] for count in counts]
    plain = sum(row["plain base"] for row in rows) / len(rows)
    axes.axhline(plain, color=BASE, linewidth=1.2, linestyle=":", label="the plain base alone")
    expected = [plain * result["arithmetic"][str(count)] for count in counts]
    axes.plot(counts, expected, color=FAINT, linewidth=1.2, linestyle="--", label="one model, by arithmetic")
    for name, (label, colour) in SERIES.items():
        axes.plot(counts, [row[name] for row in rows], color=colour, marker="o", markersize=4.5, label=label)
    style(axes, "heads, or models")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter())  # labels where there is less than a decade, as 200 and not 2 x 10^2
    last = rows[-1]
    start, end = ((counts[-1], last[name]) for name in SERIES)
    axes.annotate("", start, end, arrowprops={"arrowstyle": "<->", "color": FAINT, "shrinkA": 5, "shrinkB": 5})
    axes.annotate(
        f"{last['one model / separate models']:.0f} times as fast",
        (counts[-1], (last["one model"] * last["separate models"]) ** 0.5),
        xytext=(-8, 0), textcoords="offset points", ha="right", va="center", color=INK, fontsize=9,
    )  # fmt: skip
    axes.set_title(f"ViT-{result['size']}, batches of {result['batch_size']}", color=INK, fontsize=10.5)
