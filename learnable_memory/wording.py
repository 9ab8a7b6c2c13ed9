"""Text for people: lists that are not longer than somebody reads, and names that others gave. Standard library only."""

import difflib
from collections.abc import Iterable, Sequence


def some(items: Sequence[object], most: int) -> str:
    """The first of some things that have an order, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def in_one_line(error: Exception) -> str:
    """What kind of error it is, and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """How many of something there are: "1 file", "2,000 files"; `many` where its plural is no "s" more."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {many or one + 's'}"


def printable(line: str) -> str:
    """Without line breaks and control sequences, which a name in somebody's file may hold; what is no text as \\xNN."""
    text = line.encode(errors="backslashreplace").decode()
    return "".join(character if character.isprintable() else "�" for character in text)


def unknown_data_set(name: str, legal: Iterable[str], kind: str = "") -> ValueError:
    """What to raise for a name that is not legal, with the one that may have been meant.

    Args:
        kind: what stands before each name, such as "vtab:"; the list of legal names goes without.
    """
    lower_case = {known.lower(): known for known in legal}
    close = difflib.get_close_matches(name.lower(), lower_case, n=1)
    suggestion = f", did you mean {kind}{lower_case[close[0]]}?" if close else ";"
    return ValueError(f"unknown data set {kind + name!r}{suggestion} legal: {', '.join(lower_case.values())}")


def did_you_mean(name: str, legal: Iterable[str], prefix: str = "") -> str:
    """Behind a name that is not legal: the one that may have been meant, in brackets, or nothing.

    Args:
        prefix: what all of them begin with, which makes none of them like another.
    """
    close = difflib.get_close_matches(name.removeprefix(prefix), [each.removeprefix(prefix) for each in legal], n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""
