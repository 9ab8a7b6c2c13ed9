"""Nothing lost: the state of a training on disk, and signals that end it after its step instead of within it."""

import contextlib
import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from learnable_memory.files import replacing

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Training was ended by a signal, after a whole step, with its state on disk."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Checkpoint:
    """One file with the state of a training, replaced as it goes on.

    Args:
        path: the file; its folder is made when it is first written.
        every: steps between two writings.

    A state is made of tensors and plain Python values, so that reading one never runs code.
    """

    def __init__(self, path: str | os.PathLike, every: int = 500) -> None:
        if every < 1:
            raise ValueError(f"every is {every}, but it has to be 1 step or more.")
        self.path, self.every = Path(path), every

    def save(self, state: dict[str, Any]) -> bool:
        """Replace the file, or leave the last good one and say so: a full disk must not end hours of training."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as unfinished:
                torch.save(state, unfinished)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            kept = "the one before stays" if self.path.exists() else "there is none yet"
            logger.warning("The checkpoint %s could not be written, %s: %s", self.path, kept, _first_line(error))
            return False
        return True

    def load(self) -> dict[str, Any] | None:
        """The state as it was written, tensors on the CPU; None if there is no file.

        Raises ValueError if it is damaged.
        """
        if not self.path.exists():
            return None
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"The checkpoint {self.path} cannot be read ({_first_line(error)}): remove it to start anew."
            ) from None

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)


class StopRequest:
    """Whether a signal asked for an end, and which."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[StopRequest]:
    """Within the block SIGTERM and Ctrl-C only leave a request; a second one ends the process as it always did.

    Signals belong to the main thread: elsewhere, as in some notebooks, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        request.signal_number = number
        for each, handler in before.items():
            signal.signal(each, handler)
        logger.warning("%s: ending after this step. A second one ends at once.", signal.Signals(number).name)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def random_state() -> dict[str, Any]:
    """Torch's global generators, which dropout draws from; all else of this project has generators of its own."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """The reverse of `random_state`; generators of GPUs that are not here are left out."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
