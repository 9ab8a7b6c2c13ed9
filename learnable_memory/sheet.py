"""A page of pictures and words, each placed in inches: what contact sheets are drawn on."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from learnable_memory import plots
from learnable_memory.plots import FAINT, INK

TITLE_LETTERS = 80  # of a name in a title


class Sheet:
    """A page of this width and height in inches; places on it are inches from its lower left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._figure = Figure(figsize=(width, height))

    def write(self, left: float, bottom: float, text: str, **how: Any) -> None:
        """A line or several, with matplotlib's `how`; faint, and centred on `bottom`, unless told."""
        # Without parse_math a dollar in a name would begin a formula.
        how = {"va": "center", "parse_math": False, "color": FAINT, **how}
        self._figure.text(left / self.width, bottom / self.height, text, **how)

    def head(self, left: float, title: str, lines: list[str]) -> None:
        """A title at the top, and lines that explain the page."""
        self.write(left, self.height - 0.22, title, color=INK, fontsize=12, fontweight="bold")
        for line, text in enumerate(lines):
            self.write(left, self.height - 0.46 - 0.17 * line, text, fontsize=8)

    def show(self, left: float, bottom: float, side: float, picture: np.ndarray) -> None:
        """A picture, uint8 [H, W, 3], as large as it can be in a square."""
        axes = self._figure.add_axes((left / self.width, bottom / self.height, side / self.width, side / self.height))
        axes.set_axis_off()
        axes.imshow(picture)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page as a PNG, making its folder; returns where it is."""
        return plots.save(self._figure, path)


def thumbnail(image: Image.Image, longest: int) -> np.ndarray:
    """An RGB image as uint8 [H, W, 3], no side above `longest`: drawing all pixels of a photograph takes seconds."""
    scale = min(1.0, longest / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return np.asarray(image.resize(size))


def end_of(name: str, most: int = TITLE_LETTERS) -> str:
    """A name of at most `most` letters, of a longer one the end: that is what tells paths apart."""
    return name if len(name) <= most else "…" + name[1 - most :]
