"""Splits published as lists: VTAB-1k, and the fine-grained sets of Visual Prompt Tuning."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from learnable_memory import data as data_module
from learnable_memory.data import load_data_set
from learnable_memory.images import ImageSet
from learnable_memory.sources.benchmark_lists import read_fgvc, read_vtab
from learnable_memory.sources.found import Found, Request

KITTI = {  # 4 classes; train800.txt does not show class 2
    "train800.txt": {"images/train/000001.jpg": 3, "images/train/000000.jpg": 0, "images/train/000010.jpg": 1},
    "val200.txt": {"images/val/000001.jpg": 0, "images/val/000000.jpg": 3},
    "test.txt": {"images/test/000000.jpg": 2, "images/test/000001.jpg": 0},
}
CUB = {  # paths below images/; numbers from 1, with a gap
    "train": {
        "003.Sooty_Albatross/Sooty_0001.jpg": 3,
        "001.Black_footed_Albatross/Black_0002.jpg": 1,
        "001.Black_footed_Albatross/Black_0001.jpg": 1,
    },
    "val": {"001.Black_footed_Albatross/Black_0003.jpg": 1},
    "test": {"003.Sooty_Albatross/Sooty_0009.jpg": 3, "001.Black_footed_Albatross/Black_0004.jpg": 1},
}


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)


def write_vtab(directory: Path, name: str = "kitti", lists: Mapping[str, Mapping[str, int]] = KITTI) -> Path:
    folder = directory / "datasets" / "vtab-1k" / name
    for file, classes in lists.items():
        for path in classes:
            write_image(folder / path)
        (folder / file).write_text("".join(f"{path} {number}\n" for path, number in classes.items()), encoding="utf-8")
    return folder


def write_fgvc(
    directory: Path, folder: str = "CUB_200_2011", images: str = "images", lists: Mapping[str, Mapping] = CUB
) -> Path:
    root = directory / "datasets" / folder
    for split, classes in lists.items():
        for path in classes:
            write_image(root / images / path)
        (root / f"{split}.json").write_text(json.dumps(classes), encoding="utf-8")
    return root


def listed(images: ImageSet) -> list[tuple[str, int]]:
    return [(images.images.identity(row), label) for row, label in enumerate(images.labels.tolist())]


def vtab(directory: Path, name: str = "kitti") -> Found:
    return read_vtab(Request(directory, name))


def fgvc(directory: Path, name: str = "CUB") -> Found:
    return read_fgvc(Request(directory, name))


# ------------------------------------------------------------------------------------------------------------- VTAB-1k
def test_vtab(tmp_path: Path) -> None:
    write_vtab(tmp_path)
    found = vtab(tmp_path)
    assert found.labels == ["0", "1", "2", "3"]  # of the task, not of the training list
    assert listed(found.train) == [
        ("images/train/000000.jpg", 0),
        ("images/train/000001.jpg", 3),
        ("images/train/000010.jpg", 1),
    ]
    assert listed(found.select) == [("images/val/000000.jpg", 3), ("images/val/000001.jpg", 0)]
    assert listed(found.eval) == [("images/test/000000.jpg", 2), ("images/test/000001.jpg", 0)]
    assert found.train.image(2).size == (2, 2)
    assert found.source == "VTAB-1k lists: kitti"


def test_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix, reader in (("vtab", read_vtab), ("fgvc", read_fgvc)):
        monkeypatch.setitem(data_module.PREFIXES, prefix, data_module._Entry(reader, "resized_crop_flip", "NAME"))
    write_vtab(tmp_path)
    write_fgvc(tmp_path)
    for name, counts in (("vtab:kitti", [3, 2, 2]), ("fgvc:CUB", [3, 1, 2])):
        data = load_data_set(name, tmp_path)
        assert data.name == name
        assert [len(images) for images in (data.train, data.select, data.eval)] == counts


@pytest.mark.parametrize(
    ("name", "classes"),
    [("caltech101", 102), ("sun397", 397), ("smallnorb_azi", 18), ("smallnorb_ele", 9), ("diabetic_retinopathy", 5)],
)
def test_classes_of_vtab_tasks(tmp_path: Path, name: str, classes: int) -> None:
    """The training list shows two; the last one is legal, the one behind it is not."""
    lists = {
        "train800.txt": {"images/train/000000.jpg": 0, "images/train/000001.jpg": 1},
        "val200.txt": {"images/val/000000.jpg": 0},
        "test.txt": {"images/test/000000.jpg": classes - 1},
    }
    folder = write_vtab(tmp_path, name, lists)
    assert vtab(tmp_path, name).labels == [str(number) for number in range(classes)]
    (folder / "test.txt").write_text(f"images/test/000000.jpg {classes}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"test.txt .*images/test/000000.jpg .* {classes}; legal: 0 to {classes - 1}"):
        vtab(tmp_path, name)


def test_there_are_nineteen_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        vtab(tmp_path, "zebra")
    message, _, legal = str(caught.value).partition("; legal: ")
    assert message == "unknown data set 'vtab:zebra'"
    assert len(set(legal.split(", "))) == 19


@pytest.mark.parametrize(
    ("read", "name", "suggestion"),
    [
        (read_vtab, "smalnorb_azi", "vtab:smallnorb_azi"),
        (read_vtab, "SUN397", "vtab:sun397"),
        (read_fgvc, "cub", "fgvc:CUB"),
        (read_fgvc, "Dog", "fgvc:Dogs"),
    ],
)
def test_unknown_names(tmp_path: Path, read: object, name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown data set '.*:{name}', did you mean {suggestion}. legal: "):
        read(Request(tmp_path, name))


def test_vtab_without_its_lists(tmp_path: Path) -> None:
    folder = write_vtab(tmp_path)
    (folder / "val200.txt").unlink()
    (folder / "test.txt").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        vtab(tmp_path)
    assert str(caught.value) == (
        f"vtab:kitti: no val200.txt, test.txt in {folder}; "
        "there is no official archive to download; put the lists and images there"
    )


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("train800.txt", "", ValueError, "train800.txt"),
        ("train800.txt", "images/train/000001.jpg\n", ValueError, r"train800.txt \(line 1 is .*expected TEXT NUMBER"),
        ("test.txt", "images/test/000000.jpg 1\nimages/test/000001.jpg b\n", ValueError, r"test.txt \(line 2 is"),
        ("val200.txt", "images/val/000000.jpg -1\n", ValueError, "val200.txt .* -1; legal: 0 to 3"),
        ("val200.txt", "images/val/000000.jpg 1\nimages/val/000000.jpg 1\n", ValueError, "val200.txt .*val/000000.jpg"),
        ("val200.txt", "images/test/000001.jpg 0\n", ValueError, "images/test/000001.jpg .*val200.txt .*test.txt"),
        (
            "test.txt",
            "images/test/000007.jpg 0\nimages/test/000006.jpg 0\nimages/test/000001.jpg 0\n",
            FileNotFoundError,
            "test.txt lists 2 images that are not in .*kitti, such as images/test/000006.jpg; put them there",
        ),
    ],
)
def test_wrong_vtab_lists(tmp_path: Path, file: str, content: str, error: type[Exception], message: str) -> None:
    (write_vtab(tmp_path) / file).write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message) as caught:
        vtab(tmp_path)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- FGVC
def test_cub(tmp_path: Path) -> None:
    write_fgvc(tmp_path)
    found = fgvc(tmp_path)
    assert found.labels == ["Black footed Albatross", "Sooty Albatross"]
    assert listed(found.train) == [
        ("images/001.Black_footed_Albatross/Black_0001.jpg", 0),
        ("images/001.Black_footed_Albatross/Black_0002.jpg", 0),
        ("images/003.Sooty_Albatross/Sooty_0001.jpg", 1),
    ]
    assert listed(found.select) == [("images/001.Black_footed_Albatross/Black_0003.jpg", 0)]
    assert listed(found.eval)[1] == ("images/003.Sooty_Albatross/Sooty_0009.jpg", 1)
    assert found.eval.image(1).size == (2, 2)
    assert found.source == "FGVC lists of VPT: CUB"


def test_dogs(tmp_path: Path) -> None:
    """Numbers as text, as one of the lists in circulation has them: 10 comes after 9."""
    shih_tzu, poodle = "n02086240-Shih-Tzu/n02086240_1.jpg", "n02113799-standard_poodle/n02113799_1.jpg"
    lists = {"train": {poodle: "10", shih_tzu: "9"}}
    lists |= {split: {shih_tzu.replace("_1", f"_{split}"): "9"} for split in ("val", "test")}
    write_fgvc(tmp_path, "stanford-dogs", "Images", lists)
    found = fgvc(tmp_path, "Dogs")
    assert found.labels == ["Shih-Tzu", "standard poodle"]
    assert listed(found.train) == [(f"Images/{shih_tzu}", 0), (f"Images/{poodle}", 1)]


@pytest.mark.parametrize(
    ("name", "folder", "path"),
    [("Flowers", "flowers-102", "jpg/image_{:05d}.jpg"), ("Cars", "stanford-cars", "car_ims/{:06d}.jpg")],
)
def test_flowers_and_cars(tmp_path: Path, name: str, folder: str, path: str) -> None:
    """Paths with their folder, and no class names anywhere."""
    numbers = {"train": {1: 8, 2: 5}, "val": {3: 5}, "test": {4: 8}}
    lists = {split: {path.format(image): number for image, number in of.items()} for split, of in numbers.items()}
    write_fgvc(tmp_path, folder, "", lists)
    found = fgvc(tmp_path, name)
    assert found.labels == ["5", "8"]
    assert listed(found.train) == [(path.format(1), 1), (path.format(2), 0)]
    assert listed(found.eval) == [(path.format(4), 1)]


NABIRDS = {"train": {"0817/a.jpg": 1, "0295/b.jpg": 0}, "val": {"0817/c.jpg": 1}, "test": {"0295/d.jpg": 0}}


def test_nabirds(tmp_path: Path) -> None:
    """The lists number the 555 species 0, 1, ..; the folders are nodes of the whole tree, which classes.txt names."""
    root = write_fgvc(tmp_path, "nabirds", "images", NABIRDS)
    lines = "0 Birds\n1 Ducks, Geese, and Swans\n295 Common Eider (Adult male)\n817 Oak Titmouse\n"
    (root / "classes.txt").write_text(lines, encoding="utf-8")
    found = fgvc(tmp_path, "NABirds")
    assert found.labels == ["Common Eider (Adult male)", "Oak Titmouse"]
    assert listed(found.train) == [("images/0295/b.jpg", 0), ("images/0817/a.jpg", 1)]


@pytest.mark.parametrize("content", [None, "0 Birds\n295 Common Eider\n", "Birds\n"])
def test_nabirds_without_class_names(tmp_path: Path, content: str | None) -> None:
    root = write_fgvc(tmp_path, "nabirds", "images", NABIRDS)
    if content is not None:
        (root / "classes.txt").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot read .*nabirds/classes.txt .*; delete it or replace it"):
        fgvc(tmp_path, "NABirds")


def test_fgvc_without_its_lists(tmp_path: Path) -> None:
    root = write_fgvc(tmp_path)
    (root / "val.json").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        fgvc(tmp_path)
    assert str(caught.value) == (
        f"fgvc:CUB: no val.json in {root}; put the lists of Visual Prompt Tuning there, and the images"
    )


ALBATROSS = "001.Black_footed_Albatross/Black_0001.jpg"


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("train.json", "{", ValueError, "cannot read .*train.json .*; delete it or replace it"),
        ("val.json", '["a.jpg"]', ValueError, r"val.json \(it is no object \{path: number\}\)"),
        ("train.json", "[]", ValueError, r"train.json \(it is no object"),
        ("test.json", '{"a.jpg": [1]}', ValueError, r"test.json \(the class of a.jpg is \[1\], not a number\)"),
        ("test.json", '{"a.jpg": 1.5}', ValueError, "the class of a.jpg is 1.5, not a number"),
        ("test.json", '{"a.jpg": "one"}', ValueError, "the class of a.jpg is 'one', not a number"),
        ("test.json", '{"a.jpg": true}', ValueError, "the class of a.jpg is True, not a number"),
        ("test.json", '{"a.jpg": -1}', ValueError, "the class of a.jpg is -1, not a number"),
        ("train.json", "{}", ValueError, "train.json"),
        ("val.json", "{}", ValueError, "val.json lists no images"),
        ("val.json", '{"a.jpg": 2}', ValueError, "val.json has class 2, which train.json has not; replace one of them"),
        ("val.json", f'{{"{ALBATROSS}": 1}}', ValueError, f"{ALBATROSS} is in .*train.json and in .*val.json"),
        ("val.json", '{"a.jpg": 1, "a.jpg": 3}', ValueError, "val.json lists images/a.jpg twice"),
        (
            "train.json",
            json.dumps({**CUB["train"], "002.Laysan_Albatross/a.jpg": 1}),
            FileNotFoundError,
            "train.json lists 1 images that are not in .*CUB_200_2011, such as images/002.Laysan_Albatross/a.jpg; put",
        ),
    ],
)
def test_wrong_fgvc_lists(tmp_path: Path, file: str, content: str, error: type[Exception], message: str) -> None:
    (write_fgvc(tmp_path) / file).write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message) as caught:
        fgvc(tmp_path)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_in_two_folders_has_no_name(tmp_path: Path) -> None:
    write_fgvc(tmp_path, lists=CUB | {"train": {**CUB["train"], "002.Laysan_Albatross/a.jpg": 1}})
    with pytest.raises(ValueError, match=r"class 1 in 001.Black_footed_Albatross and in 002.Laysan_Albatross; replace"):
        fgvc(tmp_path)
