"""From a split of a data set to batches: decoded by workers, kept in memory, or kept as what the base makes of them."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import Sampler

from learnable_memory.config import RunOptions, TrainOptions
from learnable_memory.features import CachedLoader, FeatureCache, contents_of, describe
from learnable_memory.images import ImageSet
from learnable_memory.loading import EpochBatches, Key, make_loader
from learnable_memory.small_images import SmallImageLoader, fits
from learnable_memory.transforms import Preprocessing
from vit import BaseTokens, MemoryCapableViT

logger = logging.getLogger(__name__)


def image_loader(
    image_set: ImageSet, preprocessing: Preprocessing, views: str | None, batches: Sampler[list[Key]] | list[list[Key]],
    options: RunOptions, device: torch.device, seed: int = 0,
) -> Iterable:  # fmt: skip
    """Batches of pixels: small images are kept on the device and augmented there, others come from workers.

    Args:
        views: the random views; None for the evaluation view.
        batches: lists of (view, index).
    """
    if fits(image_set, views):
        return SmallImageLoader(image_set, preprocessing, views, batches, seed, device)
    transform = preprocessing.train_transform(views) if views else preprocessing.eval_transform()
    return make_loader(image_set, transform, workers=options.workers, seed=seed, batch_sampler=batches)


def evaluation_loader(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    options: RunOptions,
    device: torch.device,
    accelerator: Any = None,
) -> Iterable:
    """A whole split in order, in its evaluation view; of several processes, this one's part."""
    batches = EpochBatches(len(image_set), options.batch_size, **_part(accelerator))
    return image_loader(image_set, preprocessing, None, batches, options, device)


class TrainingInputs:
    """The loaders of one pass over a data set: `train` shuffled in random views, `select` in the evaluation view.

    Args:
        model: a MemoryCapableViT; with a cache its base is run here, before training.
        views: the data set's kind of random views.
        seed: of order and views.
        heads: how many will be trained, for what a cache is said to bring.
    """

    def __init__(
        self, model: MemoryCapableViT, preprocessing: Preprocessing, views: str, options: TrainOptions, seed: int,
        heads: int, accelerator: Any = None,
    ) -> None:  # fmt: skip
        self.model, self.preprocessing, self.options, self.seed = model, preprocessing, options, seed
        self.views = None if options.views == 0 else views
        self.heads, self.accelerator, self.device = heads, accelerator, next(model.parameters()).device
        if options.cache == "memory" and accelerator is not None and accelerator.num_processes > 1:
            raise ValueError(
                "--cache memory would be held by each process: use --cache disk, which the processes share, and which "
                "stays in memory as far as there is room."
            )

    def train(self, image_set: ImageSet) -> Iterable:
        """Shuffled, in random views."""
        shown = None if self.options.views is None else max(1, self.options.views)
        part = _part(self.accelerator)
        batches = EpochBatches(len(image_set), self.options.batch_size, self.seed, shuffle=True, views=shown, **part)
        return self._loader(image_set, self.views, batches, "train")

    def select(self, image_set: ImageSet) -> Iterable:
        """In order, in the evaluation view."""
        batches = EpochBatches(len(image_set), self.options.batch_size, **_part(self.accelerator))
        return self._loader(image_set, None, batches, "select")

    def _loader(self, image_set: ImageSet, views: str | None, batches: EpochBatches, role: str) -> Iterable:
        if self.options.cache == "none":
            return image_loader(image_set, self.preprocessing, views, batches, self.options, self.device, self.seed)
        cache = self._cache(image_set, views, (batches.views or 1) if views else 1, role)
        # On a CPU batches are made in the base's precision at once; a GPU converts faster than it gets them.
        dtype = self.model.vit.embeddings.cls_token.dtype if self.device.type == "cpu" else None
        return CachedLoader(cache, image_set, batches, BaseTokens, dtype)

    def _cache(self, image_set: ImageSet, views: str | None, count: int, role: str) -> FeatureCache:
        options, process = self.options, _part(self.accelerator)
        contents = contents_of(
            self.model, image_set, self.preprocessing.hash, views, self.seed, options.cache_form, options.cache_dtype
        )
        folder = (options.cache_folder or options.directory / "cache") if options.cache == "disk" else None
        cache = FeatureCache(contents, len(image_set), count, folder)
        logger.info("%s: %s", role, describe(cache, self.heads, options.epochs))
        cache.check_room()
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()  # all have looked at what is missing before anybody writes
        cache.build(
            self.model,
            lambda keys: image_loader(image_set, self.preprocessing, views, keys, options, self.device, self.seed),
            options.batch_size, description=f"cache of {role}", **process,
        )  # fmt: skip
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
        return cache


def _part(accelerator: Any) -> dict[str, int]:
    if accelerator is None:
        return {"process": 0, "processes": 1}
    return {"process": accelerator.process_index, "processes": accelerator.num_processes}
