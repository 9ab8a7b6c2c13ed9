"""A head as a file: one safetensors file with that head's tensors and, in its header, what they are and belong to.

Tensors, float32 (D width, L layers, m memory tokens, C classes):

    class_token        [D]              absent in a linear probe
    memory             [L, m, D]        absent when m = 0
    classifier.weight  [C, D]
    classifier.bias    [C]
    low_rank.P.down    [L, r, inputs]   of each projection P that has an update of rank r for the class token
    low_rank.P.up      [L, outputs, r]

The header holds one JSON text under the key `head`, beside the checksum of tensor_files.py. Several heads fit in one
file too: a JSON list under `heads`, those that are extended before those that extend them, and tensors called
`NAME.class_token` and so on. The names are ours, never module paths, so that a file outlives the renamings of the
libraries above it. Files of earlier formats, and those of the 2023 implementation (legacy.py), are read as well, and
never written. What the metadata may hold is in head_schema.py, what it means in head_metadata.py. None of them knows a
model. A file with a network that cannot be put together with heads (tuned_files.py) is recognised and refused.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from learnable_memory import tensor_files
from learnable_memory.head_metadata import (
    REQUIRED,
    RESERVED,
    HeadFile,
    HeadSpec,
    check,
    check_base,
    check_metadata,
    content_hash,
    current,
    describe,
    expected_shapes,
    head_hash,
    ranks_of,
    spec_of,
)
from learnable_memory.head_schema import FORMAT_VERSION

__all__ = [
    "CHECKSUM_SINCE", "FORMAT_VERSION", "HEADER_KEY", "NETWORK_KEY", "OLD_SUFFIX", "REQUIRED", "RESERVED",
    "SEVERAL_KEY", "SUFFIX", "HeadFile", "HeadSpec", "check", "check_base", "content_hash", "current", "describe",
    "expected_shapes", "file_name", "find", "has_checksum", "head_hash", "load", "load_all", "ranks_of",
    "read_all_metadata", "read_metadata", "read_old", "save", "save_all", "spec_of", "write",
]  # fmt: skip

SUFFIX = "_model.safetensors"
OLD_SUFFIX = "_model.pt"
HEADER_KEY = "head"
SEVERAL_KEY = "heads"
NETWORK_KEY = "network"  # of tuned_files.py
CHECKSUM_SINCE = 3  # format version


def save(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping) -> Path:
    """Write one head file, whole or not at all: beside its place first, then renamed.

    Raises ValueError if tensors and metadata do not fit each other, OSError if the disk refuses.
    """
    metadata = current(metadata)
    check(tensors, metadata, str(path))
    return write(path, tensors, {HEADER_KEY: metadata})


def save_all(path: str | os.PathLike, files: Sequence[HeadFile]) -> Path:
    """Write several heads as one file, in this order: those that are extended before those that extend them.

    Errors as in `save`; ValueError if two have one name, or a head stands before one that it extends.
    """
    files = [HeadFile(file.tensors, current(file.metadata)) for file in files]
    names = [file.metadata["name"] for file in files]
    if not names:
        raise ValueError(f"{path} would hold no head: give at least one.")
    for number, (name, file) in enumerate(zip(names, files, strict=True)):
        later = {parent["name"] for parent in file.metadata["extends"]} & set(names[number:])
        if later or name in names[:number]:
            what = f"{name} extends {', '.join(sorted(later))}, which has to stand before it" if later else ""
            raise ValueError(f"{path} cannot hold these heads: {what or f'two of them are called {name}'}.")
        check(file.tensors, file.metadata, f"{name} in {path}")
    tensors = {f"{file.metadata['name']}.{key}": tensor for file in files for key, tensor in file.tensors.items()}
    return write(path, tensors, {SEVERAL_KEY: [file.metadata for file in files]})


def write(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], header: Mapping) -> Path:
    """Write tensors and a header as `tensor_files.write` does; nothing is checked.

    Raises ValueError if it is called as files of 2023 are, OSError if the disk refuses.
    """
    path = Path(path)
    if _is_old(path):
        raise ValueError(f"{path} ends as a file of the 2023 implementation: call it {path.stem}.safetensors.")
    return tensor_files.write(path, tensors, header)


def load(path: str | os.PathLike) -> HeadFile:
    """Read and check a file with one head; errors as in `load_all`, and ValueError if it holds several."""
    found = load_all(path)
    _only(path, [file.metadata for file in found])
    return found[0]


def read_metadata(path: str | os.PathLike) -> dict:
    """The metadata alone of a file with one head; errors as in `load`."""
    found = read_all_metadata(path)
    _only(path, found)
    return found[0]


def _only(path: str | os.PathLike, found: Sequence[Mapping]) -> None:
    if len(found) > 1:
        names = ", ".join(metadata["name"] for metadata in found)
        raise ValueError(
            f"{path} holds {len(found)} heads ({names}): load them all with load_heads, or split the file."
        )


def load_all(path: str | os.PathLike) -> list[HeadFile]:
    """Read and check all heads of a file, those that are extended before those that extend them.

    A file of an earlier format has no checksum, which the log says.

    Raises FileNotFoundError if there is none, ValueError if it is not a head file, is damaged, is of another format
    version, holds tensors that do not fit its metadata, or holds a network that is no head.
    """
    path = Path(path)
    if _is_old(path):
        return read_old(path)
    contents = tensor_files.read(path)
    all_metadata, several = _metadata(contents.header, path)
    newest = max(metadata["format_version"] for metadata in all_metadata)
    tensor_files.check_presence(contents, newest >= CHECKSUM_SINCE, path)
    tensors = contents.tensors
    if not several:
        check(tensors, all_metadata[0], str(path))
        return [HeadFile(tensors, all_metadata[0])]
    found = []
    for metadata in all_metadata:
        prefix = f"{metadata['name']}."
        own = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        check(own, metadata, f"{metadata['name']} in {path}")
        found.append(HeadFile(own, metadata))
    if tensors:
        raise ValueError(f"{path} holds tensors of no head in it: {', '.join(sorted(tensors)[:4])}.")
    return found


def read_all_metadata(path: str | os.PathLike) -> list[dict]:
    """The metadata alone; order and errors as in `load_all`."""
    return [file.metadata for file in load_all(path)]


def has_checksum(path: str | os.PathLike, metadata: Mapping) -> bool:
    """Whether a file that gave a head with this metadata has told that it is as it was written."""
    return not _is_old(Path(path)) and metadata["format_version"] >= CHECKSUM_SINCE


def read_old(path: str | os.PathLike, names: Sequence[str] | None = None) -> list[HeadFile]:
    """The heads of a file of the 2023 implementation, as `load_all` gives them; they are called `names`, if given.

    What such a file does not say, its metadata lacks: labels, accuracies, splits. Raises as `load_all`.
    """
    from learnable_memory import legacy  # here, for it is seldom needed

    path = Path(path)
    tensor_files.must_be_there(path)
    tensor_files.say_unchecked(path)
    old = legacy.read(path, names)
    base = {"id": old.base_id, "fingerprint": content_hash(old.base)}
    width, layers = old.base["class_token"].shape[-1], sum(name.endswith(".query.weight") for name in old.base)
    found: dict[str, HeadFile] = {}
    hashes: dict[str, str] = {}
    for head in old.heads:
        metadata = {"preprocessing": legacy.preprocessing(old.image_size)}
        if names or head is old.heads[-1]:  # else it is called after another's data set
            metadata["dataset"] = {"name": head.name, "source": "the 2023 implementation", "split_seed": 0}
        memory_tokens = head.tensors["memory"].shape[1] if "memory" in head.tensors else 0
        classes = len(head.tensors["classifier.bias"])
        spec = HeadSpec(head.name, classes, memory_tokens, head.extends, memory_norm=False, metadata=metadata)
        parents = [{"name": parent, "hash": hashes[parent]} for parent in head.extends]
        hashes[head.name] = head_hash(spec, head.tensors, parents)
        found[head.name] = HeadFile(head.tensors, describe(spec, base, width, layers, parents))
        check(head.tensors, found[head.name].metadata, f"{head.name} in {path}")
    return list(found.values())


def _is_old(path: Path) -> bool:
    return path.suffix in (".pt", ".pth", ".bin")


def _metadata(header: Mapping[str, str], path: Path) -> tuple[list[dict], bool]:
    """What the header says of each head, and whether the file is one of several heads."""
    several = HEADER_KEY not in header
    if several and SEVERAL_KEY not in header:
        if NETWORK_KEY in header:
            raise _no_head(tensor_files.parsed(header[NETWORK_KEY], path), path)
        raise ValueError(f"{path} is a safetensors file but not a head file: its header has no '{HEADER_KEY}' entry.")
    found = tensor_files.parsed(header[SEVERAL_KEY if several else HEADER_KEY], path)
    listed = found if several else [found]
    wrong = [item for item in listed if not isinstance(item, dict)] if isinstance(listed, list) else [listed]
    if wrong or not listed:
        got = type(wrong[0]).__name__ if wrong else "none"
        raise ValueError(f"{path} has a damaged header: expected a JSON object for each head, got {got}.")
    for metadata in listed:
        check_metadata(metadata, str(path))
    names = [metadata["name"] for metadata in listed]
    if len(set(names)) < len(names):
        raise ValueError(f"{path} has a damaged header: several heads have one name.")
    return listed, several


def _no_head(network: Any, path: Path) -> ValueError:
    """Why a file of tuned_files.py gives no head, in its own words: what a network is, this module does not know."""
    try:
        method, reason = network["spec"]["method"], network["reason"]
    except (KeyError, TypeError):
        return ValueError(f"{path} has a damaged header: it does not say what its network is, and why it is no head.")
    return ValueError(
        f"{path} holds a `{method}` model, not a head: {reason}. Evaluate it alone with vit_validation.py."
    )


def file_name(head: str, suffix: str = SUFFIX) -> str:
    """The file name of a head: `{head}_model.safetensors`, with the separators of a path replaced."""
    return head.replace("/", "-").replace(os.sep, "-") + suffix


def find(names: Sequence[str], folder: str | os.PathLike) -> list[Path]:
    """Each name as a file: a path is taken as it is, a bare name is looked up in the folder.

    There it is `{name}_model.safetensors`, or `{name}_model.pt` of the 2023 implementation.

    Raises FileNotFoundError that lists the names without a file and the heads that the folder does have, ValueError if
    two names mean the same file.
    """
    folder = Path(folder)
    paths = [_place(name, folder) for name in names]
    lost = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if lost:
        suffixes = (SUFFIX, OLD_SUFFIX)
        present = {path.name.removesuffix(suffix) for suffix in suffixes for path in folder.glob(f"*{suffix}")}
        raise FileNotFoundError(
            f"No head file for {', '.join(lost)} in {folder} (looked for {file_name(lost[0])} and "
            f"{file_name(lost[0], OLD_SUFFIX)}). Heads there: {', '.join(sorted(present)) or 'none'}."
        )
    for number, path in enumerate(paths):
        twins = [name for name, other in zip(names[:number], paths, strict=False) if other.samefile(path)]
        if twins:
            raise ValueError(f"{twins[0]} and {names[number]} are the same head file, {path}: name it once.")
    return paths


def _place(name: str, folder: Path) -> Path:
    if Path(name).is_file():
        return Path(name)
    old = folder / file_name(name, OLD_SUFFIX)
    new = folder / file_name(name)
    return old if old.is_file() and not new.is_file() else new
