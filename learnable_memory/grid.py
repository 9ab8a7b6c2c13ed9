"""A grid: every combination of what `vit_train.py` was given several values of, and what became of each.

    for cell in cells(options):                     # each is a head, or a network of its own
        print(f"{options.name}-{cell.name}")
    print(table(outcomes))                          # for the terminal
    best(outcomes).head                             # the name of the one to keep
    rows = [outcome.row() for outcome in outcomes]  # for JSON; Outcome.from_row(row) gives it back

Standard library only: a grid can be counted and named before anything heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import product
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from learnable_memory.config import TrainOptions
from learnable_memory.fit_spec import PAPERS_FIT, FitSpec
from learnable_memory.method_spec import MethodSpec
from learnable_memory.text_table import side_by_side

Split = Literal["select", "eval"]
OF_A_CELL = (  # the fields of TrainOptions that cells are made of, seeds aside
    "method", "number_of_memory_tokens", "masking", "memory_update", "memory_norm", "train_class_token", "rank",
    "prompt_dropout", "lr", "optimizer", "rank_lr", "weight_decay", "label_smoothing", "ema",
)  # fmt: skip


def shortest(number: float) -> str:
    """The shortest text that only this number has: 0.03, 1, 1e-05. `%g` would give two close rates the same one."""
    # Not repr(number): options also take numpy's floats, which say their type there.
    return float.__repr__(float(number)).removesuffix(".0")


@dataclass(frozen=True)
class Cell:
    """One combination: what is learned, and the rate and seed that it is trained with.

    Attributes:
        spec: the method.
        lr: the peak rate.
        seed: draws initial values.
        fit: the optimizer, and what goes with it.
    """

    spec: MethodSpec
    lr: float
    seed: int
    fit: FitSpec = PAPERS_FIT

    @property
    def name(self) -> str:
        """Short and unique in its grid, made of what names of heads may be made of: `m5_lr0p03_s0`, `probe_lr1_s2`."""
        # A point would split the names of parameters.
        parts = [self.spec.name, f"lr{shortest(self.lr).replace('.', 'p')}", self.fit.name, f"s{self.seed}"]
        return "_".join(filter(None, parts))


def cells(options: TrainOptions) -> list[Cell]:
    """All combinations, in the order of the options; each once."""
    dimensions = product(options.method_specs, options.fit_specs, options.lr, options.seeds)
    return list(dict.fromkeys(Cell(spec, lr, seed, fit_for(spec, fit)) for spec, fit, lr, seed in dimensions))


def fit_for(spec: MethodSpec, fit: FitSpec) -> FitSpec:
    """What is left of a way of fitting where there are no low-rank weights of a head that it could be for."""
    if spec.rank and spec.combinable:
        return fit
    return replace(fit, rank_lr=1.0, optimizer="sgd" if fit.optimizer == "mixed" else fit.optimizer)


@dataclass(frozen=True)
class Outcome:
    """What became of one cell of a grid.

    Attributes:
        cell: what it is.
        head: its name in the model.
        data_seed: what its pass over the data was drawn with.
        parameters: how many numbers it has learned.
        epoch: its best epoch, from 1; None if it diverged before the end of the first.
        diverged_at: the step, from 1, at which it diverged, or None.
        select: `Score` on that split as a dict, None where there is none; with `--folds` on all training images, each
            by the head that has not learned from it.
        folds: with `--folds` the same of each fold.
        eval: the same on `eval`.
        eval_right: for each image of `eval` whether the first answer was right, as `bits.pack_bits`;
            None if unknown.
        steps: of the pass.
        train_seconds: of the pass, without its evaluations on `select`.
        eval_seconds: of the pass, on `eval`.
        heads_in_pass: how many were trained in it.
        peak_memory_bytes: of the pass, as `meter.peak_memory`.
    """

    cell: Cell
    head: str
    data_seed: int
    parameters: int
    epoch: int | None
    diverged_at: int | None
    select: dict[str, Any] | None
    eval: dict[str, Any] | None
    eval_right: str | None = None
    folds: list[dict[str, Any]] | None = None
    steps: int | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None
    heads_in_pass: int = 1
    peak_memory_bytes: int | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Outcome:
        """The outcome that `row()` was made of; what else is in the row is left aside.

        Raises ValueError if something is missing in it.
        """
        try:
            spec = MethodSpec(**{field.name: row[field.name] for field in fields(MethodSpec)})
            own = [field for field in fields(cls) if field.name != "cell"]
            values = {field.name: row[field.name] for field in own if field.default is MISSING or field.name in row}
            # Rows of before there was a choice lack it.
            fit = FitSpec(**{field.name: row[field.name] for field in fields(FitSpec) if field.name in row})
            return cls(cell=Cell(spec, row["lr"], row["seed"], fit), **values)
        except KeyError as missing:
            raise ValueError(f"A row has no {missing}: check that these are the rows of a grid's results.") from None

    def row(self) -> dict[str, Any]:
        """As JSON: the cell's values beside the others."""
        values = asdict(self)
        cell = values.pop("cell")
        return {**cell.pop("spec"), **cell.pop("fit"), **cell, **values}

    @property
    def diverged(self) -> bool:
        """Whether its scores say nothing: it was stopped, or it broke in the last step, which only its loss shows.

        An earlier epoch may have been good, but by luck of when it was stopped.
        """
        loss = None if self.select is None else self.select["loss"]
        return self.diverged_at is not None or loss is None or not math.isfinite(loss)


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """The best top-1 on the selection split, of equals the lowest loss there, and at last the first.

    Raises ValueError if all have diverged.
    """
    whole = [outcome for outcome in outcomes if not outcome.diverged]
    if not whole:
        raise ValueError("Everything that was trained has diverged: lower --lr, and start anew with --overwrite.")

    def place(outcome: Outcome) -> tuple[float, float]:
        assert outcome.select is not None  # or it counts as diverged
        return -outcome.select["top1"], outcome.select["loss"]

    return min(whole, key=place)


