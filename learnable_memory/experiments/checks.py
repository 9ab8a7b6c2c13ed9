"""Checks of single values of a card. `where` is the place in the file, which begins every message."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def mapping(
    value: Any, where: str, required: Collection[str] = (), optional: Collection[str] | None = None
) -> dict[str, Any]:
    """A mapping with these keys and no others; if `optional` is None, any others."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}, but it has to be a mapping.")
    for key in value:
        if not isinstance(key, (str, int, float)) or isinstance(key, bool):
            raise ValueError(f"{where} has the key {key!r}, which YAML reads as no text: put it in quotes.")
        if optional is not None and key not in (*required, *optional):
            raise ValueError(f"{where} has the unknown key {key!r}; legal: {', '.join((*required, *optional))}.")
    missing = [key for key in required if key not in value]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; it needs {', '.join(required)}.")
    return value


def items(value: Any, where: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise ValueError(f"{where} is {value!r}, but it has to be a list.")
    return value


def one_or_more(value: Any) -> list[Any]:
    """What may be written as a list or, of one thing, without brackets."""
    return value if isinstance(value, list) else [value]


def text(value: Any, where: str) -> str:
    """Text with something in it, without the spaces around it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} is {value!r}, but it has to be text.")
    return value.strip()


def label(value: Any, where: str) -> str:
    """A label; numbers are as good as text. What YAML reads as true, false or nothing has to be quoted."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise ValueError(f"{where} is {value!r}, but it has to be text or a number: put it in quotes.")
    return str(value).strip()


def one_of(value: Any, legal: Collection[str], where: str) -> str:
    """One of these."""
    if value not in list(legal):
        raise ValueError(f"{where} is {value!r}, but it has to be one of {', '.join(legal)}.")
    return value


def different(values: Collection[Any], where: str) -> None:
    """Values each of which stands there once."""
    values = list(values)
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{where} has {value!r} twice: name each once.")


def some_of(value: Any, legal: Collection[str], where: str) -> tuple[str, ...]:
    """One or several of these, each once."""
    names = [one_of(label(name, where), legal, where) for name in one_or_more(value)]
    different(names, where)
    return tuple(names)


def number(value: Any, where: str) -> float:
    """A number, as a float."""
    # YAML reads 1e-3 as text: it wants 1.0e-3.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where} is {value!r}, but it has to be a number, such as 0.001 or 1.0e-3.")
    return float(value)
