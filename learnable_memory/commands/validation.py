"""`vit_validation.py`: heads put together in one model, each evaluated on its data set's `eval` split.

A network that cannot be put together with heads is evaluated in the same way, alone.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from learnable_memory import confusion
from learnable_memory.class_names import check_classes
from learnable_memory.commands.chosen_heads import ChosenHeads
from learnable_memory.commands.inputs import evaluation_loader, recorded_data
from learnable_memory.commands.model import start_logging
from learnable_memory.commands.places import place_of_data
from learnable_memory.commands.processes import launched, start_processes
from learnable_memory.commands.tuned import ChosenNetwork, choose, load_model
from learnable_memory.config import ValidationOptions
from learnable_memory.confusion import Confusion, said_of_missing
from learnable_memory.confusion_plot import confusion_matrix
from learnable_memory.contents import difference
from learnable_memory.data import CHOICES, DATA_SETS, DataSet
from learnable_memory.evaluate import Answers, Score, evaluate
from learnable_memory.projections import ranks_in_short
from learnable_memory.runlog import versions, write_json
from learnable_memory.sharing import is_main, is_shared
from learnable_memory.text_table import side_by_side

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"  # a split, or a difference


def run(options: ValidationOptions) -> int:
    """Evaluate as the options say, print the table, and write it where `options.output` says."""
    start_logging()
    options = launched(options)
    if options.output and options.output.is_dir():
        raise IsADirectoryError(f"--output {options.output} is a folder: name a file in it, such as results.json.")
    if options.classes and options.classes.is_file():
        raise NotADirectoryError(f"--classes {options.classes} is a file: name a folder.")
    accelerator = start_processes(options)
    rows = validate(options, accelerator)
    if not is_main(accelerator):
        return 0
    print(table(rows))
    if options.classes:
        print(f"classes and confusion matrices in {options.classes}")
    if options.output:
        write_json(options.output, {"base": rows[0]["base"], "heads": rows, "versions": versions()})
        print(f"written to {options.output}")
    return 0


def validate(options: ValidationOptions, accelerator: Any = None) -> list[dict]:
    """One row for each head that was asked for, in that order; see `row` for what it holds.

    Several processes share the work, and all return the whole.
    """
    chosen = choose(options.models_list, options.models_folder)
    check_memory_tokens(chosen, options.expected_memory_tokens)
    names = evaluable(chosen)
    model, preprocessing = load_model(chosen, options, accelerator.device if is_shared(accelerator) else None)

    passes = chosen.by_preprocessing(preprocessing)
    if len(passes) > 1:
        logger.info(
            "The heads need %d kinds of preprocessing, so each image set takes one pass of its kind.", len(passes)
        )
    # All data before the first pass: what is missing shows at once, not after hours.
    places = places_of_data(chosen, names, options.datasets or ())
    data_sets = [
        by_data_set([chosen.metadata(name) for name in together if name in names], places, options, accelerator)
        for together in passes.values()
    ]
    rows = {}
    for (settings, together), found in zip(passes.items(), data_sets, strict=True):
        model.set_image_size((settings.height, settings.width))
        for data, scored in found:
            loader = evaluation_loader(data.eval, settings, options, next(model.parameters()).device, accelerator)
            own = [metadata["name"] for metadata in scored]
            said: dict[str, Answers] = {}
            description = ", ".join(own) if is_main(accelerator) else None
            scores = evaluate(model, loader, own, together, description, accelerator=accelerator, answers=said)
            for name, metadata in zip(own, scored, strict=True):
                counts = Confusion(data.labels, data.eval.labels, said[name].predicted.numpy())
                rows[name] = row(metadata, data, scores[name], counts, chosen.learned(name))
                if options.classes and is_main(accelerator):
                    confusion.save(counts, options.classes / f"{name}{confusion.ENDING}", name)
                    confusion_matrix(counts, options.classes / f"{name}_confusion.png", name)
    return [rows[name] for name in names]


def evaluable(chosen: ChosenHeads | ChosenNetwork) -> list[str]:
    """The heads that were asked for and say what they were trained on; the others must be parents of these.

    So are the first heads of an extension file of 2023, which names the last one's data only.
    """
    silent = [name for name in chosen.names if "dataset" not in chosen.metadata(name)]
    for name in silent:
        if name not in chosen.extended:
            raise ValueError(f"The head {name} does not say on which data it was trained: train it again.")
        logger.info("%s does not say on which data it was trained: it is not evaluated.", name)
    return [name for name in chosen.names if name not in silent]


def check_memory_tokens(chosen: ChosenHeads | ChosenNetwork, expected: Sequence[int | None]) -> None:
    """Raise ValueError where `-t` says another number of memory tokens than a file."""
    for (path, names), count in zip(chosen.asked.items(), expected, strict=True):
        for name in names:
            has = chosen.learned(name)["memory_tokens"]
            if count is not None and count != has:
                which = path if len(names) == 1 else f"{name} in {path}"
                raise ValueError(
                    f"--number_of_memory_tokens says {count}, but {which} has {has}. "
                    "Leave the flag out: the file knows."
                )


def places_of_data(chosen: ChosenHeads | ChosenNetwork, names: Sequence[str], named: Sequence[str]) -> dict[str, str]:
    """For each of these heads the name with which its data can be read here. Raises ValueError as `place_of_data`."""
    records = {name: chosen.metadata(name)["dataset"] for name in names}
    alone = len({record["name"] for record in records.values()}) == 1
    return {name: place_of_data(record, chosen.folders, name, named, alone) for name, record in records.items()}


def by_data_set(
    files: Sequence[dict], places: Mapping[str, str], options: ValidationOptions, accelerator: Any = None
) -> list[tuple[DataSet, list[dict]]]:
    """The data sets of these heads, each with the heads that were trained on it.

    Args:
        places: head -> the name with which its data can be read here.

    Raises ValueError if a head does not say what it was trained on, or the data here have other classes.
    """
    groups: dict[str, list[dict]] = {}
    for metadata in files:
        record = {**metadata["dataset"], "name": places[metadata["name"]]}
        if "splits" not in record and record["name"] not in DATA_SETS:
            raise ValueError(
                f"The head {metadata['name']} comes from a file of the 2023 implementation, which says by its name "
                f"alone what it was trained on, and {record['name']} is no data set (legal: {', '.join(DATA_SETS)}): "
                "write it again under the right name with python -m learnable_memory heads convert --names."
            )
        asked = [record.get(what) for what in ("name", "split_seed", *CHOICES)]
        key = json.dumps([*asked, record.get("left_out") is None, metadata.get("labels")])
        groups.setdefault(key, []).append(metadata)
    found = []
    for members in groups.values():
        first, labels = members[0], members[0].get("labels")
        record = {**first["dataset"], "name": places[first["name"]]}
        data = recorded_data(record, options, labels, accelerator)
        for metadata in members:
            check_classes(labels, metadata["num_labels"], data, f"The head {metadata['name']}")
        found.append((data, members))
    return found


def split_of(metadata: dict, data: DataSet) -> str:
    """What is known of the images that a head was trained on: whether those that it is evaluated on were held out.

    "recorded": its file says which images it has seen. "published": it does not, but the evaluation images of this data
    set lie apart from those to train on. "unknown": it does not, and both come out of the same images; the 2023
    implementation drew its own split of them.
    """
    if "splits" in metadata["dataset"]:
        return "recorded"
    return UNKNOWN if data.eval.images is data.train.images else "published"


def row(metadata: dict, data: DataSet, score: Score, found: Confusion, learned: dict) -> dict:
    """What is known of a head, or a network, after its evaluation, beside what its file says.

    Args:
        found: what was said of the images of `eval`.
        learned: from `ChosenHeads.learned` or `ChosenNetwork.learned`.
    """
    record = metadata["dataset"]
    stored = (metadata.get("metrics", {}).get("eval") or {}).get("top1")  # None where training has diverged
    splits = record.get("splits", {})
    here = data.eval.record(contents="contents" in splits.get("eval", {}))
    different = difference(splits["eval"], here) if splits else None
    if different:
        logger.warning(
            "%s: the evaluation split here (%s) is not the one in the file (%s), %s: accuracies cannot be compared.",
            metadata["name"], data.source, record["source"], different,
        )  # fmt: skip
        stored = None
    return {
        "head": metadata["name"],
        "base": metadata["base"],
        # Of train and select it says what the head has seen: only eval was looked at here.
        "dataset": {**record, "splits": {**splits, "eval": here}},
        "split": split_of(metadata, data),
        **learned,
        **asdict(score),
        "mean_accuracy": found.mean_accuracy,
        "classes": len(data.labels),
        "classes_without_images": found.without_images,
        "stored_top1": stored,
        "difference": None if stored is None else score.top1 - stored,
    }


def table(rows: Sequence[dict], extra: Mapping[str, Sequence[str]] | None = None) -> str:
    """The rows as text: accuracies in percent, the difference to the file's in points; `extra` adds columns."""
    uncertain = [row["head"] for row in rows if row["split"] == UNKNOWN]
    ranked = any(row.get("low_rank") for row in rows)
    columns = {
        "head": [row["head"] for row in rows],
        "cells": [str(row["memory_tokens"]) for row in rows],
        **({"rank": [ranks_in_short(row["low_rank"]) for row in rows]} if ranked else {}),
        "images": [f"{row['images']:,}" for row in rows],
        "top-1": [f"{100 * row['top1']:.2f}" for row in rows],
        "mean of classes": [f"{100 * row['mean_accuracy']:.2f}" for row in rows],
        **({"top-5": [_percent(row["top5"]) for row in rows]} if any(row["top5"] is not None for row in rows) else {}),
        "images/s": [f"{row['images_per_second']:.0f}" for row in rows],
        "against the file": [
            UNKNOWN if row["difference"] is None else f"{round(100 * row['difference'], 2) + 0.0:+.2f}" for row in rows
        ],
        **({"method": [row["method"] for row in rows]} if "method" in rows[0] else {}),
        **({"split": [row["split"] for row in rows]} if uncertain else {}),
        **(extra or {}),
    }
    lines = [side_by_side([[title, *cells] for title, cells in columns.items()])]
    for row in rows:
        missing = said_of_missing(row["classes_without_images"], row["classes"])
        lines += [f"{row['head']}: {missing}"] if missing else []
    if not uncertain:
        return "\n".join(lines)
    lines.append(
        f"split unknown ({', '.join(uncertain)}): the 2023 implementation drew its own split of these data, so "
        "that these heads may have been trained on some of the images that they are evaluated on here"
    )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
