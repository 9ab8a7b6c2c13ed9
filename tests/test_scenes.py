"""Places365 and SUN-397 from tiny files in their exact layout."""

from pathlib import Path

import pytest
from torchvision.datasets import SUN397, Places365

from image_trees import labelled, names_of, pack, write_images, write_lines
from learnable_memory.data import load_data_set
from learnable_memory.sources.found import Request
from learnable_memory.sources.scenes import read_places, read_sun

# -------------------------------------------------------------------------------------------------------------- Places
CATEGORIES = ["/a/airfield 0", "/a/apartment_building/outdoor 1", "/z/zen_garden 2"]
PLACES_TRAIN = [
    *(f"/z/zen_garden/{index:08d}.jpg 2" for index in (3, 1, 2)),  # no list is promised to be in order
    *(f"/a/airfield/{index:08d}.jpg 0" for index in (1, 2)),
    *(f"/a/apartment_building/outdoor/{index:08d}.jpg 1" for index in (1, 2)),
]
PLACES_VAL = ["Places365_val_00000002.jpg 0", "Places365_val_00000001.jpg 2"]


def write_places(directory: Path) -> Path:
    root = directory / "datasets"
    write_lines(root / "categories_places365.txt", CATEGORIES)
    write_lines(root / "places365_train_standard.txt", PLACES_TRAIN)
    write_lines(root / "places365_val.txt", PLACES_VAL)
    write_images(root / "data_256_standard", (line.split()[0].lstrip("/") for line in PLACES_TRAIN))
    write_images(root / "val_256", (line.split()[0] for line in PLACES_VAL))
    return root


def test_places(tmp_path: Path) -> None:
    root = write_places(tmp_path)
    found = read_places(Request(tmp_path, download=False))
    assert found.labels == ["airfield", "apartment_building/outdoor", "zen_garden"]
    assert labelled(found.train, root) == [
        ("data_256_standard/a/airfield/00000001.jpg", 0),
        ("data_256_standard/a/airfield/00000002.jpg", 0),
        ("data_256_standard/a/apartment_building/outdoor/00000001.jpg", 1),
        ("data_256_standard/a/apartment_building/outdoor/00000002.jpg", 1),
        ("data_256_standard/z/zen_garden/00000001.jpg", 2),
        ("data_256_standard/z/zen_garden/00000002.jpg", 2),
        ("data_256_standard/z/zen_garden/00000003.jpg", 2),
    ]
    assert labelled(found.eval, root) == [
        ("val_256/Places365_val_00000001.jpg", 2),
        ("val_256/Places365_val_00000002.jpg", 0),
    ]
    assert found.select is None
    assert found.train.image(6).getpixel((0, 0)) <= 1  # 00000003.jpg, the first in the list, is the darkest


def test_places_by_name(tmp_path: Path) -> None:
    write_places(tmp_path)
    places = load_data_set("Places", tmp_path, download=False)
    assert [len(split) for split in (places.train, places.select, places.eval)] == [4, 3, 2]
    assert places.record()["source"] == "Places365-Standard, 256x256"


def test_places_does_not_look_for_1_8_million_images_but_names_the_missing_one(tmp_path: Path) -> None:
    root = write_places(tmp_path)
    (root / "val_256" / "Places365_val_00000002.jpg").unlink()
    evaluation = read_places(Request(tmp_path, download=False)).eval
    with pytest.raises(ValueError, match=r"cannot read the image .*val_256/Places365_val_00000002.jpg .FileNotFound"):
        evaluation.image(1)


def test_places_without_its_files(tmp_path: Path) -> None:
    root = write_places(tmp_path)
    (root / "places365_val.txt").unlink()
    (root / "val_256").rename(root / "val_large")
    with pytest.raises(FileNotFoundError) as caught:
        load_data_set("Places", tmp_path, download=False)
    assert str(caught.value) == (
        f"Places: no places365_val.txt, val_256 in {root}, and downloading is off; put the files there"
    )


