"""Tables of pictures of cats and dogs, as the `datasets` library writes them; an image is known by its red."""

import io
import socket
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from learnable_memory.images import ImageSet

PETS = ClassLabel(names=["cat", "dog"])


def encode(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(first_red: int, labels: Sequence[object], label_type: object = PETS) -> Dataset:
    """Rows of an image, red `first_red`, `first_red` + 1, .., and a label; None is a row without a label."""
    images = [{"bytes": encode(first_red + row), "path": None} for row in range(len(labels))]
    features = Features({"image": datasets.Image(), "label": label_type})
    return Dataset.from_dict({"image": images, "label": list(labels)}, features=features)


def write_hub_layout(folder: Path, **splits: Dataset) -> Path:
    """What `push_to_hub` leaves: data/SPLIT-00000-of-00002.parquet and so on, the features in the metadata."""
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        for part in (0, 1):
            rows.shard(2, part, contiguous=True).to_parquet(
                str(folder / "data" / f"{split}-0000{part}-of-00002.parquet")
            )
    return folder


def write_pets(folder: Path) -> Path:
    train, validation, test = table(0, [0, 1] * 4), table(100, [1, 0]), table(200, [0, 1, 1])
    return write_hub_layout(folder, train=train, validation=validation, test=test)


def reds(images: ImageSet) -> list[int]:
    return [images.image(index).getpixel((0, 0))[0] for index in range(len(images))]


def refuse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that looks for a host fails, even where the library would go on after an error."""

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"reached for the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
