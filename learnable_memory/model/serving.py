"""A copy to serve: what does not depend on the image is computed once."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learnable_memory.heads import HeadSpec
from learnable_memory.model.loading import drop_classifier
from learnable_memory.model.low_rank import SameRank
from learnable_memory.model.mixin import Stock


def sharing(module: nn.Module, learned: Callable[[str], bool] = lambda name: False) -> dict[int, nn.Parameter]:
    """A memo for `copy.deepcopy`: new parameters on the same storage, or copies that want gradients if learned."""
    memo = {}
    for name, parameter in module.named_parameters():
        own = learned(name)
        memo[id(parameter)] = nn.Parameter(parameter.detach().clone() if own else parameter.detach(), own)
    return memo


class Serving(Stock):
    """A mixin over a model with heads."""

    def copy_of_base(self, learned: Callable[[str], bool]) -> Any:
        """The base without its heads and its classifier, as a copy that may change; this model never does.

        Args:
            learned: by the name of one of the encoder's parameters, whether the copy is to learn it. Those are copied
                and want gradients; the others share their storage with this model.
        """
        shared: Any = self._around(self)
        drop_classifier(shared)
        return copy.deepcopy(shared, sharing(shared.encoder_module, learned))

    @torch.no_grad()
    def for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> Any:
        """A frozen copy to serve: the memory's keys and values are computed once, the base's attention is fused (sdpa).

        It shares the base's weights with this model, unless `dtype` is another one, and has its heads as they are now:
        what is trained or added here later does not reach it. Heads added to the copy are answered, unfolded; weights
        in it are not to be changed by hand, for the memory's keys and values would not follow.

        Args:
            dtype: of the base and of what passes through it, such as torch.bfloat16; None for that of this model.
            compile: let torch.compile translate it at the first call (minutes).
        """
        heads = {id(parameter) for parameter in self.heads.parameters()}
        memo = {key: value for key, value in sharing(self).items() if key not in heads}
        served: Any = copy.deepcopy(self, memo)
        served.requires_grad_(False).eval().to(dtype or served.dtype)
        served.set_attn_implementation("sdpa")
        tasks = [name for name, head in served.heads.items() if head.spec.class_token]
        if any(served.heads[name].memory or served.heads[name].low_rank for name in tasks):
            graph = served.graph_of(tasks)
            projected = [served.project_memory(i, parts, tasks, graph) for i, parts in enumerate(served.layer_parts())]
            specs, stacked = [served.heads[name].spec for name in tasks], served.low_rank_of(tasks)
            served.folded = FoldedHeads(specs, projected, stacked)
        if compile:
            served.compile()
        return served


class FoldedHeads(nn.Module):
    """What does not depend on the image, computed once, of a model that learns no more: the memory's keys and values in
    all layers, and low-rank updates as they are stacked for a pass. Nothing is merged into the base's weights.

    Args:
        specs: of all T heads with a class token, in the model's order.
        rows: of each layer what `MemoryCapableViT.project_memory` gives for them.
        stacked: what `stack_low_rank` gives for them.
    """

    key: Tensor  # [L, H, M + 1, d]
    value: Tensor

    def __init__(
        self, specs: Sequence[HeadSpec], rows: Sequence[tuple[Tensor, Tensor]], stacked: Sequence[SameRank]
    ) -> None:
        super().__init__()
        key, value = (torch.stack(projected) for projected in zip(*rows, strict=True))  # [L, H, M + 1, d]
        self.register_buffer("key", key, persistent=False)
        self.register_buffer("value", value, persistent=False)
        ends = itertools.accumulate(spec.memory_tokens for spec in specs)
        self.rows = {spec.name: range(end - spec.memory_tokens, end) for spec, end in zip(specs, ends, strict=True)}
        self.groups = [(group.projection, group.rows) for group in stacked]
        for number, group in enumerate(stacked):
            self.register_buffer(f"down{number}", group.down, persistent=False)
            self.register_buffer(f"up{number}", group.up, persistent=False)

    def low_rank(self, tasks: Sequence[str]) -> list[SameRank]:
        """The updates of these heads, stacked."""
        place = {row: tasks.index(name) for row, name in enumerate(self.rows) if name in tasks}
        found = []
        for number, (projection, rows) in enumerate(self.groups):
            down, up = getattr(self, f"down{number}"), getattr(self, f"up{number}")
            chosen = [i for i, row in enumerate(rows) if row in place]
            if len(chosen) < len(rows):
                down, up = down[:, chosen], up[:, chosen]
            if chosen:
                found.append(SameRank(projection, [place[rows[i]] for i in chosen], down, up))
        return found

    def memory(self, index: int, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Keys and values [H, M + 1, d] in layer `index` of the memory of these heads, as `project_memory`."""
        key, value = self.key[index], self.value[index]  # [H, M + 1, d]
        if len(tasks) == len(self.rows):
            return key, value
        chosen = [row for name in tasks for row in self.rows[name]] + [-1]  # the last row is padding
        return key[:, chosen], value[:, chosen]
