"""A plain ViT as the tests of the families read it: stock layers, everything around them written out."""

import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTForImageClassification

from learnable_memory.families import PlainViT
from vit import MemoryCapableViT

RESIZE = {
    "bicubic": {"mode": "bicubic"},
    "bicubic_antialias": {"mode": "bicubic", "antialias": True},
    "bilinear_corners": {"mode": "bilinear", "align_corners": True},
}


@torch.no_grad()
def reference(plain: PlainViT, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """All tokens after the final norm [B, N, D], and the classifier's answers [B, C] if there is one."""
    layout, tensors = plain.config.base_layout, plain.tensors
    stock = {name: tensor for name, tensor in tensors.items() if name.startswith("vit.") and "extra_tokens" not in name}
    model = ViTForImageClassification(plain.config).eval()
    model.vit.load_state_dict({name.removeprefix("vit."): tensor for name, tensor in stock.items()})
    patches = model.vit.embeddings.patch_embeddings.projection(pixels)  # [B, D, rows, columns]
    positions = tensors["vit.embeddings.position_embeddings"]
    side = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if patches.shape[2:] != grid.shape[2:]:
        grid = F.interpolate(grid, size=patches.shape[2:], **RESIZE[layout["interpolation"]])
    tokens = [(tensors["vit.embeddings.cls_token"] + positions[:, :1]).expand(len(pixels), -1, -1)]
    if layout["extra_tokens"]:
        tokens.append(tensors["vit.embeddings.extra_tokens"].expand(len(pixels), -1, -1))
    hidden = torch.cat([*tokens, (patches + grid).flatten(2).transpose(1, 2)], dim=1)
    for layer in model.vit.layers:
        hidden = layer(hidden)
    hidden = model.vit.layernorm(hidden)
    if "classifier.weight" not in tensors:
        return hidden, None
    second = {
        "class": hidden[:, :0],
        "class+extra": hidden[:, 1:2],
        "class+mean": hidden[:, 1 + layout["extra_tokens"] :].mean(1, keepdim=True),
    }[layout["readout"]]
    read = torch.cat([hidden[:, :1], second], dim=1).flatten(1)
    return hidden, F.linear(read, tensors["classifier.weight"], tensors["classifier.bias"])


@torch.no_grad()
def through_the_model(plain: PlainViT, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """The same from MemoryCapableViT."""
    model = MemoryCapableViT.from_tensors(plain.config, plain.tensors, base_id="tiny")
    model.set_image_size(pixels.shape[2:])
    if model.has_base_classifier:
        output = model(pixels, output_hidden_states=True)["base"]
        return model.vit.layernorm(output.hidden_states[-1]), output.logits
    return model.vit(pixels, interpolate_pos_encoding=True).last_hidden_state, None


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough that attention is far from uniform, norms and scales that are not 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.25, generator=generator))
        for name, parameter in module.named_parameters():
            if re.search(r"norm\d?\.weight$|norm_(before|after)\.weight$|lambda1$|gamma$", name):
                parameter.add_(1.0)
    return module.eval()


def assert_same(plain: PlainViT, pixels: Tensor, tokens: Tensor, logits: Tensor | None, bound: float = 1e-5) -> None:
    """Both forwards on the converted tensors give the original's tokens and answers."""
    for forward in (reference, through_the_model):
        found_tokens, found_logits = forward(plain, pixels)
        assert found_tokens.shape == tokens.shape
        assert (found_tokens - tokens).abs().max() < bound
        assert (found_logits is None) == (logits is None)
        if logits is not None:
            assert (found_logits - logits).abs().max() < bound


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
