"""How fast a training goes, what it waits for, and what memory it takes."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch


class Meter:
    """Measures steps as they go.

    Args:
        steps: of the whole run.
        done: of these, the ones that an earlier process made.
        device: where the model is.
    """

    def __init__(self, steps: int, done: int, device: torch.device) -> None:
        self.steps, self.done, self.device = steps, done, device
        self.start = self.last = time.perf_counter()
        self.waited = self.waited_before = 0.0
        self.images = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time within the block is spent waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def count(self, images: int) -> None:
        """So many images were trained on."""
        self.images += images

    @property
    def waited_share(self) -> float:
        """Of all time since the start, in [0, 1]."""
        return self.waited / max(time.perf_counter() - self.start, 1e-9)

    def read(self, step: int) -> dict[str, float]:
        """What the log gets after `step`: images a second and the share of waiting since the last reading, seconds
        left at the pace of the whole run (selection included), and the largest memory so far."""
        now = time.perf_counter()
        elapsed = max(now - self.last, 1e-9)
        values = {
            "train/images_per_second": self.images / elapsed,
            "train/waited_share": min(1.0, (self.waited - self.waited_before) / elapsed),
            "train/seconds_left": (now - self.start) / max(step - self.done, 1) * (self.steps - step),
            "train/peak_memory_bytes": peak_memory(self.device),
        }
        self.last, self.waited_before, self.images = now, self.waited, 0
        return values


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on, where the system allows it: on a GPU, and on a CPU under Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated by torch on a GPU, resident in this process on a CPU; the largest since the process began, or
    since `reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
