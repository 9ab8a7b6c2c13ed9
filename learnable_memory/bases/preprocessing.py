"""How the pixels of a base are made: as its processor says, as timm's config says, or as is usual in its family."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnable_memory.bases.convert import convert
from learnable_memory.bases.find import PROCESSORS, has_processor, is_timm, read_config
from learnable_memory.bases.timm_models import timm_preprocessing
from learnable_memory.transforms import Preprocessing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

Usual = Callable[[int, int], Preprocessing]  # (height, width) of the images in pixels -> what is usual for them
HALF = (0.5,) * 3
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# ----------------------------------------------------------------------------------------------------- what is usual
def whole(
    height: int, width: int, resample: str = "bilinear", mean: tuple = HALF, std: tuple = HALF, rounded: bool = True
) -> Preprocessing:
    """The whole image, stretched."""
    return Preprocessing(height, width, resample, 1 / 255, mean, std, rounded=rounded)


def imagenet(height: int, width: int, resample: str = "bicubic") -> Preprocessing:
    """The usual evaluation on ImageNet: resized to 8/7 of the size (256 for 224), the centre cut out."""
    resize = (round(height * 8 / 7),) if height == width else (round(height * 8 / 7), round(width * 8 / 7))
    return Preprocessing(height, width, resample, 1 / 255, *IMAGENET, resize)


def dinov2(height: int, width: int) -> Preprocessing:
    """DINOv2 ends its training on 518 pixels, where its positions are from, and is evaluated on 224."""
    return imagenet(min(height, 224), min(width, 224))


def deit_three(height: int, width: int) -> Preprocessing:
    """At 384 pixels nothing is cut away, and at 224 an eighth; not so for files that saw ImageNet-21k."""
    usual = imagenet(height, width)
    return replace(usual, resize=(height, width)) if min(height, width) >= 384 else usual


def clip(height: int, width: int) -> Preprocessing:
    """The shorter side becomes that of the image, and the centre is cut out."""
    resize = (height,) if height == width else (height, width)
    return Preprocessing(height, width, "bicubic", 1 / 255, *OPENAI, resize)


def dinov3(height: int, width: int) -> Preprocessing:
    """Its processor rescales before it resizes."""
    return whole(height, width, "bilinear", *IMAGENET, rounded=False)


# By `converted_from` or else the model type of a config: what people call it, and what is usual.
USUAL: dict[str, tuple[str, Usual]] = {
    "vit": ("ViT", whole),
    "deit": ("DeiT", imagenet),
    "vit_mae": ("ViT-MAE", imagenet),
    "vit_msn": ("ViT-MSN", partial(imagenet, resample="bilinear")),
    "dinov2": ("DINOv2", dinov2),
    "dinov2_with_registers": ("DINOv2 with registers", dinov2),
    "dinov3_vit": ("DINOv3", dinov3),
    "beit": ("BEiT", whole),
    "clip": ("CLIP", clip),
    "clip_vision_model": ("CLIP", clip),
    "metaclip_2": ("MetaCLIP 2", clip),
    "metaclip_2_vision_model": ("MetaCLIP 2", clip),
    "siglip": ("SigLIP", partial(whole, resample="bicubic")),
    "siglip_vision_model": ("SigLIP", partial(whole, resample="bicubic")),
    "aimv2": ("AIMv2", clip),
    "aimv2_vision_model": ("AIMv2", clip),
    "ijepa": ("I-JEPA", partial(whole, mean=IMAGENET[0], std=IMAGENET[1])),
    "tipsv2": ("TIPSv2", partial(whole, mean=(0.0,) * 3, std=(1.0,) * 3)),
    "tipsv2_vision_model": ("TIPSv2", partial(whole, mean=(0.0,) * 3, std=(1.0,) * 3)),
}
# Of files.
USUAL |= {
    "ViT of the original JAX code": ("ViT of the original JAX code", whole),
    "MoCo v3": ("MoCo v3", partial(imagenet, resample="bilinear")),
    "DeiT III": ("DeiT III", deit_three),
    "BEiT": ("BEiT", whole),
    "DINOv2": ("DINOv2", dinov2),
    "DINOv2 with registers": ("DINOv2 with registers", dinov2),
    "DINOv3": ("DINOv3", dinov3),
    **{name: (name, imagenet) for name in ("DeiT, distilled", "ViT-MAE", "ViT with timm's names")},
}


# ------------------------------------------------------------------------------------------------------------ of a base
def preprocessing_of(place: Path, model: "PreTrainedModel | None" = None, used: bool = True) -> Preprocessing:
    """How the pixels of a base are made: as its processor or timm says, or else as is usual, which is logged.

    Args:
        place: from `find_base`.
        model: of a file: what `convert` gave for it, or a model around it, if that was done already.
        used: whether pixels will be made so: if not, nothing is logged.

    Raises:
        ValueError: the processor or timm does something that cannot be expressed; the processor comes with code of its
            own; or there is none, and nothing is known to be usual.
    """
    if has_processor(place):
        return Preprocessing.from_processor(read_processor(place))
    if is_timm(place):
        return timm_preprocessing(place, read_config(place))
    config = _config(place) if place.is_dir() else (model or convert(place)).config
    kind = getattr(config, "converted_from", None) or config.model_type
    if kind not in USUAL:
        raise ValueError(
            f"{place} has no {PROCESSORS[0]}, and what is usual for {kind} is not known: put there the model's own"
        )
    name, usual = USUAL[kind]
    side = getattr(config, "vision_config", config).image_size
    preprocessing = usual(*((side, side) if isinstance(side, int) else side))
    if used:
        logger.warning(
            "%s has no %s; pixels are made as is usual for %s: %s.", place, PROCESSORS[0], name, preprocessing.words
        )
    return preprocessing


def read_processor(folder: Path) -> Any:
    """The processor in a folder, as transformers reads it. Raises ValueError if it cannot."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)  # left out, it would ask
    except (ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot read {folder / PROCESSORS[0]} ({reason}); code that comes with a model is never run: give a "
            "processor that transformers has"
        ) from error


def _config(folder: Path) -> "PreTrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"cannot read the config.json in {folder}: {reason}") from error
