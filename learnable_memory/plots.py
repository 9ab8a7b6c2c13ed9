"""Pictures: training curves from a run's metrics, the attention mask, answers; and what all pictures have in common.

Every function writes one PNG, makes its folder if it is missing, and returns the path. Figures are made as objects,
without pyplot: nothing global changes, no display is needed, and nothing stays open.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

INK = "#27313b"
FAINT = "#6b7885"
BASE = "#6c8196"
BASE_LIGHT = "#dfe6ed"
HIDDEN = "#f4f5f7"
HEADS = ("#e08a1e", "#2c9a68", "#8559c4", "#d0436a", "#2791b5")
DPI = 160


def head_colour(head: int) -> str:
    """The colour of head 0, 1, ..; after five they come round again."""
    return HEADS[head % len(HEADS)]


def lighter(colour: str, amount: float = 0.55) -> str:
    """`colour` mixed with white; 0 leaves it, 1 gives white."""
    channels = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(channel + (255 - channel) * amount):02x}" for channel in channels)


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure, making its folder; returns where it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="white")
    return path


# ---------------------------------------------------------------------------------------------------- training curves


def training_curves(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike, head: str = "") -> Path:
    """Loss of each logged step, and accuracy on the selection and evaluation splits, side by side.

    Args:
        metrics: rows of `read_metrics`; used are `train/loss` with `step`, `select/loss` and `select/top1` with `step`
            and `epoch`, `eval/top1` and, where nothing was held out to choose on, `folds/top1`. Accuracies are in
            [0, 1]. A loss of None (not finite) leaves a gap.
        path: where the PNG goes.
        head: the head's name, for the title.

    Raises:
        ValueError: no row has a training loss.
    """
    if not any("train/loss" in row for row in metrics):
        raise ValueError("No row has 'train/loss', so there is nothing to draw: check that these are a run's metrics.")
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _draw_loss(loss_axes, metrics)
    _draw_accuracy(accuracy_axes, metrics)
    for axes in (loss_axes, accuracy_axes):
        style(axes, "step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, 1.03 * max(row.get("step", 0) for row in metrics))
    figure.suptitle(f"Head {head}" if head else "Training", color=INK, fontsize=12, fontweight="bold")
    return save(figure, path)


def _draw_loss(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    steps, losses = column(metrics, "train/loss")
    points = "." if len(steps) < 50 else None  # a line alone would not show a step between two gaps
    axes.plot(steps, losses, color=lighter(BASE, 0.5), linewidth=0.8, marker=points, label="train, each step")
    axes.plot(steps, smoothed(losses), color=BASE, linewidth=2, label="train, smoothed")
    steps, losses = column(metrics, "select/loss")
    if len(steps):
        axes.plot(steps, losses, color=HEADS[0], marker="o", markersize=4, linewidth=1.5, label="selection split")
    axes.set_title("Loss", color=INK, fontsize=10)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _draw_accuracy(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    steps, top1 = column(metrics, "select/top1")
    axes.set_title("Top-1 accuracy", color=INK, fontsize=10)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    if not np.isfinite(top1).any():
        _draw_end(axes, metrics)
        return
    loss = column(metrics, "select/loss")[1]
    # As training chooses: of equal accuracies the lower loss, and at last the earlier epoch.
    best = int(np.lexsort((loss if len(loss) == len(top1) else -top1, -top1))[0])
    axes.plot(steps, top1, color=HEADS[0], marker="o", markersize=4, linewidth=1.5, label="selection split")
    axes.plot(
        steps[best], top1[best], "o", markersize=10, color=HEADS[0], fillstyle="none", label=f"best, {top1[best]:.1%}"
    )
    _, evaluated = column(metrics, "eval/top1")
    if np.isfinite(evaluated).any():
        final = evaluated[np.isfinite(evaluated)][-1]
        axes.axhline(final, color=HEADS[1], linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(steps[best], final, "*", markersize=12, color=HEADS[1], label=f"evaluation split, {final:.1%}")
    low, high = axes.dataLim.intervaly
    axes.set_ylim(max(0.0, low - 0.05), min(1.0, high + 0.05))
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")


def _draw_end(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Accuracies that are known at the end of training only."""
    known = {"folds/top1": "training images, out of fold", "eval/top1": "evaluation split"}
    for colour, (key, name) in enumerate(known.items()):
        steps, top1 = column(metrics, key)
        if np.isfinite(top1).any():
            axes.axhline(top1[-1], color=HEADS[colour], linewidth=1, linestyle=(0, (4, 3)))
            axes.plot(steps[-1], top1[-1], "*", markersize=12, color=HEADS[colour], label=f"{name}, {top1[-1]:.1%}")
    if axes.lines:
        low, high = axes.dataLim.intervaly
        axes.set_ylim(max(0.0, low - 0.05), min(1.0, high + 0.05))
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")


