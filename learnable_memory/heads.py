"""A head as a file: one safetensors file with that head's tensors and, in its header, what they are and belong to.

Tensors, float32 (D width, L layers, m memory tokens, C classes):

    class_token        [D]        absent in a linear probe
    memory             [L, m, D]  absent when m = 0
    classifier.weight  [C, D]
    classifier.bias    [C]

The header holds one JSON text under the key `head`. Several heads fit in one file too: a JSON list under `heads`, those
that are extended before those that extend them, and tensors called `NAME.class_token` and so on. The names are ours,
never module paths, so that a file outlives the renamings of the libraries above it. The files of the 2023
implementation are read as well (legacy.py), and never written. This module knows tensors and JSON only, no model.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from learnable_memory.files import replacing

FORMAT_VERSION = 1
SUFFIX = "_model.safetensors"
OLD_SUFFIX = "_model.pt"
HEADER_KEY = "head"
SEVERAL_KEY = "heads"
RESERVED = {"base", *dir(torch.nn.ModuleDict())}  # heads live in one; what it has itself is not free as a name
REQUIRED = (
    "format_version", "name", "base", "hidden_size", "num_layers", "num_labels", "memory_tokens", "memory_norm",
    "class_token", "extends",
)  # fmt: skip


@dataclass(frozen=True)
class HeadSpec:
    """What a head is, without its weights.

    Args:
        name: letters, digits, `_`, `+` and `-`; not `base`.
        num_labels: C, classes of its data set.
        memory_tokens: m in every layer; 0 is a class token without memory.
        extends: the heads whose class tokens and memory it also sees.
        memory_norm: memory passes through the layer norm, as in the paper, or joins after it, as in the 2023 files.
        class_token: False is a linear probe on the base class token; it has no memory and extends nothing.
        metadata: whatever else is known of it: labels, data set, preprocessing, metrics, versions.

    Raises ValueError if one of them is not legal.
    """

    name: str
    num_labels: int
    memory_tokens: int = 1
    extends: tuple[str, ...] = ()
    memory_norm: bool = True
    class_token: bool = True
    metadata: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extends", tuple(self.extends))
        legal = isinstance(self.name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]*", self.name)
        if not legal or self.name in RESERVED:
            raise ValueError(
                f"{self.name!r} cannot be the name of a head. Use letters, digits, '_', '+' and '-', and not "
                "'base' (the base's own answers) or the name of a method of torch modules."
            )
        for what, count, least in (("num_labels", self.num_labels, 1), ("memory_tokens", self.memory_tokens, 0)):
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ValueError(f"{what} must be a whole number of at least {least}, got {count!r}.")
        if not self.class_token and (self.memory_tokens or self.extends):
            raise ValueError(
                "A head without a class token is a linear probe: nothing reads memory or other heads in it. "
                f"Set memory_tokens=0 and extends=(), got {self.memory_tokens} and {self.extends}."
            )


@dataclass(frozen=True)
class HeadFile:
    """What a head file holds: `tensors` under the names above, and `metadata`, the JSON of its header as a dict."""

    tensors: dict[str, torch.Tensor]
    metadata: dict


def content_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, 64 hexadecimal digits, over names, shapes and values (as little-endian float32, sorted by name).

    Independent of how a file stores the values: float16 and bfloat16 widen to float32 without loss. That of a base
    is called its *fingerprint*.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def head_hash(spec: HeadSpec, tensors: Mapping[str, torch.Tensor], parents: Sequence[Mapping]) -> str:
    """By what a head names a parent: all that decides the parent's answers, its own parents included."""
    decides = [content_hash(tensors), spec.memory_norm, [[parent["name"], parent["hash"]] for parent in parents]]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def describe(spec: HeadSpec, base: Mapping, hidden_size: int, num_layers: int, parents: Sequence[Mapping]) -> dict:
    """The metadata of a head's file.

    Args:
        base: `{"id", "fingerprint"}` of the base.
        parents: `{"name", "hash"}` of each head in `spec.extends`, the hash being its `head_hash`.

    Raises ValueError if the spec's own metadata uses a key that is taken.
    """
    record = asdict(spec)
    taken = [key for key in record["metadata"] if key in REQUIRED]
    if taken:
        raise ValueError(f"Metadata cannot be called {', '.join(taken)}: a head file has these already.")
    return {
        **record.pop("metadata"), **record, "format_version": FORMAT_VERSION, "base": dict(base),
        "hidden_size": hidden_size, "num_layers": num_layers, "extends": list(parents),
    }  # fmt: skip


