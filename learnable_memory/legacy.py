"""Head files of the 2023 implementation: `{dataset}_model.pt`, the whole state dict of a base with k heads on it.

Head i = 1..k has the class token `cls_tokens.i` (`cls_tokens.0` is the base's), the classifier `classifiers.i`, and in
each layer `memory_tokens.{i - 1}` [1, m_i, D], which joins the keys and values after the layer norm. Tokens stand in
the order patches, base class token, class tokens of the heads, and the memory of all heads after them among the keys;
all class tokens get the position embedding of the base's. A buffer in each layer says who sees whom.

These files name nothing: neither the data set nor its classes, neither the base nor its number of attention heads. This
module reads tensors only, and knows no model.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learnable_memory import pickles
from learnable_memory.ancestry import with_ancestors
from learnable_memory.wording import some

BASE_ID = "google/vit-base-patch32-224-in21k"  # what its training command line knew
EMBEDDINGS = "vit.embeddings."
LAYER = "vit.encoder.layer.{}."
ATTENTION = "attention.attention."
CLASS_TOKEN = r"vit\.embeddings\.cls_tokens\.(\d+)"
IGNORED = re.compile(r"vit\.(embeddings\.mask_token|pooler\.dense\.(weight|bias))")  # no answer depends on them
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # float32 holds all their values

# Our name of each module of a layer -> its name there, and the shape of its weight (D width, F width of the MLP).
LAYER_MODULES = {
    "attention_norm": ("layernorm_before", "D"),
    "query": ("attention.attention.query", "DD"),
    "key": ("attention.attention.key", "DD"),
    "value": ("attention.attention.value", "DD"),
    "output": ("attention.output.dense", "DD"),
    "mlp_norm": ("layernorm_after", "D"),
    "mlp_in": ("intermediate.dense", "FD"),
    "mlp_out": ("output.dense", "DF"),
}


@dataclass(frozen=True)
class OldHead:
    """One head of an old file.

    Attributes:
        name: given, or made from the file's.
        tensors: float32, under the names of a head file: class_token [D], memory [L, m, D] (absent when m = 0),
            classifier.weight [C, D], classifier.bias [C].
        extends: names of the heads that it was built on, without those that they were built on.
    """

    name: str
    tensors: dict[str, Tensor]
    extends: tuple[str, ...]


@dataclass(frozen=True)
class OldFile:
    """What an old file holds.

    Attributes:
        heads: those that are extended before those that extend them, as in the file.
        base: the encoder's tensors, float32, under the names of `vit.base_tensors`: their `heads.content_hash` is the
            fingerprint of the base.
        base_id: what that implementation trained on, if the sizes are those; None for any other base.
        image_size: (height, width) in pixels.
    """

    heads: tuple[OldHead, ...]
    base: dict[str, Tensor]
    base_id: str | None
    image_size: tuple[int, int]


def read(path: Path, names: Sequence[str] | None = None) -> OldFile:
    """Take the heads out of an old file, and the base beside them.

    Who extends whom is read off the attention masks. Files from before these were saved have none; several heads in
    one are a chain, each extending all before it.

    Args:
        names: one for each head. Left out: `{dataset}_model.pt` makes `dataset`; of several heads that is the last,
            and those before are `dataset-1`, `dataset-2`, ...

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds more than tensors, is a base or another model; a tensor is missing, unexpected,
            of another shape or dtype, or not finite; a mask is none that this method has; names do not fit. The
            message says which.
    """
    state = _state_dict(path)
    sizes = _sizes(path, state)
    _check_tensors(path, state, sizes)
    parents = _parents(path, state, sizes)
    found = _names(path, names, len(parents))
    heads = [
        OldHead(found[i - 1], _head_tensors(state, i, sizes.layers), tuple(found[j - 1] for j in parents[i - 1]))
        for i in range(1, len(parents) + 1)
    ]
    base = {ours: _float32(state[theirs]) for ours, theirs in _base_names(sizes.layers).items()}
    published = (sizes.width, sizes.layers, sizes.patch[1:], sizes.positions) == (768, 12, (32, 32), 50)
    return OldFile(tuple(heads), base, BASE_ID if published else None, sizes.image_size)


def preprocessing(image_size: tuple[int, int]) -> dict[str, Any]:
    """How that implementation evaluated, as `Preprocessing.to_dict` has it; it is called `legacy-2023`.

    The whole image is stretched to `image_size` (height, width), bilinear; values in [0, 1] and not normalised.
    """
    height, width = image_size
    return {
        "height": height, "width": width, "resize": [height, width], "resample": "bilinear", "rescale": 1 / 255,
        "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
    }  # fmt: skip


@dataclass(frozen=True)
class _Sizes:
    """What decides all shapes in a file.

    Attributes:
        width: D.
        layers: L.
        mlp_width: F.
        positions: P + 1.
        patch: (channels, height, width).
        memory_tokens: m of each head.
        classes: C of each head.
        base_classes: of the base's own classifier; None without one.
    """

    width: int
    layers: int
    mlp_width: int
    positions: int
    patch: tuple[int, ...]
    memory_tokens: tuple[int, ...]
    classes: tuple[int, ...]
    base_classes: int | None

    @property
    def image_size(self) -> tuple[int, int]:
        side = math.isqrt(self.positions - 1)
        return side * self.patch[1], side * self.patch[2]


def _state_dict(path: Path) -> dict[str, Tensor]:
    """What counts in the file."""
    checkpoint = pickles.read(path)
    for name, value in checkpoint.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} is no head file of the 2023 implementation: {name!r} is a {type(value).__name__}, and such a "
                "file has tensors by name, nothing else"
            )
    state = {name: value for name, value in checkpoint.items() if not IGNORED.fullmatch(name)}
    if f"{EMBEDDINGS}cls_tokens.0" not in state:
        if any(name.endswith("cls_token") for name in state):
            raise ValueError(f"{path} is a base, not a head: load it as the model, and take a file with a head on it")
        raise ValueError(f"{path} is no head file of the 2023 implementation: it has no {EMBEDDINGS}cls_tokens.0")
    if _count(CLASS_TOKEN, state) == 1:
        raise ValueError(f"{path} has no head: its only class token is that of the base")
    return state


def _sizes(path: Path, state: Mapping[str, Tensor]) -> _Sizes:
    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(f"{path} is no whole head file of the 2023 implementation: it has no {name}")
        found = tuple(state[name].shape)
        if len(found) != dimensions:
            raise ValueError(f"{path}: {name} has the shape {found}, which must have {dimensions} dimensions")
        return found

    heads = range(1, _count(CLASS_TOKEN, state))
    memory = LAYER.format(0) + ATTENTION + "memory_tokens.{}"
    has_base_classifier = any(name.startswith("classifiers.0.") for name in state)
    sizes = _Sizes(
        width=shape(f"{EMBEDDINGS}cls_tokens.0", 3)[-1],
        layers=_count(r"vit\.encoder\.layer\.(\d+)\..+", state),
        mlp_width=shape(LAYER.format(0) + "intermediate.dense.weight", 2)[0],
        positions=shape(f"{EMBEDDINGS}position_embeddings", 3)[1],
        patch=shape(f"{EMBEDDINGS}patch_embeddings.projection.weight", 4)[1:],
        memory_tokens=tuple(shape(memory.format(i - 1), 3)[1] for i in heads),
        classes=tuple(shape(f"classifiers.{i}.bias", 1)[0] for i in heads),
        base_classes=shape("classifiers.0.bias", 1)[0] if has_base_classifier else None,
    )
    patches = sizes.positions - 1
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise ValueError(f"{path} has positions for {patches} patches, which make no square image")
    return sizes


def _count(pattern: str, state: Mapping[str, Tensor]) -> int:
    """How many different numbers stand in the names of this form."""
    return len({match[1] for match in (re.fullmatch(pattern, name) for name in state) if match})


def _base_names(layers: int) -> dict[str, str]:
    """The base's tensors: our name -> that in the file."""
    modules = {"patches": f"{EMBEDDINGS}patch_embeddings.projection", "norm": "vit.layernorm"}
    for layer in range(layers):
        modules |= {f"layers.{layer}.{ours}": LAYER.format(layer) + old for ours, (old, _) in LAYER_MODULES.items()}
    names = {f"{ours}.{leaf}": f"{old}.{leaf}" for ours, old in modules.items() for leaf in ("weight", "bias")}
    return names | {"class_token": f"{EMBEDDINGS}cls_tokens.0", "positions": f"{EMBEDDINGS}position_embeddings"}


