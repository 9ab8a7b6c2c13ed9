"""Tables as text. Standard library only."""

from collections.abc import Callable, Sequence


def side_by_side(columns: Sequence[Sequence[str]], flush: Callable[[str, int], str] = str.rjust) -> str:
    """Columns of text, the first one flush left, the others right unless told."""
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for first, *rest in zip(*columns, strict=True):
        cells = (flush(text, width) for text, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join((first.ljust(widths[0]), *cells)).rstrip())
    return "\n".join(lines)
