"""Methods that change what the base's own tokens are: each learns a network of its own for one data set.

Unmasked memory, memory that is propagated, Visual Prompt Tuning, full fine-tuning, biases alone, and LoRA. Their
networks stand behind the surface of MemoryCapableViT that training, evaluation and prediction use, so all methods go
through the same engine; but they cannot be put together (`MethodSpec.reason`).

    network = build_network(base, MethodSpec("vpt-deep", memory_tokens=10), num_labels=100)
    model = TunedModel({"CIFAR100": network}, base.fingerprint, base.base_id)
    model(pixel_values, labels={"CIFAR100": targets})["CIFAR100"].loss.backward()

A network is a module from pixel_values [B, channels, height, width] to float32 logits [B, C], in which exactly what is
learned wants gradients.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import ImageClassifierOutput

from learnable_memory.method_spec import MethodSpec
from learnable_memory.model.families import LayerParts, scaled

OF_WEIGHTS = ("full", "bias", "lora")  # learned as float32 weights of the base; less precision is a matter of autocast
STD = 0.02  # of new memory and classifiers, as in heads


def build_network(
    base: Any, spec: MethodSpec, num_labels: int, generator: torch.Generator | None = None,
    gradient_checkpointing: bool = False, autocast: torch.dtype | None = None,
) -> nn.Module:  # fmt: skip
    """What a method learns on a base, at its initial values.

    Args:
        base: a MemoryCapableViT, which stays as it is; frozen weights share their storage with it.
        spec: of a method that cannot be put together with others.
        num_labels: C, classes of the data set.
        generator: on the CPU; draws the initial values.
        gradient_checkpointing: keep only what enters each layer, and compute the layer again for its gradients.
        autocast: of methods that learn the base's own weights, the precision of the arithmetic; the others compute in
            that of the base.

    Raises as `check_method`, and ValueError for weights to learn that are not float32 (or float64).
    """
    check_method(spec, base.config._attn_implementation)
    if spec.method in OF_WEIGHTS:
        return WeightTuning(base, spec, num_labels, generator, gradient_checkpointing, autocast)
    if not base.trial.keys_are_linear or any(bias is not None for bias in base.trial.biases):
        raise ValueError(
            f"{spec.label} puts tokens beside those of the image, which a {type(base.encoder_module).__name__} has no "
            "positions for: choose a head, full, bias or lora."
        )
    return PromptTuning(base, spec, num_labels, generator, gradient_checkpointing)


def check_method(spec: MethodSpec, attention: str) -> None:
    """What can be said before anything is built.

    Args:
        attention: what computes the base's: "eager", "sdpa", "flash_attention_2".

    Raises:
        ValueError: heads are for this method, or it needs a mask, which flash attention does not take.
        ModuleNotFoundError: LoRA, without PEFT.
    """
    if spec.combinable:
        raise ValueError(f"{spec.label} is learned by a head: add_head makes it.")
    if spec.method == "memory" and spec.masking == "masked" and attention.startswith("flash"):
        raise ValueError(f"{spec.label} needs a mask, which {attention} does not take: choose sdpa or eager.")
    if spec.method == "lora" and importlib.util.find_spec("peft") is None:
        raise ModuleNotFoundError("LoRA needs the package peft: pip install -e '.[peft]'.", name="peft")


def new_classifier(width: int, num_labels: int, generator: torch.Generator | None) -> nn.Linear:
    """Weight N(0, 0.02^2), bias 0, float32; drawn on the CPU, so that a seed means the same on every device."""
    # Not nn.Linear(...), which would draw values from the global generator only for them to be replaced.
    classifier = nn.utils.skip_init(nn.Linear, width, num_labels)
    with torch.no_grad():
        classifier.weight.normal_(0.0, STD, generator=generator)
        classifier.bias.zero_()
    return classifier


def like(base: Any) -> dict[str, Any]:
    """Where what is learned beside a base's weights belongs, and in which dtype: float32 at least."""
    return {"device": base.device, "dtype": torch.promote_types(base.dtype, torch.float32)}


