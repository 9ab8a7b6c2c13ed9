"""What is wrong with a foreign file, or what no class of transformers has, in one line."""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foreign import Evil, timm_model
from foreign_files import BARE, CASES, DINOV2, GIANT, VIT, WIDE, folder, moco
from learnable_memory.bases import checkpoints, convert, preprocessing_of

timm = pytest.importorskip("timm")


@pytest.fixture(autouse=True)
def tiny_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """No published model is so narrow."""
    monkeypatch.setitem(checkpoints.USUAL_HEADS, 32, 4)


# ------------------------------------------------------------------------------------------------------ errors of timm
def refused(place: Path, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message) as caught:
        convert(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("vit_medium_patch16_gap_240", {}, r"it has a final norm, layer scale, learned positions, no class token"),
        ("vit_base_patch16_reg4_gap_256", {}, "a norm after pooling, learned positions, registers, no class token"),
        ("vit_intern300m_patch14_448", {}, "it has a class token, layer scale, learned positions, and of"),
        (DINOV2, {"img_size": (16, 24)}, "images or patches that are not square"),
        (GIANT, {}, "a gated MLP, an MLP that is no whole multiple of its width"),
        (VIT, {"norm_layer": "rmsnorm"}, "it has RMS norms, a class token"),
        (VIT, {"qk_norm": True}, "it normalises queries and keys"),
        (VIT, {"scale_attn_norm": True}, "layer norms inside attention or MLP"),
        (VIT, {"act_layer": "mish"}, "its activation is Mish; legal: gelu, gelu_pytorch_tanh, quick_gelu"),
        (VIT, {"attn_layer": "diff"}, r"none of transformers' classes has its attn \(found DiffAttention; legal"),
        ("vit_base_patch16_rpn_224", {}, r"none of transformers' classes has its layers \(found ResPostBlock; legal"),
        ("vit_small_patch16_18x2_224", {}, r"has its layers \(found ParallelThingsBlock; legal"),
        ("cait_xxs24_224", {"init_values": 1.0}, "it is a Cait, of which transformers has none; legal: Vision"),
        ("vit_base_patch16_dinov3", {"rope_rotate_half": False}, r"not those of DINOv3, .*\(found rotate_half False\)"),
    ],
)  # fmt: skip
def test_what_no_class_has_is_refused(tmp_path: Path, architecture: str, changes: dict, message: str) -> None:
    refused(folder(tmp_path, timm_model(architecture, **changes)), f"cannot be a base: .*{message}")


def test_mlps_that_are_gated_otherwise(tmp_path: Path, monkeypatch) -> None:
    """Such a class cannot stand in a config.json."""
    model = timm_model(VIT, mlp_layer=timm.layers.GluMlp)
    place = folder(tmp_path, timm_model(VIT))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    refused(place, r"its MLP is gated, and not as SwiGLU is \(found GELU\(")


def test_what_is_known_by_name_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "eva02_base_patch14_224"}))
    refused(
        tmp_path, "rotary positions turn neighbouring numbers, where DINOv3's turn halves, its MLPs are normalised ins"
    )


@pytest.mark.parametrize("change", ["lost", "added", "another size"])
def test_weights_that_do_not_fit(tmp_path: Path, change: str) -> None:
    place = folder(tmp_path, timm_model(VIT))
    tensors = torch.load(place / "pytorch_model.bin")
    if change == "lost":
        del tensors["norm.weight"]
    elif change == "added":
        tensors["other"] = torch.zeros(1)
    else:
        tensors["norm.weight"] = torch.zeros(7)
    torch.save(tensors, place / "pytorch_model.bin")
    refused(place, "timm cannot make the model in")


@pytest.mark.parametrize("name", ["unknown_vit", "hf-hub:someone/vit", "local-dir:/elsewhere"])
def test_architectures_that_timm_has_not(tmp_path: Path, name: str) -> None:
    """Some names would have it fetch a model from elsewhere."""
    place = folder(tmp_path, timm_model(VIT))
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"architecture": name}))
    refused(place, f"base: timm {timm.__version__} has no architecture '{name}'")


