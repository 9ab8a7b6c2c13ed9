"""The class of transformers that computes what a foreign encoder does: one row for each family."""

import logging
import re
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learnable_memory.bases import arrange
from learnable_memory.bases.encoder import BOTH, CLASS, PATCHES, POOLED, Encoder, some

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

Settings = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A class of transformers for an encoder alone, and one with a classifier if there is one that fits.

    Attributes:
        bare: the name of the class of the encoder alone.
        needs: the features that an encoder of this family has to have; see `Encoder.features`.
        names: of its tensors on the hub; see `arrange`.
        shapes: arranges the tensors of an `Encoder` as the class has them, in place; see `arrange`.
        settings: what its config says beside what all do.
        allows: further features that it may have.
        whole: the name of the class with a classifier.
        reads: what that classifier can read, as in `encoder`.
        prefix: of the tensors' names on the hub, but for the classifier.
        arguments: of the bare class, beside its config.
        biased: parts of a layer that have a bias in any case; zero where the encoder has none.
        called: a regular expression in the encoder's name, where features do not tell the family.
    """

    bare: str
    needs: str
    names: arrange.Names
    shapes: Callable[[Encoder, arrange.Tensors], None]
    settings: Callable[[Encoder], Settings]
    allows: str = ""
    whole: str = ""
    reads: tuple[str, ...] = ()
    prefix: str = ""
    arguments: Callable[[Encoder], Settings] = lambda _: {}
    biased: tuple[str, ...] = ()
    called: str = ""

    def fits(self, name: str, features: Set[str]) -> bool:
        """Whether an encoder of this name has all features that are needed, and none that is not allowed."""
        needed, allowed = set(self.needs.split(", ")), set(self.allows.split(", "))
        return needed <= features <= needed | allowed and re.search(self.called, name) is not None


# ---------------------------------------------------------------------------------------------------- what configs say
def width_of_mlp(encoder: Encoder) -> Settings:
    """The MLP by its width."""
    return {"intermediate_size": encoder.mlp_width}


def vit(encoder: Encoder) -> Settings:
    """ViT, DeiT and I-JEPA."""
    return width_of_mlp(encoder) | {"qkv_bias": any_bias(encoder)}


def dinov2(encoder: Encoder) -> Settings:
    """The MLP by a ratio; with registers or without."""
    ratio = encoder.mlp_ratio or encoder.mlp_width / encoder.width
    settings = {"mlp_ratio": ratio, "use_swiglu_ffn": encoder.gated, "qkv_bias": any_bias(encoder)}
    return settings | ({"num_register_tokens": encoder.num_registers} if encoder.num_registers else {})


def dinov2_without_mask_token(encoder: Encoder) -> Settings:
    """DINOv2's class can do without the token for masked patches."""
    return dinov2(encoder) | {"use_mask_token": False}


def dinov3(encoder: Encoder) -> Settings:
    """Images of any size are taken; what the config says of it has to be one number."""
    biases = {f"{part}_bias": encoder.has(f"{part}.bias") for part in QKV} | {"image_size": encoder.image_size[0]}
    more = {"num_register_tokens": encoder.num_registers, "rope_theta": encoder.rope_theta}
    return width_of_mlp(encoder) | biases | more | {"use_gated_mlp": encoder.gated}


def siglip(encoder: Encoder) -> Settings:
    """With its attention pool or without."""
    return width_of_mlp(encoder) | {"vision_use_head": "probe" in encoder.tensors}


def beit(encoder: Encoder) -> Settings:
    """What a BEiT may have, or lack."""
    return width_of_mlp(encoder) | {
        "use_absolute_position_embeddings": "positions" in encoder.tensors,
        "use_relative_position_bias": encoder.has("relative_positions"),
        "use_shared_relative_position_bias": "relative_positions" in encoder.tensors,
        "layer_scale_init_value": 1.0 if encoder.has("scale1") else 0.0,  # 0: there is none
        "use_mean_pooling": pools(encoder),
    }


def aimv2(encoder: Encoder) -> Settings:
    """Without the pool of the models that were trained with text."""
    biases = {"qkv_bias": any_bias(encoder), "mlp_bias": encoder.has("gate.bias")}
    return width_of_mlp(encoder) | biases | {"rms_norm_eps": encoder.layer_norm_eps, "use_head": False}


def radio(encoder: Encoder) -> Settings:
    """The table of positions is as large as the image, and pixels are normalised before."""
    pixels = {"max_img_size": encoder.image_size[0], "norm_mean": [0.0] * 3, "norm_std": [1.0] * 3}
    tokens = {"num_cls_tokens": 1, "num_registers": encoder.num_registers, "summary_idxs": [0]}
    return pixels | tokens | {"mlp_ratio": encoder.mlp_width / encoder.width, "qkv_bias": any_bias(encoder)}


