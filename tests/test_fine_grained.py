"""Oxford-IIIT Pet, Oxford 102 Flowers and CUB-200-2011 from tiny files in their exact layout."""

from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import Flowers102, OxfordIIITPet

from image_trees import labelled, pack, write_images, write_lines
from learnable_memory.data import DataSet, load_data_set
from learnable_memory.sources import fine_grained
from learnable_memory.sources.fine_grained import FLOWER_NAMES, read_cub, read_flowers, read_pets
from learnable_memory.sources.found import Found, Request


def load(name: str, root: Path) -> DataSet:
    """`root` is DIR/datasets/FOLDER."""
    return load_data_set(name, root.parent.parent, download=False)


# ---------------------------------------------------------------------------------------------------------------- Pets
PETS_TRAINVAL = ["Abyssinian_10 1 1 1", "Abyssinian_9 1 1 1", "american_bulldog_1 2 2 1", "american_bulldog_2 2 2 1"]
PETS_TEST = ["american_bulldog_3 2 2 1", "Abyssinian_2 1 1 1"]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "datasets" / "oxford-iiit-pet"
    write_lines(root / "annotations" / "trainval.txt", PETS_TRAINVAL)
    write_lines(root / "annotations" / "test.txt", PETS_TEST)
    write_images(root / "images", (f"{line.split()[0]}.jpg" for line in PETS_TRAINVAL + PETS_TEST))
    return root


def test_pets(pets: Path) -> None:
    found = read_pets(Request(pets.parent.parent, download=False))
    assert found.labels == ["Abyssinian", "American Bulldog"]
    assert labelled(found.train, pets) == [
        ("images/Abyssinian_10.jpg", 0),
        ("images/Abyssinian_9.jpg", 0),
        ("images/american_bulldog_1.jpg", 1),
        ("images/american_bulldog_2.jpg", 1),
    ]
    assert labelled(found.eval, pets) == [("images/Abyssinian_2.jpg", 0), ("images/american_bulldog_3.jpg", 1)]
    assert found.select is None
    assert [abs(found.train.image(row).getpixel((0, 0)) - row) <= 1 for row in range(4)] == [True] * 4


def test_pets_by_name(pets: Path) -> None:
    found = load("Pets", pets)
    assert [len(split) for split in (found.train, found.select, found.eval)] == [2, 2, 2]
    assert found.source == "oxford-iiit-pet, trainval.txt and test.txt"


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        (
            "test.txt",
            ["Abyssinian_2 1"],
            r"cannot read .*test.txt .line 1 is 'Abyssinian_2 1'; expected TEXT NUMBER",
        ),
        ("test.txt", ["Abyssinian_2 3 1 1"], r"test.txt gives images/Abyssinian_2.jpg the class 3; legal: 1 to 2$"),
        ("test.txt", [PETS_TEST[0]] * 2, r"test.txt lists images/american_bulldog_3.jpg twice"),
        ("test.txt", [PETS_TRAINVAL[1]], r"images/Abyssinian_9.jpg is in .*trainval.txt and in .*test.txt; an image"),
        ("test.txt", [], r"test.txt lists no images"),
        ("trainval.txt", [], r"trainval.txt lists no classes"),
        ("trainval.txt", ["Abyssinian_1 2 1 1"], r"trainval.txt has class 2 where class 1 should be"),
        ("trainval.txt", ["Abyssinian_1 1 1 1", "beagle_1 1 1 1"], r"trainval.txt has class 1 where class 2 should be"),
    ],
)
def test_damaged_lists_of_pets(pets: Path, file: str, lines: list[str], message: str) -> None:
    write_lines(pets / "annotations" / file, lines)
    with pytest.raises(ValueError, match=message) as caught:
        load("Pets", pets)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- Flowers
FLOWER_CLASSES = [5, 1, 102, 1, 5, 102] + [7] * 294  # of image 1, 2, .., 300
FLOWER_SPLITS = {"trnid": [6, 2], "valid": [4, 1], "tstid": [300, 3, 5]}


