"""Rows of text from files that people write by hand or by a spreadsheet: text, CSV, JSON lines."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from learnable_memory.formats import ending_of, image_endings
from learnable_memory.sources.found import naming

JSON_LINES = (".json", ".jsonl", ".ndjson")
DELIMITERS = "\t,;"  # the first of them that the first line has; else columns are parted by spaces


@dataclass(frozen=True)
class Rows:
    """A table of text.

    Attributes:
        path: its file.
        columns: their names; "1", "2", .. where the file has none.
        values: a value of each column for each row.
        lines: where in the file each row stands, from 1.
    """

    path: Path
    columns: list[str]
    values: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """The values of a column."""
        place = self.columns.index(name)
        return [row[place] for row in self.values]

    def described(self) -> str:
        """The columns with their first values, for an error: `1 (a/1.jpg), 2 (0)`."""
        return ", ".join(f"{name} ({value[:40]})" for name, value in zip(self.columns, self.values[0], strict=True))


def read_rows(path: Path) -> Rows:
    """The rows of a file: JSON lines by its ending, else columns parted by tabs, commas, semicolons or spaces.

    The first line of a text holds the names of the columns unless there is an image file among its values.

    Raises:
        ValueError: it cannot be read, has no rows, or a row with other columns than the first; names file and line.
    """
    with naming(path), path.open(encoding="utf-8-sig", newline="") as file:  # a spreadsheet's mark at the start is none
        read = _json_lines if ending_of(path.name) in JSON_LINES else _text_lines
        found = list(read(file.read().splitlines()))
        if not found:
            raise ValueError("it has no rows")
        first = found[0][1]
        for line, row in found:
            if len(row) != len(first):
                raise ValueError(
                    f"line {line} has {len(row)} columns, and the first has {len(first)}; file names with spaces need "
                    "columns that are parted by commas or tabs"
                )
        if read is _json_lines or not any(ending_of(value) in image_endings() for value in first):
            names, *found = found
            if not found:
                raise ValueError("it has no rows below the names of its columns")
        else:
            names = 0, [str(place) for place in range(1, len(first) + 1)]
    lines, values = zip(*found, strict=True)
    return Rows(path, names[1], list(values), list(lines))


def _text_lines(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in DELIMITERS if mark in first), None)
    if delimiter is None:
        yield from ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
        return
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    yield from ((rows.line_num, [value.strip() for value in row]) for row in rows if any(row))


def _json_lines(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The keys of the first object, then a row for each."""
    keys: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError:
            item = None
        if not isinstance(item, dict):
            raise ValueError(f"line {number} is no JSON object; a file of JSON lines has one in each line")
        if not keys:
            keys = list(item)
            yield 0, keys
        wrong = [key for key in keys if not isinstance(item.get(key), (str, int, float)) or isinstance(item[key], bool)]
        if wrong:
            raise ValueError(f"line {number} has no text or number as its {wrong[0]}")
        yield number, [str(item[key]) for key in keys]
