"""Batches of images whose randomness does not depend on the machine.

    loader = make_loader(data.train, preprocessing.train_transform(data.views), 64, workers=4, seed=0, shuffle=True)
    loader.batch_sampler.set_epoch(1)                               # before each epoch
    for pixel_values, labels in loader: ...                         # float32 [B, 3, H, W], int64 [B]

What a batch holds is decided by `EpochBatches`, as pairs (view, index) of images of one split; how they become pixels
is a loader's business. So the order and the views are the same for every loader, any number of workers or processes,
and after a resume.
"""

import signal
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from learnable_memory.images import OR_SKIP, ImageSet
from learnable_memory.transforms import Transform

Key = tuple[int, int]  # which random view, of which image of the split


class Loader(Protocol):
    """Batches of (what a model takes, labels int64 [B]): a DataLoader, `SmallImageLoader` or `CachedLoader`."""

    @property
    def dataset(self) -> Any:
        """What the images are drawn from; its length is that of the split."""

    @property
    def batch_sampler(self) -> Any:
        """What says which images are a batch, such as `EpochBatches`; it has a `batch_size`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


def view_seed(seed: int, view: int, index: int) -> int:
    """What the view's random numbers are drawn with: 64 bits, a function of these three and of nothing else."""
    return int(np.random.SeedSequence((seed, view, index)).generate_state(1, np.uint64)[0])


class Views(Dataset):
    """Transformed images: `views[view, index]` is (float32 [3, H, W], label), a function of seed, view and index.

    Args:
        image_set: the images.
        transform: PIL image -> float32 [3, H, W]; may draw from torch's global CPU generator, and from nothing else.
            Where it has a `decoded_side`, JPEGs are decoded at a scale that keeps so many pixels.
        seed: at least 0.
    """

    def __init__(self, image_set: ImageSet, transform: Transform, seed: int = 0) -> None:
        self.image_set, self.transform, self.seed = image_set, transform, seed
        self._decoded_side = getattr(transform, "decoded_side", 0)

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int]:
        view, index = key
        image, label = self.image_set.image(index, self._decoded_side), self.image_set.label(index)
        # fork_rng restores the CPU generator. torch.manual_seed would seed those of the GPUs too; nobody restores them
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(view_seed(self.seed, view, index))
            try:
                return self.transform(image), label
            except ValueError as error:
                raise ValueError(f"{self.image_set.describe(index)}: {error}{OR_SKIP}") from error


class EpochBatches(Sampler[list[Key]]):
    """Batches of (view, index), each index once an epoch, shuffled by (seed, epoch) or in order.

    With several processes each batch is dealt out among them, and this gives the part of one: a process gets no batch
    where the last one of an epoch has fewer images than there are processes.

    Args:
        length: images in the split.
        batch_size: images of a step, over all processes; the last batch may be smaller.
        views: how many random views an image has: epoch e shows view e modulo this. None: a new one in each epoch.
        drop_last: leave a smaller last batch out.
        process, processes: which part of each batch.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, shuffle: bool = False, views: int | None = None,
        drop_last: bool = False, process: int = 0, processes: int = 1,
    ) -> None:  # fmt: skip
        if seed < 0:
            raise ValueError(f"seed is {seed}; it has to be 0 or more")
        self.length, self.batch_size, self.seed, self.shuffle, self.views = length, batch_size, seed, shuffle, views
        self.drop_last, self.process, self.processes = drop_last, process, processes
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self.length, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The epoch of the next pass, 0 at first, and how many of its batches were seen before, for a resumed run."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[Key]]:
        view = self.epoch if self.views is None else self.epoch % self.views
        order = np.arange(self.length)
        if self.shuffle:
            # The spawn key keeps this stream apart from those of the views, which are keyed by three numbers.
            key = np.random.SeedSequence((self.seed, self.epoch), spawn_key=(0,))
            order = np.random.default_rng(key).permutation(order)
        cuts = range(self.start * self.batch_size, len(self) * self.batch_size, self.batch_size)
        batches = (order[cut : cut + self.batch_size][self.process :: self.processes] for cut in cuts)
        return ([(view, int(index)) for index in batch] for batch in batches if len(batch))


def make_loader(
    image_set: ImageSet,
    transform: Transform,
    batch_size: int = 1,
    workers: int = 0,
    seed: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    *,
    batch_sampler: Iterable[list[Key]] | None = None,
) -> DataLoader:
    """Batches of (pixel_values float32 [B, 3, H, W], labels int64 [B]), the same bits for any number of workers.

    Order and views depend on (seed, epoch, index) only; call `loader.batch_sampler.set_epoch(epoch)` before each epoch.
    No global random state is read or changed. Each image comes once an epoch; the last batch may be smaller, and only
    `drop_last` leaves it out.

    Args:
        batch_sampler: which batches instead of those of `EpochBatches(len(image_set), batch_size, seed, shuffle,
            drop_last=drop_last)`; `seed` still draws the views.

    Raises:
        ValueError: a negative seed; from the batches, an image that cannot be decoded.
    """
    if batch_sampler is None:
        batch_sampler = EpochBatches(len(image_set), batch_size, seed, shuffle, drop_last=drop_last)
    return DataLoader(
        Views(image_set, transform, seed),
        batch_sampler=batch_sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_leave_interrupts_to_the_main_process,
        generator=torch.Generator().manual_seed(seed),  # else each pass would draw a number from the global generator
    )


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the main one ends its step first, and needs its workers for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
