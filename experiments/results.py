"""What an experiment consists of, which of its runs are there, and which learning rate is reported.

A configuration, `experiments/NAME/config.py`, is plain Python. Its docstring is the experiment's card: title, question,
paper, exact command, expected result and time. Its constants are

    GRIDS    name -> options of `vit_train.py` that all runs share (`options`), and dimension -> label -> further
             options (`over`): every combination is a variant. `lr` are the rates to choose from; `data_seeds` are
             (0, 1, 2) unless given; all rates run on the first of them and the best one on the others, or with
             `sweep="every"` all on all.
    TABLES   keywords of `report.table`
    FIGURES  file name -> keywords of `figures.draw` (or left out)
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from filelock import FileLock

from learnable_memory.runlog import jsonable, read_metrics

FOLDER = Path(__file__).resolve().parent
Row = Mapping[str, Any]
Place = tuple[float, int]  # learning rate, data seed


@dataclass(frozen=True)
class Variant:
    """What differs from others by more than rate and data seed; `options` are those of `vit_train.py`."""

    grid: str
    labels: Mapping[str, str]
    options: Mapping[str, Any]
    rates: tuple[float, ...]
    data_seeds: tuple[int, ...]
    sweep: str

    @property
    def label(self) -> str:
        """The labels of all dimensions."""
        return ", ".join(self.labels.values())

    @property
    def compared(self) -> tuple[int, ...]:
        """The data seeds on which all rates are run, and compared."""
        return self.data_seeds[:1] if self.sweep == "first" else self.data_seeds


@dataclass(frozen=True)
class Finding:
    """The runs of a variant that are there, and the best rate: None while it is not known, or if all have diverged."""

    variant: Variant
    runs: Mapping[Place, Row]
    best: float | None

    @property
    def missing(self) -> list[Place]:
        """What can be run now; the best rate's runs on further data seeds follow once it is known."""
        variant = self.variant
        planned = [(rate, seed) for seed in variant.compared for rate in variant.rates]
        if self.best is not None:
            planned += [(self.best, seed) for seed in variant.data_seeds if seed not in variant.compared]
        return [place for place in planned if place not in self.runs]

    @property
    def scored(self) -> list[Row]:
        """The runs that are reported: of the best rate, in the order of the data seeds, without diverged ones."""
        chosen = [self.runs.get((self.best, seed)) for seed in self.variant.data_seeds] if self.best else []
        return [row for row in chosen if row is not None and not diverged(row)]


def names() -> list[str]:
    """The experiments that there are."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.py"))


def load(name: str) -> ModuleType:
    """An experiment's configuration. Raises ValueError for a name that is none."""
    if name not in names():
        raise ValueError(f"there is no experiment {name!r}, but there are {', '.join(names())}.")
    return importlib.import_module(f"experiments.{name}.config")


def variants(config: ModuleType) -> list[Variant]:
    """All variants of all grids; the last dimension changes fastest."""
    found = []
    for name, grid in config.GRIDS.items():
        dimensions = grid["over"]
        for labels in itertools.product(*dimensions.values()):
            options = dict(grid["options"])
            for dimension, label in zip(dimensions.values(), labels, strict=True):
                options |= dimension[label]
            rates = tuple(sorted(options.pop("lr")))
            seeds, sweep = grid.get("data_seeds", (0, 1, 2)), grid.get("sweep", "first")
            found.append(Variant(name, dict(zip(dimensions, labels, strict=True)), options, rates, seeds, sweep))
    return found


def read(path: Path) -> list[Row]:
    """The rows of a results file, none if it is not there. Raises ValueError for a damaged line, but the last one."""
    return list(read_metrics(path)) if path.exists() else []


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows, on disk when this returns; what is not finite becomes null. Several processes may share the file."""
    lines = "".join(json.dumps(jsonable(row), allow_nan=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")), path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # a line that a killed process cut short would swallow the next
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def find(every: Iterable[Variant], rows: Iterable[Row]) -> list[Finding]:
    """The variants' runs among the rows. Rows of a former configuration belong to no variant, and are left aside.

    Raises ValueError if two runs of a variant have the same rate and data seed.
    """
    rows = list(rows)
    found = []
    for variant in every:
        runs: dict[Place, Row] = {}
        what = variant.grid, variant.labels, jsonable(variant.options)
        for row in rows:
            place = row["lr"], row["data_seed"]
            if (row["grid"], row["labels"], row["options"]) != what or not _has(variant, place):
                continue
            if runs.setdefault(place, row) is not row:
                two = f"{variant.grid}, {variant.label}: two runs with lr {place[0]} and data seed {place[1]}"
                raise ValueError(f"{two}; take one out of the results.")
        found.append(Finding(variant, runs, best_rate(variant, runs)))
    return found


def _has(variant: Variant, place: Place) -> bool:
    return place[0] in variant.rates and place[1] in variant.data_seeds


def best_rate(variant: Variant, runs: Mapping[Place, Row]) -> float | None:
    """The rate with the best mean top-1 on the selection split, over the data seeds on which all rates are compared.

    Of equals the one with the lower mean loss there, and at last the lower rate; none of which a run has diverged.
    None while a run is missing for that, and if every rate has diverged.
    """
    if any((rate, seed) not in runs for rate in variant.rates for seed in variant.compared):
        return None
    scores = {}
    for rate in variant.rates:
        same = [runs[rate, seed] for seed in variant.compared]
        if not any(map(diverged, same)):
            top1, loss = (fmean(row["select"][key] for row in same) for key in ("top1", "loss"))
            scores[rate] = -top1, loss, rate
    return min(scores, key=lambda rate: scores[rate], default=None)


def diverged(row: Row) -> bool:
    """Whether a run was stopped, or broke in its last step, which only its loss shows: its scores say nothing."""
    return row["diverged_at"] is not None or row["select"] is None or row["select"]["loss"] is None
