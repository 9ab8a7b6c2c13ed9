"""Tables of heads that are put together: made of the rows of kind "together"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from learnable_memory.experiments.card_types import Together
from learnable_memory.experiments.choice import Row
from learnable_memory.experiments.results import unpack_right
from learnable_memory.experiments.significance import Spread, paired_bootstrap
from learnable_memory.experiments.tables import (
    BOOTSTRAP,
    NOTHING,
    beside,
    percent,
    seeds_words,
    signed,
    text_table,
    upper_first,
)

HEADINGS = {"top1": "together, %", "alone_top1": "alone, %", "change": "change, points"}
VALUES: Mapping[str, Callable[[Row], float]] = {
    "top1": lambda row: row["top1"],
    "alone_top1": lambda row: row["alone_top1"],
    "change": lambda row: row["top1"] - row["alone_top1"],
}
Place = tuple[str, str]


def markdown(analysis: Together, rows: Iterable[Row]) -> str:
    """The table and the note below it, in the order of the analysis; without results a line that says so.

    Args:
        rows: of `Findings.together`, of all analyses and in any order.

    Raises ValueError if two rows have the same labels and data seed, or if those of one cell are of different images.
    """
    cells = _placed(analysis, rows)
    if not cells:
        return "No results yet."
    down, across = (dict.fromkeys(labels) for labels in zip(*map(analysis.place, analysis.labels), strict=True))
    shown = [(column, value) for column in across for value in analysis.values]
    headings = [column or HEADINGS[value] for column, value in shown]
    lines = [
        [row, *(_cell(analysis, value, (row, column), cells.get((row, column), [])) for column, value in shown)]
        for row in down
    ]
    table = text_table([", ".join(analysis.rows), *headings], lines)
    return "\n\n".join(filter(None, [table, _notes(analysis, cells)]))


def _placed(analysis: Together, rows: Iterable[Row]) -> dict[Place, list[Row]]:
    """(row label, column label) -> its rows, in the order of their data seeds."""
    cells: dict[Place, dict[int, Row]] = {}
    for row in rows:
        if row["analysis"] != analysis.name:
            continue
        same = cells.setdefault(analysis.place(row["labels"]), {})
        if row["data_seed"] in same:
            raise ValueError(
                f"together {analysis.name!r}: two rows have {', '.join(row['labels'].values())} and data seed "
                f"{row['data_seed']}; take one out of the results."
            )
        same[row["data_seed"]] = row
    return {place: [same[seed] for seed in sorted(same)] for place, same in cells.items()}


def _cell(analysis: Together, value: str, place: Place, same: Sequence[Row]) -> str:
    """Mean and deviation over the data seeds; of a change, where the answers are there, its interval over images."""
    published = beside(analysis.published, *place)
    if not same:
        return NOTHING + published
    if value == "change" and _answered(same):
        return _change(analysis, place, same) + published
    spread = Spread.of([VALUES[value](row) for row in same])
    sign = "+" if value == "change" and spread.mean > 0 else ""
    return sign + percent(spread.mean, spread.deviation) + published


def _answered(same: Sequence[Row]) -> bool:
    """Whether the results say which images were answered rightly, together and alone."""
    return all(row.get(key) is not None for row in same for key in ("eval_right", "alone_right"))


def _change(analysis: Together, place: Place, same: Sequence[Row]) -> str:
    hashes = sorted({row["eval_hash"] for row in same})
    if len(hashes) != 1:
        raise ValueError(
            f"together {analysis.name!r}: {' / '.join(filter(None, place))} was evaluated on different images (hashes "
            f"{', '.join(hashes)}), but a paired change needs the same: take all but one out of the results."
        )
    together, alone = (
        np.stack([unpack_right(row[key], row["images"]) for row in same])  # [data seeds, images]
        for key in ("eval_right", "alone_right")
    )
    return signed(paired_bootstrap(together, alone))


def _notes(analysis: Together, cells: Mapping[Place, Sequence[Row]]) -> str:
    """As below the other tables."""
    runs = {place: len(same) for place, same in cells.items()}
    paired = "change" in analysis.values and any(map(_answered, cells.values()))
    spread = [value for value in analysis.values if value != "change" or not all(map(_answered, cells.values()))]
    deviation = ", ± sample standard deviation" * (any(count > 1 for count in runs.values()) and bool(spread))
    notes = [f"{upper_first(HEADINGS[analysis.values[0]])}."] * bool(analysis.columns)
    notes += [f"Means over {seeds}{deviation}." for seeds in seeds_words(runs)]
    notes += [f"Changes {BOOTSTRAP}"] * paired + ["In brackets: published."] * bool(analysis.published)
    return " ".join(notes + [analysis.note] * bool(analysis.note))
