"""The parameters of a head: how they are drawn, and what they are called in its file (learnable_memory/heads.py)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class StoredHead(nn.Module):
    """How a head's parameters come and go; `vit.Head` says which it has."""

    class_token: nn.Parameter | None
    memory: Iterable[nn.Parameter]
    classifier: nn.Linear
    low_rank: Mapping[str, Any]

    @torch.no_grad()
    def initialise(self, base_class_token: Tensor, std: float, generator: torch.Generator | None = None) -> None:
        """Memory N(0, std^2), as in the paper; classifier N(0, std^2), bias 0, class token a copy of the base's [D].

        Of low-rank updates the first factor is N(0, 1/D) and the second 0: the head begins as one without them.
        """
        if self.class_token is not None:
            self.class_token.copy_(base_class_token.view(-1))
        for parameter in (*self.memory, self.classifier.weight):
            # Drawn on the CPU, so that a seed means the same head on every device.
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
        self.classifier.bias.zero_()
        for update in self.low_rank.values():  # last, so that all else is drawn as without them
            spread = base_class_token.numel() ** -0.5
            update.down.copy_(torch.empty(update.down.shape).normal_(0.0, spread, generator=generator))
            update.up.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """By their names in a file, float32."""
        found = {"classifier.weight": self.classifier.weight, "classifier.bias": self.classifier.bias}
        if self.class_token is not None:
            found["class_token"] = self.class_token
        if self.memory:
            found["memory"] = torch.stack(tuple(self.memory))
        for projection, update in self.low_rank.items():
            found |= {f"low_rank.{projection}.{name}": factor for name, factor in update.named_parameters()}
        return {name: tensor.detach().float() for name, tensor in found.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The reverse of `tensors`; shapes were checked by the reader of the file."""
        self.classifier.weight.copy_(tensors["classifier.weight"])
        self.classifier.bias.copy_(tensors["classifier.bias"])
        if self.class_token is not None:
            self.class_token.copy_(tensors["class_token"])
        for parameter, values in zip(self.memory, tensors.get("memory", ()), strict=True):
            parameter.copy_(values)
        for projection, update in self.low_rank.items():
            for name, factor in update.named_parameters():
                factor.copy_(tensors[f"low_rank.{projection}.{name}"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StoredHead":
        """Follow the base to other devices, but not to float16 or bfloat16: heads are float32 always."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device, torch.float32) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        return super()._apply(keep_precision, recurse)