def any_bias(encoder: Encoder) -> bool:
    """Whether queries, keys or values have biases."""
    return any(encoder.has(f"{part}.bias") for part in QKV)


def pools(encoder: Encoder) -> bool:
    """Whether a norm comes after the mean of the patches."""
    return "pooled_norm.weight" in encoder.tensors


def no_pooler(encoder: Encoder) -> Settings:
    """A pooler would be drawn at random."""
    return {"add_pooling_layer": False}


# ----------------------------------------------------------------------------------------------------------- the table
CLASSIFIERS = r"(distillation_)?classifier\."
QKV = ("query", "key", "value")
LINEAR = (*QKV, "output", "mlp_in", "mlp_out")
NOT_SQUARE, UNEVEN = "images or patches that are not square", "an MLP that is no whole multiple of its width"
USUAL = "a class token, learned positions, a final norm"

SIGLIP = Family(
    "SiglipVisionModel", "learned positions, a final norm", arrange.CLIP, arrange.siglip, siglip, allows=UNEVEN,
    prefix="vision_model.", biased=LINEAR, whole="SiglipForImageClassification", reads=(PATCHES,), called="siglip",
)  # fmt: skip
DINOV2_WITH_REGISTERS = Family(
    "Dinov2WithRegistersModel", f"{USUAL}, registers", arrange.DINOV2, arrange.dinov2_with_registers, dinov2,
    allows="layer scale, a gated MLP", whole="Dinov2WithRegistersForImageClassification", reads=(CLASS, PATCHES),
    prefix="dinov2_with_registers.", biased=LINEAR,
)  # fmt: skip
FAMILIES = (  # the first that fits
    Family(
        "ViTModel", USUAL, arrange.VIT, arrange.positions_of_all, vit, allows=f"{NOT_SQUARE}, {UNEVEN}",
        whole="ViTForImageClassification", reads=(CLASS,), prefix="vit.", arguments=no_pooler, biased=LINEAR[3:],
    ),
    Family(
        "DeiTModel", f"{USUAL}, a distillation token", arrange.DEIT, arrange.positions_of_all, vit,
        allows=f"{NOT_SQUARE}, {UNEVEN}", whole="DeiTForImageClassificationWithTeacher",
        reads=(BOTH,), prefix="deit.", arguments=no_pooler, biased=LINEAR[3:],
    ),
    Family(
        "Dinov2Model", USUAL, arrange.DINOV2, arrange.dinov2, dinov2_without_mask_token,
        allows="layer scale, a gated MLP", whole="Dinov2ForImageClassification", reads=(CLASS, PATCHES),
        prefix="dinov2.", biased=LINEAR,
    ),
    replace(
        DINOV2_WITH_REGISTERS, bare="Tipsv2VisionModel", names=arrange.TIPSV2, shapes=arrange.tipsv2,
        allows=f"layer scale, a gated MLP, {UNEVEN}", whole="", prefix="", called="tipsv2",
    ),
    DINOV2_WITH_REGISTERS,
    Family(
        "DINOv3ViTModel", "a class token, rotary positions, a final norm", arrange.DINOV3, arrange.dinov3, dinov3,
        allows=f"registers, layer scale, a gated MLP, {UNEVEN}, {NOT_SQUARE}", biased=("output", *LINEAR[4:]),
    ),
    Family(
        "CLIPVisionModel", f"{USUAL}, a norm before the layers", arrange.CLIP, arrange.clip, width_of_mlp,
        allows=UNEVEN, prefix="vision_model.", biased=LINEAR,
    ),
    replace(SIGLIP, needs=f"{SIGLIP.needs}, an attention pool", called=""),
    SIGLIP,
    Family(
        "IJepaModel", "learned positions, a final norm", arrange.VIT, arrange.positions_of_all, vit,
        allows=f"{NOT_SQUARE}, {UNEVEN}", whole="IJepaForImageClassification", reads=(PATCHES,), prefix="ijepa.",
        biased=LINEAR[3:],
    ),
    Family(
        "Aimv2VisionModel", "learned positions, a final norm, a norm of the patches, RMS norms, a gated MLP",
        arrange.AIMV2, arrange.aimv2, aimv2, allows=UNEVEN,
    ),
    *(
        Family(
            "BeitModel", f"a class token, {norm}", arrange.BEIT, arrange.beit, beit,
            allows=f"learned positions, relative positions, layer scale, {UNEVEN}",
            whole="BeitForImageClassification", reads=(reads,), prefix="beit.",
            arguments=lambda encoder: {"add_pooling_layer": pools(encoder)}, biased=("query", "value", *LINEAR[3:]),
        )
        for norm, reads in (("a final norm", CLASS), ("a norm after pooling", POOLED))
    ),
    Family(
        "RadioModel", "a class token, learned positions", arrange.RADIO, arrange.radio, radio,
        allows=f"registers, layer scale, {UNEVEN}", prefix="radio_model.", biased=LINEAR[3:], called="radio",
    ),
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- build
def build(encoder: Encoder) -> "PreTrainedModel":
    """The model of transformers that computes what an encoder does; float32, in eval mode, its tensors its own.

    It has a classifier if the encoder has one, and its family's reads what that reads; one that is left out is logged.
    `config.converted_from` is the encoder's name.

    Raises:
        ValueError: no class has the encoder's features together, the installed transformers does not have it yet, or a
            tensor is missing, unexpected, or of another shape.
    """
    import transformers

    family = _family(encoder)
    tensors = dict(encoder.tensors)
    whole = "classifier.weight" in tensors and encoder.reads in family.reads
    if "classifier.weight" in tensors and not whole:
        tensors = {name: tensor for name, tensor in tensors.items() if not re.match(CLASSIFIERS, name)}
        logger.warning(
            "%s: the classifier is left out, because transformers has none behind a %s that reads %s",
            encoder.source, family.bare, encoder.reads,
        )  # fmt: skip
    _fill_biases(encoder, family, tensors)
    family.shapes(encoder, tensors)
    name = family.whole if whole else family.bare
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ValueError(
            f"{encoder.source} is a {encoder.name}, and transformers {transformers.__version__} has no {name} yet: "
            "pip install --upgrade transformers"
        )
    state = {_name(family, key): _own(tensor) for key, tensor in tensors.items()}
    with _quiet():  # all that does not fit is judged here, in one line
        model, info = kind.from_pretrained(
            None, config=_config(kind, encoder, family, whole), state_dict=state, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True, **({} if whole else family.arguments(encoder)),
        )  # fmt: skip
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    if missing or unexpected or mismatched:
        raise ValueError(
            f"{encoder.source} is no whole {encoder.name} checkpoint; missing: {some(missing)}; unexpected: "
            f"{some(unexpected)}; of another shape: {some(mismatched)}"
        )
    return model.eval()


def _family(encoder: Encoder) -> Family:
    """The first that fits. Raises ValueError if none does."""
    features = encoder.features
    for family in FAMILIES:
        if family.fits(encoder.name, features):
            return family
    found = [*sorted(features), *([] if "a class token" in features else ["no class token"])]
    raise ValueError(
        f"{encoder.source} cannot be a base: it has {', '.join(found)}, and of the classes that such files become "
        f"none has exactly that: {', '.join(dict.fromkeys(family.bare for family in FAMILIES))}"
    )


def _fill_biases(encoder: Encoder, family: Family, tensors: arrange.Tensors) -> None:
    """A bias that no layer has is zero, where the class has it nevertheless."""
    parts = set(family.biased)
    if any_bias(encoder) and encoder.rope_theta is None:  # one setting for all three, but for DINOv3
        parts |= set(QKV)
    for part in parts:
        if encoder.has(f"{part}.weight") and not encoder.has(f"{part}.bias"):
            for layer in (f"layers.{layer}.{part}" for layer in range(encoder.depth)):
                if f"{layer}.weight" in tensors:
                    tensors[f"{layer}.bias"] = torch.zeros(len(tensors[f"{layer}.weight"]))


def _name(family: Family, name: str) -> str:
    """The name on the hub."""
    prefix = "" if re.match(CLASSIFIERS, name) else family.prefix
    for pattern, replacement in family.names.items():
        name = re.sub(pattern, replacement, name)
    return f"{prefix}{name}"


def _config(kind: Any, encoder: Encoder, family: Family, whole: bool) -> "PreTrainedConfig":
    sizes = {"image_size": encoder.image_size, "patch_size": encoder.patch_size}
    settings: Settings = {
        "hidden_size": encoder.width, "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_attention_heads, "hidden_act": encoder.hidden_act,
        "layer_norm_eps": encoder.layer_norm_eps,
        **{key: size[0] if size[0] == size[1] else list(size) for key, size in sizes.items()},
        **family.settings(encoder),
    }  # fmt: skip
    classes = len(encoder.tensors["classifier.weight"]) if whole else 0
    labels: Settings = {"num_labels": classes}
    if classes and encoder.id2label and len(encoder.id2label) == classes:
        labels = {"id2label": dict(encoder.id2label), "label2id": {name: i for i, name in encoder.id2label.items()}}
    labels["converted_from"] = encoder.name
    if "vision_config" in getattr(kind.config_class, "sub_configs", {}):
        return kind.config_class(vision_config=settings, **labels)
    return kind.config_class(**settings, **labels)


def _own(tensor: Tensor) -> Tensor:
    """A copy, in float32 but for whole numbers: what was split shares memory, which a model's tensors must not."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True).contiguous()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report and progress bar."""
    from transformers.utils import logging as hf_logging

    verbosity, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bar:
            hf_logging.enable_progress_bar()
