"""Data sets by name, and their splits.

    data = load_data_set("CIFAR100", Path("~"))                     # data.train, data.select, data.eval

A further data set is one reader in `sources/` and one line in `DATA_SETS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from learnable_memory.class_names import in_order_of
from learnable_memory.images import ImageSet, split_off
from learnable_memory.sources.benchmark_lists import read_fgvc, read_vtab
from learnable_memory.sources.fine_grained import read_cub, read_flowers, read_pets
from learnable_memory.sources.folders import read_folder
from learnable_memory.sources.found import CLASS_FOLDERS, SPLITS, Found, Request, absolute
from learnable_memory.sources.hub import full_hub_name, read_hub
from learnable_memory.sources.imagenet import read_imagenet
from learnable_memory.sources.inaturalist import read_inaturalist
from learnable_memory.sources.label_files import full_names
from learnable_memory.sources.parquet import read_parquet_path
from learnable_memory.sources.scenes import read_places, read_sun
from learnable_memory.sources.small import (
    read_cifar10,
    read_cifar100,
    read_digits,
    read_fashion_mnist,
    read_fashion_subset,
    read_mnist,
)
from learnable_memory.wording import unknown_data_set

__all__ = ["DataSet", "ImageSet", "data_set_names", "load_data_set"]

EVAL_FRACTION = 0.2  # of all images, for data sets without an evaluation split
SELECT_FRACTION = 0.1  # of train, for data sets without a selection split of their own
# What to do about too few images, besides adding some.
TO_REPORT_ON = "give the data an evaluation split of its own, such as the folders train/ and test/"
TO_CHOOSE_ON = (
    "give the data a selection split of its own, such as the folder validation/ beside train/ and test/, or cross-"
    "validate with --folds, which holds nothing out to choose on"
)
MOST_NAMES = 100  # of images left out, in a head file; the number is exact always


@dataclass(frozen=True)
class DataSet:
    """A data set in its three roles: `train` on, `select` (choose) on, `eval` (report) on.

    Attributes:
        labels: the name of class 0, 1, ..
        views: which random views it is trained on, one of `transforms.VIEWS`; None: the evaluation view.
        source: what was read.
        split_seed: what `eval` was drawn with, where the data has no split at all.
        select_seed: what `select` was drawn with, where the data has none.
        split: what the reader was asked for.
        image_column: of a table or list, as it was asked for; None: found by its type.
        label_column: the same of the labels.
        class_folders: of folders, as in `sources.found.Request`.
        label_files: of folders, the lists of labels: relative to the folder where they lie in it; None: there are none.
        left_out: what broken images are called that were left out, by role; None: nobody looked.
        unselected: train and select together, where select was drawn from it.
        folds: K, where it is to be cross-validated; None: it is not.
    """

    name: str
    labels: list[str]
    train: ImageSet
    select: ImageSet
    eval: ImageSet
    views: str | None
    source: str
    split_seed: int
    select_seed: int
    split: str = "seeded"
    image_column: str | None = None
    label_column: str | None = None
    class_folders: str | None = None
    label_files: tuple[str, ...] | None = None
    left_out: dict[str, list[str]] | None = None
    unselected: ImageSet | None = field(default=None, repr=False)
    folds: int | None = None

    def with_select_seed(self, seed: int) -> "DataSet":
        """The same data with `select` drawn anew, unless it has one of its own; nothing is read again."""
        if self.unselected is None or self.folds:
            return replace(self, select_seed=seed)
        train, select = split_off(self.unselected, SELECT_FRACTION, seed, TO_CHOOSE_ON)
        return replace(self, train=train, select=select, select_seed=seed)

    def for_folds(self, folds: int) -> "DataSet":
        """The same data to be cross-validated: nothing is held out for `select`, so both are the whole of `train`.

        A selection split that the data has of its own is not touched: it is used for nothing then.
        """
        whole = self.train if self.unselected is None else self.unselected
        return replace(self, train=whole, select=whole, folds=folds)

    def record(self) -> dict[str, Any]:
        """What a head file keeps of it, JSON-able: enough to tell whether two runs saw the same images."""
        splits = {"train": self.train.record(), "select": self.select.record(), "eval": self.eval.record(contents=True)}
        return {
            "name": self.name,
            "source": self.source,
            "split_seed": self.split_seed,
            "select_seed": self.select_seed,
            "split": self.split,
            "image_column": self.image_column,
            "label_column": self.label_column,
            "class_folders": self.class_folders,
            "label_files": self.label_files and list(self.label_files),
            "folds": self.folds,
            "left_out": self.left_out
            and {role: {"images": len(names), "names": names[:MOST_NAMES]} for role, names in self.left_out.items()},
            "splits": splits,
        }


# ------------------------------------------------------------------------------------------------------------ registry
@dataclass(frozen=True)
class _Entry:
    """A data set, or a kind of them named PREFIX:ARGUMENT.

    Attributes:
        read: the reader.
        views: one of `transforms.VIEWS`; None: the evaluation view, no augmentation.
        usage: of a kind: what its argument is, in capitals.
        full_name: of a kind: the argument as the head file keeps it.
        takes: the choices of a request that mean something to it; the split all know.
    """

    read: Callable[[Request], Found]
    views: str | None
    usage: str = ""
    full_name: Callable[[str], str] = str
    takes: tuple[str, ...] = ()


CHOICES = ("split", "image_column", "label_column", "class_folders", "label_files")  # of a request, besides its name
COLUMNS = ("image_column", "label_column")
CROP = "resized_crop_flip"  # the paper's choice for all but CIFAR-100
DATA_SETS = {
    "CIFAR10": _Entry(read_cifar10, "crop_flip"),
    "CIFAR100": _Entry(read_cifar100, "crop_flip"),
    "CIFAR100-new20": _Entry(partial(read_cifar100, classes=range(4, 100, 5)), "crop_flip"),  # not seen by base-tiny
    "CUB": _Entry(read_cub, CROP),
    "Digits": _Entry(read_digits, "shift"),
    "FashionMNIST": _Entry(read_fashion_mnist, "flip"),
    "FashionMNIST-subset": _Entry(read_fashion_subset, "flip"),
    "Flowers": _Entry(read_flowers, CROP),
    "ImageNet": _Entry(read_imagenet, CROP),
    "INaturalist": _Entry(read_inaturalist, CROP),
    "MNIST": _Entry(read_mnist, "shift"),
    "Pets": _Entry(read_pets, CROP),
    "Places": _Entry(read_places, CROP),
    "Sun": _Entry(read_sun, CROP),
}
PREFIXES = {
    "folder": _Entry(read_folder, CROP, "PATH", absolute, (*COLUMNS, "class_folders", "label_files")),
    "hf": _Entry(read_hub, CROP, "NAME[:CONFIG]", full_hub_name, COLUMNS),
    "parquet": _Entry(read_parquet_path, CROP, "PATH", absolute, COLUMNS),
    "vtab": _Entry(read_vtab, None, "NAME"),  # whole images, as its protocol has it: a mirror changes some classes
    "fgvc": _Entry(read_fgvc, CROP, "NAME"),
}


def data_set_names() -> list[str]:
    """The names that `load_data_set` knows; it takes `folder:PATH` and the other `PREFIXES` besides."""
    return list(DATA_SETS)


def load_data_set(
    name: str, directory: Path, split_seed: int = 0, download: bool = True, select_seed: int | None = None, *,
    split: str = "seeded", image_column: str | None = None, label_column: str | None = None,
    class_folders: str | None = None, label_files: Sequence[str] | None = None, folds: int | None = None,
    labels: Sequence[str] | None = None,
) -> DataSet:  # fmt: skip
    """A data set by name, with its three splits.

    Args:
        name: one of `data_set_names()`; `folder:PATH`, a folder with one folder of images for each class;
            `hf:NAME[:CONFIG]`, of the hub or a folder that the datasets library reads; `parquet:PATH`; `vtab:NAME` and
            `fgvc:NAME`, the lists of VTAB-1k and of Visual Prompt Tuning.
        directory: the folder that holds `datasets/`; not used by Digits and `folder:PATH`.
        split_seed: 0 to 2**32 - 1; draws the splits that the data set does not have.
        download: whether missing files may be fetched into `directory`.
        select_seed: draws `select`, a stratified tenth of train, instead of `split_seed`.
        split, image_column, label_column, class_folders, label_files: as in `sources.found.Request`.
        folds: K, where it is to be cross-validated: `DataSet.for_folds`, without holding out anything before.
        labels: what a head calls class 0, 1, ..: data with these classes in another order get these numbers.

    Raises:
        ValueError: unknown name, damaged files, a split seed out of range, an official split where there is none, too
            few images to hold some out, or choices that mean nothing to such data.
        FileNotFoundError: the files are not there and were not downloaded.
    """
    choices = {"split": (split, SPLITS), "class_folders": (class_folders, (None, *CLASS_FOLDERS))}
    for what, (value, legal) in choices.items():
        if value not in legal:
            raise ValueError(f"{what} is {value!r}; legal: {', '.join(map(str, legal))}")
    entry, argument, name = _entry(name)
    _check_choices(name, entry, image_column, label_column, class_folders, label_files)
    label_files = full_names(argument, label_files) if label_files else None
    directory = Path(directory).expanduser()
    asked = Request(
        directory, argument, download, split, image_column, label_column, class_folders, label_files or ()
    )  # fmt: skip
    found = in_order_of(entry.read(asked), labels, name)
    train, evaluation, select = found.train, found.eval, found.select
    if evaluation is None and split == "official":
        raise ValueError(f"{name} has no official split; take --split seeded")
    if evaluation is None:
        train, evaluation = split_off(train, EVAL_FRACTION, split_seed, TO_REPORT_ON)
    data = DataSet(
        name, found.labels, train, train if select is None else select, evaluation, entry.views, found.source,
        split_seed, split_seed, split, image_column, label_column, class_folders, label_files,
        unselected=train if select is None else None,
    )  # fmt: skip
    data = data.for_folds(folds) if folds else data
    return data.with_select_seed(split_seed if select_seed is None else select_seed)


def _check_choices(
    name: str, entry: _Entry, image_column: str | None, label_column: str | None, class_folders: str | None,
    label_files: Sequence[str] | None,
) -> None:  # fmt: skip
    """Raise ValueError for a choice that would mean nothing, and pass unnoticed."""
    is_table = "image_column" in entry.takes and ("label_files" not in entry.takes or label_files)
    if (image_column or label_column) and not is_table:
        raise ValueError(f"{name} is no table: leave --image_column and --label_column out")
    if (class_folders or label_files) and "class_folders" not in entry.takes:
        raise ValueError(f"{name} is no folder of images: leave --class_folders and --labels out")
    if class_folders and label_files:
        raise ValueError("--labels says which class an image is of, and --class_folders that its folder does: give one")


def _entry(name: str) -> tuple[_Entry, str, str]:
    """The entry that a name means, its argument, and the name in full."""
    prefix, colon, argument = name.partition(":")
    if colon and prefix in PREFIXES:
        if not argument:
            raise ValueError(f"{prefix}: needs a name behind it, as in {prefix}:{PREFIXES[prefix].usage}")
        return PREFIXES[prefix], argument, f"{prefix}:{PREFIXES[prefix].full_name(argument)}"
    if name in DATA_SETS:
        return DATA_SETS[name], "", name
    legal = [*DATA_SETS, *(f"{prefix}:{entry.usage}" for prefix, entry in PREFIXES.items())]
    path = Path(name).expanduser()
    if name.lower() not in map(str.lower, legal) and (path.is_dir() or (path.suffix == ".parquet" and path.is_file())):
        kind = "parquet" if path.is_file() or any(path.glob("*.parquet")) else "folder"
        raise ValueError(f"unknown data set {name!r}, but there is such a path here: for that write {kind}:{name}")
    raise unknown_data_set(name, legal)
