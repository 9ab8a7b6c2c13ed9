"""Say what heads see in images, all in one model; `--help` lists the options."""

import sys

from learnable_memory.commands import run_command


def main(argv: list[str] | None = None) -> int:
    from learnable_memory.config import PredictOptions, parse

    options = parse(PredictOptions, "Put heads together in one model and say what each sees in images.", argv)
    from learnable_memory.commands.predict import run  # after parsing: torch takes seconds, --help must not

    return run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
