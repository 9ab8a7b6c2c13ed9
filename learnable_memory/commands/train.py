"""`vit_train.py`: train on `train`, choose on `select`, report on `eval`, once.

One cell or a grid: all heads are trained in one pass over the data, other networks in a pass of their own, and all this
for each of `--data_seeds`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from learnable_memory import grid, heads, out_of_fold, plots, tuned_files
from learnable_memory.checkpoint import Checkpoint
from learnable_memory.commands.inputs import chosen_data, part_of
from learnable_memory.commands.model import start_logging
from learnable_memory.commands.parents import compare_data, compare_pixels, read_parents
from learnable_memory.commands.passes import OF_THE_MACHINE, Pass
from learnable_memory.commands.processes import start_accelerator
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import TrainOptions, to_dict
from learnable_memory.contents import difference
from learnable_memory.data import DataSet
from learnable_memory.evaluate import is_main, is_shared
from learnable_memory.grid import Cell, Outcome
from learnable_memory.grid_plot import grid_accuracy
from learnable_memory.headlog import metrics_of
from learnable_memory.runlog import RunLog, read_metrics, versions, write_json


@dataclass(frozen=True)
class Files:
    """Where a run leaves what."""

    options: TrainOptions

    @property
    def head(self) -> Path:
        """The last file to be written: with it the run is finished."""
        return self.options.output / heads.file_name(self.options.name)

    @property
    def folder(self) -> Path:
        """Metrics and options, and while it runs all that `--resume` needs."""
        return self.options.output / f"{self.options.name}_run"

    def checkpoint(self, suffix: str) -> Path:
        """The state of the pass whose files end in `suffix`."""
        return self.folder / f"checkpoint{suffix}.pt"

    def outcomes(self, suffix: str) -> Path:
        """Of one finished pass, with where in the log it ended."""
        return self.folder / f"outcomes{suffix}.json"

    def out_of_fold(self, name: str | None = None) -> Path:
        """The predictions of `--folds`: of a cell until the best of all is known, and then beside the head."""
        if name is None:
            return self.options.output / f"{self.options.name}{out_of_fold.ENDING}"
        return self.folder / f"{name}{out_of_fold.ENDING}"

    @property
    def parents(self) -> Path:
        """What the heads are built on, by hash."""
        return self.folder / "parents.json"

    def learned(self, name: str) -> Path:
        """What a cell of a finished pass has learned, until the best of all is known."""
        return self.folder / heads.file_name(name)

    def splits(self, suffix: str) -> Path:
        """What a pass is trained and evaluated on, by hash."""
        return self.folder / f"splits{suffix}.json"

    def unfinished(self) -> list[Path]:
        """What an interrupted run has left to go on with."""
        return sorted([*self.folder.glob("checkpoint*.pt"), *self.folder.glob("outcomes*.json")])

    def done_with(self) -> list[Path]:
        """What is of no use once the head is written; a process that was killed while it wrote leaves half a file."""
        halves = self.folder.glob(".*.unfinished")
        learned = *self.folder.glob(f"*{heads.SUFFIX}"), *self.folder.glob(f"*{out_of_fold.ENDING}")
        return [*self.unfinished(), self.parents, *self.folder.glob("splits*.json"), *learned, *halves]

    def keep(self, path: Path, found: Any, what: str, writes: bool) -> None:
        """Write what a run begins with. Raises ValueError if it goes on and began with something else."""
        if self.options.resume and path.exists() and json.loads(path.read_text(encoding="utf-8")) != found:
            raise ValueError(f"{what} than when the run in {self.folder} began: start anew with --overwrite.")
        if writes:
            write_json(path, found)


def run(options: TrainOptions) -> int:
    """Train as the options say; leaves the best head's file, its curves and the run folder in `options.output`."""
    start_logging()
    check_name(options.name)
    files = Files(options)
    if finished(files):
        print(f"{options.name}: finished already, in {files.head}")
        return 0
    accelerator = start_accelerator(options)
    if not is_main(accelerator):
        logging.getLogger("learnable_memory").setLevel(logging.WARNING)
    device = accelerator.device if is_shared(accelerator) else None
    parents = read_parents(options, files.head)
    base = TrainingBase(options, device, **part_of(accelerator))
    base.check(options.method_specs)
    if base.vit is not None:
        parents.load(base.vit)
        compare_pixels(parents, base.preprocessing)
        compare_data(parents, options)
    data_sets = chosen_data(options, accelerator)

    mirror = accelerator.log if accelerator is not None and options.log_with else None
    if is_main(accelerator) and not options.resume:
        for path in files.unfinished():
            path.unlink()
    log = None
    if is_main(accelerator):
        log = RunLog(files.folder, overwrite=True, resume_at=log_position(files), mirror=mirror)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    try:
        if log is not None and log.position == 0:
            log.options(to_dict(options))
        files.keep(files.parents, parents.record(), "--extends gives other heads", writes=log is not None)
        outcomes = run_passes(base, data_sets, files, log, accelerator, parents.names)
    finally:
        if log is not None:
            log.close()
        if accelerator is not None and options.log_with:
            accelerator.end_training()
    if log is not None:
        leave(outcomes, files)
    return 0


