"""timm's folders against timm's own models. Measured: features and answers differ by at most 4e-6."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from families_reference import Evil, assert_same, randomise
from learnable_memory.families import from_timm
from tiny import images

timm = pytest.importorskip("timm")

SIZE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
DATA = {
    "input_size": (3, 16, 16),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
}


def made(architecture: str, **changes) -> torch.nn.Module:
    """A tiny model of an architecture of timm's, all weights random."""
    return randomise(timm.create_model(architecture, **{**SIZE, **changes}))


def saved(model: torch.nn.Module, folder: Path, architecture: str, arguments: dict | None = None, **data) -> Path:
    """The files of timm.models.push_to_hf_hub."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "tag": "in1k", "source": "hf-hub", "hf_hub_id": "timm/nowhere", "custom_load": False, "fixed_input_size": True,
        "crop_mode": "center", "num_classes": model.num_classes, "pool_size": None, "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if hasattr(model, "head_dist") else "head", **DATA, **data,
    }  # fmt: skip
    config = {
        "architecture": architecture, "num_classes": model.num_classes, "num_features": 32,
        "global_pool": model.global_pool, "model_args": {**SIZE, **(arguments or {})}, "pretrained_cfg": settings,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def converted(folder: Path, architecture: str, **changes):
    model = made(architecture, **changes)
    return from_timm(saved(model, folder, architecture, changes)), model


MODELS = [
    # architecture, changes, extra tokens, readout
    ("vit_base_patch16_224", {}, 0, "class"),
    ("vit_base_patch16_224", {"num_classes": 0}, 0, "class"),
    ("vit_base_patch16_224", {"num_classes": 0, "global_pool": "", "fc_norm": False}, 0, "class"),
    ("vit_base_patch16_224", {"qkv_bias": False, "act_layer": "gelu_tanh"}, 0, "class"),
    ("vit_base_patch16_224", {"act_layer": "quick_gelu", "init_values": 1.0}, 0, "class"),
    ("vit_base_patch16_224", {"reg_tokens": 3}, 3, "class"),
    ("deit3_small_patch16_224", {}, 0, "class"),
    ("deit_tiny_distilled_patch16_224", {}, 1, "class+extra"),
    ("vit_small_patch14_dinov2", {"num_classes": 0}, 0, "class"),
    ("vit_small_patch14_reg4_dinov2", {"num_classes": 0}, 4, "class"),
]


@pytest.mark.parametrize(("architecture", "changes", "extra", "readout"), MODELS)
def test_features_are_those_of_timm(tmp_path: Path, architecture: str, changes: dict, extra: int, readout: str) -> None:
    """Also at another size, with the positions as timm resizes them."""
    plain, model = converted(tmp_path, architecture, **changes)
    layout = {"extra_tokens": extra, "readout": readout, "interpolation": "bicubic_antialias"}
    assert plain.config.base_layout == layout
    assert plain.config.layer_norm_eps == 1e-6
    assert plain.family == f"timm's {architecture}"
    for size in (16, 24, 12):
        resized, pixels = copy.deepcopy(model), images(size=size)
        resized.set_input_size((size, size))
        with torch.no_grad():
            answers = resized(pixels) if model.num_classes else None
            assert_same(plain, pixels, resized.forward_features(pixels), answers)


def test_images_need_not_be_square(tmp_path: Path) -> None:
    architecture, changes = "vit_base_patch16_224", {"img_size": (16, 24)}
    model = made(architecture, **changes)
    plain = from_timm(saved(model, tmp_path, architecture, changes, input_size=(3, 16, 24), crop_mode="squash"))
    assert plain.config.image_size == [16, 24]
    assert (plain.preprocessing.height, plain.preprocessing.width, plain.preprocessing.resize) == (16, 24, (17, 26))


def test_names_of_the_classes(tmp_path: Path) -> None:
    saved(made("vit_base_patch16_224"), tmp_path, "vit_base_patch16_224")
    assert from_timm(tmp_path).config.num_labels == 5
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": ["ant", "bee", "cow", "dog", "eel"]}))
    assert from_timm(tmp_path).config.id2label == {0: "ant", 1: "bee", 2: "cow", 3: "dog", 4: "eel"}


def test_older_config_of_one_level_and_weights_in_a_pickle(tmp_path: Path) -> None:
    expected = from_timm(saved(made("vit_base_patch16_224"), tmp_path, "vit_base_patch16_224"))
    config = json.loads((tmp_path / "config.json").read_text())
    flat = config.pop("pretrained_cfg") | config
    (tmp_path / "config.json").write_text(json.dumps(flat))
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    plain = from_timm(tmp_path)
    assert plain.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(plain.tensors[name], expected.tensors[name]) for name in plain.tensors)
    assert plain.preprocessing == expected.preprocessing


@pytest.mark.parametrize(("crop_mode", "crop_pct"), [("center", 0.9), ("squash", 0.9), ("center", 1.0)])
def test_preprocessing_is_timms(tmp_path: Path, crop_mode: str, crop_pct: float) -> None:
    """The same pixels, up to Pillow's rounding (timm resizes PIL images, this resizes tensors)."""
    model = made("vit_base_patch16_224")
    saved(model, tmp_path, "vit_base_patch16_224", crop_mode=crop_mode, crop_pct=crop_pct)
    plain = from_timm(tmp_path)
    resize = int(16 / crop_pct)
    assert plain.preprocessing.resize == ((resize, resize) if crop_mode == "squash" else (resize,))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(**{**DATA, "crop_mode": crop_mode, "crop_pct": crop_pct})(image)
    ours = plain.preprocessing.eval_transform()(image)
    assert (ours - theirs).abs().max() <= 2 / 255 / 0.2


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("vit_base_patch16_224", {"global_pool": "avg"}, r"reads an average of the patches.*found fc_norm"),
        ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": False}, r"reads an average .*\(global_pool 'avg'\)"),
        ("vit_base_patch16_224", {"global_pool": "", "fc_norm": False}, r"\(global_pool ''\)"),
        ("vit_base_patch16_224", {"global_pool": "avg", "class_token": False, "fc_norm": False}, "no class token"),
        ("vit_base_patch16_224", {"fc_norm": True}, "never trained"),
        ("vit_base_patch16_224", {"pre_norm": True}, "a layer norm stands before its first layer"),
        ("vit_base_patch16_224", {"qk_norm": True}, "it normalises queries and keys"),
        ("vit_base_patch16_224", {"mlp_layer": timm.layers.SwiGLU}, "its MLP is gated"),
        ("vit_base_patch16_224", {"mlp_layer": timm.layers.GluMlp}, r"its MLP is gated .*\(found GluMlp\)"),
        ("vit_base_patch16_224", {"norm_layer": "rmsnorm"}, "it has RmsNorm where a base has a layer norm"),
        ("vit_base_patch16_224", {"final_norm": False}, "it has Identity where a base has a layer norm"),
        ("vit_base_patch16_224", {"act_layer": "mish"}, "its activation is Mish; legal: GELU, GELUTanh"),
        ("vit_base_patch16_224", {"pos_embed": "none"}, "has no pos_embed"),
        ("vit_base_patch16_rpn_224", {"global_pool": "token", "fc_norm": False, "class_token": True}, "ResPostBlock"),
        ("vit_small_patch16_18x2_224", {}, r"not the pre-norm ones of the stock ViT \(found ParallelThingsBlock\)"),
    ],
    ids=lambda value: "",
)
def test_what_a_base_has_not_is_refused(
    tmp_path: Path, monkeypatch, architecture: str, changes: dict, message: str
) -> None:
    """The arguments are given to timm here, since a config.json has none that are classes."""
    model = made(architecture, **changes)
    saved(model, tmp_path, architecture)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    with pytest.raises(ValueError, match=message) as caught:
        from_timm(tmp_path)
    assert "\n" not in str(caught.value)


