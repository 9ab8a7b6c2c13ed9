"""Images that cannot be read: found before training, and left out of their split where that is wished.

    data = leave_out_broken(data, Inspector(workers=4))             # what --on_bad_image skip does
    data.left_out["train"]                                          # what the images are called

Splits are drawn from all images, and the broken ones leave them afterwards: to repair one moves no other.
"""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from learnable_memory.data import DataSet
from learnable_memory.images import OR_SKIP, ArrayImages, Images, ImageSet, is_of_the_machine
from learnable_memory.progress import progress_bar
from learnable_memory.rgb import to_rgb
from learnable_memory.sharing import is_main, is_shared, of_all
from learnable_memory.wording import some

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Look = tuple[str | None, bytes | None]  # what is wrong with an image, and 16 bytes that its pixels decide

ROLES = ("train", "select", "eval")
FEW = 500  # images that are decoded sooner than worker processes have started
BATCH = 64  # images that a worker reports on at a time
SHOWN = 3  # broken images that the log names, and classes that an error names


class Inspector:
    """Finds broken images for all splits of a run, and decodes each image once: splits of several seeds share theirs.

    Args:
        workers: processes that decode; what is found does not depend on it.
        accelerator: the processes of the run; each looks at a part, and all know the whole.
    """

    def __init__(self, workers: int, accelerator: "Accelerator | None" = None) -> None:
        self.workers, self.accelerator = workers, accelerator
        self._known: dict[int, tuple[Images, np.ndarray, dict[int, str]]] = {}  # rows seen, and what is wrong with some

    def find(self, split: ImageSet, description: str) -> dict[int, str]:
        """As `find_broken`."""
        unseen: tuple[Images, np.ndarray, dict[int, str]] = split.images, np.zeros(len(split.images), dtype=bool), {}
        _, seen, reasons = self._known.setdefault(id(split.images), unseen)
        new = np.flatnonzero(~seen[split.indices])
        if len(new):
            found = find_broken(split.subset(new), self.workers, description, accelerator=self.accelerator)
            reasons.update((int(split.indices[new[index]]), reason) for index, reason in found.items())
            seen[split.indices[new]] = True
        return {index: reasons[row] for index, row in enumerate(split.indices.tolist()) if row in reasons}


def leave_out_broken(data: DataSet, inspector: Inspector, roles: Sequence[str] = ROLES) -> DataSet:
    """The data set without the images that training could not read; nothing takes their place.

    Args:
        roles: the splits that are looked at. With folds `select` is `train`, and is not counted again.

    Returns:
        The same classes and order; `left_out` holds, for each of these, what the images are called.

    Raises:
        ValueError: a split has no image left, or a class no training image; or an image cannot be read for a reason
            that is none of its own (see `defect`).
    """
    kept, left_out = {}, {}
    for role in (role for role in roles if role != "select" or not data.folds):
        split = getattr(data, role)
        broken = inspector.find(split, f"checking {role}")
        if is_main(inspector.accelerator):
            _report(role, len(split), list(broken.values()))
        kept[role] = split.subset(np.setdiff1d(np.arange(len(split)), list(broken)))
        left_out[role] = [split.identity(index) for index in broken]
        if not len(kept[role]):
            raise ValueError(f"none of the {len(split)} images of {data.name}'s {role} split can be read: repair them")
    if "train" in kept:
        _check_classes(data, kept["train"])
    if data.folds and "train" in kept:
        kept["select"] = kept["train"]
    return dataclasses.replace(data, **kept, left_out=left_out)


def find_broken(
    split: ImageSet, workers: int, description: str | None = None, all_faults: bool = False,
    accelerator: "Accelerator | None" = None,
) -> dict[int, str]:  # fmt: skip
    """Decode every image of a split once; JPEGs at the smallest scale, at which damage shows as at every other.

    Args:
        workers: processes that decode; images in memory, and few images, take none.
        description: the progress bar's; None for no bar.
        all_faults: list what is none of the image's own faults too, instead of stopping there.
        accelerator: processes that share the work; all return the whole.

    Returns:
        Index of each broken image -> what is wrong with it, by index.

    Raises:
        ValueError: an image cannot be read for a reason that is none of its own (see `defect`).
    """
    return _of_all_processes(split, workers, description, all_faults, accelerator=accelerator)[0]


