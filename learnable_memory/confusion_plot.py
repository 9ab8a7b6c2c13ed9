"""A confusion matrix as a picture."""

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from learnable_memory import plots
from learnable_memory.confusion import Confusion
from learnable_memory.plots import BASE, FAINT, INK

MOST = 30  # classes that are drawn: of more, those that are confused most often
LONGEST = 18  # letters of a name
COLOURS = LinearSegmentedColormap.from_list("share", ["white", BASE])


def confusion_matrix(found: Confusion, path: str | os.PathLike, head: str) -> Path:
    """Rows are the classes of images, columns what they were taken for; a cell has their number, its colour the share.

    Args:
        found: of one head.
        path: where the picture goes; its folder is made.
        head: its name, for the title.
    """
    classes = most_confused(found, MOST)
    counts = found.matrix(classes)
    names = [_short(found.labels[index]) for index in classes]
    side = 2.2 + 0.34 * len(classes)
    figure = Figure(figsize=(max(side + 0.8, 6.5), side + 1), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(found.images[classes], 1)[:, None]
    axes.imshow(shares, cmap=COLOURS, vmin=0, vmax=1)
    _write_counts(axes, counts, shares)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, color=INK)
    axes.set_yticks(range(len(names)), names, fontsize=8, color=INK)
    axes.set_xlabel("taken for", color=FAINT, fontsize=9)
    axes.set_ylabel("class", color=FAINT, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_color(FAINT)
    figure.suptitle(title(found, head, len(classes)), color=INK, fontsize=11, fontweight="bold")
    return plots.save(figure, path)


def title(found: Confusion, head: str, drawn: int) -> str:
    """What is drawn, and the two accuracies."""
    which = "" if drawn == len(found.labels) else f"the {drawn} most confused of {len(found.labels):,} classes\n"
    return f"{head}: {which}top-1 {found.top1:.1%}, mean over classes {found.mean_accuracy:.1%}"


def most_confused(found: Confusion, most: int) -> np.ndarray:
    """int64 [<= most], ascending: the classes with the most errors, as the class of images and as what was answered."""
    errors = found.cells[found.cells[:, 0] != found.cells[:, 1]]
    classes = len(found.labels)
    total = sum(np.bincount(errors[:, side], errors[:, 2], minlength=classes) for side in (0, 1))
    return np.sort(np.argsort(-np.asarray(total), kind="stable")[:most])


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.6 else INK
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7, color=colour)


def _short(name: str) -> str:
    name = name.replace("$", r"\$")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
