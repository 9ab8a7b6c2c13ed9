"""The attention picture: where each head's class token looks in an image, and how much its memory weighs, by layer."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from learnable_memory import plots
from learnable_memory.attention import PARTS, HeadAttention, check_rows
from learnable_memory.contact_sheet import visible
from learnable_memory.plots import BASE, BASE_LIGHT, FAINT, INK

if TYPE_CHECKING:
    from learnable_memory.predict import Answer, Prediction
    from learnable_memory.transforms import Preprocessing

MOST_LAYERS = 6  # that have a map; the bars show all
LABELS, CELL, GAP, SCALE = 1.75, 1.3, 0.1, 0.62  # inches: text at the left, an image, between two, the colours' scale
BAR, BARS, AXIS = 0.21, 2.4, 0.42  # inches: the bar of a layer, all of them at least, the axis left of them
ROW_GAP, HEAD, FOOT = 0.5, 0.98, 0.3  # inches: between rows, above all, below all
LETTERS, HEAD_LETTERS, LABEL_LINES = 20, 17, 2  # in a line at the left, in a head's name, lines of a class name
NARROWEST = 9.2  # inches, for title and legend side by side
HEAT, OPACITY = "inferno", 0.65
MIDDLE_GREY = "#808080"


class Row(NamedTuple):
    """One head in one image: `picture` uint8 [height, width, 3], and `colour`, the head's."""

    image: str
    head: str
    answer: Answer
    picture: np.ndarray
    attention: HeadAttention
    colour: str


class Sheet:
    """The figure and where things stand in it, in inches from its left and its upper edge.

    Args:
        rows: how many.
        layers: L, of the model.
    """

    def __init__(self, rows: int, layers: int) -> None:
        self.shown = shown_layers(layers)
        self.bars_width = max(BARS, BAR * layers)
        self.scale_left = self.map_left(len(self.shown))
        self.bars_left = self.scale_left + SCALE + AXIS
        self.width = max(NARROWEST, self.bars_left + self.bars_width + GAP)
        self.height = self.top(rows) - ROW_GAP + FOOT
        self.figure = Figure(figsize=(self.width, self.height))

    def top(self, row: int) -> float:
        """Where a row begins."""
        return HEAD + row * (CELL + ROW_GAP)

    def map_left(self, column: int) -> float:
        """Where a map begins; the image is column -1."""
        return LABELS + (column + 1) * (CELL + GAP)

    def axes(self, left: float, top: float, width: float = CELL, height: float = CELL) -> Axes:
        """New axes at a place, in inches."""
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def write(self, left: float, top: float, text: str, **how: Any) -> None:
        """Text whose upper left corner is there; `how` as of matplotlib's `text`."""
        # Without parse_math a dollar in a class name would begin a formula.
        how = {"va": "top", "parse_math": False, "color": FAINT, "fontsize": 8, **how}
        self.figure.text(left / self.width, 1 - top / self.height, text, **how)


def attention_picture(
    predictions: Sequence[Prediction], passes: Mapping[Preprocessing, Sequence[str]], names: Sequence[str],
    path: str | os.PathLike,
) -> Path:  # fmt: skip
    """Draw a row for each image and head: the image as the model sees it, maps of up to six layers, and bars of all.

    A map shows the weight of each patch; its colours mean the same in all layers of a row. A bar shows what all
    weights of a layer are spent on. Both are means over the attention heads.

    Args:
        predictions: of `predict` with `attention=True`.
        passes: as given to `predict`.
        names: the heads to draw, in this order.
        path: where the picture goes.

    Raises:
        ValueError: there is nothing to draw, or more than 200 rows.
    """
    check_rows(len(predictions), len(names))
    rows = _rows(predictions, passes, names)
    sheet = Sheet(len(rows), layers=len(rows[0].attention.maps))
    _write_headings(sheet)
    _draw_legend(sheet, rows)
    for number, row in enumerate(rows):
        top = sheet.top(number)
        _write_answer(sheet, top, row, new_image=number == 0 or rows[number - 1].image != row.image)
        _draw_view(sheet.axes(LABELS, top), row.picture)
        largest = row.attention.maps.max()
        for column, layer in enumerate(sheet.shown):
            heat = _draw_map(sheet.axes(sheet.map_left(column), top), row.picture, row.attention.maps[layer], largest)
        _draw_scale(sheet.axes(sheet.scale_left, top, width=0.1), heat, largest)
        _draw_bars(sheet.axes(sheet.bars_left, top, sheet.bars_width), row)
    return plots.save(sheet.figure, path)


def shown_layers(layers: int) -> list[int]:
    """Which layers have a map: all up to six, or else six from the first to the last, evenly spread."""
    return np.linspace(0, layers - 1, min(layers, MOST_LAYERS)).round().astype(int).tolist()


def _rows(
    predictions: Sequence[Prediction], passes: Mapping[Preprocessing, Sequence[str]], names: Sequence[str]
) -> list[Row]:
    settings = {name: preprocessing for preprocessing, members in passes.items() for name in members}
    heads = [name for name in names if name != "base"]
    colours = {"base": BASE, **{name: plots.head_colour(number) for number, name in enumerate(heads)}}
    rows = []
    for prediction in predictions:
        for name in names:
            (best, *_), look = prediction.answers[name], prediction.looks[name]
            picture = visible(look.pixel_values, settings[name])
            rows.append(Row(prediction.image, name, best, picture, look.attention, colours[name]))
    return rows


