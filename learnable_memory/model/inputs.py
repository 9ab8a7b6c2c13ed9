"""What the heads of a pass bring to it: class tokens, memory, low-rank updates, who sees whom, and classifiers."""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learnable_memory.model.families import Anatomy, LayerParts
from learnable_memory.model.graph import TaskGraph
from learnable_memory.model.low_rank import SameRank, stack_low_rank
from learnable_memory.model.mixin import Stock


class Inputs(Stock):
    """A mixin over `Base` and `Registry`. D width, T heads of a pass, M memory tokens of all of them in a layer."""

    heads: MutableMapping[str, Any]
    anatomy: Anatomy
    encoder_module: Any
    base_width: int
    dtype: torch.dtype
    device: torch.device
    folded: Any
    _graphs: dict[tuple, TaskGraph]

    def class_tokens(self, tasks: Sequence[str]) -> Tensor:
        """The class tokens as they enter the first layer, [T, D]."""
        if not tasks:
            return torch.empty(0, self.base_width, dtype=self.dtype, device=self.device)
        tokens = torch.stack([self.heads[name].class_token for name in tasks])
        return self.anatomy.enter(self.encoder_module, tokens.to(self.dtype))

    def project_memory(
        self, index: int, parts: LayerParts, tasks: Sequence[str], graph: TaskGraph
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the M memory tokens of `tasks` in layer `index`, and a row of padding: [H, M + 1, d]."""
        if self.folded is not None:
            return self.folded.memory(index, tasks)
        owners = [self.heads[name] for name in tasks if self.heads[name].memory]
        empty = torch.empty(0, self.base_width, device=self.device)
        memory = torch.cat([head.memory[index] for head in owners] or [empty]).to(self.dtype)  # [M, D]
        if graph.any_normed:
            normed = parts.norm1(memory)
            memory = normed if graph.all_normed else torch.where(graph.normed[:, None], normed, memory)
        memory = F.pad(memory, (0, 0, 0, 1))  # [M + 1, D], the last row being the padding of TaskGraph

        def project(name: str, module: nn.Module) -> Tensor:
            projected = module(memory)
            if any(name in head.low_rank for head in owners):
                pieces = memory[:-1].split([head.spec.memory_tokens for head in owners])
                extra = [
                    head.low_rank[name].extra(index, piece) if name in head.low_rank else torch.zeros_like(piece)
                    for head, piece in zip(owners, pieces, strict=True)
                ]
                projected = projected + F.pad(torch.cat(extra), (0, 0, 0, 1))
            return parts.split(projected)

        return project("key", parts.key), project("value", parts.value)

    def graph_of(self, tasks: Sequence[str]) -> TaskGraph:
        """Who sees whom among the heads of a pass."""
        key = (*tasks, self.device)
        if key not in self._graphs:
            with torch.inference_mode(False):  # it is kept, and training must be able to use it later
                self._graphs[key] = TaskGraph([self.heads[name].spec for name in tasks], self.device)
        return self._graphs[key]

    def low_rank_of(self, tasks: Sequence[str]) -> list[SameRank]:
        """The low-rank updates of the heads of a pass, stacked."""
        if self.folded is not None:
            return self.folded.low_rank(tasks)
        return stack_low_rank([self.heads[name] for name in tasks], self.dtype)

    def _classify(self, name: str, features: Tensor) -> Tensor:
        """[B, D] -> float32 logits [B, C], also under autocast; float64 of a base in float64"""
        with torch.autocast(features.device.type, enabled=False):
            return self.heads[name].classifier(features.to(torch.promote_types(features.dtype, torch.float32)))
