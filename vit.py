"""Vision Transformers with learnable memory: many heads on one frozen base, answered in one forward pass.

Sandler, Zhmoginov, Vladymyrov, Jackson: Fine-tuning Image Transformers using Learnable Memory. CVPR 2022,
arXiv 2203.15243.

Nothing that a head adds is ever seen by the base's tokens, so the model runs in two streams. The *base stream* is the
stock vision encoder of transformers, whatever its family: frozen, without autograd, its own layers called. The *task
stream* carries one class token per head; in each layer its queries meet the keys and values that the base stream has
just computed, its own, and those of its memory. What a head may also have are low-rank updates of the layers'
projections, which are applied to its class token alone.

    B images          T heads with a class token    D width            L layers
    P patches         k heads of a mask             H attention heads  C classes of a head
    N base tokens     m memory tokens of one head   d = D / H          M memory tokens of all T heads in a layer

N = P + S, S being the base's own special tokens: 1 for ViT, its class token; 0 for SigLIP; 5 for DINOv3 with four
registers. r is the rank of a low-rank update, R what the base's own classifier reads (D, or 2 D of DINOv2).
What this file is composed of is in learnable_memory/model/.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import ViTAttention, eager_attention_forward

from learnable_memory.heads import HeadSpec, ranks_of
from learnable_memory.model.base import Base, BaseRun, answer
from learnable_memory.model.base_tokens import BaseTokens, Seen
from learnable_memory.model.classifier import OneHead
from learnable_memory.model.families import LayerParts, scaled
from learnable_memory.model.graph import Padded, TaskGraph, ancestors_of
from learnable_memory.model.inputs import Inputs
from learnable_memory.model.loading import Loading, over
from learnable_memory.model.low_rank import LowRank, TaskUpdates
from learnable_memory.model.registry import Registry, extends_names
from learnable_memory.model.serving import Serving
from learnable_memory.model.stored_head import StoredHead
from learnable_memory.projections import projection_size

__all__ = ["BaseTokens", "HeadClassifier", "MemoryCapableViT", "SelfAttentionWithMemory", "build_attention_mask"]


# ===================================================================================================== who sees what
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


# ========================================================================================================= attention
def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension, in float32 at least, as the eager attention of the base does it."""
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


class SelfAttentionWithMemory(ViTAttention):
    """One attention layer in joint form: all tokens ask; all tokens and the memory are asked (paper, section 3).

    This is the method as the paper writes it, for reading, for methods that let base tokens see memory, and as what the
    two streams must equal. Memory has keys and values and no queries.
    """

    @classmethod
    def from_attention(cls, attention: nn.Module) -> "SelfAttentionWithMemory":
        """The joint form of a stock layer of any family that does not rotate its keys, sharing its weights."""
        joint = cls.__new__(cls)
        nn.Module.__init__(joint)  # its own weights are never made
        joint.config = getattr(attention.config, "config", attention.config)
        joint.head_dim, joint.is_causal = attention.head_dim, False
        joint.scaling = getattr(attention, "scaling", None) or attention.scale
        joint.q_proj, joint.k_proj, joint.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        joint.o_proj = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
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
        query = self._split(self.q_proj(hidden_states))  # [B, H, N, d]
        key, value = (self._split(projection(keys_from)) for projection in (self.k_proj, self.v_proj))
        mask = None if attention_mask is None else attention_mask.to(query).unsqueeze(-3)  # [.., 1, N, N + M]
        if not need_weights:
            backend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            context, _ = backend(self, query, key, value, mask, scaling=self.scaling)  # [B, N, H, d]
            return self.o_proj(context.flatten(2)), None
        scores = query @ key.transpose(-1, -2) * self.scaling  # [B, H, N, N + M]
        if mask is not None:
            scores = scores + mask
        weights = _softmax(scores)
        return self.o_proj((weights @ value).transpose(1, 2).flatten(2)), weights

    def _split(self, x: Tensor) -> Tensor:
        """[..., N, D] -> [..., H, N, d]"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)


def attend(
    scaling: float, query: Tensor, base: Seen, own: tuple[Tensor, Tensor], memory: tuple[Tensor, Tensor],
    graph: TaskGraph,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of the class tokens over the base's tokens, themselves, what they inherit, and their memory.

    What is inherited is detached: a head's loss never reaches the heads that it extends (nor, through them, the image:
    input gradients leave that path out).

    Args:
        scaling: of the scores, d^-1/2.
        query: [B, H, T, d]
        base: the N base tokens.
        own, memory: keys and values, [B, H, T, d] and [H, M + 1, d] each, the last memory being what lists are padded
            with.

    Returns:
        Values [B, H, T, d], and weights [B, H, T, columns] with 0 where nothing is seen. The columns are N base tokens,
        T class tokens if any is inherited, itself, inherited memory, own memory.
    """
    query = query * scaling
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
class Head(StoredHead):
    """The parameters of one head: class token [D], memory [m, D] per layer, a linear classifier of C classes, and
    low-rank updates of the layers' projections for its class token."""

    def __init__(self, spec: HeadSpec, width: int, layers: int, mlp_width: int, readout_width: int) -> None:
        super().__init__()
        self.spec = spec
        self.class_token = nn.Parameter(torch.empty(width)) if spec.class_token else None
        shapes = [(spec.memory_tokens, width)] * (layers if spec.memory_tokens else 0)
        self.memory = nn.ParameterList(nn.Parameter(torch.empty(shape)) for shape in shapes)
        # Not nn.Linear(...), which would draw values from the global generator only for them to be replaced.
        self.classifier = nn.utils.skip_init(nn.Linear, width if spec.class_token else readout_width, spec.num_labels)
        sizes = {name: projection_size(name, width, mlp_width) for name in spec.low_rank}
        self.low_rank: Mapping[str, LowRank] = nn.ModuleDict(  # type: ignore[assignment]  # its values are untyped
            {name: LowRank(layers, rank, *sizes[name]) for name, rank in spec.low_rank.items()}
        )


