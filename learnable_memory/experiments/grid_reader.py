"""Grids of a card: read and checked."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from learnable_memory.config import TrainOptions
from learnable_memory.experiments import checks
from learnable_memory.experiments.card_types import Grid, Variant
from learnable_memory.options import field_types

SWEEPS = ("first", "every")
RESERVED = (  # what the engine or the machine decides
    "lr", "seeds", "data_seeds", "extends", "name", "output", "resume", "overwrite", "keep_all", "log_with",
    "checkpoint_steps", "directory", "no_download", "cache_folder", "device",
)  # fmt: skip


def read_grids(value: Any, where: str) -> dict[str, Grid]:
    """The grids by their names."""
    entries = checks.items(value, f"{where}, grids")
    grids = [read_grid(entry, f"{where}, grid {index}") for index, entry in enumerate(entries, start=1)]
    checks.different([grid.name for grid in grids], f"{where}, grids: name")
    return {grid.name: grid for grid in grids}


def read_grid(entry: Any, where: str) -> Grid:
    """One grid of a card. Raises ValueError, naming `where`, if it is not legal."""
    entry = checks.mapping(entry, where, ("name", "over"), ("data_seeds", "sweep", "options"))
    name = checks.text(entry["name"], f"{where}: name")
    where = f"{where} ({name})"
    over = {
        dimension: _entries(entries, f"{where}, {dimension}")
        for dimension, entries in checks.mapping(entry["over"], f"{where}, over").items()
    }
    if not over:
        raise ValueError(f"{where}: over is empty, but it has to have at least one dimension.")
    grid = Grid(
        name=name,
        data_seeds=_data_seeds(entry.get("data_seeds", [0]), f"{where}: data_seeds"),
        sweep=checks.one_of(entry.get("sweep", "first"), SWEEPS, f"{where}: sweep"),
        options=read_options(entry.get("options", {}), f"{where}, options"),
        over=over,
    )
    for entries in product(*over.values()):
        if not any("lr" in entry for entry in entries):
            labels = ", ".join(entry["label"] for entry in entries)
            raise ValueError(f"{where}, {labels}: no entry has lr; give a rate, or several to choose from.")
    for variant in grid.variants():
        _check_values(variant, where)
    return grid


def read_options(value: Any, where: str) -> dict[str, Any]:
    """Options by the names of TrainOptions' fields. Of a list of alternatives only one: a variant is one method."""
    kinds = {name: kind for name, kind in field_types(TrainOptions).items() if name not in RESERVED}
    options = checks.mapping(value, where, optional=kinds)
    for name, given in options.items():
        if kinds[name].many and isinstance(given, list) and len(given) != 1:
            raise ValueError(f"{where}: {name} is {given}, but it has to be one value: make an entry for each.")
    return options


def _entries(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    entries = [_entry(entry, f"{where} {index}") for index, entry in enumerate(checks.items(value, where), 1)]
    if not entries:
        raise ValueError(f"{where} is empty, but it has to have at least one entry.")
    checks.different([entry["label"] for entry in entries], f"{where}: label")
    return tuple(entries)


def _entry(value: Any, where: str) -> dict[str, Any]:
    value = checks.mapping(value, where, ("label",))
    label = checks.label(value["label"], f"{where}: label")
    where = f"{where} ({label})"
    entry = {"label": label, **read_options({k: v for k, v in value.items() if k not in ("label", "lr")}, where)}
    if "lr" in value:
        entry["lr"] = _rates(value["lr"], f"{where}: lr")
    return entry


def _rates(value: Any, where: str) -> tuple[float, ...]:
    rates = [checks.number(rate, where) for rate in checks.one_or_more(value)]
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"{where} is {value}, but it has to be numbers above 0.")
    checks.different(rates, where)
    return tuple(sorted(rates))


def _data_seeds(value: Any, where: str) -> tuple[int, ...]:
    seeds = checks.items(value, where)
    if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"{where} is {seeds}, but it has to be whole numbers from 0 to 2**32 - 1.")
    checks.different(seeds, where)
    return tuple(seeds)


def _check_values(variant: Variant, where: str) -> None:
    """That these options make a run: better told when the card is read than three hours later."""
    try:
        TrainOptions(**variant.options, lr=variant.rates, data_seeds=variant.data_seeds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}, {variant.label}: {error}") from None
