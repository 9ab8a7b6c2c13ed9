"""What a head is, without its file: its specification, its metadata as JSON, and what the two must be like.

No model and no files: tensors by name, and plain dicts. heads.py reads and writes them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from learnable_memory.head_schema import (
    FORMAT_VERSION,
    HEAD,
    KNOWN,
    READABLE,
    Schema,
    faults,
    known_alone,
    lacking,
    names,
    required,
    unknown,
)
from learnable_memory.projections import PROJECTIONS, USUAL_PROJECTIONS, projection_size
from learnable_memory.public_names import public_name
from learnable_memory.wording import did_you_mean

RESERVED = {"base", *dir(torch.nn.ModuleDict())}  # heads live in one; what it has itself is not free as a name
REQUIRED = tuple(required(HEAD))  # what `describe` writes; the rest is `HeadSpec.metadata`


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
        metadata: whatever else is known of it, by the keys of `head_schema.KNOWN`: labels, data set, preprocessing,
            metrics, training, versions; and `notes`, an object of anybody's own keys.
        low_rank: ranks of the head's own updates of projections, for its class token alone; those of key and value also
            for its memory. One number means that rank for query, output and both projections of the MLP; 0 and {} none.

    Raises ValueError if one of them is not legal.
    """

    name: str
    num_labels: int
    memory_tokens: int = 1
    extends: tuple[str, ...] = ()
    memory_norm: bool = True
    class_token: bool = True
    metadata: dict = field(default_factory=dict)
    low_rank: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extends", tuple(self.extends))
        object.__setattr__(self, "low_rank", ranks_of(self.low_rank))
        legal = isinstance(self.name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]*", self.name)
        if not legal or self.name in RESERVED:
            raise ValueError(
                f"{self.name!r} cannot be the name of a head. Use letters, digits, '_', '+' and '-', and not "
                "'base' (the base's own answers) or the name of a method of torch modules."
            )
        for what, count, least in (("num_labels", self.num_labels, 1), ("memory_tokens", self.memory_tokens, 0)):
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ValueError(f"{what} must be a whole number of at least {least}, got {count!r}.")
        if not self.class_token and (self.memory_tokens or self.extends or self.low_rank):
            raise ValueError(
                "A head without a class token is a linear probe: nothing reads memory or other heads in it, and there "
                "is nothing that low-rank weights would be applied to. Set memory_tokens=0, extends=() and no rank, "
                f"got {self.memory_tokens}, {self.extends} and {self.low_rank}."
            )


def ranks_of(rank: int | Mapping[str, int]) -> dict[str, int]:
    """Ranks by projection, in the order of PROJECTIONS and without zeros, of what `HeadSpec.low_rank` may be.

    Raises ValueError for an unknown projection, or a rank that is no whole number of at least 0.
    """
    ranks = dict(rank) if isinstance(rank, Mapping) else dict.fromkeys(USUAL_PROJECTIONS, rank)
    unknown = [name for name in ranks if name not in PROJECTIONS]
    if unknown:
        raise ValueError(
            f"There is no projection {', '.join(map(str, unknown))} to give a rank; legal: {', '.join(PROJECTIONS)}."
        )
    for name, count in ranks.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"The rank of {name} must be a whole number of at least 0, got {count!r}.")
    return {name: ranks[name] for name in PROJECTIONS if ranks.get(name)}


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


def describe(
    spec: HeadSpec, base: Mapping, hidden_size: int, num_layers: int, parents: Sequence[Mapping],
    intermediate_size: int | None = None, readout_width: int | None = None,
) -> dict:  # fmt: skip
    """The metadata of a head's file.

    Args:
        base: `{"id", "fingerprint"}` of the base.
        intermediate_size: width inside the MLP; None only for a head without low-rank weights there.
        parents: `{"name", "hash"}` of each head in `spec.extends`, the hash being its `head_hash`.
        readout_width: of a linear probe, what it reads of an image; None where that is `hidden_size`.

    Of a base that is a path the last part is kept: a file travels, and where its owner keeps his is nobody's business.

    Raises ValueError if the spec's own metadata uses a key that is taken, or one that head files do not have.
    """
    record = asdict(spec)
    taken = [key for key in record["metadata"] if key in REQUIRED]
    if taken:
        raise ValueError(f"Metadata cannot be called {', '.join(taken)}: a head file has these already.")
    check_known_keys(record["metadata"], KNOWN, f"The metadata of {spec.name}")
    return {
        **record.pop("metadata"), **record, "format_version": FORMAT_VERSION,
        "base": {**base, "id": base["id"] and public_name(base["id"])},
        "hidden_size": hidden_size, "num_layers": num_layers, "intermediate_size": intermediate_size,
        "extends": list(parents), **({} if readout_width is None else {"readout_width": readout_width}),
    }  # fmt: skip


def spec_of(metadata: Mapping) -> HeadSpec:
    """The reverse of `describe`: what `describe` added is taken away, the rest is the spec's own metadata."""
    own = {key: value for key, value in current(metadata).items() if key not in (*REQUIRED, "readout_width")}
    core = {key: metadata[key] for key in ("name", "num_labels", "memory_tokens", "memory_norm", "class_token")}
    core["low_rank"] = metadata.get("low_rank", {})
    return HeadSpec(**core, extends=tuple(parent["name"] for parent in metadata["extends"]), metadata=own)