# ------------------------------------------------------------------------------------------------ runs of the same kind


class Kind(NamedTuple):
    """What the runs have in common that differ in their seeds only."""

    spec: MethodSpec
    lr: float
    fit: FitSpec = PAPERS_FIT


def by_kind(outcomes: Iterable[Outcome]) -> dict[Kind, list[Outcome]]:
    """Runs that differ in their seeds only, together; kinds in the order in which they first come."""
    groups: dict[Kind, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(Kind(outcome.cell.spec, outcome.cell.lr, outcome.cell.fit), []).append(outcome)
    return groups


def accuracies(outcomes: Iterable[Outcome], split: Split) -> list[float]:
    """Top-1 on a split, in [0, 1], of the runs that did not diverge and have been there."""
    scores = [getattr(outcome, split) for outcome in outcomes if not outcome.diverged]
    return [score["top1"] for score in scores if score is not None]


def fold_accuracies(outcomes: Iterable[Outcome]) -> list[float]:
    """Top-1 of each fold of each run, in [0, 1], of the runs that did not diverge and were cross-validated."""
    return [fold["top1"] for outcome in outcomes if not outcome.diverged for fold in outcome.folds or ()]


def table(outcomes: Sequence[Outcome]) -> str:
    """The grid as text: a line of headings, then one for each method and rate, in the order of `outcomes`.

    Accuracies are in percent: the mean over the runs that did not diverge and, of several, their sample standard
    deviation; "-" where no run is left. Runs differ in `--seeds` and `--data_seeds`. With `--folds`, mean and deviation
    over the folds of all runs take the place of `select`.
    """
    groups = by_kind(outcomes)
    runs = groups.values()
    if any(outcome.folds for outcome in outcomes):
        shown = {"out-of-fold": [fold_accuracies(same) for same in runs]}
    else:
        shown = {"select": [accuracies(same, "select") for same in runs]}
    shown["eval"] = [accuracies(same, "eval") for same in runs]
    columns = [
        ["method", *(kind.spec.label for kind in groups)],
        ["lr", *(shortest(kind.lr) for kind in groups)],
        *([["fit", *(kind.fit.label for kind in groups)]] if any(kind.fit != PAPERS_FIT for kind in groups) else []),
        ["runs", *(str(len(same)) for same in runs)],
        ["diverged", *(str(sum(outcome.diverged for outcome in same)) for same in runs)],
        *(_percent_column(f"{heading} top-1 %", groups) for heading, groups in shown.items()),
    ]
    return side_by_side(columns)


def _percent_column(heading: str, groups: Sequence[Sequence[float]]) -> list[str]:
    """Heading and entries; deviations are padded behind, so that the means stand under each other."""
    means = [f"{100 * fmean(group):.2f}" if group else "-" for group in groups]
    spreads = [f" ± {100 * stdev(group):.2f}" if len(group) > 1 else "" for group in groups]
    width = max(map(len, spreads), default=0)
    return [heading + (" ± sd" if width else ""), *(m + s.ljust(width) for m, s in zip(means, spreads, strict=True))]
