"""A cache of what heads need of the frozen base, so that from the second epoch on an image costs only its task stream.

For each image and view it holds one record: of every layer the base's keys and values (2 N D numbers) or its tokens
after the first layer norm (N D), and what a linear probe reads (R; the class
token at the end, D, of most bases).

    keys_values   exact: in float32 the trained head is bit for bit the one trained without a cache. The fastest.
    tokens        half the size; queries are taken through the key projection instead (`vit.NormedTokens`), which costs
                  more arithmetic: for caches that would not fit otherwise.

On disk a cache is a folder with `manifest.json`, which says what it is of, and shards `v{view}_{shard}.bin` of plain
numbers. A shard is written whole or not at all, so a build that broke off goes on where it stopped, and several
processes build different shards of one cache.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from learnable_memory import cost
from learnable_memory.files import replacing
from learnable_memory.images import ImageSet
from learnable_memory.loading import EpochBatches, Key
from learnable_memory.progress import progress_bar
from learnable_memory.runlog import write_json

if TYPE_CHECKING:
    from vit import MemoryCapableViT

logger = logging.getLogger(__name__)

FORMAT = 2
FORMS = ("keys_values", "tokens")
SHARD_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a cache is of: if any of it differs, so do the numbers.

    Attributes:
        fingerprint: of the base.
        precision: in which the base computed, such as "float32".
        images: `ImageSet.content_hash` of the split.
        preprocessing: its hash.
        views: the random views; None for the evaluation view.
        seed: that the views are drawn with.
        form: one of FORMS.
        dtype: of the numbers: "float32", "bfloat16" or "float16".
        layers: L of the base.
        heads: H, its attention heads.
        tokens: N.
        width: D.
        readout: R, what a linear probe reads.
    """

    fingerprint: str
    precision: str
    images: str
    preprocessing: str
    views: str | None
    seed: int
    form: str
    dtype: str
    layers: int
    heads: int
    tokens: int
    width: int
    readout: int
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """16 hex characters: the name of the folder."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's layers: [L, 2, H, N, d] or [L, N, D]."""
        if self.form == "tokens":
            return self.layers, self.tokens, self.width
        return self.layers, 2, self.heads, self.tokens, self.width // self.heads

    @property
    def batch_axis(self) -> int:
        """Where images are counted in the layers of a batch: [L, 2, B, H, N, d] or [L, B, N, D]."""
        return 1 if self.form == "tokens" else 2

    @property
    def numbers(self) -> int:
        """Of one record."""
        return torch.Size(self.shape).numel() + self.readout

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the numbers, as torch's."""
        return getattr(torch, self.dtype)


def contents_of(
    model: "MemoryCapableViT",
    image_set: ImageSet,
    preprocessing_hash: str,
    views: str | None,
    seed: int,
    form: str,
    dtype: str,
) -> Contents:
    """The contents of the cache of a split, for a MemoryCapableViT. Raises ValueError for an unknown form, and
    for tokens of a base whose keys cannot be had from them.
    """
    if form not in FORMS:
        raise ValueError(f"The form of a cache is {form!r}; legal: {', '.join(FORMS)}.")
    if form == "tokens":
        model.check_keys_are_linear()
    precision = str(model.dtype).removeprefix("torch.")
    return Contents(
        model.fingerprint, precision, image_set.content_hash, preprocessing_hash, views, seed if views else 0, form,
        dtype, model.base_layers, model.base_attention_heads,
        model.num_tokens, model.base_width, model.readout_width,
    )  # fmt: skip