# ========================================================================================================= one layer
Update = Callable[[str, Tensor, Tensor], Tensor]  # (projection, its inputs, its outputs) -> outputs with the update


def run_layer(
    parts: LayerParts, tokens: Tensor, attention: Callable[[Tensor, Tensor, Tensor], Tensor], updates: TaskUpdates,
    index: int,
) -> Tensor:  # fmt: skip
    """One pre-norm layer of any family for the class tokens, [B, T, D] -> the same.

    Args:
        attention: query, key and value [B, H, T, d] -> what the class tokens take up, [B, H, T, d].
        updates: low-rank updates of the projections in layer `index`.
    """

    def project(name: str, module: nn.Module, inputs: Tensor) -> Tensor:
        return updates(name, index, inputs, module(inputs))  # [B, T, outputs]

    normed = parts.norm1(tokens)
    asked = ("query", parts.query), ("key", parts.key), ("value", parts.value)
    context = attention(*(parts.split(project(name, module, normed)) for name, module in asked))
    context = context.transpose(1, 2).flatten(2)  # [B, T, D]
    tokens = scaled(parts.scale1, project("output", parts.output, context)) + tokens
    normed = parts.norm2(tokens)
    if not updates.touches("mlp_in", "mlp_out"):
        return scaled(parts.scale2, parts.mlp(normed)) + tokens
    inner = project("mlp_in", parts.mlp_in, normed)
    inner = parts.activation(inner) if parts.gate is None else parts.activation(parts.gate(normed)) * inner
    return scaled(parts.scale2, project("mlp_out", parts.mlp_out, inner)) + tokens


class TaskStream:
    """The class tokens of T heads on their way through the layers.

    Attributes:
        tokens: [B, T, D], behind the layers that have run.
        states: before each layer and at the end, T of [B, 1, D]; only if asked for.
        rows: of each layer, the weights of `attend`; only if asked for.
    """

    def __init__(self, model: Any, tasks: Sequence[str], batch: int, want_states: bool, want_rows: bool) -> None:
        self.model, self.tasks = model, tasks
        self.graph, self.updates = model.graph_of(tasks), TaskUpdates(model.low_rank_of(tasks), len(tasks))
        self.tokens = model.class_tokens(tasks).expand(batch, -1, -1)
        self.want_states, self.want_rows = want_states, want_rows
        self.states: list[tuple[Tensor, ...]] = []
        self.rows: list[Tensor] = []
        self.keep_state()

    def keep_state(self) -> None:
        """Note the tokens, taken apart and put together again: so their gradients can be looked at too."""
        if self.want_states:
            self.states.append(self.tokens.split(1, dim=1))
            self.tokens = torch.cat(self.states[-1], dim=1)

    def layer(self, index: int, parts: LayerParts, base: Seen) -> None:
        """The next layer, given what the class tokens see of the base there."""
        if not self.tasks:
            return
        memory = self.model.project_memory(index, parts, self.tasks, self.graph)

        def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            context, weights = attend(parts.scaling, query, base, (key, value), memory, self.graph)
            if self.want_rows:
                self.rows.append(weights)
            return context

        self.tokens = run_layer(parts, self.tokens, attention, self.updates, index)
        self.keep_state()


