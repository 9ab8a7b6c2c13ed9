"""Files that are not in HuggingFace's layout: the class of transformers that they become computes what timm does.

One case is a kind of file and an architecture. The files of the original code are made of timm's state dict, under the
names that its repository uses. Measured: features and answers differ by at most 6e-6, most by nothing.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from foreign import Evil, answers, assert_same, timm_model
from learnable_memory.bases import checkpoints, convert, is_huggingface, preprocessing_of
from tiny import images

timm = pytest.importorskip("timm")

State = dict[str, Tensor]
BARE = {"num_classes": 0}


@pytest.fixture(autouse=True)
def tiny_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """No published model is so narrow."""
    monkeypatch.setitem(checkpoints.USUAL_HEADS, 32, 4)


# ------------------------------------------------------------------------------------------------------ kinds of files
def renamed(state: State, *patterns: tuple[str, str]) -> State:
    found = {}
    for name, tensor in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def folder(path: Path, model: nn.Module) -> Path:
    timm.models.save_for_hf(model, path / "base")
    return path / "base"


def pickled(content: Callable[[State], dict]) -> Callable[[Path, nn.Module], Path]:
    def write(path: Path, model: nn.Module) -> Path:
        torch.save(content(model.state_dict()), path / "base.pth")
        return path / "base.pth"

    return write


def under_model(state: State) -> dict:
    """DeiT, MAE, BEiT."""
    return {"model": state}


def deit_three(state: State) -> dict:
    return {"model": renamed(state, (r"ls(\d)\.gamma", r"gamma_\1"))}


def mae(state: State) -> dict:
    """The file of the visualisation has the decoder too."""
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 32)}
    return {"model": state | decoder | {"decoder_pos_embed": torch.ones(1, 17, 8)}}


def moco(state: State) -> dict:
    """What main_moco.py saves: a second encoder, and projectors by the name of a classifier."""
    projector = {"head.0.weight": torch.ones(8, 48), "head.1.running_mean": torch.ones(8)}
    both = {f"module.base_encoder.{name}": tensor for name, tensor in (state | projector).items()}
    both |= {f"module.momentum_encoder.{name}": tensor + 1 for name, tensor in (state | projector).items()}
    both |= {"module.predictor.0.weight": torch.ones(8, 8)}
    return {"epoch": 300, "arch": "vit_small", "state_dict": both, "optimizer": {"state": {}}, "scaler": {}}


def moco_probe(state: State) -> dict:
    content = {f"module.{name}": tensor for name, tensor in state.items()}
    return {"arch": "vit_large", "state_dict": content, "best_acc1": torch.tensor(70.0)}


def dinov2(state: State) -> dict:
    """Registers get no positions, and the giant's MLP is `w12` and `w3`."""
    state = state | {"mask_token": torch.ones(1, state["cls_token"].shape[-1])}
    if "reg_token" in state:
        first = torch.full_like(state["cls_token"], 0.1)
        state |= {"register_tokens": state.pop("reg_token"), "cls_token": state["cls_token"] - first}
        state["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    if state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]:
        state = renamed(state, (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"))
    return state


def dinov3(state: State) -> dict:
    """The biases of the keys are there, and masked; so are the periods of the rotary positions."""
    names = (r"gamma_(\d)", r"ls\1.gamma"), (r"fc1_g", "w1"), (r"fc1_x", "w2"), (r"^reg_token", "storage_tokens")
    state = renamed(state, *names, *([(r"fc2", "w3")] if "blocks.0.mlp.fc1_g.weight" in state else []))
    for block in (f"blocks.{layer}.attn" for layer in range(2)):
        query, value = state.pop(f"{block}.q_bias"), state.pop(f"{block}.v_bias")
        state[f"{block}.qkv.bias"] = torch.cat([query, torch.ones_like(query), value])
        state[f"{block}.qkv.bias_mask"] = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)])
    periods = 100 ** (torch.arange(2) / 2)
    return state | {"mask_token": torch.ones(1, 32), "rope_embed.periods": periods.bfloat16()}