def write_matlab(path: Path, **numbers: list[int]) -> None:
    """Matrices of one row, and of the small integers that MATLAB chose, as in the real files."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {name: np.array([row], dtype=np.uint16) for name, row in numbers.items()})


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    root = tmp_path / "datasets" / "flowers-102"
    write_matlab(root / "imagelabels.mat", labels=FLOWER_CLASSES)
    write_matlab(root / "setid.mat", **FLOWER_SPLITS)
    write_images(root / "jpg", (f"image_{image:05d}.jpg" for image in (1, 2, 3, 4, 5, 6, 300)))
    return root


def test_flowers(flowers: Path) -> None:
    found = load("Flowers", flowers)
    assert labelled(found.train, flowers) == [("jpg/image_00002.jpg", 0), ("jpg/image_00006.jpg", 101)]
    assert labelled(found.select, flowers) == [("jpg/image_00001.jpg", 4), ("jpg/image_00004.jpg", 0)]
    assert labelled(found.eval, flowers) == [
        ("jpg/image_00003.jpg", 101),
        ("jpg/image_00005.jpg", 4),
        ("jpg/image_00300.jpg", 6),
    ]
    assert abs(found.eval.image(1).getpixel((0, 0)) - 4) <= 1
    assert len(found.labels) == 102
    assert (found.labels[0], found.labels[101]) == ("pink primrose", "blackberry lily")


@pytest.mark.skipif(not hasattr(Flowers102, "classes"), reason="this torchvision has no names")
def test_names_of_flowers_are_those_of_torchvision() -> None:
    assert FLOWER_NAMES.read_text(encoding="utf-8").splitlines() == Flowers102.classes


@pytest.mark.parametrize(
    ("file", "numbers", "message"),
    [
        (
            "setid.mat",
            {"trnid": [301]},
            r"trnid of .* goes from image 301 to 301; legal: 1 to 300, for which .*labels.mat",
        ),
        ("setid.mat", {"tstid": [0, 3]}, r"tstid of .*setid.mat goes from image 0 to 3; legal: 1 to 300"),
        ("setid.mat", {"valid": [1, 1]}, r"valid of .*setid.mat lists jpg/image_00001.jpg twice"),
        ("setid.mat", {"valid": [3]}, r"jpg/image_00003.jpg is in valid of .*setid.mat and in tstid of .*setid.mat;"),
        ("setid.mat", {"valid": []}, r"cannot read .*setid.mat .it has no numbers called valid.; delete it or replace"),
        (
            "imagelabels.mat",
            {"labels": [103] * 300},
            r"gives jpg/image_00006.jpg the class 103; legal: 1 to 102",
        ),
        ("imagelabels.mat", {"label": [1]}, r"cannot read .*imagelabels.mat .it has no numbers called labels.; delete"),
    ],
)
def test_damaged_numbers_of_flowers(flowers: Path, file: str, numbers: dict[str, list[int]], message: str) -> None:
    write_matlab(flowers / file, **((FLOWER_SPLITS if file == "setid.mat" else {}) | numbers))
    with pytest.raises(ValueError, match=message) as caught:
        load("Flowers", flowers)
    assert "\n" not in str(caught.value)


def test_half_a_matlab_file(flowers: Path) -> None:
    (flowers / "setid.mat").write_bytes((flowers / "setid.mat").read_bytes()[:150])
    with pytest.raises(ValueError, match=r"cannot read .*setid.mat .*; delete it or replace it"):
        load("Flowers", flowers)


# ----------------------------------------------------------------------------------------------------------------- CUB
BIRDS = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
CUB_IMAGES = [f"{bird}/{bird[4:]}_{index:04d}_{row}.jpg" for row, bird in enumerate(BIRDS) for index in (46, 9, 2)]
CUB = {
    "classes.txt": [f"{number} {bird}" for number, bird in enumerate(BIRDS, 1)],
    "images.txt": [f"{number} {image}" for number, image in enumerate(CUB_IMAGES, 1)],
    "image_class_labels.txt": ["1 1", "2 1", "3 1", "4 2", "5 2", "6 2"],
    "train_test_split.txt": ["1 0", "2 1", "3 1", "4 1", "5 0", "6 1"],
}


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    root = tmp_path / "datasets" / "CUB_200_2011"
    write_images(root / "images", CUB_IMAGES)
    for file, lines in CUB.items():
        write_lines(root / file, lines)
    return root


def test_cub(cub: Path) -> None:
    found = read_cub(Request(cub.parent.parent, download=False))
    assert found.labels == ["Black footed Albatross", "Laysan Albatross"]
    albatross, laysan = (f"images/{bird}/{bird[4:]}" for bird in BIRDS)
    assert labelled(found.train, cub) == [
        (f"{albatross}_0002_0.jpg", 0),
        (f"{albatross}_0009_0.jpg", 0),
        (f"{laysan}_0002_1.jpg", 1),
        (f"{laysan}_0046_1.jpg", 1),
    ]
    assert labelled(found.eval, cub) == [(f"{albatross}_0046_0.jpg", 0), (f"{laysan}_0009_1.jpg", 1)]
    assert abs(found.eval.image(1).getpixel((0, 0)) - 4) <= 1


def test_cub_by_name(cub: Path) -> None:
    found = load("CUB", cub)
    assert [len(split) for split in (found.train, found.select, found.eval)] == [2, 2, 2]
    assert found.source == "CUB_200_2011"


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("images.txt", ["1 a b"], r"cannot read .*images.txt .line 1 is '1 a b'; expected NUMBER TEXT.; delete"),
        ("images.txt", CUB["images.txt"][:5], r"image_class_labels.txt does not list the images of images.txt in its"),
        ("image_class_labels.txt", CUB["image_class_labels.txt"][::-1], r"image_class_labels.txt does not list the im"),
        ("train_test_split.txt", CUB["train_test_split.txt"][:5], r"train_test_split.txt does not list the images of"),
        (
            "train_test_split.txt",
            [*CUB["train_test_split.txt"][:5], "6 2"],
            r"gives an image the split 2; legal: 1",
        ),
        ("train_test_split.txt", [f"{id} 1" for id in range(1, 7)], r"the test part of .*images.txt lists no images"),
        (
            "image_class_labels.txt",
            ["1 1", "2 3", "3 1", "4 2", "5 2", "6 2"],
            r"the class 3; legal: 1 to 2$",
        ),
        ("classes.txt", ["1 001.A", "3 003.C"], r"classes.txt has class 3 where class 2 should be"),
        ("classes.txt", [], r"classes.txt lists no classes"),
        (
            "images.txt",
            [*CUB["images.txt"][:4], f"5 {CUB_IMAGES[0]}", CUB["images.txt"][5]],
            r"the test part of .*images.txt lists images/001.Black_footed_Albatross/.*_0046_0.jpg twice",
        ),
        (
            "images.txt",
            [*CUB["images.txt"][:5], f"6 {CUB_IMAGES[0]}"],
            r"_0046_0.jpg is in the training part of .*images.txt and in the test part of .*images.txt; an image",
        ),
    ],
)
def test_damaged_lists_of_cub(cub: Path, file: str, lines: list[str], message: str) -> None:
    write_lines(cub / file, lines)
    with pytest.raises(ValueError, match=message) as caught:
        load("CUB", cub)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- archives and missing files
def check_same(before: Found, after: Found) -> None:
    assert after.labels == before.labels
    assert (after.train.hash, after.eval.hash) == (before.train.hash, before.eval.hash)
    assert after.eval.image(0).size == (4, 4)


def test_pets_from_their_archives(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_pets(Request(pets.parent.parent, download=False))
    resources = [
        (url, pack(pets / f"{part}.tar.gz", {part: pets / part}))
        for part, (url, _) in zip(("images", "annotations"), OxfordIIITPet._RESOURCES, strict=True)
    ]
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)
    check_same(before, read_pets(Request(pets.parent.parent)))


def test_flowers_from_their_archive(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_flowers(Request(flowers.parent.parent, download=False))
    archive = Flowers102._file_dict["image"][0]
    md5 = pack(flowers / archive, {"jpg": flowers / "jpg"})
    monkeypatch.setitem(Flowers102._file_dict, "image", (archive, md5))
    check_same(before, read_flowers(Request(flowers.parent.parent)))


def test_cub_from_its_archive(cub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive has a file beside the folder."""
    before = read_cub(Request(cub.parent.parent, download=False))
    (cub.parent / "attributes.txt").touch()
    members = {"attributes.txt": cub.parent / "attributes.txt", "CUB_200_2011": cub}
    monkeypatch.setattr(fine_grained, "CUB_MD5", pack(cub.with_name("CUB_200_2011.tgz"), members))
    check_same(before, read_cub(Request(cub.parent.parent)))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("Pets", "oxford-iiit-pet/images, oxford-iiit-pet/annotations"),
        ("Flowers", "flowers-102/jpg, flowers-102/imagelabels.mat, flowers-102/setid.mat"),
        ("CUB", "CUB_200_2011"),
    ],
)
def test_without_its_files(tmp_path: Path, name: str, missing: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_data_set(name, tmp_path, download=False)
    root = tmp_path / "datasets"
    assert str(caught.value) == f"{name}: no {missing} in {root}, and downloading is off; put the files there"


def test_image_that_is_listed_but_not_there(cub: Path) -> None:
    (cub / "images" / CUB_IMAGES[0]).unlink()
    with pytest.raises(ValueError, match=r"cannot read the image .*Albatross_0046_0.jpg .FileNotFoundError"):
        load("CUB", cub).eval.image(0)
