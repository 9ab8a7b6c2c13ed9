"""Two processes in one: threads that each have the accelerator of one of them, and meet where processes would."""

import threading
from collections.abc import Callable
from typing import Any

import accelerate.utils
import pytest
import torch


class Rank:
    """The accelerator of one of two processes, with what this project asks of it."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, process: int, meeting: "Meeting") -> None:
        self.process_index, self.meeting = process, meeting
        self.is_main_process = process == 0

    def reduce(self, mine: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        return torch.stack(self.meeting.exchange(self.process_index, mine.clone())).sum(0)

    def wait_for_everyone(self) -> None:
        self.meeting.exchange(self.process_index, None)


class Meeting:
    """Where both hand over what they have, and each gets what both had."""

    def __init__(self) -> None:
        self.barrier, self.brought = threading.Barrier(2, timeout=60), [None, None]

    def exchange(self, process: int, mine: Any) -> list[Any]:
        self.brought[process] = mine
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()  # nobody brings the next thing before both have seen this one
        return found


def in_two_processes(run: Callable[[Rank], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `run` returns in each; what one raises is raised."""
    meeting, here = Meeting(), threading.local()

    def gather_object(mine: list) -> list:
        return [each for part in meeting.exchange(here.process, mine) for each in part]

    monkeypatch.setattr(accelerate.utils, "gather_object", gather_object)
    returned: list[Any] = [None, None]
    errors: list[Exception] = []

    def work(process: int) -> None:
        here.process = process
        try:
            returned[process] = run(Rank(process, meeting))
        except Exception as error:
            errors.append(error)
            if not isinstance(error, threading.BrokenBarrierError):
                meeting.barrier.abort()  # as a launcher ends the others

    threads = [threading.Thread(target=work, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if own:
        raise own[0]
    return returned
