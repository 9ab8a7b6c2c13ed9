"""The base of a model with heads: a stock vision encoder of transformers that runs as it is."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutput

from learnable_memory.model.base_stream import (
    CURRENT,
    Asked,
    Listener,
    StopAtKeys,
    keep_inputs,
    keep_outputs,
    listen_to,
    watched,
)
from learnable_memory.model.base_tokens import BaseTokens, KeysAndValues, Seen
from learnable_memory.model.families import Anatomy, LayerParts
from learnable_memory.model.fingerprint import Fingerprint, base_fingerprint, base_parameters
from learnable_memory.model.image_size import ImageSize


class BaseRun(NamedTuple):
    """What the base gave for a batch of images."""

    outputs: Any  # of the stock class; None where it ended at the last keys and values
    readout: Tensor | None  # [B, R], what a linear probe reads
    rows: list[Tensor]  # L of [B, H, 1, N], the attention of the base's class token, if asked for


class Trial(NamedTuple):
    """What one image of noise tells of a base that its modules do not."""

    biases: list[Tensor | None]  # of each layer [1, H, 1, N], what is added to the class token's scores
    keys_are_linear: bool  # keys are a linear map of the normed tokens: they are not rotated


class Base(ImageSize):
    """A mixin over a stock class, which comes behind it in the method resolution order."""

    config: Any
    heads: Any
    device: torch.device
    dtype: torch.dtype

    # ------------------------------------------------------------------------------------------------------ structure
    def _find_base(self) -> None:
        """Once the stock modules are there."""
        self.anatomy = Anatomy(self)
        if self.anatomy.encoder:
            encoder = self.encoder_module
            if keep_outputs not in encoder._forward_hooks.values():
                encoder.register_forward_hook(keep_outputs)
        self._listen()
        self._image_size = None
        self._fingerprint: Fingerprint | None = None
        self._trial: tuple[tuple[int, int], Trial] | None = None

    def _listen(self) -> None:
        """Hear the modules as they are now: some may have been replaced."""
        for parts in self.layer_parts():
            listen_to(parts.attention)
        first = self.encoder_module.get_submodule(self.anatomy.layers)[0]
        if keep_inputs not in first._forward_pre_hooks.values():
            first.register_forward_pre_hook(keep_inputs)

    @property
    def encoder_module(self) -> Any:
        """The stock vision encoder: this model itself, or the module in it that a classifier stands on."""
        return self.get_submodule(self.anatomy.encoder)

    def layer_parts(self) -> Iterator[LayerParts]:
        """The parts of the base's layers, as they are now."""
        return self.anatomy.parts(self.encoder_module)

    @property
    def base_width(self) -> int:
        """D, the width of the base's tokens."""
        return self.encoder_module.config.hidden_size

    @property
    def base_layers(self) -> int:
        """L, the number of the base's layers."""
        return len(self.encoder_module.get_submodule(self.anatomy.layers))

    @property
    def base_attention_heads(self) -> int:
        """H, of each of its layers."""
        return self.encoder_module.config.num_attention_heads

    @property
    def base_mlp_width(self) -> int:
        """How wide the inside of its MLPs is."""
        return next(self.layer_parts()).mlp_out.in_features

    @property
    def readout_width(self) -> int:
        """R, how many numbers a linear probe reads of an image: D, or 2 D of DINOv2."""
        return self.anatomy.readout_width(self.encoder_module)

    @property
    def has_base_classifier(self) -> bool:
        """Whether the base has answers of its own."""
        classifiers = (getattr(self, name, None) for name in ("classifier", "cls_classifier"))
        return any(module is not None and not isinstance(module, nn.Identity) for module in classifiers)

    def train(self, mode: bool = True) -> Any:
        """As in torch, but a frozen base stays in eval mode: its dropout must not disturb what heads build on."""
        super().train(mode)
        whole = not self.anatomy.encoder  # the encoder is this model itself
        frozen = whole and not self._is_learned()
        for name, module in self.named_children():
            alone = not whole and not any(parameter.requires_grad for parameter in module.parameters())
            if name != "heads" and (frozen or alone):
                module.eval()
        return self

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, for all configs that the shared modules of the base read."""
        super().set_attn_implementation(*args, **kwargs)
        configs = [parts.attention.config.config for parts in self.layer_parts()]
        for config in (self.encoder_module.config, *configs):
            config._attn_implementation_internal = self.config._attn_implementation

    # ---------------------------------------------------------------------------------------------------- fingerprint
    def _take_fingerprint(self, recorded: str | None = None) -> None:
        self._fingerprint = Fingerprint(self.encoder_module, self._hash_base, recorded)

    def _hash_base(self) -> str:
        return base_fingerprint(self.encoder_module, self.anatomy)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the base's encoder, taken when it was loaded, and anew if its parameters have changed since.

        A cast or a move of this model changes nothing. Raises ValueError for weights on the meta device.
        """
        if self._fingerprint is None:
            self._take_fingerprint()
        assert self._fingerprint is not None
        return self._fingerprint.value(self.encoder_module, self._hash_base)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        known = getattr(self, "_fingerprint", None)
        if known is not None and self.device.type != "meta":
            known.value(self.encoder_module, self._hash_base)  # what changed before this must not be taken for a cast
        super()._apply(*args, **kwargs)
        if known is not None:
            known.cast(self.encoder_module)
        return self

    # ------------------------------------------------------------------------------------------------------------ run
    def base_records(self, pixel_values: Any = None) -> bool:
        """Whether autograd must record the base: something in it, or the image, wants a gradient."""
        return torch.is_grad_enabled() and (getattr(pixel_values, "requires_grad", False) or self._is_learned())

    def _is_learned(self) -> bool:
        return any(parameter.requires_grad for parameter in base_parameters(self))

    def run_base(
        self, pixel_values: Tensor, layer: Callable[[int, Seen], None], *, interpolate: bool = False,
        stop_early: bool = False, want_states: bool = False, want_rows: bool = False,
    ) -> BaseRun:  # fmt: skip
        """Run the stock class, and `layer` for each layer with what class tokens ask there.

        Args:
            pixel_values: [B, channels, height, width], cast to the base's dtype.
            layer: called with the number of the layer and its keys and values, as soon as they are there. If autograd
                records the base, after the base has run: gradient checkpointing runs its layers again in the backward
                pass, and nothing of the heads may be in them.
            interpolate: take images of any size, not only of `image_size`.
            stop_early: end the last layer at its keys and values, unless hooks wait behind them.
            want_states: the outputs are to have the hidden states.
            want_rows: also the attention of the base's class token.
        """
        records, outside = self.base_records(pixel_values), torch.is_grad_enabled()
        later: list[Seen] = []
        rows: list[Tensor] = []

        def hear(index: int, asked: Asked) -> None:
            # In the memory order of `BaseTokens`: the same kernels, and so the same bits, forward and backward.
            seen = KeysAndValues(asked.key.contiguous(), asked.value.contiguous(), asked.bias)
            if want_rows and self.anatomy.has_class_token(self.encoder_module):
                rows.append(class_row(asked))
            if records:
                later.append(seen)
            else:
                with torch.set_grad_enabled(outside):
                    layer(index, seen)

        listener = Listener(hear, self.base_layers if stop_early and not self._is_watched() else None)
        outputs = self._run(pixel_values, listener, interpolate, want_states)
        if listener.heard != self.base_layers:
            raise RuntimeError(
                f"The base has {self.base_layers} layers, but {listener.heard} of them computed their attention "
                "through transformers' attention functions: a module that replaces an attention has to call them too."
            )
        for index, seen in enumerate(later):
            layer(index, seen)
        return BaseRun(outputs, self._readout(outputs, listener, records), rows)

    def _run(
        self, pixel_values: Tensor, listener: Listener, interpolate: bool = False, want_states: bool = False
    ) -> Any:
        """The stock class's own forward pass, heard by `listener`; its outputs, or None where it stopped early."""
        self._listen()
        asks: dict[str, Any] = {"return_dict": True, "output_hidden_states": want_states, "output_attentions": False}
        if (interpolate or self._check_size(*pixel_values.shape[-2:])) and self._takes_interpolation():
            asks["interpolate_pos_encoding"] = True
        CURRENT.set(listener)
        try:
            with torch.set_grad_enabled(self.base_records(pixel_values)):
                return super().forward(pixel_values.to(self.dtype), **asks)
        except StopAtKeys:
            return None
        finally:
            CURRENT.set(None)

    def _readout(self, outputs: Any, listener: Listener, records: bool) -> Tensor | None:
        if outputs is None:
            return None
        with torch.set_grad_enabled(records):
            return self.anatomy.readout(self.encoder_module, outputs if listener.outputs is None else listener.outputs)

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the family's own classifier reads of images, [B, R]; with gradients if something in it is learned."""
        listener = Listener(lambda index, asked: None)
        found = self._readout(self._run(pixel_values, listener), listener, self.base_records(pixel_values))
        assert found is not None, "nothing stops it"
        return found

    def embed(self, pixel_values: Tensor) -> Tensor:
        """What enters the base's first layer, [B, N, D]."""
        listener = Listener(lambda index, asked: None, stop_after=1)
        self._run(pixel_values, listener)
        return listener.entered

    def _base_logits(self, run: BaseRun) -> Tensor:
        """The stock class's own; from `BaseTokens`, those of its classifier on what was kept."""
        if run.outputs is not None:
            return run.outputs.logits
        assert run.readout is not None, "it was kept"
        read = getattr(getattr(self, "classifier", None), "in_features", None)
        if read != run.readout.shape[-1]:
            raise ValueError(
                f"The base's classifier reads {read} numbers, but only {run.readout.shape[-1]} of an image were kept: "
                "give with_base=False."
            )
        return self.classifier(run.readout)

    def _is_watched(self) -> bool:
        """Whether hooks wait behind the last layer's keys and values."""
        encoder = self.encoder_module
        last = encoder.get_submodule(self.anatomy.layers)[-1]
        return any(watched(module) for module in (last, self.anatomy.final_norm(encoder)))

    @torch.no_grad()
    def base_tokens(self, pixel_values: Tensor, keys_and_values: bool = True) -> BaseTokens:
        """What heads need of the base for these images: [B, channels, height, width], as in `forward`.

        Args:
            keys_and_values: of each layer, exact in every bit; else the tokens after its first norm, which are half of
                that and leave rounding differences (1e-5 of a logit in float32).

        Raises ValueError for tokens of a base that rotates its keys: they are no linear map of the tokens.
        """
        if not keys_and_values:
            self.check_keys_are_linear()
        heard: list[Any] = []
        run = self.run_base(pixel_values, lambda _, seen: heard.append(seen), want_states=not keys_and_values)
        assert run.readout is not None, "the base ran to its end"
        if keys_and_values:
            return BaseTokens(torch.stack([torch.stack((seen.key, seen.value)) for seen in heard]), run.readout)
        states = zip(self.layer_parts(), run.outputs.hidden_states, strict=False)
        return BaseTokens(torch.stack([parts.norm1(state) for parts, state in states]), run.readout)

    def check_keys_are_linear(self) -> None:
        """Raise ValueError if keys are no linear map of the base's tokens, which the short form of a cache needs."""
        if not self.trial.keys_are_linear:
            raise ValueError(
                f"A {type(self.encoder_module).__name__} rotates its keys by the position, so they cannot be had from "
                "its tokens: keep keys and values."
            )

    def class_biases(self) -> list[Tensor | None]:
        """What the base adds to the scores of its class token in each layer, [1, H, 1, N] or None."""
        learned = any("relative_position_bias" in name for name, _ in self.encoder_module.named_parameters())
        return self.trial.biases if learned else [None] * self.base_layers

    @property
    def trial(self) -> Trial:
        """What one image of noise tells of the base at its present size."""
        if self._trial is None or self._trial[0] != self.image_size:
            self._trial = self.image_size, self._try_out()
        return self._trial[1]

    @torch.no_grad()
    def _try_out(self) -> Trial:
        biases: list[Tensor | None] = []
        keys: list[Tensor] = []

        def keep(index: int, seen: Any) -> None:
            biases.append(None if seen.bias is None else seen.bias.clone())
            keys.append(seen.key)

        parts = next(self.layer_parts())
        noise = torch.randn(1, self.anatomy.channels, *self.image_size, generator=torch.Generator().manual_seed(0))
        run = self.run_base(noise.to(self.device), keep, want_states=True)
        linear = parts.split(parts.key(parts.norm1(run.outputs.hidden_states[0])))  # [1, H, N, d]
        return Trial(biases, torch.allclose(linear.float(), keys[0].float(), rtol=1e-3, atol=1e-3))


def answer(
    logits: Tensor, targets: Tensor | None, states: Sequence[Tensor], rows: Sequence[Tensor]
) -> ImageClassifierOutput:
    """What the model says for one head or the base: logits [B, C], and their mean cross entropy for targets [B]."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = None if targets is None else F.cross_entropy(precise, targets)
    return ImageClassifierOutput(loss, logits, tuple(states) or None, tuple(rows) or None)


def class_row(asked: Asked) -> Tensor:
    """The attention of the base's class token, [B, H, 1, N], from its query: fused backends keep no weights."""
    scores = asked.query[:, :, :1] @ asked.key.transpose(-1, -2) * asked.scaling
    if asked.bias is not None:
        scores = scores + asked.bias
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
