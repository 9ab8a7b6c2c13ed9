"""Checkpoints as torch pickles them, read without trust: tensors and the containers around them, nothing else.

A pickle is a program that may call any function it names. torch's restricted reader runs none but those that make
tensors and containers, and the classes that somebody has told torch to trust in this process; objects of these are
refused here afterwards. requirements.txt asks for the first torch whose reader has no known way around it
(CVE-2026-24747).
"""

import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (str, bytes, bytearray, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.layout)
DICTS = (dict, OrderedDict, Counter)
SEQUENCES = (list, tuple, set, torch.Size)
ZIP_MAGIC = b"PK\x03\x04"


def read(path: Path) -> Mapping[Any, Any]:
    """The dict in a file that `torch.save` wrote, old format or new, on the CPU: tensors, containers, plain values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no pickle of a dict, larger than it looks, or holds something else, which
            could run any code; nothing in it has run.
    """
    _refuse_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, struct and torch each have their own
        raise unreadable(path, error) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}; a checkpoint is a dict of tensors")
    _refuse_more_than_tensors(path, checkpoint)
    return checkpoint


def unreadable(path: Path, error: Exception) -> ValueError:
    """What to raise where loading failed: in one line, and with the name of what a pickle must not hold."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return _more_than_tensors(path, found[1])
    if "weights_only" in str(error):  # torch's advice is to switch the check off
        return ValueError(
            f"cannot read {path}: it is no checkpoint, is damaged, or holds more than tensors; replace it"
        )
    # The text of a KeyError is the bare key: a byte of what is no pickle.
    reason = "no pickle" if isinstance(error, KeyError) else " ".join(str(error).split())[:100] or "it ends too early"
    return ValueError(f"cannot read {path} ({reason}): it is damaged, or no checkpoint; replace it")


def _more_than_tensors(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path} holds {found} beside its tensors, and such a pickle can run any code: where you trust it, "
        "load it and save its state dict alone with safetensors"
    )


def _refuse_archive(path: Path) -> None:
    """Zip files that are not what `torch.save` writes: programs, and what is larger than the file once unpacked."""
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # of many kinds, where bytes are missing or changed
        raise unreadable(path, error) from error
    if any(Path(entry.filename).name == "constants.pkl" for entry in entries):
        raise ValueError(
            f"{path} is a TorchScript archive, a program and no checkpoint: where you trust it, load it with "
            "torch.jit.load and save its state dict alone with safetensors"
        )
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > size:
        raise ValueError(
            f"{path} has {size} bytes and would take {unpacked} unpacked; torch.save does not compress: replace it"
        )


def _refuse_more_than_tensors(path: Path, checkpoint: Mapping) -> None:
    """What torch was told to trust in this process is not trusted here; nor are tensors that can claim any size."""
    seen: set[int] = set()
    waiting: list[Any] = [checkpoint]
    while waiting:  # no recursion: containers can be nested deeply, or hold themselves
        value = waiting.pop()
        kind = type(value)
        if kind in PLAIN or id(value) in seen:
            continue
        seen.add(id(value))
        if kind in DICTS:
            waiting += [*dict.keys(value), *dict.values(value)]
        elif kind in SEQUENCES:
            waiting += value
        elif kind in (Tensor, nn.Parameter):
            _refuse_hollow(path, value)
        else:
            raise _more_than_tensors(path, f"{kind.__module__}.{kind.__qualname__}")


def _refuse_hollow(path: Path, tensor: Tensor) -> None:
    """A tensor without values of its own, or one that repeats few of them, can claim any size."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError(
            f"{path} holds a {tensor.layout} tensor on {tensor.device}; legal are dense ones with values: convert it "
            "before it is saved"
        )
    size, claimed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if claimed > size:
        raise ValueError(f"{path} holds {size} bytes of a tensor that takes {claimed}: copy it before it is saved")
