"""Tensors and a header of JSON texts as one safetensors file with a checksum: what heads and networks are kept in.

Under the key `sha256` the header has a SHA-256 over its other texts and all tensors, so that a file that is damaged, or
was changed by hand, is not taken for the one that was written.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from learnable_memory.files import replacing

logger = logging.getLogger(__name__)

CHECKSUM_KEY = "sha256"


@dataclass(frozen=True)
class Contents:
    """What a file holds, as it was written if it has a checksum.

    Attributes:
        tensors: by their names.
        header: its texts, without the checksum.
        checked: whether it has a checksum.
    """

    tensors: dict[str, torch.Tensor]
    header: dict[str, str]
    checked: bool


def write(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and a header (key -> what becomes JSON), whole or not at all.

    Raises OSError if the disk refuses.
    """
    # Cloned, because a file cannot hold tensors that share their storage.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    texts = {key: json.dumps(value, separators=(",", ":"), allow_nan=False) for key, value in header.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata={**texts, CHECKSUM_KEY: checksum(tensors, texts)})
    return path


def read(path: Path) -> Contents:
    """Read a file and compare its checksum, if it has one.

    Raises FileNotFoundError if there is no file, ValueError if it is no safetensors file, or damaged.
    """
    must_be_there(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged or cut short: {error}.") from None
    written = header.pop(CHECKSUM_KEY, None)
    if written is not None and written != checksum(tensors, header):
        raise ValueError(
            f"{path} is damaged: what it holds is not what was written, as its checksum tells. Take another copy of it."
        )
    return Contents(tensors, header, written is not None)


def checksum(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> str:
    """SHA-256, 64 hexadecimal digits, over the texts of a header and the names, types, shapes and bytes of tensors.

    Of each text, sorted by key, the JSON of [key, text]; then of each tensor, sorted by name, the JSON of [name, type,
    shape] and its bytes.
    """
    digest = hashlib.sha256()
    for key in sorted(header):
        digest.update(json.dumps([key, header[key]]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_presence(contents: Contents, expected: bool, path: os.PathLike) -> None:
    """Say it if a file has no checksum; raise ValueError if files of its format have one."""
    if contents.checked:
        return
    if expected:
        raise ValueError(f"{path} is damaged or was changed: it has no checksum. Take another copy of it.")
    say_unchecked(path)


def say_unchecked(path: os.PathLike) -> None:
    """Log that nothing tells whether a file is what was written."""
    logger.info("%s is of an earlier format, without a checksum: damage in it would not be noticed.", path)


def must_be_there(path: Path) -> None:
    """Raise FileNotFoundError if there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no head file {path}. Train one with vit_train.py, or check the name.")


def parsed(text: str, path: os.PathLike) -> Any:
    """The JSON in the header of a file. Raises ValueError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header: {error}.") from None
