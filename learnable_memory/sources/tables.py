"""Tables of images and labels, as the `datasets` library loads them: which columns and which splits mean what."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnable_memory.images import ImageSet, TableImages
from learnable_memory.sources.class_names import names_differ, names_of_file, numbers_by_name
from learnable_memory.sources.found import Found, Request
from learnable_memory.sources.table_paths import without_system_folders
from learnable_memory.wording import some

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

# Where the library keeps its files, below the folder of all data sets. Two places, because without a network it takes
# what it made of a folder for the data set of the hub that has the folder's name.
HUB_CACHE, LOCAL_CACHE = "huggingface", "huggingface-local"
TRAIN, TEST = "train", "test"
STRINGS = ("string", "large_string")
VALIDATION = ("validation", "valid", "val", "dev")  # what the selection split is called, the usual name first


def load_tables(source: str, cache: Path, offline: bool, **which: Any) -> dict[str, Any]:
    """`datasets.load_dataset` without remote code: a memory-mapped `datasets.Dataset` for each split, by name.

    Args:
        source: a name of the hub, a folder, or a kind of files.
        cache: where the library keeps its Arrow files.
        offline: take only what is on this machine.
        which: further arguments, such as `name` (the configuration) and `data_files`.

    Raises:
        UnwritableCache: `cache`, or the hub's own where it is needed, cannot be written to.
        Exception: whatever the library raises; `reason` makes a line of it.
    """
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE  # read from the environment at import; there is no argument for it
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        return dict(
            datasets.load_dataset(source, cache_dir=str(cache), keep_in_memory=False, trust_remote_code=False, **which)
        )
    except Exception as error:
        if not _can_be_written(cache):
            raise UnwritableCache(f"cannot write to {cache}: name another folder with --directory") from error
        if not offline and not _can_be_written(Path(constants.HF_HUB_CACHE)):
            raise UnwritableCache(
                f"cannot write to {constants.HF_HUB_CACHE}: set the environment variable HF_HOME to a folder for what "
                "the hub's library downloads, beside --directory for all else"
            ) from error
        raise
    finally:
        datasets.config.HF_HUB_OFFLINE = before


class UnwritableCache(PermissionError):
    """A folder that the libraries keep files in cannot be written to; most often the home directory."""


def _can_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself where there is none."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def reason(error: Exception) -> str:
    """What went wrong in `load_tables`, in one line."""
    from datasets.exceptions import DatasetGenerationError

    if isinstance(error, DatasetGenerationError) and error.__cause__:  # says nothing but that there was an error
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def read_tables(
    name: str, splits: Mapping[str, Any], request: Request, source: str, root: Path | None = None,
    files: Mapping[str, Sequence[Path]] | None = None,
) -> Found:  # fmt: skip
    """The images, labels and splits of some tables with the same columns.

    One table, whatever its name, is all there is; of several, `train` is trained on, `test` is evaluated on and a
    validation split is for choosing; without a test split it is evaluated on. A test or validation split without
    labels does not count. Classes are those of a ClassLabel column, else the sorted distinct values (strings, or
    integers from 0, with or without gaps) of the training labels.

    Args:
        name: what to call the data set in errors, "hf:NAME".
        splits: `datasets.Dataset` by the name of the split.
        request: for its `image_column` and `label_column`.
        source: as in `Found`.
        root: the folder that it came from, which paths of images are relative to; None: of the hub.
        files: of each split, in the order of its rows, where they name the classes; those of all that do are compared.

    Raises:
        ValueError: no training split, a column that has to be named, labels that are missing or unknown, or files that
            do not have the same classes.
    """
    features = next(iter(splits.values())).features
    image = _image_column(name, features, request.image_column)
    if root is None and getattr(features[image], "dtype", None) in STRINGS:
        raise ValueError(
            f"{name}: the column {image} holds paths of files that are not part of it; download it, and name the folder"
        )
    label = _label_column(name, features, request.label_column)
    if not hasattr(features[label], "names"):  # no ClassLabel: it may be anything
        logger.info("%s: the column %s is taken for the labels", name, label)
    labels = {split: table.data.column(label) for split, table in splits.items()}
    roles = _roles(name, labels)
    classes, class_names = _classes(features[label], labels[roles["train"]])
    described = {
        split: [names_of_file(file, label) for file in (files or {}).get(split, ())] for split in roles.values()
    }
    compared = names_differ(name, class_names, [file for found in described.values() for file in found])
    sets = {}
    for role, split in roles.items():
        what = f"split {split} of {name}"
        numbers = _class_numbers(f"the column {label} of {what}", labels[split], classes)
        if compared:
            numbers = numbers_by_name(what, label, class_names, described[split], numbers)
        sets[role] = ImageSet(TableImages(_undecoded(splits[split], image), image, what, root), numbers)
    return without_system_folders(Found(class_names, sets["train"], source, sets.get("eval"), sets.get("select")))


# -------------------------------------------------------------------------------------------------------------- splits
def _roles(name: str, labels: Mapping[str, "pa.ChunkedArray"]) -> dict[str, str]:
    """Which split is `train`, and which are `eval` and `select`, if there are any."""
    if len(labels) == 1:
        return {"train": next(iter(labels))}
    if TRAIN not in labels:
        raise ValueError(f"{name} has the splits {', '.join(labels)}; with more than one, one has to be called {TRAIN}")
    visible = [split for split in labels if not _missing(labels[split]).all()]
    hidden = [split for split in labels if split not in (TRAIN, *visible)]
    if hidden:
        logger.warning("%s: without labels, so not used: split %s", name, ", ".join(hidden))
    validation = [split for split in VALIDATION if split in visible][:1]
    test = [TEST] if TEST in visible else []
    roles = {"train": TRAIN} | dict(zip(("eval", "select"), test + validation, strict=False))
    ignored = [split for split in visible if split not in (TRAIN, *roles.values())]
    if ignored:
        logger.warning("%s: no use for the split %s", name, ", ".join(ignored))
    return roles


# ------------------------------------------------------------------------------------------------------------- columns
def _image_column(name: str, features: Mapping[str, Any], named: str | None) -> str:
    from datasets import Image

    declared = [column for column, feature in features.items() if isinstance(feature, Image)]
    encoded = [column for column, feature in features.items() if _holds_encoded_images(feature)]
    paths = [column for column, feature in features.items() if getattr(feature, "dtype", None) in STRINGS]
    return _choose(name, features, "image", declared + encoded + paths, declared or encoded, named)


def _holds_encoded_images(feature: Any) -> bool:
    """What an image column looks like in a file whose metadata do not say that it is one."""
    if isinstance(feature, dict):
        return feature.keys() == {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _label_column(name: str, features: Mapping[str, Any], named: str | None) -> str:
    from datasets import ClassLabel, Value

    declared = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    plain = [
        column
        for column, feature in features.items()
        if isinstance(feature, Value) and ("string" in feature.dtype or "int" in feature.dtype)
    ]
    return _choose(name, features, "label", declared + plain, declared or plain, named)


def _choose(
    name: str, features: Mapping[str, Any], kind: str, legal: list[str], likely: list[str], named: str | None
) -> str:
    """The column that was named, if it is legal; else the only likely one."""
    columns = ", ".join(f"{column} ({_type_name(feature)})" for column, feature in features.items())
    if not legal:
        raise ValueError(f"{name} has no column that could be the {kind}s; its columns are {columns}")
    if named is not None and named not in legal:
        raise ValueError(f"{name}: --{kind}_column is {named}; legal: {', '.join(legal)}; the columns are {columns}")
    if named is None and len(likely) != 1:
        raise ValueError(
            f"{name} has {'several columns' if likely else 'columns of text'} that could be the {kind}s; name one of "
            f"{', '.join(likely or legal)} with --{kind}_column NAME; the columns are {columns}"
        )
    return named or likely[0]


def _type_name(feature: Any) -> str:
    from datasets import ClassLabel, Value

    if isinstance(feature, ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    if isinstance(feature, Value):
        return feature.dtype
    return "struct" if isinstance(feature, dict) else type(feature).__name__


def _undecoded(table: Any, column: str) -> Any:
    """The table with an image column that gives bytes and paths; other columns give them anyway."""
    from datasets import Image

    if isinstance(table.features[column], Image):
        return table.cast_column(column, Image(decode=False))
    return table


# -------------------------------------------------------------------------------------------------------------- labels
def _missing(labels: "pa.ChunkedArray") -> np.ndarray:
    """bool [n]: the rows without a label, which the hub marks by -1 or leaves empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_integer(labels.type):
        return pc.fill_null(pc.less(labels, 0), True).to_numpy()
    return pc.is_null(labels).to_numpy()


def _classes(feature: Any, labels: "pa.ChunkedArray") -> tuple["pa.Array", list[str]]:
    """What stands for class 0, 1, .. in the label column, and their names."""
    import pyarrow as pa
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return pa.array(range(feature.num_classes), type=labels.type), list(feature.names)
    values = sorted(labels.drop_null().unique().to_pylist())
    return pa.array(values, type=labels.type), [str(value) for value in values]


def _class_numbers(what: str, labels: "pa.ChunkedArray", classes: "pa.Array") -> np.ndarray:
    """int64 [n], the class of each row."""
    import pyarrow.compute as pc

    missing = _missing(labels)
    if missing.any():
        raise ValueError(
            f"{what} has no label (empty, or below 0) in {missing.sum()} of {len(labels)} rows, "
            f"the first is row {missing.argmax()}; remove them or give them one"
        )
    numbers = pc.index_in(labels, value_set=classes)
    unknown = labels.filter(pc.is_null(numbers)).unique().to_pylist()
    if unknown:
        shown = some(sorted(unknown), 10)
        raise ValueError(f"{what} has labels that are none of the {len(classes)} classes: {shown}")
    return numbers.to_numpy().astype(np.int64)
