"""The base of a model with heads: a stock vision encoder of transformers that runs as it is."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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


class BaseRun(NamedTuple):
    """What the base gave for a batch of images."""

    outputs: Any  # of the stock class; None where it ended at the last keys and values
    readout: Tensor | None  # [B, F], what a linear probe reads
    rows: list[Tensor]  # L of [B, H, 1, N], the attention of the base's class token, if asked for


class Trial(NamedTuple):
    """What one image of noise tells of a base that its modules do not."""

    biases: list[Tensor | None]  # of each layer [1, H, 1, N], what is added to the class token's scores
    keys_are_linear: bool  # keys are a linear map of the normed tokens: they are not rotated


class Base:
    """A mixin over a stock class, which comes behind it in the method resolution order."""

    config: Any
    heads: Any

    # ------------------------------------------------------------------------------------------------------ structure
    def _find_base(self) -> None:
        """Once the stock modules are there."""
        self.anatomy = Anatomy(self)  # type: ignore[arg-type]
        if self.anatomy.encoder:
            encoder = self.encoder_module
            if keep_outputs not in encoder._forward_hooks.values():
                encoder.register_forward_hook(keep_outputs)
        self._listen()
        self._image_size: tuple[int, int] | None = None
        self._trial: tuple[tuple[int, int], Trial] | None = None

    def _listen(self) -> None:
        """Hear the modules as they are now: some may have been replaced."""
        for parts in self.layer_parts():
            listen_to(parts.attention)
        first = self.encoder_module.get_submodule(self.anatomy.layers)[0]  # type: ignore[index]
        if keep_inputs not in first._forward_pre_hooks.values():
            first.register_forward_pre_hook(keep_inputs)

    @property
    def encoder_module(self) -> nn.Module:
        """The stock vision encoder: this model itself, or the module in it that a classifier stands on."""
        return self.get_submodule(self.anatomy.encoder)  # type: ignore[attr-defined]

    def layer_parts(self) -> Iterator[LayerParts]:
        """The parts of the base's layers, as they are now."""
        return self.anatomy.parts(self.encoder_module)

    @property
    def base_width(self) -> int:
        """D, the width of the base's tokens."""
        return self.encoder_module.config.hidden_size  # type: ignore[union-attr, return-value]

    @property
    def base_layers(self) -> int:
        """L, the number of the base's layers."""
        return len(self.encoder_module.get_submodule(self.anatomy.layers))  # type: ignore[arg-type]

    @property
    def base_attention_heads(self) -> int:
        """H, of each of its layers."""
        return self.encoder_module.config.num_attention_heads  # type: ignore[union-attr, return-value]

    @property
    def base_mlp_width(self) -> int:
        """How wide the inside of its MLPs is."""
        return next(self.layer_parts()).mlp_out.in_features  # type: ignore[return-value]

    @property
    def readout_width(self) -> int:
        """F, how many numbers a linear probe reads of an image: D, or 2 D of DINOv2."""
        return self.anatomy.readout_width(self.encoder_module)

    @property
    def has_base_classifier(self) -> bool:
        """Whether the base has answers of its own."""
        classifiers = (getattr(self, name, None) for name in ("classifier", "cls_classifier"))
        return any(module is not None and not isinstance(module, nn.Identity) for module in classifiers)

    def train(self, mode: bool = True) -> Any:
        """As in torch, but a frozen base stays in eval mode: its dropout must not disturb what heads build on."""
        super().train(mode)  # type: ignore[misc]
        whole = not self.anatomy.encoder  # the encoder is this model itself
        frozen = whole and not any(parameter.requires_grad for parameter in base_parameters(self))  # type: ignore[arg-type]
        for name, module in self.named_children():  # type: ignore[attr-defined]
            alone = not whole and not any(parameter.requires_grad for parameter in module.parameters())
            if name != "heads" and (frozen or alone):
                module.eval()
        return self

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, for all configs that the shared modules of the base read."""
        super().set_attn_implementation(*args, **kwargs)  # type: ignore[misc]
        for config in (self.encoder_module.config, *(parts.attention.config.config for parts in self.layer_parts())):  # type: ignore[union-attr]
            config._attn_implementation_internal = self.config._attn_implementation  # type: ignore[union-attr]

    # ---------------------------------------------------------------------------------------------------- fingerprint
    def _take_fingerprint(self, recorded: str | None = None) -> None:
        self._fingerprint: Fingerprint | None = Fingerprint(self.encoder_module, self._hash_base, recorded)

    def _hash_base(self) -> str:
        return base_fingerprint(self.encoder_module, self.anatomy)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the base's encoder, taken when it was loaded, and anew if its parameters have changed since.

        A cast or a move of this model changes nothing. Raises ValueError for weights on the meta device.
        """
        if self._fingerprint is None:
            self._take_fingerprint()
        return self._fingerprint.value(self.encoder_module, self._hash_base)  # type: ignore[union-attr]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        known = getattr(self, "_fingerprint", None)
        if known is not None and not any(parameter.is_meta for parameter in base_parameters(self)):  # type: ignore[arg-type]
            known.value(self.encoder_module, self._hash_base)  # what changed before this must not be taken for a cast
        super()._apply(*args, **kwargs)  # type: ignore[misc]
        if known is not None:
            known.cast(self.encoder_module)
        return self

    # ----------------------------------------------------------------------------------------------------- image size
    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that the model takes, in pixels."""
        return self._image_size or self.anatomy.native_size

    def set_image_size(self, size: int | Sequence[int]) -> None:
        """Take images of another size from now on: positions are resized as the base's family does it.

        Weights, fingerprint and heads stay as they are.

        Args:
            size: (height, width) in pixels, or one number for both.

        Raises ValueError if they are not multiples of the patch size, or the base's positions cannot be resized.
        """
        height, width = (size, size) if isinstance(size, int) else size
        patch_height, patch_width = self.anatomy.patch_size
        if min(height, width) < 1 or height % patch_height or width % patch_width:
            raise ValueError(
                f"Images of {height}x{width} pixels cannot be cut into patches of {patch_height}x{patch_width}: "
                f"take multiples of these, such as {max(1, round(height / patch_height)) * patch_height}x"
                f"{max(1, round(width / patch_width)) * patch_width}."
            )
        native = self.anatomy.native_size
        if (height, width) != native:
            kind = type(self.encoder_module).__name__
            if not (self.anatomy.family.resizes or self._takes_interpolation() or self._is_native()):
                raise ValueError(f"A {kind} takes images of {native[0]}x{native[1]} pixels and no others.")
            if native[0] != native[1] and self.anatomy.has_positions(self.encoder_module):
                raise ValueError(
                    f"HuggingFace resizes positions of square images only; this {kind} takes {native[0]}x{native[1]}."
                )
        self._image_size = (height, width)

    def _is_native(self) -> bool:
        return bool(getattr(self.encoder_module.config, "is_native", False))  # AIMv2: positions computed, not learned

    def _takes_interpolation(self) -> bool:
        kind = type(self.encoder_module)
        return "interpolate_pos_encoding" in inspect.signature(getattr(kind, "stock", kind).forward).parameters

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(rows, columns) of patches in an image of the present size."""
        patch_height, patch_width = self.anatomy.patch_size
        height, width = self.image_size
        return height // patch_height, width // patch_width

    @property
    def num_tokens(self) -> int:
        """N, the base's tokens of an image of the present size."""
        rows, columns = self.patch_grid
        return self.anatomy.special + rows * columns

    def _check_size(self, height: int, width: int) -> bool:
        """Whether positions have to be resized for images of the model's size. Raises ValueError for another size."""
        if (height, width) != self.image_size:
            raise ValueError(
                f"The images have {height}x{width} pixels, but the model takes {self.image_size[0]}x"
                f"{self.image_size[1]}. Resize them, or the model with set_image_size."
            )
        return self.image_size != self.anatomy.native_size

    # ------------------------------------------------------------------------------------------------------------ run
    def base_records(self, pixel_values: Any = None) -> bool:
        """Whether autograd must record the base: something in it, or the image, wants a gradient."""
        return torch.is_grad_enabled() and (
            getattr(pixel_values, "requires_grad", False)
            or any(parameter.requires_grad for parameter in base_parameters(self))  # type: ignore[arg-type]
        )

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
                f"The base has {self.base_layers} layers, but {listener.heard} of them computed their attention through "
                "transformers' attention functions: a module that replaces an attention has to call them too."
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
                return super().forward(pixel_values.to(self.dtype), **asks)  # type: ignore[misc, attr-defined]
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
        """What the family's own classifier reads of images, [B, F]; recorded by autograd if something in it is learned."""
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
        last = encoder.get_submodule(self.anatomy.layers)[-1]  # type: ignore[index]
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
        """Raise ValueError if the base's keys are no linear map of its tokens, which the short form of a cache needs."""
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
        noise = torch.randn(1, 3, *self.image_size, generator=torch.Generator().manual_seed(0))
        run = self.run_base(noise.to(next(self.parameters()).device), keep, want_states=True)  # type: ignore[attr-defined]
        linear = parts.split(parts.key(parts.norm1(run.outputs.hidden_states[0])))  # [1, H, N, d]
        return Trial(biases, torch.allclose(linear.float(), keys[0].float(), rtol=1e-3, atol=1e-3))