# ============================================================================================================= model
class MemoryCapableViT(Inputs, Registry, Serving, Loading, Base):
    """A vision encoder of transformers and any number of heads on it.

    `from_pretrained` and `from_base` give an instance that is one of the stock class too: a ViTForImageClassification
    for such a checkpoint, a DINOv3ViTModel, a SiglipVisionModel. The base's modules, parameter names and configuration
    are the stock ones; heads live under the prefix `heads.`. The base is frozen and in eval mode from the start, so
    `train()` affects heads only.

    Attributes:
        heads: ModuleDict, name -> Head, in the order in which they were added.
        fingerprint: SHA-256 of the base's encoder; heads fit this base only.
        base_id: what the base was loaded from: a name on the hub, or a folder.
    """

    heads: MutableMapping[str, Head]
    head_class, stream_class = Head, TaskStream
    _keep_in_fp32_modules_strict = ["heads"]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        record = getattr(config, "learnable_memory", None) or {}
        self._find_base()
        self._without_heads()
        self._restore(record)
        self.requires_grad_(False)
        self.train()

    def add_head(
        self, name: str, num_labels: int, memory_tokens: int = 1, extends: Sequence[str] = (), memory_norm: bool = True,
        std: float = 0.02, *, class_token: bool = True, rank: int | Mapping[str, int] = 0,
        metadata: Mapping | None = None, generator: torch.Generator | None = None,
    ) -> list[nn.Parameter]:  # fmt: skip
        """Add a new head. Heads that it extends, and those that they extend, are frozen.

        Its class token starts as a copy of the base's, and gets the position and the norm before the first layer that
        the base's gets. Of a base without a class token it starts as the probe of the attention pool (SigLIP, AIMv2),
        or as zeros (I-JEPA), without a position. Rotary positions turn patches only; a relative bias (BEiT) is that of
        the base's class token.

        Args:
            name: of letters, digits, `_`, `+` and `-`.
            num_labels: C, classes of its data set.
            memory_tokens: m in each layer; 0 for a class token alone.
            extends: names of heads that are here already, whose class tokens and memory it is to see.
            memory_norm: pass the memory through each layer's first norm, as the paper does.
            std: of the initial memory (paper, section 3) and of the initial classifier's weight, both N(0, std^2).
            rank: of low-rank updates of the projections of its class token, which are not scaled (alpha / r is 1): one
                number for query, output, mlp_in and mlp_out, or {projection: rank} of these, key and value; 0 for none.
            class_token: False for a linear probe on what the base's own classifier would read; it has no memory.
            metadata: what else its file is to say: labels, data set, preprocessing.
            generator: on the CPU; draws the initial values.

        Returns:
            The new parameters [class token [D], memory [m, D] of each layer.., weight [C, D], bias [C], and of each
            low-rank update the factors [L, r, inputs], [L, outputs, r]]; the weight of a linear probe is [C, R].

        Raises ValueError if the name is taken or not legal, an extended head is unknown, a count or a rank is negative,
        or a projection is none; TypeError if `extends` is no sequence of names.
        """
        spec = HeadSpec(
            name, num_labels, memory_tokens, extends_names(extends), memory_norm, class_token, dict(metadata or {}),
            ranks_of(rank),
        )  # fmt: skip
        if not std >= 0:
            raise ValueError(f"std must be 0 or more, got {std}.")
        head = self._add(spec, std, generator)
        for ancestor in self.with_ancestors([name])[:-1]:
            self.heads[ancestor].requires_grad_(False)
        return list(head.parameters())

    # ------------------------------------------------------------------------------------------------------- forward
    def forward(
        self, pixel_values: Tensor | BaseTokens, heads: Sequence[str] | None = None, with_base: bool = True,
        labels: Mapping[str, Tensor] | None = None, interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None, output_attentions: bool | None = None,
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
            output_hidden_states: `"base"`: [B, N, D] after the embeddings and each layer, as the stock class. A head:
                its class token [B, 1, D] likewise. `BaseTokens` have no states of the base, and no attentions of it.
            output_attentions: per layer, the row of the class token. `"base"`: [B, H, 1, N], if it has one. A head:
                [B, H, 1, all]: the N base tokens in their order, the class tokens of its ancestors and its own, the
                memory of its ancestors and its own. Both: None is what the config says.

        Returns:
            Mapping head name -> ImageClassifierOutput, `"base"` first; `logits` are [B, C], float32 for heads.

        Raises KeyError for an unknown head, ValueError for labels of a head that does not answer, TypeError for labels
        that are no mapping.
        """
        names = self.head_names if heads is None else self._names(heads)
        with_base = with_base and self.has_base_classifier
        labels = self._check_labels({} if labels is None else labels, [*names, *(["base"] if with_base else [])])
        want_states = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        want_rows = bool(self.config.output_attentions if output_attentions is None else output_attentions)
        tasks = self.with_ancestors(name for name in names if self.heads[name].spec.class_token)
        needs_base = with_base or not names or any(not self.heads[name].spec.class_token for name in names)

        images = pixel_values.output if isinstance(pixel_values, BaseTokens) else pixel_values
        batch = images.shape[0]  # len() would be a constant in exports
        stream = TaskStream(self, tasks, batch, want_states, want_rows)
        layers = list(self.layer_parts())
        if isinstance(pixel_values, BaseTokens):
            run = BaseRun(None, pixel_values.output.to(self.dtype), [])
            for index, seen in enumerate(pixel_values.stream(layers, self.class_biases(), self.dtype)):
                stream.layer(index, layers[index], seen)
        else:
            run = self.run_base(
                pixel_values, lambda index, seen: stream.layer(index, layers[index], seen), want_states=want_states,
                interpolate=interpolate_pos_encoding, stop_early=not needs_base, want_rows=want_rows,
            )  # fmt: skip
        base_states = getattr(run.outputs, "hidden_states", None) or ()
        answers = {}
        if with_base:
            answers["base"] = answer(self._base_logits(run), labels.get("base"), base_states, run.rows)
        outputs = self.anatomy.final_norm(self.encoder_module)(stream.tokens)  # [B, T, D]
        for name in names:
            if name in tasks:
                i = tasks.index(name)
                read, states = outputs[:, i], [state[i] for state in stream.states]
                rows = [self.graph_of(tasks).visible(weights, i) for weights in stream.rows]
            else:
                read, states, rows = run.readout, [state[:, :1] for state in base_states], run.rows
            answers[name] = answer(self._classify(name, read), labels.get(name), states, rows)
        return answers

    def joint_attention(self) -> nn.ModuleList:
        """All layers' attention in joint form, sharing the base's weights: L of SelfAttentionWithMemory."""
        return nn.ModuleList(SelfAttentionWithMemory.from_attention(parts.attention) for parts in self.layer_parts())

    def classifier_for(self, name: str) -> "HeadClassifier":
        """One head as a HuggingFace classifier, for `transformers.pipeline`, `Trainer` and the like.

        It shares base and head with this model: training it trains the head here (`train_only([name])` first, if the
        head was loaded). Raises KeyError for an unknown head.
        """
        return HeadClassifier.of(self, name)


class HeadClassifier(OneHead):
    """One head, behaving as a `ViTForImageClassification` of its classes; made by `classifier_for`.

    `config.num_labels`, `id2label` and `label2id` are the head's. On disk it is a MemoryCapableViT with this head and
    those that it extends, from which either class reads it back.
    """

    of_model = MemoryCapableViT


def __getattr__(name: str) -> Any:
    """The classes that pickles name: a stock class with heads on it."""
    stock = getattr(transformers, name, None)
    if not isinstance(stock, type):
        raise AttributeError(f"module 'vit' has no attribute {name!r}")
    return over(MemoryCapableViT, stock)
