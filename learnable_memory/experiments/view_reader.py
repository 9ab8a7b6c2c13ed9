"""Tables, figures and analyses of a card: read, and checked against its grids."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from learnable_memory.experiments import checks
from learnable_memory.experiments.card_types import Figure, Grid, Table, Together, View

VALUES = (
    "top1", "parameters", "trained_megabytes", "train_seconds", "eval_seconds", "step_milliseconds", "peak_memory",
    "lr", "combinable", "epoch",
)  # fmt: skip
TOGETHER_VALUES = ("top1", "alone_top1", "change")
KINDS = ("concatenation", "extension", "unmasked")  # of analyses
SETTINGS = ("kind", "grid", "heads", "along", "order")
OF_KIND = {  # figures: required keys and optional ones, beside those that all have
    "points": ((), ("published",)),
    "lines": (("x", "lines"), ("references",)),
    "rates": ((), ()),
}
Published = dict[tuple[str, str], float]


def read_table(entry: Any, grids: Mapping[str, Grid], where: str) -> Table:
    """One table of a card. Raises ValueError, naming `where`, if it is not legal."""
    optional = ("columns", "where", "published", "differences", "note")
    entry = checks.mapping(entry, where, ("title", "grid", "rows", "value"), optional)
    title = checks.text(entry["title"], f"{where}: title")
    where = f"{where} ({title})"
    view = read_view(entry, grids, where)
    rows = view.row_labels(grids[view.grid])
    values = _values(entry["value"], VALUES, view.columns, where)
    published = _published(entry, view.cells(grids[view.grid]), where)
    if published and len(values) > 1:
        raise ValueError(f"{where}: published numbers are of one value, but value is {', '.join(values)}.")
    differences = [
        _difference(pair, rows, f"{where}, difference {index}")
        for index, pair in enumerate(checks.items(entry.get("differences", []), f"{where}: differences"), 1)
    ]
    if differences and values != ("top1",):
        raise ValueError(f"{where}: differences are of top1, but value is {', '.join(values)}.")
    return Table(title, view, values, published, tuple(differences), _note(entry, where))


def read_figure(entry: Any, grids: Mapping[str, Grid], where: str) -> Figure:
    """One figure of a card. Raises ValueError, naming `where`, if it is not legal."""
    kind = checks.one_of(checks.mapping(entry, where, ("kind",))["kind"], OF_KIND, f"{where}: kind")
    required, optional = OF_KIND[kind]
    required = ("kind", "name", "title", "grid", "rows", *required)
    entry = checks.mapping(entry, where, required, ("columns", "where", "note", *optional))
    name, title = (checks.text(entry[key], f"{where}: {key}") for key in ("name", "title"))
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"{where}: name is {name!r}, but it has to be made of letters, digits, '_' and '-'.")
    where = f"{where} ({name})"
    view = read_view(entry, grids, where)
    return Figure(
        kind=kind,
        name=name,
        title=title,
        view=view,
        published=_published(entry, view.cells(grids[view.grid]), where),
        x=checks.text(entry["x"], f"{where}: x") if "x" in entry else "",
        lines=_lines(entry["lines"], view, grids[view.grid], where) if "lines" in entry else {},
        references=checks.some_of(
            entry.get("references", []), view.row_labels(grids[view.grid]), f"{where}: references"
        ),
        note=_note(entry, where),
    )


def read_together(entry: Any, grids: Mapping[str, Grid], where: str) -> Together:
    """One analysis of heads put together of a card. Raises ValueError, naming `where`, if it is not legal."""
    required = ("name", "title", *SETTINGS, "rows", "value")
    entry = checks.mapping(entry, where, required, ("columns", "published", "note"))
    name, title = (checks.text(entry[key], f"{where}: {key}") for key in ("name", "title"))
    where = f"{where} ({name})"
    settings = _settings(entry, grids, where)
    legal = (settings["along"], "together") if settings["kind"] == "unmasked" else (settings["along"],)
    rows, columns = (checks.some_of(entry.get(side, []), legal, f"{where}: {side}") for side in ("rows", "columns"))
    if not rows or sorted(rows + columns) != sorted(legal):
        raise ValueError(
            f"{where}: rows and columns have to name {', '.join(legal)}, each once, and rows at least one."
        )
    values = _values(entry["value"], TOGETHER_VALUES, columns, where)
    analysis = Together(name, title, rows, columns, values, {}, _note(entry, where), settings)
    published = _published(entry, [analysis.place(labels) for labels in analysis.labels], where)
    if published and len(values) > 1:
        raise ValueError(f"{where}: published numbers are of one value, but value is {', '.join(values)}.")
    return replace(analysis, published=published)


def _settings(entry: Mapping[str, Any], grids: Mapping[str, Grid], where: str) -> dict[str, Any]:
    """What the analysis itself is told."""
    kind = checks.one_of(entry["kind"], KINDS, f"{where}: kind")
    grid = grids[checks.one_of(entry["grid"], grids, f"{where}: grid")]
    along = checks.one_of(entry["along"], grid.over, f"{where}: along")
    heads = checks.mapping(entry["heads"], f"{where}: heads", optional=grid.over)
    if sorted([along, *heads]) != sorted(grid.over):
        raise ValueError(f"{where}: along and heads have to name the dimensions {', '.join(grid.over)}, each once.")
    heads = {
        dimension: checks.one_of(checks.label(label, where), grid.labels(dimension), f"{where}: heads, {dimension}")
        for dimension, label in heads.items()
    }
    order = checks.some_of(entry["order"], grid.labels(along), f"{where}: order")
    if len(order) < 2:
        choice = ", ".join(grid.labels(along))
        raise ValueError(f"{where}: order is {list(order)}, but it has to be two or more of {choice}.")
    return {"kind": kind, "grid": grid.name, "heads": heads, "along": along, "order": list(order)}


def read_view(entry: Mapping[str, Any], grids: Mapping[str, Grid], where: str) -> View:
    """One choice of variants of a card. Raises ValueError, naming `where`, if it is not legal."""
    grid = grids[checks.one_of(entry["grid"], grids, f"{where}: grid")]
    rows, columns = (checks.some_of(entry.get(key, []), grid.over, f"{where}: {key}") for key in ("rows", "columns"))
    if not rows:
        raise ValueError(f"{where}: rows is empty, but it has to be one of {', '.join(grid.over)}, or several.")
    checks.different(rows + columns, f"{where}: rows and columns")
    chosen = {
        dimension: checks.some_of(labels, grid.labels(dimension), f"{where}: where {dimension}")
        for dimension, labels in checks.mapping(entry.get("where", {}), f"{where}: where", optional=grid.over).items()
    }
    for dimension in grid.over:
        left = chosen.get(dimension, grid.labels(dimension))
        if len(left) != 1 and dimension not in rows + columns:
            choice = ", ".join(grid.labels(dimension))
            raise ValueError(f"{where}: {dimension} is neither in rows nor in columns: choose one in where ({choice}).")
    return View(grid.name, rows, columns, chosen)


def _values(value: Any, legal: Collection[str], columns: Collection[str], where: str) -> tuple[str, ...]:
    values = checks.some_of(value, legal, f"{where}: value")
    if not values or (len(values) > 1 and columns):
        raise ValueError(f"{where}: value is {list(values)}, but it has to be one, or without columns several.")
    return values


def _difference(pair: Any, rows: Collection[str], where: str) -> tuple[str, str]:
    pair = checks.mapping(pair, where, ("of", "to"), ())
    of, to = (checks.one_of(checks.label(pair[key], where), rows, f"{where}: {key}") for key in ("of", "to"))
    checks.different([of, to], where)
    return of, to


def _published(entry: Mapping[str, Any], places: Collection[tuple[str, str]], where: str) -> Published:
    """(row label, column label) -> number, of places that the table has."""
    where = f"{where}: published"
    found: Published = {}
    for row, of_row in checks.mapping(entry.get("published", {}), where).items():
        row = checks.one_of(checks.label(row, where), dict.fromkeys(each for each, _ in places), where)
        columns = [column for each, column in places if each == row]
        by_column = {"": of_row} if columns == [""] else checks.mapping(of_row, f"{where}, {row}")
        for column, number in by_column.items():
            checks.one_of(str(column), columns, f"{where}, {row}")
            found[row, str(column)] = checks.number(number, f"{where}, {row} {column}".rstrip())
    return found


def _lines(value: Any, view: View, grid: Grid, where: str) -> dict[str, tuple[str, ...]]:
    """Line -> row labels, from such a mapping or from a dimension of the rows."""
    where = f"{where}: lines"
    if isinstance(value, dict):
        rows = view.row_labels(grid)
        return {checks.label(line, where): checks.some_of(of, rows, f"{where}, {line}") for line, of in value.items()}
    dimension = checks.one_of(value, view.rows, where)
    lines: dict[str, dict[str, None]] = {}
    for (row, _), variant in view.cells(grid).items():
        lines.setdefault(variant.labels[dimension], {})[row] = None
    return {line: tuple(rows) for line, rows in lines.items()}


def _note(entry: Mapping[str, Any], where: str) -> str:
    return checks.text(entry["note"], f"{where}: note") if "note" in entry else ""
