"""The card of a head on the HuggingFace hub: a README.md made from what the head's file says of itself.

The text is assets/model_card.md, which huggingface_hub fills in; here is what it is filled with.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnable_memory.bases import CHECKPOINTS, SHIPPED_BASE
from learnable_memory.heads import SUFFIX, expected_shapes, file_name
from learnable_memory.transforms import Preprocessing
from learnable_memory.wording import some

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

LIBRARY = "learnable-memory-vit"
TAGS = ["learnable-memory", "vision", "image-classification", "head", "vit"]
MOST_LABELS = 20
# Data set -> its name on the hub, the split there that is our `eval`, and the images in it. Copies that others made of
# the remaining data sets come and go: those are named in prose only.
ON_THE_HUB = {
    "CIFAR10": ("uoft-cs/cifar10", "test", 10_000),
    "CIFAR100": ("uoft-cs/cifar100", "test", 10_000),
    "FashionMNIST": ("zalando-datasets/fashion_mnist", "test", 10_000),
    "ImageNet": ("ILSVRC/imagenet-1k", "validation", 50_000),
    "MNIST": ("ylecun/mnist", "test", 10_000),
}
# Of the training options those that say how the head was made; paths of the machine are not among them. Heads that were
# trained earlier call their method "regime".
RECIPE = (
    "method", "regime", "optimizer", "lr", "momentum", "weight_decay", "label_smoothing", "ema", "rank_lr", "clip",
    "warmup_steps", "epochs", "max_steps", "batch_size", "views", "precision", "image_size", "seed", "data_seed",
)  # fmt: skip
TEMPLATE = Path(__file__).parent / "assets" / "model_card.md"


def model_card(
    *heads: Mapping, license: str | None = None, repo_id: str | None = None, filename: str | None = None
) -> "ModelCard":
    """The card of a head file.

    Accuracies in the YAML are in [0, 1], as the hub's metric `accuracy` has them; in the text they are percent.

    Args:
        heads: the metadata of each head in the file, those that are extended first.
        license: an identifier of the hub, such as "apache-2.0"; without one the card names none, since the file does
            not know it.
        repo_id: the repository on the hub that the usage lines name; a placeholder if left out.
        filename: of the head file in it; `{name}_model.safetensors` of the last head if left out.

    Raises:
        ValueError: the preprocessing in the metadata is damaged.
    """
    from huggingface_hub import ModelCard, ModelCardData

    filename = filename or file_name(heads[-1]["name"])
    bases = sorted(set(filter(None, (base_on_the_hub(head["base"]["id"]) for head in heads))))
    data_sets = sorted(set(filter(None, (_hub_data_set(head)[0] for head in heads))))
    results = [result for head in heads for result in _results(head)]
    data = ModelCardData(
        base_model=bases[0] if len(bases) == 1 else bases or None,
        base_model_relation="adapter" if bases else None,
        datasets=data_sets or None,
        eval_results=results or None,
        library_name=LIBRARY,
        license=license,
        metrics=["accuracy"] if results else None,
        model_name=filename.removesuffix(SUFFIX) if results else None,
        pipeline_tag="image-classification",
        tags=TAGS,
    )
    extended = {parent["name"] for head in heads for parent in head["extends"]}
    last = heads[-1]
    base_id = last["base"]["id"]
    card = ModelCard.from_template(
        data, str(TEMPLATE),
        title=some([_text(head["name"]) for head in heads if head["name"] not in extended], 4),
        numbers=sum(prod(shape) for head in heads for shape in expected_shapes(head).values()),
        bases=" and ".join(sorted({_base_in_words(head) for head in heads})),
        heads=[
            {"title": _text(head["name"]) if len(heads) > 1 else "The head", "rows": _rows(head), **_labels(head)}
            for head in heads
        ],
        last=last, filename=filename, repo_id=repo_id or "OWNER/REPOSITORY", in_quotes=json.dumps,
        base=base_id if base_on_the_hub(base_id) or base_id == SHIPPED_BASE else "FOLDER/OF/THE/BASE",
    )  # fmt: skip
    card.text += "\n"
    card.text += f"\n{_signature(str(card), filename)}\n"
    return card


def is_generated(card: str, filename: str) -> bool:
    """Whether this is, unchanged, what `model_card` wrote for a file of this name."""
    above, _, last = card.removesuffix("\n").rpartition("\n")
    return last == _signature(above, filename)


def _signature(card: str, filename: str) -> str:
    return f"<!-- made from {filename}, sha256 of this card: {hashlib.sha256(card.encode()).hexdigest()} -->"


# ---------------------------------------------------------------------------------------------------------- for the hub
def base_on_the_hub(base_id: str | None) -> str | None:
    """The base's name on the hub; None if it is unknown, or a path."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not base_id or base_id.count("/") != 1 or base_id == SHIPPED_BASE:
        return None
    if base_id.startswith(("/", ".", "~")) or Path(base_id).suffix in CHECKPOINTS or Path(base_id).exists():
        return None
    try:
        validate_repo_id(base_id)
    except HFValidationError:
        return None
    return base_id