def test_a_siglip_that_averages_and_lacks_a_tensor(tmp_path: Path) -> None:
    """timm would draw it, since it reads these from files with an attention pool too."""
    place = folder(tmp_path, timm_model("vit_base_patch16_siglip_gap_224"))
    tensors = torch.load(place / "pytorch_model.bin")
    del tensors["blocks.1.norm2.weight"]
    torch.save(tensors, place / "pytorch_model.bin")
    refused(place, r"timm cannot make the model in .* \(the weights have no blocks\.1\.norm2\.weight\)")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    place = folder(tmp_path, timm_model(VIT))
    (place / "pytorch_model.bin").unlink()
    refused(place, r"has neither model\.safetensors nor pytorch_model\.bin", FileNotFoundError)


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "cache_dir", "pretrained_strict", "device"])
def test_a_config_cannot_have_timm_read_other_files(tmp_path: Path, key: str) -> None:
    """timm.create_model takes more than an architecture: before 1.0.13 it unpickles what checkpoint_path names."""
    place = folder(tmp_path, timm_model(VIT))
    config = json.loads((place / "config.json").read_text())
    config["model_args"][key] = "elsewhere.bin"
    (place / "config.json").write_text(json.dumps(config))
    refused(place, f"model_args has {key}; legal: act_layer, attn_drop_rate, ")


def test_without_timm(tmp_path: Path, monkeypatch) -> None:
    place = folder(tmp_path, timm_model(VIT))
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    refused(place, r"timm is missing: pip install 'timm>=1\.0\.12'", ModuleNotFoundError)
    with pytest.raises(ModuleNotFoundError, match="timm is missing"):
        preprocessing_of(place)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"}, r"is in HuggingFace's layout: load it with MemoryCapableViT\.from_pretrained"),
        ({}, "neither a model_type, as HuggingFace's, nor an architecture, as timm's: give a folder that one"),
    ],
)
def test_folders_of_others(tmp_path: Path, config: dict, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, message)


def test_a_class_that_this_transformers_has_not_yet(tmp_path: Path, monkeypatch) -> None:
    place = folder(tmp_path, timm_model(VIT, **BARE))
    monkeypatch.setattr(sys.modules["transformers"], "ViTModel", None)  # which is lazy, and another one
    refused(
        place, r"is a timm's vit_base_patch16_224, and transformers \S+ has no ViTModel yet: pip install --upgrade tra"
    )


# ----------------------------------------------------------------------------------------------------- errors of files
def changed(tmp_path: Path, name: str, change: dict[str, Tensor | None]) -> Path:
    """The file of a case, in which tensors are others, or None: left out."""
    model = timm_model(CASES[name].architecture, **CASES[name].changes)
    state = {key: tensor for key, tensor in (model.state_dict() | change).items() if tensor is not None}
    torch.save(state, tmp_path / "base.pth")
    return tmp_path / "base.pth"


ONE = torch.ones(32)
QKV_BIASES = ("blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls_token": None}, "has no cls_token, and is none of the models that can be read without a config.json"),
        ({"norm_pre.weight": ONE}, r"is one tower of a CLIP or SigLIP \(found norm_pre.weight\), and does not say"),
        ({"attn_pool.latent": ONE}, "give the folder with its config.json"),
        ({"blocks.0.attn.q_norm.weight": ONE}, r"normalises queries and keys, .*found blocks\.0\.attn\.q_norm"),
        ({"blocks.0.attn.norm.weight": ONE}, "layer norms inside attention or MLP"),
        ({"blocks.0.attn.gate.weight": ONE}, "its attention is gated"),
        ({"patch_embed.proj.0.weight": ONE}, "come from a stack of convolutions"),
        ({"rope.freqs": ONE}, "rotary positions are not those of DINOv3"),
        ({"pos_embed": None}, "has no pos_embed, and no positions of another kind that can be read from a file"),
        ({"norm.bias": None}, r"no whole .* checkpoint; missing: \S*layernorm\.bias; unexpected: nothing; of anoth"),
        ({"patch_embed.proj.weight": None}, r"missing: patches\.weight$"),
        ({"patch_embed.proj.weight": torch.ones(32, 1, 4, 4)}, r"of shape \[32, 1, 4, 4\], but images are RGB"),
        ({**dict.fromkeys(QKV_BIASES), "blocks.1.attn.qkv.weight": None}, r"missing: \S*layer"),
        ({"blocks.1.attn.proj.bias": None}, r"missing: \S*layers?\.1\.\S+\.bias; unexpected: nothing"),
        ({"head.0.weight": ONE}, r"unexpected: \S*classifier\.0\.weight;"),
        ({"norm.bias": torch.ones(7)}, r"of another shape: \S*layernorm\.bias$"),
        ({"pos_embed": torch.ones(1, 13, 32)}, "positions for 12 patches, which make no square image"),
        ({"reg_token": torch.ones(1, 2, 7), "pos_embed": torch.ones(1, 19, 32)}, "do not go together: The size of"),
        ({"dist_token": torch.ones(1, 1, 32), "register_tokens": ONE[None, None]}, "a class token, a distillation"),
    ],
)  # fmt: skip
def test_tensors_that_make_no_encoder(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    place = changed(tmp_path, "DINO", change)
    refused(place, f"{re.escape(str(place))}.*{message}")


def test_periods_of_another_model(tmp_path: Path) -> None:
    place, _ = CASES["DINOv3"].made(tmp_path)
    state = torch.load(place)
    torch.save(state | {"rope_embed.periods": 2 * state["rope_embed.periods"]}, place)
    refused(place, r"rotary positions of other periods than DINOv3's \(up to 20 instead of 10\), and no class of")


@pytest.mark.parametrize("width", [96, 384])
def test_attention_heads_that_nothing_tells(tmp_path: Path, width: int) -> None:
    """A ViT of 384 numbers may be MoCo v3's, which has 12 heads instead of 6, if its positions are fixed waves."""
    model = timm_model(VIT, **BARE, **{"embed_dim": width})
    if width == 384:
        model.pos_embed.data[:, 0] = 0
    torch.save(model.state_dict(), tmp_path / "base.pth")
    messages = {
        96: "is 96 wide, and does not say its number of attention heads; known without that: 192, 384, 768, 1024, 1280",
        384: "may be MoCo v3's small ViT, which has 12 attention heads, or another one with 6: give the checkpoint",
    }  # fmt: skip
    refused(tmp_path / "base.pth", messages[width])


def test_moco_v3_of_unknown_architecture(tmp_path: Path) -> None:
    torch.save(moco(timm_model(VIT, **BARE, **WIDE).state_dict()) | {"arch": "vit_tiny"}, tmp_path / "base.pth")
    refused(
        tmp_path / "base.pth", "MoCo v3 checkpoint of arch 'vit_tiny', whose number of attention heads is not known; kn"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor; a checkpoint is a dict of tensors"),
        ({"epoch": 3, "loss": 0.1}, r"no tensors by name \(found epoch, loss\); looked under 'state_dict', under"),
        ({}, r"has no tensors by name \(found nothing\)"),
        ({"model": {"vit.embeddings.cls_token": ONE}}, r"other names than timm's \(found vit\.embeddings\.cls_token\)"),
        ({"model": {"cls_token": ONE}, "args": argparse.Namespace(lr=1)}, "holds argparse.Namespace beside its ten"),
    ],
    ids=["tensor", "no tensors", "empty", "of transformers", "namespace"],
)  # fmt: skip
def test_files_without_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "base.pth")
    refused(tmp_path / "base.pth", message)


