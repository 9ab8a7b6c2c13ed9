"""What the metadata of a head file may hold, key by key. A new field of a head is a line here.

    faults(metadata, HEAD)      # what is of another type than it has to be
    lacking(metadata, HEAD)     # what has to be there, and is not
    unknown(metadata, HEAD)     # what nobody knows, such as a key that was misspelt

Keys within keys are written `base.id`. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from learnable_memory.projections import PROJECTIONS

FORMAT_VERSION = 3  # 1: before low-rank weights; 2: before there was a checksum, and unknown keys were let through
READABLE = (1, 2, FORMAT_VERSION)

TEXT, WHOLE, NUMBER, TRUTH = (str,), (int,), (int, float), (bool,)
PLAIN = (str, int, float, bool, list, dict)  # whatever JSON holds


class Each(NamedTuple):
    """A list, or an object whose keys are not known beforehand: what each of its values is."""

    container: type[list] | type[dict]
    holds: Any
    keys: tuple[str, ...] | None = None  # the legal ones of an object, if there are such


class Key(NamedTuple):
    """What stands under one key.

    Attributes:
        holds: the legal types of a value, an `Each`, or the keys of an object.
        required: whether it has to be there.
        null: whether it may be null.
        since: the first format version that has it.
    """

    holds: tuple[type, ...] | Each | Mapping[str, Key]
    required: bool = False
    null: bool = False
    since: int = 1


Schema = Mapping[str, Key]

BASE: Schema = {"id": Key(TEXT, True, null=True), "fingerprint": Key(TEXT, True)}
SCORE: Schema = {
    "images": Key(WHOLE), "top1": Key(NUMBER), "top5": Key(NUMBER, null=True), "loss": Key(NUMBER),
    "images_per_second": Key(NUMBER),
}  # fmt: skip
PREPROCESSING: Schema = {
    "height": Key(WHOLE), "width": Key(WHOLE), "resize": Key(Each(list, WHOLE)), "resample": Key(TEXT),
    "rescale": Key(NUMBER), "mean": Key(Each(list, NUMBER)), "std": Key(Each(list, NUMBER)), "rounded": Key(TRUTH),
    "scaled_decoding": Key(WHOLE),
}  # fmt: skip
ROLES = ("train", "select", "eval")
SPLIT: Schema = {"images": Key(WHOLE), "hash": Key(TEXT), "bytes": Key(WHOLE), "contents": Key(TEXT)}
DATASET: Schema = {
    "name": Key(TEXT, True), "source": Key(TEXT), "split": Key(TEXT), "split_seed": Key(WHOLE, True),
    "select_seed": Key(WHOLE), "image_column": Key(TEXT, null=True), "label_column": Key(TEXT, null=True),
    "class_folders": Key(TEXT, null=True), "label_files": Key(Each(list, TEXT), null=True),
    "folds": Key(WHOLE, null=True),
    "left_out": Key(Each(dict, {"images": Key(WHOLE), "names": Key(Each(list, TEXT))}, ROLES), null=True),
    "splits": Key(Each(dict, SPLIT, ROLES)),
}  # fmt: skip
METRICS: Schema = {
    "epoch": Key(WHOLE, null=True), "select": Key(SCORE, null=True), "eval": Key(SCORE, null=True),
    "folds": Key(Each(list, SCORE), null=True),
}  # fmt: skip

# What heads, and networks that are none, may say beyond what they are.
KNOWN: Schema = {
    "labels": Key(Each(list, TEXT)),
    "preprocessing": Key(PREPROCESSING),
    "dataset": Key(DATASET),
    "metrics": Key(METRICS),
    "training": Key(Each(dict, PLAIN)),  # options by their names, of whatever version
    "versions": Key(Each(dict, TEXT)),
    "notes": Key(Each(dict, PLAIN)),  # whatever anybody wants to add
}
HEAD: Schema = {
    "format_version": Key(WHOLE, True),
    "name": Key(TEXT, True),
    "base": Key(BASE, True),
    "hidden_size": Key(WHOLE, True),
    "num_layers": Key(WHOLE, True),
    "num_labels": Key(WHOLE, True),
    "memory_tokens": Key(WHOLE, True),
    "memory_norm": Key(TRUTH, True),
    "class_token": Key(TRUTH, True),
    "extends": Key(Each(list, {"name": Key(TEXT, True), "hash": Key(TEXT, True)}), True),
    "low_rank": Key(Each(dict, WHOLE, PROJECTIONS), True, since=2),
    "intermediate_size": Key(WHOLE, True, null=True, since=2),
    "readout_width": Key(WHOLE),
    **KNOWN,
}


def required(schema: Schema, version: int = FORMAT_VERSION) -> list[str]:
    """The keys that have to be there in a file of this format version."""
    return [name for name, key in schema.items() if key.required and key.since <= version]


def names(schema: Schema, name: str = "") -> Iterator[str]:
    """All keys, those within keys too."""
    for key, rule in schema.items():
        yield _joined(name, key)
        yield from _names_within(rule.holds, _joined(name, key))


def _names_within(holds: Any, name: str) -> Iterator[str]:
    if isinstance(holds, Mapping):
        yield from names(holds, name)
    elif isinstance(holds, Each):
        for inner in [name] if holds.keys is None else [_joined(name, key) for key in holds.keys]:
            yield inner
            yield from _names_within(holds.holds, inner)


def faults(value: Any, holds: Any, name: str = "", null: bool = False) -> Iterator[str]:
    """Where a value is of another type than it has to be, and what it is there: "base.id is 7"."""
    if value is None and null:
        return
    container = dict if isinstance(holds, Mapping) else holds.container if isinstance(holds, Each) else None
    # By identity of types: true is no number.
    if type(value) is not container if container else type(value) not in holds:
        yield f"{name} is {value!r}"
        return
    for key, inner, rule in _within(value, holds, name):
        if rule is not None:
            yield from faults(inner, rule.holds, key, rule.null)


def unknown(value: Any, holds: Any, name: str = "") -> Iterator[str]:
    """Keys that the schema does not have, of a value without faults."""
    for key, inner, rule in _within(value, holds, name):
        if rule is None:
            yield key
        elif inner is not None:
            yield from unknown(inner, rule.holds, key)


def lacking(value: Any, holds: Any, version: int = FORMAT_VERSION, name: str = "") -> Iterator[str]:
    """Required keys that are not there; what has faults lacks nothing."""
    if isinstance(holds, Mapping) and isinstance(value, Mapping):
        yield from (_joined(name, key) for key in required(holds, version) if key not in value)
    for key, inner, rule in _within(value, holds, name):
        if rule is not None:
            yield from lacking(inner, rule.holds, version, key)


def known_alone(metadata: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """What the schema knows of metadata without faults; all else of it under `notes`, by its dotted name."""
    taken: dict[str, Any] = {}
    kept = _known(metadata, schema, "", taken)
    return {**kept, "notes": {**kept.get("notes", {}), **taken}} if taken else kept


def _known(value: Any, holds: Any, name: str, taken: dict[str, Any]) -> Any:
    inside = list(_within(value, holds, name))
    if not inside:
        return value
    taken |= {dotted: inner for dotted, inner, rule in inside if rule is None}
    kept = [rule and _known(inner, rule.holds, dotted, taken) for dotted, inner, rule in inside]
    if isinstance(value, list):
        return kept
    pairs = zip(value, kept, inside, strict=True)
    return {key: known for key, known, (_, _, rule) in pairs if rule is not None}


def _within(value: Any, holds: Any, name: str) -> Iterator[tuple[str, Any, Key | None]]:
    """What a list or an object holds: dotted name, value, and its rule; None where there is none."""
    if isinstance(holds, Mapping) and isinstance(value, Mapping):
        for key, inner in value.items():
            yield _joined(name, key), inner, holds.get(key)
    elif isinstance(holds, Each) and isinstance(value, Mapping):
        for key, inner in value.items():
            # Free values may be null.
            legal = holds.keys is None or key in holds.keys
            yield _joined(name, key), inner, Key(holds.holds, null=holds.holds is PLAIN) if legal else None
    elif isinstance(holds, Each) and isinstance(value, list):
        for inner in value:
            yield name, inner, Key(holds.holds)


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
