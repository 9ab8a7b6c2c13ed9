"""The results of an experiment as a data frame: a row for each variant, with the means of its runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from experiments.results import Finding, Row


def _share(row: Row, key: str) -> float:
    """Of heads that were trained in one pass each counts as an equal part of its seconds; NaN where it is unknown."""
    return math.nan if row[key] is None else row[key] / row["heads_in_pass"]


MEASURES: dict[str, Callable[[Row], float]] = {
    "top1": lambda row: row["eval"]["top1"],  # in [0, 1]
    "lr": lambda row: row["lr"],
    "combinable": lambda row: row["combinable"],
    "parameters": lambda row: row["parameters"],
    "megabytes": lambda row: 4e-6 * row["parameters"],  # float32
    "train_seconds": lambda row: _share(row, "train_seconds"),
    "eval_seconds": lambda row: _share(row, "eval_seconds"),
    "step_milliseconds": lambda row: 1000 * _share(row, "train_seconds") / row["steps"],
    "peak_memory": lambda row: math.nan if row["peak_memory_bytes"] is None else row["peak_memory_bytes"] / 2**30,
}


def frame(findings: Sequence[Finding]) -> pd.DataFrame:
    """A row for each variant: `grid`, its labels, `finding`, and of the runs that are reported the means of MEASURES,
    the `deviation` of top1 over data seeds, and how many they are, `runs`."""
    _check_alike(findings)
    measured = [
        {"variant": number, **{name: measure(row) for name, measure in MEASURES.items()}}
        for number, found in enumerate(findings)
        for row in found.scored
    ]
    runs = pd.DataFrame(measured, columns=["variant", *MEASURES], dtype=float).groupby("variant")
    labels = [{"grid": found.variant.grid, **found.variant.labels, "finding": found} for found in findings]
    spread = runs["top1"].agg(deviation="std", runs="count")
    return pd.DataFrame(labels).join(runs.mean()).join(spread).fillna({"runs": 0})


def _check_alike(findings: Iterable[Finding]) -> None:
    """That what is compared was evaluated on the same images, and each base is one base."""
    found: dict[str, set[str]] = {}
    for each in findings:
        for row in each.scored:
            data, base = row["options"]["dataset"], row["options"].get("base_model")
            found.setdefault(f"{data} was evaluated on different images (hashes", set()).add(row["eval_hash"])
            if "base" in row:  # which the oldest rows lack
                found.setdefault(f"{base} is different bases (fingerprints", set()).add(row["base"]["fingerprint"])
    for words, hashes in found.items():
        if len(hashes) > 1:
            raise ValueError(f"{words} {', '.join(sorted(hashes))}): take all but one out of the results.")


def view(
    every: pd.DataFrame, rows: str | Sequence[str], columns: str | Sequence[str], grid: str | None,
    where: Mapping[str, str],
) -> pd.DataFrame:  # fmt: skip
    """The variants of a grid (by default the first) that have the labels `where`, with `row` and `column` made of the
    labels of these dimensions."""
    shown = every[every["grid"] == (grid or every["grid"].iloc[0])]
    for dimension, label in where.items():
        shown = shown[shown[dimension] == label]
    joined = {}
    for name, dimensions in {"row": rows, "column": columns}.items():
        keys = [dimensions] if isinstance(dimensions, str) else list(dimensions)
        joined[name] = shown[keys].agg(", ".join, axis=1) if keys else ""
    return shown.assign(**joined)
