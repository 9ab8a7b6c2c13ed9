"""What the images of a split hold, beyond what they are called: recorded, so that a change is noticed."""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learnable_memory.images import ImageSet

logger = logging.getLogger(__name__)

THREADS = 8  # that read files; hashing leaves Python's lock alone
AT_A_TIME = 1024
MANY = 20_000  # images that take long enough for a word


def contents_of(image_set: "ImageSet") -> dict[str, Any]:
    """How many bytes the images of a split are in all, and 16 hex characters over them; every image is read once.

    Raises:
        ValueError: an image is not there, or cannot be read; the message names it.
    """
    if len(image_set) > MANY:
        logger.info("reading %s images once, so that a change in them will be noticed", f"{len(image_set):,}")
    digest, size = hashlib.sha256(), 0
    for length, each in _digests(image_set):
        digest.update(each)
        size += length
    return {"bytes": size, "contents": digest.hexdigest()[:16]}


def _digests(image_set: "ImageSet") -> Iterator[tuple[int, bytes]]:
    def one(row: int) -> tuple[int, bytes]:
        try:
            stored = image_set.images.contents(row)
        except OSError as error:
            raise ValueError(
                f"cannot read the image {image_set.images.describe(row)} ({error}); put it there"
            ) from error
        return len(stored), hashlib.sha256(stored).digest()

    rows = iter(image_set.indices.tolist())
    with ThreadPoolExecutor(THREADS) as threads:
        while batch := list(itertools.islice(rows, AT_A_TIME)):
            yield from threads.map(one, batch)


def difference(record: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """In words, in what a split here is another than a recorded one; None if in nothing that both records say.

    Args:
        record, here: of `ImageSet.record`.
    """
    if here["hash"] != record["hash"]:
        counts = f"{here['images']:,} here, {record['images']:,} there" if "images" in record else "another hash"
        return f"it has other images or labels ({counts})"
    for key, what in (("bytes", "{:,} bytes in all here, {:,} there"), ("contents", "of the same size in all")):
        if key in record and key in here and here[key] != record[key]:
            return f"images of the same names have changed since ({what.format(here[key], record[key])})"
    return None
