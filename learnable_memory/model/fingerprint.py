"""Which base this is: a hash over the encoder's tensors, by which heads know theirs.

Under our own names, or none: the modules of transformers are renamed now and then, and a base stays what it is.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from learnable_memory.heads import content_hash
from learnable_memory.model.families import Anatomy, LayerParts

SAMPLES = 64  # numbers of each tensor that are looked at, to see whether it has changed


def base_fingerprint(encoder: Any, anatomy: Anatomy) -> str:
    """SHA-256 of embeddings, layers and final norm, 64 hexadecimal digits; pooler and classifier are no part of it.

    What else decides the answers counts too. Of a stock ViT that is the activation, where it is another than GELU: the
    same tensors are published with the exact one and with its tanh form.

    Raises ValueError if there are no values to hash (the meta device, weights offloaded to disk).
    """
    if any(parameter.is_meta for parameter in base_parameters(encoder)):
        raise ValueError(
            "Some of the base's weights are on the meta device, so nobody can say which base it is: load it with its "
            "weights, without device_map offloading."
        )
    if encoder.config.model_type == "vit":
        found, activation = content_hash(vit_tensors(encoder, anatomy)), encoder.config.hidden_act
        # "bicubic" is how HuggingFace's ViT resizes positions, which older versions of this library chose.
        return found if activation == "gelu" else hashlib.sha256(f"{found} {activation} bicubic".encode()).hexdigest()
    config = encoder.config
    digest = hashlib.sha256(f"{config.model_type} {config.hidden_act} {config.num_attention_heads}".encode())
    layers = anatomy.layers + "."
    groups: dict[str, list[str]] = {"": []}  # the number of a layer, and "" for what is outside of them
    for name, tensor in encoder.state_dict().items():
        if not name.startswith(("pooler.", "head.", "heads.", "summary_idxs")) and "mask_token" not in name:
            number = name.removeprefix(layers).partition(".")[0] if name.startswith(layers) else ""
            groups.setdefault(number, []).append(content_hash({"": tensor}))
    for group in groups.values():
        digest.update(" ".join(sorted(group)).encode())  # whatever the tensors are called
    return digest.hexdigest()


def vit_tensors(encoder: Any, anatomy: Anatomy) -> dict[str, Tensor]:
    """The tensors of a stock ViT under our own names, whose hash is older than other families here.

    `class_token` and `positions` are [1, 1, D] and [1, 1 + P, D]; weights and biases have torch's shapes.
    """
    embeddings: Any = encoder.embeddings
    modules = {"patches": embeddings.patch_embeddings.projection, "norm": encoder.layernorm}
    for index, parts in enumerate(anatomy.parts(encoder)):
        modules |= {f"layers.{index}.{ours}": module for ours, module in _named(parts).items()}
    tensors = {f"{name}.{leaf}": value for name, module in modules.items() for leaf, value in module.named_parameters()}
    return tensors | {"class_token": embeddings.cls_token, "positions": embeddings.position_embeddings}


def _named(parts: LayerParts) -> dict[str, nn.Module]:
    return {
        "attention_norm": parts.norm1, "query": parts.query, "key": parts.key, "value": parts.value,
        "output": parts.output, "mlp_norm": parts.norm2, "mlp_in": parts.mlp_in, "mlp_out": parts.mlp_out,
    }  # fmt: skip


def base_parameters(module: Any) -> Iterator[nn.Parameter]:
    """All but those of heads, which may live in the same module."""
    return (parameter for name, parameter in module.named_parameters() if not name.startswith("heads."))


class Signature:
    """What tells at little cost that parameters have changed: their version counters, and some of their values.

    Counters miss what is written through `.data` (PEFT merges so) and start anew in a copy; the values of a copy are
    the same, and those of a change are not.
    """

    def __init__(self, module: Any) -> None:
        parameters = [parameter for parameter in base_parameters(module) if not parameter.is_meta]
        self.places = [parameter.data_ptr() for parameter in parameters]
        self.versions = [0 if parameter.is_inference() else parameter._version for parameter in parameters]
        flat = [parameter.detach().reshape(-1) for parameter in parameters]
        rows = [values[:: max(1, len(values) // SAMPLES)].float().cpu() for values in flat]
        self.values = torch.cat(rows) if rows else torch.empty(0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Signature) or not torch.equal(self.values, other.values):
            return False
        return self.places != other.places or self.versions == other.versions


class Fingerprint:
    """The fingerprint of a model's base, taken when it is made and anew when its parameters have changed since.

    Args:
        take: hashes the base as it is now.
        module: whose parameters it is of.
        recorded: what it is known to be, for weights that were cast since it was taken.
    """

    def __init__(self, module: Any, take: Callable[[], str], recorded: str | None = None) -> None:
        self._value = recorded or take()
        self._signature = Signature(module)

    def value(self, module: Any, take: Callable[[], str]) -> str:
        """The fingerprint of `module` as it is now."""
        now = Signature(module)
        if now != self._signature:
            self._value, self._signature = take(), now
        return self._value

    def cast(self, module: Any) -> None:
        """Its values were cast or moved: it is the same base still."""
        self._signature = Signature(module)