def test_places_from_its_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie there as if they had just been downloaded; the large one calls its folder otherwise."""
    root = write_places(tmp_path)
    before = read_places(Request(tmp_path, download=False))
    (list_archive, _), meta = Places365._DEVKIT_META["standard"], dict(Places365._IMAGES_META)
    md5 = pack(root / list_archive, {path.name: path for path in root.glob("*.txt")})
    monkeypatch.setattr(Places365, "_DEVKIT_META", {"standard": (list_archive, md5)})
    for split, inside, folder in (("train-standard", "data_256", "data_256_standard"), ("val", "val_256", "val_256")):
        archive = meta[split, True][0]
        meta[split, True] = (archive, pack(root / archive, {inside: root / folder}))
    monkeypatch.setattr(Places365, "_IMAGES_META", meta)
    after = read_places(Request(tmp_path))
    assert after.labels == before.labels
    assert (after.train.hash, after.eval.hash) == (before.train.hash, before.eval.hash)
    assert after.eval.image(0).size == (4, 4)


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        (
            "places365_val.txt",
            [*PLACES_VAL, "", "Places365_val_00000003.jpg"],
            r"cannot read .*/places365_val.txt .line 4 is 'Places365_val_00000003.jpg'; expected TEXT NUMBER.; delete",
        ),
        ("places365_val.txt", ["a.jpg 0 0"], r"places365_val.txt .line 1 is 'a.jpg 0 0'; expected TEXT NUMBER"),
        ("places365_val.txt", ["a.jpg one"], r"places365_val.txt .line 1 is 'a.jpg one'; expected TEXT NUMBER"),
        ("places365_val.txt", [], r"places365_val.txt lists no images; replace it$"),
        ("places365_val.txt", ["a.jpg 3"], r"places365_val.txt gives val_256/a.jpg the class 3; legal: 0 to 2$"),
        ("places365_val.txt", ["a.jpg -1"], r"places365_val.txt gives val_256/a.jpg the class -1; legal: 0 to 2$"),
        (
            "places365_train_standard.txt",
            [*PLACES_TRAIN, PLACES_TRAIN[3]],
            r"places365_train_standard.txt lists data_256_standard/a/airfield/00000001.jpg twice; remove one of",
        ),
        (
            "categories_places365.txt",
            ["/a/airfield 0", "/z/zen_garden 2"],
            r"categories_places365.txt has class 2 where class 1 should be; its classes go 0, \.\.$",
        ),
        ("categories_places365.txt", [], r"categories_places365.txt lists no classes; replace it$"),
    ],
)
def test_damaged_lists_of_places(tmp_path: Path, file: str, lines: list[str], message: str) -> None:
    write_lines(write_places(tmp_path) / file, lines)
    with pytest.raises(ValueError, match=message) as caught:
        load_data_set("Places", tmp_path, download=False)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- Sun
SUN_FOLDERS = ["a/abbey", "a/apse/indoor", "z/zoo"]


def sun_images(count: int = 10) -> list[str]:
    return [f"{folder}/sun_{index:04d}.jpg" for folder in SUN_FOLDERS for index in range(count)]


def write_sun(directory: Path, partition: bool = False) -> Path:
    root = directory / "datasets" / "SUN397"
    write_images(root, sun_images())
    write_lines(root / "ClassName.txt", [f"/{folder}" for folder in SUN_FOLDERS])
    if partition:  # test images before training images, two and three of each class, in no order
        write_lines(root / "Partitions" / "Testing_01.txt", [f"/{name}" for name in sun_images(2)[::-1]])
        training = sorted(set(sun_images(5)) - set(sun_images(2)), reverse=True)
        write_lines(root / "Partitions" / "Training_01.txt", [f"/{name}" for name in training])
    return root


def test_sun_is_all_images_without_a_split_of_its_own(tmp_path: Path) -> None:
    root = write_sun(tmp_path, partition=True)
    found = read_sun(Request(tmp_path, download=False))
    assert found.labels == ["abbey", "apse/indoor", "zoo"]
    assert labelled(found.train, root) == [(name, row // 10) for row, name in enumerate(sun_images())]
    assert (found.eval, found.select) == (None, None)


def test_sun_holds_out_a_fifth_of_each_class(tmp_path: Path) -> None:
    root = write_sun(tmp_path)
    sun = load_data_set("Sun", tmp_path, download=False)
    assert sorted(sun.eval.labels) == [0, 0, 1, 1, 2, 2]
    assert sorted(names_of(sun.train, root) + names_of(sun.select, root) + names_of(sun.eval, root)) == sun_images()
    assert (sun.source, sun.split) == ("SUN397, a fifth held out", "seeded")


def test_sun_classes_come_as_their_list_has_them(tmp_path: Path) -> None:
    root = write_sun(tmp_path)
    write_lines(root / "ClassName.txt", ["/z/zoo", "/a/abbey", "/a/apse/indoor"])
    found = read_sun(Request(tmp_path, download=False))
    assert found.labels == ["zoo", "abbey", "apse/indoor"]
    assert found.train.labels.tolist() == [1] * 10 + [2] * 10 + [0] * 10
    assert names_of(found.train, root) == sun_images()


def test_official_split_of_sun(tmp_path: Path) -> None:
    root = write_sun(tmp_path, partition=True)
    found = read_sun(Request(tmp_path, download=False, split="official"))
    assert labelled(found.eval, root) == [(name, row // 2) for row, name in enumerate(sun_images(2))]
    training = [f"{folder}/sun_{index:04d}.jpg" for folder in SUN_FOLDERS for index in (2, 3, 4)]
    assert labelled(found.train, root) == [(name, row // 3) for row, name in enumerate(training)]
    sun = load_data_set("Sun", tmp_path, download=False, split="official")
    assert (sun.source, sun.split, sun.eval.hash) == ("SUN397, partition 01", "official", found.eval.hash)


def test_official_split_of_sun_without_its_lists(tmp_path: Path) -> None:
    root = write_sun(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        load_data_set("Sun", tmp_path, download=False, split="official")
    assert str(caught.value) == (
        f"Sun: --split official needs {root / 'Partitions' / 'Training_01.txt'} (from "
        "vision.princeton.edu/projects/2010/SUN/download/Partitions.zip); put it there, or take --split seeded, "
        "which needs no lists"
    )


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (["/a/abbey/sun_0099.jpg"], FileNotFoundError, r"Testing_01.txt lists a/abbey/sun_0099.jpg, which is not in"),
        (["/z/zymurgy/sun_0001.jpg"], FileNotFoundError, r"Testing_01.txt lists z/zymurgy/sun_0001.jpg, which is not"),
        (["/z/zoo/sun_0001.jpg"] * 2, ValueError, r"Testing_01.txt lists z/zoo/sun_0001.jpg twice"),
        (["/z/zoo/sun 1.jpg"], ValueError, r"Testing_01.txt .line 1 is '/z/zoo/sun 1.jpg'; expected TEXT.; delete"),
        ([], ValueError, r"Testing_01.txt lists no images"),
        (
            ["/z/zoo/sun_0001.jpg", "/z/zoo/sun_0004.jpg", "/z/zoo/sun_0003.jpg"],
            ValueError,
            r"z/zoo/sun_0003.jpg is in .*/Training_01.txt and in .*/Testing_01.txt; an image belongs to one split$",
        ),
    ],
)
def test_damaged_lists_of_sun(tmp_path: Path, lines: list[str], error: type[Exception], message: str) -> None:
    write_lines(write_sun(tmp_path, partition=True) / "Partitions" / "Testing_01.txt", lines)
    with pytest.raises(error, match=message) as caught:
        load_data_set("Sun", tmp_path, download=False, split="official")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["/a/abbey", "/m/marsh"], r"SUN397/m/marsh has no images .looked for .avif,"),
        (["/a/abbey", "/a/abbey"], r"abbey/sun_0000.jpg lies in two classes, a/abbey and a/abbey; keep one"),
        (["/a/apse", "/a/apse/indoor"], r"indoor/sun_0000.jpg lies in two classes, a/apse and a/apse/indoor; keep one"),
    ],
)
def test_class_list_of_sun_that_does_not_fit_the_folders(tmp_path: Path, lines: list[str], message: str) -> None:
    write_lines(write_sun(tmp_path) / "ClassName.txt", lines)
    with pytest.raises(ValueError, match=message):
        load_data_set("Sun", tmp_path, download=False)


def test_sun_without_its_class_list(tmp_path: Path) -> None:
    (write_sun(tmp_path) / "ClassName.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"SUN397/ClassName.txt is missing; put it there$"):
        load_data_set("Sun", tmp_path, download=False)


def test_sun_from_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_sun(tmp_path)
    before = read_sun(Request(tmp_path, download=False))
    monkeypatch.setattr(SUN397, "_DATASET_MD5", pack(root.with_name("SUN397.tar.gz"), {"SUN397": root}))
    after = read_sun(Request(tmp_path))
    assert (after.labels, after.train.hash) == (before.labels, before.train.hash)


def test_sun_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Sun: no SUN397/ with ClassName.txt and .*, and downloading is off"):
        load_data_set("Sun", tmp_path, download=False, split="official")
