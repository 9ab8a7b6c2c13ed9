"""Train a head, or a grid of heads, for one data set on a frozen base; `--help` lists the options."""

import sys

from learnable_memory.commands import run_command


def main(argv: list[str] | None = None) -> int:
    from learnable_memory.config import TrainOptions, parse

    options = parse(
        TrainOptions,
        "Train a head, or a grid of heads in one pass, for one data set on a frozen Vision Transformer.",
        argv,
    )
    from learnable_memory.commands.train import run  # after parsing: torch takes seconds, --help must not

    return run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
