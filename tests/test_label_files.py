"""Lists of images and their labels: text, CSV and JSON lines, by file or by column."""

import json
import re
from pathlib import Path

import pytest

from image_trees import labelled, write_images, write_lines
from learnable_memory.data import load_data_set
from learnable_memory.sources.found import Found, Request
from learnable_memory.sources.label_files import full_names, read_label_files

IMAGES = [f"images/{number}.jpg" for number in range(8)]
LABELS = ["cat", "dog"] * 4
SPLITS = ["train"] * 4 + ["val"] * 2 + ["test"] * 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", IMAGES)
    return tmp_path / "photos"


def read(root: Path, *files: str, **columns: str) -> Found:
    return read_label_files(root, Request(root, label_files=files, **columns))


def pairs(found: Found, role: str, root: Path) -> list[tuple[str, str]]:
    """The images of a split, each with the name of its class."""
    images = getattr(found, role)
    return images and [(name, found.labels[label]) for name, label in labelled(images, root)]


def in_json(rows: list[tuple[str, ...]], columns: tuple[str, ...]) -> list[str]:
    return [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]


# ---------------------------------------------------------------------------------------------------------- the formats
ROWS = list(zip(IMAGES, LABELS, strict=True))
FORMATS = {
    "list.txt": [" ".join(row) for row in ROWS],
    "tabs.txt": ["\t".join(row) for row in ROWS],
    "commas.txt": [", ".join(row) for row in ROWS],
    "label first.txt": [" ".join(row[::-1]) for row in ROWS],
    "blank lines.txt": ["", *(" ".join(row) for row in ROWS), "  "],
    "plain.csv": [",".join(row) for row in ROWS],
    "header.csv": ["file,class", *(",".join(row) for row in ROWS)],
    "semicolons.csv": ["file;class", *(";".join(row) for row in ROWS)],
    "quoted.csv": [f'"{image}","{label}"' for image, label in ROWS],
    "marked.csv": ["\ufefffile,class", *(",".join(row) for row in ROWS)],  # as a spreadsheet saves it
    "header.tsv": ["file\tclass", *("\t".join(row) for row in ROWS)],
    "list.jsonl": in_json(ROWS, ("file", "class")),
    "list.json": in_json(ROWS, ("file", "class")),
    "absolute.csv": None,
    "dots.txt": [f"./images/../{image} {label}" for image, label in ROWS],
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(root: Path, name: str) -> None:
    lines = FORMATS[name] or [f"{root / image},{label}" for image, label in ROWS]
    write_lines(root / name, lines)
    found = read(root, name)
    assert found.labels == ["cat", "dog"]
    assert pairs(found, "train", root) == ROWS
    assert found.eval is None and found.select is None and found.source == f"lists {name}, a fifth held out"


def test_names_with_spaces_need_columns_that_are_parted_by_something_else(root: Path) -> None:
    write_images(root, ["a b.jpg"])
    write_lines(root / "list.csv", ["a b.jpg,a cat", *(f"{image},dog" for image in IMAGES)])
    assert pairs(read(root, "list.csv"), "train", root)[0] == ("a b.jpg", "a cat")
    write_lines(root / "list.txt", ["images/0.jpg dog", "a b.jpg cat"])
    message = (
        r"list.txt \(line 2 has 3 columns, and the first has 2; file names with spaces need columns that are parted"
    )
    with pytest.raises(ValueError, match=message):
        read(root, "list.txt")


def test_numbers_are_classes_in_their_order(root: Path) -> None:
    write_lines(
        root / "list.txt", [f"{image} {label}" for image, label in zip(IMAGES, [10, 2, 10, 9] * 2, strict=True)]
    )
    found = read(root, "list.txt")
    assert found.labels == ["2", "9", "10"] and found.train.labels.tolist() == [2, 0, 2, 1] * 2


# ----------------------------------------------------------------------------------------------------------- the splits
def expected(role: str) -> list[tuple[str, str]]:
    return [row for row, split in zip(ROWS, SPLITS, strict=True) if split == role]


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "val.txt", "test.txt"),
        ("train800.txt", "val200.txt", "list_test.txt"),
        ("My-Train.txt", "valid.txt", "TESTING.txt"),
    ],
)  # fmt: skip
def test_a_file_for_each_split(root: Path, names: tuple[str, ...]) -> None:
    for name, role in zip(names, ("train", "val", "test"), strict=True):
        write_lines(root / name, [" ".join(row) for row in expected(role)])
    found = read(root, *reversed(names))
    assert [pairs(found, role, root) for role in ("train", "select", "eval")] == [
        expected(role) for role in ("train", "val", "test")
    ]
    assert found.source == f"lists {', '.join(reversed(names))}"


