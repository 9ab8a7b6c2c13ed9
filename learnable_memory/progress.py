"""Progress: tqdm's bars where somebody looks, and a line every so often where stderr goes to a file."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

FIRST = 30.0  # seconds until the first line, and between two at least
SHARE = 0.05  # of the time so far between two: the log of a night stays short


class Lines(tqdm):
    """A bar whose states are lines of their own: no carriage returns, and none at all of what is done at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()
        self.due = self.began + FIRST
        self.said: float | None = None  # the count in the last line
        super().__init__(*args, **{**kwargs, "leave": False})

    def refresh(self, *args: Any, **kwargs: Any) -> None:
        """Print a line if one is due."""
        if not self.disable and time.monotonic() >= self.due:
            self._say()

    def update(self, n: float | None = 1) -> None:
        """Count, and print a line if one is due."""
        self.n += n or 0
        self.refresh()

    def display(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: lines come when they are due."""

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: no line is taken back."""

    def close(self) -> None:
        """Print the last state, if there was a line before."""
        if self.said not in (None, self.n) and not self.disable:
            self._say()
        super().close()

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def _say(self) -> None:
        now, self.said = time.monotonic(), self.n
        self.due = now + max(FIRST, SHARE * (now - self.began))
        self.fp.write(f"{self}\n")
        self.fp.flush()


def hide_bars_of_libraries() -> None:
    """Where nobody looks: those of the HuggingFace libraries are all carriage returns."""
    if sys.stderr.isatty():
        return
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when it is imported, which takes seconds
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()


def progress_bar(iterable: Iterable | None = None, **settings: Any) -> tqdm:
    """A bar with the arguments of tqdm, on stderr."""
    return (tqdm if sys.stderr.isatty() else Lines)(iterable, **settings)
