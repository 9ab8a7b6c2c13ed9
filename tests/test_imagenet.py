"""ImageNet from a tree of class folders, or from the hub."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from image_trees import labelled, write_images
from learnable_memory.data import load_data_set
from learnable_memory.images import ArrayImages, ImageSet
from learnable_memory.sources.found import Found, Request
from learnable_memory.sources.imagenet import read_imagenet

WNIDS = ["n01440764", "n01443537", "n15075141"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "datasets" / "imagenet"
    write_images(root / "train", [f"{wnid}/{wnid}_{index}.JPEG" for wnid in WNIDS for index in (10, 9)])
    write_images(root / "val", [f"{wnid}/ILSVRC2012_val_0000000{row}.JPEG" for row, wnid in enumerate(WNIDS)])
    return root


def test_tree(tree: Path) -> None:
    found = read_imagenet(Request(tree.parent.parent, download=False))
    assert found.labels == WNIDS  # three of the thousand: nobody knows which are meant
    assert labelled(found.train, tree) == [
        (f"train/{wnid}/{wnid}_{index}.JPEG", label) for label, wnid in enumerate(WNIDS) for index in (10, 9)
    ]
    assert labelled(found.eval, tree) == [
        (f"val/{wnid}/ILSVRC2012_val_0000000{label}.JPEG", label) for label, wnid in enumerate(WNIDS)
    ]
    assert abs(found.eval.image(2).getpixel((0, 0)) - 2) <= 1


def test_tree_by_name(tree: Path) -> None:
    found = load_data_set("ImageNet", tree.parent.parent, download=False)
    assert [len(split) for split in (found.train, found.select, found.eval)] == [3, 3, 3]
    assert found.source == "imagenet/train and imagenet/val"


def write_thousand(root: Path, wnids: list[str]) -> None:
    for split in ("train", "val"):
        for wnid in wnids:
            (root / split / wnid).mkdir(parents=True)
            (root / split / wnid / "1.JPEG").touch()


def test_all_thousand_classes_have_their_names(tmp_path: Path) -> None:
    """n01440764 is the first and n15075141 the last of the real ones; what lies between does not matter here."""
    write_thousand(tmp_path / "datasets" / "imagenet", [f"n{number:08d}" for number in range(1440764, 1441764)])
    labels = read_imagenet(Request(tmp_path, download=False)).labels
    assert (labels[0], labels[1], labels[999]) == ("tench", "goldfish", "toilet tissue")
    assert len(labels) == 1000


def test_a_thousand_other_folders_keep_their_names(tmp_path: Path) -> None:
    write_thousand(
        tmp_path / "datasets" / "imagenet", names := [*(f"class{number:03d}" for number in range(999)), WNIDS[0]]
    )
    assert read_imagenet(Request(tmp_path, download=False)).labels == names


def test_validation_images_that_were_not_sorted_into_classes(tree: Path) -> None:
    for folder in (tree / "val").iterdir():
        for image in folder.iterdir():
            image.rename(tree / "val" / image.name)
        folder.rmdir()
    with pytest.raises(ValueError, match=r"imagenet/val has no class folders; it should hold one folder of images for"):
        load_data_set("ImageNet", tree.parent.parent, download=False)


def test_class_that_only_train_has(tree: Path) -> None:
    write_images(tree / "train", ["n02084071/1.JPEG"])
    with pytest.raises(ValueError, match=r"the classes in .*imagenet/val and .*imagenet/train differ: n02084071$"):
        load_data_set("ImageNet", tree.parent.parent, download=False)


# ------------------------------------------------------------------------------------------------------------- the hub
def test_without_a_tree_it_is_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def read_hub(request: Request) -> Found:
        requests.append(request)
        images = ImageSet(ArrayImages(np.zeros((4, 2, 2), np.uint8), "hub"), np.array([0, 0, 1, 1]))
        return Found(["tench", "goldfish"], images, "hub", images)

    monkeypatch.setitem(sys.modules, "learnable_memory.sources.hub", SimpleNamespace(read_hub=read_hub))
    assert load_data_set("ImageNet", tmp_path, download=False).labels == ["tench", "goldfish"]
    assert requests == [Request(tmp_path, argument="ILSVRC/imagenet-1k", download=False)]
    assert isinstance(load_data_set("ImageNet", tmp_path).eval.image(0), Image.Image)


def test_neither_a_tree_nor_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_hub(request: Request) -> Found:
        raise FileNotFoundError(f"hf:{request.argument} is gated; log in")

    monkeypatch.setitem(sys.modules, "learnable_memory.sources.hub", SimpleNamespace(read_hub=read_hub))
    with pytest.raises(FileNotFoundError) as caught:
        load_data_set("ImageNet", tmp_path)
    assert str(caught.value) == (
        f"ImageNet: no imagenet/train/WNID/ in {tmp_path / 'datasets'}, and hf:ILSVRC/imagenet-1k is gated; log in"
    )
