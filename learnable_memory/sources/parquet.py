"""Parquet files: small data sets held in memory, read with pyarrow alone, and those of any size, left on disk."""

import glob
from pathlib import Path

import numpy as np

from learnable_memory.images import EncodedImages, ImageSet
from learnable_memory.sources.class_names import LabelNames, names_of_file, numbers_by_name
from learnable_memory.sources.folder_levels import EVAL, split_role
from learnable_memory.sources.folder_levels import TRAIN as TRAIN_ROLE
from learnable_memory.sources.found import Found, Request, naming
from learnable_memory.sources.tables import LOCAL_CACHE, TEST, TRAIN, load_tables, read_tables, reason


def read_parquet(
    folder: Path, pattern: str, image: str, label: str, names: list[str] | None = None
) -> tuple[ImageSet, list[str]]:
    """Parquet files in the hub's layout: `image` is a struct with the file's bytes, `label` a ClassLabel.

    Args:
        names: of class 0, 1, ..; those of the first file if left out. Files that have them in another order are read
            by name.

    Returns:
        The images (kept encoded in memory) and the class names.

    Raises:
        FileNotFoundError: no file fits the pattern.
        ValueError: not parquet, no such columns, no class names, other ones than `names`, or labels without a name.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no {pattern} in {folder}")
    chunks: list[pa.Array] = []
    labels: list[np.ndarray] = []
    described: list[LabelNames] = []
    for file in files:
        with naming(file):
            schema = pq.read_schema(file)
            if not {image, label} <= set(schema.names):
                raise ValueError(f"its columns are {', '.join(schema.names)}; expected {image} and {label}")
            described.append(names_of_file(file, label))
            own = described[-1].names
            if not own:
                raise ValueError(
                    f"its metadata has no class names for the column {label}; save it with the datasets library"
                )
            names = names or own
            # pre_buffer would keep the raw file in memory beside the column: 213 MiB for CIFAR-100 instead of 106.
            table = pq.read_table(file, columns=[image, label], pre_buffer=False)
            chunks += pc.struct_field(table[image], "bytes").chunks
            labels.append(table[label].to_numpy())
            if not np.isin(labels[-1], range(len(own))).all():
                raise ValueError(f"the column {label} has values outside 0..{len(own) - 1}")
    assert names is not None  # there is a file
    images = EncodedImages(pa.chunked_array(chunks, type=pa.binary()), str(folder / pattern))
    numbers = numbers_by_name(str(folder / pattern), label, names, described, np.concatenate(labels))
    return ImageSet(images, numbers), names


def read_parquet_path(request: Request) -> Found:
    """A parquet file, or a folder of them: `train.parquet` or `train-*.parquet`, and so for `validation` and `test`.

    Splits may have any of the names that folders of splits may have, in any case.

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
    root = path if path.is_dir() else path.parent
    return read_tables(f"parquet:{path}", splits, request, f"parquet: {path.name}", root, files)


def _split_files(path: Path) -> dict[str, list[Path]]:
    """The files of each split."""
    if path.is_file():
        return {TRAIN: [path]}
    found = sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))
    if not found:
        raise FileNotFoundError(f"parquet:{path}: no such file, nor a folder with *.parquet or data/*.parquet in it")
    splits: dict[str, list[Path]] = {}
    others = []
    for file in found:
        word = file.stem.partition("-")[0].lower()
        role = split_role(word)
        if role is None:
            others.append(file.name)
        else:
            splits.setdefault({TRAIN_ROLE: TRAIN, EVAL: TEST}.get(role, word), []).append(file)
    if not splits:
        return {TRAIN: found}
    if others:
        raise ValueError(f"parquet:{path} has files of splits, and others: {', '.join(others)}; move them away")
    # The library takes the names of columns and classes from the first.
    return dict(sorted(splits.items(), key=lambda split: split[0] != TRAIN))


def _check(file: Path) -> None:
    """Damaged files are named here: the library that loads them does not say which one it was."""
    import pyarrow.parquet as pq

    with naming(file):
        pq.read_schema(file)
