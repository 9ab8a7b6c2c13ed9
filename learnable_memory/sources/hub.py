"""Data sets of the HuggingFace hub, and folders in its layout."""

import glob
import logging
import re
from pathlib import Path
from typing import Any

from learnable_memory.sources.class_names import files_of_folder, snapshot_folder
from learnable_memory.sources.found import Found, Request, absolute
from learnable_memory.sources.tables import HUB_CACHE, LOCAL_CACHE, UnwritableCache, load_tables, read_tables, reason

logger = logging.getLogger(__name__)


def read_hub(request: Request) -> Found:
    """An image classification set of the hub, or a folder that `datasets.load_dataset` understands.

    `request.argument` is NAME or NAME:CONFIG. A NAME that begins with `.`, `/` or `~` is a folder, any other one of the
    hub. The library's Arrow files, in which the images stay, are kept in `datasets/huggingface/` (of a folder: in
    `datasets/huggingface-local/`); without downloads only what is there is taken. Remote code is never run.

    Raises:
        ModuleNotFoundError: the package `datasets` is not installed.
        FileNotFoundError: no such data set or folder, no access to it, or no network.
        ValueError: several configurations and none named, damaged files, or what `read_tables` raises.
    """
    shown = f"hf:{request.argument}"
    name, _, config = request.argument.partition(":")
    local = _is_path(name)
    if local:
        name = absolute(name)
        if not Path(name).is_dir():
            raise FileNotFoundError(f"{shown}: {name} is not a folder")
        if glob.has_magic(name):  # the library would take it for a pattern
            raise ValueError(f"{shown}: {name} has one of the characters * ? [ in it: rename the folder")
    elif Path(name).is_dir():  # load_dataset would take it, and nobody would notice
        raise ValueError(f"{shown} is a folder here and maybe a name of the hub; for the folder write hf:./{name}")
    cache = request.root / (LOCAL_CACHE if local else HUB_CACHE)
    try:
        splits = load_tables(name, cache, offline=local or not request.download, name=config or None)
    except (ModuleNotFoundError, UnwritableCache):
        raise  # these say what to do
    except Exception as error:
        raise _explained(shown, request, local, error) from error
    source = f"folder: {Path(name).name}" if local else f"hub: {name}"
    source += f" ({config})" if config else ""
    revision = None if local else _revision(splits)
    source = f"{source}, revision {revision}" if revision else source
    folder = Path(name) if local else snapshot_folder(name, revision)
    if folder is None:
        logger.info("%s: its files are not in HuggingFace's cache any more: their class names are not compared", shown)
    files = files_of_folder(folder, config or None, cache, splits) if folder else {}
    return read_tables(shown, splits, request, source, Path(name) if local else None, files)


def full_hub_name(argument: str) -> str:
    """NAME or NAME:CONFIG with the whole path of a folder; names of the hub stay as they are."""
    name, colon, config = argument.partition(":")
    return (absolute(name) if _is_path(name) else name) + colon + config


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~"))


def _revision(splits: dict[str, Any]) -> str | None:
    """The commit of a data set of the hub: the cache has a folder for each."""
    folders = {Path(file["filename"]).parent.name for table in splits.values() for file in table.cache_files}
    commits = [folder for folder in folders if re.fullmatch("[0-9a-f]{40}", folder)]
    return commits[0] if len(commits) == 1 else None


def _explained(shown: str, request: Request, local: bool, error: Exception) -> Exception:
    """One line that says what to do, for an error of the `datasets` library."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    said = reason(error).partition(" Example of usage")[0]
    if isinstance(error, DatasetNotFoundError):
        return FileNotFoundError(
            f"{shown}: {said}; check the name; to a gated data set ask for access on its page, then run `hf auth login`"
        )
    # Of the network there are many: OSErrors, some of them ValueErrors too, and those of the libraries below.
    of_files = isinstance(error, (ValueError, RuntimeError)) and not isinstance(error, OSError)
    if not local and not of_files and not isinstance(error, DatasetsError):
        why = f"downloading failed ({said})" if request.download else "downloading is off"
        return FileNotFoundError(f"{shown}: not in {request.root / HUB_CACHE}, and {why}; load it once with a network")
    if isinstance(error, ValueError) and "config" in said.lower():
        return ValueError(f"{shown}: {said}; write hf:NAME:CONFIG")
    return ValueError(f"cannot read {shown} ({said}); check its files")
