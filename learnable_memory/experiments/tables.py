"""Tables of a report, as Markdown: made of results only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from learnable_memory.experiments.card_types import Table
from learnable_memory.experiments.choice import Row, diverged
from learnable_memory.experiments.findings import Finding, Findings
from learnable_memory.experiments.significance import Difference, paired_bootstrap
from learnable_memory.grid import shortest

NOTHING = "-"
DIVERGED = "diverged"
HEADINGS = {
    "top1": "top-1, %",
    "parameters": "learned numbers",
    "trained_megabytes": "learned, MB",
    "train_seconds": "training, s",
    "eval_seconds": "evaluation, s",
    "step_milliseconds": "step, ms",
    "peak_memory": "peak memory, GiB",
    "lr": "learning rate",
    "combinable": "combinable",
    "epoch": "best epoch",
}
BYTES_PER_NUMBER = 4  # float32
SHARED_SECONDS = "Of heads that were trained in one pass each counts as an equal part of the pass's seconds."
BOOTSTRAP = "in points, with the 95 % interval and two-sided p of a paired bootstrap over images."
TIMED = ("train_seconds", "eval_seconds", "step_milliseconds")
MEASURED = ("top1", *TIMED, "peak_memory", "epoch")  # may differ from data seed to data seed
KEYS = {  # what of a row a value is made of
    "parameters": ("parameters",),
    "trained_megabytes": ("parameters",),
    "train_seconds": ("train_seconds",),
    "eval_seconds": ("eval_seconds",),
    "step_milliseconds": ("train_seconds", "steps"),
    "peak_memory": ("peak_memory_bytes",),
    "epoch": ("epoch",),
}
VALUES: Mapping[str, Callable[[Finding], str]] = {
    "parameters": lambda found: f"{_mean(found, 'parameters'):,.0f}",
    "trained_megabytes": lambda found: f"{_mean(found, 'parameters') * BYTES_PER_NUMBER / 1e6:.2f}",
    "train_seconds": lambda found: f"{_seconds(found, 'train_seconds'):,.1f}",
    "eval_seconds": lambda found: f"{_seconds(found, 'eval_seconds'):,.1f}",
    "step_milliseconds": lambda found: f"{1000 * _seconds(found, 'train_seconds') / _mean(found, 'steps'):,.1f}",
    "peak_memory": lambda found: f"{_mean(found, 'peak_memory_bytes') / 2**30:.2f}",
    "lr": lambda found: shortest(found.scored[0]["lr"]),
    "combinable": lambda found: "yes" if all(row["combinable"] for row in found.scored) else "no",
    "epoch": lambda found: f"{_mean(found, 'epoch'):.1f}",
}


def markdown(table: Table, findings: Findings) -> str:
    """The table and the notes below it."""
    grid = findings.card.grid(table.view.grid)
    cells = {place: findings[variant] for place, variant in table.view.cells(grid).items()}
    rows, columns = table.view.row_labels(grid), table.view.column_labels(grid)
    shown = [(column, value) for column in columns for value in table.values]
    headings = [column if table.view.columns else HEADINGS[value] for column, value in shown]
    best = {column: _best({row: cells[row, column] for row in rows}) for column in columns}
    lines = []
    for row in rows:
        texts = [_cell(table, value, cells[row, column], row, column, row in best[column]) for column, value in shown]
        lines.append([row, *texts])
    for of, to in table.differences:
        texts = [_difference(table, cells[of, column], cells[to, column]) for column in columns]
        lines.append([f"{of} - {to}", *texts])
    return "\n\n".join(filter(None, [text_table([", ".join(table.view.rows), *headings], lines), _notes(table, cells)]))


def text_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers. A bar in a label would end its cell."""
    rows = [headings, ["---"] + ["---:"] * (len(headings) - 1), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)


def upper_first(text: str) -> str:
    """As the beginning of a sentence; `capitalize` would make GiB gib."""
    return text[:1].upper() + text[1:]


def percent(mean: float, deviation: float | None) -> str:
    """Shares in [0, 1] as percent, with two decimals."""
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def beside(published: Mapping[tuple[str, str], float], row: str, column: str) -> str:
    """The published number in brackets, with as many decimals as the most exact one of its table; "" without one."""
    if (row, column) not in published:
        return ""
    decimals = max(len(shortest(number).partition(".")[2]) for number in published.values())
    return f" ({published[row, column]:.{decimals}f})"


def _cell(table: Table, value: str, found: Finding, row: str, column: str, bold: bool) -> str:
    if found.top1 is None:
        text = DIVERGED if found.all_diverged else NOTHING
    elif value == "top1":
        text = percent(found.top1.mean, found.top1.deviation)
        text = f"**{text}**" if bold else text
    elif any(run[key] is None for run in found.scored for key in KEYS.get(value, ())):
        text = NOTHING
    else:
        text = VALUES[value](found)
    return text + beside(table.published, row, column)


