"""Low-rank updates of the layers' projections, which belong to one head and are applied to its class token alone.

Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models. B images, T class tokens, L layers, r the rank.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from learnable_memory.projections import PROJECTIONS


class LowRank(nn.Module):
    """A head's own update of one projection, in all layers: W x becomes W x + up (down x) (Hu et al. 2022, LoRA).

    `down` is [L, r, inputs], `up` [L, outputs, r].
    """

    def __init__(self, layers: int, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(layers, rank, inputs))
        self.up = nn.Parameter(torch.empty(layers, outputs, rank))

    def extra(self, index: int, x: Tensor) -> Tensor:
        """What it adds in layer `index`: [rows, inputs] -> [rows, outputs]"""
        return x @ self.down[index].to(x.dtype).T @ self.up[index].to(x.dtype).T


class SameRank(NamedTuple):
    """Updates of one projection by those heads of a pass that have the same rank: one batched product."""

    projection: str
    rows: list[int]  # which of the T heads, T' in all
    down: Tensor  # [L, T', r, inputs]
    up: Tensor  # [L, T', outputs, r]


def stack_low_rank(heads: Sequence[Any], dtype: torch.dtype) -> list[SameRank]:
    """The low-rank updates of all T `Head`s of a pass, in its order, as they are applied: in the base's dtype."""
    found = []
    for projection in PROJECTIONS:
        ranks = [head.spec.low_rank.get(projection, 0) for head in heads]
        for rank in sorted(set(ranks) - {0}):
            rows = [row for row, own in enumerate(ranks) if own == rank]
            updates = [heads[row].low_rank[projection] for row in rows]
            down, up = (torch.stack([getattr(each, side) for each in updates], dim=1) for side in ("down", "up"))
            found.append(SameRank(projection, rows, down.to(dtype), up.to(dtype)))
    return found


class TaskUpdates:
    """What low-rank weights add to the projections of T class tokens; without any, nothing is computed."""

    def __init__(self, stacked: Sequence[SameRank], count: int) -> None:
        """`stacked` for a pass of `count` heads."""
        self.count = count
        self.groups: dict[str, list[tuple[Tensor | None, tuple[Tensor, ...], tuple[Tensor, ...]]]] = {}
        orders: dict[str, list[int]] = {}
        # Once for all layers: places go to the device here, and factors are taken apart, since indexing in each layer
        # would make each one's gradient as large as all of them.
        for projection, rows, down, up in stacked:
            places = None if len(rows) == count else torch.tensor(rows, device=down.device)
            self.groups.setdefault(projection, []).append((places, down.unbind(), up.unbind()))
            orders.setdefault(projection, []).extend(rows)
        self.without = {projection: count - len(order) for projection, order in orders.items()}
        self.back: dict[str, Tensor] = {}  # from the groups' order, and then heads without, to that of the heads
        for projection, order in orders.items():
            order += [row for row in range(count) if row not in order]
            if order != sorted(order):
                back = sorted(range(count), key=order.__getitem__)
                self.back[projection] = torch.tensor(back, device=stacked[0].down.device)

    def touches(self, *projections: str) -> bool:
        """Whether any of these projections is updated."""
        return any(projection in self.groups for projection in projections)

    def __call__(self, projection: str, index: int, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What a projection gives for the class tokens in layer `index`.

        Args:
            inputs: of the projection, [B, T, inputs].
            outputs: what the base's own weights give for them, [B, T, outputs].
        """
        if projection not in self.groups:
            return outputs
        extra = []
        for places, down, up in self.groups[projection]:
            own = inputs if places is None else inputs.index_select(1, places)
            inner = torch.einsum("bti,tri->btr", own, down[index])
            extra.append(torch.einsum("btr,tor->bto", inner, up[index]))
        if self.without[projection]:
            extra.append(outputs.new_zeros(outputs.shape[0], self.without[projection], outputs.shape[-1]))
        update = torch.cat(extra, dim=1) if len(extra) > 1 else extra[0]
        if projection in self.back:
            update = update.index_select(1, self.back[projection])
        return outputs + update
