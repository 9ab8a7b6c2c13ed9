"""`vit_train.py`: train on `train`, choose on `select`, report on `eval`, once.

One cell or a grid: all heads are trained in one pass over the data, other networks in a pass of their own, and all this
for each of `--data_seeds`.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from learnable_memory import grid, heads
from learnable_memory.checkpoint import Checkpoint
from learnable_memory.class_names import check_classes
from learnable_memory.commands.chosen_heads import ChosenHeads
from learnable_memory.commands.initial import InitialValues, read_initial
from learnable_memory.commands.inputs import chosen_data, part_of
from learnable_memory.commands.model import advise_bfloat16, resolve_device, start_logging
from learnable_memory.commands.parents import compare_data, compare_pixels, labels_of_parents, read_parents
from learnable_memory.commands.passes import OF_THE_MACHINE, Pass
from learnable_memory.commands.places import kept_places
from learnable_memory.commands.processes import is_first, launched, start_accelerator
from learnable_memory.commands.run_files import Files
from learnable_memory.commands.run_results import is_alone, leave
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import TrainOptions, to_dict
from learnable_memory.contents import difference
from learnable_memory.data import DataSet
from learnable_memory.grid import Cell, Outcome
from learnable_memory.runlock import run_lock
from learnable_memory.runlog import RunLog
from learnable_memory.sharing import is_main, is_shared


def run(options: TrainOptions) -> int:
    """Train as the options say; leaves the best head's file, its curves and the run folder in `options.output`."""
    start_logging()
    check_name(options.name)
    told = launched(options)
    options = replace(told, precision=told.precision or "float32")
    files = Files(options)
    # One process for all that a launcher has started: if it is refused, the launcher ends the others.
    with run_lock(files.folder) if is_first() else contextlib.nullcontext():
        if finished(files):
            if is_first():
                print(f"{options.name}: finished already, in {files.head}")
            return 0
        return run_to_its_end(options, told.precision is not None)


def run_to_its_end(options: TrainOptions, precision_told: bool) -> int:
    """`run`, once nobody else can be writing to its folder."""
    accelerator = start_accelerator(options)
    device = accelerator.device if is_shared(accelerator) else resolve_device(options.device)
    if not precision_told:
        advise_bfloat16(device)
    files = Files(options)
    parents, initial = read_parents(options, files.head), read_initial(options)
    base = TrainingBase(options, device, initial, **part_of(accelerator))
    base.check(options.method_specs)
    if base.vit is not None:
        parents.load(base.vit)
        compare_pixels(parents, base.preprocessing)
        compare_data(parents, options)
    data_sets = data_with_classes(options, accelerator, files, parents, initial)

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
            places = kept_places(next(iter(data_sets.values())).name, options.base_model)
            log.options(to_dict(options), places=places)
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


def data_with_classes(
    options: TrainOptions, accelerator: Any, files: Files, parents: ChosenHeads, initial: InitialValues | None
) -> dict[int | None, DataSet]:
    """The data, with their classes numbered as in what the run goes on with, begins with or is built on.

    Raises ValueError, with what differs, if they are other classes than there.
    """
    kept, begun_with = files.labels(), initial.metadata if initial is not None else {}
    of_parents = labels_of_parents(parents, options)
    order = next(filter(None, (kept, begun_with.get("labels"), *of_parents.values())), None)
    data_sets = chosen_data(options, accelerator, order)
    data = next(iter(data_sets.values()))  # all have the same classes
    if kept is not None:
        check_classes(kept, len(kept), data, f"The run in {files.folder}")
    if initial is not None:
        check_classes(begun_with.get("labels"), begun_with["num_labels"], data, initial.who)
        initial.announce(data, options)
    for name, labels in of_parents.items():
        same = sorted(labels) == sorted(data.labels)  # their order is that head's own affair
        check_classes(data.labels if same else labels, len(labels), data, f"{name}, which --extends builds on,")
    return data_sets


def run_passes(
    base: TrainingBase, data_sets: Mapping[int | None, DataSet], files: Files, log: RunLog | None, accelerator: Any,
    extends: Sequence[str],
) -> list[Outcome]:  # fmt: skip
    """All passes of all data seeds; what they learned lies in the run's folder then."""
    options = files.options
    outcomes: list[Outcome] = []
    for data_seed, data in data_sets.items():
        suffix = "" if data_seed is None else f"_d{data_seed}"
        # Others would move between training and evaluation.
        splits = {"labels": data.labels, **data.record()["splits"]}
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
    found = {
        role: difference(before[role], split) for role, split in splits.items() if role in before and role != "labels"
    }
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
            if set(differing) <= {"--epochs", "--max_steps"} and differing and is_finished(files):
                raise ValueError(
                    f"{options.name} is finished: its rate has come down to zero, and no step is left to be made. To "
                    f"learn on with a new schedule, give --init_from {files.head} in place of --resume, and another "
                    "--name or --overwrite."
                )
            if differing:
                raise ValueError(
                    f"--resume needs the options of the run in {files.folder}: {', '.join(differing)} differ."
                )
        return is_finished(files)
    if files.head.exists() and not options.overwrite:
        raise FileExistsError(
            f"{files.head} exists: choose another --name or --output, or replace it with --overwrite."
        )
    if files.unfinished() and not options.overwrite:
        raise FileExistsError(
            f"{files.folder} holds an interrupted run: go on with --resume, or start anew with --overwrite."
        )
    return False


def is_finished(files: Files) -> bool:
    """Whether the head is that of the last run, and not of one before that is being replaced."""
    return files.head.exists() and not files.under_way()


def log_position(files: Files) -> int | None:
    """Where the log of the run that is resumed goes on; None for a new run."""
    if not files.options.resume or not files.folder.exists():
        return None
    checkpoints = (Checkpoint(path).load() for path in files.folder.glob("checkpoint*.pt"))
    states = [state for state in checkpoints if state is not None]
    states += [json.loads(path.read_text(encoding="utf-8")) for path in files.folder.glob("outcomes*.json")]
    return max((state["log_position"] or 0 for state in states), default=0)