def _mean(found: Finding, key: str) -> float:
    return fmean(row[key] for row in found.scored)


def _seconds(found: Finding, key: str) -> float:
    return fmean(row[key] / row["heads_in_pass"] for row in found.scored)


def _best(column: Mapping[str, Finding]) -> set[str]:
    """Row labels of the highest top-1, as it is printed, of rows that can be compared: the same images, and as many
    data seeds as any has. Empty if fewer than two can."""
    top1 = {row: found.top1 for row, found in column.items() if found.top1 is not None}
    most = max((spread.runs for spread in top1.values()), default=0)
    top1 = {row: spread for row, spread in top1.items() if spread.runs == most}
    if len(top1) < 2 or len(set().union(*(column[row].eval_hashes for row in top1))) != 1:
        return set()
    printed = {row: float(percent(spread.mean, None)) for row, spread in top1.items()}
    return {row for row, value in printed.items() if value == max(printed.values())}


def _difference(table: Table, of: Finding, to: Finding) -> str:
    """Raises ValueError if the two were evaluated on different images."""
    if not (of.scored and to.scored):
        return NOTHING
    hashes = sorted(of.eval_hashes | to.eval_hashes)
    if len(hashes) != 1:
        raise ValueError(
            f"table {table.title!r}: {of.variant.label} and {to.variant.label} were evaluated on different images "
            f"(hashes {', '.join(hashes)}), but a paired difference needs the same: run them again, or leave it out."
        )
    return signed(paired_bootstrap(of.right(), to.right()))


def signed(difference: Difference) -> str:
    """In percentage points: the difference, its interval and its p."""
    mean, low, high = (100 * value + 0.0 for value in (difference.mean, difference.low, difference.high))
    p = "p < 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}"
    return f"{mean:+.2f} [{low:.2f}, {high:.2f}], {p}"


def _notes(table: Table, cells: Mapping[tuple[str, str], Finding]) -> str:
    """What a reader has to know of the numbers, in the order in which it is met."""
    reported = {place: found for place, found in cells.items() if found.top1 is not None}
    runs = {place: top1.runs for place, found in cells.items() if (top1 := found.top1) is not None}
    several = any(count > 1 for count in runs.values())
    notes = []
    if table.values == ("top1",):
        what = "mean ± sample standard deviation over" if several else "of"
        notes += [f"Top-1 on the evaluation split, in percent, {what} {seeds}." for seeds in seeds_words(runs)]
    else:
        notes += [f"{upper_first(HEADINGS[value])}." for value in table.values if table.view.columns]
        if any(value in MEASURED for value in table.values):
            spread = ", ± sample standard deviation" * (several and "top1" in table.values)
            notes += [f"Means over {seeds}{spread}." for seeds in seeds_words(runs)]
    notes += [
        f"Diverged, and not counted: {_name(place)} in {lost} of {len(found.chosen)} runs."
        for place, found in reported.items()
        if (lost := sum(map(diverged, found.chosen)))
    ]
    if table.published:
        notes.append("In brackets: published.")
    if table.differences:
        notes.append(f"Differences {BOOTSTRAP}")
    notes += _shared(table, [row for found in reported.values() for row in found.scored])
    return " ".join(notes + [table.note] * bool(table.note))


def _shared(table: Table, rows: Sequence[Row]) -> list[str]:
    """What is measured of a pass as a whole, where heads shared one."""
    heads = sorted({row["heads_in_pass"] for row in rows if row["heads_in_pass"] > 1})
    if not heads:
        return []
    notes = [SHARED_SECONDS] * any(value in TIMED for value in table.values)
    if "peak_memory" in table.values:
        count = f"{heads[0]}" if len(heads) == 1 else f"{heads[0]} to {heads[-1]}"
        notes.append(
            f"Of heads that were trained in one pass, peak memory is that of the whole pass, of {count} heads."
        )
    return notes


def seeds_words(runs: Mapping[tuple[str, str], int]) -> list[str]:
    """How many data seeds, and which cells have fewer; nothing where there are none.

    Args:
        runs: (row label, column label) -> of how many data seeds the cell is.
    """
    if not runs:
        return []
    most = max(runs.values())
    fewer = [f"{_name(place)} over {count}" for place, count in runs.items() if count < most]
    seeds = f"{most} data seeds" if most > 1 else "one data seed"
    return [f"{seeds}; {', '.join(fewer)}" if fewer else seeds]


def _name(place: tuple[str, str]) -> str:
    return " / ".join(filter(None, place))
