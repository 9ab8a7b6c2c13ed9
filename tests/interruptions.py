"""How tests end a training in its middle."""

from collections.abc import Callable, Collection
from typing import Any

import pytest


class Killed(Exception):
    """Stands for an end that no code can prepare for."""


def kill() -> None:
    raise Killed


def at_call(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, numbers: Collection[int], act: Callable[[], None],
    after: bool = False,
) -> None:  # fmt: skip
    """Let `act()` happen within the calls of place.name of these numbers, from 1: before or after its own work."""
    original, calls = getattr(place, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) in numbers and not after:
            act()
        found = original(*args, **kwargs)
        if len(calls) in numbers and after:
            act()
        return found

    monkeypatch.setattr(place, name, counted)
