"""Write the tables and figures of experiments from their results, and from nothing else.

    python experiments/report.py [NAME ...]           # all that have results, unless some are named

The same results give the same bytes. A difference between two methods has the interval of a paired bootstrap over the
test images: both methods meet the same images, so what makes an image hard cancels. It speaks of other images of this
kind; the standard deviation over data seeds speaks of other trainings.
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from experiments import figures, results
from experiments.frames import frame, view
from experiments.results import Finding, diverged
from learnable_memory.bits import unpack_bits
from learnable_memory.commands import run_command
from learnable_memory.grid import shortest

RESAMPLES = 9999
FORMATS: dict[str, tuple[str, Callable[[float], str]]] = {  # of `frames.MEASURES`: heading, and how a mean is written
    "lr": ("learning rate", "{:g}".format),
    "combinable": ("combinable", lambda share: "yes" if share == 1 else "no"),
    "parameters": ("learned numbers", "{:,.0f}".format),
    "megabytes": ("learned, MB", "{:.2f}".format),
    "train_seconds": ("training, s", "{:,.1f}".format),
    "eval_seconds": ("evaluation, s", "{:,.1f}".format),
    "step_milliseconds": ("step, ms", "{:,.1f}".format),
    "peak_memory": ("peak memory, GiB", "{:.2f}".format),
}
TIMES = ("train_seconds", "eval_seconds", "step_milliseconds")


def write(config: ModuleType, findings: Sequence[Finding], folder: Path) -> Path:
    """Write `report.md` and the figures of an experiment into `folder`; returns the page.

    Raises ValueError for results that cannot be compared.
    """
    every = frame(findings)
    name = config.__name__.split(".")[1]
    title, *card = inspect.cleandoc(config.__doc__ or "").split("\n\n")
    sections = [f"# {title}", f"Written by `python experiments/report.py {name}` from the results beside it."]
    sections += [re.sub(r"^([^:]+): ", r"**\1.** ", " ".join(text.split())) for text in card]
    sections += ["## Results", *(table(every, **keywords) for keywords in config.TABLES)]
    for file, keywords in getattr(config, "FIGURES", {}).items():
        drawn = figures.draw(every, path=folder / f"{file}.png", **keywords)
        sections.append(f"![{keywords['title']}]({file}.png)" if drawn else f"{keywords['title']}: no results yet.")
    page = folder / "report.md"
    folder.mkdir(parents=True, exist_ok=True)
    sections += [*edges(findings), *missing(findings), *how(findings)]
    page.write_text("\n\n".join(sections) + "\n", encoding="utf-8", newline="\n")
    return page


# -------------------------------------------------------------------------------------------------------------- tables
def table(
    every: pd.DataFrame, *, title: str, rows: str | Sequence[str], columns: str | Sequence[str] = (),
    values: Sequence[str] = ("top1",), grid: str | None = None, where: Mapping[str, str] | None = None,
    published: Mapping[str, Mapping[str, float]] | None = None, differences: Sequence[tuple[str, str]] = (),
    note: str = "",
) -> str:  # fmt: skip
    """A heading, a table in Markdown, and what has to be known of it.

    Args:
        every: of `frames.frame`.
        rows, columns: a dimension, or several whose labels are joined; without columns, values stand side by side.
        values: of `frames.MEASURES`; several only without columns.
        grid, where: as of `view`.
        published: row -> column -> number, in percent, for the brackets.
        differences: (of, to), labels of rows.
    """
    shown = view(every, rows, columns, grid, where or {})
    texts = shown.assign(**{value: _texts(shown, value, published or {}) for value in values})
    down, across = shown["row"].unique(), shown["column"].unique()
    if columns:
        cells = texts.pivot(index="row", columns="column", values=values[0]).loc[down, across]
    else:
        headings = {key: heading for key, (heading, _) in FORMATS.items()}
        cells = texts.set_index("row")[list(values)].rename(columns=headings)
    found = shown.set_index(["row", "column"])["finding"]
    for of, to in differences:
        cells.loc[f"{of} - {to}"] = [_signed(found[of, column], found[to, column]) for column in across]
    corner = rows if isinstance(rows, str) else ", ".join(rows)
    notes = _notes(shown, values, bool(published), bool(differences), note)
    return "\n\n".join(filter(None, [f"### {title}", markdown(cells, corner), notes]))


def markdown(cells: pd.DataFrame, corner: str) -> str:
    """A table whose first column is the index, and whose others are aligned as numbers."""
    lines = [[corner, *cells.columns], ["---", *["---:"] * len(cells.columns)]]
    lines += [[label, *line] for label, line in zip(cells.index, cells.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _texts(shown: pd.DataFrame, value: str, published: Mapping[str, Mapping[str, float]]) -> pd.Series:
    """The cells of one value, and "-" where no run is reported."""
    texts = _accuracies(shown) if value == "top1" else shown[value].map(FORMATS[value][1])
    texts = texts.where(shown[value].notna(), "-")
    numbers = [number for row in published.values() for number in row.values()]
    decimals = max((len(shortest(number).partition(".")[2]) for number in numbers), default=0)
    for index, row, column in shown[["row", "column"]].itertuples():
        if column in published.get(row, {}):
            texts[index] += f" ({published[row][column]:.{decimals}f})"
    return texts


def _accuracies(shown: pd.DataFrame) -> pd.Series:
    """Mean ± deviation in percent; of several with all their runs the highest of a column in bold."""
    whole = shown["top1"].where(shown["runs"] == shown["runs"].max()).round(4)
    by_column = whole.groupby(shown["column"])
    bold = (whole == by_column.transform("max")) & (by_column.transform("count") > 1)
    texts = []
    for top1, deviation, runs, best, found in zip(
        shown["top1"], shown["deviation"], shown["runs"], bold, shown["finding"], strict=True
    ):
        text = percent(top1, deviation)
        text = f"**{text}**" if best else text
        texts.append(text + (f" (n = {runs:.0f})" if runs < len(found.variant.data_seeds) else ""))
    return pd.Series(texts, shown.index)


def percent(mean: float, deviation: float) -> str:
    """Shares in [0, 1] as percent; without a deviation (NaN) the mean alone."""
    return f"{100 * mean:.2f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.2f}")


def _notes(shown: pd.DataFrame, values: Sequence[str], published: bool, differences: bool, note: str) -> str:
    most = int(shown["runs"].max())
    if not most:
        return "No results yet."
    seeds = f"{most} data seeds" if most > 1 else "one data seed"
    rows = [row for found in shown["finding"] for row in found.scored]
    heads = sorted({row["heads_in_pass"] for row in rows if row["heads_in_pass"] > 1})
    notes = []
    if "top1" in values:
        spread = "mean ± sample standard deviation over" if most > 1 else "of"
        notes.append(f"Top-1 on the evaluation split, in percent, {spread} {seeds}.")
    elif not set(values).isdisjoint((*TIMES, "peak_memory")):
        notes.append(f"Means over {seeds}.")
    if "lr" in values:
        notes.append("Learning rate.")
    if published:
        notes.append("In brackets: published.")
    if differences:
        words = "with the 95 % interval and two-sided p of a paired bootstrap over images"
        notes.append(f"Differences in points, {words}.")
    if heads and not set(values).isdisjoint(TIMES):
        notes.append("Of heads that were trained in one pass each counts as an equal part of the pass's seconds.")
    if heads and "peak_memory" in values:
        count = f"{heads[0]} to {heads[-1]}" if len(heads) > 1 else str(heads[0])
        notes.append(
            f"Of heads that were trained in one pass, peak memory is that of the whole pass, of {count} heads."
        )
    return " ".join([*notes, *filter(None, [note])])


# -------------------------------------------------------------------------------------------------------- significance
class Difference(NamedTuple):
    """Top-1 of one method less that of another, in points: mean, 95 % interval, and two-sided p in (0, 1]."""

    mean: float
    low: float
    high: float
    p: float


def difference(of: np.ndarray, to: np.ndarray) -> Difference:
    """A paired bootstrap over images (percentile interval) of whether `of` answers them better than `to`.

    Each image counts the mean over the runs of one method less that over the runs of the other. p is one minus the
    level of the widest interval on one side of 0, with one hit more than there were, so that it is never 0.

    Args:
        of, to: bool [runs, images], of the same images in the same order.
    """
    # Whole numbers: sums of thirds would miss an exact 0.
    whole = of.sum(0) * len(to), to.sum(0) * len(of)
    mean = lambda x, y, axis: np.mean(x - y, axis=axis)  # noqa: E731
    found = bootstrap(
        whole, mean, n_resamples=RESAMPLES, batch=100, vectorized=True, paired=True, method="percentile", random_state=0
    )
    drawn = found.bootstrap_distribution
    hits = min((drawn <= 0).sum(), (drawn >= 0).sum())
    points = [mean(*whole, axis=0), *found.confidence_interval]
    mean_, low, high = (float(100 * value / (len(of) * len(to))) + 0.0 for value in points)
    return Difference(mean_, low, high, min(1.0, float(2 * (1 + hits) / (1 + RESAMPLES))))


def _signed(of: Finding, to: Finding) -> str:
    if not (of.scored and to.scored):
        return "-"
    found = difference(_right(of), _right(to))
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    return f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}], {p}"


def _right(found: Finding) -> np.ndarray:
    """Whether the reported runs answered each image rightly, bool [runs, images]."""
    return np.stack([unpack_bits(row["eval_right"], row["eval"]["images"]) for row in found.scored])


# ----------------------------------------------------------------------------------------------- what else is reported
def edges(findings: Iterable[Finding]) -> list[str]:
    """Where the best rate is the lowest or the highest of several: one beyond it may be better still."""
    lines = []
    for found in findings:
        rates = found.variant.rates
        if len(rates) > 1 and found.best in (rates[0], rates[-1]):
            end = "highest" if found.best == rates[-1] else "lowest"
            tried = ", ".join(map(shortest, rates))
            lines.append(
                f"- {found.variant.grid}: {found.variant.label}: {shortest(found.best)} is the {end} of {tried}."
            )
    warning = "**Warning:** the best learning rate is at the edge of its grid, so one beyond it may be better still."
    return ["## Rates at the edge", warning, "\n".join(lines)] if lines else []


def missing(findings: Iterable[Finding]) -> list[str]:
    """The runs that could be started now."""
    lines = []
    for found in findings:
        places = [f"lr {shortest(rate)} with data seed {seed}" for rate, seed in found.missing]
        if places:
            lines.append(f"- {found.variant.grid}: {found.variant.label}: {', '.join(places)}.")
    return ["## Missing runs", "\n".join(lines)] if lines else []


def how(findings: Iterable[Finding]) -> list[str]:
    """What the numbers were made with, as the rows say."""
    rows = [row for found in findings for row in found.runs.values()]
    if not rows:
        return ["## How this was run", "There are no results yet."]
    seconds = math.fsum(((r["train_seconds"] or 0) + (r["eval_seconds"] or 0)) / r["heads_in_pass"] for r in rows)
    packages = sorted({package for row in rows for package in row["versions"]})
    versions = [f"{package} {_all(row['versions'].get(package) for row in rows)}" for package in packages]
    minutes = round(seconds / 60)
    hours = f"{minutes // 60} h " if minutes >= 60 else ""
    machine = [f"{key} {_all(row['machine'][key] for row in rows)}" for key in ("device", "threads")]
    lines = [
        f"Runs: {len(rows)}, of which {sum(map(diverged, rows))} diverged",
        f"Data seeds: {_all(row['data_seed'] for row in rows)}",
        f"Time of training steps and of the last evaluation: {hours}{minutes % 60} min",
        f"Machine: {'; '.join(machine)}",
        f"Versions: {', '.join(versions)}",
    ]
    return ["## How this was run", "\n".join(f"- {line}" for line in lines)]


def _all(values: Iterable[Any]) -> str:
    """All that there are, each once."""
    return ", ".join(sorted({str(value) for value in values if value is not None}))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the reports that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments (default: all that have results)")
    every = parser.parse_args(argv).names or [path.parent.name for path in results.FOLDER.glob("*/results.jsonl")]
    for name in sorted(every):
        config, folder = results.load(name), results.FOLDER / name
        findings = results.find(results.variants(config), results.read(folder / "results.jsonl"))
        print(os.path.relpath(write(config, findings, folder)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
