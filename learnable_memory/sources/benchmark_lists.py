"""Splits published as lists beside the images: VTAB-1k, and the fine-grained sets of Visual Prompt Tuning."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from learnable_memory.sources.found import Found, Request, naming
from learnable_memory.sources.listed import label_listed, read_columns, require_images, split_sets
from learnable_memory.wording import unknown_data_set

# The training lists of VTAB-1k do not show every class (SUN-397 has 309 of 397), so that their number has to be known.
VTAB_CLASSES = {
    "caltech101": 102,
    "cifar": 100,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "patch_camelyon": 2,
    "sun397": 397,
    "svhn": 10,
    "resisc45": 45,
    "eurosat": 10,
    "dsprites_loc": 16,
    "dsprites_ori": 16,
    "smallnorb_azi": 18,
    "smallnorb_ele": 9,
    "dmlab": 6,
    "kitti": 4,
    "clevr_count": 8,
    "clevr_dist": 6,
    "diabetic_retinopathy": 5,
}


# ------------------------------------------------------------------------------------------------------------- VTAB-1k
def read_vtab(request: Request) -> Found:
    """One of the 19 tasks of VTAB-1k (Zhai et al., arXiv 1910.04867) in the lists that circulate since NOAH.

    `datasets/vtab-1k/NAME/` holds `train800.txt`, `val200.txt` and `test.txt`: a line is `PATH NUMBER`, such as
    `images/train/000001.jpg 23`, with paths relative to that folder. The 800 images are trained on, the 200 are for
    choosing. The lists have no class names: they are "0", "1", ..

    Raises:
        FileNotFoundError: a list, or an image that it names, is not there; there is no official archive to download.
        ValueError: unknown name, a list that is malformed or empty, an image that is listed twice, or a class that the
            task does not have.
    """
    name = _legal("vtab", request.argument, VTAB_CLASSES)
    root = request.root / "vtab-1k" / name
    files = [root / file for file in ("train800.txt", "val200.txt", "test.txt")]
    _require(f"vtab:{name}", files, "there is no official archive to download; put the lists and images there")
    classes = range(VTAB_CLASSES[name])
    splits = {}
    for file in files:
        names, numbers = read_columns(file, str, int)
        splits[file] = label_listed(file, names, numbers, classes)
    require_images(root, splits)
    train, select, evaluation = split_sets(root, splits)
    return Found([str(number) for number in classes], train, f"VTAB-1k lists: {name}", evaluation, select)


# ---------------------------------------------------------------------------------------------------------------- FGVC
def _after(separator: str) -> Callable[[Path, list[str]], list[str]]:
    """Class names from folders such as `001.Black_footed_Albatross` and `n02085620-Chihuahua`."""
    return lambda root, folders: [folder.partition(separator)[2].replace("_", " ") for folder in folders]


def _nabirds_names(root: Path, folders: list[str]) -> list[str]:
    """`classes.txt` names all nodes of the tree of species, `817 Oak Titmouse`; a folder is a node, `0817`."""
    file = root / "classes.txt"
    with naming(file):
        lines = file.read_text(encoding="utf-8").splitlines()
        names = {int(number): name for number, _, name in (line.partition(" ") for line in lines)}
        return [names[int(folder)] for folder in folders]


@dataclass(frozen=True)
class _Layout:
    """Where a data set lies, and what its classes are called.

    Attributes:
        folder: of the data set and its lists, below the folder of all data sets.
        images: what the paths in the lists are relative to: `folder`, or this one in it.
        class_names: from the path of `folder` and the name of the folder of each class; None: the classes' numbers.
    """

    folder: str
    images: str = ""
    class_names: Callable[[Path, list[str]], list[str]] | None = None


FGVC = {
    "CUB": _Layout("CUB_200_2011", "images/", _after(".")),
    "Flowers": _Layout("flowers-102"),
    "Dogs": _Layout("stanford-dogs", "Images/", _after("-")),
    "Cars": _Layout("stanford-cars"),
    "NABirds": _Layout("nabirds", "images/", _nabirds_names),
}


def read_fgvc(request: Request) -> Found:
    """A fine-grained data set with the splits of Visual Prompt Tuning (Jia et al., arXiv 2203.12119).

    The lists `train.json`, `val.json` and `test.json` (published as `fgvc_split.zip`) are each one object {path of an
    image: number of its class}. They lie in the data set's own folder below `datasets/`:

    | name    | folder          | paths in the lists                              | class names             |
    |---------|-----------------|-------------------------------------------------|-------------------------|
    | CUB     | `CUB_200_2011`  | below `images/`, `001.Black_footed_Albatross/..`| folders, behind the `.` |
    | Flowers | `flowers-102`   | `jpg/image_06734.jpg`                           | numbers                 |
    | Dogs    | `stanford-dogs` | below `Images/`, `n02085620-Chihuahua/..`       | folders, behind the `-` |
    | Cars    | `stanford-cars` | `car_ims/000001.jpg`                            | numbers                 |
    | NABirds | `nabirds`       | below `images/`, `0817/..`                      | `classes.txt`           |

    Classes are the distinct numbers of the training list, in order; they need not begin at 0.

    Raises:
        FileNotFoundError: a list, or an image that it names, is not there.
        ValueError: unknown name, a list that is malformed or empty, an image that is listed twice, a class that is not
            in the training list, or one whose images lie in several folders.
    """
    name = _legal("fgvc", request.argument, FGVC)
    layout = FGVC[name]
    root = request.root / layout.folder
    files = [root / f"{split}.json" for split in ("train", "val", "test")]
    _require(f"fgvc:{name}", files, "put the lists of Visual Prompt Tuning there, and the images")
    lists = {file: _read_json(file) for file in files}
    train_paths, train_numbers = lists[files[0]]
    classes = {number: place for place, number in enumerate(sorted(set(train_numbers)))}
    splits = {}
    for file, (paths, numbers) in lists.items():
        if unknown := set(numbers) - classes.keys():
            raise ValueError(f"{file} has class {min(unknown)}, which {files[0].name} has not; replace one of them")
        indices = [classes[number] for number in numbers]
        splits[file] = label_listed(file, [layout.images + path for path in paths], indices, range(len(classes)))
    require_images(root, splits)
    labels = [str(number) for number in classes]
    if layout.class_names is not None:
        labels = layout.class_names(root, _class_folders(files[0], train_paths, train_numbers))
    train, select, evaluation = split_sets(root, splits)
    return Found(labels, train, f"FGVC lists of VPT: {name}", evaluation, select)


def _read_json(file: Path) -> tuple[list[str], list[int]]:
    """The paths of the images that a list names, and the numbers of their classes."""
    with naming(file):
        items = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=tuple)  # a dict would hide repetitions
        if not isinstance(items, tuple):
            raise ValueError("it is no object {path: number}")
        for path, number in items:
            if not str(number).isdecimal():
                raise ValueError(f"the class of {path} is {number!r}, not a number")
    return [path for path, _ in items], [int(number) for _, number in items]


def _class_folders(file: Path, paths: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """The folder that the images of each class lie in, in the order of the classes."""
    folders: dict[int, str] = {}
    for path, number in zip(paths, numbers, strict=True):
        folder = path.partition("/")[0]
        if folders.setdefault(number, folder) != folder:
            raise ValueError(f"{file} has images of class {number} in {folders[number]} and in {folder}; replace it")
    return [folders[number] for number in sorted(folders)]


# ---------------------------------------------------------------------------------------------------------------- both
def _legal(kind: str, name: str, names: Collection[str]) -> str:
    if name not in names:
        raise unknown_data_set(name, names, f"{kind}:")
    return name


def _require(name: str, files: Sequence[Path], advice: str) -> None:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{name}: no {', '.join(missing)} in {files[0].parent}; {advice}")