class WeightTuning(nn.Module):
    """The base with some of its own weights learned, and a linear classifier on what its family's classifiers read.

    full: all weights. bias: all biases, those of layer norms included (BitFit, Zaken et al. 2022). lora: updates of
    rank r of the query and value projections (Hu et al. 2022), by PEFT, scaled by alpha / r = 1.
    """

    def __init__(
        self, base: Any, spec: MethodSpec, num_labels: int, generator: torch.Generator | None,
        gradient_checkpointing: bool, autocast: torch.dtype | None,
    ) -> None:  # fmt: skip
        super().__init__()
        if spec.method != "lora" and base.dtype != like(base)["dtype"]:
            raise ValueError(
                f"{spec.method} learns the base's own weights, and they are {base.dtype}: open the base in float32, "
                "and give autocast."
            )
        learned = {"full": lambda name: True, "bias": lambda name: name.endswith("bias"), "lora": lambda name: False}
        self.base = base.copy_of_base(lambda name: learned[spec.method](name) and not base.anatomy.unread(name))
        if spec.method == "lora":
            add_lora(self.base.encoder_module, spec.rank, generator)
        if gradient_checkpointing:
            self.base.gradient_checkpointing_enable()
        self.classifier = new_classifier(base.readout_width, num_labels, generator)
        self.classifier.to(**like(base))
        self.autocast = autocast

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, channels, height, width] -> float32 logits [B, C]"""
        with torch.autocast(pixel_values.device.type, self.autocast, enabled=self.autocast is not None):
            features = self.base.features(pixel_values)  # [B, R]
        return self.classifier(features.to(self.classifier.weight.dtype))


def add_lora(encoder: nn.Module, rank: int, generator: torch.Generator | None) -> None:
    """Put PEFT's LoRA on the query and value projections of all layers of an encoder; only it wants gradients.

    First factors as PEFT draws them (uniform, Kaiming), second factors zero; float32 whatever the base's dtype.
    """
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):  # PEFT draws first factors from the global generator
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"]), encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        if "lora_A" in name:  # again, from ours
            bound = 1 / math.sqrt(parameter.shape[1])
            parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


class PromptTuning(nn.Module):
    """Tokens that are learned beside those of an image, seen by all of them; the base's weights stay.

    Memory without the mask (paper, section 3) has keys and values only. It is each layer's own; or it enters the first
    layer as tokens that ask too and are propagated, with a learned update at each further layer, or none (Figure 2b).
    Visual Prompt Tuning (Jia et al. 2022) is the same with other initial values and the base's class token: VPT-deep
    replaces its prompts in every layer, so what they ask is never used; VPT-shallow propagates them.
    """

    def __init__(
        self, base: Any, spec: MethodSpec, num_labels: int, generator: torch.Generator | None,
        gradient_checkpointing: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.is_vpt = spec.method.startswith("vpt")
        self.masked = spec.masking == "masked" and not self.is_vpt
        self.base = base.copy_of_base(lambda name: False)
        self.attention = self.base.joint_attention()
        self.spec, self.gradient_checkpointing = spec, gradient_checkpointing
        self.propagates = spec.method == "vpt-shallow" or spec.memory_update != "none"
        layers = 1 if spec.method == "vpt-shallow" or spec.memory_update == "propagate" else len(self.attention)
        width = base.base_width
        self.memory = nn.ParameterList(torch.empty(spec.memory_tokens, width) for _ in range(layers))
        self.class_token = None
        if not self.is_vpt and spec.train_class_token:
            start = base.anatomy.start(base.encoder_module)
            self.class_token = nn.Parameter(start.to(copy=True, **like(base)))
        self._draw(generator)
        self.memory.to(**like(base))
        self.classifier = new_classifier(width, num_labels, generator).to(**like(base))

    @torch.no_grad()
    def _draw(self, generator: torch.Generator | None) -> None:
        bound = math.sqrt(6 / (3 * math.prod(self.base.anatomy.patch_size) + self.base.base_width))  # VPT's; 3 p^2 + D
        for layer, memory in enumerate(self.memory):
            if self.is_vpt:
                memory.uniform_(-bound, bound, generator=generator)
            elif layer and self.propagates:
                memory.zero_()  # an update that begins as none
            else:
                memory.normal_(0.0, STD, generator=generator)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, channels, height, width] -> float32 logits [B, C]"""
        hidden = self.base.embed(pixel_values)  # [B, N, D]
        hidden, readout = self._with_class_token(hidden)
        images, tokens = hidden.shape[:2]
        mask = None
        if self.propagates:
            hidden = torch.cat([hidden, self._prompts(0, images, hidden.dtype)], dim=1)  # [B, tokens + m, D]
            if self.masked:
                mask = self._mask(hidden.shape[1], tokens - 1)
        for index in range(len(self.attention)):
            memory = self._prompts(index, images, hidden.dtype) if index < len(self.memory) else None  # [B, m, D]
            if self.propagates:
                if memory is not None and index:  # an update
                    hidden = torch.cat([hidden[:, :tokens], hidden[:, tokens:] + memory], dim=1)
                memory = None
            hidden = run(self.layer, index, hidden, memory, mask, again=self.gradient_checkpointing and self.training)
        return self.classify(hidden[:, :tokens].mean(dim=1) if readout is None else hidden[:, readout])

    def classify(self, token: Tensor) -> Tensor:
        """What leaves the last layer in the place of the class token, [B, D] -> float32 logits [B, C]"""
        normed = self.base.anatomy.final_norm(self.base.encoder_module)(token)
        return self.classifier(normed.to(self.classifier.weight.dtype))

    def _with_class_token(self, hidden: Tensor) -> tuple[Tensor, int | None]:
        """Put the learned class token in the place of the base's or, where a mask hides it or the base has none, behind
        all; and where. None: there is no class token, and the mean of the tokens is read."""
        has_own = self.base.anatomy.has_class_token(self.base.encoder_module)
        if self.class_token is None:
            return hidden, 0 if has_own else None
        token = self.base.anatomy.enter(self.base.encoder_module, self.class_token[None].to(hidden.dtype))  # [1, D]
        token = token.expand(len(hidden), 1, -1)
        if self.masked or not has_own:
            return torch.cat([hidden, token], dim=1), hidden.shape[1]
        return torch.cat([token, hidden[:, 1:]], dim=1), 0

    def _prompts(self, layer: int, images: int, dtype: torch.dtype) -> Tensor:
        """The learned tokens of a layer, [B, m, D], with dropout."""
        prompts = self.memory[layer].expand(images, -1, -1)
        return F.dropout(prompts, self.spec.prompt_dropout, self.training).to(dtype)

    def _mask(self, tokens: int, base_tokens: int) -> Tensor:
        """[1, tokens, tokens]: the base's tokens see each other only; class token and memory see all."""
        mask = torch.zeros(1, tokens, tokens, device=self.memory[0].device)
        mask[:, :base_tokens, base_tokens:] = float("-inf")
        return mask

    def layer(self, index: int, hidden: Tensor, memory: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """One layer in joint form: [B, tokens, D] -> the same; memory [B, m, D] before the norm."""
        parts = LayerParts.of(
            self.base.encoder_module.get_submodule(self.base.anatomy.layers)[index], self.base.anatomy.names
        )
        if memory is not None and self.spec.memory_norm:
            memory = parts.norm1(memory)
        context, _ = self.attention[index](parts.norm1(hidden), memory, mask, need_weights=False)
        hidden = scaled(parts.scale1, context) + hidden
        return scaled(parts.scale2, parts.mlp(parts.norm2(hidden))) + hidden


def run(layer: Any, *inputs: Any, again: bool) -> Tensor:
    """`layer(*inputs)`, [B, tokens, D], computed again in the backward pass instead of kept, if so wanted."""
    return checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)


