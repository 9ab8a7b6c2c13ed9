"""What a base of any family becomes: configuration and tensors of a plain pre-norm ViT, checked for completeness."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learnable_memory import wording
from learnable_memory.transforms import Preprocessing

if TYPE_CHECKING:
    from transformers import ViTConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PlainViT:
    """A base as a plain ViT: what MemoryCapableViT is made of.

    Attributes:
        config: the architecture. num_labels is C, or 0 without a classifier. `config.base_layout` holds what differs
            from the stock ViT outside of its layers: "extra_tokens" n, "readout", "interpolation" (see `plain_vit`).
        tensors: float32, under the names of ViTForImageClassification, and `vit.embeddings.extra_tokens` [1, n, D] if
            n > 0: special tokens between class token and patches, their positions added already.
        family: what it was, for people: "DINOv2 with registers".
        preprocessing: what is usual in the family, for files that do not say.
    """

    config: "ViTConfig"
    tensors: dict[str, Tensor]
    family: str
    preprocessing: Preprocessing


def plain_vit(
    source: Path | str, family: str, tensors: Mapping[str, Tensor], *, readout: str, interpolation: str,
    num_attention_heads: int, layer_norm_eps: float, hidden_act: str, image_size: tuple[int, int] | None = None,
    id2label: Mapping[int, str] | None = None, preprocessing: Callable[[int, int], Preprocessing],
) -> PlainViT:  # fmt: skip
    """Put a `PlainViT` together; shapes tell the rest of its configuration.

    Args:
        source: where the tensors come from, for messages.
        tensors: copied; the names are those of ViTForImageClassification without `vit.`, and `embeddings.extra_tokens`.
            `embeddings.position_embeddings` [1, 1 + P, D] are those of class token and patches alone.
        readout: what `classifier.weight` reads after the final norm: "class", the class token [D]; "class+extra", with
            it the first extra token [2D]; "class+mean", with it the mean of the patch tokens [2D].
        interpolation: how the family resizes positions: one of `vit.INTERPOLATIONS`.
        image_size: (height, width); left out: as many patches in each row as there are rows.
        id2label: the names of the classes, where they are known.
        preprocessing: (height, width) of the images in pixels -> what is usual in the family.

    Raises:
        ValueError: a tensor is missing, unexpected, or of another shape; the images are not RGB.
    """
    from transformers import ViTConfig

    owned = {name: tensor.detach().to(torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}
    owned = {name if name.startswith("classifier.") else f"vit.{name}": tensor for name, tensor in owned.items()}
    extra = owned.get("vit.embeddings.extra_tokens")
    count = 0 if extra is None else extra.shape[1]
    layout = {"extra_tokens": count, "readout": readout, "interpolation": interpolation}
    architecture = _architecture(source, owned)
    height, width = image_size or _square_image(source, owned, architecture["patch_size"])
    classes = len(owned["classifier.weight"]) if "classifier.weight" in owned else 0
    names: dict[str, Any] = {"num_labels": classes}
    if classes and id2label and len(id2label) == classes:
        names = {"id2label": dict(id2label), "label2id": {label: index for index, label in id2label.items()}}
    config = ViTConfig(
        num_attention_heads=num_attention_heads, layer_norm_eps=layer_norm_eps, hidden_act=hidden_act,
        image_size=height if height == width else [height, width], base_layout=layout, **architecture, **names,
    )  # fmt: skip
    _check(source, family, config, owned)
    return PlainViT(config, owned, family, preprocessing(height, width))


def fold_scale(tensors: dict[str, Tensor], linear: str, scale: Tensor) -> None:
    """Replace a linear layer followed by a scale [D] of its output: s (W x + b) = (diag(s) W) x + (s b)."""
    tensors[f"{linear}.weight"] = scale[:, None] * tensors[f"{linear}.weight"]
    tensors[f"{linear}.bias"] = scale * tensors[f"{linear}.bias"]


def place_extra_tokens(tensors: dict[str, Tensor], extra: Tensor, positions: Tensor) -> None:
    """Set extra tokens [1, n, D] and positions, given those of all tokens [1, 1 + n + P, D]."""
    end = 1 + extra.shape[1]
    tensors["embeddings.extra_tokens"] = extra + positions[:, 1:end]
    tensors["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, end:]], dim=1)


def mean_of_classifiers(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """DeiT's answer, the mean of two classifiers (weight [C, D], bias [C]), as one [C, 2D] on both tokens."""
    weight, bias = (torch.stack([a, b]) / 2 for a, b in zip(one, two, strict=True))
    return {"classifier.weight": torch.cat([*weight], dim=1), "classifier.bias": bias.sum(0)}


