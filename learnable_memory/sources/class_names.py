"""What the files of a table call its classes: a label is a number, and each file has its own list of names for it.

The `datasets` library takes the names of one file for all of them, and puts the rows together without a look.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learnable_memory.wording import some

logger = logging.getLogger(__name__)

WITH_NAMES = ("parquet", "arrow")  # kinds of files that have names of classes, as the library calls its readers
SHOWN = 10  # classes that an error lists


@dataclass(frozen=True)
class LabelNames:
    """One file of a table.

    Attributes:
        rows: how many it has.
        names: of class 0, 1, .. in it; None if it does not say.
    """

    path: Path
    rows: int
    names: list[str] | None


def names_of_file(path: Path, column: str) -> LabelNames:
    """What a parquet or Arrow file calls the classes of a label column.

    Raises:
        OSError, pyarrow.ArrowInvalid: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix != ".arrow":
        file = pq.ParquetFile(path)
        return LabelNames(path, file.metadata.num_rows, names_in(file.schema_arrow.metadata, column))
    with pa.memory_map(str(path)) as source:
        try:
            table = pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(source).read_all()
        return LabelNames(path, table.num_rows, names_in(table.schema.metadata, column))


def names_in(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str] | None:
    """The names of a ClassLabel column, which the `datasets` library keeps as JSON beside the schema."""
    features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return features.get(column, {}).get("names")


def names_differ(name: str, labels: Sequence[str], files: Sequence[LabelNames]) -> bool:
    """Whether the files of a table have to be read by name; or refused, as `numbers_by_name` does.

    They need not where none has names. Where all have the same ones, and the description of the data set, which
    `labels` come from, calls some of them otherwise and none by the name of another, somebody has given them better
    names there, which the log says.
    """
    if all(file.names is None or file.names == list(labels) for file in files):
        return any(file.names is None for file in files) and any(file.names for file in files)
    theirs = {tuple(file.names or ()) for file in files}
    (first, *others) = theirs
    moved = any(each in labels and labels.index(each) != place for place, each in enumerate(first))
    if others or len(first) != len(labels) or moved:
        return True
    logger.info(
        "%s: its files call the classes %s, and its description calls them %s: taken from there",
        name, some(first, SHOWN), some(labels, SHOWN),
    )  # fmt: skip
    return False


def numbers_by_name(
    name: str, column: str, labels: Sequence[str], files: Sequence[LabelNames], numbers: np.ndarray
) -> np.ndarray:
    """The labels of a split, counted as `labels` has the classes and not as each file has them.

    Args:
        name: what to call the split in errors.
        column: of the labels.
        labels: the name of class 0, 1, ..
        files: all of the split, in the order of its rows.
        numbers: int64 [rows], as the files have them.

    Returns:
        int64 [rows].

    Raises:
        ValueError: a file has other classes, or does not name them where others do.
    """
    orders = [_order(column, labels, file) for file in files]
    if all(order is None for order in orders):
        return numbers
    if sum(file.rows for file in files) != len(numbers):
        raise ValueError(f"the files of {name} have their classes in different orders, and other rows than it has")
    logger.info("%s: files have the same classes in different orders, which are put right by name", name)
    parts = np.split(numbers, np.cumsum([file.rows for file in files])[:-1])
    return np.concatenate([part if order is None else order[part] for part, order in zip(parts, orders, strict=True)])


def _order(column: str, labels: Sequence[str], file: LabelNames) -> np.ndarray | None:
    """The number in `labels` of each class of a file; None if they are the same."""
    if file.names == list(labels):
        return None
    if file.names is None:
        raise ValueError(
            f"{file.path} has no names of classes for the column {column}, and other files of the same data have; save "
            "it with the datasets library, as the others"
        )
    if sorted(file.names) != sorted(labels):
        theirs, ours = sorted(set(file.names) - set(labels)), sorted(set(labels) - set(file.names))
        raise ValueError(
            f"{file.path} has other classes in the column {column} than the other files of the same data (only here: "
            f"{some(theirs, SHOWN) or 'none'}; only there: {some(ours, SHOWN) or 'none'}); give them the same"
        )
    return np.array([list(labels).index(each) for each in file.names])


# ----------------------------------------------------------------------------------- the files that a table comes from
def files_of_folder(folder: Path, config: str | None, cache: Path, splits: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files of each split of a folder that the `datasets` library reads; none of kinds without names of classes.

    Args:
        config: the configuration.
        cache: where the library keeps its own files.
        splits: `datasets.Dataset` by the name of the split, as it made them of the folder.
    """
    if not any(table.info.builder_name in WITH_NAMES for table in splits.values()):
        return {}
    import datasets

    builder = datasets.load_dataset_builder(str(folder), name=config, cache_dir=str(cache))
    return {str(split): [Path(file) for file in files] for split, files in (builder.config.data_files or {}).items()}


def snapshot_folder(repository: str, commit: str | None) -> Path | None:
    """Where the files of a data set of the hub lie in HuggingFace's cache, if they do."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if commit is None:
        return None
    name = repo_folder_name(repo_id=repository, repo_type="dataset")
    folder = Path(constants.HF_HUB_CACHE, name, "snapshots", commit)
    return folder if folder.is_dir() else None
