"""How the base's keys and values reach the heads while the stock class runs.

The base is run, not imitated: its own `forward` calls its own layers. In each layer, transformers looks up by name what
computes the attention. While somebody listens, it finds `hand_on` under that name, which shows key and value (after
rotation, where there is one) to the listener and calls the backend that was chosen. Without a listener, nothing is
different from the stock model.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

HANDS_ON = "learnable_memory"


class Asked(NamedTuple):
    """What one layer's attention of the base computes with."""

    query: Tensor  # [B, H, N, d]
    key: Tensor  # [B, H, N, d]
    value: Tensor  # [B, H, N, d]
    bias: Tensor | None  # what is added to the scores of the first token, broadcastable to [B, H, 1, N]
    scaling: float


class StopAtKeys(Exception):
    """Nothing behind the last layer's keys and values is asked for."""


class Listener:
    """Who is told, layer by layer, what the base's attention computes with.

    Args:
        hear: called with the number of the layer and what its attention was asked.
        stop_after: the number of layers after whose keys and values the base may stop; None to run it to its end.
    """

    def __init__(self, hear: Callable[[int, Asked], None], stop_after: int | None = None) -> None:
        self.hear, self.stop_after = hear, stop_after
        self.heard = 0
        self.entered: Any = None  # [B, N, D], what entered the first layer
        self.outputs: Any = None  # of the encoder, where it is not the whole model

    def __call__(self, asked: Asked) -> None:
        self.hear(self.heard, asked)
        self.heard += 1
        if self.heard == self.stop_after and not torch.compiler.is_compiling():  # a compiler leaves out what is unused
            raise StopAtKeys


class _Current:
    """The listener of this thread. While torch.compile traces, which cannot read context variables, an attribute."""

    def __init__(self) -> None:
        self._of_thread: ContextVar[Listener | None] = ContextVar("listener", default=None)
        self._traced: Listener | None = None

    def get(self) -> Listener | None:
        return self._traced if torch.compiler.is_compiling() else self._of_thread.get()

    def set(self, listener: Listener | None) -> None:
        if torch.compiler.is_compiling():
            self._traced = listener
        else:
            self._of_thread.set(listener)


CURRENT = _Current()


class ListenedConfig:
    """The config of an attention module; the name of the attention function is ours while somebody listens."""

    def __init__(self, config: Any, eager: Callable | None) -> None:
        self.config, self.eager = config, eager

    @property
    def _attn_implementation(self) -> str:
        return self.config._attn_implementation if CURRENT.get() is None else HANDS_ON

    @property
    def backend(self) -> Callable:
        """The attention function that was chosen."""
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, self.eager)

    def __getattr__(self, name: str) -> Any:
        if name == "config":  # not set yet: it is being copied
            raise AttributeError(name)
        return getattr(self.config, name)

    def __reduce__(self) -> tuple:
        return ListenedConfig, (self.config, self.eager)


def hand_on(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers, with its arguments: query, key and value are [B, H, N, d].

    It tells the listener and calls the backend that was chosen.
    """
    listener = CURRENT.get()
    assert listener is not None, "the name leads here only while somebody listens"
    CURRENT.set(None)  # the backend reads the config, and is not to find this function there
    try:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        listener(Asked(query, key, value, first_row(attention_mask, query.dtype), scaling))
        return module.config.backend(module, query, key, value, attention_mask, **kwargs)  # type: ignore[union-attr, operator]
    finally:
        CURRENT.set(listener)


def first_row(attention_mask: Any, dtype: torch.dtype) -> Tensor | None:
    """What a mask adds to the scores of the first token, [.., 1, N]; masks are of numbers or of truths."""
    if not torch.is_tensor(attention_mask):  # None, or the block mask of flex attention: there is nothing to hide
        return None
    row = attention_mask[..., :1, :]
    return torch.zeros_like(row, dtype=dtype).masked_fill(~row, float("-inf")) if row.dtype == torch.bool else row


ALL_ATTENTION_FUNCTIONS.register(HANDS_ON, hand_on)


def listen_to(attention: nn.Module) -> None:
    """Let an attention module look its function up through a `ListenedConfig`, if it does not yet."""
    if not isinstance(attention.config, ListenedConfig):
        attention.config = ListenedConfig(attention.config, _eager_of(type(attention)))  # type: ignore[assignment]


def _eager_of(kind: type) -> Callable | None:
    """The eager attention of a family, which stands beside its class; a user's class inherits it."""
    modules = (sys.modules.get(ancestor.__module__) for ancestor in kind.__mro__)
    found = (getattr(module, "eager_attention_forward", None) for module in modules)
    return next(filter(None, found), None)


def keep_outputs(encoder: nn.Module, args: Any, outputs: Any) -> None:
    """A forward hook: the listener gets what the encoder gave."""
    listener = CURRENT.get()
    if listener is not None:
        listener.outputs = outputs


def keep_inputs(layer: nn.Module, args: Any) -> None:
    """A hook before the first layer: the listener gets what enters it."""
    listener = CURRENT.get()
    if listener is not None:
        listener.entered = args[0]


OURS = (
    "keep_inputs",
    "output_capturing_hook",
)  # the second collects hidden states for transformers, if they are asked for


def watched(module: nn.Module) -> bool:
    """Whether somebody has hooks in a module or below, and would miss it if it did not run."""
    hooks = (
        hook for each in module.modules() for hook in (*each._forward_hooks.values(), *each._forward_pre_hooks.values())
    )
    return any(getattr(hook, "__name__", "") not in OURS for hook in hooks)
