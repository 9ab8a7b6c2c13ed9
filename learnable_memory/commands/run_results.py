"""What a run of `vit_train.py` leaves at its end, and prints."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

from learnable_memory import confusion, grid, heads, out_of_fold, plots, tuned_files
from learnable_memory.commands.run_files import Files
from learnable_memory.config import TrainOptions, to_dict
from learnable_memory.confusion import Confusion, said_of_missing
from learnable_memory.confusion_plot import confusion_matrix
from learnable_memory.grid import Outcome
from learnable_memory.grid_plot import grid_accuracy
from learnable_memory.headlog import metrics_of
from learnable_memory.runlog import read_metrics, versions, write_json
from learnable_memory.wording import counted


def is_alone(options: TrainOptions) -> bool:
    """Whether a single head, or network, is trained, so that the log needs no names."""
    return len(grid.cells(options)) * len(options.data_seeds or (None,)) == 1 and options.folds is None


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
                found = confusion.load(files.classes(outcome.head))
                confusion.save(found, options.output / f"{outcome.head}{confusion.ENDING}", outcome.head)
    files.out_of_fold().unlink(missing_ok=True)  # of an earlier run
    if options.folds:
        predictions = out_of_fold.load(files.out_of_fold(chosen.head))
        out_of_fold.save(replace(predictions, head=options.name), files.out_of_fold())
    found = confusion.load(files.classes(chosen.head))
    classes = confusion.save(found, files.classes(), options.name)
    matrix = confusion_matrix(found, options.output / f"{options.name}_confusion.png", options.name)
    what = copy_as(options.name, files.learned(chosen.head), files.head)
    for path in files.done_with():
        path.unlink(missing_ok=True)
    score, size = chosen.eval, files.head.stat().st_size / 1000
    where = "out of fold" if options.folds else "on select"
    which = "" if len(outcomes) == 1 else f" ({chosen.cell.name}, the best of {len(outcomes)} {where})"
    print(
        f"{options.name}{which}: {accuracies(score, found)} on {counted(score['images'], 'evaluation image')}, after "
        f"epoch {chosen.epoch} ({chosen_by(chosen)})\n"
        f"{what:<8}{files.head} ({size:,.0f} kB)\ncurves  {picture}\nclasses {classes}, {matrix}\n"
        f"log     {files.folder}"
    )
    missing = said_of_missing(found.without_images, len(found.labels))
    if missing:
        print(f"        {missing}")
    if options.folds:
        print(f"folds   {files.out_of_fold()}")


def accuracies(score: Mapping[str, Any], found: Confusion) -> str:
    """In words; top-5 where it says something."""
    top5 = "" if score["top5"] is None else f", top-5 {score['top5']:.4f}"
    return f"top-1 {score['top1']:.4f} (mean over classes {found.mean_accuracy:.4f}){top5}"


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
