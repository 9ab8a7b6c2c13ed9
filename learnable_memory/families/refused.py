"""What cannot be a base, and why.

A base is a stack of stock ViT layers over tokens of one width, with a class token, learned or fixed positions that are
added once, and nothing between embedding and first layer. Heads read the keys and values of such layers.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STOCK = "vit"
CONVERTED = ("deit", "dinov2", "dinov2_with_registers", "vit_mae", "vit_msn")
# Networks to compare with (convolutional.py): types of transformers, and what names of timm's begin with.
CONVOLUTIONAL_TYPES = ("resnet", "bit", "regnet", "convnext", "convnextv2")
CONVOLUTIONAL_NAMES = r"^(wide_)?(resnet|resnext|regnet|convnext)(?!.*_clip)"  # CLIP's ResNets pool by attention

HIERARCHY = "it has no class token, and no tokens of one width through all layers"
CONVOLUTIONAL = f"{HIERARCHY}; vit_train.py takes it with --method full or --method head"
NO_CLASS_TOKEN = "it has no class token, which heads start from"
ROTARY = "rotary positions turn queries and keys in every layer; the layers of a base take positions once, by addition"
RELATIVE = "a relative position bias is added to the scores of every layer; the layers of a base have none"
GATED = "its MLP is gated (SwiGLU); the layers of a base have two linear maps with one activation between"
PRE_NORM = "a layer norm stands before its first layer; a base has none there"
CONVOLUTIONS = "its patches come from a stack of convolutions; a base embeds them by one linear map"
QK_NORM = "it normalises queries and keys; the layers of a base do not"
INNER_NORM = "it has layer norms inside attention or MLP; the layers of a base have none there"
AVERAGE = "its classifier reads an average of the patches, and what becomes of the class token was never trained"
GATED_ATTENTION = "its attention is gated; the layers of a base are not"
VIDEO = "it reads videos"
TEXT = "it reads text"
BOTH = "it reads images and text; of such models only image encoders of another kind can be converted"

# HuggingFace's model types.
REASONS: dict[str, str] = {
    **dict.fromkeys(CONVOLUTIONAL_TYPES, CONVOLUTIONAL),
    **dict.fromkeys(("swin", "swinv2", "dinov3_convnext"), HIERARCHY),
    **dict.fromkeys(("cvt", "efficientnet", "focalnet", "hiera", "levit", "mobilevit", "pvt"), HIERARCHY),
    **dict.fromkeys(("mobilenet_v1", "mobilenet_v2", "mobilevitv2", "poolformer", "pvt_v2", "segformer"), HIERARCHY),
    **dict.fromkeys(("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model", "ijepa"), NO_CLASS_TOKEN),
    **dict.fromkeys(("beit", "data2vec-vision"), RELATIVE),
    **dict.fromkeys(("clip", "clip_vision_model", "metaclip_2"), f"{PRE_NORM}, and its activation is quick GELU"),
    **dict.fromkeys(("videomae", "vivit", "vjepa2", "timesformer"), VIDEO),
    **dict.fromkeys(("bert", "roberta", "distilbert", "gpt2", "llama", "mistral", "qwen2", "t5"), TEXT),
    **dict.fromkeys(("blip", "blip-2", "flava", "vilt"), BOTH),
    "dinov3_vit": ROTARY,
    "aimv2_vision_model": GATED,
    "vit_hybrid": CONVOLUTIONS,
    "timm_wrapper": "transformers only wraps it; give the folder in timm's own layout",
}

# timm's architectures, by what their names contain; the first that fits counts.
TIMM_REASONS: dict[str, str] = {
    CONVOLUTIONAL_NAMES: CONVOLUTIONAL,
    r"^(swin|convnext|resnet|resnext|regnet|efficientnet|mobilenet|maxvit|hiera|pvt|levit|focalnet)": HIERARCHY,
    r"dinov3|rope|^eva02|^vit_pe_": ROTARY,
    r"^beit|relpos": RELATIVE,
    r"siglip|_gap_|ijepa": NO_CLASS_TOKEN,
    r"_clip_": PRE_NORM,
    r"^vit_\w+_r\d+_s\d+|^vit_\w+_resnet|hybrid": CONVOLUTIONS,
    r"^vit_giant_patch14_(reg4_)?dinov2": GATED,
}

# Names of tensors, in timm's spelling, that tell of something which the layers of a base do not have.
NAME_REASONS: dict[str, str] = {
    r"^patch_embed\.(proj\.\d|backbone)": CONVOLUTIONS,
    r"^norm_pre\.": PRE_NORM,
    r"^(fc_norm|attn_pool)\.": AVERAGE,
    r"\.attn\.[qk]_norm\.": QK_NORM,
    r"\.(attn|mlp)\.norm\.": INNER_NORM,
    r"\.attn\.gate\.": GATED_ATTENTION,
    r"\.mlp\.(w12|w1|fc1_g)\.": GATED,
    r"relative_position|rel_pos": RELATIVE,
    r"rope\.|\.freqs": ROTARY,
}


def refuse(config: dict[str, Any]) -> None:
    """Raise ValueError, in one line with the reason, if a model with this config.json cannot be a base.

    Args:
        config: HuggingFace's, with a `model_type`, or timm's, with an `architecture`. A timm model that passes may be
            refused later, for what is seen in its modules.
    """
    kind = config.get("model_type")
    if kind is None and "architecture" in config:
        return _refuse_timm(config["architecture"])
    if kind in REASONS:
        raise ValueError(f"a {kind!r} model cannot be a base: {REASONS[kind]}")
    if kind not in (STOCK, *CONVERTED):
        raise ValueError(
            f"a {kind!r} model cannot be a base: nothing here converts it; what can be one: "
            f"{', '.join((STOCK, *CONVERTED))}, timm's ViTs, and checkpoint files of DeiT, DINO, DINOv2, MAE, MoCo v3"
        )
    if config.get("use_swiglu_ffn"):
        raise ValueError(f"a giant {kind!r} model cannot be a base: {GATED}")


def refuse_names(source: Path | str, names: Iterable[str]) -> None:
    """Raise ValueError with the reason if tensors of these names, in timm's spelling, do not make a plain ViT."""
    names = list(names)
    for pattern, reason in NAME_REASONS.items():
        found = [name for name in names if re.search(pattern, name)]
        if found:
            raise ValueError(f"{source} cannot be a base: {reason} (found {found[0]})")
    elsewhere = [name for name in names if name.endswith(".cls_token")]
    if elsewhere and "cls_token" not in names:
        raise ValueError(
            f"{source} has tensors of other names than timm's (found {elsewhere[0]}): give the folder with its "
            "config.json"
        )
    if "cls_token" not in names:
        raise ValueError(f"{source} cannot be a base: {NO_CLASS_TOKEN} (no cls_token among its tensors)")


def _refuse_timm(architecture: str) -> None:
    for pattern, reason in TIMM_REASONS.items():
        if re.search(pattern, architecture):
            raise ValueError(f"timm's {architecture} cannot be a base: {reason}")