def check_layers(model: Any) -> None:
    """Raise ValueError if the layers of a family without a row in FAMILIES are not pre-norm ones as they are run here.

    The base's first token is taken through the layers like a class token without memory, on one image of noise, and has
    to come out as the stock class has it, to 1e-3 in float32.
    """
    if model.anatomy.listed:
        return
    seen: list[Any] = []
    noise = torch.randn(1, 3, *model.image_size, generator=torch.Generator().manual_seed(0)).to(model.device)
    try:
        with torch.no_grad():
            run = model.run_base(noise, lambda index, keys: seen.append(keys), want_states=True)
            for index, (parts, base) in enumerate(zip(model.layer_parts(), seen, strict=True)):
                bias = None if base.bias is None else base.bias[..., 1:]
                others = KeysAndValues(base.key[:, :, 1:], base.value[:, :, 1:], bias)
                before, after = (run.outputs.hidden_states[i][:, :1].float() for i in (index, index + 1))
                found = model._layer_alone(index, parts, before.to(model.dtype), others).float()
                bound = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
                if not torch.allclose(found, after, rtol=bound, atol=bound * after.abs().max().item()):
                    raise ValueError("they give something else")
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"A {type(model.encoder_module).__name__} cannot be a base: its layers are not pre-norm transformer layers as "
            f"they are known here ({error})."
        ) from None


def class_row(asked: Asked) -> Tensor:
    """The attention of the base's class token, [B, H, 1, N], from its query: fused backends keep no weights."""
    scores = asked.query[:, :, :1] @ asked.key.transpose(-1, -2) * asked.scaling
    if asked.bias is not None:
        scores = scores + asked.bias
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
