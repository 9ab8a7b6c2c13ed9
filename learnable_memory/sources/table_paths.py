"""Images of a table that are kept as paths: what lies in folders of the system is no data."""

import logging
from dataclasses import replace
from pathlib import PurePath

import numpy as np

from learnable_memory.images import ImageSet, TableImages
from learnable_memory.sources.found import Found
from learnable_memory.sources.image_files import is_system
from learnable_memory.wording import counted

logger = logging.getLogger(__name__)


def without_system_folders(found: Found) -> Found:
    """The data set without images in folders of the system, which the log counts, and without classes that are such
    folders: the `datasets` library takes them for data."""
    sets = {role: getattr(found, role) for role in ("train", "eval", "select")}
    skipped = {role: _in_system_folders(images) for role, images in sets.items() if images is not None}
    count = sum(map(len, skipped.values()))
    if not count:
        return found
    logger.info("skipped %s in folders of the system", counted(count, "image"))
    kept = {role: sets[role].subset(np.setdiff1d(np.arange(len(sets[role])), rows)) for role, rows in skipped.items()}
    used = {int(label) for images in kept.values() for label in np.unique(images.labels)}
    classes = [number for number, name in enumerate(found.labels) if number in used or not is_system(name)]
    relabelled = {role: images.relabel(classes) for role, images in kept.items()}
    return replace(found, labels=[found.labels[number] for number in classes], **relabelled)


def _in_system_folders(images: ImageSet) -> np.ndarray:
    """int64 [n], the positions of such images in their split."""
    paths = images.images.paths if isinstance(images.images, TableImages) else {}
    rows = [row for row, path in paths.items() if any(map(is_system, PurePath(path).parts))]
    return np.flatnonzero(np.isin(images.indices, rows))
