"""Tiny random models that all tests share: seconds on a CPU, no files, no network."""

import copy
import functools
from collections.abc import Callable

import torch
from transformers import ViTConfig, ViTForImageClassification

from vit import MemoryCapableViT


def tiny_config(**changes) -> ViTConfig:
    """16x16 pixels, patches of 4x4 (P = 16), D = 32, H = 4, L = 3, 5 classes."""
    settings = {
        "image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "num_labels": 5, "attn_implementation": "eager",
    }  # fmt: skip
    return ViTConfig(**{**settings, **changes})


def copied(make: Callable) -> Callable:
    """Each model is made once, and copied from then on: making one takes four times as long."""
    made = {}

    @functools.wraps(make)
    def a_copy(seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
        key = seed, dtype, repr(sorted(changes.items()))
        if key not in made:
            made[key] = make(seed, dtype, **changes)
        return copy.deepcopy(made[key])

    return a_copy


@copied
def tiny_base(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> ViTForImageClassification:
    """A stock classifier whose weights are large enough that attention is far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = ViTForImageClassification(tiny_config(**changes))
        for parameter in base.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return base.to(dtype).eval()


@copied
def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> MemoryCapableViT:
    return MemoryCapableViT.from_base(tiny_base(seed, dtype, **changes))


def add_random_head(model: MemoryCapableViT, name: str, *args, seed: int = 0, **kwargs) -> list[torch.nn.Parameter]:
    """A head all of whose parameters are far from their initial values."""
    parameters = model.add_head(name, *args, **kwargs)
    generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.5, generator=generator))
    return parameters


def images(batch: int = 3, size: int = 16, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)
