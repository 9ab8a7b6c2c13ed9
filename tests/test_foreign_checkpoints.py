"""Files that are not in HuggingFace's layout: the class of transformers that they become computes what timm does.

One case is a kind of file and an architecture. Measured: features and answers differ by at most 6e-6, most by nothing.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from foreign import answers, assert_same, timm_model
from foreign_files import BARE, CASES, VIT, Case, folder
from learnable_memory.bases import checkpoints, convert, is_huggingface, preprocessing_of
from tiny import images

timm = pytest.importorskip("timm")


@pytest.fixture(autouse=True)
def tiny_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """No published model is so narrow."""
    monkeypatch.setitem(checkpoints.USUAL_HEADS, 32, 4)
    monkeypatch.setitem(checkpoints.USUAL_HEADS, 48, 3)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_computes_what_timm_does(case: Case, tmp_path: Path, caplog) -> None:
    """At the size of images that its positions are of."""
    if not hasattr(transformers, case.becomes):
        pytest.skip(f"transformers {transformers.__version__} has no {case.becomes}")
    place, original = case.made(tmp_path)
    model = convert(place)
    assert type(model).__name__ == case.becomes and not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    size = case.changes.get("img_size", 16)
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    assert_same(model, original, pixels)
    assert ("classifier is left out" in caplog.text) == case.left_out
    assert model.config.num_labels == (0 if "Classification" not in case.becomes else 5)


@pytest.mark.parametrize(
    "case", {case.becomes: case for case in CASES.values()}.values(), ids=lambda case: case.becomes
)
def test_what_it_saves_is_a_folder_of_transformers(case: Case, tmp_path: Path) -> None:
    model = convert(case.made(tmp_path)[0])
    model.save_pretrained(tmp_path / "saved")
    assert is_huggingface(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    assert torch.equal(answers(again, images())[0], answers(model, images())[0])


# ------------------------------------------------------------------------------------------------------------- details
def test_rotary_positions_are_those_of_any_size(tmp_path: Path) -> None:
    original = timm_model("vit_base_patch16_dinov3", **BARE)
    model = convert(folder(tmp_path, original))
    assert_same(model, original, images(size=24))


def test_an_attention_pool_is_timms(tmp_path: Path) -> None:
    original = timm_model("vit_base_patch16_siglip_224", **BARE)
    with torch.no_grad():
        pooled = convert(folder(tmp_path, original))(images()).pooler_output
        assert (pooled - original(images())).abs().max() < 1e-5


def test_what_files_do_not_tell_is_as_usual() -> None:
    """Of the original code: epsilons, activations, and attention heads by width."""
    assert checkpoints.USUAL_HEADS.items() >= {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}.items()
    assert checkpoints.MOCO_HEADS == {"vit_small": 12, "vit_base": 12, "vit_large": 16, "vit_huge": 16}


def test_tensors_are_float32_and_share_no_memory(tmp_path: Path) -> None:
    """Neither with each other, though queries, keys and values are one tensor in the file."""
    state = {name: tensor.half() for name, tensor in timm_model(VIT).state_dict().items()}
    torch.save(state, tmp_path / "base.pth")
    tensors = convert(tmp_path / "base.pth").state_dict().values()
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


def test_names_of_the_classes(tmp_path: Path) -> None:
    place, names = folder(tmp_path, timm_model(VIT)), ["ant", "bee", "cow", "dog", "eel"]
    assert convert(place).config.id2label[0] == "LABEL_0"
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"label_names": names}))
    assert convert(place).config.id2label == dict(enumerate(names))


def test_an_older_config_of_timm_has_one_level(tmp_path: Path) -> None:
    original = timm_model(VIT)
    place = folder(tmp_path, original)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config.pop("pretrained_cfg") | config))
    save_file(original.state_dict(), place / "model.safetensors")
    (place / "pytorch_model.bin").unlink()
    assert_same(convert(place), original)


def test_it_is_said_what_a_model_was(tmp_path: Path) -> None:
    """For people, and for the pixels that are usual in its family; it is saved with the model."""
    named = {"timm's DINOv3": "timm's vit_base_patch16_dinov3", "DINOv3": "DINOv3", "MAE": "ViT-MAE", "BEiT": "BEiT"}
    named |= {name: name for name in ("DeiT III", "DINOv2", "DINOv2 with registers", "MoCo v3", "DeiT, distilled")}
    named |= {"DeiT": "ViT with timm's names", "DINO": "ViT with timm's names", "npz": "ViT of the original JAX code"}
    for name, expected in named.items():
        model = convert(CASES[name].made(tmp_path)[0])
        assert model.config.converted_from == expected
    model.save_pretrained(tmp_path / "saved")
    assert type(model.config).from_pretrained(tmp_path / "saved").converted_from == expected


def test_nothing_is_reported_while_loading(tmp_path: Path, caplog, capfd) -> None:
    """Neither transformers' report nor its progress bar."""
    place = folder(tmp_path, timm_model("vit_base_patch16_siglip_gap_224"))
    transformers.utils.logging.enable_progress_bar()  # command lines switch it off
    capfd.readouterr()
    convert(place)
    assert (caplog.text, capfd.readouterr()) == ("", ("", ""))
    assert transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"pre_logits/kernel": np.ones((32, 32), "f4"), "pre_logits/bias": np.ones(32, "f4")},
            "reads a pre_logits layer",
        ),
        ({"head/kernel": np.zeros((32, 5), "f4"), "head/bias": np.zeros(5, "f4")}, "is all zero"),
    ],
    ids=["pre_logits", "zero"],
)
def test_classifiers_of_npz_that_are_left_out(tmp_path: Path, caplog, changes: dict, reason: str) -> None:
    place, original = CASES["npz"].made(tmp_path)
    np.savez(place, **(dict(np.load(place)) | changes))
    with caplog.at_level(logging.WARNING):
        model = convert(place)
    assert f"the classifier is left out, because it {reason}" in caplog.text
    assert type(model).__name__ == "ViTModel"
    assert_same(model, original)


