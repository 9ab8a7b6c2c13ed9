"""Heads of an experiment put together: what becomes of each, beside what it was alone.

A card's `together` entries say `kind`, `grid`, `heads` (labels of the grid's other dimensions), `along` (the dimension
of the data sets) and `order` (its labels). Kinds:

    concatenation   all heads in one model, each seeing itself alone
    extension       trained in this order, each seeing all before it
    unmasked        the first, the first two, .. of them in one model in which every token sees every memory
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learnable_memory import heads, tuned_files
from learnable_memory.checkpoint import Checkpoint
from learnable_memory.commands.experiment_runs import PlannedRun, data_of, run_options, run_pass
from learnable_memory.commands.inputs import evaluation_loader
from learnable_memory.commands.passes import Pass
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.evaluate import evaluate
from learnable_memory.experiments.card import Card, Together
from learnable_memory.experiments.choice import chosen_runs, runs_of
from learnable_memory.experiments.results import Results
from learnable_memory.methods import Learned, build_network
from learnable_memory.unmasked_together import UnmaskedTogether

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One of the heads.

    Attributes:
        along, label: the dimension of the data sets, and the label of its own.
        name: legal for a head.
        row: its run in the results.
    """

    along: str
    label: str
    name: str
    run: PlannedRun
    row: Mapping[str, Any]


def run_together(card: Card, results: Results, folder: Path, where: Mapping[str, Any]) -> int:
    """Do the analyses that are not in the results yet, and return how many they were.

    Those whose runs are not all there are left for later.

    Args:
        folder: that of `run_card`.
    """
    done = 0
    for analysis in card.together:
        there = {row["data_seed"] for row in results.rows() if row.get("analysis") == analysis.name}
        for data_seed in card.grid(analysis.settings["grid"]).data_seeds:
            if data_seed in there:
                continue
            members = members_of(card, analysis, results, data_seed, where)
            if members is None:
                continue
            logger.info("%s: %s, data seed %d", card.name, analysis.name, data_seed)
            for row in list(KINDS[analysis.settings["kind"]](members, folder)):  # all of it, or nothing
                results.append({"kind": "together", "analysis": analysis.name, "data_seed": data_seed, **row})
            done += 1
    return done


def check_analysis(card: Card, analysis: Together) -> None:
    """Raise ValueError, saying what is legal, if an analysis does not say what it is of."""
    settings, place = analysis.settings, f"{card.name}, together {analysis.name}"
    keys = {"kind", "grid", "heads", "along", "order"}
    if settings.keys() != keys:
        raise ValueError(f"{place} has the keys {', '.join(sorted(settings))}, but needs {', '.join(sorted(keys))}.")
    if settings["kind"] not in KINDS:
        raise ValueError(f"{place}: kind is {settings['kind']!r}, but it has to be one of {', '.join(KINDS)}.")
    grids = {grid.name: grid for grid in card.grids}
    if settings["grid"] not in grids:
        raise ValueError(f"{place}: grid is {settings['grid']!r}, but the grids are {', '.join(grids)}.")
    grid = grids[settings["grid"]]
    if {settings["along"], *settings["heads"]} != set(grid.over):
        raise ValueError(f"{place}: along and heads have to name the dimensions {', '.join(grid.over)}, each once.")
    chosen = {settings["along"]: settings["order"], **{key: [label] for key, label in settings["heads"].items()}}
    for dimension, labels in chosen.items():
        unknown = [label for label in labels if label not in grid.labels(dimension)]
        if unknown:
            raise ValueError(f"{place}: {dimension} has no {', '.join(unknown)}: {', '.join(grid.labels(dimension))}.")


def members_of(
    card: Card, analysis: Together, results: Results, data_seed: int, where: Mapping[str, Any]
) -> list[Member] | None:
    """The heads that an analysis puts together, in its order; None while one of them has not been trained."""
    settings, members = analysis.settings, []
    rows = results.rows()
    for label in settings["order"]:
        labels = {**settings["heads"], settings["along"]: label}
        variant = next(v for v in card.grid(settings["grid"]).variants() if dict(v.labels) == labels)
        runs = chosen_runs(variant, runs_of(variant, rows))
        mine = [row for row in runs if row["data_seed"] == data_seed and row["eval"]]
        if not mine:
            return None
        run = PlannedRun(variant, run_options(variant, mine[0]["lr"], data_seed, where))
        members.append(Member(settings["along"], label, f"D{len(members)}", run, mine[0]))
    return members


def learned_file(member: Member, folder: Path) -> Path:
    """The head or network of a run; trained once more where it was not kept."""
    kept = folder / "learned"
    path = kept / heads.file_name(member.run.key)
    if not path.exists():
        logger.info("%s: its tensors were not kept, so it is trained once more", member.run.variant.label)
        run_pass([member.run], folder / "passes", resume=False, keep=kept)
    return path


def concatenation(members: Sequence[Member], folder: Path) -> Iterator[dict[str, Any]]:
    """All in one model, all answering in every pass."""
    base = TrainingBase(members[0].run.options)
    names = [base.vit.load_head(learned_file(member, folder)) for member in members]
    for name, member in zip(names, members, strict=True):
        yield _row(member, _top1(base.vit, name, base, member, alongside=names))


def extension(members: Sequence[Member], folder: Path) -> Iterator[dict[str, Any]]:
    """Each but the first is trained again, at its own rate, on top of all before it."""
    base = TrainingBase(members[0].run.options)
    first = members[0]
    before = [base.vit.load_head(learned_file(first, folder))]
    yield _row(first, _top1(base.vit, before[0], base, first))
    for member in members[1:]:
        options = member.run.options
        own = folder / "passes" / f"extension-{member.run.key}"
        cells = {member.name: member.run.cell}
        one_pass = Pass(base, data_of(options), options, cells, member.run.data_seed, extends=before, others=True)
        (outcome,) = one_pass.run(Checkpoint(own / "checkpoint.pt"), own / "outcomes.json")
        yield _row(member, outcome.eval["top1"])
        before.append(member.name)


def unmasked(members: Sequence[Member], folder: Path) -> Iterator[dict[str, Any]]:
    """The first alone, with the second, and so on; each data set that is in is evaluated each time."""
    base = TrainingBase(members[0].run.options)
    networks = {}
    for member in members:
        file = tuned_files.load(learned_file(member, folder))
        network = build_network(base.vit, file.spec, file.metadata["num_labels"])
        Learned(network).load_state_dict(file.tensors)
        networks[member.name] = network
    for count in range(1, len(members) + 1):
        inside = members[:count]
        model = UnmaskedTogether(dict(itertools.islice(networks.items(), count)))
        for member in inside:
            row = _row(member, _top1(model, member.name, base, member))
            row["labels"]["together"] = " + ".join(each.label for each in inside)
            yield row


KINDS = {"concatenation": concatenation, "extension": extension, "unmasked": unmasked}


def _top1(model: Any, name: str, base: TrainingBase, member: Member, alongside: Sequence[str] = ()) -> float:
    options = member.run.options
    loader = evaluation_loader(data_of(options).eval, base.preprocessing, options, base.device)
    return evaluate(model, loader, [name], alongside)[name].top1


def _row(member: Member, top1: float) -> dict[str, Any]:
    return {"labels": {member.along: member.label}, "top1": top1, "alone_top1": member.row["eval"]["top1"]}
