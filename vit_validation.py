"""Put heads together in one model and evaluate each on its data set; `--help` lists the options."""

import sys
from collections.abc import Sequence

from learnable_memory.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    from learnable_memory.config import ValidationOptions, parse

    options = parse(ValidationOptions, "Put heads together in one model and evaluate each on its data set.", argv)
    from learnable_memory.commands.validation import run  # after parsing: torch takes seconds, --help must not

    return run(options)


def console() -> int:
    """The command `vit-validation`; returns its exit code."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(console())
