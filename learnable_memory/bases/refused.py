"""What cannot be a base, and why.

A base is a class of transformers with pre-norm transformer layers over tokens of one width. Here stands what is known
to be none, and what no class computes; of any other class its modules tell (`MemoryCapableViT.from_base`).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Networks to compare with (convolutional.py): types of transformers, and what names of timm's begin with.
CONVOLUTIONAL_TYPES = ("resnet", "bit", "regnet", "convnext", "convnextv2")
CONVOLUTIONAL_NAMES = r"^(wide_)?(resnet|resnext|regnet|convnext)(?!.*_clip)"  # CLIP's ResNets pool by attention

HIERARCHY = "it has no tokens of one width through all layers"
CONVOLUTIONAL = f"{HIERARCHY}; vit_train.py takes it with --method full or --method head"
CONVOLUTIONS = "its patches come from a stack of convolutions, and no class of transformers embeds them so"
VIDEO = "it reads videos"
TEXT = "it reads text"
BOTH = "its layers read images and text together"
ANY_SIZE = "its images have any shape, and come as patches with a mask (NaFlex)"
QK_NORM = "it normalises queries and keys, which the layers of a base do not"
INNER_NORM = "it has layer norms inside attention or MLP, and no class of transformers has them there"
GATED_ATTENTION = "its attention is gated, and no class of transformers has that"
COMPUTED_BIAS = "its position biases are computed by an MLP, and no class of transformers has that"
ROTARY = "its rotary positions are not those of DINOv3, and no class of transformers has them"
PAIRS = "its rotary positions turn neighbouring numbers, where DINOv3's turn halves"
PERCEPTION_ENCODER = f"{PAIRS}, and transformers has no class of it"
EVA02 = f"{PAIRS}, its MLPs are normalised inside, and transformers has no class of it"

# HuggingFace's model types.
REASONS: dict[str, str] = {
    **dict.fromkeys(CONVOLUTIONAL_TYPES, CONVOLUTIONAL),
    **dict.fromkeys(("swin", "swinv2", "dinov3_convnext"), HIERARCHY),
    **dict.fromkeys(("cvt", "efficientnet", "focalnet", "hiera", "levit", "mobilevit", "pvt"), HIERARCHY),
    **dict.fromkeys(("mobilenet_v1", "mobilenet_v2", "mobilevitv2", "poolformer", "pvt_v2", "segformer"), HIERARCHY),
    **dict.fromkeys(("videomae", "vivit", "vjepa2", "timesformer"), VIDEO),
    **dict.fromkeys(("bert", "roberta", "distilbert", "gpt2", "llama", "mistral", "qwen2", "t5"), TEXT),
    **dict.fromkeys(("flava", "vilt"), BOTH),
    **dict.fromkeys(("siglip2", "siglip2_vision_model"), f"{ANY_SIZE}; SigLIP 2 of one size is a 'siglip'"),
    "sapiens2": QK_NORM,
    "vit_hybrid": CONVOLUTIONS,
    "timm_wrapper": "transformers only wraps it; give the folder in timm's own layout",
}

# timm's architectures, by what their names contain; the first that fits counts.
TIMM_REASONS: dict[str, str] = {
    CONVOLUTIONAL_NAMES: CONVOLUTIONAL,
    r"^(swin|convnext|resnet|resnext|regnet|efficientnet|mobilenet|maxvit|hiera|pvt|levit|focalnet)": HIERARCHY,
    r"^eva02": EVA02,
    r"^vit_pe_": PERCEPTION_ENCODER,
    r"_rope_": ROTARY,
    r"relpos": COMPUTED_BIAS,
    r"^naflexvit": ANY_SIZE,
    r"sapiens2": QK_NORM,
    r"^vit_\w+_r\d+_s\d+|^vit_\w+_resnet|hybrid": CONVOLUTIONS,
}

# Names of tensors, in timm's spelling, that tell of something which no class of transformers has.
NAME_REASONS: dict[str, str] = {
    r"^patch_embed\.(proj\.\d|backbone)": CONVOLUTIONS,
    r"\.attn\.[qk]_norm\.": QK_NORM,
    r"\.(attn|mlp)\.norm\.": INNER_NORM,
    r"\.attn\.gate\.": GATED_ATTENTION,
    r"rel_pos\.mlp": COMPUTED_BIAS,
    r"^rope\.freqs": ROTARY,
}


def refuse(config: Mapping[str, Any]) -> None:
    """Raise ValueError, in one line with the reason, if a model with this config.json is known to be no base.

    Args:
        config: HuggingFace's, with a `model_type`, or timm's, with an `architecture`. A model that passes may be
            refused later, for what is seen in its modules.
    """
    kind, architecture = config.get("model_type"), config.get("architecture", "")
    if kind in REASONS:
        raise ValueError(f"a {kind!r} model cannot be a base: {REASONS[kind]}")
    if kind is None:
        for pattern, reason in TIMM_REASONS.items():
            if re.search(pattern, architecture):
                raise ValueError(f"timm's {architecture} cannot be a base: {reason}")


def refuse_names(source: Path | str, names: Iterable[str]) -> None:
    """Raise ValueError with the reason if tensors of these names, in timm's spelling, make no base."""
    names = list(names)
    for pattern, reason in NAME_REASONS.items():
        found = [name for name in names if re.search(pattern, name)]
        if found:
            raise ValueError(f"{source} cannot be a base: {reason} (found {found[0]})")
