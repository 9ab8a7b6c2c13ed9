"""Which learning rate is reported: the best on the selection split, never on the evaluation split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from learnable_memory.experiments.card_types import Variant
from learnable_memory.grid import Outcome
from learnable_memory.runlog import jsonable

Row = Mapping[str, Any]


def diverged(row: Row) -> bool:
    """Whether the scores of a run say nothing: see `Outcome.diverged`."""
    return Outcome.from_row(row).diverged


def runs_of(variant: Variant, rows: Iterable[Row]) -> list[Row]:
    """The runs whose grid, labels, options, rate and data seed are the variant's: not those of a former card."""
    options = jsonable(variant.options)
    return [
        row
        for row in rows
        if row["kind"] == "run"
        and (row["grid"], row["labels"]) == (variant.grid, dict(variant.labels))
        and row["options"] == options
        and row["lr"] in variant.rates
        and row["data_seed"] in variant.data_seeds
    ]


def compared_seeds(variant: Variant) -> tuple[int, ...]:
    """The data seeds on which all rates of the variant are run, and compared."""
    return variant.data_seeds[:1] if variant.sweep == "first" else variant.data_seeds


def planned(variant: Variant, best: float | None) -> list[tuple[float, int]]:
    """(rate, data seed) of every run of the variant; further data seeds are there once the best rate is known."""
    compared = compared_seeds(variant)
    runs = [(rate, seed) for seed in compared for rate in variant.rates]
    if best is not None:
        runs += [(best, seed) for seed in variant.data_seeds if seed not in compared]
    return runs


def best_rate(variant: Variant, rows: Iterable[Row]) -> float | None:
    """The rate with the best mean top-1 on `select` over the data seeds that ran all rates.

    Of equals the one with the lower mean loss there, and at last the lower rate. A rate of which a run has diverged
    does not win.

    Args:
        rows: of `runs_of(variant, ..)`, in any order.

    Returns None while runs that have to be compared are missing, and if every rate has diverged.

    Raises ValueError if a rate has two runs with a data seed.
    """
    runs = by_rate_and_seed(variant, rows)
    seeds = compared_seeds(variant)
    if any((rate, seed) not in runs for rate in variant.rates for seed in seeds):
        return None
    compared = {rate: [runs[rate, seed] for seed in seeds] for rate in variant.rates}
    whole = {rate: same for rate, same in compared.items() if not any(map(diverged, same))}
    return min(whole, key=lambda rate: (-_mean(whole[rate], "top1"), _mean(whole[rate], "loss"), rate), default=None)


def by_rate_and_seed(variant: Variant, rows: Iterable[Row]) -> dict[tuple[float, int], Row]:
    """(rate, data seed) -> run.

    Raises ValueError if there are two of one.
    """
    runs: dict[tuple[float, int], Row] = {}
    for row in rows:
        place = (row["lr"], row["data_seed"])
        if place in runs:
            raise ValueError(
                f"grid {variant.grid}, {variant.label}: two runs with lr {place[0]} and data seed {place[1]}; "
                "take one out of the results."
            )
        runs[place] = row
    return runs


def _mean(rows: Sequence[Row], what: str) -> float:
    return fmean(row["select"][what] for row in rows)
