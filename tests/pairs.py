"""Pairwise combinations: faults come from one value or from two together, so a full product adds little but time."""

import itertools
from collections.abc import Iterable
from typing import Any


def pairwise(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Combinations of a value of each axis, such that any two values of different axes meet in one of them at least."""
    axes = [list(axis) for axis in axes]
    places = list(itertools.product(*(range(len(axis)) for axis in axes)))
    pairs = {place: set(itertools.combinations(enumerate(place), 2)) for place in places}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(places, key=lambda place: len(pairs[place] & missing))
        missing -= pairs[best]
        chosen.append(tuple(axis[index] for axis, index in zip(axes, best, strict=True)))
    return chosen