class Learned:
    """What a network learns, and nothing else of it, as `train` asks a head for it.

    Batch norm's running statistics belong to it where the norm's own weights are learned.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        stored = network.state_dict().keys()
        self.names += [
            f"{prefix}.{name}"
            for prefix, module in network.named_modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            for name, _ in module.named_buffers(recurse=False)
            if f"{prefix}.{name}" in stored
        ]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those that are learned."""
        return (parameter for parameter in self.network.parameters() if parameter.requires_grad)

    def state_dict(self) -> dict[str, Tensor]:
        """Under their names in the network; not copied."""
        whole = self.network.state_dict()
        return {name: whole[name] for name in self.names}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The reverse of `state_dict`. Raises ValueError if a tensor is missing, unexpected or of another shape."""
        mine = self.state_dict()
        differing = [
            f"{name}: found {list(tensors[name].shape) if name in tensors else 'nothing'}, "
            f"expected {list(mine[name].shape) if name in mine else 'nothing'}"
            for name in sorted(mine.keys() | tensors.keys())
            if name not in mine or name not in tensors or mine[name].shape != tensors[name].shape
        ]
        if differing:
            raise ValueError(f"These tensors are not what the network learns: {'; '.join(differing[:4])}.")
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])


class TunedModel(nn.Module):
    """Networks by name, behind the surface of MemoryCapableViT that training, evaluation and prediction use.

    Attributes:
        heads: name -> `Learned`.
        fingerprint: of the base that they were made from.
        base_id: of the same base.
    """

    has_base_classifier = False

    def __init__(self, networks: Mapping[str, nn.Module], fingerprint: str, base_id: str | None) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks.values())  # not by name: names of heads may hold what modules' may not
        self.heads = {name: Learned(network) for name, network in networks.items()}
        self.fingerprint, self.base_id = fingerprint, base_id

    @property
    def head_names(self) -> list[str]:
        """Names of the networks, in the order in which they were given."""
        return list(self.heads)

    def set_image_size(self, size: int | Sequence[int]) -> None:
        """As `MemoryCapableViT.set_image_size`; convolutional networks take images of any size as they are."""
        for network in self.networks:
            if isinstance(network, (WeightTuning, PromptTuning)):
                network.base.set_image_size(size)

    def train_only(self, names: Iterable[str]) -> list[nn.Parameter]:
        """The learned parameters of these networks. Raises KeyError for an unknown name."""
        return [parameter for name in names for parameter in self.heads[name].parameters()]

    def forward(
        self, pixel_values: Tensor, heads: Sequence[str] | None = None, with_base: bool = False,
        labels: Mapping[str, Tensor] | None = None,
    ) -> dict[str, ImageClassifierOutput]:  # fmt: skip
        """As `MemoryCapableViT.forward`: a pass of its own for each network, and never an answer of the base.

        Args:
            pixel_values: [B, channels, height, width].
            heads: names of the networks to answer; None for all.
            with_base: has no effect.
            labels: name -> targets, int64 [B].
        """
        answers = {}
        for name in self.heads if heads is None else heads:
            logits = self.heads[name].network(pixel_values)  # [B, C]
            loss = F.cross_entropy(logits, labels[name]) if labels and name in labels else None
            answers[name] = ImageClassifierOutput(loss, logits)
        return answers
