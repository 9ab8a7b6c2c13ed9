"""Families of transformers: the original class and the plain ViT give the same features, from the same files.

Measured: they differ by at most 3e-6, by nothing where nothing is folded.
"""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
    ViTMSNModel,
)

from families_reference import Evil, assert_same, randomise
from learnable_memory.families import PlainViT, from_huggingface
from tiny import images, tiny_base

CONFIGS = {"DeiT": DeiTConfig, "ViTMAE": ViTMAEConfig, "ViTMSN": ViTMSNConfig, "Dinov2": Dinov2Config}
FAMILIES = [
    # class, extra tokens, readout, interpolation
    (DeiTForImageClassificationWithTeacher, 1, "class+extra", "bicubic"),
    (DeiTForImageClassification, 1, "class", "bicubic"),
    (DeiTModel, 1, None, "bicubic"),
    (DeiTForMaskedImageModeling, 1, None, "bicubic"),
    (ViTMAEModel, 0, None, "bicubic"),
    (ViTMAEForPreTraining, 0, None, "bicubic"),
    (ViTMSNForImageClassification, 0, "class", "bicubic"),
    (ViTMSNModel, 0, None, "bicubic"),
    (Dinov2ForImageClassification, 0, "class+mean", "bicubic"),
    (Dinov2Model, 0, None, "bicubic"),
    (Dinov2WithRegistersForImageClassification, 3, "class+mean", "bicubic_antialias"),
    (Dinov2WithRegistersModel, 3, None, "bicubic_antialias"),
]
NAMES = ["ant", "bee", "cow", "dog", "eel"]