def test_a_classifier_whose_bias_alone_is_zero_is_kept(tmp_path: Path) -> None:
    place, _ = CASES["npz"].made(tmp_path)
    np.savez(place, **(dict(np.load(place)) | {"head/bias": np.zeros(5, "f4")}))
    assert convert(place).config.num_labels == 5


# -------------------------------------------------------------------------------------------------------------- pixels
@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("DeiT", 16, "shorter side 18 (bicubic), centre 16x16, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"),
        ("MoCo v3", 16, "shorter side 18 (bilinear), centre 16x16, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"),
        ("DeiT III", 384, "384x384 (bicubic), mean 0.485 0.456 0.406, std 0.229 0.224 0.225"),
        ("DINOv2", 240, "shorter side 256 (bicubic), centre 224x224, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"),
        ("DINOv3", 16, "224x224 (bilinear, not rounded), mean 0.485 0.456 0.406, std 0.229 0.224 0.225"),
        ("BEiT", 16, "16x16 (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5"),
        ("npz", 16, "16x16 (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5"),
    ],
)
def test_usual_pixels_of_a_file(tmp_path: Path, caplog, name: str, size: int, words: str) -> None:
    case = CASES[name]
    place, _ = case._replace(changes={**case.changes, "img_size": size, "patch_size": size // 4}).made(tmp_path)
    model = convert(place)
    assert preprocessing_of(place, model).words == f"resized to {words}"
    assert (
        f"has no preprocessor_config.json; pixels are made as is usual for {model.config.converted_from}" in caplog.text
    )
    assert preprocessing_of(place) == preprocessing_of(place, model)
    caplog.clear()
    preprocessing_of(place, model, used=False)
    assert caplog.text == ""


@pytest.mark.parametrize(("crop_mode", "crop_pct"), [("center", 0.9), ("squash", 0.9), ("center", 1.0)])
def test_pixels_of_timms_folders_are_timms(tmp_path: Path, caplog, crop_mode: str, crop_pct: float) -> None:
    """The same, up to Pillow's rounding (timm resizes PIL images, this resizes tensors)."""
    data = {"crop_pct": crop_pct, "crop_mode": crop_mode, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    timm.models.save_for_hf(timm_model(VIT), tmp_path, data_config=data)
    found = preprocessing_of(tmp_path)
    resize = int(16 / crop_pct)
    assert found.resize == ((resize, resize) if crop_mode == "squash" else (resize,))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(input_size=(3, 16, 16), interpolation="bicubic", **data)(image)
    assert (found.eval_transform()(image) - theirs).abs().max() <= 2 / 255 / 0.2
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"crop_mode": "border"}, "prepares images of 16x16 by crop_mode 'border'; legal: center for square"),
        ({"input_size": (3, 16, 24)}, "prepares images of 16x24 by crop_mode 'center'"),
        ({"interpolation": "random"}, "resample is 'random'; legal: nearest, bilinear"),
    ],
)  # fmt: skip
def test_pixels_of_timm_that_cannot_be_expressed(tmp_path: Path, data: dict, message: str) -> None:
    settings = {"input_size": (3, 16, 16), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", **data}
    config = {"architecture": VIT, "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        preprocessing_of(tmp_path)
