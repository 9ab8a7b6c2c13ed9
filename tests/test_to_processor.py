"""A head's preprocessing as an image processor of HuggingFace's, for its pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image

from learnable_memory.transforms import Preprocessing

USUAL = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3)
KINDS = {
    "ViT": USUAL,
    "not square": Preprocessing(12, 20, "bicubic", 1 / 255, (0.5,) * 3, (0.25, 0.5, 0.75)),
    "centre of the shorter side": Preprocessing(16, 12, "bicubic", 1 / 255, (0.4, 0.5, 0.6), (0.2,) * 3, (20,)),
    "centre of a stretched image": Preprocessing(15, 15, "lanczos", 1 / 255, (0.5,) * 3, (0.5,) * 3, (18, 20)),
    "legacy-2023": Preprocessing(16, 16, "bilinear", 1 / 255, (0, 0, 0), (1, 1, 1)),
    "not rounded": Preprocessing(16, 12, "bicubic", 1 / 255, (0.5,) * 3, (0.5,) * 3, (20,), rounded=False),
    "nearest, of other values": Preprocessing(16, 16, "nearest", 1 / 127.5, (1, 1, 1), (1, 1, 1)),
}


def photo(mode: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("preprocessing", KINDS.values(), ids=KINDS)
def test_the_processor_is_read_back_as_the_same(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_processor(preprocessing.to_processor()) == preprocessing


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("preprocessing", KINDS.values(), ids=KINDS)
def test_it_makes_the_same_pixels(preprocessing: Preprocessing, mode: str) -> None:
    found = preprocessing.to_processor()(photo(mode), return_tensors="pt")["pixel_values"][0]
    expected = preprocessing.eval_transform()(photo(mode))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
