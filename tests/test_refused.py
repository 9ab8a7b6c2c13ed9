"""What is known to be no base, and the one line that says why."""

import pytest

from learnable_memory.bases import refuse
from learnable_memory.bases.refused import REASONS, refuse_names


@pytest.mark.parametrize("kind", sorted(REASONS))
def test_each_model_type_has_one_line(kind: str) -> None:
    with pytest.raises(ValueError) as caught:
        refuse({"model_type": kind})
    assert str(caught.value) == f"a {kind!r} model cannot be a base: {REASONS[kind]}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("swin", "no tokens of one width through all layers"),
        ("convnextv2", "no tokens of one width"),
        ("resnet", "vit_train.py takes it with --method full or --method head"),
        ("vit_hybrid", "a stack of convolutions"),
        ("bert", "it reads text"),
        ("videomae", "it reads videos"),
        ("flava", "its layers read images and text together"),
        ("siglip2_vision_model", r"come as patches with a mask \(NaFlex\); SigLIP 2 of one size is a 'siglip'"),
        ("sapiens2", "it normalises queries and keys"),
        ("timm_wrapper", "give the folder in timm's own layout"),
    ],
)
def test_reasons(kind: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        refuse({"model_type": kind})


@pytest.mark.parametrize(
    "kind",
    [
        "vit", "deit", "vit_mae", "vit_msn", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip", "metaclip_2",
        "clip_vision_model", "siglip", "siglip_vision_model", "aimv2_vision_model", "ijepa", "beit", "radio", "tipsv2",
        "pixio", "a_model_of_tomorrow", None,
    ],
)  # fmt: skip
def test_of_all_other_types_the_modules_tell(kind: str | None) -> None:
    assert refuse({"model_type": kind}) is None


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("swin_base_patch4_window7_224", "no tokens of one width"),
        ("swinv2_tiny_window8_256", "no tokens of one width"),
        ("convnext_base", "no tokens of one width"),
        ("resnet50", "no tokens of one width"),
        ("eva02_base_patch14_224", "its rotary positions turn neighbouring numbers.* its MLPs are normalised inside"),
        ("vit_pe_core_base_patch16_224", "neighbouring numbers, where DINOv3's turn halves, and transformers has no"),
        ("vit_base_patch16_rope_224", "its rotary positions are not those of DINOv3"),
        ("vit_relpos_base_patch16_224", "its position biases are computed by an MLP"),
        ("naflexvit_base_patch16_siglip", "NaFlex"),
        ("vit_base_patch16_sapiens2", "it normalises queries and keys"),
        ("vit_base_r50_s16_224", "a stack of convolutions"),
        ("vit_small_resnet26d_224", "a stack of convolutions"),
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
        "vit_giant_patch14_dinov2", "vit_base_patch16_dinov3", "vit_base_patch16_clip_224",
        "vit_base_patch16_siglip_224", "beit_base_patch16_224", "eva_giant_patch14_224",
        "aimv2_large_patch14_224", "vit_huge_patch16_radio_v3",
    ],
)  # fmt: skip
def test_architectures_of_timm_that_pass(architecture: str) -> None:
    assert refuse({"architecture": architecture}) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("patch_embed.backbone.stem.conv.weight", "a stack of convolutions"),
        ("blocks.0.attn.k_norm.weight", "it normalises queries and keys"),
        ("blocks.0.mlp.norm.weight", "layer norms inside attention or MLP"),
        ("blocks.0.attn.gate.weight", "its attention is gated"),
        ("blocks.0.attn.rel_pos.mlp.fc1.weight", "computed by an MLP"),
        ("rope.freqs", "not those of DINOv3"),
    ],
)
def test_tensors_that_no_class_has(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^x\.pth cannot be a base: .*{reason}.* \(found {name}\)$"):
        refuse_names("x.pth", ["cls_token", name])


def test_tensors_that_classes_have() -> None:
    assert (
        refuse_names("x", ["norm_pre.weight", "blocks.0.mlp.w12.weight", "fc_norm.bias", "blocks.0.ls1.gamma"]) is None
    )
