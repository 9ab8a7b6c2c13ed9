"""iNaturalist 2017: species in natural surroundings, a few of them often and most of them rarely."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from learnable_memory.sources.download import Remote, obtain
from learnable_memory.sources.folders import label_folders
from learnable_memory.sources.found import Found, Request, naming
from learnable_memory.sources.image_files import image_set, subfolders
from learnable_memory.sources.listed import label_from_folders, require_lists, split_sets

ANNOTATIONS = "ml-inat-competition-datasets.s3.amazonaws.com/2017/train_val2017.zip"


def read_inaturalist(request: Request) -> Found:
    """iNaturalist 2017 (675,170 images, 5,089 classes), in 2017/SUPER/SPECIES/ as torchvision's INaturalist has it.

    Class k is the k-th "SUPER/SPECIES" in code-point order. Seeded split: all images, of which a fifth is to be held
    out. Official split: train2017.json (579,184 images) and val2017.json (95,986), beside 2017/.

    Raises:
        FileNotFoundError: files are missing and were not downloaded, the lists of the official split are, or an image
            in them is.
        ValueError: a damaged list, no species, or a species without images.
    """
    from torchvision.datasets.inaturalist import DATASET_MD5, DATASET_URLS

    lists = [request.root / file for file in ("train2017.json", "val2017.json")]
    if request.split == "official":  # before the 186 GB of images
        require_lists("INaturalist", lists, ANNOTATIONS)
    root = request.root / "2017"
    images = Remote(DATASET_URLS["2017"], DATASET_MD5["2017"], makes=("2017",), packed=("train_val_images",))
    obtain("INaturalist", request, [images], expected="2017/SUPER/SPECIES/")
    classes = sorted(f"{group}/{species}" for group in subfolders(root) for species in subfolders(root / group))
    if not classes:
        raise ValueError(f"{root} has no folders SUPER/SPECIES/; delete it to download it again, or put them there")
    labels = label_folders(root, classes)
    if request.split == "seeded":
        return Found(_names(classes), image_set(root, labels), "iNaturalist 2017, a fifth held out")
    splits = {path: label_from_folders(path, _read_list(path), root, labels) for path in lists}
    train, evaluation = split_sets(root, splits)
    return Found(_names(classes), train, "iNaturalist 2017, train2017.json and val2017.json", evaluation)


def _names(classes: Sequence[str]) -> list[str]:
    """SPECIES, or SUPER/SPECIES where a plant and an animal share their name."""
    species = [name.partition("/")[2] for name in classes]
    count = Counter(species)
    return [short if count[short] == 1 else full for short, full in zip(species, classes, strict=True)]


def _read_list(path: Path) -> list[str]:
    """SUPER/SPECIES/FILE of each image; the list, in COCO's format, has train_val_images/ before it."""
    with naming(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            names = [image["file_name"] for image in content["images"]]
        except (KeyError, TypeError):
            raise ValueError("it has no list `images` of objects with a `file_name`") from None
        return [name.removeprefix("train_val_images/") for name in names]
