"""Images that are in a data set more than once: in two splits, which flatters every score, or with two labels."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from learnable_memory.data import DataSet
from learnable_memory.wording import counted

SHOWN = 10  # pairs that are listed of each kind


@dataclass(frozen=True)
class Place:
    """Where an image is: its split, its index there, and its label."""

    role: str
    index: int
    label: int


def copies(data: DataSet, digests: Mapping[str, Mapping[int, bytes]]) -> list[str]:
    """In lines of text: which images of a split are in another one too, and which are there with different labels.

    Args:
        digests: for each split, of its images by their index; the same ones mean the same pixels.

    Returns:
        A heading for each kind of copies, and below it at most ten pairs; nothing where there are none.
    """
    places: dict[bytes, list[Place]] = defaultdict(list)
    for role, found in digests.items():
        labels = getattr(data, role).labels
        for index, digest in found.items():
            places[digest].append(Place(role, index, int(labels[index])))
    several = [same for same in places.values() if len(same) > 1]
    lines = []
    for first, second in combinations(digests, 2):
        pairs = [(here, there) for same in several for here, there in _across(same, first, second)]
        if pairs:
            of_all = counted(len(getattr(data, second)), "image")
            lines.append(f"{len(pairs):,} of {of_all} of {second} are in {first} too, pixel for pixel:")
            lines += _listed(data, pairs)
    pairs = [
        (same[0], next(place for place in same if place.label != same[0].label)) for same in several if _differ(same)
    ]
    if pairs:
        lines.append(f"{counted(len(pairs), 'image')} with different labels:")
        lines += _listed(data, pairs)
    return lines


def _across(same: list[Place], first: str, second: str) -> list[tuple[Place, Place]]:
    """Each of them in the second split, with one in the first."""
    there = next((place for place in same if place.role == first), None)
    return [(place, there) for place in same if there and place.role == second]


def _differ(same: list[Place]) -> bool:
    return len({place.label for place in same}) > 1


def _listed(data: DataSet, pairs: list[tuple[Place, Place]]) -> list[str]:
    lines = [f"  {' = '.join(_named(data, place) for place in pair)}" for pair in pairs[:SHOWN]]
    return [*lines, f"  and {len(pairs) - SHOWN:,} more"] if len(pairs) > SHOWN else lines


def _named(data: DataSet, place: Place) -> str:
    return f"{place.role}: {getattr(data, place.role).identity(place.index)} ({data.labels[place.label]})"
