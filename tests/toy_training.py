"""Trainings in small: noisy pictures of three classes, a model of one layer, and its heads afterwards."""

import numpy as np
import torch
from torch import nn

from learnable_memory.images import ArrayImages, ImageSet
from learnable_memory.loading import EpochBatches
from learnable_memory.small_images import SmallImageLoader
from learnable_memory.train import train
from learnable_memory.transforms import Preprocessing
from tiny import tiny_model

PREPROCESSING = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def colours(count: int, seed: int = 0) -> ImageSet:
    """Noise of 16x16 pixels in which the channel of the image's class (0, 1 or 2) is brighter than the others."""
    pixels = np.random.default_rng(seed).integers(0, 128, (count, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(count) % 3
    for image, label in zip(pixels, labels, strict=True):
        image[..., label] += 100
    return ImageSet(ArrayImages(pixels, "colours"), labels)


def train_loader(count: int = 24, batch_size: int = 4, seed: int = 0):
    """Shuffled random crops, so that every epoch has another order and other views."""
    batches = EpochBatches(count, batch_size, seed, shuffle=True)
    return SmallImageLoader(colours(count), PREPROCESSING, "crop_flip", batches, seed)


def select_loader(count: int = 9):
    return SmallImageLoader(colours(count, seed=1), PREPROCESSING, None, EpochBatches(count, 4))


def toy(names=("A",), **changes):
    """A model of one layer with untrained heads of three classes; a head's initial values depend on its name only."""
    model = tiny_model(**{"num_hidden_layers": 1, **changes})
    for name in names:
        model.add_head(name, 3, 2, generator=torch.Generator().manual_seed(ord(name)))
    return model


def fit(model, heads, recipes, log=None, loader=None, select=None):
    loader = train_loader() if loader is None else loader
    select = select_loader() if select is None else select
    return train(model, heads, loader, select, recipes, log, progress=False)


def difference(found: nn.Module, expected: nn.Module) -> float:
    """The largest one over all tensors of two heads."""
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    return max((found[name] - value).abs().max().item() for name, value in expected.items())
