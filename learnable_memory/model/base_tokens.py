"""What heads need of the base for a batch of images: kept, it stands in the place of their pixels.

    tokens = model.base_tokens(pixel_values)
    model(tokens, with_base=False)                        # as of the pixels, without the base stream

B images, N base tokens, D width, H attention heads, d = D / H, L layers, T class tokens, R what the base's own
classifier reads.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from learnable_memory.model.families import LayerParts


class KeysAndValues(NamedTuple):
    """The base's tokens in one layer, as class tokens ask them: keys and values [B, H, N, d].

    `bias` [1, H, 1, N] is what the base adds to the scores of its own class token (BEiT), if it adds anything.
    """

    key: Tensor
    value: Tensor
    bias: Tensor | None = None

    def scores(self, query: Tensor) -> Tensor:
        """[B, H, T, d] -> [B, H, T, N]"""
        scores = query @ self.key.transpose(-1, -2)
        return scores if self.bias is None else scores + self.bias

    def mix(self, weights: Tensor) -> Tensor:
        """[B, H, T, N] -> [B, H, T, d]"""
        return weights @ self.value


class NormedTokens(NamedTuple):
    """The same from the tokens after the layer norm alone, [B, N, D]: half of what keys and values take.

    With k_j = W_k x_j + b_k, the score q k_j is (W_k^T q) x_j + q b_k: the query is taken through the projection, once
    for each class token, instead of every base token. Likewise the weights are applied to x_j, and W_v to the sum.
    """

    tokens: Tensor
    parts: LayerParts
    bias: Tensor | None = None

    def _by_head(self, projection: nn.Module) -> tuple[Tensor, Tensor]:
        """Weight [H, d, D] and bias [H, 1, d]."""
        heads = (-1, self.parts.attention.head_dim)
        weight: Tensor = projection.weight  # type: ignore[assignment]
        bias = weight.new_zeros(len(weight)) if projection.bias is None else projection.bias
        return weight.unflatten(0, heads), bias.unflatten(0, heads)[:, None]  # type: ignore[operator]

    def scores(self, query: Tensor) -> Tensor:
        """[B, H, T, d] -> [B, H, T, N]"""
        weight, bias = self._by_head(self.parts.key)
        absorbed = (query.transpose(0, 1).flatten(1, 2) @ weight).unflatten(1, (len(query), -1))  # [H, B, T, D]
        scores = absorbed.transpose(0, 1).flatten(1, 2) @ self.tokens.transpose(-1, -2)  # [B, H T, N]
        scores = scores.unflatten(1, (query.shape[1], -1)) + (query * bias).sum(-1, keepdim=True)
        return scores if self.bias is None else scores + self.bias

    def mix(self, weights: Tensor) -> Tensor:
        """[B, H, T, N] -> [B, H, T, d]"""
        weight, bias = self._by_head(self.parts.value)
        mixed = (weights.flatten(1, 2) @ self.tokens).unflatten(1, weights.shape[1:3])  # [B, H, T, D]
        values = mixed.transpose(0, 1).flatten(1, 2) @ weight.transpose(-1, -2)  # [H, B T, d]
        # The weights of the base's tokens do not sum to one: the rest goes to the memory.
        return values.unflatten(1, (len(weights), -1)).transpose(0, 1) + weights.sum(-1, keepdim=True) * bias


Seen = KeysAndValues | NormedTokens


@dataclass(frozen=True)
class BaseTokens:
    """What heads need of the base for B images. It does not depend on any head, so it can be computed once.

    Attributes:
        layers: keys and values [L, 2, B, H, N, d], or tokens after each layer's first norm [L, B, N, D]; any floating
            dtype.
        output: [B, R], what a linear probe reads.
    """

    layers: Tensor
    output: Tensor

    def __len__(self) -> int:
        return len(self.output)

    def to(self, *args: Any, **kwargs: Any) -> "BaseTokens":
        """As `torch.Tensor.to`."""
        return BaseTokens(self.layers.to(*args, **kwargs), self.output.to(*args, **kwargs))

    def stream(
        self, parts: Iterable[LayerParts], biases: Sequence[Tensor | None], dtype: torch.dtype
    ) -> Iterator[Seen]:
        """What class tokens ask, layer by layer, in the base's dtype."""
        for kept, layer, bias in zip(self.layers, parts, biases, strict=True):
            kept = kept.to(dtype)
            yield NormedTokens(kept, layer, bias) if kept.ndim == 3 else KeysAndValues(kept[0], kept[1], bias)
