"""A data set in words, to be read before hours are spent on it: how many images, of which classes, of what size."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from learnable_memory.broken import ROLES
from learnable_memory.data import DataSet
from learnable_memory.images import ImageSet
from learnable_memory.text_table import side_by_side

FEW_CLASSES = 20  # that many have a line each
NAMED = 5  # rarest and most frequent classes that are named where there are more
QUANTILES = (0, 10, 25, 50, 75, 90, 100)  # percent
SAMPLED = 32  # images of each split that are opened for their size
LONGEST_NAME = 36  # characters of a class name in a table


def splits_table(data: DataSet) -> str:
    """A column for each split: images, smallest, median and largest class, classes without images, hash."""
    columns = [["", "images", "smallest class", "median class", "largest class", "classes without images", "hash"]]
    for role in ROLES:
        split = getattr(data, role)
        counts = images_per_class(split, len(data.labels))
        order = np.argsort(counts, kind="stable")
        order = order[np.count_nonzero(counts == 0) :]  # an empty class is no smallest class: it has a line of its own
        marks = [order[0], order[(len(order) - 1) // 2], order[-1]] if len(order) else []
        named = [f"{counts[label]:,} ({_short(data.labels[label])})" for label in marks] or ["-"] * 3
        columns.append([role, f"{len(split):,}", *named, f"{np.count_nonzero(counts == 0):,}", split.hash])
    return side_by_side(columns, str.ljust)


def class_balance(data: DataSet) -> str:
    """Images per class: a line for each of few classes, or else quantiles, and the rarest and most frequent classes."""
    counts = {role: images_per_class(getattr(data, role), len(data.labels)) for role in ROLES}
    if len(data.labels) <= FEW_CLASSES:
        names = ["class", *map(_short, data.labels)]
        share = 100 * counts["train"] / max(1, counts["train"].sum())
        columns = [[role, *(f"{count:,}" for count in counts[role])] for role in ROLES]
        return side_by_side([names, *columns, ["share of train", *(f"{percent:.1f} %" for percent in share)]])
    columns = [["images per class, quantiles", *ROLES]]
    for percent in QUANTILES:
        # An existing count, not one between two: "half of the classes have at most that many".
        found = (np.percentile(counts[role], percent, method="inverted_cdf") for role in ROLES)
        columns.append([f"{percent} %", *(f"{int(count):,}" for count in found)])
    return "\n".join([side_by_side(columns), *_extremes(data.labels, counts["train"])])


def sampled_sizes(data: DataSet) -> str:
    """Sizes and modes of a few images of each split, evenly spread, as they are stored.

    Raises:
        ValueError: one of them cannot be read.
    """
    images = []
    for split in (getattr(data, role) for role in ROLES):
        places = np.unique(np.linspace(0, len(split) - 1, min(SAMPLED, len(split))).round().astype(int))
        for image in (split.image(int(place)) for place in places):  # one at a time: photographs are large
            images.append((image.width, image.height, image.mode))
    sides = {name: sorted(image[axis] for image in images) for axis, name in enumerate(("width", "height"))}
    spread = ", ".join(
        f"{name} {found[0]:,} / {found[(len(found) - 1) // 2]:,} / {found[-1]:,}" for name, found in sides.items()
    )
    modes = ", ".join(f"{count} {mode}" for mode, count in Counter(mode for _, _, mode in images).most_common())
    return f"{len(images)} images looked at: {spread} pixels (smallest / median / largest); modes: {modes}"


def images_per_class(split: ImageSet, classes: int) -> np.ndarray:
    """int64 [classes]"""
    return np.bincount(split.labels, minlength=classes)


def _extremes(labels: Sequence[str], counts: np.ndarray) -> list[str]:
    if counts.min() == counts.max():
        return [f"balanced: every class has {counts[0]:,} training images"]
    order = np.argsort(counts, kind="stable")
    lines = []
    for title, members in (("rarest in train", order[:NAMED]), ("most frequent", order[: -NAMED - 1 : -1])):
        lines.append(f"{title:<16} " + ", ".join(f"{counts[label]:,} ({labels[label]})" for label in members))
    return lines


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
