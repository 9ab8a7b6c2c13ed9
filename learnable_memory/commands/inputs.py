"""From a data set's name to batches: decoded by workers, kept in memory, or kept as what the base makes of them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch

from learnable_memory.broken import Inspector, leave_out_broken
from learnable_memory.config import RunOptions, TrainOptions
from learnable_memory.data import CHOICES, DataSet, load_data_set
from learnable_memory.features import CachedLoader, FeatureCache, contents_of, describe
from learnable_memory.images import ImageSet
from learnable_memory.loading import EpochBatches, Key, Loader, make_loader
from learnable_memory.methods import TunedModel
from learnable_memory.sharing import is_main, is_shared
from learnable_memory.small_images import SmallImageLoader, fits
from learnable_memory.transforms import Preprocessing
from vit import BaseTokens, MemoryCapableViT

logger = logging.getLogger(__name__)


def chosen_data(
    options: TrainOptions, accelerator: Any = None, labels: Sequence[str] | None = None
) -> dict[int | None, DataSet]:
    """The data set that the options name, once for each of `--data_seeds`, which draw its selection split.

    Without `--data_seeds` the key is None, and the selection split that of `--split_seed`. With `--folds` there is no
    selection split, and these seeds draw the folds. `labels` as in `load_data_set`.
    """
    data = load_data_set(
        options.dataset, options.directory, options.split_seed, not options.no_download, folds=options.folds,
        labels=labels, **options.choices,
    )  # fmt: skip
    found: dict[int | None, DataSet] = {None: data}
    if options.data_seeds is not None:
        found = {seed: data.with_select_seed(seed) for seed in options.data_seeds}
    if options.on_bad_image == "stop":
        return found
    inspector = Inspector(options.workers, accelerator)
    return {seed: leave_out_broken(each, inspector) for seed, each in found.items()}


def recorded_data(
    record: Mapping[str, Any], options: RunOptions, labels: Sequence[str] | None = None, accelerator: Any = None
) -> DataSet:
    """The data set that a head file names, with the same splits; only `eval` is without its broken images.

    Args:
        labels: the names of the head's classes, as in `load_data_set`.
    """
    data = load_data_set(
        record["name"], options.directory, record["split_seed"], not options.no_download, record.get("select_seed"),
        folds=record.get("folds"), labels=labels, **{what: record[what] for what in CHOICES if record.get(what)},
    )  # fmt: skip
    if record.get("left_out") is None:
        return data
    return leave_out_broken(data, Inspector(options.workers, accelerator), ["eval"])


def image_loader(
    image_set: ImageSet, preprocessing: Preprocessing, views: str | None, batches: EpochBatches | list[list[Key]],
    options: RunOptions, device: torch.device, seed: int = 0,
) -> Loader:  # fmt: skip
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
) -> Loader:
    """A whole split in order, in its evaluation view; of several processes, this one's part."""
    return image_loader(image_set, preprocessing, None, _in_order(image_set, options, accelerator), options, device)


class TrainingInputs:
    """The loaders of one pass over a data set: `train` shuffled in random views, `select` in the evaluation view.

    Args:
        model: a MemoryCapableViT; with a cache its base is run here, before training.
        views: the data set's kind of random views; None if it has none.
        seed: of order and views.
        heads: how many will be trained, for what a cache is said to bring.
    """

    def __init__(
        self, model: MemoryCapableViT | TunedModel, preprocessing: Preprocessing, views: str | None,
        options: TrainOptions, seed: int, heads: int, accelerator: Any = None,
    ) -> None:  # fmt: skip
        self.model, self.preprocessing, self.options, self.seed = model, preprocessing, options, seed
        self.views = None if options.views == 0 else views
        self.heads, self.accelerator, self.device = heads, accelerator, next(model.parameters()).device
        if options.cache == "memory" and is_shared(accelerator):
            raise ValueError(
                "--cache memory would be held by each process: use --cache disk, which the processes share, and which "
                "stays in memory as far as there is room."
            )

    def train(self, image_set: ImageSet) -> Loader:
        """Shuffled, in random views."""
        shown = None if self.options.views is None else max(1, self.options.views)
        part = part_of(self.accelerator)
        batches = EpochBatches(len(image_set), self.options.batch_size, self.seed, shuffle=True, views=shown, **part)
        return self._loader(image_set, self.views, batches, "train", stored_views=(shown or 1) if self.views else 1)

    def select(self, image_set: ImageSet) -> Loader:
        """In order, in the evaluation view."""
        return self._loader(image_set, None, _in_order(image_set, self.options, self.accelerator), "select")

    def _loader(
        self, image_set: ImageSet, views: str | None, batches: EpochBatches, role: str, stored_views: int = 1
    ) -> Loader:
        if self.options.cache == "none":
            return image_loader(image_set, self.preprocessing, views, batches, self.options, self.device, self.seed)
        assert isinstance(self.model, MemoryCapableViT)  # TrainOptions refuses a cache for anything but heads
        cache = self._cache(self.model, image_set, views, stored_views, role)
        # On a CPU batches are made in the base's precision at once; a GPU converts faster than it gets them.
        dtype = self.model.dtype if self.device.type == "cpu" else None
        return CachedLoader(cache, image_set, batches, BaseTokens, dtype)

    def _cache(
        self, model: MemoryCapableViT, image_set: ImageSet, views: str | None, count: int, role: str
    ) -> FeatureCache:
        options, process = self.options, part_of(self.accelerator)
        contents = contents_of(
            model, image_set, self.preprocessing.hash, views, self.seed, options.cache_form, options.cache_dtype
        )
        folder = (options.cache_folder or options.directory / "cache") if options.cache == "disk" else None
        cache = FeatureCache(contents, len(image_set), count, folder)
        logger.info("%s: %s", role, describe(cache, self.heads, options.epochs))
        cache.check_room()
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()  # all have looked at what is missing before anybody writes
        cache.build(
            model,
            lambda keys: image_loader(image_set, self.preprocessing, views, keys, options, self.device, self.seed),
            options.batch_size, description=f"cache of {role}" if is_main(self.accelerator) else None, **process,
        )  # fmt: skip
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
        return cache


def _in_order(image_set: ImageSet, options: RunOptions, accelerator: Any) -> EpochBatches:
    return EpochBatches(len(image_set), options.batch_size, **part_of(accelerator))


class Part(TypedDict):
    """Which of how many processes."""

    process: int
    processes: int


def part_of(accelerator: Any) -> Part:
    """Which of how many processes this one is."""
    if accelerator is None:
        return {"process": 0, "processes": 1}
    return {"process": accelerator.process_index, "processes": accelerator.num_processes}
