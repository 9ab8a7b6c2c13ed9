"""Which memory and which other class tokens each class token of a pass sees."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learnable_memory.ancestry import with_ancestors
from learnable_memory.heads import HeadSpec


def ancestors_of(parents: Sequence[Iterable[int]]) -> list[list[int]]:
    """For each head the heads that it extends and those that they extend, sorted (transitive closure).

    Raises ValueError if an index is no head or the graph has a cycle.
    """
    for head, extended in enumerate(parents):
        for parent in extended:
            if not 0 <= parent < len(parents):
                raise ValueError(f"Head {head} extends {parent}, but the heads are 0 to {len(parents) - 1}.")
    return [sorted(with_ancestors([head], parents.__getitem__)[:-1]) for head in range(len(parents))]


class TaskGraph:
    """Which memory and which other class tokens each class token sees.

    Memory is listed for each head and padded to the longest list, so work grows with the number of heads times what one
    head sees, never with heads times all memories.
    """

    def __init__(self, specs: Sequence[HeadSpec], device: torch.device) -> None:
        """`specs` of all T heads of a pass, each after those that it extends."""
        names, memory_tokens = [spec.name for spec in specs], [spec.memory_tokens for spec in specs]
        ancestors = ancestors_of([[names.index(parent) for parent in spec.extends] for spec in specs])
        ends = [sum(memory_tokens[: i + 1]) for i in range(len(memory_tokens))]
        own = [list(range(end - m, end)) for end, m in zip(ends, memory_tokens, strict=True)]
        # Padded with a row of zeros behind all memory: another head's could be infinite, and 0 * inf is not 0.
        self.memory = _padded(own, ends[-1] if ends else 0, device)  # [T, m_max], into the M memory tokens
        self.class_mask = None  # [T, T], 0 where a class token inherits another, -inf elsewhere; None without edges
        if any(ancestors):
            self.class_mask = torch.full((len(specs), len(specs)), float("-inf"), device=device)
            for i, row in enumerate(ancestors):
                self.class_mask[i, row] = 0
        inherited = [[cell for j in row for cell in own[j]] for row in ancestors]
        self.inherited_memory = _padded(inherited, ends[-1] if ends else 0, device)
        normed = [spec.memory_norm for spec in specs for _ in range(spec.memory_tokens)]
        self.normed = torch.tensor(normed, dtype=torch.bool, device=device)  # [M], memory that takes the layer norm
        self.all_normed, self.any_normed = all(normed), any(normed)

    def visible(self, weights: Tensor, head: int) -> Tensor:
        """What one head sees of `attend`'s weights: [B, H, T, columns] -> [B, H, 1, its columns]."""
        own = self.memory.mask.new_zeros(1)
        classes = own[:0] if self.class_mask is None else self.class_mask[head]
        added = torch.cat([classes, own, self.inherited_memory.mask[head], self.memory.mask[head]])
        base = own.expand(weights.shape[-1] - len(added))  # always seen
        return weights[:, :, head : head + 1, torch.cat([base, added]) == 0]


class Padded(NamedTuple):
    """Rows of different lengths as a rectangle: `index` int64 and `mask` float32 (0, or -inf for padding), [T, x]."""

    index: Tensor  # type: ignore[assignment]  # a tuple has a method of this name
    mask: Tensor


def _padded(rows: Sequence[Sequence[int]], padding: int, device: torch.device) -> Padded:
    longest = max(map(len, rows), default=0)
    index = [list(row) + [padding] * (longest - len(row)) for row in rows]
    mask = [[0.0] * len(row) + [float("-inf")] * (longest - len(row)) for row in rows]
    shape = (len(rows), longest)  # also where a side is 0
    return Padded(
        torch.tensor(index, dtype=torch.long, device=device).view(shape), torch.tensor(mask, device=device).view(shape)
    )
