"""Files that are not in HuggingFace's layout, made of encoders of timm's: timm's folders, and what others write.

The files of the original code are made of timm's state dict, under the names that its repository uses.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foreign import timm_model

State = dict[str, Tensor]
BARE = {"num_classes": 0}


# ------------------------------------------------------------------------------------------------------ kinds of files
def renamed(state: State, *patterns: tuple[str, str]) -> State:
    found = {}
    for name, tensor in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def folder(path: Path, model: nn.Module) -> Path:
    import timm

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
