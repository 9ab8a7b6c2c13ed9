"""Trainings by several processes: how they are started, what one sends the other, and what they have to leave."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from learnable_memory import heads, tuned_files

ROOT = Path(__file__).resolve().parent.parent


class Other:
    """An accelerator of two processes, of which the other one's contribution is known."""

    num_processes = 2

    def __init__(self, contribution=None):
        self.contribution, self.sent = contribution, None

    def reduce(self, mine, how):
        assert how == "sum"
        self.sent = mine.clone()
        total = mine.clone()
        if self.contribution is not None:  # of the last numbers, or of all
            total[-len(self.contribution) :] += torch.as_tensor(self.contribution)
        return total


def environment():
    """One thread, as in the tests, and nothing of a launcher that may have started them."""
    left_out = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    return {**{k: v for k, v in os.environ.items() if k not in left_out}, "OMP_NUM_THREADS": "1"}


def launch(flags, processes=2, script="vit_train.py"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not `accelerate launch --cpu`: without mpirun it starts one process, whatever --num_processes says.
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
        "--master_port", str(port), str(ROOT / script), *flags,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr  # whole: torchrun's own traceback comes last
    return done


def assert_same_head(found, expected):
    kind = tuned_files if tuned_files.is_tuned(expected) else heads
    found, expected = kind.load(found), kind.load(expected)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        assert torch.allclose(found.tensors[name], value, rtol=0, atol=1e-5), name
    ours, theirs = found.metadata["metrics"], expected.metadata["metrics"]
    assert ours["epoch"] == theirs["epoch"]
    for split, count in (("select", 6), ("eval", 12)):
        assert ours[split]["images"] == theirs[split]["images"] == count  # no image twice, none left out
        assert (ours[split]["top1"], ours[split]["top5"]) == (theirs[split]["top1"], theirs[split]["top5"])
        assert ours[split]["loss"] == pytest.approx(theirs[split]["loss"], abs=1e-5)