def test_a_validation_list_alone_is_what_is_evaluated_on(root: Path) -> None:
    for role in ("train", "val"):
        write_lines(root / f"{role}.csv", [",".join(row) for row in expected(role)])
    found = read(root, "train.csv", "val.csv")
    assert found.select is None and pairs(found, "eval", root) == expected("val")


@pytest.mark.parametrize(
    ("columns", "words"),
    [(("image", "breed", "split"), {}), (("image", "breed", "Split"), {"val": "Validation", "train": "TRAIN"}),
     (("image", "breed", "part"), {"val": "dev"}), (None, {"test": "testing"})],
)  # fmt: skip
@pytest.mark.parametrize("names", [("all.csv",), ("one.csv", "two.csv")])
def test_a_split_column(root: Path, columns: tuple[str, ...] | None, words: dict[str, str], names: tuple) -> None:
    rows = [",".join((*row, words.get(split, split))) for row, split in zip(ROWS, SPLITS, strict=True)]
    for place, name in enumerate(names):
        write_lines(root / name, [*([",".join(columns)] if columns else []), *rows[place :: len(names)]])
    found = read(root, *names)
    assert [pairs(found, role, root) for role in ("train", "select", "eval")] == [
        expected(role) for role in ("train", "val", "test")
    ]


def test_lists_as_they_circulate_need_to_be_told_which_label_is_meant(root: Path) -> None:
    """`path, fine label, coarse label`, without names of columns."""
    lines = [f"{image}, {number % 4}, {number % 2}" for number, image in enumerate(IMAGES)]
    write_lines(root / "train.txt", lines[:4])
    write_lines(root / "test.txt", lines[4:])
    with pytest.raises(ValueError) as caught:
        read(root, "train.txt", "test.txt")
    assert str(caught.value) == (
        f"{root / 'train.txt'} has several columns that could be the labels; name one of 2, 3 with --label_column "
        "NAME; the columns are 1 (images/0.jpg), 2 (0), 3 (0)"
    )
    fine, coarse = (read(root, "train.txt", "test.txt", label_column=column) for column in "23")
    assert (fine.labels, coarse.labels) == (["0", "1", "2", "3"], ["0", "1"])
    assert fine.eval.labels.tolist() == [0, 1, 2, 3] and coarse.eval.labels.tolist() == [0, 1, 0, 1]


def test_columns_by_name(root: Path) -> None:
    lines = [f"{image},masks/{image},{label},x" for image, label in ROWS]
    write_lines(root / "list.csv", ["image,mask,animal,note", *lines])
    with pytest.raises(
        ValueError, match=r"has several columns of image files; name one with --image_column; the column"
    ):
        read(root, "list.csv", label_column="animal")
    assert pairs(read(root, "list.csv", image_column="image", label_column="animal"), "train", root) == ROWS


