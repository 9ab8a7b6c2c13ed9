"""Put heads together in one model and evaluate each on its data set; `--help` lists the options."""

import sys

from learnable_memory.commands import run_command


def main(argv: list[str] | None = None) -> int:
    from learnable_memory.config import ValidationOptions, parse

    options = parse(ValidationOptions, "Put heads together in one model and evaluate each on its data set.", argv)
    from learnable_memory.commands.validation import run  # after parsing: torch takes seconds, --help must not

    return run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
