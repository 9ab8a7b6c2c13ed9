"""Tiny random vision encoders of every family, as their stock classes."""

import copy

import pytest
import torch
import transformers

from tiny import add_random_head
from vit import MemoryCapableViT

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
PLAIN = {**SIZE, "intermediate_size": 64}
RATIO = {**SIZE, "mlp_ratio": 2}
FIVE, FIVE_RATIO = {**PLAIN, "num_labels": 5}, {**RATIO, "num_labels": 5}
SHARED_BIAS = {"use_shared_relative_position_bias": True, "layer_scale_init_value": 0.0}
FLOAT_RATIO = {**SIZE, "mlp_ratio": 2.0}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "bos_token_id": 1}
TOWERS = {"vision_config": PLAIN, "text_config": TEXT, "num_labels": 5}
# What the parts of a layer are called: first norm, attention, its output, second norm, MLP.
VIT = ("layernorm_before", "attention", "o_proj", "layernorm_after", "mlp")
DINO = ("norm1", "attention", "o_proj", "norm2", "mlp")
CLIP = ("layer_norm1", "self_attn", "out_proj", "layer_norm2", "mlp")
AIM = ("rms_norm1", "attention", "out_proj", "rms_norm2", "ffn")
CASES = {
    "vit": ("ViTModel", "ViTConfig", PLAIN, VIT),
    "vit classifier": ("ViTForImageClassification", "ViTConfig", FIVE, VIT),
    "deit": ("DeiTForImageClassification", "DeiTConfig", FIVE, VIT),
    "deit teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", FIVE, VIT),
    "msn": ("ViTMSNForImageClassification", "ViTMSNConfig", FIVE, VIT),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", FIVE_RATIO, DINO),
    "dinov2 giant": ("Dinov2Model", "Dinov2Config", {**RATIO, "use_swiglu_ffn": True}, DINO),
    "dinov2 registers": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", FIVE_RATIO, DINO),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**PLAIN, "num_register_tokens": 4}, DINO),
    "dinov3 gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {**PLAIN, "use_gated_mlp": True}, DINO),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", PLAIN, CLIP),
    "clip classifier": ("CLIPForImageClassification", "CLIPConfig", TOWERS, CLIP),
    "metaclip 2": ("MetaClip2VisionModel", "MetaClip2VisionConfig", PLAIN, CLIP),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", PLAIN, CLIP),
    "siglip classifier": ("SiglipForImageClassification", "SiglipConfig", TOWERS, CLIP),
    "aimv2": ("Aimv2VisionModel", "Aimv2VisionConfig", PLAIN, AIM),
    "ijepa": ("IJepaForImageClassification", "IJepaConfig", FIVE, VIT),
    "beit": ("BeitForImageClassification", "BeitConfig", {**FIVE, "use_relative_position_bias": True}, VIT),
    "beit shared": ("BeitModel", "BeitConfig", {**PLAIN, **SHARED_BIAS}, VIT),
    "c-radio": ("RadioModel", "RadioConfig", FLOAT_RATIO, DINO),
    "tipsv2": ("Tipsv2VisionModel", "Tipsv2VisionConfig", RATIO, DINO),
    "pixio": ("PixioModel", "PixioConfig", RATIO, VIT),
    "altclip, which has no row": ("AltCLIPVisionModel", "AltCLIPVisionConfig", PLAIN, CLIP),
}  # fmt: skip
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def stock(case: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> transformers.PreTrainedModel:
    """The stock class with weights all of which matter. What the installed transformers does not have is skipped."""
    kind, config, settings, _ = CASES[case]
    if not hasattr(transformers, kind):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    base = getattr(transformers, kind)(getattr(transformers, config)(**copy.deepcopy(settings))).eval()
    base.requires_grad_(False)  # as it will be: PyTorch's kernels may round otherwise for weights that want gradients
    generator = torch.Generator().manual_seed(0)
    for parameter in base.parameters():
        parameter.data = torch.empty(parameter.shape).normal_(0, 0.2, generator=generator)
    base.set_attn_implementation(attention)
    return base.to(dtype)


def with_heads(base: transformers.PreTrainedModel) -> MemoryCapableViT:
    model = MemoryCapableViT.from_base(base)
    add_random_head(model, "A", 4, 2)
    add_random_head(
        model, "B", 3, 1, extends=("A",), rank={"query": 2, "key": 1, "output": 2, "mlp_in": 3, "mlp_out": 2}
    )
    add_random_head(model, "C", 5, 0, memory_norm=False)
    add_random_head(model, "probe", 3, 0, class_token=False)
    return model
