"""Batches of small images: a split is decoded once, kept on the device, and its views are made there, batch by batch.

    if fits(data.train, data.views):
        sampler = EpochBatches(len(data.train), 64, seed=0, shuffle=True)
        loader = SmallImageLoader(data.train, preprocessing, data.views, sampler, seed=0, device="cuda")
    for pixel_values, labels in loader: ...                         # float32 [B, 3, H, W], int64 [B]

For CIFAR, MNIST and Digits, enlarging an image costs far more than keeping all of them: 50,000 images of CIFAR are
150 MB, while one of their views is 600 kB. The views are those of `loading.make_loader`, which decodes an image each
time it is asked for and is for every other split.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch

from learnable_memory.images import OR_SKIP, ArrayImages, EncodedImages, ImageSet
from learnable_memory.loading import EpochBatches, Key, view_seed
from learnable_memory.rgb import to_rgb
from learnable_memory.transforms import BATCH_VIEWS, Preprocessing

LONGEST_SIDE = 64  # pixels; an image is at most 12 kB then
MOST_BYTES = 2**31  # decoded; CIFAR takes a tenth of this


def fits(image_set: ImageSet, views: str | None) -> bool:
    """Whether `SmallImageLoader` is for this split: in memory already, small images, views that batches can have.

    Cheap: it looks at the first image only, so that a split of images of several sizes may fit and then be refused by
    `decode`.

    Args:
        views: one of `transforms.VIEWS`; None for evaluation.

    Raises:
        ValueError: the first image cannot be decoded.
    """
    if not (views is None or views in BATCH_VIEWS) or not len(image_set):
        return False
    images = image_set.images
    if isinstance(images, ArrayImages):
        height, width = images.pixels.shape[1:3]
    elif isinstance(images, EncodedImages):
        width, height = image_set.image(0).size
    else:
        return False
    return max(height, width) <= LONGEST_SIDE and len(image_set) * height * width * 3 <= MOST_BYTES


def decode(image_set: ImageSet, side: int = 0) -> torch.Tensor:
    """All images of a split: uint8 [n, 3, H, W], RGB and upright, on the CPU.

    Args:
        side: as of `ImageSet.image`.

    Raises:
        ValueError: an image that cannot be decoded, or that is not as large as the first; the message names it.
    """
    pixels = np.empty((0, 0, 0, 3), dtype=np.uint8)
    for index in range(len(image_set)):
        image = image_set.image(index, side)
        try:
            decoded = np.asarray(to_rgb(image))  # [H, W, 3]
        except ValueError as error:
            raise ValueError(f"{image_set.describe(index)}: {error}{OR_SKIP}") from error
        if index == 0:
            pixels = np.empty((len(image_set), *decoded.shape), dtype=np.uint8)
        if decoded.shape != pixels.shape[1:]:
            (height, width, _), (first_height, first_width, _) = decoded.shape, pixels.shape[1:]
            raise ValueError(
                f"{image_set.describe(index)} has {height}x{width} pixels, but the first image of the split "
                f"{first_height}x{first_width}: only images of one size can be decoded together"
            )
        pixels[index] = decoded
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # turned once for all, not image by image


class SmallImageLoader:
    """Batches of (pixel_values float32 [B, 3, height, width], labels int64 [B]), both on `device`.

    The counterpart of `loading.make_loader` for splits that `fits`: the same views for the same seed and the same
    batches, on the CPU bit by bit (for other devices see `batch_transform.BatchTransform`). No global random state is
    read or changed. The split is decoded when its first batch is asked for, which may then raise what `decode` raises.

    Args:
        image_set: the images.
        preprocessing: what the views are made with.
        views: one of `transforms.BATCH_VIEWS`; None for evaluation, without randomness.
        batch_sampler: lists of (view, index), such as `loading.EpochBatches`; it has a length.
        seed: at least 0; with view and index it decides a view.
        device: where the split is kept and the batches are made.

    Raises:
        ValueError: `views` that cannot be made in batches.
    """

    def __init__(
        self, image_set: ImageSet, preprocessing: Preprocessing, views: str | None,
        batch_sampler: EpochBatches | list[list[Key]], seed: int = 0, device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        self.dataset, self.batch_sampler, self.views, self.seed = image_set, batch_sampler, views, seed
        self.device = torch.device(device)
        self._transform, self._decoded_side = preprocessing.batch_transform(views), preprocessing.decoded_side

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # Not a generator: the sampler's epoch is the one at the time of `iter`, as with a DataLoader.
        return map(self._batch, self.batch_sampler)

    @cached_property
    def _pixels(self) -> torch.Tensor:
        return decode(self.dataset, self._decoded_side).to(self.device)  # [n, 3, H, W]

    @cached_property
    def _labels(self) -> torch.Tensor:
        return torch.from_numpy(self.dataset.labels).to(self.device)  # [n]

    def _batch(self, keys: list[Key]) -> tuple[torch.Tensor, torch.Tensor]:
        # No thread draws ahead: a GPU works on its own and still has the last batch to do while this one is drawn.
        rows = torch.tensor([(index, *draw) for (_, index), draw in zip(keys, self._draw(keys), strict=True)])
        if self.device.type == "cuda":  # a copy of memory that is not pinned would wait until the GPU has done its work
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        rows = rows.to(self.device)  # [B, 1 + 3], or [B, 1] for evaluation
        return self._transform(self._pixels[rows[:, 0]], rows[:, 1:]), self._labels[rows[:, 0]]

    def _draw(self, keys: list[Key]) -> list[tuple[int, ...]]:
        """The random numbers of each image of a batch, each from its own seed; evaluation has none."""
        if self.views is None:
            return [()] * len(keys)
        height, width = self._pixels.shape[-2:]
        draws: list[tuple[int, ...]] = []
        # One fork for the batch restores the generator, which each image seeds anew; see `loading.Views`.
        with torch.random.fork_rng(devices=[]):
            for view, index in keys:
                torch.default_generator.manual_seed(view_seed(self.seed, view, index))
                draws.append(self._transform.draw(height, width))
        return draws
