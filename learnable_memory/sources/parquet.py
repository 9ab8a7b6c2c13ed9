"""Parquet files: small data sets held in memory, read with pyarrow alone, and those of any size, left on disk."""

import glob
import json
import re
from pathlib import Path

import numpy as np

from learnable_memory.images import EncodedImages, ImageSet
from learnable_memory.sources.found import Found, Request, naming
from learnable_memory.sources.tables import LOCAL_CACHE, TEST, TRAIN, VALIDATION, load_tables, read_tables, reason

SPLIT_FILE = re.compile(rf"({'|'.join((TRAIN, *VALIDATION, TEST))})(-.*)?\.parquet")


def read_parquet(folder: Path, pattern: str, image: str, label: str) -> tuple[ImageSet, list[str]]:
    """Parquet files in the hub's layout: `image` is a struct with the file's bytes, `label` a ClassLabel.

    Returns:
        The images (kept encoded in memory) and the class names from the files' own metadata.

    Raises:
        FileNotFoundError: no file fits the pattern.
        ValueError: not parquet, no such columns, no class names, or labels without a name.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no {pattern} in {folder}")
    chunks: list[pa.Array] = []
    labels: list[np.ndarray] = []
    for file in files:
        with naming(file):
            schema = pq.read_schema(file)
            if not {image, label} <= set(schema.names):
                raise ValueError(f"its columns are {', '.join(schema.names)}; expected {image} and {label}")
            names = _class_names(schema.metadata, label)
            # pre_buffer would keep the raw file in memory beside the column: 213 MiB for CIFAR-100 instead of 106.
            table = pq.read_table(file, columns=[image, label], pre_buffer=False)
            chunks += pc.struct_field(table[image], "bytes").chunks
            labels.append(table[label].to_numpy())
            if not np.isin(labels[-1], range(len(names))).all():
                raise ValueError(f"the column {label} has values outside 0..{len(names) - 1}")
    images = EncodedImages(pa.chunked_array(chunks, type=pa.binary()), str(folder / pattern))
    return ImageSet(images, np.concatenate(labels)), names


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str]:
    """The names of a ClassLabel column, which the `datasets` library keeps as JSON beside the schema."""
    features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names")
    if not names:
        raise ValueError(f"its metadata has no class names for the column {label}; save it with the datasets library")
    return names


def read_parquet_path(request: Request) -> Found:
    """A parquet file, or a folder of them: `train.parquet` or `train-*.parquet`, and so for `validation` and `test`.

    The files of a folder may also lie in its `data/`, as in data sets of the hub. A file, and a folder without such
    names, is one split. The images stay on disk, in the Arrow files of the `datasets` library, which are kept in
    `datasets/huggingface-local/`. Columns and classes: see `tables.read_tables`.

    Raises:
        ModuleNotFoundError: the package `datasets` is not installed.
        FileNotFoundError: no such file or folder, or no parquet files in it.
        ValueError: not parquet, damaged, or what `read_tables` raises.
    """
    from datasets.exceptions import DatasetGenerationError

    path = Path(request.argument).expanduser().resolve()
    files = _split_files(path)
    for file in (file for split in files.values() for file in split):
        _check(file)
    # The library takes paths for patterns.
    data_files = {split: [glob.escape(str(file)) for file in files] for split, files in files.items()}
    try:
        splits = load_tables("parquet", request.root / LOCAL_CACHE, offline=True, data_files=data_files)
    except DatasetGenerationError as error:
        raise ValueError(f"cannot read parquet:{path} ({reason(error)}); replace what is damaged") from error
    return read_tables(f"parquet:{path}", splits, request, f"parquet: {path.name}")


def _split_files(path: Path) -> dict[str, list[Path]]:
    """The files of each split."""
    if path.is_file():
        return {TRAIN: [path]}
    found = sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))
    if not found:
        raise FileNotFoundError(f"parquet:{path}: no such file, nor a folder with *.parquet or data/*.parquet in it")
    splits: dict[str, list[Path]] = {}
    for file in found:
        if match := SPLIT_FILE.fullmatch(file.name):
            splits.setdefault(match[1], []).append(file)
    if not splits:
        return {TRAIN: found}
    if others := [file.name for file in found if not SPLIT_FILE.fullmatch(file.name)]:
        raise ValueError(f"parquet:{path} has files of splits, and others: {', '.join(others)}; move them away")
    return splits


def _check(file: Path) -> None:
    """Damaged files are named here: the library that loads them does not say which one it was."""
    import pyarrow.parquet as pq

    with naming(file):
        pq.read_schema(file)
