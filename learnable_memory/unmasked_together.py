"""Networks with unmasked memory in one model, without a mask: what the attention mask is there to prevent.

The paper's section 4.4: put together so, they destroy each other, since every token sees every memory.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from learnable_memory.methods import PromptTuning


class UnmaskedTogether(nn.Module):
    """Networks of memory in every layer whose class tokens and memories stand beside each other, seen by all tokens.

    Of one network alone the answers are its own. It has the surface of MemoryCapableViT that evaluation uses.

    Args:
        networks: by name; memory of each layer's own, without a mask, with class tokens that were learned, all on the
            same base.

    Raises ValueError for other networks.
    """

    has_base_classifier = False

    def __init__(self, networks: Mapping[str, PromptTuning]) -> None:
        super().__init__()
        for name, network in networks.items():
            if network.propagates or network.class_token is None or network.spec.masking != "none":
                raise ValueError(f"{name} is {network.spec.label}, but only unmasked memory can be put beside others.")
        if len({network.spec.memory_norm for network in networks.values()}) > 1:
            raise ValueError("Memory through the norm and after it cannot stand in one unmasked model.")
        self.names = list(networks)
        self.networks: Sequence[PromptTuning] = nn.ModuleList(networks.values())  # type: ignore[assignment]  # untyped

    def forward(
        self, pixel_values: Tensor, heads: Sequence[str] | None = None, with_base: bool = False
    ) -> dict[str, ImageClassifierOutput]:
        """pixel_values [B, channels, height, width] -> logits [B, C] of each network by its name."""
        first = self.networks[0]
        hidden = first.base.embed(pixel_values)  # [B, N, D]
        learned: list[Tensor] = []
        for network in self.networks:
            assert network.class_token is not None, "the constructor takes no others"
            learned.append(network.class_token)
        tokens = first.base.anatomy.enter(first.base.encoder_module, torch.stack(learned).to(hidden.dtype))  # [T, D]
        hidden = torch.cat([tokens.expand(len(hidden), -1, -1), hidden[:, 1:]], dim=1)  # [B, T + N - 1, D]
        for index in range(len(first.attention)):
            memory = torch.cat([network.memory[index] for network in self.networks]).to(hidden.dtype)  # [M, D]
            hidden = first.layer(index, hidden, memory.expand(len(hidden), -1, -1))
        answers = {}
        for row, (name, network) in enumerate(zip(self.names, self.networks, strict=True)):
            answers[name] = ImageClassifierOutput(logits=network.classify(hidden[:, row]))
        return {name: answers[name] for name in (self.names if heads is None else heads)}