def _hub_data_set(head: Mapping) -> tuple[str | None, str | None]:
    """The name of a head's data set on the hub, and its configuration; None where there is none."""
    name = _data(head).get("name", "")
    kind, _, argument = name.partition(":")
    if kind == "hf" and not argument.startswith(("/", ".", "~")):
        hub_name, _, configuration = argument.partition(":")
        return hub_name, configuration or None
    return (ON_THE_HUB[name][0] if name in ON_THE_HUB else None), None


def _results(head: Mapping) -> list["EvalResult"]:
    """The accuracy on `eval`, if the file has one and says on what.

    A split of the hub is named only where every image of it was seen.
    """
    from huggingface_hub import EvalResult

    score, name = _score(head, "eval"), _data_set_name(head)
    if "top1" not in score or name is None:
        return []
    hub_name, configuration = _hub_data_set(head)
    _, split, images = ON_THE_HUB.get(name, (None, None, None))
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=hub_name or name,
            dataset_name=name,
            dataset_config=configuration,
            dataset_split=split if images == score.get("images") else None,
            metric_type="accuracy",
            metric_value=score["top1"],
            metric_name=f"top-1 accuracy of {head['name']} on {_images(score)}",
        )
    ]


# ------------------------------------------------------------------------------------------------------ for its readers
def _rows(head: Mapping) -> dict[str, str]:
    """The table of a head; what is empty has no row."""
    return {
        "base": _base_in_words(head),
        "base fingerprint": _text(head["base"]["fingerprint"]),
        "layers, width": f"{head['num_layers']}, {head['hidden_size']}",
        "cells": _cells(head),
        "low-rank weights": _text(_ranks(head)),
        "extends": ", ".join(f"{_text(parent['name'])} (hash {_text(parent['hash'])})" for parent in head["extends"]),
        "classes": f"{head['num_labels']:,}",
        "pixels": _pixels(head),
        **_data_rows(head),
        _chosen_on(head): _accuracy(_score(head, "select")),
        "accuracy on eval": _accuracy(_score(head, "eval")),
        "training": _pairs(head.get("training") or {}, RECIPE),
        "versions": _pairs(head.get("versions") or {}),
    }


def _base_in_words(head: Mapping) -> str:
    base_id = head["base"]["id"]
    if base_on_the_hub(base_id):
        return f"[{_text(base_id)}](https://huggingface.co/{base_id})"
    if base_id == SHIPPED_BASE:
        return f"{SHIPPED_BASE}, which ships with the library"
    return f"{_text(Path(base_id).name)}, which is not on the hub" if base_id else "a base that the file does not name"


def _cells(head: Mapping) -> str:
    """The memory tokens, which the paper calls cells."""
    if not head["class_token"]:
        return "none: a linear probe on the base's class token"
    if not head["memory_tokens"]:
        return "none: a class token and a classifier"
    where = "through the layer's first norm" if head["memory_norm"] else "after the layer's first norm"
    return f"{head['memory_tokens']} in each layer, {where}"


