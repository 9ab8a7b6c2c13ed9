"""The base of 65 tokens that `experiments/finer_patches.py` makes of base-tiny, before any training."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

from finer_patches import finer_patches  # noqa: E402


@pytest.fixture(scope="module")
def coarse() -> ViTForImageClassification:
    return ViTForImageClassification.from_pretrained(ROOT / "models" / "base-tiny").eval()


def smooth_images(count: int) -> torch.Tensor:
    """[count, 3, 32, 32] in [-1, 1] that vary as slowly as photographs do."""
    torch.manual_seed(0)
    return F.interpolate(torch.rand(count, 3, 8, 8) * 2 - 1, size=(32, 32), mode="bicubic").clamp(-1, 1)


def test_a_token_behind_the_first_layer_is_the_old_embedding_of_its_window(coarse):
    images = smooth_images(16)
    fine = finer_patches(coarse, images)
    with torch.no_grad():
        found = fine.vit.layers[0](fine.vit.embeddings(images))
        old = coarse.vit.embeddings(images)
    grid = found[:, 1:].unflatten(1, (8, 8))[:, ::2, ::2].flatten(1, 2)  # windows that are whole old patches
    error = (grid - old[:, 1:]).norm(dim=2) / old[:, 1:].norm(dim=2)
    assert error.mean() < 0.05  # measured: 0.025; the layer norm is not quite linear
    assert ((found[:, 0] - old[:, 0]).norm(dim=1) / old[:, 0].norm(dim=1)).max() < 0.1  # measured: 0.072


def test_its_tokens_between_see_windows_that_overlap(coarse):
    images = smooth_images(16)
    fine = finer_patches(coarse, images)
    projection = coarse.vit.embeddings.patch_embeddings.projection
    with torch.no_grad():
        found = fine.vit.layers[0](fine.vit.embeddings(images))[:, 1:].unflatten(1, (8, 8))[:, :7, :7]
        windows = F.conv2d(images, projection.weight, projection.bias, stride=4).permute(0, 2, 3, 1)  # [B, 7, 7, D]
    found, windows = (x - x.mean(0) for x in (found, windows))  # what differs between images: no positions
    assert ((found - windows).norm(dim=3).mean() / windows.norm(dim=3).mean()) < 0.05  # measured: 0.026


def test_heads_that_cannot_carry_a_patch_are_refused():
    narrow = ViTForImageClassification(
        ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=3,
        )
    )
    with pytest.raises(ValueError, match="3 attention heads of 16: at least 3 of 48 are needed"):
        finer_patches(narrow, smooth_images(1))


def test_memory_of_a_head_does_not_disturb_its_class_token_in_the_first_layer(coarse):
    images = smooth_images(4)
    fine = finer_patches(coarse, images)
    memory = 0.02 * torch.randn(4, 20, 192)  # as it is drawn, through the layer norm like any token
    with torch.no_grad():
        tokens = fine.vit.embeddings(images)
        alone = fine.vit.layers[0](tokens)
        beside = fine.vit.layers[0](torch.cat([tokens, memory], dim=1))
    torch.testing.assert_close(beside[:, 0], alone[:, 0], rtol=0, atol=1e-3)
