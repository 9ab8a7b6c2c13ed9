"""`python -m learnable_memory experiments list|run|report|cost CARD`: comparisons that write their own tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learnable_memory.config import Machine
from learnable_memory.options import NOT_EMPTY, Options, first_word, option, parse

if TYPE_CHECKING:
    from learnable_memory.experiments.card import Card
    from learnable_memory.experiments.results import Results

PROG = "python -m learnable_memory experiments"
ACTIONS = {
    "list": "say which cards there are, and how much of each has run",
    "run": "run what is missing of a card",
    "report": "write the tables and figures of a card from its results",
    "cost": "predict time and memory of what is missing, from a short measurement",
}


@dataclass(frozen=True, kw_only=True)
class CardOptions(Options):
    """Which card, and where its results are."""

    card: str = option(help="the name of a folder in experiments/, or a card.yaml", flags=("CARD",), legal=NOT_EMPTY)
    output: Path | None = option(
        None, "folder of results, report and figures", group="results", default_help="that of the card"
    )
    smoke: bool = option(
        False,
        "every line of the card on tiny random bases and tiny files, which are made in --output (default: "
        "runs/smoke/CARD): a test of the card, whose numbers mean nothing",
        group="results",
    )


@dataclass(frozen=True, kw_only=True)
class PartOptions(CardOptions, Machine):
    """How much of it, and on what machine."""

    only: tuple[str, ...] | None = option(
        None,
        "labels of the card: what has none of them, in a dimension that one of them belongs to, is left out; heads "
        "are put together only when all of the card runs",
        group="runs",
        legal=NOT_EMPTY,
        default_help="all",
    )


@dataclass(frozen=True, kw_only=True)
class RunCardOptions(PartOptions):
    """How it runs."""

    resume: bool = option(False, "go on within a pass that was interrupted", group="runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the first word says with the card that the second one names."""
    argv = list(argv or ())
    action = first_word("action", ACTIONS, PROG, "Experiments that write their own tables.", argv)
    if action == "list":
        return _list(argv[1:])
    kinds: dict[str, type[CardOptions]] = {"run": RunCardOptions, "report": CardOptions, "cost": PartOptions}
    options = parse(kinds[action], ACTIONS[action], argv[1:], prog=f"{PROG} {action}")
    from learnable_memory.commands.model import start_logging
    from learnable_memory.experiments.card import card_path, read_card
    from learnable_memory.experiments.results import Results

    start_logging()
    card = read_card(options.card)
    folder = options.output or (Path("runs/smoke") / card.name if options.smoke else card_path(options.card).parent)
    if options.smoke:
        from learnable_memory.experiments.smoke import smoke_card

        card = smoke_card(card, folder)
    results = Results(folder / "results.jsonl")
    if isinstance(options, RunCardOptions):
        return _run(card, results, folder, options)
    if isinstance(options, PartOptions):
        return _cost(card, results, folder, options)
    return _report(card, results, folder, options)


def _run(card: Card, results: Results, folder: Path, options: RunCardOptions) -> int:
    from learnable_memory.commands.experiment_runs import run_card
    from learnable_memory.commands.experiment_together import run_together
    from learnable_memory.experiments.findings import progress

    where = where_of(options, folder)
    only = options.only or ()
    done = run_card(card, results, folder / "runs", where, only, options.resume)
    if not only:
        done += run_together(card, results, folder / "runs", where, options.resume)
    there, planned = progress(card, results.rows())
    print(f"{card.name}: {done} done now; of {planned} runs {there} are there")
    print(f"results {results.path}")
    return _report(card, results, folder, options)


def where_of(options: PartOptions, folder: Path) -> dict:
    """What the runs are told of this machine."""
    directory = folder / "data" if options.smoke else options.directory
    return {
        "directory": directory, "no_download": options.no_download or options.smoke, "device": options.device,
        "workers": 0 if options.smoke else options.workers, "output": folder / "runs",
    }  # fmt: skip


def _report(card: Card, results: Results, folder: Path, options: CardOptions) -> int:
    from learnable_memory.experiments.report import write_report

    for path in write_report(card, results.rows(), folder):
        print(f"report  {path}")
    return 0


def _cost(card: Card, results: Results, folder: Path, options: PartOptions) -> int:
    from learnable_memory.commands.experiment_cost import predicted

    print(predicted(card, results.rows(), where_of(options, folder), options.only or ()))
    return 0


def _list(argv: Sequence[str]) -> int:
    parse(Options, ACTIONS["list"], argv, prog=f"{PROG} list")
    from learnable_memory.experiments.card import FOLDER, card_names, card_path, read_card
    from learnable_memory.experiments.findings import progress
    from learnable_memory.experiments.results import Results

    names = card_names()
    if not names:
        raise FileNotFoundError(f"there are no cards in {FOLDER}: run this in a clone of the repository.")
    for name in names:
        card = read_card(name)
        there, planned = progress(card, Results(card_path(name).parent / "results.jsonl").rows())
        print(f"{name:<16}{f'{there} of {planned} runs':<20}{card.question}")
    return 0
