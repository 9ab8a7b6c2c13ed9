"""Where the class token of a head looks: at which patches, and how much at its memory, layer by layer.

    outputs = model(pixel_values, output_attentions=True)
    looks = attention_of("Digits", outputs["Digits"].attentions, columns_of(model, "Digits"))    # one for each image
    looks[0].maps[-1], looks[0].share("memory")[-1]                                              # in the last layer

H attention heads, L layers, P patches in rows x columns; what `attentions` holds is in `MemoryCapableViT.forward`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from vit import MemoryCapableViT

# What a class token can look at; the order of `HeadAttention.shares`.
PARTS = ("memory", "inherited", "own class token", "special tokens", "patches")

MOST_ROWS = 200  # of a picture, which cannot be higher than 65,535 pixels


def check_rows(images: int, heads: int) -> None:
    """Raise ValueError if so many images, a row for each head, are no picture; to be asked before the work is done."""
    if not 0 < images * heads <= MOST_ROWS:
        raise ValueError(
            f"{images} images and {heads} heads are {images * heads} rows, but the picture can have 1 to {MOST_ROWS}: "
            "name fewer."
        )


class Columns(NamedTuple):
    """How many tokens of each kind a class token sees, in the order in which the model lists their weights.

    Attributes:
        special: the base's special tokens, its class token first; none of a base such as SigLIP.
        grid: (rows, columns) of patches.
        inherited_classes: class tokens of the heads that this one is built on.
        own_class: 1; 0 where the base's class token itself looks, for a linear probe and for the base.
        inherited_memory: memory tokens, in each layer, of the heads that this one is built on.
        memory: its own memory tokens in each layer.
    """

    special: int
    grid: tuple[int, int]
    inherited_classes: int = 0
    own_class: int = 1
    inherited_memory: int = 0
    memory: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many columns each kind has, in their order."""
        rows, columns = self.grid
        classes = self.inherited_classes, self.own_class
        return self.special, rows * columns, *classes, self.inherited_memory, self.memory


@dataclass(frozen=True)
class HeadAttention:
    """The attention of one class token in one image, the mean over the attention heads of each layer.

    Attributes:
        maps: float32 [L, rows, columns], the weight of each patch; a layer's sum is its share of the patches.
        shares: float32 [L, 5], the weight of each of PARTS; a layer's sum is 1. "inherited" are class tokens and memory
            of the heads that this one is built on; a linear probe's class token is the base's, a special token.
    """

    maps: np.ndarray
    shares: np.ndarray

    def share(self, part: str) -> np.ndarray:
        """The weight of one of PARTS in each layer: float32 [L]."""
        return self.shares[:, PARTS.index(part)]


def columns_of(model: "MemoryCapableViT", name: str) -> Columns:
    """What head `name` of a MemoryCapableViT sees in images of the model's present size; `"base"` is legal.

    Raises ValueError for a linear probe, or the base, where the base has no class token.
    """
    seen = Columns(model.anatomy.special, model.patch_grid, own_class=0)
    if name == "base" or not model.heads[name].spec.class_token:
        if not model.anatomy.has_class_token(model.encoder_module):
            raise ValueError(
                f"{name} reads an average of the tokens of a {type(model.encoder_module).__name__}, which has no class "
                "token: there is nothing that looks at the image."
            )
        return seen
    *ancestors, own = (model.heads[member].spec for member in model.with_ancestors([name]))
    inherited_memory = sum(spec.memory_tokens for spec in ancestors)
    return seen._replace(
        inherited_classes=len(ancestors), own_class=1, inherited_memory=inherited_memory, memory=own.memory_tokens
    )


def attention_of(name: str, attentions: Sequence[Tensor], columns: Columns) -> list[HeadAttention]:
    """What the model gave for a head with `output_attentions=True`, put together for each of the B images.

    Args:
        name: the head's, for errors.
        attentions: of each layer [B, H, 1, columns], the row of the class token; any floating dtype and device.
        columns: from `columns_of`, while the model had the size of these images.

    Raises:
        ValueError: there are other columns than these.
    """
    found, expected = attentions[0].shape[-1], sum(columns.sizes)
    if found != expected:
        raise ValueError(
            f"The attention of {name} is over {found} tokens, but {columns} are {expected}: ask columns_of while the "
            "model has the size of these images."
        )
    of_layers = [layer.detach()[:, :, 0].float().mean(dim=1) for layer in attentions]  # L of [B, columns]
    weights = torch.stack(of_layers, dim=1).cpu()  # [B, L, columns]
    parts = weights.split(columns.sizes, dim=-1)
    special, patches, classes, own, cells, memory = (part.sum(dim=-1) for part in parts)  # [B, L]
    shares = torch.stack([memory, classes + cells, own, special, patches], dim=-1).numpy()  # [B, L, 5], as PARTS
    maps = parts[1].unflatten(-1, columns.grid).numpy()  # [B, L, rows, columns]
    return [HeadAttention(*of_image) for of_image in zip(maps, shares, strict=True)]