# --------------------------------------------------------------------------------------------------------------- text
def _write_headings(sheet: Sheet) -> None:
    sheet.write(GAP, 0.14, "Where each head's class token looks", color=INK, fontsize=12, fontweight="bold")
    sheet.write(GAP, 0.42, "Maps: the weight of each patch, on a square-root scale that all layers of a row share.")
    headings = [(LABELS + CELL / 2, "as the model sees it")]
    headings += [(sheet.map_left(i) + CELL / 2, f"layer {layer + 1}") for i, layer in enumerate(sheet.shown)]
    for middle, text in headings:
        sheet.write(middle, HEAD - 0.06, text, va="bottom", ha="center", fontsize=9)
    middle = sheet.bars_left + sheet.bars_width / 2
    text = "all weights of a layer\n(numbers: memory, %)"
    sheet.write(middle, HEAD - 0.22, text, va="bottom", ha="center", fontsize=9)


def _write_answer(sheet: Sheet, top: float, row: Row, new_image: bool) -> None:
    """The image's name where a new one begins, then head, label and probability."""
    if new_image:
        name = Path(row.image).name
        name = name if len(name) <= LETTERS + 4 else "…" + name[-LETTERS - 3 :]  # its end tells it from its neighbours
        sheet.write(GAP, top, name.encode(errors="replace").decode())
    head = row.head if len(row.head) <= HEAD_LETTERS else row.head[: HEAD_LETTERS - 1] + "…"
    label = textwrap.wrap(row.answer.label, LETTERS, max_lines=LABEL_LINES, placeholder=" …") or [""]
    sheet.write(GAP, top + 0.26, head, color=row.colour, fontsize=10, fontweight="bold")
    sheet.write(GAP, top + 0.5, "\n".join(label), color=INK, fontsize=9)
    sheet.write(GAP, top + 0.5 + 0.17 * len(label), f"{row.answer.probability:.1%}", color=INK, fontsize=9)


# --------------------------------------------------------------------------------------------------------------- maps
def _draw_view(axes: Axes, picture: np.ndarray) -> None:
    axes.set_axis_off()
    axes.imshow(picture)


def _draw_map(axes: Axes, picture: np.ndarray, weights: np.ndarray, largest: float) -> AxesImage:
    """The weights [rows, columns] over the picture, which is pale and grey: all colours are those of the weights."""
    axes.set_axis_off()
    axes.imshow(32 + 0.75 * picture.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
    return axes.imshow(
        weights, cmap=HEAT, norm=PowerNorm(0.5, 0, largest), alpha=OPACITY, extent=extent, interpolation="nearest"
    )


def _draw_scale(axes: Axes, heat: AxesImage, largest: float) -> None:
    axes.figure.colorbar(heat, cax=axes, ticks=[0, largest / 4, largest], format=PercentFormatter(1, decimals=1))
    axes.set_facecolor(MIDDLE_GREY)  # as under the maps, which are half transparent
    axes.tick_params(colors=FAINT, labelsize=7, length=2)
    axes.spines["outline"].set_visible(False)


# --------------------------------------------------------------------------------------------------------------- bars
def _part_colours(colour: str) -> dict[str, str]:
    """The colour of each of PARTS: memory has the head's, all that every head sees is grey."""
    colours = colour, plots.lighter(colour), FAINT, plots.lighter(BASE, 0.4), BASE_LIGHT
    return dict(zip(PARTS, colours, strict=True))


def _draw_bars(axes: Axes, row: Row) -> None:
    """A bar for each layer, stacked in the order of PARTS, and above it the share of its own memory in percent."""
    plots.style(axes, "")
    layers = np.arange(1, len(row.attention.shares) + 1)
    bottom = np.zeros(len(layers))
    for part, colour in _part_colours(row.colour).items():
        share = row.attention.share(part)
        axes.bar(layers, share, 0.82, bottom, color=colour)
        bottom += share
    if row.attention.share("memory").any():
        for layer, share in zip(layers, row.attention.share("memory"), strict=True):
            axes.text(float(layer), 1.02, f"{100 * share:.0f}", color=row.colour, fontsize=7, ha="center", va="bottom")
    axes.set_xticks(layers)
    axes.set_xlim(0.4, len(layers) + 0.6)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_legend(sheet: Sheet, rows: Sequence[Row]) -> None:
    """What the parts of a bar mean, once, as far as there are any, with the colours of all heads in this picture."""
    parts = [part for part in PARTS if any(row.attention.share(part).any() for row in rows)]
    colours = list(dict.fromkeys(row.colour for row in rows if row.head != "base")) or [BASE]
    kinds = [_part_colours(colour) for colour in colours]
    swatches = [tuple(dict.fromkeys(kind[part] for kind in kinds)) for part in parts]
    sheet.figure.legend(  # type: ignore[call-overload]  # a tuple is drawn by HandlerTuple
        [tuple(Patch(color=colour) for colour in swatch) for swatch in swatches], parts, loc="upper right",
        bbox_to_anchor=(1, 1 - 0.08 / sheet.height), ncols=len(parts), frameon=False, fontsize=8, labelcolor=INK,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)}, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
