"""Data sets of scenes: Places365 and SUN-397."""

from learnable_memory.sources.download import Remote, obtain
from learnable_memory.sources.folders import label_folders
from learnable_memory.sources.found import Found, Request
from learnable_memory.sources.image_files import image_set
from learnable_memory.sources.listed import (
    check_numbering,
    label_from_folders,
    label_listed,
    read_columns,
    require_lists,
    split_sets,
)

SUN_PARTITIONS = "vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"


# -------------------------------------------------------------------------------------------------------------- Places
def read_places(request: Request) -> Found:
    """Places365-Standard in small images of 256x256 (365 classes), as torchvision's Places365 lays it out.

    `train` is train-standard (1,803,460 images), `eval` is val (36,500): the labels of test were never published.
    Images are not looked for here: 1.8 million of them take long to find on a network disk.

    Raises:
        FileNotFoundError: files are missing and were not downloaded.
        ValueError: a damaged list.
    """
    root = request.root
    obtain("Places", request, _places_remotes())
    categories = root / "categories_places365.txt"
    names, numbers = read_columns(categories, str, int)
    classes = check_numbering(categories, numbers, first=0)
    splits = {}
    for file, folder in (("places365_train_standard.txt", "data_256_standard"), ("places365_val.txt", "val_256")):
        images, labels = read_columns(root / file, str, int)
        images = [f"{folder}/{image.lstrip('/')}" for image in images]
        splits[root / file] = label_listed(root / file, images, labels, classes)
    train, evaluation = split_sets(root, splits)
    # "/a/airfield" is the class airfield.
    return Found([name[3:] for name in names], train, "Places365-Standard, 256x256", evaluation)


def _places_remotes() -> list[Remote]:
    from torchvision.datasets import Places365

    def remote(file: tuple[str, str], makes: tuple[str, ...], packed: tuple[str, ...]) -> Remote:
        return Remote(Places365._BASE_URL + file[0], file[1], makes, packed)

    lists = ("categories_places365.txt", "places365_train_standard.txt", "places365_val.txt")
    images = Places365._IMAGES_META
    return [
        remote(Places365._DEVKIT_META["standard"], lists, lists),
        remote(images["train-standard", True], ("data_256_standard",), ("data_256",)),
        remote(images["val", True], ("val_256",), ("val_256",)),
    ]


# ----------------------------------------------------------------------------------------------------------------- Sun
def read_sun(request: Request) -> Found:
    """SUN-397 (108,754 images, 397 classes), as torchvision's SUN397 lays it out; classes as in ClassName.txt.

    Seeded split: all images, of which a fifth is to be held out. Official split: the first of the ten published
    partitions, 50 training and 50 test images a class, from SUN397/Partitions/{Training,Testing}_01.txt.

    Raises:
        FileNotFoundError: files are missing and were not downloaded, the lists of the official split are, or an image
            in them is.
        ValueError: a damaged list, or a class without images.
    """
    from torchvision.datasets import SUN397

    root = request.root / "SUN397"
    # Before the lists are looked for: they lie inside the folder that a download makes.
    archive = Remote(SUN397._DATASET_URL, SUN397._DATASET_MD5, makes=("SUN397",), packed=("SUN397",))
    obtain("Sun", request, [archive], expected="SUN397/ with ClassName.txt and a/abbey/, ..")
    (folders,) = read_columns(root / "ClassName.txt", str)  # "/a/abbey": the class abbey, in the folder a/abbey
    classes = [folder[3:] for folder in folders]
    labels = label_folders(root, [folder[1:] for folder in folders])
    if request.split == "seeded":
        return Found(classes, image_set(root, labels), "SUN397, a fifth held out")
    lists = [root / "Partitions" / f"{part}_01.txt" for part in ("Training", "Testing")]
    require_lists("Sun", lists, SUN_PARTITIONS)
    splits = {}
    for path in lists:
        (images,) = read_columns(path, str)
        splits[path] = label_from_folders(path, [image.lstrip("/") for image in images], root, labels)
    train, evaluation = split_sets(root, splits)
    return Found(classes, train, "SUN397, partition 01", evaluation)
