"""`vit_validation.py`: heads put together in one model, each evaluated on its data set's `eval` split."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from learnable_memory import heads
from learnable_memory.commands.inputs import evaluation_loader, recorded_data
from learnable_memory.commands.model import load_base, start_logging
from learnable_memory.config import ValidationOptions
from learnable_memory.data import DataSet
from learnable_memory.evaluate import evaluate
from learnable_memory.runlog import versions, write_json
from learnable_memory.transforms import Preprocessing

logger = logging.getLogger(__name__)


def run(options: ValidationOptions) -> int:
    """Evaluate as the options say, print the table, and write it where `options.output` says."""
    start_logging()
    if options.output and options.output.is_dir():
        raise IsADirectoryError(f"--output {options.output} is a folder: name a file in it, such as results.json.")
    rows = validate(options)
    print(table(rows))
    if options.output:
        write_json(options.output, {"base": rows[0]["base"], "heads": rows, "versions": versions()})
        print(f"written to {options.output}")
    return 0


def validate(options: ValidationOptions) -> list[dict]:
    """One row for each head, in the order in which they were asked for; see `row` for what it holds."""
    paths = heads.find(options.models_list, options.models_folder)
    files = {path: heads.read_metadata(path) for path in paths}
    check_memory_tokens(files, options.expected_memory_tokens)
    base = options.base_model or next(iter(files.values()))["base"]["id"]
    if base is None:
        raise ValueError(f"{paths[0]} does not say which base it was trained on: name it with --base_model.")
    options = dataclasses.replace(options, precision=options.precision or common_precision(files.values()))
    model, preprocessing = load_base(base, options, sized=False)
    for path in parents_first(files):
        model.load_head(path)

    rows = {}
    passes = by_preprocessing(files.values(), preprocessing)
    if len(passes) > 1:
        logger.info(
            "The heads need %d kinds of preprocessing, so each image set takes one pass of its kind.", len(passes)
        )
    for settings, members in passes.items():
        model.set_image_size((settings.height, settings.width))
        together = [metadata["name"] for metadata in members]
        for data, scored in by_data_set(members, options):
            loader = evaluation_loader(data.eval, settings, options, next(model.parameters()).device)
            names = [metadata["name"] for metadata in scored]
            scores = evaluate(model, loader, names, together, description=f"{', '.join(names)}")
            rows |= {metadata["name"]: row(metadata, data, asdict(scores[metadata["name"]])) for metadata in scored}
    return [rows[metadata["name"]] for metadata in files.values()]


def common_precision(files: Iterable[dict]) -> str:
    """The precision that all heads were trained in, so that accuracies repeat; float32 if they differ."""
    found = {metadata.get("training", {}).get("precision", "float32") for metadata in files}
    if len(found) > 1:
        logger.info("The heads were trained in %s: all are evaluated in float32.", " and ".join(sorted(found)))
    return found.pop() if len(found) == 1 else "float32"


def parents_first(files: Mapping[Path, dict]) -> list[Path]:
    """The files in an order in which they can be loaded: heads after those that they extend."""
    waiting, order = dict(files), []
    while waiting:
        names = {metadata["name"] for metadata in waiting.values()}
        ready = [path for path, m in waiting.items() if not names & {parent["name"] for parent in m["extends"]}]
        for path in ready or list(waiting):  # a circle cannot be loaded: load_head says why
            order.append(path)
            del waiting[path]
    return order


def check_memory_tokens(files: dict[Path, dict], expected: Sequence[int | None]) -> None:
    """Raise ValueError where `-t` says another number of memory tokens than a file."""
    for (path, metadata), count in zip(files.items(), expected, strict=True):
        if count is not None and count != metadata["memory_tokens"]:
            raise ValueError(
                f"--number_of_memory_tokens says {count}, but {path} has {metadata['memory_tokens']}. "
                "Leave the flag out: the file knows."
            )


def by_preprocessing(files, of_the_base: Preprocessing) -> dict[Preprocessing, list[dict]]:
    """Heads that can share a pass: those whose pixels are made in the same way."""
    groups: dict[Preprocessing, list[dict]] = {}
    for metadata in files:
        settings = metadata.get("preprocessing")
        groups.setdefault(Preprocessing.from_dict(settings) if settings else of_the_base, []).append(metadata)
    return groups


def by_data_set(files: Sequence[dict], options: ValidationOptions) -> list[tuple[DataSet, list[dict]]]:
    """The data sets of these heads, each with the heads that were trained on it."""
    groups: dict[tuple, list[dict]] = {}
    for metadata in files:
        if "dataset" not in metadata:
            raise ValueError(f"The head {metadata['name']} does not say on which data it was trained: train it again.")
        record = metadata["dataset"]
        asked = ("name", "split_seed", "split", "image_column", "label_column")
        key = *(record.get(what) for what in asked), record.get("left_out") is None
        groups.setdefault(key, []).append(metadata)
    return [(recorded_data(members[0]["dataset"], options), members) for members in groups.values()]


def row(metadata: dict, data: DataSet, score: dict) -> dict:
    """What is known of a head after its evaluation, beside what its file says."""
    stored = metadata.get("metrics", {}).get("eval", {}).get("top1")
    if data.eval.hash != metadata["dataset"]["splits"]["eval"]["hash"]:
        logger.warning(
            "%s: the evaluation split here (%s) is not the one in the file (%s): accuracies cannot be compared.",
            metadata["name"], data.source, metadata["dataset"]["source"],
        )  # fmt: skip
        stored = None
    return {
        "head": metadata["name"],
        "base": metadata["base"],
        # Of train and select it says what the head has seen: only eval was looked at here.
        "dataset": {**metadata["dataset"], "splits": {**metadata["dataset"]["splits"], "eval": data.eval.record()}},
        "memory_tokens": metadata["memory_tokens"],
        **score,
        "stored_top1": stored,
        "difference": None if stored is None else score["top1"] - stored,
    }


def table(rows: Sequence[dict], extra: Mapping[str, Sequence[str]] | None = None) -> str:
    """The rows as text: accuracies in percent, the difference to the file's in points; `extra` adds columns."""
    columns = {
        "head": [row["head"] for row in rows],
        "cells": [str(row["memory_tokens"]) for row in rows],
        "images": [f"{row['images']:,}" for row in rows],
        "top-1": [f"{100 * row['top1']:.2f}" for row in rows],
        "top-5": [f"{100 * row['top5']:.2f}" for row in rows],
        "images/s": [f"{row['images_per_second']:.0f}" for row in rows],
        "against the file": [
            "unknown" if row["difference"] is None else f"{round(100 * row['difference'], 2) + 0.0:+.2f}"
            for row in rows
        ],
        **(extra or {}),
    }
    widths = [max(map(len, (title, *cells))) for title, cells in columns.items()]
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)