# ----------------------------------------------------------------------------------------------------- through the door
def test_by_name_and_from_its_record(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are looked for in the folder, then from where the command is run; what is kept does not depend on that."""
    write_lines(root / "lists" / "train.txt", [" ".join(row) for row in expected("train")])
    write_lines(root.parent / "elsewhere" / "test.txt", [" ".join(row) for row in expected("test")])
    monkeypatch.chdir(root.parent)
    files = ["lists/train.txt", "elsewhere/test.txt"]
    data = load_data_set("folder:photos", root.parent, label_files=files, folds=2)
    record = json.loads(json.dumps(data.record()))
    assert record["label_files"] == ["lists/train.txt", str(root.parent / "elsewhere" / "test.txt")]
    monkeypatch.chdir("/")
    again = load_data_set(record["name"], root.parent, label_files=record["label_files"], folds=2)
    assert again.record() == data.record()
    assert full_names(str(root), [str(root / "lists" / "train.txt")]) == ("lists/train.txt",)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("Digits", {"label_files": ["a.txt"]}, "Digits is no folder of images: leave --class_folders and --labels out"),
        ("folder:{root}", {"label_files": ["none.txt"]}, "--labels none.txt: no such file in {root} or {here}"),
        ("folder:{root}", {"label_column": "2"}, "is no table: leave --image_column and --label_column out"),
        (
            "folder:{root}",
            {"label_files": ["train.txt"], "class_folders": "first"},
            "--labels says which class an image is of, and --class_folders that its folder does: give one",
        ),
    ],
)  # fmt: skip
def test_choices_that_do_not_go_together(root: Path, name: str, flags: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message.format(root=root, here=Path.cwd()))):
        load_data_set(name.format(root=root), root, **flags)


# -------------------------------------------------------------------------------------------------------------- faults
CAT, DOG = "images/0.jpg cat", "images/1.jpg dog"
FAULTS = {
    "no rows": ({"a.txt": []}, "a.txt (it has no rows)"),
    "names of columns only": ({"a.csv": ["image,label"]}, "a.csv (it has no rows below the names of its columns)"),
    "no image": ({"a.csv": ["image,label", "x,cat"]}, "has no column of image files; name one with --image_column"),
    "no label": ({"a.txt": ["images/0.jpg", "images/1.jpg"]}, "a.txt has no labels; the columns are 1 (images/0.jpg)"),
    "an empty label": ({"a.csv": ["images/0.jpg,", "images/1.jpg,dog"]}, "gives images/0.jpg no label, in line 1"),
    "missing": ({"a.txt": [CAT, "images/9.jpg dog"]}, "the train list lists 1 images that are not in"),
    "outside": ({"a.txt": [CAT, "../9.jpg dog"]}, "lists ../9.jpg in line 2, which is not in"),
    "twice": ({"a.txt": [CAT, f"./{CAT}"]}, "lists images/0.jpg twice, the second time in line 2"),
    "twice in two": ({"train_a.txt": [CAT], "train_b.txt": [CAT]}, "images/0.jpg, which another list has too"),
    "two splits": ({"train.txt": [CAT], "val.txt": [CAT]}, "an image belongs to one split"),
    "no training list": ({"val.txt": [CAT], "test.txt": [DOG]}, "images to evaluate on and none to train on"),
    "names that say nothing": ({"a.txt": [CAT], "b.txt": [DOG]}, "does not say which split it lists"),
    "a name that says two": ({"train_val.txt": [CAT], "test.txt": [DOG]}, "does not say which split it lists"),
    "an unknown label": (
        {"train.txt": [CAT], "test.txt": [DOG]},
        "images/1.jpg, of the eval list, has the label dog, which no training image has",
    ),
    "an unknown split": (
        {"a.csv": ["image,label,split", "images/0.jpg,cat,train", "images/1.jpg,cat,query"]},
        "has the split 'query' in line 3; legal: train, training, validation, val, valid, dev, test, testing",
    ),
    "no JSON": ({"a.jsonl": ['{"image": "images/0.jpg", "label": "cat"}', "[1]"]}, "line 2 is no JSON object"),
    "a key is missing": (
        {"a.jsonl": ['{"image": "images/0.jpg", "label": "cat"}', '{"image": "images/1.jpg"}']},
        "line 2 has no text or number as its label",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_lists(root: Path, fault: str) -> None:
    files, message = FAULTS[fault]
    for name, lines in files.items():
        write_lines(root / name, lines)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as caught:
        read(root, *files)
    assert "\n" not in str(caught.value)


def test_a_wrong_column_is_named_with_what_is_legal(root: Path) -> None:
    write_lines(root / "list.txt", [" ".join(row) for row in ROWS])
    for kind in ("image", "label"):
        with pytest.raises(ValueError, match=rf"--{kind}_column is 3; legal: 1, 2; the columns are 1 \(images/0.jpg\)"):
            read(root, "list.txt", **{f"{kind}_column": "3"})
