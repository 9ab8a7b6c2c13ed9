"""`python -m learnable_memory COMMAND`: the commands beside training and validation."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from learnable_memory.commands import run_command
from learnable_memory.options import first_word

PROG = "python -m learnable_memory"
# name -> (module with `main(argv)`, what it does); a module is imported when its command runs, since most load torch.
COMMANDS = {
    "bases": ("learnable_memory.commands.bases", "show a base model: tokens, preprocessing, cost of heads on it"),
    "data": (
        "learnable_memory.commands.data",
        "show a data set: splits, classes, a contact sheet; data suspects: its labels that may be wrong",
    ),
    "demo": (
        "learnable_memory.commands.demo",
        "train two heads on the base that ships, put them together, evaluate, draw",
    ),
    "export": ("learnable_memory.commands.export", "one graph with many heads: ONNX, or torch.export"),
    "figures": ("learnable_memory.commands.figures", "draw the pictures of the README"),
    "heads": ("learnable_memory.commands.heads", "show, merge, split, convert, push and fetch head files"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (default: `sys.argv`) names and return the exit code of the process."""
    argv = list(sys.argv[1:] if argv is None else argv)
    meanings = {name: meaning for name, (_, meaning) in COMMANDS.items()}
    name = first_word("command", meanings, PROG, "The commands beside vit_train.py and vit_validation.py.", argv)
    module, _ = COMMANDS[name]
    return run_command(lambda rest: importlib.import_module(module).main(rest), argv[1:], prog=f"{PROG} {name}")


if __name__ == "__main__":
    sys.exit(main())