def inspect(
    split: ImageSet, workers: int, description: str | None = None, accelerator: "Accelerator | None" = None
) -> tuple[dict[int, str], dict[int, bytes]]:
    """What `find_broken` finds, with all faults; and of the other images a digest of their pixels, by index.

    Two images have the same digest if they are the same, pixel for pixel, however they are stored.
    """
    return _of_all_processes(split, workers, description, True, True, accelerator)


def _of_all_processes(
    split: ImageSet, workers: int, description: str | None, all_faults: bool, digests: bool = False,
    accelerator: "Accelerator | None" = None,
) -> tuple[dict[int, str], dict[int, bytes]]:  # fmt: skip
    parts = of_all(lambda: _look_at(split, workers, description, all_faults, digests, accelerator), accelerator)
    reasons = {index: reason for part, _ in parts for index, reason in part.items()}
    found = {index: digest for _, part in parts for index, digest in part.items()}
    return dict(sorted(reasons.items())), dict(sorted(found.items()))


def _look_at(
    split: ImageSet, workers: int, description: str | None, all_faults: bool, digests: bool,
    accelerator: "Accelerator | None",
) -> tuple[dict[int, str], dict[int, bytes]]:  # fmt: skip
    """Reasons and digests of the images that this process looks at, by their place in the split."""
    places = np.arange(len(split))
    if is_shared(accelerator):
        places = places[accelerator.process_index :: accelerator.num_processes]
        description = description if is_main(accelerator) else None
    part = split.subset(places)
    if len(part) < FEW or isinstance(part.images, ArrayImages):
        workers = 0
    # A generator of its own, or the loader would draw a number from the global one.
    loader = DataLoader(
        _Looks(part, all_faults, digests), BATCH, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )
    found = itertools.chain.from_iterable(loader)
    bar = progress_bar(found, desc=description, total=len(part), disable=description is None, unit=" images")
    looks = dict(zip(places.tolist(), bar, strict=True))
    reasons = {place: reason for place, (reason, _) in looks.items() if reason is not None}
    return reasons, {place: digest for place, (_, digest) in looks.items() if digest is not None}


def defect(split: ImageSet, index: int) -> str | None:
    """What keeps an image from being read, naming it; None if nothing does.

    Raises:
        ValueError: the fault is not in the image: the file is missing or may not be read, or the disk fails. To leave
            such images out would make a data set of whatever the machine gave that day.
    """
    return _look(split, index)[0]


def _look(split: ImageSet, index: int, digest: bool = False) -> Look:
    try:
        image = split.image(index, side=0 if digest else 1)
    except ValueError as error:
        if is_of_the_machine(error.__cause__):
            raise
        return str(error).removesuffix(OR_SKIP), None
    try:
        pixels = to_rgb(image)
    except ValueError as error:
        return f"{split.describe(index)}: {error}", None
    if not digest:
        return None, None
    return None, hashlib.blake2b(f"{pixels.size}".encode() + pixels.tobytes(), digest_size=16).digest()


class _Looks(Dataset):
    """`looks[index]` is what is wrong with an image, and a digest of its pixels where one is wanted."""

    def __init__(self, split: ImageSet, all_faults: bool, digests: bool) -> None:
        self.split, self.all_faults, self.digests = split, all_faults, digests

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Look:
        try:
            return _look(self.split, index, self.digests)
        except ValueError as error:
            if not self.all_faults:
                raise
            return str(error), None


def _report(role: str, images: int, reasons: Sequence[str]) -> None:
    if not reasons:
        logger.info("%s: all %s images can be read", role, f"{images:,}")
        return
    more = f"; and {len(reasons) - SHOWN:,} more" if len(reasons) > SHOWN else ""
    logger.warning(
        "%s: %s of %s images cannot be read and are left out: %s%s",
        role, f"{len(reasons):,}", f"{images:,}", "; ".join(reasons[:SHOWN]), more,
    )  # fmt: skip


def _check_classes(data: DataSet, train: ImageSet) -> None:
    """Raise ValueError if a class that had training images has none left."""
    lost = [data.labels[label] for label in np.setdiff1d(data.train.labels, train.labels)]
    if lost:
        raise ValueError(
            f"no training image of {some(lost, SHOWN)} in {data.name} can be read: repair some of them, or "
            "remove the class"
        )
