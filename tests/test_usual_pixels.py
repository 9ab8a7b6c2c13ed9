"""How pixels are made for a folder of HuggingFace's that does not say: as is usual in its family."""

import json
from pathlib import Path

import pytest
import transformers
from transformers import CLIPProcessor, PreTrainedTokenizerFast

from learnable_memory.bases import preprocessing_of
from learnable_memory.bases.preprocessing import IMAGENET, OPENAI, USUAL
from learnable_memory.transforms import Preprocessing

HALF = (0.5,) * 3, (0.5,) * 3
AS_IT_IS = (0,) * 3, (1,) * 3


def usual(side: int, resample: str, numbers: tuple, *resize: int, rounded: bool = True) -> Preprocessing:
    return Preprocessing(side, side, resample, 1 / 255, *numbers, resize, rounded)


@pytest.mark.parametrize(
    ("config", "size", "name", "expected"),
    [
        ("ViTConfig", 96, "ViT", usual(96, "bilinear", HALF)),
        ("DeiTConfig", 384, "DeiT", usual(384, "bicubic", IMAGENET, 439)),
        ("ViTMAEConfig", 224, "ViT-MAE", usual(224, "bicubic", IMAGENET, 256)),
        ("ViTMSNConfig", 224, "ViT-MSN", usual(224, "bilinear", IMAGENET, 256)),
        ("Dinov2Config", 518, "DINOv2", usual(224, "bicubic", IMAGENET, 256)),
        ("Dinov2WithRegistersConfig", 518, "DINOv2 with registers", usual(224, "bicubic", IMAGENET, 256)),
        ("DINOv3ViTConfig", 224, "DINOv3", usual(224, "bilinear", IMAGENET, rounded=False)),
        ("BeitConfig", 224, "BEiT", usual(224, "bilinear", HALF)),
        ("CLIPVisionConfig", 336, "CLIP", usual(336, "bicubic", OPENAI, 336)),
        ("SiglipVisionConfig", 384, "SigLIP", usual(384, "bicubic", HALF)),
        ("MetaClip2VisionConfig", 224, "MetaCLIP 2", usual(224, "bicubic", OPENAI, 224)),
        ("Aimv2VisionConfig", 224, "AIMv2", usual(224, "bicubic", OPENAI, 224)),
        ("IJepaConfig", 224, "I-JEPA", usual(224, "bilinear", IMAGENET)),
        ("Tipsv2VisionConfig", 448, "TIPSv2", usual(448, "bilinear", AS_IT_IS)),
    ],
)
def test_usual_in_the_family(
    config: str, size: int, name: str, expected: Preprocessing, tmp_path: Path, caplog
) -> None:
    """Which is said; the positions of DINOv2 are those of 518 pixels, but it is evaluated on 224."""
    if not hasattr(transformers, config):
        pytest.skip(f"transformers {transformers.__version__} has no {config}")
    getattr(transformers, config)(image_size=size).save_pretrained(tmp_path)
    assert preprocessing_of(tmp_path) == expected
    assert f"has no preprocessor_config.json; pixels are made as is usual for {name}: {expected.words}." in caplog.text


@pytest.mark.parametrize(("kind", "side"), [("clip", 224), ("siglip", 224), ("siglip", 512)])
def test_of_a_model_with_text_the_images_count(kind: str, side: int, tmp_path: Path) -> None:
    """The hub's config.json leave out what is as usual."""
    vision = {} if side == 224 else {"image_size": side}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": vision}))
    assert preprocessing_of(tmp_path) == USUAL[kind][1](side, side)


def test_the_processor_of_a_model_with_text_is_read(tmp_path: Path) -> None:
    """It is in a file of another name."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 20}, crop_size=16)
    processor = CLIPProcessor(image_processor=images, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert preprocessing_of(tmp_path) == usual(16, "bicubic", OPENAI, 20)


def test_what_was_converted_counts_as_what_it_was(tmp_path: Path) -> None:
    transformers.ViTConfig(image_size=32, converted_from="MoCo v3").save_pretrained(tmp_path)
    assert preprocessing_of(tmp_path) == usual(32, "bilinear", IMAGENET, 37)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit", "converted_from": "timm's vit"}, "and what is usual for timm's vit is not known"),
        ({"model_type": "bert"}, "what is usual for bert is not known: put there the model's own"),
        ({"model_type": "a_model_of_tomorrow"}, "cannot read the config.json in .*: .*a_model_of_tomorrow"),
    ],
)  # fmt: skip
def test_where_nothing_is_usual(config: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as caught:
        preprocessing_of(tmp_path)
    assert "\n" not in str(caught.value)
