"""ImageNet-1k: a tree of class folders, or the hub's copy."""

import re
from dataclasses import replace

from learnable_memory.sources.folders import read_class_folders
from learnable_memory.sources.found import Found, Request
from learnable_memory.sources.image_files import subfolders

HUB_NAME = "ILSVRC/imagenet-1k"


def read_imagenet(request: Request) -> Found:
    """ImageNet-1k from imagenet/train/WNID/ and imagenet/val/WNID/, or from the hub where there is no such tree.

    Classes are the WordNet ids in order, which is the order everywhere; `eval` is val.

    Raises:
        FileNotFoundError: neither a tree nor the hub's copy.
        ValueError: a tree without val/, a class without images, or classes that differ.
    """
    root = request.root / "imagenet"
    if not subfolders(root / "train"):
        return _from_hub(request)
    (train, evaluation), wnids = read_class_folders(root, ["train", "val"])
    return Found(_class_names(wnids), train, "imagenet/train and imagenet/val", evaluation)


def _from_hub(request: Request) -> Found:
    from learnable_memory.sources.hub import read_hub

    try:
        return read_hub(replace(request, argument=HUB_NAME))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"ImageNet: no imagenet/train/WNID/ in {request.root}, and {error}") from error


def _class_names(wnids: list[str]) -> list[str]:
    """The names in English if these are all thousand classes, which torchvision's models name in the same order."""
    if len(wnids) != 1000 or not all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids):
        return wnids
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