def style(axes: Axes, xlabel: str) -> None:
    """What all diagrams with two axes look like."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=8)
    axes.grid(axis="y", color=BASE_LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, color=FAINT, fontsize=9)


def column(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have `key`, float64; None becomes NaN."""
    rows = [row for row in metrics if key in row]
    values = [float("nan") if row[key] is None else row[key] for row in rows]
    return np.array([row.get("step", 0) for row in rows], dtype=float), np.array(values, dtype=float)


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred running mean over about a twentieth of the values, [n] -> [n]; NaN is left out of it, and stays."""
    window = np.ones(2 * (len(values) // 40) + 1)
    finite = np.isfinite(values)
    # "same" pads with zeros; dividing by how many values were really there takes them out of the mean at both ends.
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")[: len(values)]
    count = np.convolve(finite.astype(float), window, mode="same")[: len(values)]
    return np.where(finite, total / np.maximum(count, 1), np.nan)


# ------------------------------------------------------------------------------------------------- the attention mask


class Block(NamedTuple):
    """Tokens of one kind in the order of the mask: where they start, how many, and how they are shown."""

    name: str
    start: int
    size: int
    colour: str

    @property
    def tokens(self) -> slice:
        """Their places in the mask."""
        return slice(self.start, self.start + self.size)


def mask_blocks(patches: int, memory_tokens_list: Sequence[int]) -> list[Block]:
    """The blocks INP, CLS, C1.., M1.. in the order of `build_attention_mask`; heads without memory have no M."""
    sizes = [("INP", patches, lighter(BASE, 0.35)), ("CLS", 1, BASE)]
    sizes += [(f"C{i + 1}", 1, head_colour(i)) for i in range(len(memory_tokens_list))]
    sizes += [(f"M{i + 1}", count, lighter(head_colour(i), 0.45)) for i, count in enumerate(memory_tokens_list)]
    blocks, start = [], 0
    for name, size, colour in sizes:
        blocks.append(Block(name, start, size, colour))
        start += size
    return [block for block in blocks if block.size]


def attention_mask(
    mask: Tensor,
    memory_tokens_list: Sequence[int],
    patches: int,
    path: str | os.PathLike,
    extension: bool | Sequence = False,
) -> Path:
    """What `build_attention_mask` returned, as a picture: rows ask, columns answer, a coloured cell may be looked at.

    Args:
        mask: [1, Q, K], 0 or -inf, with Q = patches + 1 + k queries and K = Q + sum(memory_tokens_list) keys.
        memory_tokens_list: memory tokens of each of the k heads.
        patches: number of patches P.
        path: where the PNG goes.
        extension: as it was given to `build_attention_mask`, for the title.

    Raises:
        ValueError: the mask's shape is not the one that the counts give.
    """
    queries = patches + 1 + len(memory_tokens_list)
    keys = queries + sum(memory_tokens_list)
    if tuple(mask.shape) != (1, queries, keys):
        raise ValueError(
            f"The mask is {list(mask.shape)}, but {patches} patches and memory tokens {list(memory_tokens_list)} give "
            f"[1, {queries}, {keys}]: pass what build_attention_mask was given."
        )
    visible = np.isfinite(np.asarray(mask[0]))  # [Q, K]
    blocks = mask_blocks(patches, memory_tokens_list)
    figure = Figure(figsize=(0.42 * keys + 4.4, 0.42 * queries + 2.0))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _draw_cells(axes, visible, blocks)
    _draw_mask_labels(axes, visible, [block for block in blocks if block.start < queries], blocks)
    kind = "Extension: a head also sees the heads it was built on" if extension else "Concatenation: heads do not meet"
    axes.text(0, -2.6, kind, color=INK, fontsize=13, fontweight="bold", va="center")
    axes.set_xlim(-2.4, keys + 8.2)
    axes.set_ylim(queries + 1.4, -3.4)
    axes.set_aspect("equal")
    return save(figure, path)


def _draw_cells(axes: Axes, visible: np.ndarray, blocks: Sequence[Block]) -> None:
    """One square for each query and key, in the key's colour if it is visible, and lines between the blocks."""
    queries, keys = visible.shape
    colours = [block.colour for block in blocks for _ in range(block.size)]
    for row in range(queries):
        for key in range(keys):
            colour = colours[key] if visible[row, key] else HIDDEN
            axes.add_patch(Rectangle((key, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.2))
    for block in blocks[1:]:
        axes.plot([block.start] * 2, [0, queries], color=INK, linewidth=0.8)
        if block.start < queries:
            axes.plot([0, keys], [block.start] * 2, color=INK, linewidth=0.8)
    axes.add_patch(Rectangle((0, 0), keys, queries, fill=False, edgecolor=INK, linewidth=1.2))


def _draw_mask_labels(
    axes: Axes, visible: np.ndarray, row_blocks: Sequence[Block], column_blocks: Sequence[Block]
) -> None:
    """Names of the blocks above and at the left; at the right, what each row sees, read off the mask itself."""
    queries, keys = visible.shape
    label: dict[str, Any] = {"color": INK, "fontsize": 10, "fontweight": "bold", "va": "center"}
    for block in column_blocks:
        axes.text(block.start + block.size / 2, -0.55, block.name, ha="center", **label)
    for block in row_blocks:
        middle = block.start + block.size / 2
        seen = [other.name for other in column_blocks if visible[block.tokens, other.tokens].all()]
        axes.text(-0.3, middle, block.name, ha="right", **label)
        axes.text(keys + 0.4, middle, f"sees {', '.join(seen)}", color=FAINT, fontsize=9, va="center")
    axes.text(keys / 2, -1.5, "keys: what is looked at", color=FAINT, fontsize=9, ha="center", va="center")
    axes.text(-2.0, queries / 2, "queries: who looks", color=FAINT, fontsize=9, ha="center", va="center", rotation=90)
    note = "INP patches   CLS base class token   C class token of a head   M its memory   pale: masked (-inf)"
    axes.text(0, queries + 0.8, note, color=FAINT, fontsize=9, va="center")


# ------------------------------------------------------------------------------------------------------------ answers


def answers(
    images: Sequence[Image.Image],
    answers: Mapping[str, Sequence[tuple[str, float]]],
    own: Sequence[str],
    path: str | os.PathLike,
    columns: int = 5,
) -> Path:
    """Images with what every head says of each in one pass.

    Args:
        images: any mode that matplotlib shows.
        answers: head -> for each image its first label and that label's probability, in [0, 1].
        own: for each image, the head whose task it belongs to; its answer is set in colour.
        path: where the PNG goes.
        columns: images in a row.
    """
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.3 * columns, (1.9 + 0.24 * len(answers)) * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    colours = {name: BASE if name == "base" else head_colour(i) for i, name in enumerate(sorted(answers))}
    for index, (axes, image, owner) in enumerate(zip(grid, images, own, strict=False)):
        axes.imshow(image, cmap="gray")
        for line, (name, of_each) in enumerate(answers.items()):
            label, probability = of_each[index]
            axes.text(
                0.5, -0.09 - 0.13 * line, f"{name}: {label} {probability:.0%}", transform=axes.transAxes, fontsize=8,
                ha="center", va="center", color=colours[name] if name == owner else FAINT,
                fontweight="bold" if name == owner else "normal",
            )  # fmt: skip
    return save(figure, path)
