"""Say what heads see in images, all in one model; `--help` lists the options."""

import sys
from collections.abc import Sequence

from learnable_memory.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    from learnable_memory.config import PredictOptions, parse

    options = parse(PredictOptions, "Put heads together in one model and say what each sees in images.", argv)
    from learnable_memory.commands.predict import run  # after parsing: torch takes seconds, --help must not

    return run(options)


def console() -> int:
    """The command `vit-predict`; returns its exit code."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(console())
