"""`vit_train.py`: train heads on `train`, choose on `select`, report on `eval`, once.

One head or a grid of them: all cells are trained in one pass over the data, one pass for each of `--data_seeds`.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from learnable_memory import grid, heads, plots
from learnable_memory.checkpoint import Checkpoint
from learnable_memory.commands.inputs import TrainingInputs, chosen_data, evaluation_loader
from learnable_memory.commands.model import load_base, start_logging
from learnable_memory.commands.parents import compare_pixels, read_parents
from learnable_memory.commands.processes import start_accelerator
from learnable_memory.config import TrainOptions, to_dict
from learnable_memory.data import DataSet
from learnable_memory.evaluate import evaluate, is_main, is_shared
from learnable_memory.grid import Cell, Outcome
from learnable_memory.grid_plot import grid_accuracy
from learnable_memory.headlog import HeadLog, metrics_of
from learnable_memory.optim import Recipe
from learnable_memory.runlog import RunLog, read_metrics, versions, write_json
from learnable_memory.train import finished_training, train
from learnable_memory.transforms import Preprocessing
from vit import MemoryCapableViT

logger = logging.getLogger(__name__)

# What a head file says elsewhere: of its own cell, and by hash.
OF_ONE_HEAD = ("regimes", "number_of_memory_tokens", "lr", "seeds", "data_seeds", "extends")
# What a head file does not keep of the options, and what a resumed run may change: it says something of a machine, and
# nothing of the head.
OF_THE_MACHINE = (
    "directory", "output", "device", "workers", "no_download", "overwrite", "keep_all", "compile", "cache_folder",
    "checkpoint_steps", "resume", "log_with",
)  # fmt: skip


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
        return self.options.output / f"{self.options.name}_run"

    def checkpoint(self, suffix: str) -> Path:
        return self.folder / f"checkpoint{suffix}.pt"

    def outcomes(self, suffix: str) -> Path:
        """Of one finished pass, with where in the log it ended."""
        return self.folder / f"outcomes{suffix}.json"

    @property
    def parents(self) -> Path:
        """What the heads are built on, by hash."""
        return self.folder / "parents.json"

    def splits(self, suffix: str) -> Path:
        """What a pass is trained and evaluated on, by hash."""
        return self.folder / f"splits{suffix}.json"

    def unfinished(self) -> list[Path]:
        return sorted([*self.folder.glob("checkpoint*.pt"), *self.folder.glob("outcomes*.json")])

    def done_with(self) -> list[Path]:
        """What is of no use once the head is written; a process that was killed while it wrote leaves half a file."""
        halves = self.folder.glob(".*.unfinished")
        return [*self.unfinished(), self.parents, *self.folder.glob("splits*.json"), *halves]

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
    model, preprocessing = load_base(options.base_model, options, device, options.image_size)
    parents.load(model)
    compare_pixels(parents, preprocessing)
    data_sets = chosen_data(options, accelerator)

    outcomes: list[Outcome] = []
    metadata: dict[str, dict] = {}
    mirror = accelerator.log if options.log_with else None
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
        for data_seed, data in data_sets.items():
            one_pass = Pass(model, data, preprocessing, options, data_seed, log, accelerator, parents.names)
            found = one_pass.run(files)
            outcomes += found
            metadata |= {each.head: head_metadata(data, preprocessing, options, each) for each in found}
    finally:
        if log is not None:
            log.close()
        if options.log_with:
            accelerator.end_training()
    if log is not None:
        leave(model, outcomes, metadata, files)
    return 0


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
    states = [Checkpoint(path).load() for path in files.folder.glob("checkpoint*.pt")]
    states += [json.loads(path.read_text(encoding="utf-8")) for path in files.folder.glob("outcomes*.json")]
    return max((state["log_position"] or 0 for state in states), default=0)


class Pass:
    """One pass of all cells over a data set: their training, and their evaluation."""

    def __init__(
        self, model: MemoryCapableViT, data: DataSet, preprocessing: Preprocessing, options: TrainOptions,
        data_seed: int | None, log: RunLog | None, accelerator: Any, extends: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.model, self.data, self.preprocessing, self.options = model, data, preprocessing, options
        self.log, self.accelerator, self.extends = log, accelerator, extends
        self.seed = options.seed if data_seed is None else data_seed
        self.suffix = "" if data_seed is None else f"_d{data_seed}"
        cells = grid.cells(options)
        self.alone = len(cells) == 1 and len(options.data_seeds or (None,)) == 1
        self.names = {
            options.name if self.alone else f"{options.name}-{cell.name}{self.suffix}": cell for cell in cells
        }

    def run(self, files: Files) -> list[Outcome]:
        """Train and evaluate; what is on disk of it already is not done again."""
        options, ending = self.options, files.outcomes(self.suffix)
        self._add_heads()
        self._announce()
        what = f"{options.dataset} has other images in its splits"
        splits = self.data.record()["splits"]  # others would move between training and evaluation
        files.keep(files.splits(self.suffix), splits, what, writes=self.log is not None)
        checkpoint = Checkpoint(files.checkpoint(self.suffix), options.checkpoint_steps)
        if options.resume and ending.exists() and finished_training(self.model, checkpoint):
            return [Outcome.from_row(row) for row in json.loads(ending.read_text(encoding="utf-8"))["outcomes"]]

        inputs = TrainingInputs(
            self.model, self.preprocessing, self.data.views, options, self.seed, len(self.names), self.accelerator
        )
        loaders = inputs.train(self.data.train), inputs.select(self.data.select)
        recipes = self._recipes()
        best = train(
            self.model, list(self.names), *loaders, recipes, self.log, self.log is not None, checkpoint=checkpoint,
            accelerator=self.accelerator, alone=self.alone,
        )  # fmt: skip

        whole = [name for name in self.names if best[name].tensors and best[name].diverged_at is None]
        device = next(self.model.parameters()).device
        loader = evaluation_loader(self.data.eval, self.preprocessing, options, device, self.accelerator)
        description = f"{options.name} eval" if self.log is not None else None
        scores = evaluate(self.model, loader, whole, description=description, accelerator=self.accelerator)
        outcomes = [self._outcome(name, cell, best[name], scores.get(name)) for name, cell in self.names.items()]
        if self.log is not None:
            rows = {name: {f"eval/{key}": value for key, value in asdict(scores[name]).items()} for name in whole}
            chosen = grid.best(outcomes)
            steps = recipes[chosen.head].steps(len(loaders[0]))
            HeadLog(self.log, list(self.names), self.alone).write(rows, steps, chosen.epoch)
            write_json(ending, {"outcomes": [outcome.row() for outcome in outcomes], "log_position": self.log.position})
        return outcomes

    def _add_heads(self) -> None:
        for name, cell in self.names.items():
            self.model.add_head(
                name, len(self.data.labels), cell.memory_tokens, self.extends, memory_norm=self.options.memory_norm,
                class_token=cell.regime != "head", generator=torch.Generator().manual_seed(cell.seed),
            )  # fmt: skip

    def _announce(self) -> None:
        numbers = sum(self._parameters(name) for name in self.names)
        what = self.options.name if len(self.names) == 1 else f"{len(self.names)} heads in one pass"
        what += f", built on {', '.join(self.extends)}," if self.extends else ""
        logger.info(
            "%s on %s: %s numbers to learn; %s images of %d classes (%s to choose on, %s to report on), from %s",
            what, self.model.base_id, f"{numbers:,}", f"{len(self.data.train):,}", len(self.data.labels),
            f"{len(self.data.select):,}", f"{len(self.data.eval):,}", self.data.source,
        )  # fmt: skip

    def _parameters(self, name: str) -> int:
        return sum(parameter.numel() for parameter in self.model.heads[name].parameters())

    def _recipes(self) -> dict[str, Recipe]:
        o = self.options
        common = Recipe(o.epochs, o.lr[0], o.momentum, o.clip, o.warmup_steps, o.max_steps)
        return {name: dataclasses.replace(common, lr=cell.lr) for name, cell in self.names.items()}

    def _outcome(self, name: str, cell: Cell, best, score) -> Outcome:
        return Outcome(
            cell, name, self.seed, self._parameters(name), best.epoch + 1 if best.score else None, best.diverged_at,
            asdict(best.score) if best.score else None, asdict(score) if score else None,
        )  # fmt: skip


def head_metadata(data: DataSet, preprocessing: Preprocessing, options: TrainOptions, outcome: Outcome) -> dict:
    """What a head's file says beyond its shapes: enough to evaluate it again without a flag."""
    kept = {key: value for key, value in to_dict(options).items() if key not in OF_THE_MACHINE + OF_ONE_HEAD}
    cell = {"regime": outcome.cell.regime, "lr": outcome.cell.lr, "seed": outcome.cell.seed}
    return {
        "labels": data.labels,
        "preprocessing": preprocessing.to_dict(),
        "dataset": data.record(),
        "metrics": {"epoch": outcome.epoch, "select": outcome.select, "eval": outcome.eval},
        "training": {**kept, **cell, "data_seed": outcome.data_seed},
        "versions": versions(),
    }


