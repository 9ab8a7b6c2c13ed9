"""What cannot be a base, and the one line that says why."""

import pytest

from learnable_memory.families import refuse
from learnable_memory.families.refused import CONVERTED, REASONS, STOCK, refuse_names


@pytest.mark.parametrize("kind", [STOCK, *CONVERTED])
def test_what_can_be_a_base_passes(kind: str) -> None:
    assert refuse({"model_type": kind, "use_swiglu_ffn": False}) is None


@pytest.mark.parametrize("kind", sorted(REASONS))
def test_each_model_type_has_one_line(kind: str) -> None:
    with pytest.raises(ValueError) as caught:
        refuse({"model_type": kind})
    assert str(caught.value) == f"a {kind!r} model cannot be a base: {REASONS[kind]}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "swin"}, "no class token, and no tokens of one width through all layers"),
        ({"model_type": "convnextv2"}, "no tokens of one width"),
        ({"model_type": "resnet"}, "no tokens of one width"),
        ({"model_type": "dinov3_vit"}, "rotary positions"),
        ({"model_type": "dinov2", "use_swiglu_ffn": True}, r"a giant 'dinov2' .* its MLP is gated \(SwiGLU\)"),
        ({"model_type": "dinov2_with_registers", "use_swiglu_ffn": True}, r"its MLP is gated \(SwiGLU\)"),
        ({"model_type": "beit"}, "relative position bias"),
        ({"model_type": "data2vec-vision"}, "relative position bias"),
        ({"model_type": "clip_vision_model"}, "a layer norm stands before its first layer.*quick GELU"),
        ({"model_type": "siglip_vision_model"}, "it has no class token"),
        ({"model_type": "ijepa"}, "it has no class token"),
        ({"model_type": "vit_hybrid"}, "a stack of convolutions"),
        ({"model_type": "bert"}, "it reads text"),
        ({"model_type": "videomae"}, "it reads videos"),
        ({"model_type": "flava"}, "it reads images and text"),
        ({"model_type": "new_model"}, "a 'new_model' .* nothing here converts it; what can be one: vit, deit, din"),
        ({}, "a None model cannot be a base: nothing here converts it"),
    ],
    ids=lambda value: str(value.get("model_type")) if isinstance(value, dict) else "",
)  # fmt: skip
def test_reasons(config: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        refuse(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("swin_base_patch4_window7_224", "no tokens of one width"),
        ("swinv2_tiny_window8_256", "no tokens of one width"),
        ("convnext_base", "no tokens of one width"),
        ("resnet50", "no tokens of one width"),
        ("eva02_base_patch14_224", "rotary positions"),
        ("vit_base_patch16_dinov3", "rotary positions"),
        ("vit_base_patch16_rope_224", "rotary positions"),
        ("beit_base_patch16_224", "relative position bias"),
        ("vit_relpos_base_patch16_224", "relative position bias"),
        ("vit_base_patch16_siglip_224", "no class token"),
        ("vit_base_patch16_gap_224", "no class token"),
        ("vit_base_patch16_clip_224", "a layer norm stands before its first layer"),
        ("vit_base_r50_s16_224", "a stack of convolutions"),
        ("vit_small_resnet26d_224", "a stack of convolutions"),
        ("vit_giant_patch14_dinov2", "its MLP is gated"),
        ("vit_giant_patch14_reg4_dinov2", "its MLP is gated"),
    ],
)
def test_architectures_of_timm(architecture: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"timm's {architecture} cannot be a base: .*{reason}") as caught:
        refuse({"architecture": architecture, "num_classes": 0})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "architecture",
    [
        "vit_base_patch16_224", "vit_large_patch32_384", "vit_huge_patch14_224", "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224", "vit_small_patch14_dinov2", "vit_large_patch14_reg4_dinov2", "flexivit_base",
    ],
)  # fmt: skip
def test_architectures_of_timm_that_pass(architecture: str) -> None:
    assert refuse({"architecture": architecture}) is None


def test_names_of_another_library_are_not_taken_for_a_missing_class_token() -> None:
    with pytest.raises(
        ValueError, match=r"other names than timm's \(found vit.embeddings.cls_token\): give the folder"
    ):
        refuse_names("x.safetensors", ["vit.embeddings.cls_token", "vit.layernorm.weight"])