def beit(state: State) -> dict:
    indices = {f"blocks.{layer}.attn.relative_position_index": torch.zeros(17, 17).long() for layer in range(2)}
    return {"model": state | indices}


def one_file_of_timm(path: Path, model: nn.Module) -> Path:
    save_file(model.state_dict(), path / "model.safetensors")
    return path / "model.safetensors"


def npz(path: Path, model: nn.Module) -> Path:
    """flax's kernels map from the first axes to the last."""
    arrays = {}
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        for pattern, replacement in FLAX.items():
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            for part, chunk in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                kernel = chunk.reshape(4, 8, 32).transpose(2, 0, 1) if chunk.ndim == 2 else chunk.reshape(4, 8)
                arrays[name.replace(".attn.qkv.", f"/MultiHeadDotProductAttention_1/{part}/")] = kernel
        elif "MultiHead" in name and array.ndim == 2:
            arrays[name] = array.T.reshape(4, 8, 32)
        else:
            arrays[name] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T if array.ndim == 2 else array
    np.savez(path / "ViT-B_16.npz", **arrays)
    return path / "ViT-B_16.npz"


FLAX = {
    r"^cls_token$": "cls", r"^pos_embed$": "Transformer/posembed_input/pos_embedding",
    r"^patch_embed\.proj\.": "embedding/", r"^head\.": "head/", r"^norm\.weight": "Transformer/encoder_norm/scale",
    r"^norm\.": "Transformer/encoder_norm/", r"^blocks\.(\d+)": r"Transformer/encoderblock_\1",
    r"\.norm1\.weight": "/LayerNorm_0/scale", r"\.norm2\.weight": "/LayerNorm_2/scale", r"\.norm1\.": "/LayerNorm_0/",
    r"\.norm2\.": "/LayerNorm_2/", r"\.mlp\.fc1\.": "/MlpBlock_3/Dense_0/", r"\.mlp\.fc2\.": "/MlpBlock_3/Dense_1/",
    r"\.attn\.proj\.": "/MultiHeadDotProductAttention_1/out/", r"(qkv\.|/)weight$": r"\1kernel",
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- cases
class Case(NamedTuple):
    """A kind of file, what it holds, and the class that it becomes; `told`: what is logged of a classifier."""

    write: Callable[[Path, nn.Module], Path]
    architecture: str
    becomes: str
    changes: dict = {}
    left_out: bool = False

    def made(self, path: Path) -> tuple[Path, nn.Module]:
        model = timm_model(self.architecture, **self.changes)
        if self.write in MAES:
            model.pos_embed.data[:, 0] = 0  # fixed waves
        return self.write(path, model), model


VIT, DEIT, DEIT3 = "vit_base_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"
DINOV2, REGISTERS = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
GIANT, GIANT_REGISTERS = "vit_giant_patch14_dinov2", "vit_giant_patch14_reg4_dinov2"
WIDE = {"embed_dim": 48}  # whose gated MLP is that of a config
MAE_FILE = pickled(mae)
MAES = (MAE_FILE,)

CASES = {
    "timm's ViT": Case(folder, VIT, "ViTForImageClassification"),
    "timm's ViT without a classifier": Case(folder, VIT, "ViTModel", BARE),
    "timm's ViT, not square": Case(folder, VIT, "ViTForImageClassification", {"img_size": (16, 24)}),
    "timm's ViT, no biases, GELU by tanh": Case(
        folder, VIT, "ViTForImageClassification", {"qkv_bias": False, "act_layer": "gelu_tanh"}
    ),
    "timm's ViT that averages": Case(folder, VIT, "ViTModel", {"global_pool": "avg", "fc_norm": False}, left_out=True),
    "timm's ViT that normalises the average": Case(folder, VIT, "BeitForImageClassification", {"global_pool": "avg"}),
    "timm's ViT that normalises the class token": Case(folder, VIT, "BeitModel", {"fc_norm": True}, left_out=True),
    "timm's ViT with layer scale": Case(
        folder, VIT, "Dinov2ForImageClassification", {"act_layer": "quick_gelu", "init_values": 1.0}
    ),
    "timm's ViT with registers": Case(folder, VIT, "Dinov2WithRegistersForImageClassification", {"reg_tokens": 3}),
    "timm's ViT without a class token": Case(folder, "vit_huge_patch14_gap_224", "IJepaForImageClassification"),
    "timm's FlexiViT": Case(folder, "flexivit_base", "ViTForImageClassification"),
    "timm's DeiT": Case(folder, DEIT, "DeiTForImageClassificationWithTeacher"),
    "timm's DeiT without classifiers": Case(folder, DEIT, "DeiTModel", BARE),
    "timm's DeiT III": Case(folder, DEIT3, "Dinov2ForImageClassification"),
    "timm's DINOv2": Case(folder, DINOV2, "Dinov2Model", BARE),
    "timm's DINOv2, averaged": Case(
        folder, DINOV2, "Dinov2ForImageClassification", {"global_pool": "avg", "fc_norm": False}
    ),
    "timm's DINOv2 with another MLP": Case(folder, DINOV2, "BeitForImageClassification", {"mlp_ratio": 2.5}),
    "timm's DINOv2 with registers": Case(folder, REGISTERS, "Dinov2WithRegistersForImageClassification"),
    "timm's giant DINOv2": Case(folder, GIANT, "Dinov2Model", {**BARE, **WIDE}),
    "timm's giant DINOv2 with registers": Case(folder, GIANT_REGISTERS, "Dinov2WithRegistersModel", {**BARE, **WIDE}),
    "timm's TIPSv2": Case(folder, "vit_so400m_patch14_reg1_tipsv2", "Tipsv2VisionModel", BARE),
    "timm's giant TIPSv2": Case(folder, "vit_giant_patch14_reg1_tipsv2", "Tipsv2VisionModel", {**BARE, **WIDE}),
    "timm's DINOv3": Case(folder, "vit_base_patch16_dinov3", "DINOv3ViTModel", BARE),
    "timm's DINOv3 with biases": Case(folder, "vit_small_patch16_dinov3_qkvb", "DINOv3ViTModel", BARE),
    "timm's DINOv3, gated": Case(folder, "vit_small_plus_patch16_dinov3", "DINOv3ViTModel", BARE),
    "timm's DINOv3, not square": Case(
        folder, "vit_7b_patch16_dinov3", "DINOv3ViTModel", {**BARE, "img_size": (16, 24)}
    ),
    "timm's DINOv3 with a classifier": Case(folder, "vit_base_patch16_dinov3", "DINOv3ViTModel", left_out=True),
    "timm's CLIP": Case(folder, "vit_base_patch16_clip_224", "CLIPVisionModel", left_out=True),
    "timm's CLIP with quick GELU": Case(folder, "vit_base_patch16_clip_quickgelu_224", "CLIPVisionModel", BARE),
    "timm's SigLIP": Case(folder, "vit_base_patch16_siglip_224", "SiglipVisionModel", BARE),
    "timm's SigLIP with a classifier": Case(folder, "vit_base_patch16_siglip_224", "SiglipVisionModel", left_out=True),
    "timm's SigLIP that averages": Case(folder, "vit_base_patch16_siglip_gap_224", "SiglipForImageClassification"),
    "timm's BEiT": Case(folder, "beit_base_patch16_224", "BeitForImageClassification"),
    "timm's BEiT without a classifier": Case(folder, "beitv2_base_patch16_224", "BeitModel", BARE),
    "timm's BEiT by its class token": Case(
        folder, "beit_base_patch16_224", "BeitForImageClassification", {"global_pool": "token"}
    ),
    "timm's BEiT with shared biases": Case(
        folder, "beit_base_patch16_224", "BeitForImageClassification",
        {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": True},
    ),
    "timm's EVA": Case(folder, "eva_giant_patch14_224", "BeitForImageClassification"),
    "timm's EVA-CLIP": Case(folder, "eva_giant_patch14_clip_224", "ViTForImageClassification"),
    "timm's AIMv2": Case(folder, "aimv2_large_patch14_224", "Aimv2VisionModel", BARE),
    "timm's C-RADIO": Case(folder, "vit_so400m_patch16_radio_v4", "RadioModel", {**BARE, "depth": 1}),
    "DeiT": Case(pickled(under_model), VIT, "ViTForImageClassification"),
    "DeiT, distilled": Case(pickled(under_model), DEIT, "DeiTForImageClassificationWithTeacher"),
    "DeiT III": Case(pickled(deit_three), DEIT3, "Dinov2ForImageClassification"),
    "DINO": Case(pickled(dict), VIT, "ViTModel", BARE),
    "DINOv2": Case(pickled(dinov2), DINOV2, "Dinov2Model", BARE),
    "DINOv2, giant": Case(pickled(dinov2), GIANT, "Dinov2Model", {**BARE, **WIDE, "num_heads": 3}),
    "DINOv2 with registers": Case(pickled(dinov2), REGISTERS, "Dinov2WithRegistersModel", BARE),
    "DINOv3": Case(pickled(dinov3), "vit_small_patch16_dinov3_qkvb", "DINOv3ViTModel", BARE),
    "DINOv3, gated": Case(pickled(dinov3), "vit_small_plus_patch16_dinov3_qkvb", "DINOv3ViTModel", BARE),
    "MAE": Case(MAE_FILE, VIT, "ViTModel", BARE),
    "MAE, fine-tuned": Case(pickled(under_model), VIT, "BeitForImageClassification", {"global_pool": "avg"}),
    "MoCo v3": Case(pickled(moco), VIT, "ViTModel", {**BARE, **WIDE, "num_heads": 12}),
    "MoCo v3, linear probe": Case(pickled(moco_probe), VIT, "ViTForImageClassification", {"num_heads": 16}),
    "BEiT": Case(pickled(beit), "beit_base_patch16_224", "BeitForImageClassification"),
    "one file of timm's, registers with positions": Case(
        one_file_of_timm, VIT, "Dinov2WithRegistersModel", {**BARE, "reg_tokens": 4, "init_values": 1.0}
    ),
    "one file of timm's, registers without": Case(one_file_of_timm, REGISTERS, "Dinov2WithRegistersModel", BARE),
    "npz": Case(npz, VIT, "ViTForImageClassification", {"act_layer": "gelu_tanh"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_computes_what_timm_does(case: Case, tmp_path: Path, caplog, monkeypatch) -> None:
    """At the size of images that its positions are of."""
    if not hasattr(transformers, case.becomes):
        pytest.skip(f"transformers {transformers.__version__} has no {case.becomes}")
    monkeypatch.setitem(checkpoints.USUAL_HEADS, 48, 3)
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
def test_what_it_saves_is_a_folder_of_transformers(case: Case, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(checkpoints.USUAL_HEADS, 48, 3)
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(checkpoints.USUAL_HEADS, 48, 3)
        for name, expected in named.items():
            model = convert(CASES[name].made(tmp_path)[0])
            assert model.config.converted_from == expected
    model.save_pretrained(tmp_path / "saved")
    assert type(model.config).from_pretrained(tmp_path / "saved").converted_from == expected


def test_nothing_is_reported_while_loading(tmp_path: Path, caplog, capfd) -> None:
    """Neither transformers' report nor its progress bar."""
    place = folder(tmp_path, timm_model("vit_base_patch16_siglip_gap_224"))
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


@pytest.mark.parametrize("change", ["lost", "added", "another size", "another architecture"])
def test_weights_that_do_not_fit(tmp_path: Path, change: str) -> None:
    place = folder(tmp_path, timm_model(VIT))
    tensors = torch.load(place / "pytorch_model.bin")
    if change == "lost":
        del tensors["norm.weight"]
    elif change == "added":
        tensors["other"] = torch.zeros(1)
    elif change == "another size":
        tensors["norm.weight"] = torch.zeros(7)
    else:
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | {"architecture": "unknown_vit"}))
    torch.save(tensors, place / "pytorch_model.bin")
    refused(place, "timm cannot make the model in")


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