def run_passes(
    base: TrainingBase, data_sets: Mapping[int | None, DataSet], files: Files, log: RunLog | None, accelerator: Any,
    extends: Sequence[str],
) -> list[Outcome]:  # fmt: skip
    """All passes of all data seeds; what they learned lies in the run's folder then."""
    options = files.options
    outcomes: list[Outcome] = []
    for data_seed, data in data_sets.items():
        suffix = "" if data_seed is None else f"_d{data_seed}"
        splits = data.record()["splits"]  # others would move between training and evaluation
        what = f"{options.dataset} has other images in its splits{what_changed(files.splits(suffix), splits)}"
        files.keep(files.splits(suffix), splits, what, writes=log is not None)
        passes = passes_of(base, options, suffix)
        for ending, cells in passes.items():
            one_pass = Pass(
                base, data, options, cells, options.seed if data_seed is None else data_seed, log, accelerator,
                extends=extends, alone=is_alone(options),
                others=len(passes) * len(data_sets) > 1,
            )  # fmt: skip
            checkpoint = Checkpoint(files.checkpoint(ending), options.checkpoint_steps)
            outcomes += one_pass.run(checkpoint, files.outcomes(ending), files.folder)
    return outcomes


def what_changed(began_with: Path, splits: Mapping[str, Any]) -> str:
    """In words, in what splits are others than when a run began; nothing if they are not, or it begins now."""
    if not began_with.exists():
        return ""
    before = json.loads(began_with.read_text(encoding="utf-8"))
    found = {role: difference(before[role], split) for role, split in splits.items() if role in before}
    return "".join(f" ({role}: {words})" for role, words in found.items() if words)


def passes_of(base: TrainingBase, options: TrainOptions, suffix: str) -> dict[str, dict[str, Cell]]:
    """The passes of one data seed: the cells of each by their names, by what its files' names end in.

    All heads are one pass; what is no head is a pass of its own.
    """
    cells = grid.cells(options)
    one_cell = len(cells) * len(options.data_seeds or (None,)) == 1
    passes: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        name = options.name if one_cell else f"{options.name}-{cell.name}{suffix}"
        ending = suffix if base.is_head(cell.spec) else f"-{cell.name}{suffix}"
        passes.setdefault(ending, {})[name] = cell
    return passes


def is_alone(options: TrainOptions) -> bool:
    """Whether a single head, or network, is trained, so that the log needs no names."""
    return len(grid.cells(options)) * len(options.data_seeds or (None,)) == 1 and options.folds is None


def check_name(name: str) -> None:
    """Raise ValueError for what cannot be a head's name, before anything is loaded."""
    try:
        heads.HeadSpec(name, num_labels=1)
    except ValueError as error:
        raise ValueError(f"{error} Give another one with --name.") from None


def finished(files: Files) -> bool:
    """Whether the run that is to be resumed is at its end already.

    Raises FileExistsError where an earlier run would be lost, ValueError if the one to be resumed had other options.
    """
    options = files.options
    if options.resume:
        record = files.folder / "options.json"
        if record.exists():
            before = json.loads(record.read_text(encoding="utf-8"))["options"]
            ours = json.loads(json.dumps(to_dict(options)))
            kept = ours.keys() & before.keys() - set(OF_THE_MACHINE)  # an earlier version had fewer
            differing = [f"--{key}" for key in ours if key in kept and before[key] != ours[key]]
            if differing:
                raise ValueError(
                    f"--resume needs the options of the run in {files.folder}: {', '.join(differing)} differ."
                )
        return files.head.exists()
    if files.head.exists() and not options.overwrite:
        raise FileExistsError(
            f"{files.head} exists: choose another --name or --output, or replace it with --overwrite."
        )
    if files.unfinished() and not options.overwrite:
        raise FileExistsError(
            f"{files.folder} holds an interrupted run: go on with --resume, or start anew with --overwrite."
        )
    return False


