"""Train a head, or a grid of heads, for one data set on a frozen base; `--help` lists the options."""

import sys
from collections.abc import Sequence

from learnable_memory.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    from learnable_memory.config import TrainOptions, parse

    options = parse(
        TrainOptions,
        "Train a head, or a grid of heads in one pass, for one data set on a frozen Vision Transformer.",
        argv,
    )
    from learnable_memory.commands.train import run  # after parsing: torch takes seconds, --help must not

    return run(options)


def console() -> int:
    """The command `vit-train`; returns its exit code."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(console())