def original(kind: type[PreTrainedModel], **changes) -> PreTrainedModel:
    """16x16 pixels, patches of 4x4, D = 32, H = 4, L = 2, 5 classes, all weights random."""
    settings = {
        "image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)},
    }  # fmt: skip
    if kind.config_class in (Dinov2Config, Dinov2WithRegistersConfig):
        settings |= {"mlp_ratio": 2}
    else:
        settings |= {"intermediate_size": 64}
    if kind.config_class is Dinov2WithRegistersConfig:
        settings |= {"num_register_tokens": 3}
    if kind.config_class is ViTMAEConfig:
        settings |= {"mask_ratio": 0.0, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
        settings |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    return randomise(kind(kind.config_class(**{**settings, **changes})))


@torch.no_grad()
def answers(model: PreTrainedModel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All tokens after the final norm, and logits, of the original class."""
    encoder = getattr(model, model.base_model_prefix, model)
    arguments = {} if model.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
    if model.config.model_type == "vit_mae":  # patches are kept in the order of the noise
        rows, columns = (side // 4 for side in pixels.shape[2:])
        arguments["noise"] = torch.arange(rows * columns).expand(len(pixels), -1)
    tokens = encoder(pixels, **arguments).last_hidden_state
    classifies = "ImageClassification" in type(model).__name__
    return tokens, model(pixels, **arguments).logits if classifies else None


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def name_of_class(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("kind", "extra", "readout", "interpolation"), FAMILIES, ids=name_of_class)
def test_features_are_those_of_the_original_class(tmp_path: Path, kind, extra, readout, interpolation) -> None:
    """Also at other sizes, each with the family's own interpolation: larger, smaller, and not square."""
    model = original(kind)
    plain = from_huggingface(saved(model, tmp_path))
    layout = {"extra_tokens": extra, "readout": readout or "class", "interpolation": interpolation}
    assert plain.config.base_layout == layout
    assert plain.config.num_labels == (5 if readout else 0)
    if readout:
        assert list(plain.config.id2label.values()) == NAMES
    for height, width in ((16, 16), (24, 24), (12, 8), (8, 8)):
        pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
        assert_same(plain, pixels, *answers(model, pixels))


@pytest.mark.parametrize("kind", [entry[0] for entry in FAMILIES], ids=name_of_class)
def test_names_of_this_version_of_transformers_load_as_those_of_the_hub(tmp_path: Path, kind) -> None:
    """The files on the hub have older names, which save_pretrained writes."""
    model = original(kind)
    expected = from_huggingface(saved(model, tmp_path))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert_equal(from_huggingface(tmp_path), expected)


def test_the_hubs_names_of_vit_msn_with_a_classifier(tmp_path: Path) -> None:
    """There they begin with `vit.`, in what save_pretrained writes they do not."""
    model = original(ViTMSNForImageClassification)
    expected = from_huggingface(saved(model, tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {f"vit.{name}" if name.startswith("encoder.") else name: tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal(from_huggingface(tmp_path), expected)


def assert_equal(one: PlainViT, two: PlainViT) -> None:
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_half_precision_files_become_float32_before_anything_is_folded(tmp_path: Path) -> None:
    plain = from_huggingface(saved(original(Dinov2Model).half(), tmp_path))
    assert {tensor.dtype for tensor in plain.tensors.values()} == {torch.float32}
    halves = {name: tensor.float() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    bias = halves["encoder.layer.1.mlp.fc2.bias"] * halves["encoder.layer.1.layer_scale2.lambda1"]
    assert torch.equal(plain.tensors["vit.layers.1.mlp.fc2.bias"], bias)


def test_settings_of_the_layers_are_taken_over(tmp_path: Path) -> None:
    model = original(
        DeiTForImageClassification, layer_norm_eps=1e-3, hidden_act="gelu_new", qkv_bias=False, num_attention_heads=8
    )
    config = from_huggingface(saved(model, tmp_path)).config
    settings = config.layer_norm_eps, config.hidden_act, config.qkv_bias, config.num_attention_heads
    assert settings == (1e-3, "gelu_new", False, 8)
    pixels = images()
    assert_same(from_huggingface(tmp_path), pixels, *answers(model, pixels))


def test_sides_of_the_image_may_differ(tmp_path: Path) -> None:
    """Only the stock ViT can say what such a model answers: DeiT's own interpolation wants a square."""
    plain = from_huggingface(saved(original(DeiTModel, image_size=[16, 24]), tmp_path))
    assert plain.config.image_size == [16, 24]
    assert plain.tensors["vit.embeddings.position_embeddings"].shape == (1, 1 + 4 * 6, 32)


def test_weights_in_a_pickle(tmp_path: Path) -> None:
    model = original(DeiTModel)
    expected = from_huggingface(saved(model, tmp_path))
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_equal(from_huggingface(tmp_path), expected)


def test_a_classifier_that_is_not_in_the_files_is_not_drawn(tmp_path: Path) -> None:
    """The config may name a class with a classifier nevertheless."""
    saved(original(Dinov2Model), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Dinov2ForImageClassification"]}))
    plain = from_huggingface(tmp_path)
    assert plain.config.num_labels == 0
    assert not [name for name in plain.tensors if "classifier" in name]


@pytest.mark.parametrize(
    ("kind", "family", "resample", "size", "resize"),
    [
        (DeiTForImageClassificationWithTeacher, "DeiT, distilled", "bicubic", 384, 439),
        (DeiTModel, "DeiT", "bicubic", 224, 256),
        (ViTMAEModel, "ViT-MAE", "bicubic", 224, 256),
        (ViTMSNModel, "ViT-MSN", "bilinear", 224, 256),
        (Dinov2Model, "DINOv2", "bicubic", 224, 256),
        (Dinov2WithRegistersModel, "DINOv2 with registers", "bicubic", 224, 256),
    ],
    ids=name_of_class,
)
def test_usual_preprocessing_of_the_family(tmp_path: Path, kind, family, resample, size, resize) -> None:
    """DINOv2's positions are those of 518 pixels, but it is evaluated on 224."""
    side = 518 if "DINO" in family else size
    plain = from_huggingface(saved(original(kind, image_size=side, patch_size=side // 2), tmp_path))
    prep = plain.preprocessing
    assert plain.family == family
    assert (prep.height, prep.width, prep.resize, prep.resample) == (size, size, (resize,), resample)
    assert prep.mean == (0.485, 0.456, 0.406) and prep.std == (0.229, 0.224, 0.225) and prep.rescale == 1 / 255


def test_nothing_is_reported_while_loading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of the decoder, which transformers would call unexpected."""
    saved(original(ViTMAEForPreTraining), tmp_path)
    logger, before = logging.getLogger("transformers"), transformers.logging.get_verbosity()
    logger.addHandler(caplog.handler)  # it does not pass records on
    transformers.logging.set_verbosity_warning()
    try:
        ViTMAEModel.from_pretrained(tmp_path)
        assert "UNEXPECTED" in caplog.text
        caplog.clear()
        from_huggingface(tmp_path)
        assert caplog.text == ""
        assert transformers.logging.get_verbosity() == transformers.logging.WARNING
    finally:
        transformers.logging.set_verbosity(before)
        logger.removeHandler(caplog.handler)


# -------------------------------------------------------------------------------------------------------------- errors
def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("dinov2.layernorm.weight"), r"missing: dinov2\.layernorm\.weight; unexpected: nothing"),
        (lambda t: t.pop("classifier.bias"), r"missing: classifier\.bias;"),
        (lambda t: t.update({"dinov2.other": torch.zeros(1)}), r"unexpected: dinov2\.other;"),
        (lambda t: t.update({"dinov2.layernorm.bias": torch.zeros(7)}), r"of another shape: dinov2\.layernorm\.bias$"),
    ],
)
def test_files_that_are_not_whole(tmp_path: Path, change, message: str) -> None:
    saved(original(Dinov2ForImageClassification), tmp_path)
    change_tensors(tmp_path, change)
    with pytest.raises(ValueError, match=rf"is no whole Dinov2ForImageClassification checkpoint; .*{message}"):
        from_huggingface(tmp_path)


def test_half_of_deits_classifiers_is_an_error(tmp_path: Path) -> None:
    saved(original(DeiTForImageClassificationWithTeacher), tmp_path)
    change_tensors(tmp_path, lambda t: [t.pop(f"distillation_classifier.{leaf}") for leaf in ("weight", "bias")])
    with pytest.raises(ValueError, match=r"missing: distillation_classifier\.bias, distillation_classifier\.weight;"):
        from_huggingface(tmp_path)


def test_damaged_and_unsafe_weights(tmp_path: Path) -> None:
    saved(original(DeiTModel), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cannot read .*: it is damaged, or no checkpoint; replace it") as caught:
        from_huggingface(tmp_path)
    assert "\n" not in str(caught.value)
    weights.unlink()
    torch.save({"embeddings.cls_token": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="such a pickle can run any code") as caught:
        from_huggingface(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    saved(original(DeiTModel), tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert from_huggingface(tmp_path).family == "DeiT"
    assert not (tmp_path / "ran").exists()


def test_a_stock_vit_needs_no_conversion(tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a stock ViT already: load it with MemoryCapableViT\.from_pretrained"):
        from_huggingface(tmp_path)


def test_what_cannot_be_a_base_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(ValueError, match="a 'swin' model cannot be a base: it has no class token"):
        from_huggingface(tmp_path)


def test_images_that_are_not_rgb(tmp_path: Path) -> None:
    saved(original(DeiTModel, num_channels=1), tmp_path)
    with pytest.raises(ValueError, match=r"embeds patches by weights of shape \[32, 1, 4, 4\], but images are RGB"):
        from_huggingface(tmp_path)