def log_position(files: Files) -> int | None:
    """Where the log of the run that is resumed goes on; None for a new run."""
    if not files.options.resume or not files.folder.exists():
        return None
    checkpoints = (Checkpoint(path).load() for path in files.folder.glob("checkpoint*.pt"))
    states = [state for state in checkpoints if state is not None]
    states += [json.loads(path.read_text(encoding="utf-8")) for path in files.folder.glob("outcomes*.json")]
    return max((state["log_position"] or 0 for state in states), default=0)


def leave(outcomes: Sequence[Outcome], files: Files) -> None:
    """Write the results and say where they are. The best head's file comes last: with it the run is finished."""
    options, chosen = files.options, grid.best(outcomes)
    assert chosen.select is not None and chosen.eval is not None  # both are there of what did not diverge
    metrics = read_metrics(files.folder / "metrics.jsonl")
    metrics = metrics if is_alone(options) else metrics_of(metrics, chosen.head)
    picture = plots.training_curves(metrics, options.output / f"{options.name}_curves.png", options.name)
    if len(outcomes) > 1:
        report_grid(outcomes, chosen, options)
        if options.keep_all:
            for outcome in (each for each in outcomes if not each.diverged):
                copy_as(outcome.head, files.learned(outcome.head), options.output / heads.file_name(outcome.head))
                if options.folds:
                    predictions = out_of_fold.load(files.out_of_fold(outcome.head))
                    out_of_fold.save(predictions, options.output / f"{outcome.head}{out_of_fold.ENDING}")
    files.out_of_fold().unlink(missing_ok=True)  # of an earlier run
    if options.folds:
        predictions = out_of_fold.load(files.out_of_fold(chosen.head))
        out_of_fold.save(replace(predictions, head=options.name), files.out_of_fold())
    what = copy_as(options.name, files.learned(chosen.head), files.head)
    for path in files.done_with():
        path.unlink(missing_ok=True)
    score, size = chosen.eval, files.head.stat().st_size / 1000
    where = "out of fold" if options.folds else "on select"
    which = "" if len(outcomes) == 1 else f" ({chosen.cell.name}, the best of {len(outcomes)} {where})"
    print(
        f"{options.name}{which}: top-1 {score['top1']:.4f}, top-5 {score['top5']:.4f} on {score['images']:,} "
        f"evaluation images, after epoch {chosen.epoch} ({chosen_by(chosen)})\n"
        f"{what:<8}{files.head} ({size:,.0f} kB)\ncurves  {picture}\nlog     {files.folder}"
    )
    if options.folds:
        print(f"folds   {files.out_of_fold()}")


def chosen_by(outcome: Outcome) -> str:
    """In words: its accuracy on what the best of a grid is chosen by."""
    assert outcome.select is not None
    if outcome.folds is None:
        return f"select top-1 {outcome.select['top1']:.4f}"
    spread = stdev(fold["top1"] for fold in outcome.folds)
    return f"out-of-fold top-1 {outcome.select['top1']:.4f}, sd over {len(outcome.folds)} folds {spread:.4f}"


def copy_as(name: str, source: Path, target: Path) -> str:
    """Copy what a pass has learned, under another name; returns what it is, a head or a network."""
    kind, what = (tuned_files, "network") if tuned_files.is_tuned(source) else (heads, "head")
    file = kind.load(source)
    kind.save(target, file.tensors, {**file.metadata, "name": name})
    return what


def report_grid(outcomes: Sequence[Outcome], chosen: Outcome, options: TrainOptions) -> None:
    """The results file with every cell, the figure, and the table."""
    rows = [outcome.row() for outcome in outcomes]
    results = options.output / f"{options.name}_grid.json"
    write_json(results, {"best": chosen.head, "cells": rows, "options": to_dict(options), "versions": versions()})
    picture = grid_accuracy(rows, options.output / f"{options.name}_grid.png", options.name)
    print(f"{grid.table(outcomes)}\ncells   {results}\nfigure  {picture}")
