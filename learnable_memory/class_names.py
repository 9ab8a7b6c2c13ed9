"""Whether data have the classes that a head answers with: by their names, not by how many there are."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from learnable_memory.wording import counted, some

if TYPE_CHECKING:
    from learnable_memory.data import DataSet
    from learnable_memory.sources.found import Found

logger = logging.getLogger(__name__)

MOST_NAMES = 8  # of classes, in an error


def in_order_of(found: "Found", labels: Sequence[str] | None, name: str) -> "Found":
    """Data whose classes are these, in another order, with these numbers, which is logged; all other data as they are.

    Before splits are drawn: a seeded split depends on the numbers of the classes.

    Args:
        labels: what a head, or an earlier run, calls class 0, 1, ..; None: nobody knows.
        name: of the data, for the log.
    """
    if labels is None or found.labels == list(labels) or sorted(found.labels) != sorted(labels):
        return found
    if len(set(labels)) < len(labels):  # which of two classes of one name is meant, nobody can tell
        return found
    order = [found.labels.index(label) for label in labels]
    logger.info("%s has its classes in another order here: they are matched by their names.", name)
    splits = {role: split and split.relabel(order) for role, split in vars(found).items() if role in _ROLES}
    return replace(found, labels=list(labels), **splits)


_ROLES = ("train", "eval", "select")


def check_classes(labels: Sequence[str] | None, num_labels: int, data: "DataSet", who: str) -> None:
    """Raise ValueError, with what differs, if data have not the classes of a head, or of what else is called `who`.

    Args:
        labels: their names; None where the file has none, as those of 2023: then they are counted.
    """
    there = list(labels) if labels is not None else None
    if there == data.labels if there is not None else num_labels == len(data.labels):
        return
    raise ValueError(
        f"{who} has {counted(num_labels, 'class', 'classes')}, and {data.name} here ({data.source}) has "
        f"{counted(len(data.labels), 'class', 'classes')}{_difference(there, data.labels)}. Give the data that it was "
        "trained on, by --directory or by their name."
    )


def _difference(there: Sequence[str] | None, here: Sequence[str]) -> str:
    if there is None:
        return ""
    known, found = set(there), set(here)
    lost, new = [name for name in there if name not in found], [name for name in here if name not in known]
    parts = [f"not in the data: {some(lost, MOST_NAMES)}"] if lost else []
    parts += [f"only in the data: {some(new, MOST_NAMES)}"] if new else []
    return f"; {'; '.join(parts)}" if parts else "; some have one name, so they cannot be matched by it"
