"""A network that cannot be put together with heads, as a file: one safetensors file with exactly what it has learned.

`{name}_model.safetensors` lies where heads lie. Its tensors have the names that they have in the network of methods.py
or convolutional.py, so it is bound to these modules more than a head's file is. They are float32; batch norm of a
convolutional network also counts its batches, in int64. The header holds one JSON text under the key `network`:

    format_version   2; files of version 1 are read, and have no checksum
    name             as of a head
    base             {"id", "fingerprint"} of the base that it was trained on
    kind             "vit" or "convolutional": what the base is
    spec             `MethodSpec` as a dict
    num_labels       C
    combinable       false
    reason           why it cannot be put together with others
    labels, preprocessing, dataset, metrics, training, versions, notes    as of a head, where they are known

and under `sha256` the checksum of tensor_files.py. No model and no base: whether the tensors fit their network is seen
when they are loaded into it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from learnable_memory import heads, tensor_files
from learnable_memory.head_metadata import check_known, check_known_keys, check_schema
from learnable_memory.head_schema import BASE, KNOWN, PLAIN, TEXT, TRUTH, WHOLE, Each, Key, Schema, known_alone
from learnable_memory.heads import NETWORK_KEY, HeadSpec
from learnable_memory.method_spec import OF_ANY_NETWORK, MethodSpec
from learnable_memory.public_names import public_name
from learnable_memory.wording import some

FORMAT_VERSION = 2  # 1: before there was a checksum
KINDS = ("vit", "convolutional")
SCHEMA: Schema = {
    "format_version": Key(WHOLE, True), "name": Key(TEXT, True), "base": Key(BASE, True), "kind": Key(TEXT, True),
    "spec": Key(Each(dict, PLAIN), True), "num_labels": Key(WHOLE, True), "combinable": Key(TRUTH, True),
    "reason": Key(TEXT, True), **KNOWN,
}  # fmt: skip
REQUIRED = tuple(key for key, rule in SCHEMA.items() if rule.required)
WITHOUT_TOKENS = "its base is a convolutional network, which has no tokens that heads could see"
BATCH_COUNTER = "num_batches_tracked"  # of batch norm
MOST_NAMES = 4  # of tensors, in an error


@dataclass(frozen=True)
class TunedFile:
    """What such a file holds: `tensors` by their names in the network, and `metadata`, the JSON of its header."""

    tensors: dict[str, torch.Tensor]
    metadata: dict

    @property
    def name(self) -> str:
        """What it is called, as a head is."""
        return self.metadata["name"]

    @property
    def spec(self) -> MethodSpec:
        """The method that it was learned with."""
        return MethodSpec(**self.metadata["spec"])


def reason_against(kind: str, spec: MethodSpec) -> str:
    """Why a network cannot be put together with others; empty if it is what a head does."""
    return spec.reason or (WITHOUT_TOKENS if kind == "convolutional" else "")


def describe(
    name: str, base: Mapping, kind: str, spec: MethodSpec, num_labels: int, metadata: Mapping | None = None
) -> dict:
    """The metadata of a file.

    Args:
        base: `{"id", "fingerprint"}` of the base.
        kind: one of KINDS.
        metadata: whatever else is known of it: labels, preprocessing, dataset, metrics, training, versions, notes.

    Raises ValueError if `metadata` uses a key that is taken, or that such files do not have.
    """
    taken = [key for key in metadata or () if key in REQUIRED]
    if taken:
        raise ValueError(f"Metadata cannot be called {', '.join(taken)}: the file of a network has these already.")
    check_known_keys(metadata or {}, KNOWN, f"The metadata of {name}")
    base = {**base, "id": base["id"] and public_name(base["id"])}  # as of a head
    return {
        **(metadata or {}), "format_version": FORMAT_VERSION, "name": name, "base": base, "kind": kind,
        "spec": asdict(spec), "num_labels": num_labels, "combinable": False, "reason": reason_against(kind, spec),
    }  # fmt: skip


def current(metadata: Mapping) -> dict:
    """What a file of an earlier format says, as one of FORMAT_VERSION says it; see `head_metadata.current`."""
    if metadata.get("format_version") != 1:
        return dict(metadata)
    return {**known_alone(metadata, SCHEMA), "format_version": FORMAT_VERSION}


# ---------------------------------------------------------------------------------------------------------------- files
def save(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping) -> Path:
    """Write one network's file, whole or not at all.

    Raises ValueError if tensors and metadata are not as this module's docstring says, OSError if the disk refuses.
    """
    metadata = current(metadata)
    check(tensors, metadata, str(path))
    return heads.write(path, tensors, {NETWORK_KEY: metadata})


def load(path: str | os.PathLike) -> TunedFile:
    """Read and check a file.

    Raises FileNotFoundError if there is none, ValueError if it is damaged, holds no such network, is of another format
    version, or its tensors are not as this module's docstring says.
    """
    path = Path(path)
    contents = tensor_files.read(path)
    metadata = _metadata(contents.header, path)
    check(contents.tensors, metadata, str(path))
    tensor_files.check_presence(contents, has_checksum(metadata), path)
    return TunedFile(contents.tensors, metadata)


def has_checksum(metadata: Mapping) -> bool:
    """Whether a file of this format has one."""
    return metadata["format_version"] >= FORMAT_VERSION


def is_tuned(path: str | os.PathLike) -> bool:
    """Whether a file says in its header that it holds such a network; what cannot be read says nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            return NETWORK_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _metadata(header: Mapping[str, str], path: Path) -> dict:
    if NETWORK_KEY not in header:
        raise ValueError(f"{path} holds no network of its own: its header has no '{NETWORK_KEY}' entry.")
    metadata = tensor_files.parsed(header[NETWORK_KEY], path)
    if not isinstance(metadata, dict):
        raise ValueError(f"{path} has a damaged header: expected a JSON object, got {type(metadata).__name__}.")
    return metadata


