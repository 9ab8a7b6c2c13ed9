"""Run what is missing of an experiment, append it to its results, and write its report.

    python experiments/run.py here_and_now
    python experiments/run.py table2 --directory DIR --device cuda --workers 16
    python experiments/run.py table2 --output runs/try --only CIFAR-100 head full --max_steps 50

All other flags are those of `vit_train.py`, and hold for every run. Heads that differ in method, rate and optimizer
only are trained in one pass. A pass that was interrupted goes on when the same command is given again; several
processes may share the work with --only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments import results
from experiments.results import Row, Variant
from learnable_memory.commands import run_command
from learnable_memory.config import TrainOptions, build_parser, to_dict
from learnable_memory.grid import OF_A_CELL, Cell, cells

logger = logging.getLogger("learnable_memory.experiments")
ANY = "any"  # in the place of a data set that is not given


@dataclass(frozen=True)
class Run:
    """One run that is missing; `options` are as `vit_train.py` has them, of this run alone."""

    variant: Variant
    options: TrainOptions

    @property
    def cell(self) -> Cell:
        """What is learned, its rate and its seed."""
        return cells(self.options)[0]

    @property
    def data_seed(self) -> int:
        """Draws order, views and selection split."""
        return (self.options.data_seeds or (0,))[0]

    @property
    def key(self) -> str:
        """What this run is, wherever it runs."""
        variant = self.variant
        return digest([variant.grid, variant.labels, variant.options, asdict(self.cell), self.data_seed])


def digest(what: Any) -> str:
    """16 hexadecimal digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def missing(every: Iterable[Variant], rows: Iterable[Row], machine: Mapping[str, Any]) -> list[Run]:
    """The runs that can be started now. A data seed draws initial values too, unless the variant has a seed."""
    return [
        Run(
            found.variant,
            TrainOptions(**{"seed": seed, **found.variant.options, **machine, "lr": rate, "data_seeds": (seed,)}),
        )
        for found in results.find(every, rows)
        for rate, seed in found.missing
    ]


def only(every: Sequence[Variant], labels: Sequence[str]) -> list[Variant]:
    """The variants that have one of these labels in each dimension that one of them belongs to.

    Raises ValueError for a label that no variant has.
    """
    places = [set(variant.labels.items()) for variant in every]
    wanted = {(dimension, label) for dimension, label in set().union(*places) if label in labels}
    unknown = set(labels) - {label for _, label in wanted}
    if unknown:
        known = sorted({label for place in places for _, label in place})
        raise ValueError(f"--only names {', '.join(sorted(unknown))}, but the labels are: {', '.join(known)}.")
    dimensions = {dimension for dimension, _ in wanted}
    return [v for v, place in zip(every, places, strict=True) if len(place & wanted) == len(dimensions)]


def changed(every: Sequence[Variant], flags: Mapping[str, Any]) -> list[Variant]:
    """The variants with these options in the place of their own.

    Raises ValueError for several values of what is one in each run.
    """
    own = {key: value for key, value in flags.items() if key not in ("lr", "data_seeds")}
    for key, value in own.items():
        if isinstance(value, list) and len(value) > 1:
            raise ValueError(f"--{key} is {value}, but a run has one value of it: make it a dimension of GRIDS.")
    return [
        replace(
            variant,
            options={**variant.options, **own},
            rates=tuple(flags.get("lr", variant.rates)),
            data_seeds=tuple(flags.get("data_seeds", variant.data_seeds)),
        )
        for variant in every
    ]