def test_pooling_that_only_the_config_tells(tmp_path: Path) -> None:
    """A model that was trained with another pooling than is usual for its architecture; tensors are the same."""
    saved(
        made("vit_base_patch16_224", global_pool="avg", fc_norm=False),
        tmp_path,
        "vit_base_patch16_224",
        {"fc_norm": False},
    )
    with pytest.raises(ValueError, match=r"reads an average of the patches.*\(global_pool 'avg'\)"):
        from_timm(tmp_path)


def test_other_classes_of_timm_are_refused(tmp_path: Path) -> None:
    architecture, changes = "cait_xxs24_224", {"init_values": 1.0}
    model = made(architecture, **changes)
    saved(model, tmp_path, architecture, changes)
    with pytest.raises(
        ValueError, match="timm's cait_xxs24_224 cannot be a base: it is a Cait, not timm's VisionTransf"
    ):
        from_timm(tmp_path)


def test_refused_by_name_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swin_base_patch4_window7_224"}))
    with pytest.raises(ValueError, match="no tokens of one width"):
        from_timm(tmp_path)


@pytest.mark.parametrize("change", ["lost", "added", "another size", "another architecture"])
def test_weights_that_do_not_fit(tmp_path: Path, change: str) -> None:
    model = made("vit_base_patch16_224")
    saved(model, tmp_path, "unknown_vit" if change == "another architecture" else "vit_base_patch16_224")
    tensors = load_file(tmp_path / "model.safetensors")
    if change == "lost":
        del tensors["norm.weight"]
    elif change == "added":
        tensors["other"] = torch.zeros(1)
    elif change == "another size":
        tensors["norm.weight"] = torch.zeros(7)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="timm cannot make the model in") as caught:
        from_timm(tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_without_weights(tmp_path: Path) -> None:
    saved(made("vit_base_patch16_224"), tmp_path, "vit_base_patch16_224")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        from_timm(tmp_path)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    saved(made("vit_base_patch16_224"), tmp_path, "vit_base_patch16_224")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"cls_token": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="such a pickle can run any code"):
        from_timm(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"crop_mode": "border"},
            "prepares images of 16x16 by crop_mode 'border'; legal: center for square images, and sq",
        ),
        ({"input_size": (3, 16, 24)}, "prepares images of 16x24 by crop_mode 'center'"),
        ({"interpolation": "random"}, "resample is 'random'; legal: nearest, bilinear"),
    ],
)
def test_preprocessing_that_cannot_be_expressed(tmp_path: Path, data: dict, message: str) -> None:
    model = made("vit_base_patch16_224")
    saved(model, tmp_path, "vit_base_patch16_224", **data)
    with pytest.raises(ValueError, match=message):
        from_timm(tmp_path)


def test_without_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(made("vit_base_patch16_224"), tmp_path, "vit_base_patch16_224")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"timm is missing: pip install 'timm>=1\.0\.12'") as caught:
        from_timm(tmp_path)
    assert caught.value.name == "timm"


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_a_config_cannot_have_timm_read_other_files(tmp_path: Path, key: str) -> None:
    """timm.create_model takes more than an architecture: before 1.0.13 it unpickles what checkpoint_path names."""
    saved(made("vit_base_patch16_224"), tmp_path, "vit_base_patch16_224", {key: "elsewhere.bin"})
    with pytest.raises(ValueError, match=f"model_args has {key}; legal: act_layer, class_token, "):
        from_timm(tmp_path)