def _expected_shapes(sizes: _Sizes, with_masks: bool) -> dict[str, tuple[int, ...]]:
    """Name in the file -> shape."""
    width, tokens = sizes.width, sizes.positions + len(sizes.classes)
    weights: dict[str, tuple[int, ...]] = {
        f"{EMBEDDINGS}patch_embeddings.projection": (width, *sizes.patch),
        "vit.layernorm": (width,),
    }
    letters = {"D": width, "F": sizes.mlp_width}
    shapes: dict[str, tuple[int, ...]] = {f"{EMBEDDINGS}position_embeddings": (1, sizes.positions, width)}
    shapes |= {f"{EMBEDDINGS}cls_tokens.{i}": (1, 1, width) for i in range(len(sizes.classes) + 1)}
    for layer in map(LAYER.format, range(sizes.layers)):
        weights |= {layer + old: tuple(letters[size] for size in shape) for old, shape in LAYER_MODULES.values()}
        for i, memory_tokens in enumerate(sizes.memory_tokens):
            shapes[f"{layer}{ATTENTION}memory_tokens.{i}"] = (1, memory_tokens, width)
        if with_masks:
            shapes[f"{layer}{ATTENTION}attention_mask"] = (1, tokens, tokens + sum(sizes.memory_tokens))
    with_base = sizes.base_classes is not None
    counts = sizes.classes if sizes.base_classes is None else (sizes.base_classes, *sizes.classes)
    for i, classes in enumerate(counts, start=0 if with_base else 1):
        weights[f"classifiers.{i}"] = (classes, width)
    shapes |= {f"{name}.weight": shape for name, shape in weights.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in weights.items()}


