"""Tables of heads that are put together: made of the rows of kind "together"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from learnable_memory.experiments.card_types import Card, Together
from learnable_memory.experiments.choice import Row
from learnable_memory.experiments.significance import Spread
from learnable_memory.experiments.tables import NOTHING, beside, percent, text_table, upper_first

Labels = tuple[str, ...]
HEADINGS = {"top1": "together, %", "alone_top1": "alone, %", "change": "change, points"}
VALUES: Mapping[str, Callable[[Row], float]] = {
    "top1": lambda row: row["top1"],
    "alone_top1": lambda row: row["alone_top1"],
    "change": lambda row: row["top1"] - row["alone_top1"],
}


def markdown(analysis: Together, card: Card, rows: Iterable[Row]) -> str:
    """The table and the note below it; without results a line that says so.

    Labels come in the order in which a grid of the card has them, others by their text.

    Args:
        rows: of all analyses, in any order. Rows with the same labels are of different data seeds.

    Raises ValueError if the labels of a row are not those that the card has in rows and columns, or if two rows have
    the same labels and data seed.
    """
    cells = _placed(analysis, rows)
    if not cells:
        return "No results yet."
    down = sorted({row for row, _ in cells}, key=lambda labels: _order(card, analysis.rows, labels))
    across = sorted({column for _, column in cells}, key=lambda labels: _order(card, analysis.columns, labels))
    single = len(analysis.values) == 1
    shown = [(column, value) for column in across for value in analysis.values]
    headings = [", ".join(column) if single and column else HEADINGS[value] for column, value in shown]
    lines = [
        [", ".join(row)]
        + [_cell(analysis, value, row, column, cells.get((row, column), {})) for column, value in shown]
        for row in down
    ]
    notes = [f"{upper_first(HEADINGS[analysis.values[0]])}."] * bool(analysis.columns)
    notes += ["In brackets: published."] * bool(analysis.published) + [analysis.note] * bool(analysis.note)
    return "\n\n".join(filter(None, [text_table([", ".join(analysis.rows), *headings], lines), " ".join(notes)]))


def _placed(analysis: Together, rows: Iterable[Row]) -> dict[tuple[Labels, Labels], dict[Any, Row]]:
    """(labels of the rows, labels of the columns) -> data seed -> row."""
    cells: dict[tuple[Labels, Labels], dict[Any, Row]] = {}
    keys = (*analysis.rows, *analysis.columns)
    for row in rows:
        if row["analysis"] != analysis.name:
            continue
        where = f"together {analysis.name!r}: "
        if set(row["labels"]) != set(keys):
            raise ValueError(
                f"{where}a row of the results has the labels {', '.join(sorted(row['labels']))}, but rows and columns "
                f"are {', '.join(keys)}: name those."
            )
        place = (
            tuple(row["labels"][key] for key in analysis.rows),
            tuple(row["labels"][key] for key in analysis.columns),
        )
        same = cells.setdefault(place, {})
        if row.get("data_seed") in same:
            labels = ", ".join(row["labels"].values())
            raise ValueError(f"{where}two rows have {labels} and one data seed; take one out of the results.")
        same[row.get("data_seed")] = row
    return cells


def _cell(analysis: Together, value: str, row: Sequence[str], column: Sequence[str], same: Mapping[Any, Row]) -> str:
    published = beside(analysis.published, ", ".join(row), ", ".join(column)) if len(analysis.values) == 1 else ""
    if not same:
        return NOTHING + published
    spread = Spread.of([VALUES[value](same[seed]) for seed in sorted(same, key=str)])
    text = percent(spread.mean, spread.deviation)
    return ("+" if value == "change" and spread.mean > 0 else "") + text + published


def _order(card: Card, keys: Sequence[str], labels: Sequence[str]) -> list[tuple]:
    """Sorts labels as the card has them; others behind, with numbers in them by their size."""
    order = []
    for key, label in zip(keys, labels, strict=True):
        known = [each for grid in card.grids if key in grid.over for each in grid.labels(key)]
        natural = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", label)]
        order.append((known.index(label) if label in known else len(known), natural))
    return order
