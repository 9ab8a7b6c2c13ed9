"""What the results say of each variant of a card: its runs, the ones that are reported, and those that are missing.

The same of heads that were put together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from learnable_memory.experiments.card_types import Card, Together, Variant
from learnable_memory.experiments.choice import (
    Row,
    best_rate,
    by_rate_and_seed,
    diverged,
    planned,
    runs_of,
)
from learnable_memory.experiments.results import unpack_right
from learnable_memory.experiments.significance import Spread


@dataclass(frozen=True)
class Finding:
    """Of one variant.

    Attributes:
        runs: (rate, data seed) -> its run.
        best: the rate that was chosen on `select`; None while runs are missing for that, or if all have diverged.
    """

    variant: Variant
    runs: Mapping[tuple[float, int], Row]
    best: float | None

    @classmethod
    def of(cls, variant: Variant, rows: Iterable[Row]) -> Finding:
        """
        Raises ValueError if two runs have one rate and data seed, or if those that are reported started from different
        bases or were evaluated on different images.
        """
        rows = list(rows)
        found = cls(variant, by_rate_and_seed(variant, rows), best_rate(variant, rows))
        found._check_alike()
        return found

    def _check_alike(self) -> None:
        different = {
            "started from different bases (fingerprints": self.base_fingerprints,
            "were evaluated on different images (hashes": self.eval_hashes,
        }
        for words, hashes in different.items():
            if len(hashes) > 1:
                raise ValueError(
                    f"grid {self.variant.grid}, {self.variant.label}: the runs with lr {self.best} {words} "
                    f"{', '.join(sorted(hashes))}), so their mean says nothing: take all but one out of the results."
                )

    @property
    def planned(self) -> list[tuple[float, int]]:
        """(rate, data seed) of all runs, as far as it is known which those are."""
        return planned(self.variant, self.best)

    @property
    def expected(self) -> list[tuple[float, int]]:
        """The same with those that will follow: at the first of the rates, while the best is not known."""
        unknown = self.best is None and not self.all_diverged
        return planned(self.variant, self.variant.rates[0]) if unknown else self.planned

    @property
    def missing(self) -> list[tuple[float, int]]:
        """Those that are planned and not there."""
        return [place for place in self.planned if place not in self.runs]

    @property
    def chosen(self) -> list[Row]:
        """The runs of the best rate, in the order of the data seeds."""
        if self.best is None:
            return []
        places = [(self.best, seed) for seed in self.variant.data_seeds]
        return [self.runs[place] for place in places if place in self.runs]

    @property
    def scored(self) -> list[Row]:
        """Those of them that are reported: evaluated, and not diverged."""
        return [row for row in self.chosen if row["eval"] is not None and not diverged(row)]

    @property
    def top1(self) -> Spread | None:
        """On `eval`, in [0, 1]; None if no run is reported."""
        return Spread.of([row["eval"]["top1"] for row in self.scored]) if self.scored else None

    @property
    def all_diverged(self) -> bool:
        """Whether every run that there is to choose from has come, and none of them can be chosen."""
        return self.best is None and not self.missing

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest of several: one beyond it may be better still."""
        rates = self.variant.rates
        return len(rates) > 1 and self.best in (min(rates), max(rates))

    @property
    def eval_hashes(self) -> set[str]:
        """Of the evaluation splits of the reported runs."""
        return {row["eval_hash"] for row in self.scored}

    @property
    def base_fingerprints(self) -> set[str]:
        """Of the bases of the reported runs, where their rows say so."""
        return {row["base"]["fingerprint"] for row in self.scored if "base" in row}

    def right(self) -> np.ndarray:
        """Whether the reported runs answered each image rightly, bool [runs, images].

        Raises ValueError if that is not in the results of one.
        """
        for row in self.scored:
            if row["eval_right"] is None:
                raise ValueError(
                    f"{self.variant.label}: the run with lr {row['lr']} and data seed {row['data_seed']} has no "
                    "eval_right, so it cannot be compared image by image: run it again."
                )
        return np.stack([unpack_right(row["eval_right"], row["eval"]["images"]) for row in self.scored])


class Findings:
    """The rows of a results file, put to the variants of a card.

    Rows that were made before the card changed belong to no variant, and what was put together of runs that are no
    longer chosen to no analysis: they are left aside, and counted.

    Attributes:
        together: the rows of analyses of heads put together.
        left_out: how many rows of runs belong to no variant.
        together_left_out: how many rows of analyses are of other heads than the card has now.
    """

    def __init__(self, card: Card, rows: Iterable[Row]) -> None:
        rows = list(rows)
        runs = [row for row in rows if row["kind"] == "run"]
        self.card = card
        self._found: dict[tuple[str, ...], Finding] = {}
        for variant in card.variants():
            self._found[_place(variant.grid, variant.labels)] = Finding.of(variant, runs_of(variant, runs))
        self.left_out = len(runs) - len(self.used)
        self.together = [row for row in rows if row["kind"] == "together" and self._is_of_now(row)]
        self.together_left_out = len(rows) - len(runs) - len(self.together)

    def __getitem__(self, variant: Variant) -> Finding:
        return self._found[_place(variant.grid, variant.labels)]

    def __iter__(self) -> Iterator[Finding]:
        """In the order of the card."""
        return iter(self._found.values())

    @property
    def used(self) -> list[Row]:
        """The runs that belong to a variant, those of each in no order."""
        return [row for found in self for row in found.runs.values()]

    def missing_of(self, analysis: Together) -> list[int]:
        """The data seeds of which an analysis is not there, or not whole."""
        there = Counter(row["data_seed"] for row in self.together if row["analysis"] == analysis.name)
        seeds = self.card.grid(analysis.settings["grid"]).data_seeds
        return [seed for seed in seeds if there[seed] < len(analysis.labels)]

    def _is_of_now(self, row: Row) -> bool:
        """Whether an analysis of the card gives such a row, of the runs that are chosen now."""
        for analysis in self.card.together:
            if row["analysis"] == analysis.name and row["labels"] in analysis.labels:
                variants = analysis.members(self.card.grid(analysis.settings["grid"]))
                chosen = [run for variant in variants for run in self[variant].scored]
                keys = [run["key"] for run in chosen if run["data_seed"] == row["data_seed"]]
                return row["members"] == keys and row["key"] == analysis.key(keys)
        return False


def progress(card: Card, rows: Iterable[Row]) -> tuple[int, int]:
    """How many of the card's runs are there, and how many they are in all.

    While a best rate is not known, further data seeds count as one run each.

    Raises ValueError for rows that contradict each other.
    """
    there = whole = 0
    for found in Findings(card, rows):
        there += len(found.planned) - len(found.missing)
        whole += len(found.expected)
    return there, whole


def _place(grid: str, labels: Mapping[str, str]) -> tuple[str, ...]:
    return (grid, *(f"{dimension}={label}" for dimension, label in labels.items()))