# --------------------------------------------------------------------------------------------------------------- checks
def check_metadata(metadata: Mapping, where: str) -> None:
    """Raise ValueError, naming `where`, if metadata is incomplete, of another format version, or contradicts itself."""
    version = metadata.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{where} has network format version {version!r}; this library reads version 1 and {FORMAT_VERSION}. "
            "Update the library, or train the network again with this one."
        )
    check_schema(metadata, SCHEMA, where, version, strict=version == FORMAT_VERSION)
    try:
        HeadSpec(metadata["name"], metadata["num_labels"])
        _check_kind(metadata["kind"], _spec_of(metadata["spec"]))
        _check_not_combinable(metadata)
        check_known(metadata)
        if "splits" not in metadata.get("dataset", {"splits"}):
            raise ValueError("dataset has no splits.")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where} has a damaged header: {error}") from None


def _spec_of(record: Mapping) -> MethodSpec:
    """Raises ValueError for other keys or types than those of `MethodSpec`, or a spec that is not legal."""
    types: dict[str, tuple[type, ...]] = {field.name: (type(field.default),) for field in fields(MethodSpec)}
    types["prompt_dropout"] = (int, float)  # JSON knows one kind of number
    if record.keys() != types.keys():
        raise ValueError(f"spec has to hold {', '.join(types)}; got {', '.join(map(str, record))}.")
    wrong = [f"spec.{key} is {record[key]!r}" for key, legal in types.items() if type(record[key]) not in legal]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}.")
    return MethodSpec(**record)


def _check_kind(kind: object, spec: MethodSpec) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, but it has to be one of {', '.join(KINDS)}.")
    if kind == "convolutional" and spec.method not in OF_ANY_NETWORK:
        raise ValueError(f"a convolutional network learns {' or '.join(OF_ANY_NETWORK)}, not {spec.method}.")
    if not reason_against(kind, spec):
        raise ValueError(f"{spec.label} is what a head learns, and heads have files of their own.")


def _check_not_combinable(metadata: Mapping) -> None:
    if metadata["combinable"] is not False:
        raise ValueError(f"combinable is {metadata['combinable']!r}, but it has to be false.")
    reason = metadata["reason"]
    if not reason.strip():
        raise ValueError(f"reason is {reason!r}, but it has to say why the network cannot be put together with others.")


def check(tensors: Mapping[str, torch.Tensor], metadata: Mapping, where: str) -> None:
    """Raise ValueError, naming `where`, unless metadata and tensors are as this module's docstring says."""
    check_metadata(metadata, where)
    if not tensors:
        raise ValueError(f"{where} holds no tensors: a network has learned at least a classifier.")
    counts = metadata["kind"] == "convolutional"
    wrong = []
    for name, tensor in tensors.items():
        is_counter = counts and name.rpartition(".")[2] == BATCH_COUNTER
        legal = torch.int64 if is_counter else torch.float32
        if tensor.dtype != legal:
            wrong.append(f"{name} is {tensor.dtype} and has to be {legal}")
    if wrong:
        raise ValueError(f"{where} holds tensors of other types: {some(wrong, MOST_NAMES)}.")
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        names = some(broken, MOST_NAMES)
        raise ValueError(f"{where} has values that are not finite in {names}: its training has diverged.")


def check_base(metadata: Mapping, fingerprint: str) -> None:
    """Raise ValueError unless the network was trained on the base with this fingerprint."""
    base = metadata["base"]
    if base["fingerprint"] != fingerprint:
        raise ValueError(
            f"{metadata['name']} was trained on another base ({base['id'] or 'unnamed'}): base fingerprint "
            f"{base['fingerprint']} in the file, {fingerprint} in the model. Load the base that it was trained on, or "
            "train the network again on this one."
        )