def expected_shapes(metadata: Mapping) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape that a head with this metadata must have."""
    width, classes = metadata["hidden_size"], metadata["num_labels"]
    read = width if metadata["class_token"] else metadata.get("readout_width", width)
    shapes: dict[str, tuple[int, ...]] = {"classifier.weight": (classes, read), "classifier.bias": (classes,)}
    if metadata["class_token"]:
        shapes["class_token"] = (width,)
    if metadata["memory_tokens"]:
        shapes["memory"] = (metadata["num_layers"], metadata["memory_tokens"], width)
    for projection, rank in metadata.get("low_rank", {}).items():
        inputs, outputs = projection_size(projection, width, metadata["intermediate_size"])
        shapes[f"low_rank.{projection}.down"] = (metadata["num_layers"], rank, inputs)
        shapes[f"low_rank.{projection}.up"] = (metadata["num_layers"], outputs, rank)
    return shapes


def current(metadata: Mapping) -> dict:
    """What a file of an earlier format says, as one of FORMAT_VERSION says it; all other metadata as they are.

    Keys that were let through then go to `notes`.
    """
    if metadata.get("format_version") not in READABLE[:-1]:
        return dict(metadata)
    since: dict[str, object] = {"low_rank": {}, "intermediate_size": None}
    return {**since, **known_alone(metadata, HEAD), "format_version": FORMAT_VERSION}


def check_metadata(metadata: Mapping, where: str) -> None:
    """Raise ValueError, naming `where`, if metadata is incomplete, of another format version, or is not legal."""
    version = metadata.get("format_version")
    if type(version) is not int or version not in READABLE:
        raise ValueError(
            f"{where} has head format version {version!r}; this library reads version "
            f"{', '.join(map(str, READABLE))}. Update the library, or write the head again with this one."
        )
    check_schema(metadata, HEAD, where, version, strict=version == FORMAT_VERSION)
    try:
        check_low_rank(metadata)
        spec_of(metadata)
        for parent in metadata["extends"]:
            HeadSpec(parent["name"], num_labels=1)
        check_known(metadata)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where} has a damaged header: {error}") from None


def check_schema(metadata: Mapping, schema: Schema, where: str, version: int, strict: bool) -> None:
    """Raise ValueError, naming `where`, for keys that are missing or of other types and, if `strict`, unknown ones."""
    missing = list(lacking(metadata, schema, version))
    if missing:
        raise ValueError(f"{where} is not complete: its metadata lacks {', '.join(dict.fromkeys(missing))}.")
    wrong = list(faults(metadata, schema))
    if wrong:
        raise ValueError(f"{where} has a damaged header: {', '.join(wrong)}.")
    if strict:
        check_known_keys(metadata, schema, where)


def check_known_keys(metadata: Mapping, schema: Schema, where: str) -> None:
    """Raise ValueError, naming `where`, for keys that the schema does not have: what nobody reads is not meant."""
    strange = list(dict.fromkeys(unknown(metadata, schema)))
    if strange:
        siblings: dict[str, list[str]] = {}
        for name in names(schema):
            within, _, last = name.rpartition(".")
            siblings.setdefault(within, []).append(last)
        parts = [(key, *key.rpartition(".")[::2]) for key in strange]
        hinted = ", ".join(key + did_you_mean(last, siblings.get(within, [])) for key, within, last in parts)
        raise ValueError(
            f"{where} has keys that this library does not know: {hinted}. A newer one may know them; keys of your own "
            "belong under `notes`."
        )


def check_low_rank(metadata: Mapping) -> None:
    """Raise ValueError unless ranks are as `describe` writes them, and the sizes are there that they need."""
    ranks, size = metadata.get("low_rank", {}), metadata.get("intermediate_size")
    if ranks_of(ranks) != ranks:
        raise ValueError(f"low_rank is {ranks!r}, which is no rank of at least 1 for each of its projections.")
    if ranks and (size is None or size < 1):
        raise ValueError(f"intermediate_size is {size!r}, and low-rank weights need it.")


def check_known(metadata: Mapping) -> None:
    """Raise ValueError for what files of others could say wrongly, and tools here rely on, beyond the schema."""
    labels, classes = metadata.get("labels"), metadata["num_labels"]
    if labels is not None and len(labels) != classes:
        raise ValueError(f"labels have to be a list of {classes} names, one for each class.")
    precision = metadata.get("training", {}).get("precision", "float32")
    if not isinstance(precision, str):
        raise ValueError(f"training.precision is {precision!r}.")
    splits = metadata.get("dataset", {}).get("splits", {})
    if splits and "hash" not in splits.get("eval", {}):
        raise ValueError("dataset.splits does not say which images eval had.")


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


def check_base(
    metadata: Mapping, fingerprint: str, hidden_size: int, num_layers: int, intermediate_size: int, where: str
) -> None:
    """Raise ValueError, saying which differ, unless the head belongs to the base with this fingerprint and shape."""
    base = metadata["base"]
    pairs = [
        ("width", metadata["hidden_size"], hidden_size),
        ("number of layers", metadata["num_layers"], num_layers),
        *([("width of the MLP", metadata["intermediate_size"], intermediate_size)] if metadata.get("low_rank") else []),
        ("base fingerprint", base["fingerprint"], fingerprint),
    ]
    differing = [f"{what} {theirs} in the file, {ours} in the model" for what, theirs, ours in pairs if theirs != ours]
    if differing:
        raise ValueError(
            f"{where} was trained on another base ({base.get('id') or 'unnamed'}): {'; '.join(differing)}. "
            "Load the base that it was trained on, or train the head again on this one."
        )
