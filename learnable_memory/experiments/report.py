"""The report of an experiment: a page of Markdown and its figures, made of the card and its results only.

The same rows give the same page byte for byte, in whatever order they were written, on whatever day and machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from learnable_memory.experiments import figures, tables, together_tables
from learnable_memory.experiments.card_types import Card, Together
from learnable_memory.experiments.choice import Row, compared_seeds, diverged
from learnable_memory.experiments.findings import Finding, Findings
from learnable_memory.files import replacing
from learnable_memory.grid import shortest


def write_report(card: Card, rows: Iterable[Row], folder: str | os.PathLike) -> list[Path]:
    """Write `report.md` and the figures into `folder`, and return their paths, the page first.

    Args:
        rows: of `results.jsonl`, in any order.

    Raises ValueError for rows that contradict each other or the card.
    """
    folder = Path(folder)
    findings = Findings(card, rows)
    drawn = {figure.name: figures.draw(figure, findings, folder / f"{figure.name}.png") for figure in card.figures}
    sections = [*_head(card), *_tables(findings), *_pictures(card, drawn), *_warnings(findings), *_missing(findings)]
    sections += _how(findings)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.md"
    with replacing(page) as unfinished:
        unfinished.write_text("\n\n".join(sections) + "\n", encoding="utf-8", newline="\n")
    return [page, *filter(None, drawn.values())]


def _head(card: Card) -> list[str]:
    return [
        f"# {card.title}",
        f"Written by `python -m learnable_memory experiments report {card.name}` from the results beside it.",
        f"**Question.** {card.question}",
        f"**Paper.** {card.paper}",
        f"**Command.**\n\n```sh\n{card.command}\n```",
        f"**Expected result.** {card.expected_result}",
        f"**Expected time.** {card.expected_time}",
    ]


def _tables(findings: Findings) -> list[str]:
    card = findings.card
    shown = [f"### {table.title}\n\n{tables.markdown(table, findings)}" for table in card.tables]
    shown += [
        f"### {analysis.title}\n\n{together_tables.markdown(analysis, findings.together)}" for analysis in card.together
    ]
    return ["## Results", *shown] if shown else []


def _pictures(card: Card, drawn: dict[str, Path | None]) -> list[str]:
    shown = []
    for figure in card.figures:
        picture = f"![{figure.title}]({figure.name}.png)" if drawn[figure.name] else f"{figure.title}: no results yet."
        shown += [picture] + [figure.note] * bool(figure.note)
    return shown


def _warnings(findings: Findings) -> list[str]:
    lines = []
    for found in findings:
        if found.best is not None and found.at_edge:
            end = "highest" if found.best == max(found.variant.rates) else "lowest"
            rates = ", ".join(map(shortest, found.variant.rates))
            lines.append(f"- {_name(found)}: {shortest(found.best)} is the {end} of {rates}.")
    warning = "**Warning:** the best learning rate is at the edge of its grid, so one beyond it may be better still."
    return ["## Rates at the edge", warning, "\n".join(lines)] if lines else []


def _missing(findings: Findings) -> list[str]:
    lines = [f"- {_name(found)}: {_missing_runs(found)}." for found in findings if found.missing]
    lines += [
        f"- analysis {analysis.name}: data seed {', '.join(map(str, seeds))}; {_needs(analysis)}."
        for analysis in findings.card.together
        if (seeds := findings.missing_of(analysis))
    ]
    return ["## Missing runs", "\n".join(lines)] if lines else []


def _missing_runs(found: Finding) -> str:
    by_seed: dict[int, list[str]] = {}
    for rate, seed in found.missing:
        by_seed.setdefault(seed, []).append(shortest(rate))
    words = [f"lr {', '.join(rates)} with data seed {seed}" for seed, rates in by_seed.items()]
    further = [str(seed) for seed in found.variant.data_seeds if seed not in compared_seeds(found.variant)]
    if found.best is None and further:
        words.append(f"then the best rate with data seed {', '.join(further)}")
    return "; ".join(words)


def _needs(analysis: Together) -> str:
    heads, order = ", ".join(analysis.settings["heads"].values()), ", ".join(analysis.settings["order"])
    return f"it needs the runs of {f'{heads} on ' if heads else ''}{order}; a diverged run cannot be put together"


def _how(findings: Findings) -> list[str]:
    """What the numbers were made with, as the rows say."""
    runs = findings.used
    if not runs:
        return ["## How this was run", "There are no results yet."]
    lost = sum(map(diverged, runs))
    seconds = math.fsum(
        ((row["train_seconds"] or 0.0) + (row["eval_seconds"] or 0.0)) / row["heads_in_pass"] for row in runs
    )
    lines = [
        f"- Runs: {len(runs)}, of which {lost} diverged" + _left_out(findings),
        f"- Data seeds: {_values(row['data_seed'] for row in runs)}",
        f"- Time of training steps and of the last evaluation: {duration(seconds)}",
        f"- Machine: device {_values(row['machine']['device'] for row in runs)}; "
        f"threads {_values(row['machine']['threads'] for row in runs)}",
        f"- Versions: {_versions(runs)}",
    ]
    return ["## How this was run", "\n".join(lines)]


def _left_out(findings: Findings) -> str:
    runs, together = findings.left_out, findings.together_left_out
    words = f"; {runs} more in the results file are of another form of this card, and left out" if runs else ""
    if together:
        words += f"; {together} results of heads put together are of runs that are no longer chosen, and left out"
    return words


def _versions(runs: Sequence[Row]) -> str:
    packages = sorted({package for row in runs for package in row["versions"]})
    return ", ".join(
        f"{package} {_values(row['versions'][package] for row in runs if package in row['versions'])}"
        for package in packages
    )


def _values(values: Iterable[object]) -> str:
    """All that there are, each once."""
    different = set(values)
    return ", ".join(map(str, sorted(different, key=lambda value: (isinstance(value, str), value))))


def duration(seconds: float) -> str:
    """In hours and minutes, or in seconds below a minute."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _name(found: Finding) -> str:
    return f"{found.variant.grid}: {found.variant.label}"
