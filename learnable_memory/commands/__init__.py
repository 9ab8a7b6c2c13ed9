"""The commands, which join the model in vit.py and the package around it; and how a command line ends.

Exit codes: 0 done, 2 wrong use (one line on stderr, no traceback), 130 interrupted by Ctrl-C, 143 by SIGTERM, 141 if
nobody reads what is printed. What is left is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TRACEBACK_VARIABLE = "LEARNABLE_MEMORY_TRACEBACK"
OWN_MODULES = ("learnable_memory", "vit")


def run_command(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None, prog: str | None = None
) -> int:
    """Run `main(argv)` and return the exit code of the process (main's own, if it returns one).

    ValueError and OSError are what the library raises for wrong use and missing files, so they become one line. A
    TypeError does not: what comes from a command line has passed a parser, and has the right type. With the environment
    variable LEARNABLE_MEMORY_TRACEBACK set, every error keeps its traceback.
    """
    try:
        return main(argv) or 0
    except KeyboardInterrupt as error:
        # checkpoint.Interrupted says where it ended, and by which signal; its module would load torch
        ended_by = getattr(error, "signal_number", None) or signal.SIGINT
        return _end(prog, str(error) or "interrupted", 128 + ended_by)
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it while it ends
        return 128 + 13  # as shells name SIGPIPE, which not every system has
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OWN_MODULES:
            raise
        usual = f"the package {error.name!r} is missing: pip install -r requirements.txt"
        return _end(prog, f"error: {usual if str(error).startswith('No module named') else error}", 2)
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        return _end(prog, f"error: {str(error) or type(error).__name__}", 2)


def _end(prog: str | None, message: str, code: int) -> int:
    # An error of a loading process arrives with that process's traceback as its text; what matters is the last line.
    if "Original Traceback" in message:
        message = "error: " + message.strip().splitlines()[-1].partition(": ")[2]
    one_line = " ".join(message.split())
    print(f"{prog or Path(sys.argv[0]).name}: {one_line}", file=sys.stderr)
    return code