def _ranks(head: Mapping) -> str:
    """Of which projections, and whose: rank 8 of query, output in each layer, for its class token alone."""
    by_rank: dict[int, list[str]] = {}
    for projection, rank in head.get("low_rank", {}).items():
        by_rank.setdefault(rank, []).append(projection)
    if not by_rank:
        return ""
    ranks = "; ".join(f"rank {rank} of {', '.join(projections)}" for rank, projections in by_rank.items())
    memory = head["memory_tokens"] and not {"key", "value"}.isdisjoint(head["low_rank"])
    whose = "its class token and, of key and value, its memory" if memory else "its class token alone"
    return f"{ranks}, in each layer, for {whose}"


def _pixels(head: Mapping) -> str:
    settings = Preprocessing.of_head(head)
    return _text(settings.words) if settings else "as the base's own processor makes them"


def _data_rows(head: Mapping) -> dict[str, str]:
    """On what it was trained, and how much of that is known."""
    data, name = _data(head), _data_set_name(head)
    if name is None:
        return {"data": "unknown"}
    rows = {"data": ", ".join(_text(part) for part in (name, data.get("source")) if part)}
    if "splits" not in data:
        return {**rows, "split": "unknown: the file does not say which images were held out"}
    seeds = [f"{what} seed {data[f'{what}_seed']}" for what in ("split", "select") if f"{what}_seed" in data]
    rows["split"] = _text(", ".join([str(data.get("split", "")), *seeds]).removeprefix(", "))
    for role, split in data["splits"].items():
        if role == "select" and data.get("folds"):
            continue  # there is none: it is train again
        rows[f"images of {_text(role)}"] = f"{split['images']:,} (hash {_text(split['hash'])})"
    broken = sum(left["images"] for left in (data.get("left_out") or {}).values())
    return {**rows, "broken images left out": f"{broken:,}" if broken else ""}


def _chosen_on(head: Mapping) -> str:
    """What the first of its accuracies is of: with cross-validation, of images that were not learned from either."""
    folds = (head.get("metrics") or {}).get("folds")
    return f"accuracy out of fold, {len(folds)} folds" if folds else "accuracy on select"


def _accuracy(score: Mapping) -> str:
    if "top1" not in score:
        return "not recorded"
    known = {words: score.get(key) for key, words in (("top1", "top-1"), ("top5", "top-5"))}
    shares = [f"{words} {share:.2%}" for words, share in known.items() if share is not None]
    return ", ".join([*shares, _images(score)])


def _labels(head: Mapping) -> dict[str, Any]:
    """The names of its first classes, numbered, and how many more there are."""
    labels = head.get("labels") or []
    numbered = [f"{number}: {_text(label)}" for number, label in enumerate(labels[:MOST_LABELS])]
    return {"labels": numbered, "more": len(labels) - len(numbered)}


# ---------------------------------------------------------------------------------------------------------- small parts
def _data(head: Mapping) -> Mapping[str, Any]:
    return head.get("dataset") or {}


def _score(head: Mapping, split: str) -> Mapping[str, Any]:
    return (head.get("metrics") or {}).get(split) or {}


def _data_set_name(head: Mapping) -> str | None:
    """The data set as everybody may see it: of a path only the last part."""
    name = _data(head).get("name")
    kind, colon, argument = (name or "").partition(":")
    if colon and (kind in ("folder", "parquet") or argument.startswith(("/", ".", "~"))):
        name = f"{kind}:{Path(argument).name}"
    return name and _one_line(name)


def _images(score: Mapping) -> str:
    return f"{score['images']:,} images" if "images" in score else "an unknown number of images"


def _pairs(values: Mapping, keys: Sequence[str] | None = None) -> str:
    found = {key: values[key] for key in keys or values if values.get(key) is not None}
    return _text(", ".join(f"{key} {value}" for key, value in found.items()))


def _one_line(value: object) -> str:
    """Without line breaks, control characters and half surrogates, which neither YAML nor a table can hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())


def _text(value: object) -> str:
    """Plain text for Markdown: nothing in it is markup, ends a table's cell or starts HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&$])", r"\\\1", _one_line(value))
