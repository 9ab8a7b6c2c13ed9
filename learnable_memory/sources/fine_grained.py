"""Data sets of kinds that look alike: pets, flowers, birds."""

from pathlib import Path

import numpy as np

from learnable_memory.sources.download import Remote, obtain
from learnable_memory.sources.found import Found, Request, naming
from learnable_memory.sources.listed import check_numbering, label_listed, read_columns, split_sets

# Not torchvision's Flowers102.classes: torchvision 0.19 has none, and a head's label names must not depend on that.
FLOWER_NAMES = Path(__file__).parent.parent / "assets" / "flowers102.txt"
CUB_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
CUB_MD5 = "97eceeb196236b17998738112f37df78"


# ---------------------------------------------------------------------------------------------------------------- Pets
def read_pets(request: Request) -> Found:
    """Oxford-IIIT Pet (37 breeds of cats and dogs): `train` is trainval.txt (3,680), `eval` test.txt (3,669).

    Raises:
        FileNotFoundError: files are missing and were not downloaded.
        ValueError: a damaged list.
    """
    from torchvision.datasets import OxfordIIITPet

    root = request.root / "oxford-iiit-pet"
    parts = ("images", "annotations")
    remotes = [
        Remote(url, md5, (f"oxford-iiit-pet/{part}",), (part,))
        for part, (url, md5) in zip(parts, OxfordIIITPet._RESOURCES, strict=True)
    ]
    obtain("Pets", request, remotes)
    lists = [root / "annotations" / file for file in ("trainval.txt", "test.txt")]
    columns = {path: read_columns(path, str, int, int, int)[:2] for path in lists}
    names = _breeds(lists[0], *columns[lists[0]])
    splits = {
        path: label_listed(path, [f"images/{image}.jpg" for image in images], numbers, range(1, len(names) + 1))
        for path, (images, numbers) in columns.items()
    }
    train, evaluation = split_sets(root, splits)
    return Found(names, train, "oxford-iiit-pet, trainval.txt and test.txt", evaluation)


def _breeds(path: Path, images: list[str], numbers: list[int]) -> list[str]:
    """The names of class 1, 2, .. as the files are called: american_bulldog_100 is an American Bulldog."""
    breeds = sorted({(number, image.rpartition("_")[0]) for number, image in zip(numbers, images, strict=True)})
    check_numbering(path, [number for number, _ in breeds], first=1)
    return [breed.replace("_", " ").title() for _, breed in breeds]


# ------------------------------------------------------------------------------------------------------------- Flowers
def read_flowers(request: Request) -> Found:
    """Oxford 102 Flowers: `train` is trnid (1,020 images), `select` valid (1,020), `eval` tstid (6,149).

    Raises:
        FileNotFoundError: files are missing and were not downloaded.
        ValueError: a damaged .mat file.
    """
    from torchvision.datasets import Flowers102

    root = request.root / "flowers-102"
    url, files = Flowers102._download_url_prefix, Flowers102._file_dict
    archive, md5 = files["image"]
    remotes = [Remote(url + archive, md5, makes=("flowers-102/jpg",), packed=("jpg",))]
    for file, md5 in (files["label"], files["setid"]):
        remotes.append(Remote(url + file, md5, makes=(f"flowers-102/{file}",)))
    obtain("Flowers", request, remotes)
    classes = _matlab_numbers(root / "imagelabels.mat", "labels")
    names = FLOWER_NAMES.read_text(encoding="utf-8").splitlines()
    splits = {}
    for key in ("trnid", "valid", "tstid"):
        source = f"{key} of {root / 'setid.mat'}"
        images = _matlab_numbers(root / "setid.mat", key)
        if not 1 <= min(images) <= max(images) <= len(classes):
            raise ValueError(
                f"{source} goes from image {min(images)} to {max(images)}; legal: 1 to {len(classes)}, for which "
                f"{root / 'imagelabels.mat'} has labels"
            )
        numbers = [classes[image - 1] for image in images]
        paths = [f"jpg/image_{image:05d}.jpg" for image in images]
        splits[source] = label_listed(source, paths, numbers, range(1, len(names) + 1))
    train, select, evaluation = split_sets(root, splits)
    return Found(names, train, "flowers-102, setid.mat", evaluation, select)


def _matlab_numbers(path: Path, key: str) -> list[int]:
    from scipy.io import loadmat

    with naming(path):
        content = loadmat(path)
        if key not in content or not content[key].size:
            raise ValueError(f"it has no numbers called {key}")
        return content[key].ravel().astype(np.int64).tolist()


# ----------------------------------------------------------------------------------------------------------------- CUB
def read_cub(request: Request) -> Found:
    """Caltech-UCSD Birds-200-2011 (200 classes): 5,994 training and 5,794 test images by train_test_split.txt.

    Raises:
        FileNotFoundError: files are missing and were not downloaded.
        ValueError: a damaged list.
    """
    root = request.root / "CUB_200_2011"
    obtain("CUB", request, [Remote(CUB_URL, CUB_MD5, ("CUB_200_2011",), ("CUB_200_2011",))])
    numbers, names = read_columns(root / "classes.txt", int, str)
    classes = check_numbering(root / "classes.txt", numbers, first=1)
    ids, images = read_columns(root / "images.txt", int, str)
    labels = _column_of(ids, root / "image_class_labels.txt")
    flags = root / "train_test_split.txt"
    roles = _column_of(ids, flags)
    if wrong := set(roles) - {0, 1}:
        raise ValueError(f"{flags} gives an image the split {min(wrong)}; legal: 1 (training) and 0 (test)")
    splits = {}
    for role, name in ((1, "training"), (0, "test")):
        source = f"the {name} part of {root / 'images.txt'}"
        rows = [row for row, other in enumerate(roles) if other == role]
        paths = [f"images/{images[row]}" for row in rows]
        splits[source] = label_listed(source, paths, [labels[row] for row in rows], classes)
    train, evaluation = split_sets(root, splits)
    # "001.Black_footed_Albatross" is the Black footed Albatross.
    return Found([name.partition(".")[2].replace("_", " ") for name in names], train, "CUB_200_2011", evaluation)


def _column_of(ids: list[int], path: Path) -> list[int]:
    """The second column of a file with a line for each image of images.txt, in its order."""
    others, column = read_columns(path, int, int)
    if others != ids:
        raise ValueError(f"{path} does not list the images of images.txt in its order; replace both")
    return column
