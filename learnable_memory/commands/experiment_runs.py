"""The runs of a card: which are missing, which of them share a pass, and their training.

Every method goes through the pass of `vit_train.py`: the same data, splits, schedule and evaluation. Masked heads that
differ in method, rate and nothing else are one pass.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from learnable_memory.checkpoint import Checkpoint
from learnable_memory.commands.inputs import chosen_data
from learnable_memory.commands.passes import Pass
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import TrainOptions, to_dict
from learnable_memory.data import DataSet
from learnable_memory.experiments.card import Card, Variant
from learnable_memory.experiments.choice import runs_of
from learnable_memory.experiments.findings import Finding
from learnable_memory.experiments.keys import digest
from learnable_memory.experiments.results import Results
from learnable_memory.grid import OF_A_CELL, Cell, Outcome, cells
from learnable_memory.runlog import RunLog, versions

logger = logging.getLogger(__name__)

OF_THE_DATA = (  # what `chosen_data` looks at
    "dataset", "directory", "no_download", "split", "split_seed", "image_column", "label_column", "data_seeds",
    "on_bad_image", "workers",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedRun:
    """One run that is not there yet.

    Attributes:
        options: as of `vit_train.py`, of this run alone.
    """

    variant: Variant
    options: TrainOptions

    @property
    def cell(self) -> Cell:
        """What is learned, its rate and its seed."""
        (cell,) = cells(self.options)
        return cell

    @property
    def data_seed(self) -> int:
        """Draws order, views and selection split."""
        (seed,) = self.options.data_seeds or ()
        return seed

    @property
    def name(self) -> str:
        """In its pass, and of the file of what it learns."""
        return f"{self.cell.name}-{self.key}"

    @property
    def key(self) -> str:
        """16 hexadecimal digits: what this run is, wherever it runs."""
        what = [
            self.variant.grid, dict(self.variant.labels), dict(self.variant.options), asdict(self.cell), self.data_seed,
        ]  # fmt: skip
        return digest(what)


def missing(
    card: Card, rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any], only: Sequence[str] = (),
    whole: bool = False,
) -> list[PlannedRun]:  # fmt: skip
    """The runs that can be started now. With the sweep "first" others follow when the best rate is known.

    Args:
        rows: the results so far.
        where: of this machine: directory, device and the like, as fields of TrainOptions.
        only: labels; what has none of them, in a dimension that one of them belongs to, is left out.
        whole: also those that will follow, at the first of their rates, for what they will cost.

    Raises ValueError if `only` names a label that the card does not have.
    """
    found = []
    for variant in chosen_variants(card, only):
        so_far = Finding.of(variant, runs_of(variant, rows))
        places = [place for place in so_far.expected if place not in so_far.runs] if whole else so_far.missing
        found += [PlannedRun(variant, run_options(variant, rate, seed, where)) for rate, seed in places]
    return found


def chosen_variants(card: Card, only: Sequence[str]) -> list[Variant]:
    """The variants of a card that have one of these labels in each dimension that one of them belongs to."""
    variants = card.variants()
    known = {label for variant in variants for label in variant.labels.values()}
    unknown = [label for label in only if label not in known]
    if unknown:
        raise ValueError(f"--only names {', '.join(unknown)}, but the labels are: {', '.join(sorted(known))}.")
    wanted: dict[str, set[str]] = {}
    for variant in variants:
        for dimension, label in variant.labels.items():
            if label in only:
                wanted.setdefault(dimension, set()).add(label)
    return [
        variant
        for variant in variants
        if all(variant.labels.get(dimension) in labels for dimension, labels in wanted.items())
    ]


def run_options(variant: Variant, rate: float, seed: int, where: Mapping[str, Any]) -> TrainOptions:
    """What `vit_train.py` would be told. The data seed draws initial values too, unless the card says otherwise."""
    return TrainOptions(**{"seed": seed, **variant.options, **where, "lr": rate, "data_seeds": (seed,)})


def passes(runs: Sequence[PlannedRun]) -> Iterator[list[PlannedRun]]:
    """Runs that can be trained together: heads with all options in common but those of a cell; others are alone."""
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        shared = {key: value for key, value in to_dict(run.options).items() if key not in OF_A_CELL}
        alone = run.key if not run.cell.spec.combinable else ""
        groups.setdefault(digest([run.variant.grid, shared, alone]), []).append(run)
    yield from groups.values()


def run_card(
    card: Card, results: Results, folder: Path, where: Mapping[str, Any], only: Sequence[str] = (), resume: bool = False
) -> int:
    """Run what is missing, and return how many runs that were; each is in the results once its pass has ended.

    Args:
        folder: for the state of the pass that is under way, and for what analyses of heads put together will need.
        resume: go on with a pass that was interrupted; else it starts anew.
    """
    done, keep = 0, folder / "learned" if card.together else None
    while runs := missing(card, results.rows(), where, only):
        groups = list(passes(runs))
        for number, group in enumerate(groups, start=1):
            first = group[0]
            labels = f"{first.variant.label}{f' and {len(group) - 1} more' if len(group) > 1 else ''}"
            logger.info("%s: pass %d of %d: %s, data seed %d", card.name, number, len(groups), labels, first.data_seed)
            run_pass(group, folder / "passes", resume, keep, results)
            done += len(group)
    return done


def run_pass(
    group: Sequence[PlannedRun], folder: Path, resume: bool, keep: Path | None = None, results: Results | None = None
) -> None:  # fmt: skip
    """Train and evaluate one pass.

    Args:
        folder: for its state until its results are written.
        keep: the folder for what each run has learned; None: nowhere.
        results: get a row for each of its runs; None: they are there already.
    """
    options = replace(group[0].options, resume=resume)
    base, data = TrainingBase(options), data_of(options)
    base.check(run.cell.spec for run in group)
    if base.convolutional is not None and len(group) > 1:
        for run in group:
            run_pass([run], folder, resume, keep, results)
        return
    own = folder / digest([run.key for run in group])
    if not resume:
        shutil.rmtree(own, ignore_errors=True)
    checkpoint, ending = Checkpoint(own / "checkpoint.pt", options.checkpoint_steps), own / "outcomes.json"
    by_name = {run.name: run for run in group}
    with RunLog(own, overwrite=True) as log:
        one_pass = Pass(
            base, data, options, {name: run.cell for name, run in by_name.items()}, group[0].data_seed, log,
            others=True,
        )  # fmt: skip
        outcomes = one_pass.run(checkpoint, ending, keep)
    if results is not None:
        common = of_the_pass(base, data)
        results.append(*({**result_row(by_name[each.head], each, base), **common} for each in outcomes))
    shutil.rmtree(own)


def result_row(run: PlannedRun, outcome: Outcome, base: TrainingBase) -> dict[str, Any]:
    """What the results file says of one run."""
    return {
        "kind": "run", "grid": run.variant.grid, "labels": dict(run.variant.labels), "key": run.key,
        "options": dict(run.variant.options), **outcome.row(), "combinable": base.is_head(run.cell.spec),
    }  # fmt: skip


def of_the_pass(base: TrainingBase, data: DataSet) -> dict[str, Any]:
    """What it says of all runs of a pass."""
    splits = {role: split["hash"] for role, split in data.record()["splits"].items()}
    return {
        "base": {"id": base.base_id, "fingerprint": base.fingerprint}, "splits": splits, "eval_hash": splits["eval"],
        "versions": versions(),
        "machine": {"device": device_words(base.device), "threads": torch.get_num_threads()},
    }  # fmt: skip


def device_words(device: torch.device) -> str:
    """What the device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def data_of(options: TrainOptions) -> DataSet:
    """The data set of a run, with its selection split; the next run often has the same."""
    chosen = {name: value for name, value in to_dict(options).items() if name in OF_THE_DATA}
    return _data_of(json.dumps(chosen, sort_keys=True))


@lru_cache(maxsize=1)
def _data_of(options: str) -> DataSet:
    (data,) = chosen_data(TrainOptions(**json.loads(options))).values()
    return data