def passes(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that can be trained together: heads with all options in common but those of a cell; others are alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        shared = {key: value for key, value in to_dict(run.options).items() if key not in OF_A_CELL}
        alone = "" if run.cell.spec.combinable else run.key
        groups.setdefault(digest([run.variant.grid, shared, alone]), []).append(run)
    return list(groups.values())


def train(group: Sequence[Run], folder: Path, keep: Path | None) -> list[Row]:
    """Train and evaluate a pass; returns the results' row of each run.

    Args:
        folder: for its state, which is of no use once the rows are written.
        keep: the folder for what each run has learned; None: nowhere.
    """
    import torch

    from learnable_memory.checkpoint import Checkpoint
    from learnable_memory.commands.inputs import chosen_data
    from learnable_memory.commands.passes import Pass
    from learnable_memory.commands.training_base import TrainingBase
    from learnable_memory.runlog import RunLog, versions

    options = replace(group[0].options, resume=True)
    base, (data,) = TrainingBase(options), chosen_data(options).values()
    base.check(run.cell.spec for run in group)
    if len(group) > 1 and not base.is_head(group[0].cell.spec):  # a convolutional network has no heads
        return [row for run in group for row in train([run], folder / run.key, keep)]
    by_name = {f"{run.cell.name}-{run.key}": run for run in group}
    learned = {name: run.cell for name, run in by_name.items()}
    with RunLog(folder, overwrite=True) as log:
        one_pass = Pass(base, data, options, learned, group[0].data_seed, log, others=True)
        checkpoint = Checkpoint(folder / "checkpoint.pt", options.checkpoint_steps)
        outcomes = one_pass.run(checkpoint, folder / "outcomes.json", keep)
    splits = {role: split["hash"] for role, split in data.record()["splits"].items()}
    device = base.device.type
    machine = torch.cuda.get_device_name(base.device) if device == "cuda" else device
    of_the_pass = {
        "base": {"id": base.base_id, "fingerprint": base.fingerprint}, "splits": splits, "eval_hash": splits["eval"],
        "versions": versions(), "machine": {"device": machine, "threads": torch.get_num_threads()},
    }  # fmt: skip
    rows: list[Row] = []
    for outcome in outcomes:
        run = by_name[outcome.head]
        of_the_run = {
            "kind": "run", "grid": run.variant.grid, "labels": run.variant.labels, "key": run.key,
            "options": run.variant.options, "combinable": base.is_head(run.cell.spec),
        }  # fmt: skip
        rows.append({**of_the_run, **outcome.row(), **of_the_pass})
    return rows


@dataclass(frozen=True)
class Arguments:
    """What a command line says: the experiment, the folder of its results, and its variants, all and those to run.

    Attributes:
        keep: the folder for what each run learns, or None.
        machine: options of `vit_train.py` that say something of the machine, and nothing of the results.
    """

    name: str
    folder: Path
    keep: Path | None
    every: list[Variant]
    chosen: list[Variant]
    machine: Mapping[str, Any]


def read_arguments(argv: Sequence[str] | None, description: str | None) -> Arguments:
    """Raises ValueError for what is not legal."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", metavar="NAME", help=f"the experiment: {', '.join(results.names())}")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="LABEL",
        help="what has none of these labels, in a dimension that one of them belongs to, is left out",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder of results, report and figures (default: the experiment's)")
    parser.add_argument("--keep_all", action="store_true", help="keep what each run has learned, in --output/learned")
    given, rest = parser.parse_known_args(argv)
    flags = vars(build_parser(TrainOptions, "", prog=parser.prog).parse_args(["--dataset", ANY, *rest]))
    if flags["dataset"] == ANY:
        del flags["dataset"]
    every, folder = results.variants(results.load(given.name)), given.output or results.FOLDER / given.name

    from learnable_memory.commands.passes import OF_THE_MACHINE

    changes = {key: value for key, value in flags.items() if key not in OF_THE_MACHINE}
    if changes and given.output is None:
        raise ValueError(
            f"{', '.join(f'--{key}' for key in changes)} would change what {given.name} is: give --output, so that "
            "these results stay apart."
        )
    every = changed(every, changes)
    machine = {key: value for key, value in flags.items() if key in OF_THE_MACHINE}
    keep = folder / "learned" if given.keep_all else None
    return Arguments(given.name, folder, keep, every, only(every, given.only), machine)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    args = read_arguments(argv, __doc__)
    from experiments import report
    from learnable_memory.commands.model import start_logging

    start_logging()
    place = args.folder / "results.jsonl"
    while runs := missing(args.chosen, results.read(place), args.machine):
        for number, group in enumerate(groups := passes(runs), start=1):
            first = f"{group[0].variant.label}, data seed {group[0].data_seed}"
            logger.info("%s: pass %d of %d: %d runs, %s", args.name, number, len(groups), len(group), first)
            state = args.folder / "runs" / digest([run.key for run in group])
            results.append(place, train(group, state, args.keep))
            shutil.rmtree(state)
    findings = results.find(args.every, results.read(place))
    print(f"results {place}\nreport  {report.write(results.load(args.name), findings, args.folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
