"""A diagram of the two streams: the frozen base, and the class tokens of the heads."""

import os
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from learnable_memory.plots import BASE, BASE_LIGHT, FAINT, HEADS, INK, head_colour, lighter, save

LAYERS = ((23, "1"), (46, "2"), (75, "L"))  # left edge of each drawn layer, in units of a tenth of an inch
LAYER_WIDTH = 17
BASE_ROW = 43  # heights of the middles of the rows
TASK_ROW = 24
MEMORY_ROW = 11.5
HEAD_LINES = (TASK_ROW + 1.7, TASK_ROW - 1.7)  # the two heads' tokens pass side by side


def two_streams(path: str | os.PathLike) -> Path:
    """The idea of the model as a diagram: a frozen base stream, and a task stream that reads its keys and values."""
    figure = Figure(figsize=(12, 5.6))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 120), ylim=(0, 56))
    axes.set_axis_off()
    _draw_bands(axes)
    _draw_inputs(axes)
    for left, layer in LAYERS:
        _draw_layer(axes, left, layer)
    _draw_outputs(axes)
    _draw_token_paths(axes)
    return save(figure, path)


def _draw_bands(axes: Axes) -> None:
    for bottom, height, colour in ((34, 21, "#f1f4f7"), (1, 31.5, "#fdf6ec")):
        _box(axes, 1, bottom, 118, height, face=colour, edge=colour)
    for height, title, text in (
        (52, "Base stream", "frozen, no gradients, computed once for all heads: bit for bit the plain ViT"),
        (
            3.8,
            "Task stream",
            "one class token per head reads the base and its own memory; only orange and green is trained",
        ),
    ):
        axes.text(3.5, height, title, color=INK, fontsize=12, fontweight="bold", va="center")
        axes.text(16.5, height, text, color=FAINT, fontsize=10.5, va="center")


def _draw_inputs(axes: Axes) -> None:
    for token in range(5):
        _square(axes, 3.5 + 2.8 * token, BASE_ROW, BASE if token == 4 else lighter(BASE, 0.35))
    axes.text(10.5, BASE_ROW - 2.6, "patches and\nbase class token", color=FAINT, fontsize=9, ha="center", va="top")
    for head, height in enumerate(HEAD_LINES):
        _square(axes, 14.7, height, head_colour(head), f"$c_{head + 1}$")
    axes.text(13.4, TASK_ROW, "class tokens\nof two heads", color=FAINT, fontsize=9, ha="right", va="center")


def _draw_layer(axes: Axes, left: float, layer: str) -> None:
    """One encoder layer: base above, the same weights below, the heads' memory of this layer under it."""
    middle = left + LAYER_WIDTH / 2
    for row, text in ((BASE_ROW, "attention, MLP"), (TASK_ROW, "same frozen weights")):
        _box(axes, left, row - 4, LAYER_WIDTH, 8, f"layer ${layer}$", text, face=BASE_LIGHT, edge=BASE)
    _arrow(axes, (middle, BASE_ROW - 4), (middle, TASK_ROW + 4.2), BASE)
    axes.text(middle + 0.9, 36.4, "keys, values", color=FAINT, fontsize=9.5, va="center")
    _arrow(axes, (middle, MEMORY_ROW + 1.6), (middle, TASK_ROW - 4.2), BASE)
    axes.text(middle + 0.9, MEMORY_ROW + 4.8, "keys, values", color=FAINT, fontsize=9.5, va="center")
    for token, head in enumerate((0, 0, 1)):
        _square(axes, middle - 4.1 + 2.8 * token, MEMORY_ROW, lighter(head_colour(head), 0.35))
    names = f"$E_1^{{{layer}}}$, $E_2^{{{layer}}}$"
    axes.text(middle, MEMORY_ROW - 3.2, f"memory {names}", color=INK, fontsize=10, ha="center", va="center")


def _draw_outputs(axes: Axes) -> None:
    _box(axes, 99, BASE_ROW - 4, 18, 8, "base classifier", "after the final norm", face=BASE_LIGHT, edge=BASE)
    for head, bottom in enumerate((TASK_ROW + 0.6, TASK_ROW - 6.6)):
        colour = head_colour(head)
        _box(axes, 99, bottom, 18, 6, f"classifier {head + 1}", face=lighter(colour, 0.7), edge=colour)


def _draw_token_paths(axes: Axes) -> None:
    """From the inputs through the layers to the classifiers: one arrow for the base's tokens, one for each head's."""
    (first, _), (second, _), (last, _) = LAYERS
    gap = second + LAYER_WIDTH + 4.5
    for height, colour in ((BASE_ROW, BASE), *zip(HEAD_LINES, HEADS, strict=False)):
        stops = [(18, first), (first + LAYER_WIDTH, second), (second + LAYER_WIDTH, gap), (gap + 3, last)]
        for start, end in stops:
            _arrow(axes, (start, height), (end - 0.2, height), colour)
        axes.text(gap + 1.5, height, "···", color=colour, fontsize=12, ha="center", va="center")
    _arrow(axes, (last + LAYER_WIDTH, BASE_ROW), (98.8, BASE_ROW), BASE)
    for height, classifier, colour in zip(HEAD_LINES, (TASK_ROW + 3.6, TASK_ROW - 3.6), HEADS, strict=False):
        _arrow(axes, (last + LAYER_WIDTH, height), (98.8, classifier), colour)


def _box(
    axes: Axes,
    left: float,
    bottom: float,
    width: float,
    height: float,
    title: str = "",
    text: str = "",
    *,
    face: str,
    edge: str,
) -> None:
    style = "round,pad=0,rounding_size=0.9"
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=style, facecolor=face, edgecolor=edge))
    x, y = left + width / 2, bottom + height / 2
    shift = 1.4 if text else 0
    axes.text(x, y + shift, title, color=INK, fontsize=11, ha="center", va="center")
    axes.text(x, y - shift, text, color=FAINT, fontsize=9, ha="center", va="center")


def _square(axes: Axes, left: float, middle: float, colour: str, text: str = "") -> None:
    axes.add_patch(Rectangle((left, middle - 1.3), 2.6, 2.6, facecolor=colour, edgecolor="white", linewidth=1))
    axes.text(left + 1.3, middle - 0.1, text, color="white", fontsize=10, ha="center", va="center")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, **style))