def imagenet_preprocessing(height: int, width: int, resample: str = "bicubic") -> Preprocessing:
    """The usual evaluation on ImageNet: resized to 8/7 of the size (256 for 224), the centre cut out."""
    resize = (round(height * 8 / 7),) if height == width else (round(height * 8 / 7), round(width * 8 / 7))
    return Preprocessing(height, width, resample, 1 / 255, IMAGENET_MEAN, IMAGENET_STD, resize)


def dinov2_preprocessing(height: int, width: int) -> Preprocessing:
    """DINOv2 ends its training on 518 pixels, where its positions are from, and is evaluated on 224."""
    return imagenet_preprocessing(min(height, 224), min(width, 224))


def some(names: set[str]) -> str:
    """Names of tensors for an error message."""
    return wording.some(sorted(names), 4) or "nothing"


def _architecture(source: Path | str, tensors: dict[str, Tensor]) -> dict[str, object]:
    """What shapes tell of a ViTConfig."""
    needed = ["vit.embeddings.cls_token", "vit.embeddings.position_embeddings", "vit.layers.0.mlp.fc1.weight"]
    needed += ["vit.embeddings.patch_embeddings.projection.weight"]
    absent = {name for name in needed if name not in tensors}
    if absent:
        raise ValueError(f"{source} is no whole ViT checkpoint; missing: {some(absent)}")
    projection = tensors["vit.embeddings.patch_embeddings.projection.weight"]  # [D, 3, p, p]
    if projection.ndim != 4 or projection.shape[1] != 3:
        raise ValueError(
            f"{source} embeds patches by weights of shape {list(projection.shape)}, but images are RGB: [D, 3, p, p]"
        )
    patch_height, patch_width = projection.shape[2:]
    layers = {int(found[1]) for name in tensors if (found := re.match(r"vit\.layers\.(\d+)\.", name))}
    return {
        "hidden_size": projection.shape[0],
        "patch_size": patch_height if patch_height == patch_width else [patch_height, patch_width],
        "num_hidden_layers": max(layers) + 1,
        "intermediate_size": tensors["vit.layers.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "vit.layers.0.attention.q_proj.bias" in tensors,
    }


def _square_image(source: Path | str, tensors: dict[str, Tensor], patch_size: object) -> tuple[int, int]:
    patches = tensors["vit.embeddings.position_embeddings"].shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches or not isinstance(patch_size, int):
        raise ValueError(
            f"{source} has positions for {patches} patches of size {patch_size}, which make no square image: "
            "only those of square images can be read from a file that does not give their size"
        )
    return side * patch_size, side * patch_size


def _check(source: Path | str, family: str, config: "ViTConfig", tensors: dict[str, Tensor]) -> None:
    """Names and shapes must be those of the plain ViT, none missing and none too many."""
    from transformers import ViTForImageClassification

    with torch.device("meta"):  # shapes only
        stock = ViTForImageClassification(config).state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in stock.items()}
    layout, width = config.base_layout, config.hidden_size
    if layout["extra_tokens"]:
        wanted["vit.embeddings.extra_tokens"] = (1, layout["extra_tokens"], width)
    if config.num_labels and layout["readout"] != "class":
        wanted["classifier.weight"] = (config.num_labels, 2 * width)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    other_shape = {name for name in wanted.keys() & shapes.keys() if wanted[name] != shapes[name]}
    if wanted != shapes:
        raise ValueError(
            f"{source} is no whole {family} checkpoint; missing: {some(wanted.keys() - shapes.keys())}; "
            f"unexpected: {some(shapes.keys() - wanted.keys())}; of another shape: {some(other_shape)}"
        )
