"""Encoders of timm's with random weights, for tests of files that are not in HuggingFace's layout."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiny import images

# 16x16 pixels, patches of 4x4, D = 32, H = 4, L = 2, 5 classes.
SIZE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


def timm_model(architecture: str, **changes: object) -> nn.Module:
    """A tiny model of an architecture of timm's, all weights random."""
    import timm

    return randomise(timm.create_model(architecture, **{**SIZE, **changes}))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that attention is far from uniform, norms and scales that are not 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.25, generator=generator))
            if re.search(r"norm\d?\.weight$|norm_(before|after|pre)\.weight$|lambda1$|gamma", name):
                parameter.add_(1.0)
    return module.eval()


@torch.no_grad()
def answers(model: PreTrainedModel, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """All tokens after the norm that timm counts to the features, and the logits if there is a classifier."""
    if "ImageClassification" in type(model).__name__:
        encoder = model.vision_model if hasattr(model, "vision_model") else model.base_model
        return encoder(pixels).last_hidden_state, model(pixels).logits
    tokens = model(pixels).last_hidden_state
    if type(model).__name__ == "CLIPVisionModel":  # whose norm is for the class token, in the pooler
        tokens = model.post_layernorm(tokens)
    return tokens, None


@torch.no_grad()
def assert_same(model: PreTrainedModel, original: nn.Module, pixels: Tensor | None = None, bound: float = 1e-5) -> None:
    """The tokens of a converted model are those of timm's, and its answers too, if it has any."""
    pixels = images() if pixels is None else pixels
    tokens, logits = answers(model, pixels)
    expected = original.forward_features(pixels)
    assert tokens.shape == expected.shape
    assert (tokens - expected).abs().max() < bound
    if logits is not None:
        assert (logits - original(pixels)).abs().max() < bound


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
