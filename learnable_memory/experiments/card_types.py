"""What a card holds, once it is read and checked: grids of variants, and what is shown of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from learnable_memory.experiments.keys import digest


@dataclass(frozen=True)
class Variant:
    """What differs from others of its grid by more than rate and data seed.

    Attributes:
        grid: the grid's name.
        labels: dimension -> label.
        options: fields of TrainOptions, from the grid and the dimensions in their order; later ones win.
        rates: the learning rates to choose from, rising.
        data_seeds: of the runs that are reported.
        sweep: "first": rates are compared on the first data seed; "every": on each.
    """

    grid: str
    labels: Mapping[str, str]
    options: Mapping[str, Any]
    rates: tuple[float, ...]
    data_seeds: tuple[int, ...]
    sweep: str

    @property
    def label(self) -> str:
        """For readers: the labels of all dimensions."""
        return ", ".join(self.labels.values())


@dataclass(frozen=True)
class Grid:
    """Every combination of the entries of its dimensions.

    Attributes:
        options: those that all variants share.
        over: dimension -> entries, each a mapping of `label`, options and perhaps `lr`.
    """

    name: str
    data_seeds: tuple[int, ...]
    sweep: str
    options: Mapping[str, Any]
    over: Mapping[str, tuple[Mapping[str, Any], ...]]

    def labels(self, dimension: str) -> list[str]:
        """The labels of a dimension's entries, in their order."""
        return [entry["label"] for entry in self.over[dimension]]

    def variants(self) -> list[Variant]:
        """All combinations, the last dimension changing fastest."""
        return [self._variant(entries) for entries in product(*self.over.values())]

    def _variant(self, entries: tuple[Mapping[str, Any], ...]) -> Variant:
        merged = {**self.options, **{key: value for entry in entries for key, value in entry.items()}}
        labels = {dimension: entry["label"] for dimension, entry in zip(self.over, entries, strict=True)}
        rates = merged.pop("lr")
        del merged["label"]
        return Variant(self.name, labels, merged, rates, self.data_seeds, self.sweep)


@dataclass(frozen=True)
class View:
    """Which variants of a grid a table or a figure shows, and where they stand in it."""

    grid: str
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def cells(self, grid: Grid) -> dict[tuple[str, str], Variant]:
        """(row label, column label) -> variant, in the order of the grid; without columns their label is ""."""
        shown = [
            variant
            for variant in grid.variants()
            if all(variant.labels[dimension] in labels for dimension, labels in self.where.items())
        ]
        return {(_joined(variant, self.rows), _joined(variant, self.columns)): variant for variant in shown}

    def row_labels(self, grid: Grid) -> list[str]:
        """Each once, in the order of the grid."""
        return list(dict.fromkeys(row for row, _ in self.cells(grid)))

    def column_labels(self, grid: Grid) -> list[str]:
        """Each once, in the order of the grid."""
        return list(dict.fromkeys(column for _, column in self.cells(grid)))


def _joined(variant: Variant, dimensions: tuple[str, ...]) -> str:
    return ", ".join(variant.labels[dimension] for dimension in dimensions)


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        values: of view_reader.VALUES; several only where the view has no columns.
        published: (row label, column label) -> number.
        differences: (of, to), row labels.
        note: a line below it.
    """

    title: str
    view: View
    values: tuple[str, ...]
    published: Mapping[tuple[str, str], float] = field(default_factory=dict)
    differences: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: its file is NAME.png.
        x: of kind "lines", what the horizontal axis shows: a key of the results or an option.
        lines: of kind "lines", line -> row labels.
        references: of kind "lines", row labels that are drawn as horizontal lines.
    """

    kind: str
    name: str
    title: str
    view: View
    published: Mapping[tuple[str, str], float] = field(default_factory=dict)
    x: str = ""
    lines: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Together:
    """An analysis of heads that are put together, and the table of its results.

    Attributes:
        rows: keys of `labels` in the results of this analysis, for the rows.
        columns: likewise, for the columns.
        values: of view_reader.TOGETHER_VALUES; several only without columns.
        settings: what the analysis itself is told: `kind`, one of view_reader.KINDS; `grid`; `heads`, dimension ->
            label; `along`, the dimension that is left; `order`, its labels in the order in which heads are added.
    """

    name: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[str, ...]
    published: Mapping[tuple[str, str], float]
    note: str
    settings: Mapping[str, Any]

    @property
    def labels(self) -> list[dict[str, str]]:
        """What each result of one data seed is of: a data set, and without the mask also which heads are in the model:
        the first, the first two, and so on."""
        along, order = self.settings["along"], self.settings["order"]
        if self.settings["kind"] != "unmasked":
            return [{along: label} for label in order]
        first = [order[:count] for count in range(1, len(order) + 1)]
        return [{"together": " + ".join(inside), along: label} for inside in first for label in inside]

    def place(self, labels: Mapping[str, str]) -> tuple[str, str]:
        """(row label, column label) of a result; without columns the latter is ""."""
        row, column = (", ".join(labels[key] for key in keys) for keys in (self.rows, self.columns))
        return row, column

    def key(self, runs: Sequence[str]) -> str:
        """Of this analysis of the runs with these keys."""
        return digest([self.name, dict(self.settings), list(runs)])

    def members(self, grid: Grid) -> list[Variant]:
        """The variants whose heads are put together, in their order."""
        variants = {tuple(sorted(variant.labels.items())): variant for variant in grid.variants()}
        labels = ({**self.settings["heads"], self.settings["along"]: label} for label in self.settings["order"])
        return [variants[tuple(sorted(each.items()))] for each in labels]


@dataclass(frozen=True)
class Card:
    """One experiment. `name` is its folder's."""

    name: str
    title: str
    question: str
    paper: str
    command: str
    expected_time: str
    expected_result: str
    grids: tuple[Grid, ...]
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    together: tuple[Together, ...] = ()
    smoke: Mapping[str, Any] = field(default_factory=dict)

    def grid(self, name: str) -> Grid:
        """The grid of this name, which the card has."""
        return next(grid for grid in self.grids if grid.name == name)

    def variants(self) -> list[Variant]:
        """Those of all grids."""
        return [variant for grid in self.grids for variant in grid.variants()]