@pytest.mark.parametrize("name", ["base.pth", "base.safetensors", "base.npz"])
def test_damaged_and_missing_files(tmp_path: Path, name: str) -> None:
    path, state = tmp_path / name, timm_model(VIT).state_dict()
    if name == "base.npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})
    else:
        (save_file if name == "base.safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[:3000])
    refused(path, rf"cannot read .*{name} .*: it is damaged")
    path.unlink()
    if name == "base.npz":
        refused(path, name, FileNotFoundError)


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_nothing_in_a_pickle_is_run(tmp_path: Path, layout: str) -> None:
    place = folder(tmp_path, timm_model(VIT)) if layout == "folder" else tmp_path / "base.pth"
    content = {"cls_token": ONE, "evil": Evil(tmp_path / "ran")}
    torch.save(content, place / "pytorch_model.bin" if layout == "folder" else place)
    refused(place, "such a pickle can run any code")
    assert not (tmp_path / "ran").exists()


F4 = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_root/kernel": F4}, "cannot be a base: its patches come from a stack of convolutions"),
        ({"block1/unit1/conv1/kernel": F4}, "its patches come from a stack of convolutions"),
        ({"cls": None}, r"is no ViT of the original code, with cls and Transformer/encoderblock_0/.*/query/kernel"),
        ({"Transformer/encoder_norm/bias": None}, r"missing: \S*layernorm\.bias; unexpected: nothing;"),
        ({"Transformer/posembed_input/pos_embedding": None}, "has to have positions .* of a square; found: none"),
        ({"Transformer/posembed_input/pos_embedding": np.ones((1, 13, 32))}, r"found: of shape \[1, 13, 32\]"),
        ({"new/kernel": np.ones((2, 2))}, r"unexpected: \S*new\.weight;"),
        ({"embedding/bias": F4}, r"of another shape: \S*\.projection\.bias$"),
        ({"step": np.array(3)}, r"holds step \(int64\); the arrays of a ViT are floating point numbers"),
        ({"x": np.array([object()])}, "cannot read .*: it is damaged or holds more than arrays; replace it"),
    ],
)  # fmt: skip
def test_arrays_that_make_no_encoder(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    place, _ = CASES["npz"].made(tmp_path)
    np.savez(place, **{key: array for key, array in (dict(np.load(place)) | change).items() if array is not None})
    refused(place, message)
