"""The parameters of a head under the names of its file (see learnable_memory/heads.py)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class StoredHead(nn.Module):
    """What a head's file knows of it; `vit.Head` says what it is."""

    class_token: nn.Parameter | None
    memory: Iterable[nn.Parameter]
    classifier: nn.Linear
    low_rank: Mapping[str, Any]

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