def _check_tensors(path: Path, state: Mapping[str, Tensor], sizes: _Sizes) -> None:
    wanted = _expected_shapes(sizes, with_masks=any(name.endswith("attention_mask") for name in state))
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} (found {found[name]}, expected {shape})"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {some(names, 3)}" for what, names in wrong.items() if names)
        raise ValueError(f"{path} is no whole head file of the 2023 implementation; {listed}")
    strange = [f"{name} is {tensor.dtype}" for name, tensor in state.items() if tensor.dtype not in DTYPES]
    if strange:
        legal = ", ".join(map(str, DTYPES))
        raise ValueError(f"{path} has values that float32 may not hold: {some(strange, 3)}; legal: {legal}")
    values = {name: tensor for name, tensor in state.items() if not name.endswith("attention_mask")}
    diverged = [name for name, tensor in values.items() if not tensor.isfinite().all()]
    if diverged:
        raise ValueError(f"{path} has values that are not finite in {some(diverged, 3)}: its training has diverged")


def _parents(path: Path, state: Mapping[str, Tensor], sizes: _Sizes) -> list[list[int]]:
    """For heads 1, 2, ..., the heads that each extends; without those that these extend."""
    names = [f"{LAYER.format(layer)}{ATTENTION}attention_mask" for layer in range(sizes.layers)]
    numbers = range(1, len(sizes.classes) + 1)
    if names[0] not in state:
        return [[i - 1] if i > 1 else [] for i in numbers]
    masks = [state[name] for name in names]
    first = sizes.positions - 1  # class token i is token first + i
    direct = {i: [j for j in range(1, i) if masks[0][0, first + i, first + j] == 0] for i in numbers}
    seen = {i: set(with_ancestors([i], direct.__getitem__)) - {i} for i in numbers}
    # Whatever is not legal in the first layer, and whatever differs in the others, differs from this mask.
    legal, owners = _mask(seen, sizes)
    for layer, mask in enumerate(masks):
        differing = (mask[0] != legal).nonzero()
        if len(differing):
            query, key = differing[0].tolist()
            described = [_token(column, owners[column], sizes) for column in (query, key)]
            raise ValueError(
                f"{path} has an attention mask that neither concatenation nor extension makes: layer {layer} has "
                f"{mask[0, query, key]:g} where {described[0]} asks {described[1]}, expected {legal[query, key]:g}"
            )
    return [sorted(j for j in seen[i] if not any(j in seen[other] for other in seen[i])) for i in numbers]


def _mask(seen: Mapping[int, set[int]], sizes: _Sizes) -> tuple[Tensor, list[int]]:
    """The mask of this graph, 0 or -inf, [P + 1 + k, P + 1 + k + M]; and of each column the head, 0 being the base."""
    owners = [0] * sizes.positions + list(seen)
    queries = len(owners)
    owners += [i for i, memory_tokens in enumerate(sizes.memory_tokens, start=1) for _ in range(memory_tokens)]
    sees = torch.full((len(seen) + 1, len(seen) + 1), -math.inf)
    sees[:, 0] = 0
    for i, others in seen.items():
        sees[i, [i, *others]] = 0
    return sees[owners[:queries]][:, owners], owners


def _token(column: int, owner: int, sizes: _Sizes) -> str:
    if not owner:
        return f"patch {column}" if column < sizes.positions - 1 else "the base's class token"
    return f"{'class token' if column < sizes.positions + len(sizes.classes) else 'the memory of head'} {owner}"


def _head_tensors(state: Mapping[str, Tensor], head: int, layers: int) -> dict[str, Tensor]:
    memory = [state[f"{LAYER.format(layer)}{ATTENTION}memory_tokens.{head - 1}"] for layer in range(layers)]
    tensors = {"class_token": _float32(state[f"{EMBEDDINGS}cls_tokens.{head}"][0, 0])}  # [D]
    if memory[0].numel():
        tensors["memory"] = _float32(torch.cat(memory))  # [L, m, D]
    return tensors | {
        f"classifier.{leaf}": _float32(state[f"classifiers.{head}.{leaf}"]) for leaf in ("weight", "bias")
    }


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32).contiguous()


def _names(path: Path, given: Sequence[str] | None, count: int) -> list[str]:
    if given is not None:
        if isinstance(given, str) or len(given) != count or len(set(given)) != count:
            raise ValueError(f"{path} needs {count} different names, one for each head; got {given!r}")
        return list(given)
    last = path.stem.removesuffix("_model")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]*", last):
        raise ValueError(
            f"The heads in {path} cannot be called {last!r} after their file: give names (letters, digits, '_', '+' "
            "and '-'), one for each head"
        )
    return [*(f"{last}-{i}" for i in range(1, count)), last]
