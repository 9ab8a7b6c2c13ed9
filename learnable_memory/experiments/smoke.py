"""A card on tiny files: the same grids, tables and analyses, in minutes on one core, so that every line of it runs.

What it measures means nothing. Values that a dimension compares stay distinct, so that no two of its runs become one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from learnable_memory.experiments.card_types import Card, Grid
from learnable_memory.experiments.smoke_bases import PATCH, write_base
from learnable_memory.experiments.smoke_data import write_data_sets

logger = logging.getLogger(__name__)

MOST_RATES = MOST_DATA_SEEDS = 2
SHORT = {"epochs": 1, "max_steps": 2, "batch_size": 4}  # of variants that say nothing of these
# The first of the card's values in rising order becomes the first number, and each further one is a step above.
SCALES = {"epochs": (1, 1), "max_steps": (2, 1), "batch_size": (4, 1), "image_size": (PATCH, PATCH)}


def smoke_card(card: Card, folder: Path) -> Card:
    """The card with tiny bases, data sets, schedules and image sizes in the place of its own.

    Bases are written to `folder`/bases, data sets to `folder`/data/datasets: the runs' `directory` has to be
    `folder`/data. The card's own `smoke` options come last.

    Raises:
        ValueError: a base or a data set that has no tiny form.
    """
    fixed = {"precision": "float32", **card.smoke.get("options", {})}
    write_data_sets(_values(card, "dataset"), folder / "data")
    small: dict[str, dict[Any, Any]] = {
        key: {value: first + rank * step for rank, value in enumerate(_values(card, key))}
        for key, (first, step) in SCALES.items()
    }
    small["base_model"] = {name: str(write_base(name, folder / "bases")) for name in _values(card, "base_model")}
    if "flash_attention_2" in _values(card, "attn_implementation"):
        logger.warning("flash_attention_2 does not take float32: %s --smoke runs sdpa in its place.", card.name)
        small["attn_implementation"] = {"flash_attention_2": "sdpa"}
    return replace(card, grids=tuple(_small_grid(grid, small, fixed) for grid in card.grids))


def _values(card: Card, key: str) -> list[Any]:
    """What the card gives for an option anywhere, each value once, in rising order."""
    return sorted({options[key] for grid in card.grids for options in _options(grid) if options.get(key) is not None})


def _options(grid: Grid) -> Iterator[Mapping[str, Any]]:
    """Those that all variants share, and those of each entry."""
    yield grid.options
    for entries in grid.over.values():
        yield from entries


def _small_grid(grid: Grid, small: Mapping[str, Mapping[Any, Any]], fixed: Mapping[str, Any]) -> Grid:
    def shrink(options: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: small.get(key, {}).get(value, value) if key in small else value for key, value in options.items()}
        if "lr" in kept:
            kept["lr"] = kept["lr"][:MOST_RATES]
        return {key: value for key, value in kept.items() if key not in fixed}

    over = {dimension: tuple(shrink(entry) for entry in entries) for dimension, entries in grid.over.items()}
    options = {**SHORT, **shrink(grid.options), **fixed}
    return replace(grid, data_seeds=grid.data_seeds[:MOST_DATA_SEEDS], options=options, over=over)