def leave(
    model: MemoryCapableViT, outcomes: Sequence[Outcome], metadata: Mapping[str, dict], files: Files
) -> None:  # fmt: skip
    """Write the results and say where they are. The best head's file comes last: with it the run is finished."""
    options, chosen = files.options, grid.best(outcomes)

    def save(outcome: Outcome, path: Path, name: str) -> None:
        model.save_head(outcome.head, path, metadata[outcome.head], save_as=name)

    metrics = read_metrics(files.folder / "metrics.jsonl")
    metrics = metrics if len(outcomes) == 1 else metrics_of(metrics, chosen.head)
    picture = plots.training_curves(metrics, options.output / f"{options.name}_curves.png", options.name)
    if len(outcomes) > 1:
        report_grid(outcomes, chosen, options)
        if options.keep_all:
            for outcome in (each for each in outcomes if each.diverged_at is None):
                save(outcome, options.output / heads.file_name(outcome.head), outcome.head)
    save(chosen, files.head, options.name)
    for path in files.done_with():
        path.unlink(missing_ok=True)
    score, size = chosen.eval, files.head.stat().st_size / 1000
    which = "" if len(outcomes) == 1 else f" ({chosen.cell.name}, the best of {len(outcomes)} on select)"
    print(
        f"{options.name}{which}: top-1 {score['top1']:.4f}, top-5 {score['top5']:.4f} on {score['images']:,} "
        f"evaluation images, after epoch {chosen.epoch} (select top-1 {chosen.select['top1']:.4f})\n"
        f"head    {files.head} ({size:.0f} kB)\ncurves  {picture}\nlog     {files.folder}"
    )


def report_grid(outcomes: Sequence[Outcome], chosen: Outcome, options: TrainOptions) -> None:
    """The results file with every cell, the figure, and the table."""
    rows = [outcome.row() for outcome in outcomes]
    results = options.output / f"{options.name}_grid.json"
    write_json(results, {"best": chosen.head, "cells": rows, "options": to_dict(options), "versions": versions()})
    picture = grid_accuracy(rows, options.output / f"{options.name}_grid.png", options.name)
    print(f"{grid.table(outcomes)}\ncells   {results}\nfigure  {picture}")
