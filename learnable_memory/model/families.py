"""Where the vision encoders of transformers keep what heads need.

Their layers are built alike: norm, attention with `q_proj`, `k_proj` and `v_proj`, scale; norm, MLP, scale. Their names
differ a little. So a family is found by trying the names that are in use, and `FAMILIES` lists only in what one is
unlike the others.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CLASS_TOKENS = ("embeddings.cls_token", "embeddings.class_embedding", "embeddings.cls_register_token")
FURTHER_TOKENS = ("embeddings.distillation_token", "embeddings.register_tokens")
POSITIONS = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")
PROBES = ("head.probe", "head.cls_token")  # the question of an attention pool
PRE_NORMS = ("pre_layrnorm", "pre_layernorm")
# BEiT with mean pooling has its final norm in the pooler, and an identity where others have theirs.
FINAL_NORMS = ("pooler.layernorm", "layernorm", "post_layernorm", "norm", "rms_norm")
READOUTS = ("class", "class+mean", "mean of patches", "pooler", "summary")


@dataclass(frozen=True)
class Family:
    """In what a family is unlike the others.

    Attributes:
        readout: what the family's own image classifier reads, and so a linear probe. "class": the class token after the
            final norm, or the mean of all tokens where there is none; "class+mean": with it the mean of the patches;
            "mean of patches": that alone, before the final norm as CLIP has it; "pooler": `pooler_output`;
            "summary": C-RADIO's.
        class_position: whether its class token gets a position embedding, where it has any.
        resizes: it takes images of every size without being told.
        refused: why it cannot be a base, if it cannot.
    """

    readout: str = "class"
    class_position: bool = True
    resizes: bool = False
    refused: str = ""


FAMILIES = {
    "vit": Family(),
    "deit": Family(),
    "vit_msn": Family(),
    "ijepa": Family(),
    "siglip_vision_model": Family(),
    "dinov2": Family(readout="class+mean", resizes=True),
    "dinov2_with_registers": Family(readout="class+mean", resizes=True),
    "dinov3_vit": Family(resizes=True),
    "clip_vision_model": Family(readout="mean of patches"),
    "metaclip_2_vision_model": Family(readout="mean of patches"),
    "aimv2_vision_model": Family(readout="pooler"),
    "beit": Family(readout="pooler"),
    "pixio": Family(readout="pooler", resizes=True),
    "radio": Family(readout="summary", class_position=False, resizes=True),
    "tipsv2_vision_model": Family(resizes=True),
    "siglip2_vision_model": Family(refused="it takes lists of patches of images of any shape (NaFlex)"),
    "mlcd_vision_model": Family(refused="it turns its class token by a position of its own"),
    "vivit": Family(refused="it reads videos"),
}


def find(module: nn.Module, paths: tuple[str, ...]) -> Any:
    """What lies at the first of these paths below `module` where there is something; None if there is nothing."""
    for path in paths:
        found: Any = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    return None


# ============================================================================================================= layers
class LayerNames(NamedTuple):
    """What a family calls the parts of a layer; "" where it has no such part."""

    norm1: str
    attention: str
    output: str  # in the attention
    scale1: str
    norm2: str
    mlp: str
    scale2: str
    mlp_in: str  # in the MLP
    mlp_out: str
    gate: str
    activation: str


NAMES_IN_USE = LayerNames(
    norm1="layernorm_before norm1 layer_norm1 rms_norm1", attention="attention self_attn attn",
    output="o_proj out_proj projection_layer",
    scale1="layer_scale1 lambda_1", norm2="layernorm_after norm2 layer_norm2 rms_norm2", mlp="mlp ffn",
    scale2="layer_scale2 lambda_2", mlp_in="fc1 up_proj", mlp_out="fc2 down_proj", gate="gate_proj",
    activation="activation_fn act_fn",
)  # fmt: skip
OPTIONAL = ("scale1", "scale2", "gate")


@functools.cache
def _names_of(present: frozenset[str], attention: frozenset[str], mlp: frozenset[str]) -> LayerNames:
    where = {"output": attention, "mlp_in": mlp, "mlp_out": mlp, "gate": mlp, "activation": mlp}
    found = {
        part: next((name for name in names.split() if name in where.get(part, present)), "")
        for part, names in NAMES_IN_USE._asdict().items()
    }
    missing = [part for part, name in found.items() if not name and part not in OPTIONAL]
    if missing:
        raise ValueError(f"its layers have no {', '.join(missing)} (they have {', '.join(sorted(present))})")
    return LayerNames(**found)


def _attributes(module: Any) -> frozenset[str]:
    """Modules, parameters and numbers (BEiT without layer scale has the number 1) of a module, by name."""
    if not isinstance(module, nn.Module):
        return frozenset()
    plain = (name for name, value in vars(module).items() if (not name.startswith("_") and callable(value)) or
             isinstance(value, float))  # fmt: skip
    return frozenset((*module._modules, *module._parameters, *plain))


def layer_names(layer: Any) -> LayerNames:
    """What the parts of this layer are called. Raises ValueError, with the reason, if it is no layer of this shape."""
    attention, mlp = (find(layer, tuple(names.split())) for names in (NAMES_IN_USE.attention, NAMES_IN_USE.mlp))
    return _names_of(_attributes(layer), _attributes(attention), _attributes(mlp))


class LayerParts(NamedTuple):
    """The parts of one layer as they are now: a module that somebody replaced is the one that is used."""

    norm1: nn.Module
    attention: Any
    query: nn.Module
    key: Any
    value: Any
    output: nn.Module
    scale1: Any  # a module, a parameter [D], a number; None where there is no scale
    norm2: nn.Module
    mlp: nn.Module
    mlp_in: nn.Module
    mlp_out: Any
    gate: nn.Module | None
    activation: Any
    scale2: Any

    @classmethod
    def of(cls, layer: nn.Module, names: LayerNames) -> "LayerParts":
        """The parts of `layer`, whose names `layer_names` has found."""
        attention, mlp = getattr(layer, names.attention), getattr(layer, names.mlp)
        return cls(
            norm1=getattr(layer, names.norm1), attention=attention,
            query=attention.q_proj, key=attention.k_proj, value=attention.v_proj,
            output=getattr(attention, names.output),
            scale1=getattr(layer, names.scale1) if names.scale1 else None, norm2=getattr(layer, names.norm2), mlp=mlp,
            mlp_in=getattr(mlp, names.mlp_in), mlp_out=getattr(mlp, names.mlp_out),
            gate=getattr(mlp, names.gate) if names.gate else None, activation=getattr(mlp, names.activation),
            scale2=getattr(layer, names.scale2) if names.scale2 else None,
        )  # fmt: skip

    @property
    def scaling(self) -> float:
        """What scores are multiplied by, d^-1/2."""
        return getattr(self.attention, "scaling", None) or self.attention.scale

    def split(self, x: Tensor) -> Tensor:
        """[..., N, D] -> [..., H, N, d]"""
        return x.unflatten(-1, (-1, self.attention.head_dim)).transpose(-3, -2)


def scaled(scale: Any, x: Tensor) -> Tensor:
    """x [B, T, D] times the layer scale, which is a module, a parameter [D], a number, or nothing."""
    if scale is None:
        return x
    return scale(x) if isinstance(scale, nn.Module) else scale * x


# ============================================================================================================ encoders
def encoder_path(model: Any) -> str:
    """Where in a stock model the vision encoder is: "" for the model itself, "vit", "vision_model".

    Raises ValueError if there is none whose layers have `q_proj`, `k_proj` and `v_proj`.
    """
    for path, module in model.named_modules():
        is_vision = hasattr(getattr(module, "config", None), "patch_size")
        if is_vision and isinstance(getattr(module, "embeddings", None), nn.Module) and layers_path(module):
            return path
    raise ValueError(
        f"A {type(model).__name__} cannot be a base: it has no embeddings followed by one list of layers whose "
        "attention has q_proj, k_proj and v_proj. Bases are vision encoders such as ViT, DINOv3, CLIP and SigLIP."
    )


def layers_path(encoder: Any) -> str:
    """Where in an encoder the list of its layers is, "" if there is none."""
    for path, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            attention = find(module[0], tuple(NAMES_IN_USE.attention.split()))
            if all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")):
                return path
    return ""


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of what a config gives as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


class Anatomy:
    """Where a base keeps what heads need, by names and not by modules, so that it holds when modules are replaced.

    Attributes:
        encoder: path of the vision encoder in the model.
        layers: path of the list of layers in the encoder.
        names: what the parts of a layer are called.
        family: the row of FAMILIES, or that of no difference.
        listed: whether the family has a row, and so was compared with its own class by the tests.
        special: S, the base's special tokens: class tokens, registers, DeiT's distillation token.
        channels: of an image.

    Raises ValueError, with the reason, if the model cannot be a base.
    """

    def __init__(self, model: Any) -> None:
        self.encoder = encoder_path(model)
        encoder = model.get_submodule(self.encoder)
        self.layers = layers_path(encoder)
        kind = encoder.config.model_type
        self.family, self.listed = FAMILIES.get(kind, Family()), kind in FAMILIES
        try:
            if self.family.refused:
                raise ValueError(self.family.refused)
            self.names = layer_names(encoder.get_submodule(self.layers)[0])
            self.patch_size, self.native_size = pair(encoder.config.patch_size), pair(encoder.config.image_size)
            self.channels = int(getattr(encoder.config, "num_channels", 3))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"A {type(model).__name__} ({kind}) cannot be a base: {error}.") from None
        width = encoder.config.hidden_size
        tokens = [find(encoder, (path,)) for path in CLASS_TOKENS + FURTHER_TOKENS]
        self.special = sum(token.numel() // width for token in tokens if token is not None)

    def has_class_token(self, encoder: Any) -> bool:
        """Whether it has a class token, which is its first token then."""
        return find(encoder, CLASS_TOKENS) is not None

    def has_positions(self, encoder: Any) -> bool:
        """Whether positions are learned, and so have to be resized for another size of images."""
        return find(encoder, POSITIONS) is not None

    def start(self, encoder: Any) -> Tensor:
        """What a new head's class token is a copy of, [D].

        The base's (first) class token; where there is none, the probe of its attention pool, or else zeros.
        """
        width = encoder.config.hidden_size
        found = find(encoder, CLASS_TOKENS + PROBES)
        if found is None:
            return next(encoder.parameters()).new_zeros(width)
        return found.detach().reshape(-1, width)[0]

    def enter(self, encoder: Any, tokens: Tensor) -> Tensor:
        """Class tokens [T, D] as they enter the first layer: with the position and the norm that the base's gets."""
        positions = find(encoder, POSITIONS)
        if self.has_class_token(encoder) and positions is not None and self.family.class_position:
            tokens = tokens + positions.reshape(-1, tokens.shape[-1])[0]
        norm = find(encoder, PRE_NORMS)
        return tokens if norm is None else norm(tokens)

    def final_norm(self, encoder: Any) -> nn.Module:
        """What a class token passes behind the last layer; an identity where the family has none (C-RADIO)."""
        return find(encoder, FINAL_NORMS) or nn.Identity()

    def readout(self, encoder: Any, outputs: Any) -> Tensor:
        """What the family's own classifier reads of an encoder's outputs: [B, R]; see `Family`."""
        kind, tokens = self.family.readout, outputs.last_hidden_state  # [B, N, D]
        if kind == "summary":
            return outputs.summary
        if kind == "pooler" and outputs.pooler_output is not None:
            return outputs.pooler_output
        patches = tokens[:, self.special :]
        if kind == "mean of patches":
            return patches.mean(dim=1)
        if not self.has_class_token(encoder):
            return tokens.mean(dim=1)
        return torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1) if kind == "class+mean" else tokens[:, 0]

    def unread(self, name: str) -> bool:
        """Whether a parameter of the encoder, by its name, has no part in what `readout` gives."""
        kind = self.family.readout
        behind = () if kind == "pooler" else ("pooler.", "head.")
        return (
            name.startswith((*behind, "post_layernorm.") if kind == "mean of patches" else behind)
            or "mask_token" in name
        )

    def readout_width(self, encoder: Any) -> int:
        """R, how many numbers `readout` gives of an image."""
        width, kind = encoder.config.hidden_size, self.family.readout
        return width * {"class+mean": 2, "summary": len(getattr(encoder.config, "summary_idxs", ()))}.get(kind, 1)

    def parts(self, encoder: Any) -> Iterator[LayerParts]:
        """The parts of all layers."""
        return (LayerParts.of(layer, self.names) for layer in encoder.get_submodule(self.layers))
