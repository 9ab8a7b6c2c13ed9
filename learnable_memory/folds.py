"""Cross-validation in one pass: which images are held out from which head, and batches that say so.

fold = fold_of(data.train, 5, seed=0)                           # int64 [n], 0 to 4
loader = FoldLoader(train_loader, fold)                         # (pixel_values, labels, fold of each image)
recipes = {f"a-f{k}": Recipe(held_out=k) for k in range(5)}     # head a-f2 does not learn from fold 2
"""

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnable_memory.images import ImageSet
from learnable_memory.loading import Key, Loader

logger = logging.getLogger(__name__)


def fold_of(image_set: ImageSet, folds: int, seed: int) -> np.ndarray:
    """The fold of each image: int64 [n], 0 to `folds` - 1; of each class as many images in each fold, give or take one.

    Args:
        folds: K, at least 2.
        seed: 0 to 2**32 - 1; the same folds for the same seed.

    Raises ValueError if no class has K images. Of a class with fewer some folds have none, which the log says.
    """
    from sklearn.model_selection import StratifiedKFold  # takes seconds, which only cross-validation is to cost

    labels = image_set.labels
    counts = np.bincount(labels)
    if counts.max() < folds:
        raise ValueError(
            f"{folds} folds need a class of at least {folds} images, and the largest has {counts.max()}: take fewer."
        )
    rare = int(((counts > 0) & (counts < folds)).sum())
    if rare:
        logger.warning("Classes with fewer images than the %d folds, so that some folds have none: %d.", folds, rare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the rarest class, which was said
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels))
    found = np.empty(len(labels), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splits):
        found[held_out] = fold
    return found


class FoldLoader:
    """A loader whose batches also hold the fold of each image: (inputs, labels int64 [B], folds int64 [B]).

    Args:
        loader: with `EpochBatches`, or another list of batches of (view, index), as its batch sampler.
        fold: int64 [n], of each image of its split.

    Raises ValueError if there is not one fold for each image; from the iterator, if batches are something else.
    """

    def __init__(self, loader: Loader, fold: np.ndarray) -> None:
        if len(fold) != len(loader.dataset):
            raise ValueError(f"{len(fold)} folds for {len(loader.dataset)} images: give one for each, as fold_of does.")
        self.loader, self.fold = loader, torch.from_numpy(fold)

    @property
    def dataset(self) -> Any:
        """What the images are drawn from."""
        return self.loader.dataset

    @property
    def batch_sampler(self) -> Any:
        """What says which images are a batch."""
        return self.loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Any, Tensor, Tensor]]:
        # The sampler is asked twice, and gives the same batches twice: it is a function of the epoch alone. Not a
        # generator: the epoch is the one at the time of `iter`, as with the loader itself.
        return map(self._with_folds, zip(self.loader, self.loader.batch_sampler, strict=True))

    def _with_folds(self, pair: tuple[tuple[Any, Tensor], list[Key]]) -> tuple[Any, Tensor, Tensor]:
        (inputs, labels), keys = pair
        if not all(isinstance(key, tuple) for key in keys):
            raise ValueError("Batches have to be of (view, index): give the loader EpochBatches as its batch sampler.")
        return inputs, labels, self.fold[[index for _, index in keys]]