class FeatureCache:
    """The records of one split.

    Args:
        contents: what it is of.
        images: of the split.
        views: random views of each image.
        folder: where caches are kept; None for memory.

    Raises ValueError if the folder holds a cache of something else, or a damaged one.
    """

    def __init__(self, contents: Contents, images: int, views: int = 1, folder: Path | None = None) -> None:
        self.contents, self.images, self.views = contents, images, views
        self.folder = None if folder is None else Path(folder) / contents.hash
        self.record_bytes = contents.numbers * contents.torch_dtype.itemsize
        self.shard_images = max(1, min(images, SHARD_BYTES // self.record_bytes))
        self._shards: dict[tuple[int, int], Tensor] = {}
        if self.folder is not None and (self.folder / "manifest.json").exists():
            self._check_manifest(self.folder / "manifest.json")

    def _check_manifest(self, path: Path) -> None:
        expected = {**dataclasses.asdict(self.contents), "count": self.images}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): delete the folder to build the cache anew.") from None
        differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        if differing:
            raise ValueError(
                f"{self.folder} is a cache of something else: it differs in {', '.join(differing)}. Delete the folder, "
                "or choose another --cache_folder."
            )

    # ---------------------------------------------------------------------------------------------------------- size
    @property
    def bytes(self) -> int:
        """Of all records."""
        return self.images * self.views * self.record_bytes

    def check_room(self) -> None:
        """Raise ValueError if what is still to be written does not fit into the memory or on the disk."""
        left = sum(self.rows(shard) for _, shard in self.missing()) * self.record_bytes
        if self.folder is None:
            free, where, instead = available_memory(), "memory", "--cache disk, "
        else:
            existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
            free = psutil.disk_usage(existing).free  # type: ignore[arg-type]  # its stub knows strings only
            where, instead = f"the disk of {self.folder.parent}", ""
        if left > 0.95 * free:
            raise ValueError(
                f"The cache needs {_gigabytes(left)}, but {where} has {_gigabytes(free)} free: choose {instead}"
                "--cache_dtype bfloat16, --cache_form tokens, fewer --views, or --cache none."
            )

    # --------------------------------------------------------------------------------------------------------- build
    def missing(self) -> list[tuple[int, int]]:
        """The (view, shard) that are still to be built.

        Raises ValueError if the file of a shard has not the size that it must have.
        """
        return [key for key in self._all() if not self._exists(*key)]

    def _all(self) -> list[tuple[int, int]]:
        shards = range(-(-self.images // self.shard_images))
        return [(view, shard) for view in range(self.views) for shard in shards]

    def build(
        self, model: "MemoryCapableViT", batches: Callable[[list[list[Key]]], Iterable[tuple[Tensor, Tensor]]],
        batch_size: int, process: int = 0, processes: int = 1, description: str | None = None,
    ) -> None:  # fmt: skip
        """Compute what is missing; of several processes, each its part.

        Args:
            model: the MemoryCapableViT.
            batches: for lists of (view, index), in their order, gives pixel_values [B, channels, height, width] and
                labels.
            batch_size: images at once.
            description: the progress bar's; None for no bar.
        """
        # Dealt out before looking at what is there: others may be building while this process looks.
        todo = [key for key in self._all()[process::processes] if not self._exists(*key)]
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if process == 0:
                write_json(self.folder / "manifest.json", {**dataclasses.asdict(self.contents), "count": self.images})
        keys = {(view, shard): self._keys(view, shard, batch_size) for view, shard in todo}
        loader = iter(batches([batch for shard in keys.values() for batch in shard])) if todo else iter(())
        device = next(model.parameters()).device
        total = sum(self.rows(shard) for _, shard in todo)
        with progress_bar(
            total=total, desc=description, unit=" images", disable=description is None or not todo
        ) as bar:
            for (view, shard), its_batches in keys.items():
                records = torch.empty(self.rows(shard), self.contents.numbers, dtype=self.contents.torch_dtype)
                done = 0
                for batch in its_batches:
                    pixel_values, _ = next(loader)
                    tokens = model.base_tokens(pixel_values.to(device), self.contents.form == "keys_values")
                    layers = tokens.layers.movedim(self.contents.batch_axis, 0).flatten(1)  # [B, numbers - R]
                    records[done : done + len(batch), : layers.shape[1]] = layers
                    records[done : done + len(batch), layers.shape[1] :] = tokens.output
                    done += len(batch)
                    bar.update(len(batch))
                self.keep(view, shard, records)

    def rows(self, shard: int) -> int:
        """Images of a shard; only the last has fewer."""
        return min(self.shard_images, self.images - shard * self.shard_images)

    def _keys(self, view: int, shard: int, batch_size: int) -> list[list[Key]]:
        first, count = shard * self.shard_images, self.rows(shard)
        return [
            [(view, first + row) for row in range(start, min(start + batch_size, count))]
            for start in range(0, count, batch_size)
        ]

    def _path(self, view: int, shard: int) -> Path:
        assert self.folder is not None  # records in memory have no files
        return self.folder / f"v{view:04d}_{shard:06d}.bin"

    def _exists(self, view: int, shard: int) -> bool:
        if self.folder is None:
            return (view, shard) in self._shards
        path = self._path(view, shard)
        if not path.exists():
            return False
        expected = self.rows(shard) * self.record_bytes
        size = path.stat().st_size
        if size != expected:
            raise ValueError(f"{path} has {size} bytes instead of {expected}: delete it, and it is built anew.")
        return True

    def keep(self, view: int, shard: int, records: Tensor) -> None:
        """Make [rows, numbers] of the cache's dtype the records of a shard."""
        if self.folder is None:
            self._shards[view, shard] = records
            return
        # Written, not mapped: a full disk is then an error, and not a signal that ends the process.
        with replacing(self._path(view, shard)) as unfinished, unfinished.open("wb") as file:
            file.write(records.view(torch.uint8).numpy().data)

    # ---------------------------------------------------------------------------------------------------------- read
    def record(self, view: int, index: int) -> Tensor:
        """One image's numbers [numbers]; on disk they are mapped, not read."""
        shard, row = divmod(index, self.shard_images)
        if (view, shard) not in self._shards:
            count = self.rows(shard)
            mapped = torch.from_file(
                str(self._path(view, shard)), False, count * self.contents.numbers, dtype=self.contents.torch_dtype
            )
            self._shards[view, shard] = mapped.view(count, -1)
        return self._shards[view, shard][row]


class CachedLoader:
    """Batches of (what the heads need, labels int64 [B]) from a cache; the counterpart of `loading.make_loader`.

    The next batch is read while one is worked on, into one of two buffers that are used in turn: a batch is overwritten
    once the next one has been asked for.

    Args:
        cache: built.
        image_set: its split.
        batch_sampler: lists of (view, index), such as `loading.EpochBatches`.
        wrap: makes the first part from layers ([L, 2, B, H, N, d] or [L, B, N, D]) and output [B, R]: `vit.BaseTokens`.
        dtype: of the batches: the base's on a CPU, so that nothing is converted twice. None leaves the cache's.
    """

    def __init__(
        self, cache: FeatureCache, image_set: ImageSet, batch_sampler: EpochBatches,
        wrap: Callable[[Tensor, Tensor], Any], dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.cache, self.dataset, self.batch_sampler, self.wrap = cache, image_set, batch_sampler, wrap
        self.dtype = dtype or cache.contents.torch_dtype
        self._labels = torch.from_numpy(image_set.labels)
        self._buffers: list[Tensor | None] = [None, None]

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return self._read_ahead(enumerate(self.batch_sampler))

    def _read_ahead(self, batches: Iterator[tuple[int, list[Key]]]) -> Iterator[tuple[Any, Tensor]]:
        with ThreadPoolExecutor(1) as reader:
            coming = None
            for number, keys in batches:
                ready, coming = coming, reader.submit(self._batch, number, keys)
                if ready is not None:
                    yield ready.result()
            if coming is not None:
                yield coming.result()

    def _batch(self, number: int, keys: list[Key]) -> tuple[Any, Tensor]:
        contents, count = self.cache.contents, len(keys)
        layers = self._buffer(number % 2, count)
        output = torch.empty(count, contents.readout, dtype=self.dtype)
        for place, (view, index) in enumerate(keys):
            record = self.cache.record(view, index)
            layers.select(contents.batch_axis, place).copy_(record[: -contents.readout].view(contents.shape))
            output[place] = record[-contents.readout :]
        labels = self._labels[[index for _, index in keys]]
        return self.wrap(layers, output), labels

    def _buffer(self, which: int, count: int) -> Tensor:
        """Contiguous, for `count` images; its memory stays, since new pages cost as much as the copying."""
        axis, shape = self.cache.contents.batch_axis, self.cache.contents.shape
        numbers = torch.Size(shape).numel() * count
        buffer = self._buffers[which]
        if buffer is None or len(buffer) < numbers:
            buffer = torch.empty(numbers, dtype=self.dtype, pin_memory=torch.cuda.is_available())
            self._buffers[which] = buffer
        return buffer[:numbers].view(*shape[:axis], count, *shape[axis:])


# ------------------------------------------------------------------------------------------------------- size and gain
def expected_gain(contents: Contents, heads: int) -> float:
    """How many times faster an image is from the cache than without it, by arithmetic alone (multiplications).

    An MLP of 4 D is assumed, and that a head costs backward what it costs forward. With many heads the task stream
    dominates, and there is less to gain.
    """
    n, d = contents.tokens, contents.width
    base, task = cost.base_layer(n, d, 4 * d), 2 * cost.head_layer(n, d, 4 * d)
    absorbed = 2 * (2 * d * d + 2 * n * d * (contents.heads - 1)) if contents.form == "tokens" else 0
    return (base + heads * task) / (heads * (task + absorbed))


def available_memory() -> int:
    """Bytes that can still be allocated, by the machine and by the limit of a container."""
    free = psutil.virtual_memory().available
    limits = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        limit, used = (path.read_text().strip() for path in limits)
        return free if limit == "max" else min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no container, or another version of its files
        return free


def describe(cache: FeatureCache, heads: int, epochs: int) -> str:
    """What is about to be built, and what it brings, in one line."""
    place = "in memory" if cache.folder is None else f"in {cache.folder}"
    views = "" if cache.views == 1 else f" x {cache.views} views"
    todo = sum(cache.rows(shard) for _, shard in cache.missing())
    per_epoch, total = expected_gain(cache.contents, heads), cache.images * cache.views
    # Epochs in units of one without a cache; a build costs one, less the heads.
    share = 1 / per_epoch
    whole = epochs / (todo / cache.images * (1 - share) + epochs * share)
    return (
        f"cache of {cache.images:,} images{views}: {_gigabytes(cache.bytes)} of {cache.contents.form} as "
        f"{cache.contents.dtype} {place}, {total - todo:,} of {total:,} there; {heads} head{'s' * (heads > 1)} "
        f"from it: up to {per_epoch:.1f} times faster an epoch, {whole:.1f} times over {epochs} epochs with the "
        "building (by arithmetic)"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
