"""Cards: an experiment as YAML, with what it asks, what it runs and what its report shows.

    title, question, paper, command, expected_time, expected_result: text, all required
    grids:
      - name: main
        data_seeds: [0, 1, 2]       # default [0]
        sweep: first                # all rates on the first data seed, the best one on the others; every: all on all
        options: {epochs: 10}       # fields of config.TrainOptions, except those in grid_reader.RESERVED
        over:                       # every combination of the entries; names of dimensions are free
          method: [{label: full, method: full, lr: [0.001, 0.01]}, ...]    # lr: one rate or several, of any dimension
    tables:
      - {title, grid, rows, columns, where, value, published, differences, note}
    figures:
      - {kind: points, name, title, grid, rows, columns, where, published, note}
      - {kind: lines, name, title, grid, rows, columns, where, x, lines, references, note}
      - {kind: rates, name, title, grid, rows, columns, where, note}
    together:
      - {name, title, kind, grid, heads, along, order, rows, columns, value, published, note}
    smoke: {options: {...}}

`rows` and `columns` are a dimension or a list of dimensions, whose labels are joined by ", "; `where` gives dimensions
a label or a list of labels. A dimension with several labels left has to be in rows or columns. `value` is one of
view_reader.VALUES, or, without columns, a list of them. `published` is row label -> column label -> number, in the
table's unit (without columns: row label -> number). `differences` are {of: row label, to: row label}.

Of figures, rows are what the marks stand for, columns are the panels, and `name` is the name of the file. Of lines, `x`
is a key of the results or an option, `lines` a dimension of the rows or a mapping line -> row labels, and `references`
are row labels that are drawn as horizontal lines.

What is put together are the heads of a grid: `heads` gives each dimension but one its label, `along` is that one, and
`order` are its labels in the order in which heads are added. Kinds:

    concatenation   all heads in one model, each seeing itself alone
    extension       trained in this order, each seeing all before it
    unmasked        the first, the first two, .. of them in one model in which every token sees every memory

Rows and columns are `along` and, of kind unmasked, `together`: which heads are in the model, joined by " + ".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from learnable_memory.experiments import checks
from learnable_memory.experiments.card_types import Card, Figure, Grid, Table, Together, Variant, View
from learnable_memory.experiments.grid_reader import read_grids, read_options
from learnable_memory.experiments.strict_yaml import read_yaml
from learnable_memory.experiments.view_reader import read_figure, read_table, read_together

__all__ = ["Card", "Figure", "Grid", "Table", "Together", "Variant", "View", "card_names", "card_path", "read_card"]

FOLDER = Path("experiments")
TEXTS = ("title", "question", "paper", "command", "expected_time", "expected_result")
Shown = TypeVar("Shown", Table, Figure, Together)


def card_names(folder: Path = FOLDER) -> list[str]:
    """The names of the cards below a folder, sorted."""
    return sorted(path.parent.name for path in folder.glob("*/card.yaml"))


def card_path(name_or_path: str | Path) -> Path:
    """The file of a card that is named, or given as a file or as a folder.

    Raises FileNotFoundError, with the names that there are.
    """
    given = Path(name_or_path)
    for path in (given, given / "card.yaml", FOLDER / given / "card.yaml"):
        if path.is_file():
            return path
    there = ", ".join(card_names()) or "none"
    raise FileNotFoundError(
        f"no card {str(name_or_path)!r}: give a card.yaml, its folder, or the name of one in {FOLDER} (there: {there})."
    )


def read_card(name_or_path: str | Path) -> Card:
    """Read and check a card.

    Raises:
        FileNotFoundError: there is none.
        ValueError: something in it is not legal; the message says where, and what is.
    """
    path = card_path(name_or_path)
    where = str(path)
    found = checks.mapping(read_yaml(path), where, (*TEXTS, "grids"), ("tables", "figures", "together", "smoke"))
    grids = read_grids(found["grids"], where)
    card = Card(
        name=path.resolve().parent.name,
        **{key: checks.text(found[key], f"{where}, {key}") for key in TEXTS},
        grids=tuple(grids.values()),
        tables=_each(found, "tables", where, lambda entry, place: read_table(entry, grids, place)),
        figures=_each(found, "figures", where, lambda entry, place: read_figure(entry, grids, place)),
        together=_each(found, "together", where, lambda entry, place: read_together(entry, grids, place)),
        smoke=_smoke(found.get("smoke", {}), f"{where}, smoke"),
    )
    for kind, shown in (("figures", card.figures), ("together", card.together)):
        checks.different([each.name for each in shown], f"{where}, {kind}: name")
    return card


def _each(found: dict[str, Any], key: str, where: str, read: Callable[[Any, str], Shown]) -> tuple[Shown, ...]:
    entries = checks.items(found.get(key, []), f"{where}, {key}")
    return tuple(read(entry, f"{where}, {key} {index}") for index, entry in enumerate(entries, start=1))


def _smoke(value: Any, where: str) -> dict[str, Any]:
    value = checks.mapping(value, where, optional=("options",))
    return {"options": read_options(value.get("options", {}), f"{where}, options")}
