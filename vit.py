"""A Vision Transformer with learnable memory: many heads on one frozen base, answered in one forward pass.

Sandler, Zhmoginov, Vladymyrov, Jackson: Fine-tuning Image Transformers using Learnable Memory. CVPR 2022,
arXiv 2203.15243.

Nothing that a head adds is ever seen by the base's tokens, so the model runs in two streams. The *base stream* is the
stock HuggingFace ViT, frozen and without autograd. The *task stream* carries one class token per head; in each layer
its queries meet the keys and values that the base stream has just computed, its own, and those of its memory. What a
head may also have are low-rank updates of the layers' projections, which are applied to its class token alone.

    B images          T heads with a class token    D width            L layers
    P patches         k heads of a mask             H attention heads  C classes of a head
    N base tokens     m memory tokens of one head   d = D / H          M memory tokens of all T heads in a layer

N = P + S, S being the base's own special tokens: the class token, first of all, then the others (S = 1 for ViT, 2 for
DeiT with its distillation token, 5 for DINOv2 with registers), then the patches. r is the rank of a low-rank update.
"""

import copy
import dataclasses
import hashlib
import itertools
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.models.vit.modeling_vit import ViTAttention, ViTEmbeddings, ViTLayer, eager_attention_forward
from transformers.utils import logging as hf_logging

from learnable_memory import heads as head_files
from learnable_memory.heads import HeadFile, HeadSpec, ranks_of
from learnable_memory.projections import PROJECTIONS, projection_size

__all__ = ["BaseTokens", "HeadClassifier", "MemoryCapableViT", "SelfAttentionWithMemory", "build_attention_mask"]


# ===================================================================================================== who sees what
def ancestors_of(parents: Sequence[Iterable[int]]) -> list[list[int]]:
    """For each head the heads that it extends and those that they extend, sorted (transitive closure).

    Raises ValueError if an index is no head or the graph has a cycle.
    """
    for head, extended in enumerate(parents):
        for parent in extended:
            if not 0 <= parent < len(parents):
                raise ValueError(f"Head {head} extends {parent}, but the heads are 0 to {len(parents) - 1}.")
    closed: dict[int, set[int]] = {}

    def close(head: int, path: tuple[int, ...]) -> set[int]:
        if head in path:
            raise ValueError(f"Heads cannot extend each other in a circle: {' -> '.join(map(str, (*path, head)))}.")
        if head not in closed:
            closed[head] = set().union(*({parent} | close(parent, (*path, head)) for parent in parents[head]))
        return closed[head]

    return [sorted(close(head, ())) for head in range(len(parents))]


def build_attention_mask(
    patches: int, memory_tokens_list: Sequence[int], extension: bool | Sequence[Iterable[int]] = False
) -> Tensor:
    """The attention mask of the paper's Table 1, for all tokens in one joint attention.

    Rows are queries, columns keys, in the order INP (`patches`), CLS, C_1..C_k | M_1..M_k. INP and CLS see INP and CLS;
    C_i sees INP, CLS, itself and M_i, and with extension also C_j and M_j of every head j that it is built on.

    Args:
        patches: P, the number of patches.
        memory_tokens_list: memory tokens of each of the k heads; 0 is legal.
        extension: False (concatenation), True (each head extends all before it), or for each head the indices of the
            heads that it extends; those that they extend are added.

    Returns:
        float32 [1, P + 1 + k, P + 1 + k + sum(m)], 0 where a query sees a key and -inf where it does not; to be
        added to the scores before the softmax.
    """
    if patches < 0 or any(count < 0 for count in memory_tokens_list):
        raise ValueError(f"Counts cannot be negative, got patches={patches}, memory tokens {list(memory_tokens_list)}.")
    k = len(memory_tokens_list)
    if isinstance(extension, bool):
        parents: list[Iterable[int]] = [range(i) if extension else () for i in range(k)]
    else:
        parents = list(extension)
        if len(parents) != k:
            raise ValueError(f"extension names the parents of {len(parents)} heads, but there are {k}.")
    base = patches + 1
    ends = [base + k + sum(memory_tokens_list[: i + 1]) for i in range(k)]
    mask = torch.full((1, base + k, base + k + sum(memory_tokens_list)), float("-inf"))
    mask[:, :, :base] = 0
    for i, ancestors in enumerate(ancestors_of(parents)):
        for j in (*ancestors, i):
            mask[:, base + i, base + j] = 0
            mask[:, base + i, ends[j] - memory_tokens_list[j] : ends[j]] = 0
    return mask


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


# ========================================================================================================= attention
def _split(x: Tensor, attention: ViTAttention) -> Tensor:
    """[..., N, D] -> [..., H, N, d]"""
    return x.unflatten(-1, (-1, attention.head_dim)).transpose(-3, -2)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension, in float32 at least, as the eager attention of the base does it."""
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def _backend(attention: ViTAttention) -> Callable:
    """HuggingFace's function for the layer's `attn_implementation`."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)


