"""Learnable memory for Vision Transformers, from scratch: the whole method in one file, to be read from top to bottom.

Sandler, Zhmoginov, Vladymyrov, Jackson: Fine-tuning Image Transformers using Learnable Memory. CVPR 2022,
arXiv 2203.15243. Nothing is needed but PyTorch.

    B images             P patches of an image              k heads (tasks) that were added to the base
    D width              N = P + 1 tokens of the base       m memory tokens of one head in each layer
    L layers             T = N + k tokens in all            M memory tokens of all heads in a layer
    H attention heads    d = D / H                          C classes of a task

The literature uses one word for two things: an *attention head* is one of the H parts of an attention layer, a *head*
is what is added for a task: a class token, memory in each layer, and a linear classifier.

Tokens stand in the order of the paper's Table 1: the patches (INP), the base's class token (CLS), the class tokens of
the heads (C_1 .. C_k). The memory of the heads (M_1 .. M_k) stands behind them, and only as keys and values.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes of the base. The defaults cut a grey image of 28x28 pixels into P = 16 patches of 7x7."""

    image_size: int = 28
    patch_size: int = 7
    channels: int = 1
    width: int = 64  # D
    layers: int = 4  # L
    attention_heads: int = 4  # H
    mlp_width: int = 128
    classes: int = 10  # C of the base

    @property
    def patches(self) -> int:
        """P"""
        return (self.image_size // self.patch_size) ** 2


# ===================================================================================================== who sees what
def build_attention_mask(patches: int, memory_tokens: Sequence[int], extends: Sequence[Sequence[int]]) -> Tensor:
    """Which token (row) sees which token or memory (column): the paper's Table 1.

    INP and CLS see INP and CLS. C_i sees INP, CLS, itself and M_i. If head i extends head j, then C_i sees C_j and M_j
    too, and all that head j sees.

    Args:
        patches: P.
        memory_tokens: m of each of the k heads; 0 is legal.
        extends: for each head the indices of the heads that it extends, all smaller than its own.

    Returns:
        float32 [T, T + M], 0 where a query sees a key and -inf where it does not: it is added to the attention scores,
        and exp(-inf) is 0.
    """
    base, k = patches + 1, len(memory_tokens)
    head_sees = torch.eye(k, dtype=torch.bool)  # [k, k]
    for child, parents in enumerate(extends):
        for parent in parents:
            head_sees[child] |= head_sees[parent]  # parents come first, so their own rows are complete
    sees = torch.zeros(base + k, base + k + sum(memory_tokens), dtype=torch.bool)  # [T, T + M]
    # These are the only columns that the base's rows get. So nothing that is added ever reaches a base token, in this
    # layer or in a later one, and the base computes what it would compute without any heads.
    sees[:, :base] = True
    sees[base:, base : base + k] = head_sees
    sees[base:, base + k :] = head_sees.repeat_interleave(torch.tensor(memory_tokens, dtype=torch.long), dim=1)
    return torch.zeros(sees.shape).masked_fill(~sees, -math.inf)


# ======================================================================================================= transformer
class SelfAttention(nn.Module):
    """Multi-head attention in which tokens ask, and tokens and memory are asked."""

    def __init__(self, width: int, attention_heads: int) -> None:
        super().__init__()
        self.attention_heads = attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """Cut the width into attention heads: [B, n, D] -> [B, H, n, d]"""
        return x.unflatten(-1, (self.attention_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, D], memory [M, D], mask [T, T + M] -> new tokens [B, T, D], weights [B, H, T, T + M]"""
        asked = torch.cat([x, memory.expand(len(x), -1, -1)], dim=1)  # [B, T + M, D]
        query = self.split(self.query(x))  # [B, H, T, d]: memory has no queries, so no row, and nothing comes of it
        key, value = self.split(self.key(asked)), self.split(self.value(asked))  # [B, H, T + M, d]
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + mask  # [B, H, T, T + M]
        weights = scores.softmax(dim=-1)  # each row sums to 1; exactly 0 where the mask is -inf
        mixed = (weights @ value).transpose(1, 2).flatten(2)  # [B, H, T, d] -> [B, T, D]
        return self.output(mixed), weights


class Block(nn.Module):
    """One layer: attention, then an MLP on each token by itself; each after a layer norm and added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.attention_heads)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, config.mlp_width)
        self.mlp_out = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `SelfAttention.forward`."""
        # The paper concatenates memory to the input of the layer, so it passes through the norm like any token.
        attended, weights = self.attention(self.attention_norm(x), self.attention_norm(memory), mask)
        x = x + attended  # [B, T, D]
        x = x + self.mlp_out(nn.functional.gelu(self.mlp_in(self.mlp_norm(x))))  # [B, T, D]
        return x, weights


class Head(nn.Module):
    """All that is learned for one task: class token [D], memory [L, m, D], and a classifier of C classes."""

    def __init__(self, config: Config, base_class_token: Tensor, classes: int, memory_tokens: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(base_class_token.detach().clone())  # starts as a copy of CLS
        self.memory = nn.Parameter(0.02 * torch.randn(config.layers, memory_tokens, config.width))
        self.classifier = nn.Linear(config.width, classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)


# ============================================================================================================= model
class MemoryViT(nn.Module):
    """A Vision Transformer and any number of heads on it. Without heads it is a plain ViT: nothing is masked.

    Everything runs in one masked attention over all tokens, as the paper writes it. `vit.py` computes the same in two
    streams: the base's tokens first, as if there were no heads, and then the k class tokens, which read the base's keys
    and values. That is faster: the base needs no gradients, and no score is computed only to be masked. There the base
    answers the same to the last bit by construction; here up to rounding, since a sum with further zeros in it may be
    taken in another order.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.channels * config.patch_size**2, config.width)
        self.class_token = nn.Parameter(0.02 * torch.randn(config.width))
        self.positions = nn.Parameter(0.02 * torch.randn(config.patches + 1, config.width))  # the last is CLS's
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.classifier = nn.Linear(config.width, config.classes)
        self.heads = nn.ModuleDict()  # name -> Head, in the order in which they were added
        self.extends: dict[str, tuple[str, ...]] = {}  # name -> names of the heads that it extends

    # ------------------------------------------------------------------------------------------------------- forward
    def cut(self, images: Tensor) -> Tensor:
        """Images [B, channels, height, width] -> the pixels of each patch [B, P, channels * patch_size^2]"""
        size = self.config.patch_size
        grid = images.unfold(2, size, size).unfold(3, size, size)  # [B, channels, rows, columns, size, size]
        return grid.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def mask(self) -> Tensor:
        """The mask of the present heads, [T, T + M]."""
        names = list(self.heads)
        memory_tokens = [head.memory.shape[1] for head in self.heads.values()]
        extends = [[names.index(parent) for parent in self.extends[name]] for name in names]
        return build_attention_mask(self.config.patches, memory_tokens, extends)

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images [B, channels, height, width] -> tokens [B, T, D], and of each layer the weights [B, H, T, T + M]"""
        patches = self.patch_embedding(self.cut(images)) + self.positions[:-1]  # [B, P, D]
        class_tokens = torch.stack([self.class_token, *(head.class_token for head in self.heads.values())])
        class_tokens = class_tokens + self.positions[-1]  # [1 + k, D]: all of them stand where CLS stands
        x = torch.cat([patches, class_tokens.expand(len(images), -1, -1)], dim=1)  # [B, T, D]
        mask, weights = self.mask().to(x), []
        for layer, block in enumerate(self.blocks):
            # Each layer has memory of its own: it is read there, and never handed on to the next layer.
            memory = torch.cat([x.new_empty(0, x.shape[-1]), *(head.memory[layer] for head in self.heads.values())])
            x, seen = block(x, memory, mask)  # memory [M, D]
            weights.append(seen)
        return self.norm(x), weights

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, channels, height, width] -> logits [B, C] of the base and of each head, "base" first."""
        tokens, _ = self.encode(images)
        cls = self.config.patches  # where CLS stands; C_1 .. C_k follow
        answers = {"base": self.classifier(tokens[:, cls])}
        for i, (name, head) in enumerate(self.heads.items(), start=1):
            answers[name] = head.classifier(tokens[:, cls + i])
        return answers

    # --------------------------------------------------------------------------------------------------------- heads
    def base_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters that are not those of a head, by name."""
        return {name: value for name, value in self.named_parameters() if not name.startswith("heads.")}

    def add_head(self, name: str, classes: int, memory_tokens: int, extends: Sequence[str] = ()) -> list[nn.Parameter]:
        """Add a head with m `memory_tokens` in each layer, and return its parameters.

        The base is frozen from now on, and so are the heads that this one extends: what a head was trained on must not
        move. That costs D + L m D + C (D + 1) numbers.

        Raises ValueError if the name is taken, or an extended head is not here.
        """
        if name == "base" or name in self.heads:
            raise ValueError(f"There is a {name!r} already: give the new head another name.")
        unknown = [parent for parent in extends if parent not in self.heads]
        if unknown:
            here = ", ".join(self.heads) or "none"
            raise ValueError(f"{name} cannot extend {', '.join(unknown)}: the heads are {here}.")
        for parameter in self.base_parameters().values():
            parameter.requires_grad_(False)
        for parent in self.ancestors(extends):
            self.heads[parent].requires_grad_(False)
        self.heads[name] = Head(self.config, self.class_token, classes, memory_tokens).to(self.class_token)
        self.extends[name] = tuple(extends)
        return list(self.heads[name].parameters())

    def ancestors(self, names: Sequence[str]) -> set[str]:
        """These heads and all that they are built on."""
        return set(names).union(*(self.ancestors(self.extends[name]) for name in names))

    def concatenate(self, other: "MemoryViT") -> None:
        """Copy the heads of `other` into this model. Each answers as before, since none of them sees another's.

        Raises ValueError if `other` has another base, or a name is taken; then nothing is changed.
        """
        ours, theirs = self.base_parameters(), other.base_parameters()
        if self.config != other.config or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            raise ValueError("The models have different bases: a head works only on the base that it was trained on.")
        taken = [name for name in other.heads if name in self.heads]
        if taken:
            raise ValueError(f"Both models have a head {', '.join(taken)}: train one of them under another name.")
        for parameter in ours.values():
            parameter.requires_grad_(False)  # as in `add_head`: heads are made for a base that does not move
        for name, head in other.heads.items():
            self.heads[name] = copy.deepcopy(head)
            self.extends[name] = other.extends[name]
