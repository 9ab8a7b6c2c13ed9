"""`python -m learnable_memory demo`: that it runs through is what `make demo` shows; here, how it ends."""

import signal
from pathlib import Path

from learnable_memory.__main__ import main
from learnable_memory.checkpoint import Interrupted
from learnable_memory.commands import train

BASE = Path(__file__).resolve().parent.parent / "models" / "base-tiny"


def test_an_interrupted_demo_says_what_the_next_one_does(tmp_path, monkeypatch, capsys):
    def stopped(options):
        raise Interrupted("interrupted after step 3 of 9; go on with --resume", signal.SIGTERM)

    monkeypatch.setattr(train, "run", stopped)
    assert main(["demo", "--base_model", str(BASE), "--output", str(tmp_path)]) == 128 + signal.SIGTERM
    error = capsys.readouterr().err
    assert error.endswith("demo: interrupted; the next demo begins anew\n")  # which has no --resume