class SelfAttentionWithMemory(ViTAttention):
    """One attention layer in joint form: all tokens ask; all tokens and the memory are asked (paper, section 3).

    This is the method as the paper writes it, for reading, for methods that let base tokens see memory, and as what the
    two streams must equal. Memory has keys and values and no queries.
    """

    @classmethod
    def from_attention(cls, attention: ViTAttention) -> "SelfAttentionWithMemory":
        """The joint form of a stock layer, sharing its weights."""
        with torch.device("meta"):  # its own weights are never made
            joint = cls(attention.config)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(joint, name, getattr(attention, name))
        return joint

    def forward(
        self, hidden_states: Tensor, memory: Tensor | None = None, attention_mask: Tensor | None = None,
        need_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """
        Args:
            hidden_states: [B, N, D], after the layer norm.
            memory: [M, D] or [B, M, D], after the layer norm or not: that is the caller's choice. None for none.
            attention_mask: added to the scores, broadcastable to [B, N, N + M], as from `build_attention_mask`.
            need_weights: without them the base's attention backend does it (`attn_implementation`), fused if it is.

        Returns:
            The layer's output [B, N, D] and the attention weights [B, H, N, N + M], if they are needed.
        """
        keys_from = hidden_states
        if memory is not None:
            if memory.shape[-1] != hidden_states.shape[-1]:
                raise ValueError(f"Memory is {memory.shape[-1]} wide, but the layer is {hidden_states.shape[-1]} wide.")
            memory = memory.to(hidden_states.dtype).expand(len(hidden_states), -1, -1)
            keys_from = torch.cat([hidden_states, memory], dim=1)  # [B, N + M, D]
        query = _split(self.q_proj(hidden_states), self)  # [B, H, N, d]
        key, value = (_split(projection(keys_from), self) for projection in (self.k_proj, self.v_proj))
        mask = None if attention_mask is None else attention_mask.to(query).unsqueeze(-3)  # [.., 1, N, N + M]
        if not need_weights:
            context, _ = _backend(self)(self, query, key, value, mask, scaling=self.scaling)  # [B, N, H, d]
            return self.o_proj(context.flatten(2)), None
        scores = query @ key.transpose(-1, -2) * self.scaling  # [B, H, N, N + M]
        if mask is not None:
            scores = scores + mask
        weights = _softmax(scores)
        return self.o_proj((weights @ value).transpose(1, 2).flatten(2)), weights


class KeysAndValues(NamedTuple):
    """The base's tokens in one layer, as class tokens ask them: keys and values [B, H, N, d]."""

    key: Tensor
    value: Tensor

    def scores(self, query: Tensor) -> Tensor:
        """[B, H, T, d] -> [B, H, T, N]"""
        return query @ self.key.transpose(-1, -2)

    def mix(self, weights: Tensor) -> Tensor:
        """[B, H, T, N] -> [B, H, T, d]"""
        return weights @ self.value


class NormedTokens(NamedTuple):
    """The same from the tokens after the layer norm alone, [B, N, D]: half of what keys and values take.

    With k_j = W_k x_j + b_k, the score q k_j is (W_k^T q) x_j + q b_k: the query is taken through the projection, once
    for each class token, instead of every base token. Likewise the weights are applied to x_j, and W_v to the sum.
    """

    tokens: Tensor
    attention: ViTAttention

    def _by_head(self, projection: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight [H, d, D] and bias [H, 1, d]."""
        heads = (-1, self.attention.head_dim)
        bias = projection.weight.new_zeros(projection.out_features) if projection.bias is None else projection.bias
        return projection.weight.unflatten(0, heads), bias.unflatten(0, heads)[:, None]

    def scores(self, query: Tensor) -> Tensor:
        """[B, H, T, d] -> [B, H, T, N]"""
        weight, bias = self._by_head(self.attention.k_proj)
        absorbed = (query.transpose(0, 1).flatten(1, 2) @ weight).unflatten(1, (len(query), -1))  # [H, B, T, D]
        scores = absorbed.transpose(0, 1).flatten(1, 2) @ self.tokens.transpose(-1, -2)  # [B, H T, N]
        return scores.unflatten(1, (query.shape[1], -1)) + (query * bias).sum(-1, keepdim=True)

    def mix(self, weights: Tensor) -> Tensor:
        """[B, H, T, N] -> [B, H, T, d]"""
        weight, bias = self._by_head(self.attention.v_proj)
        mixed = (weights.flatten(1, 2) @ self.tokens).unflatten(1, weights.shape[1:3])  # [B, H, T, D]
        values = mixed.transpose(0, 1).flatten(1, 2) @ weight.transpose(-1, -2)  # [H, B T, d]
        # The weights of the base's tokens do not sum to one: the rest goes to the memory.
        return values.unflatten(1, (len(weights), -1)).transpose(0, 1) + weights.sum(-1, keepdim=True) * bias


def attend(
    attention: ViTAttention, query: Tensor, base: KeysAndValues | NormedTokens, own: tuple[Tensor, Tensor],
    memory: tuple[Tensor, Tensor], graph: TaskGraph,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of the class tokens over the base's tokens, themselves, what they inherit, and their memory.

    What is inherited is detached: a head's loss never reaches the heads that it extends (nor, through them, the image:
    input gradients leave that path out).

    Args:
        query: [B, H, T, d]
        base: the N base tokens.
        own, memory: keys and values, [B, H, T, d] and [H, M + 1, d] each, the last memory being what lists are padded
            with.

    Returns:
        Values [B, H, T, d], and weights [B, H, T, columns] with 0 where nothing is seen. The columns are N base tokens,
        T class tokens if any is inherited, itself, inherited memory, own memory.
    """
    query = query * attention.scaling
    scores = [base.scores(query)]  # [B, H, T, N]
    mixes = [base.mix]

    def ask(cells: Padded, key: Tensor, value: Tensor) -> None:
        """Each class token asks the memory that `cells.index` lists for it; key, value [H, M + 1, d]."""
        if cells.index.shape[1]:
            key, value = key[:, cells.index], value[:, cells.index]  # [H, T, x, d]
            scores.append(torch.einsum("bhtd,htxd->bhtx", query, key) + cells.mask.to(query.dtype))
            mixes.append(lambda weights: torch.einsum("bhtx,htxd->bhtd", weights, value))

    if graph.class_mask is not None:
        others = own[0].detach(), own[1].detach()
        scores.append(query @ others[0].transpose(-1, -2) + graph.class_mask.to(query.dtype))  # [B, H, T, T]
        mixes.append(lambda weights: weights @ others[1])
    scores.append((query * own[0]).sum(-1, keepdim=True))  # [B, H, T, 1]
    mixes.append(lambda weights: weights * own[1])
    ask(graph.inherited_memory, memory[0].detach(), memory[1].detach())
    ask(graph.memory, *memory)

    weights = _softmax(torch.cat(scores, dim=-1))
    parts = weights.split([score.shape[-1] for score in scores], dim=-1)
    first, *rest = (mix(part) for mix, part in zip(mixes, parts, strict=True))
    return sum(rest, start=first), weights


# ============================================================================================================= heads
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


class Head(nn.Module):
    """The parameters of one head: class token [D], memory [m, D] per layer, a linear classifier of C classes, and
    low-rank updates of the layers' projections for its class token."""

    def __init__(self, spec: HeadSpec, width: int, layers: int, mlp_width: int) -> None:
        super().__init__()
        self.spec = spec
        self.class_token = nn.Parameter(torch.empty(width)) if spec.class_token else None
        shapes = [(spec.memory_tokens, width)] * (layers if spec.memory_tokens else 0)
        self.memory = nn.ParameterList(nn.Parameter(torch.empty(shape)) for shape in shapes)
        # Not nn.Linear(...), which would draw values from the global generator only for them to be replaced.
        self.classifier = nn.utils.skip_init(nn.Linear, width, spec.num_labels)
        sizes = {name: projection_size(name, width, mlp_width) for name in spec.low_rank}
        self.low_rank: Mapping[str, LowRank] = nn.ModuleDict(  # type: ignore[assignment]  # its values are untyped
            {name: LowRank(layers, rank, *sizes[name]) for name, rank in spec.low_rank.items()}
        )

    @torch.no_grad()
    def initialise(self, base_class_token: Tensor, std: float, generator: torch.Generator | None = None) -> None:
        """Memory N(0, std^2), as in the paper; classifier N(0, std^2), bias 0, class token a copy of the base's.

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
        """Under the names of a head file (see learnable_memory/heads.py)."""
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Head":
        """Follow the base to other devices, but not to float16 or bfloat16: heads are float32 always."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device, torch.float32) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        return super()._apply(keep_precision, recurse)


class SameRank(NamedTuple):
    """Updates of one projection by those heads of a pass that have the same rank: one batched product."""

    projection: str
    rows: list[int]  # which of the T heads, T' in all
    down: Tensor  # [L, T', r, inputs]
    up: Tensor  # [L, T', outputs, r]


def stack_low_rank(heads: Sequence[Head], dtype: torch.dtype) -> list[SameRank]:
    """The low-rank updates of all T heads of a pass, in its order, as they are applied: in the base's dtype."""
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


# ==================================================================================================== other families
READOUTS = ("class", "class+extra", "class+mean")
INTERPOLATIONS: dict[str, dict[str, Any]] = {
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "bicubic_offset": {"mode": "bicubic", "align_corners": False},
    "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "bilinear_corners": {"mode": "bilinear", "align_corners": True},
}
OFFSET = 0.1  # patches that DINO and DINOv2 add to the size, against rounding, and so to the scale


@dataclass(frozen=True)
class BaseLayout:
    """In what a base differs from the stock ViT, its layers being the same; `config.base_layout` as a dict.

    Attributes:
        extra_tokens: S - 1, special tokens beside the class token, between it and the patches.
        readout: what the base's own classifier reads, after the final norm. "class": the class token [D];
            "class+extra": with it the first extra token (DeiT); "class+mean": with it the mean of the patches (DINOv2),
            [2D] both.
        interpolation: how position embeddings are resized for other image sizes, one of INTERPOLATIONS.

    Raises ValueError for a name that is not listed.
    """

    extra_tokens: int = 0
    readout: str = "class"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        for what, legal in (("readout", READOUTS), ("interpolation", INTERPOLATIONS)):
            if getattr(self, what) not in legal:
                raise ValueError(f"{what} is {getattr(self, what)!r}; legal: {', '.join(legal)}.")

    @classmethod
    def of(cls, config: ViTConfig) -> "BaseLayout":
        """The layout that a config records; that of the stock ViT if it records none."""
        return cls(**(getattr(config, "base_layout", None) or {}))


class BaseEmbeddings(ViTEmbeddings):
    """Stock embeddings with further special tokens, and positions resized as the base's family does it.

    `extra_tokens` [1, S - 1, D] have their positions, if any, added already. `position_embeddings` [1, 1 + P, D] are
    those of class token and patches.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        layout = BaseLayout.of(config)
        tokens = torch.zeros(1, layout.extra_tokens, config.hidden_size)
        self.extra_tokens = nn.Parameter(tokens) if layout.extra_tokens else None
        self.interpolation = layout.interpolation

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Positions [1, 1 + P', D] for images of height x width pixels."""
        if (height, width) == tuple(self.image_size):
            return self.position_embeddings
        patch_height, patch_width = self.patch_embeddings.patch_size
        grid = self.image_size[0] // patch_height, self.image_size[1] // patch_width
        positions = self.position_embeddings[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)  # [1, D, rows, columns]
        size = height // patch_height, width // patch_width
        target: dict[str, Any] = {"size": size}
        if self.interpolation == "bicubic_offset":
            target = {"scale_factor": [(new + OFFSET) / old for new, old in zip(size, grid, strict=True)]}
        # In float32 whatever the base's dtype: bicubic weights are not exact in less.
        resized = F.interpolate(positions.float(), **target, **INTERPOLATIONS[self.interpolation])
        resized = resized.to(positions.dtype).permute(0, 2, 3, 1).flatten(1, 2)  # [1, P', D]
        return torch.cat([self.position_embeddings[:, :1], resized], dim=1)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the stock embeddings; returns [B, N, D]."""
        tokens = super().forward(*args, **kwargs)  # [B, 1 + P, D]
        if self.extra_tokens is None:
            return tokens
        return torch.cat([tokens[:, :1], self.extra_tokens.expand(tokens.shape[0], -1, -1), tokens[:, 1:]], dim=1)


# ======================================================================================================= base stream
BASE_NAMES = {
    "attention_norm": "layernorm_before", "query": "attention.q_proj", "key": "attention.k_proj",
    "value": "attention.v_proj", "output": "attention.o_proj", "mlp_norm": "layernorm_after",
    "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2",
}  # fmt: skip


def base_tensors(vit: ViTModel) -> dict[str, Tensor]:
    """The encoder's embeddings, layers and final norm under our own names, which outlive renamings in transformers.

    `class_token` and `positions` are [1, 1, D] and [1, 1 + P, D]; weights and biases have torch's shapes.
    """
    modules = {"patches": vit.embeddings.patch_embeddings.projection, "norm": vit.layernorm}
    for index, layer in enumerate(vit.layers):
        modules |= {f"layers.{index}.{ours}": layer.get_submodule(theirs) for ours, theirs in BASE_NAMES.items()}
    tensors = {f"{name}.{leaf}": value for name, module in modules.items() for leaf, value in module.named_parameters()}
    tensors |= {"class_token": vit.embeddings.cls_token, "positions": vit.embeddings.position_embeddings}
    extra = getattr(vit.embeddings, "extra_tokens", None)
    return tensors if extra is None else tensors | {"extra_tokens": extra}


def base_fingerprint(vit: ViTModel) -> str:
    """SHA-256 of the encoder's tensors, 64 hexadecimal digits.

    What else decides the answers counts too, where it is not as in HuggingFace's ViT: the same tensors are published
    with another activation (Google's files) and with other ways of resizing positions (Google's, timm's).
    """
    found = head_files.content_hash(base_tensors(vit))
    activation, interpolation = vit.config.hidden_act, BaseLayout.of(vit.config).interpolation
    if (activation, interpolation) == ("gelu", "bicubic"):
        return found
    return hashlib.sha256(f"{found} {activation} {interpolation}".encode()).hexdigest()


def _in_place_of_copies(
    module: nn.Module, learned: Callable[[str], bool] = lambda name: False
) -> dict[int, nn.Parameter]:
    """A memo for `copy.deepcopy`: new parameters on the same storage, or copies that want gradients if learned."""
    memo = {}
    for name, parameter in module.named_parameters():
        own = learned(name)
        memo[id(parameter)] = nn.Parameter(parameter.detach().clone() if own else parameter.detach(), own)
    return memo


def _some(names: Iterable[str]) -> str:
    """A list for an error message, not longer than somebody reads."""
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "nothing"


class BaseLayer(NamedTuple):
    """One layer of the base stream: what enters it, what the task stream needs of it, and what leaves it."""

    inputs: Tensor | None  # [B, N, D]; None where it comes from `BaseTokens`, and so with `normed` and `hidden`
    normed: Tensor | None  # [B, N, D], after the first layer norm
    seen: KeysAndValues | NormedTokens
    hidden: Tensor | None = None  # [B, N, D]; None where the stream ended at the keys and values
    class_row: Tensor | None = None  # [B, H, 1, N], the attention of the base class token, if asked for


@dataclass(frozen=True)
class BaseTokens:
    """What heads need of the base for a batch of images: `forward` takes it in the place of their pixels.

    It does not depend on any head, so it can be computed once and kept (`MemoryCapableViT.base_tokens`).

    Attributes:
        layers: keys and values [L, 2, B, H, N, d], or tokens after each layer's first norm [L, B, N, D]; any floating
            dtype.
        output: [B, D], the base's class token after the final layer norm; [B, 2D] with what else the base's own
            classifier reads, which no head needs.
    """

    layers: Tensor
    output: Tensor

    def __len__(self) -> int:
        return len(self.output)

    def to(self, *args: Any, **kwargs: Any) -> "BaseTokens":
        """As `torch.Tensor.to`."""
        return BaseTokens(self.layers.to(*args, **kwargs), self.output.to(*args, **kwargs))

    def stream(self, vit: ViTModel) -> Iterator[BaseLayer]:
        """Layer by layer as `MemoryCapableViT.base_stream` gives it, in the base's dtype."""
        dtype = vit.embeddings.cls_token.dtype
        for kept, layer in zip(self.layers, vit.layers, strict=True):
            kept = kept.to(dtype)
            seen = NormedTokens(kept, layer.attention) if kept.ndim == 3 else KeysAndValues(*kept)
            yield BaseLayer(None, None, seen)


@dataclass
class Trace:
    """What a caller asked to see of a stream on its way through the layers."""

    want_states: bool
    want_rows: bool
    states: list[Tensor] = field(default_factory=list)  # L + 1 of [B, tokens, D]
    rows: list[Tensor] = field(default_factory=list)  # L of [B, H, queries, columns]

    def keep(self, state: Tensor | None, row: Tensor | None = None) -> None:
        """Keep what was asked for of a state [B, tokens, D] and of the attention [B, H, queries, columns] of the layer
        that it enters."""
        if self.want_states and state is not None:
            self.states.append(state)
        if self.want_rows and row is not None:
            self.rows.append(row)


def run_base_layer(
    layer: ViTLayer, hidden: Tensor, mask: Tensor | None, stop_at_keys: bool, want_row: bool
) -> BaseLayer:
    """One stock layer on [B, N, D], its keys and values handed on; bit for bit the stock result."""
    attention = layer.attention
    normed = layer.layernorm_before(hidden)  # [B, N, D]
    key, value = _split(attention.k_proj(normed), attention), _split(attention.v_proj(normed), attention)
    # In the memory order of `BaseTokens`: the same kernels, and so the same bits, forward and backward.
    seen = KeysAndValues(key.contiguous(), value.contiguous())
    if stop_at_keys:
        return BaseLayer(hidden, normed, seen)
    query = _split(attention.q_proj(normed), attention)
    dropout = attention.attention_dropout if attention.training else 0.0
    context, _ = _backend(attention)(attention, query, key, value, mask, dropout=dropout, scaling=attention.scaling)
    row = None
    if want_row:  # from its query, since fused backends keep no weights
        row = _softmax(query[:, :, :1] @ key.transpose(-1, -2) * attention.scaling)
    outputs = layer.dropout(attention.o_proj(context.flatten(2))) + hidden
    outputs = layer.dropout(layer.mlp(layer.layernorm_after(outputs))) + outputs
    return BaseLayer(hidden, normed, seen, outputs, row)


# ============================================================================================================= model
class MemoryCapableViT(ViTForImageClassification):
    """A HuggingFace ViT and any number of heads on it.

    The base's modules, parameter names and configuration are the stock ones; heads live under the prefix `heads.`. The
    base is frozen and in eval mode from the start, so `train()` affects heads only.

    Attributes:
        heads: ModuleDict, name -> Head, in the order in which they were added.
        fingerprint: SHA-256 of the base's encoder as it was loaded (`base_tensors`); heads fit this base only.
        base_id: what the base was loaded from: a name on the hub, or a folder.
    """

    _keep_in_fp32_modules_strict = ["heads"]
    # Other uses of the same encoder (pooled features, masked images) leave these; no answer depends on them.
    _keys_to_ignore_on_load_unexpected = [r"pooler\.", r"mask_token", r"^decoder\."]  # of ViTForMaskedImageModeling

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.layout = BaseLayout.of(config)
        if self.layout != BaseLayout():
            self.vit.embeddings = BaseEmbeddings(config)
        if self.layout.readout != "class" and self.has_base_classifier:
            self.classifier: nn.Linear | nn.Identity = nn.Linear(2 * config.hidden_size, config.num_labels)
        record = getattr(config, "learnable_memory", None) or {}
        self._fingerprint: str | None = record.get("fingerprint")
        self.base_id: str | None = record.get("base_id")
        self._image_size: tuple[int, int] | None = None
        if record.get("image_size"):
            self.set_image_size(record["image_size"])
        self.heads: MutableMapping[str, Head] = nn.ModuleDict()  # type: ignore[assignment]  # its values are untyped
        self.folded: FoldedHeads | None = None
        self._graphs: dict[tuple, TaskGraph] = {}
        self.requires_grad_(False)
        for spec in record.get("heads", ()):
            self._add(HeadSpec(**spec))
        self.train()

    # ------------------------------------------------------------------------------------------------- base and disk
    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, dtype: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Load any HuggingFace ViT checkpoint, old or new key names, with the heads that `save_pretrained` put there.

        As in HuggingFace, with two differences: `dtype` is float32 unless told otherwise, whatever the file holds, and
        a tensor that is missing, unexpected or of another shape is an error. A checkpoint without a classifier gets
        none: no `"base"` entry. Heads arrive frozen; `train_only` wakes them.

        Raises ValueError for such tensors, a damaged file and another kind of model, OSError if there is no checkpoint.
        """
        name = pretrained_model_name_or_path
        dtype = kwargs.pop("torch_dtype", None) or dtype
        want_info = kwargs.pop("output_loading_info", False)
        # float32 first, because the fingerprint is taken before any cast; all that does not fit is judged below.
        ours = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
        hub = ("cache_dir", "revision", "token", "local_files_only", "subfolder", "force_download")
        where = {key: kwargs[key] for key in hub if key in kwargs}
        kind = cls.config_class.get_config_dict(name, **where)[0].get("model_type", "vit")
        if kind != "vit":
            raise ValueError(
                f"{name} is a {kind!r} model, not a plain ViT. What can be converted, "
                "learnable_memory.commands.model.open_base converts."
            )
        verbosity = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()  # its report would tell of a classifier that is going to be trained
        try:
            model, info = super().from_pretrained(name, *args, **{**kwargs, **ours})
        except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"The weights in {name} are damaged or cut short, or a pickle with more than tensors: {reason}."
            ) from None
        finally:
            hf_logging.set_verbosity(verbosity)
        missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
        if missing and missing == {key for key in model.state_dict() if key.startswith("classifier.")}:
            if "num_labels" in kwargs:
                raise ValueError(
                    f"{name} has no classifier. For a new one: add_head(name, {kwargs['num_labels']}, ...)."
                )
            missing = set()
            model.classifier, model.num_labels, model.config.num_labels = nn.Identity(), 0, 0
        mismatched = {entry[0] for entry in info["mismatched_keys"]}
        if missing or unexpected or mismatched:
            raise ValueError(
                f"{name} is not a whole ViT checkpoint. Missing: {_some(missing)}; unexpected: {_some(unexpected)}; "
                f"of another shape: {_some(mismatched)}."
            )
        model._recognise(name)
        model.requires_grad_(False).eval()
        if dtype == "auto":  # what the config on disk says; the loaded one says float32
            dtype = cls.config_class.from_pretrained(name, **where).dtype
        if dtype is not None:
            model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return (model, info) if want_info else model

    def _recognise(self, source: str | os.PathLike) -> None:
        """Take the fingerprint of a base that was just loaded, or the recorded one if nobody changed it since.

        The recorded one is that of the values before a cast to bfloat16, say, which those on disk cannot tell any more.
        """
        found = base_fingerprint(self.vit)
        record = getattr(self.config, "learnable_memory", None) or {}
        if found == record.get("saved_as"):
            return
        if self.heads:
            raise ValueError(
                f"The base in {source} was changed after its heads were saved with it: they do not fit it."
            )
        self._fingerprint, self.base_id = found, str(source)

    @classmethod
    def from_base(cls, base: ViTForImageClassification | ViTModel) -> "MemoryCapableViT":
        """Put heads on a model that is already there. Its modules are shared, not copied, and are frozen from now on.

        The fingerprint is taken from the values as they are, so a base cast to bfloat16 before this call is not the
        base on disk any more: load it with `from_pretrained(..., dtype=torch.bfloat16)` instead.
        """
        if not isinstance(base, (ViTForImageClassification, ViTModel)):
            raise TypeError(f"from_base takes a ViTForImageClassification or a ViTModel, got {type(base).__name__}.")
        return cls._around(base).requires_grad_(False).train(base.training)

    @classmethod
    def _around(cls, base: ViTForImageClassification | ViTModel) -> "MemoryCapableViT":
        """A model without heads that shares the modules of `base`."""
        config = copy.deepcopy(base.config)
        config.learnable_memory = None
        with torch.device("meta"):
            model = cls(config)
        model.vit = base if isinstance(base, ViTModel) else base.vit
        model.classifier = getattr(base, "classifier", nn.Identity())
        shared = base.fingerprint if isinstance(base, MemoryCapableViT) else None
        model._fingerprint = shared or base_fingerprint(model.vit)  # now, before any cast
        model.base_id = getattr(base, "base_id", None) or base.config.name_or_path
        model._image_size = getattr(base, "_image_size", None)
        return model

    @classmethod
    def from_tensors(
        cls, config: ViTConfig, tensors: Mapping[str, Tensor], base_id: str | None = None, **kwargs: Any
    ) -> "MemoryCapableViT":
        """A base whose tensors come from elsewhere, such as `learnable_memory.bases.convert`; frozen, in eval mode.

        Args:
            config: of a stock ViT, with `base_layout` where the base differs (see `BaseLayout`); num_labels=0 for a
                base without a classifier.
            tensors: float32, under the names and of the shapes of ViTForImageClassification; not copied.
            base_id: what heads are to say they were trained on.
            kwargs: as `attn_implementation` in HuggingFace's from_pretrained.

        Raises ValueError if a tensor is missing, unexpected, or of another shape.
        """
        with torch.device("meta"):  # no values are drawn only to be replaced
            model = cls._from_config(config, **kwargs)
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        other_shape = [name for name in wanted.keys() & tensors.keys() if wanted[name] != tensors[name].shape]
        if wanted.keys() != tensors.keys() or other_shape:
            raise ValueError(
                f"{base_id or 'These tensors'} are no whole ViT. Missing: {_some(wanted.keys() - tensors.keys())}; "
                f"unexpected: {_some(tensors.keys() - wanted.keys())}; of another shape: {_some(other_shape)}."
            )
        model.load_state_dict(tensors, assign=True)
        model.base_id = base_id
        model._fingerprint = base_fingerprint(model.vit)
        return model.requires_grad_(False).eval()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        """As in HuggingFace; the heads and the base's fingerprint are recorded in the config, so that they return."""
        self.config.learnable_memory = self._record()
        return super().save_pretrained(save_directory, **kwargs)

    def _record(self) -> dict:
        return {
            "fingerprint": self.fingerprint,
            "saved_as": base_fingerprint(self.vit),
            "base_id": self.base_id,
            "image_size": self._image_size,
            "heads": [dataclasses.asdict(head.spec) for head in self.heads.values()],
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the base's encoder, taken when it was loaded; of a model made from a config, at the first use."""
        if self._fingerprint is None:
            self._fingerprint = base_fingerprint(self.vit)
        return self._fingerprint

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that the model takes, in pixels."""
        return self._image_size or tuple(self.vit.embeddings.image_size)

    def set_image_size(self, size: int | Sequence[int]) -> None:
        """Take images of another size from now on: positions are resized as the base's family does it.

        Weights, fingerprint and heads stay as they are.

        Args:
            size: (height, width) in pixels, or one number for both.

        Raises ValueError if they are not multiples of the patch size, or the base's positions cannot be resized.
        """
        height, width = (size, size) if isinstance(size, int) else size
        patch_height, patch_width = self.vit.embeddings.patch_embeddings.patch_size
        if min(height, width) < 1 or height % patch_height or width % patch_width:
            raise ValueError(
                f"Images of {height}x{width} pixels cannot be cut into patches of {patch_height}x{patch_width}: "
                f"take multiples of these, such as {max(1, round(height / patch_height)) * patch_height}x"
                f"{max(1, round(width / patch_width)) * patch_width}."
            )
        native = tuple(self.vit.embeddings.image_size)
        if (height, width) != native and native[0] != native[1] and type(self.vit.embeddings) is ViTEmbeddings:
            raise ValueError(
                f"HuggingFace's ViT resizes positions of square images only; this base takes {native[0]}x{native[1]}."
            )
        self._image_size = (height, width)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(rows, columns) of patches in an image of the present size."""
        patch_height, patch_width = self.vit.embeddings.patch_embeddings.patch_size
        height, width = self.image_size
        return height // patch_height, width // patch_width

    @property
    def num_tokens(self) -> int:
        """N, the base's tokens of an image of the present size."""
        rows, columns = self.patch_grid
        return 1 + self.layout.extra_tokens + rows * columns

    @property
    def has_base_classifier(self) -> bool:
        """Whether the base has answers of its own."""
        return isinstance(self.classifier, nn.Linear)

    def train(self, mode: bool = True) -> "MemoryCapableViT":
        """As in torch, but a frozen base stays in eval mode: its dropout must not disturb what heads build on."""
        super().train(mode)
        for module in (self.vit, self.classifier):
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    # --------------------------------------------------------------------------------------------------------- heads
    @property
    def head_names(self) -> list[str]:
        """Names of the heads, in the order in which they were added; `"base"` is not among them."""
        return list(self.heads)

    def add_head(
        self, name: str, num_labels: int, memory_tokens: int = 1, extends: Sequence[str] = (), memory_norm: bool = True,
        std: float = 0.02, *, class_token: bool = True, rank: int | Mapping[str, int] = 0,
        metadata: Mapping | None = None,
        generator: torch.Generator | None = None,
    ) -> list[nn.Parameter]:  # fmt: skip
        """Add a new head. Heads that it extends, and those that they extend, are frozen.

        Args:
            name: of letters, digits, `_`, `+` and `-`.
            num_labels: C, classes of its data set.
            memory_tokens: m in each layer; 0 for a class token alone.
            extends: names of heads that are here already, whose class tokens and memory it is to see.
            memory_norm: pass the memory through each layer's first norm, as the paper does.
            std: of the initial memory (paper, section 3) and of the initial classifier's weight, both N(0, std^2).
            rank: of low-rank updates of the projections of its class token, which are not scaled (alpha / r is 1): one
                number for query, output, mlp_in and mlp_out, or {projection: rank} of these, key and value; 0 for none.
            class_token: False for a linear probe, which has no memory.
            metadata: what else its file is to say: labels, data set, preprocessing.
            generator: on the CPU; draws the initial values.

        Returns:
            The new parameters [class token [D], memory [m, D] of each layer.., weight [C, D], bias [C], and of each
            low-rank update the factors [L, r, inputs], [L, outputs, r]].

        Raises ValueError if the name is taken or not legal, an extended head is unknown, a count or a rank is negative,
        or a projection is none.
        """
        if isinstance(extends, str):
            raise TypeError(f"extends takes a sequence of names, got the string {extends!r}; write ({extends!r},).")
        spec = HeadSpec(
            name, num_labels, memory_tokens, tuple(extends), memory_norm, class_token, dict(metadata or {}),
            ranks_of(rank),
        )  # fmt: skip
        if not std >= 0:
            raise ValueError(f"std must be 0 or more, got {std}.")
        head = self._add(spec, std, generator)
        for ancestor in self.with_ancestors([name])[:-1]:
            self.heads[ancestor].requires_grad_(False)
        return list(head.parameters())

    def _add(self, spec: HeadSpec, std: float = 0.02, generator: torch.Generator | None = None) -> Head:
        if spec.name in self.heads:
            raise ValueError(
                f"There is a head {spec.name} already. Take another name, or remove_head({spec.name!r}) first."
            )
        self._check_parents(spec)
        config, position = self.config, self.vit.embeddings.position_embeddings
        head = Head(spec, config.hidden_size, config.num_hidden_layers, config.intermediate_size)
        head = head.to(position.device, torch.promote_types(position.dtype, torch.float32))
        if position.device.type != "meta":
            head.initialise(self.vit.embeddings.cls_token, std, generator)
        self.heads[spec.name] = head
        self._heads_changed()
        return head

    def _check_parents(self, spec: HeadSpec) -> None:
        unknown = [parent for parent in spec.extends if parent not in self.heads]
        if unknown:
            raise ValueError(
                f"{spec.name} cannot extend {', '.join(unknown)}: no such head here. "
                f"Add or load it first; the heads are: {', '.join(self.heads) or 'none'}."
            )
        probes = [parent for parent in spec.extends if not self.heads[parent].spec.class_token]
        if probes:
            raise ValueError(f"{spec.name} cannot extend {', '.join(probes)}: a linear probe has nothing to be seen.")

    def remove_head(self, name: str) -> None:
        """Take a head out. Raises KeyError if there is none, ValueError if other heads extend it."""
        self._head(name)
        children = [child for child, head in self.heads.items() if name in head.spec.extends]
        if children:
            raise ValueError(f"{name} cannot be removed: {', '.join(children)} extend it. Remove those first.")
        del self.heads[name]
        self._heads_changed()

    def _heads_changed(self) -> None:
        self._graphs.clear()
        self.folded = None  # slower from here, never wrong

    def train_only(self, names: Iterable[str]) -> list[nn.Parameter]:
        """Make the parameters of these heads, and no others, trainable, and return them.

        Raises ValueError if one of them extends another: what a head is built on must not move while it learns.
        """
        names = self._names(names)
        for name in names:
            moving = [ancestor for ancestor in self.with_ancestors([name])[:-1] if ancestor in names]
            if moving:
                raise ValueError(
                    f"{name} extends {', '.join(moving)}, which would move while it learns: train that first."
                )
        self.requires_grad_(False)
        self.folded = None  # it would not move with what is trained
        learned = [parameter for name in names for parameter in self.heads[name].parameters()]
        for parameter in learned:
            parameter.requires_grad_(True)
        return learned

    def concatenate(self, other: "MemoryCapableViT") -> None:
        """Copy all heads of `other` into this model; each goes on answering as before.

        Raises ValueError if `other` has another base or a name is taken; then nothing is changed.
        """
        if not isinstance(other, MemoryCapableViT):
            raise TypeError(f"concatenate takes a MemoryCapableViT, got {type(other).__name__}.")
        if other.fingerprint != self.fingerprint:
            raise ValueError(
                f"The models have different bases: {self.base_id} ({self.fingerprint}) here, {other.base_id} "
                f"({other.fingerprint}) there. Heads can only be put together on the base that they were trained on."
            )
        taken = [name for name in other.heads if name in self.heads]
        if taken:
            raise ValueError(f"Both models have a head {', '.join(taken)}. Rename or remove it in one of them.")
        device = self.vit.embeddings.cls_token.device
        for name, head in other.heads.items():
            self.heads[name] = copy.deepcopy(head).to(device)
        self._heads_changed()

    def save_head(
        self, name: str, path: str | os.PathLike, metadata: Mapping | None = None, save_as: str | None = None
    ) -> None:
        """Write one head as a file of its own (`learnable_memory.heads`). `metadata` is added to the head's own.

        `save_as` is the name that it has in the file, where that is another one.
        """
        head = self._head(name)
        parents = self._parents(head.spec)
        merged = {**head.spec.metadata, **(metadata or {})}
        spec = dataclasses.replace(head.spec, name=save_as or name, metadata=merged)
        base = {"id": self.base_id, "fingerprint": self.fingerprint}
        size = self.config.hidden_size, self.config.num_hidden_layers
        metadata = head_files.describe(spec, base, *size, parents, self.config.intermediate_size)
        head_files.save(path, head.tensors(), metadata)

    def load_head(self, source: str | os.PathLike | HeadFile) -> str:
        """Add the head in a file, frozen, and return its name.

        Args:
            source: a file with one head, or what `learnable_memory.heads` read from one.

        Raises FileNotFoundError or ValueError, as `learnable_memory.heads.load`; ValueError if it belongs to another
        base, its name is taken, or a head that it extends is absent or not the one that it was trained on.
        """
        if isinstance(source, HeadFile):
            file, where = source, source.metadata["name"]
            head_files.check(file.tensors, file.metadata, where)
        else:
            file, where = head_files.load(source), str(source)  # checked by its reader
        size = self.config.hidden_size, self.config.num_hidden_layers, self.config.intermediate_size
        head_files.check_base(file.metadata, self.fingerprint, *size, where=where)
        for parent in file.metadata["extends"]:
            here = self._hash(parent["name"]) if parent["name"] in self.heads else None
            if here != parent["hash"]:
                what = "is not loaded" if here is None else "is loaded, but is not the one that it was trained on"
                raise ValueError(
                    f"{where} extends the head {parent['name']}, which {what}. Load that one's file first."
                )
        spec = head_files.spec_of(file.metadata)
        unseen = torch.Generator()  # what it draws is replaced; the global generator must not notice
        head = self._add(spec, generator=unseen)
        head.load(file.tensors)
        head.requires_grad_(False)
        return spec.name

    def load_heads(self, path: str | os.PathLike) -> list[str]:
        """Add all heads of a file, frozen, and return their names; errors as in `load_head`, and then none is added."""
        loaded = []
        try:
            for file in head_files.load_all(path):
                loaded.append(self.load_head(file))
        except ValueError:
            for name in reversed(loaded):
                self.remove_head(name)
            raise
        return loaded

    def _parents(self, spec: HeadSpec) -> list[dict[str, str]]:
        return [{"name": parent, "hash": self._hash(parent)} for parent in spec.extends]

    def _hash(self, name: str) -> str:
        self._head(name)
        known: dict[str, str] = {}
        for each in self.with_ancestors([name]):  # parents first and each once: a graph has many paths
            head = self.heads[each]
            parents = [{"name": parent, "hash": known[parent]} for parent in head.spec.extends]
            known[each] = head_files.head_hash(head.spec, head.tensors(), parents)
        return known[name]

    def _names(self, names: Iterable[str]) -> list[str]:
        """Names of heads that exist, each once. Raises TypeError for a string, KeyError for an unknown head."""
        if isinstance(names, str):
            raise TypeError(f"heads takes a list of names, got the string {names!r}; write [{names!r}].")
        return [name for name in dict.fromkeys(names) if self._head(name)]

    def _head(self, name: str) -> Head:
        if name == "base":
            raise KeyError("'base' is no head: ask for the base's own answers with with_base=True.")
        if name not in self.heads:
            raise KeyError(f"There is no head {name!r}. The heads are: {', '.join(self.heads) or 'none'}.")
        return self.heads[name]

    def with_ancestors(self, names: Iterable[str]) -> list[str]:
        """These heads and all that they are built on, in the model's order: ancestors stand before those who extend."""
        wanted = set(names)
        for name in reversed(self.head_names):
            if name in wanted:
                wanted.update(self.heads[name].spec.extends)
        return [name for name in self.heads if name in wanted]

    # --------------------------------------------------------------------------------------------------------- serve
    def copy_of_base(self, learned: Callable[[str], bool]) -> "MemoryCapableViT":
        """The base without its heads and its classifier, as a copy that may change; this model never does.

        Args:
            learned: by the name of one of ViTModel's parameters, whether the copy is to learn it. Those are copied and
                want gradients; the others share their storage with this model.
        """
        shared = MemoryCapableViT._around(self)
        shared.classifier = nn.Identity()
        return copy.deepcopy(shared, _in_place_of_copies(self.vit, learned))

    @torch.no_grad()
    def for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> "MemoryCapableViT":
        """A frozen copy to serve: the memory's keys and values are computed once, the base's attention is fused (sdpa).

        It shares the base's weights with this model, unless `dtype` is another one, and has its heads as they are now:
        what is trained or added here later does not reach it. Heads added to the copy are answered, unfolded; weights
        in it are not to be changed by hand, for the memory's keys and values would not follow.

        Args:
            dtype: of the base and of what passes through it, such as torch.bfloat16; None for that of this model.
            compile: let torch.compile translate it at the first call (minutes).
        """
        served = copy.deepcopy(self, _in_place_of_copies(self.vit) | _in_place_of_copies(self.classifier))
        served.requires_grad_(False).eval().to(dtype or self.vit.embeddings.cls_token.dtype)
        served.set_attn_implementation("sdpa")
        tasks = [name for name, head in served.heads.items() if head.spec.class_token]
        if any(served.heads[name].memory or served.heads[name].low_rank for name in tasks):
            graph, layers = served._graph(tasks), range(served.config.num_hidden_layers)
            projected = [served.project_memory(index, tasks, graph) for index in layers]
            specs, stacked = [served.heads[name].spec for name in tasks], served._low_rank(tasks)
            served.folded = FoldedHeads(specs, projected, stacked)
        if compile:
            served.compile()
        return served

    def classifier_for(self, name: str) -> "HeadClassifier":
        """One head as a HuggingFace classifier, for `transformers.pipeline`, `Trainer` and the like.

        It shares base and head with this model: training it trains the head here (`train_only([name])` first, if the
        head was loaded). Raises KeyError for an unknown head.
        """
        return HeadClassifier.of(self, name)

    # ------------------------------------------------------------------------------------------------------- forward
    def forward(
        self, pixel_values: Tensor | BaseTokens, heads: Sequence[str] | None = None, with_base: bool = True,
        labels: Mapping[str, Tensor] | None = None, interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False, output_attentions: bool = False,
    ) -> dict[str, ImageClassifierOutput]:  # fmt: skip
        """Answer all tasks in one pass.

        Args:
            pixel_values: [B, channels, height, width], normalised as the base was trained; cast to the base's dtype. Or
                what `base_tokens` gave for them, which saves the whole base stream.
            heads: the heads to answer; None for all. What they are built on is computed and not returned.
            with_base: also the base's own answer, if it has a classifier. Without it, and if no linear probe asks, the
                base stream ends at the last layer's keys and values.
            labels: head -> targets, int64 [B]; fills `loss`, the mean cross entropy.
            interpolate_pos_encoding: take images of any size, not only of `image_size`.
            output_hidden_states: `"base"`: [B, N, D] after the embeddings and each layer, as HuggingFace. A head: its
                class token [B, 1, D] likewise. From `BaseTokens`, the base has neither these nor attentions.
            output_attentions: per layer, the row of the class token. `"base"`: [B, H, 1, N]. A head: [B, H, 1, all]:
                the N base tokens in HuggingFace's order (class token first), the class tokens of its ancestors and
                its own, the memory of its ancestors and its own.

        Returns:
            Mapping head name -> ImageClassifierOutput, `"base"` first; `logits` are [B, C], float32 for heads.

        Raises KeyError for an unknown head, ValueError for labels of a head that does not answer, TypeError for labels
        that are no mapping.
        """
        names = self.head_names if heads is None else self._names(heads)
        with_base = with_base and self.has_base_classifier
        labels = {} if labels is None else labels
        if not isinstance(labels, Mapping):
            raise TypeError(f"labels takes a mapping such as {{'CIFAR100': targets}}, got {type(labels).__name__}.")
        silent = [name for name in labels if name not in names and not (name == "base" and with_base)]
        if silent:
            raise ValueError(f"There are labels for {', '.join(silent)}, which do not answer in this pass.")
        tasks = self.with_ancestors(name for name in names if self.heads[name].spec.class_token)
        needs_base = with_base or any(not self.heads[name].spec.class_token for name in names)
        if with_base and isinstance(pixel_values, BaseTokens):
            read, kept = self.classifier.in_features, pixel_values.output.shape[-1]
            if kept != read:
                raise ValueError(
                    f"The base's classifier reads {read} numbers, but only {kept} of an image were kept: give "
                    "with_base=False."
                )

        graph, updates = self._graph(tasks), TaskUpdates(self._low_rank(tasks), len(tasks))
        images = pixel_values.output if isinstance(pixel_values, BaseTokens) else pixel_values
        tokens = self._class_tokens(tasks, images.shape[0])  # [B, T, D]; len() would make B a constant when exported
        base, task = Trace(output_hidden_states, output_attentions), Trace(output_hidden_states, output_attentions)
        if isinstance(pixel_values, BaseTokens):
            stream = pixel_values.stream(self.vit)
        else:
            stream = self.base_stream(pixel_values, interpolate_pos_encoding, not needs_base, output_attentions)
        for index, layer in enumerate(stream):
            base.keep(layer.inputs, layer.class_row)
            task.keep(tokens)
            if tasks:
                tokens, weights = self.task_layer(index, tokens, layer.seen, tasks, graph, updates)
                task.keep(None, weights)
        base.keep(layer.hidden)
        task.keep(tokens)

        answers = {}

        def answer(name: str, logits: Tensor, states: Iterable[Tensor], rows: Iterable[Tensor]) -> None:
            precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(precise, labels[name]) if name in labels else None
            answers[name] = ImageClassifierOutput(loss, logits, tuple(states) or None, tuple(rows) or None)

        if needs_base:
            base_output = self._base_output(pixel_values, layer.hidden)  # [B, D] or [B, 2D]
            with torch.set_grad_enabled(self._base_records(pixel_values)):
                if with_base:
                    answer("base", self.classifier(base_output), base.states, base.rows)
            base_output = base_output[:, : self.config.hidden_size]  # what a linear probe reads
        outputs = self.vit.layernorm(tokens)  # [B, T, D]
        for name in names:
            if name in tasks:
                i = tasks.index(name)
                rows = (graph.visible(weights, i) for weights in task.rows)
                answer(name, self._classify(name, outputs[:, i]), (state[:, i : i + 1] for state in task.states), rows)
            else:
                answer(name, self._classify(name, base_output), (state[:, :1] for state in base.states), base.rows)
        return answers

    def _base_output(self, pixel_values: Tensor | BaseTokens, hidden: Tensor | None) -> Tensor:
        """What the base's classifier reads (see `BaseLayout`), from the last layer's `hidden` [B, N, D]."""
        if isinstance(pixel_values, BaseTokens):
            return pixel_values.output.to(self.vit.layernorm.weight.dtype)
        with torch.set_grad_enabled(self._base_records(pixel_values)):
            tokens = self.vit.layernorm(hidden)  # [B, N, D]
            if self.layout.readout == "class":
                return tokens[:, 0, :]
            patches = tokens[:, 1 + self.layout.extra_tokens :].mean(dim=1)
            return torch.cat([tokens[:, 0], tokens[:, 1] if self.layout.readout == "class+extra" else patches], dim=1)

    @torch.no_grad()
    def base_tokens(self, pixel_values: Tensor, keys_and_values: bool = True) -> BaseTokens:
        """What heads need of the base for these images: [B, channels, height, width], as in `forward`.

        Args:
            keys_and_values: of each layer, exact in every bit; else the tokens after its first norm, which are half of
                that and leave rounding differences (1e-5 of a logit in float32).
        """
        stream = list(self.base_stream(pixel_values))
        kept = [torch.stack(layer.seen) if keys_and_values else layer.normed for layer in stream]
        layers = torch.stack(kept)  # type: ignore[arg-type]  # from pixels, every layer has both
        return BaseTokens(layers, self._base_output(pixel_values, stream[-1].hidden))

    def _base_records(self, pixel_values: Tensor | BaseTokens) -> bool:
        """Whether autograd must record the base stream: something in it, or the image, wants a gradient."""
        return torch.is_grad_enabled() and (
            getattr(pixel_values, "requires_grad", False)
            or any(
                parameter.requires_grad for module in (self.vit, self.classifier) for parameter in module.parameters()
            )
        )

    def base_stream(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, stop_early: bool = False,
        want_rows: bool = False,
    ) -> Iterator[BaseLayer]:  # fmt: skip
        """Run the plain ViT layer by layer, without autograd unless something in it is trained.

        Args:
            pixel_values: [B, channels, height, width], as in `forward`; so is `interpolate_pos_encoding`.
            stop_early: end the last layer at its keys and values.
            want_rows: also the attention of the base class token, [B, H, 1, N] in each layer.
        """
        records = self._base_records(pixel_values)
        with torch.set_grad_enabled(records):
            hidden = self.embed(pixel_values, interpolate_pos_encoding)  # [B, N, D]
            mask = create_bidirectional_mask(config=self.vit.config, inputs_embeds=hidden, attention_mask=None)
        for index, layer in enumerate(self.vit.layers):
            stop = stop_early and index == len(self.vit.layers) - 1
            with torch.set_grad_enabled(records):  # not around the yield: the caller's mode is its own
                state = run_base_layer(layer, hidden, mask, stop, want_rows)
            yield state
            if state.hidden is not None:  # None: it was the last layer
                hidden = state.hidden

    def embed(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """What enters the base's first layer, [B, N, D]; arguments as in `forward`."""
        pixel_values = pixel_values.to(self.vit.embeddings.patch_embeddings.projection.weight.dtype)
        resize = interpolate_pos_encoding or self._resizes(*pixel_values.shape[-2:])
        return self.vit.embeddings(pixel_values, interpolate_pos_encoding=resize)

    def joint_attention(self) -> nn.ModuleList:
        """All layers' attention in joint form, sharing the base's weights: L of SelfAttentionWithMemory."""
        return nn.ModuleList(SelfAttentionWithMemory.from_attention(layer.attention) for layer in self.vit.layers)

    def _resizes(self, height: int, width: int) -> bool:
        """Whether positions have to be resized for images of the model's size. Raises ValueError for another size."""
        if (height, width) != self.image_size:
            raise ValueError(
                f"The images have {height}x{width} pixels, but the model takes {self.image_size[0]}x"
                f"{self.image_size[1]}. Resize them, or the model with set_image_size."
            )
        return self.image_size != tuple(self.vit.embeddings.image_size)

    def _graph(self, tasks: Sequence[str]) -> TaskGraph:
        device = self.vit.embeddings.cls_token.device
        key = (*tasks, device)
        if key not in self._graphs:
            with torch.inference_mode(False):  # it is kept, and training must be able to use it later
                self._graphs[key] = TaskGraph([self.heads[name].spec for name in tasks], device)
        return self._graphs[key]

    def _class_tokens(self, tasks: Sequence[str], batch: int) -> Tensor:
        """The class tokens where they enter the first layer, with the class token's position: [B, T, D]."""
        position = self.vit.embeddings.position_embeddings[0, :1]  # [1, D]
        if not tasks:
            return position.new_empty(batch, 0, position.shape[-1])
        found: list[Tensor] = []
        for name in tasks:
            token = self.heads[name].class_token
            assert token is not None, "a linear probe is no task"
            found.append(token)
        tokens = torch.stack(found).to(position.dtype)  # [T, D]
        return (tokens + position).expand(batch, -1, -1)

    def _low_rank(self, tasks: Sequence[str]) -> list[SameRank]:
        if self.folded is not None:
            return self.folded.low_rank(tasks)
        return stack_low_rank([self.heads[name] for name in tasks], self.vit.embeddings.cls_token.dtype)

    def task_layer(
        self, index: int, tokens: Tensor, seen: KeysAndValues | NormedTokens, tasks: Sequence[str], graph: TaskGraph,
        updates: TaskUpdates,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Layer `index` for the class tokens [B, T, D] of `tasks`, given the base's tokens there.

        Returns the tokens after the layer, and the attention weights of `attend`.
        """
        layer: ViTLayer = self.vit.layers[index]
        attention, mlp = layer.attention, layer.mlp
        modules = {
            "query": attention.q_proj, "key": attention.k_proj, "value": attention.v_proj, "output": attention.o_proj,
            "mlp_in": mlp.fc1, "mlp_out": mlp.fc2,
        }  # fmt: skip

        def project(name: str, inputs: Tensor) -> Tensor:
            return updates(name, index, inputs, modules[name](inputs))  # [B, T, outputs]

        normed = layer.layernorm_before(tokens)
        own = _split(project("key", normed), attention), _split(project("value", normed), attention)
        memory = self.project_memory(index, tasks, graph)
        query = _split(project("query", normed), attention)  # [B, H, T, d]
        context, weights = attend(attention, query, seen, own, memory, graph)
        tokens = project("output", context.transpose(1, 2).flatten(2)) + tokens  # [B, T, D]
        inner = mlp.activation_fn(project("mlp_in", layer.layernorm_after(tokens)))
        return project("mlp_out", inner) + tokens, weights

    def project_memory(self, index: int, tasks: Sequence[str], graph: TaskGraph) -> tuple[Tensor, Tensor]:
        """Keys and values of the M memory tokens of `tasks` in layer `index`, and a row of padding: [H, M + 1, d]."""
        if self.folded is not None:
            return self.folded.memory(index, tasks)
        layer: ViTLayer = self.vit.layers[index]
        attention, norm = layer.attention, layer.layernorm_before
        owners = [self.heads[name] for name in tasks if self.heads[name].memory]
        memory = (
            torch.cat([head.memory[index] for head in owners]) if owners else norm.weight.new_empty(0, len(norm.weight))
        )
        memory = memory.to(norm.weight.dtype)  # [M, D]
        if graph.any_normed:
            normed = norm(memory)
            memory = normed if graph.all_normed else torch.where(graph.normed[:, None], normed, memory)
        memory = F.pad(memory, (0, 0, 0, 1))  # [M + 1, D], the last row being the padding of TaskGraph

        def project(name: str, module: nn.Linear) -> Tensor:
            projected = module(memory)
            if any(name in head.low_rank for head in owners):
                pieces = memory[:-1].split([head.spec.memory_tokens for head in owners])
                extra = [
                    head.low_rank[name].extra(index, piece) if name in head.low_rank else torch.zeros_like(piece)
                    for head, piece in zip(owners, pieces, strict=True)
                ]
                projected = projected + F.pad(torch.cat(extra), (0, 0, 0, 1))
            return _split(projected, attention)

        return project("key", attention.k_proj), project("value", attention.v_proj)

    def _classify(self, name: str, features: Tensor) -> Tensor:
        """[B, D] -> float32 logits [B, C], also under autocast"""
        classifier = self.heads[name].classifier
        with torch.autocast(features.device.type, enabled=False):
            return classifier(features.to(classifier.weight.dtype))


class HeadClassifier(MemoryCapableViT):
    """One head, behaving as a `ViTForImageClassification` of its classes; made by `classifier_for`.

    `config.num_labels`, `id2label` and `label2id` are the head's. On disk it is a MemoryCapableViT with this head and
    those that it extends, from which either class reads it back.
    """

    config: ViTConfig
    base_config: ViTConfig
    head_name: str

    @classmethod
    def of(cls, model: MemoryCapableViT, name: str) -> "HeadClassifier":
        """As `MemoryCapableViT.classifier_for`."""
        spec = model._head(name).spec
        classifier = cls._around(model)
        for member in model.with_ancestors([name]):
            classifier.heads[member] = model.heads[member]
        classifier.head_name, classifier.base_config = name, model.config
        classifier.loss_type = "ForImageClassification"  # which HuggingFace guesses from the name of the class
        labels = spec.metadata.get("labels") or [f"LABEL_{i}" for i in range(spec.num_labels)]
        classifier.config.id2label = dict(enumerate(labels))  # and with it num_labels
        classifier.config.label2id = {label: i for i, label in enumerate(labels)}
        classifier.config.problem_type = "single_label_classification"
        classifier.num_labels = spec.num_labels
        return classifier.train(model.training)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, head: str | None = None, **kwargs: Any
    ) -> Any:
        """As `MemoryCapableViT.from_pretrained`, then `classifier_for(head)`; `head` may be left out if it was saved
        from a classifier, or has only one. Raises ValueError if it has several."""
        model = MemoryCapableViT.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, *info = model if isinstance(model, tuple) else (model,)
        saved = model.config.learnable_memory or {}
        name = head or saved.get("answers") or (model.head_names[0] if len(model.heads) == 1 else None)
        if name is None:
            raise ValueError(
                f"{pretrained_model_name_or_path} has {len(model.heads)} heads ({', '.join(model.heads) or 'none'}): "
                "say which with head=..."
            )
        return (cls.of(model, name), *info) if info else cls.of(model, name)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        """As MemoryCapableViT: the base's own configuration and classifier stay what they are."""
        ours, self.config = self.config, copy.deepcopy(self.base_config)
        try:
            return super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config = ours

    def _record(self) -> dict:
        return {**super()._record(), "answers": self.head_name}

    def forward(  # type: ignore[override]  # HuggingFace's arguments, not those of the class above
        self, pixel_values: Tensor, labels: Tensor | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> ImageClassifierOutput | tuple:  # fmt: skip
        """As `ViTForImageClassification.forward`: pixel_values [B, channels, height, width], labels int64 [B].

        `logits` are [B, C], float32; `loss` is the mean cross entropy, if there are labels. `kwargs` go to
        HuggingFace's loss (`num_items_in_batch` of its Trainer).
        """
        answers = super().forward(
            pixel_values, [self.head_name], with_base=False, interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=bool(output_hidden_states), output_attentions=bool(output_attentions),
        )  # fmt: skip
        output = answers[self.head_name]
        if labels is not None:  # a new one, for the loss has to come first in its tuple
            loss = self.loss_function(labels, output.logits, self.config, **kwargs)
            output = ImageClassifierOutput(loss, output.logits, output.hidden_states, output.attentions)
        return output if return_dict in (None, True) else output.to_tuple()


# The pipeline looks for a model's class name here, and would call this one unsupported on every start.
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[HeadClassifier.__name__] = HeadClassifier.__name__