def spec_of(metadata: Mapping) -> HeadSpec:
    """The reverse of `describe`: what `describe` added is taken away, the rest is the spec's own metadata."""
    own = {key: value for key, value in metadata.items() if key not in REQUIRED}
    core = {key: metadata[key] for key in ("name", "num_labels", "memory_tokens", "memory_norm", "class_token")}
    return HeadSpec(**core, extends=tuple(parent["name"] for parent in metadata["extends"]), metadata=own)


def expected_shapes(metadata: Mapping) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape that a head with this metadata must have."""
    width, classes = metadata["hidden_size"], metadata["num_labels"]
    shapes: dict[str, tuple[int, ...]] = {"classifier.weight": (classes, width), "classifier.bias": (classes,)}
    if metadata["class_token"]:
        shapes["class_token"] = (width,)
    if metadata["memory_tokens"]:
        shapes["memory"] = (metadata["num_layers"], metadata["memory_tokens"], width)
    return shapes


def check_metadata(metadata: Mapping, where: str) -> None:
    """Raise ValueError, naming `where`, if metadata is incomplete or of another format version."""
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{where} has head format version {metadata.get('format_version')!r}; this library reads version "
            f"{FORMAT_VERSION}. Update the library, or write the head again with this one."
        )
    missing = [key for key in REQUIRED if key not in metadata]
    if not missing:
        base, parents = metadata["base"], metadata["extends"]
        if not isinstance(base, dict) or not isinstance(parents, list) or not all(isinstance(p, dict) for p in parents):
            raise ValueError(f"{where} has a damaged header: base is no object, or extends no list of objects.")
        missing = [f"base.{key}" for key in ("id", "fingerprint") if key not in base]
        missing += [f"extends.{key}" for key in ("name", "hash") for parent in parents if key not in parent]
    if missing:
        raise ValueError(f"{where} is not a complete head file: its metadata lacks {', '.join(missing)}.")


def check(tensors: Mapping[str, torch.Tensor], metadata: Mapping, where: str) -> None:
    """Raise ValueError, naming `where`, if metadata is incomplete or of another format, or a tensor does not fit."""
    check_metadata(metadata, where)
    wanted = expected_shapes(metadata)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        differing = [
            f"{name}: found {found.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name)
        ]
        raise ValueError(f"{where} holds tensors that do not fit its own metadata: {'; '.join(differing)}.")
    wrong = [f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype != torch.float32]
    if wrong:
        raise ValueError(f"{where} must hold float32 tensors only, but {', '.join(wrong)}.")
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{where} has values that are not finite in {', '.join(broken)}: its training has diverged.")


def check_base(metadata: Mapping, fingerprint: str, hidden_size: int, num_layers: int, where: str) -> None:
    """Raise ValueError, saying which differ, unless the head belongs to the base with this fingerprint and shape."""
    base = metadata["base"]
    pairs = [
        ("width", metadata["hidden_size"], hidden_size),
        ("number of layers", metadata["num_layers"], num_layers),
        ("base fingerprint", base["fingerprint"], fingerprint),
    ]
    differing = [f"{what} {theirs} in the file, {ours} in the model" for what, theirs, ours in pairs if theirs != ours]
    if differing:
        raise ValueError(
            f"{where} was trained on another base ({base.get('id') or 'unnamed'}): {'; '.join(differing)}. "
            "Load the base that it was trained on, or train the head again on this one."
        )


def save(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping) -> Path:
    """Write one head file, whole or not at all: beside its place first, then renamed.

    Raises ValueError if tensors and metadata do not fit each other, OSError if the disk refuses.
    """
    check(tensors, metadata, str(path))
    return _write(path, tensors, {HEADER_KEY: metadata})


def save_all(path: str | os.PathLike, files: Sequence[HeadFile]) -> Path:
    """Write several heads as one file, in this order: those that are extended before those that extend them.

    Errors as in `save`; ValueError if two have one name, or a head stands before one that it extends.
    """
    names = [file.metadata["name"] for file in files]
    for number, (name, file) in enumerate(zip(names, files, strict=True)):
        later = {parent["name"] for parent in file.metadata["extends"]} & set(names[number:])
        if later or name in names[:number]:
            what = f"{name} extends {', '.join(sorted(later))}, which has to stand before it" if later else ""
            raise ValueError(f"{path} cannot hold these heads: {what or f'two of them are called {name}'}.")
        check(file.tensors, file.metadata, f"{name} in {path}")
    tensors = {f"{file.metadata['name']}.{key}": tensor for file in files for key, tensor in file.tensors.items()}
    return _write(path, tensors, {SEVERAL_KEY: [file.metadata for file in files]})


def _write(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], header: Mapping) -> Path:
    path = Path(path)
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = {key: json.dumps(value, separators=(",", ":"), allow_nan=False) for key, value in header.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata=text)
    return path


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

    Raises FileNotFoundError if there is none, ValueError if it is not a head file, is damaged, is of another format
    version, or holds tensors that do not fit its metadata.
    """
    path = Path(path)
    if _is_old(path):
        return read_old(path)
    with _opened(path) as file:
        all_metadata, several = _metadata(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
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
    """The metadata alone, without reading the tensors where the format allows; order and errors as in `load_all`."""
    path = Path(path)
    if _is_old(path):
        return [file.metadata for file in read_old(path)]
    with _opened(path) as file:
        return _metadata(file, path)[0]


def read_old(path: str | os.PathLike, names: Sequence[str] | None = None) -> list[HeadFile]:
    """The heads of a file of the 2023 implementation, as `load_all` gives them; they are called `names`, if given.

    What such a file does not say, its metadata lacks: labels, accuracies, splits. Raises as `load_all`.
    """
    from learnable_memory import legacy  # here, for it is seldom needed

    path = Path(path)
    _must_be_there(path)
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


def _must_be_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"There is no head file {path}. Train one with vit_train.py, or check the name.")


@contextlib.contextmanager
def _opened(path: Path):
    _must_be_there(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged or cut short: {error}.") from None


def _metadata(file, path: Path) -> tuple[list[dict], bool]:
    """What the header says of each head, and whether the file is one of several heads."""
    header = file.metadata() or {}
    several = HEADER_KEY not in header
    if several and SEVERAL_KEY not in header:
        raise ValueError(f"{path} is a safetensors file but not a head file: its header has no '{HEADER_KEY}' entry.")
    try:
        found = json.loads(header[SEVERAL_KEY if several else HEADER_KEY])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a damaged header: {error}.") from None
    listed = found if several and isinstance(found, list) else [found]
    wrong = [item for item in listed if not isinstance(item, dict)]
    if wrong or not listed:
        got = type(wrong[0]).__name__ if wrong else "none"
        raise ValueError(f"{path} has a damaged header: expected a JSON object for each head, got {got}.")
    for metadata in listed:
        check_metadata(metadata, str(path))
    names = [metadata["name"] for metadata in listed]
    if len(set(map(str, names))) < len(names):
        raise ValueError(f"{path} has a damaged header: several heads have one name.")
    return listed, several


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
