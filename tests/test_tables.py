"""Which columns and which splits of a table are taken, and how its images are kept."""

import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from torch.utils.data import DataLoader

from learnable_memory import data as data_module
from learnable_memory.data import load_data_set
from learnable_memory.sources.found import Found, Request
from learnable_memory.sources.hub import full_hub_name, read_hub
from learnable_memory.sources.parquet import read_parquet_path
from learnable_memory.sources.tables import read_tables
from pet_tables import PETS, encode, reds, refuse_network, table, write_pets

READERS = {"hf": read_hub, "parquet": read_parquet_path}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest) -> Callable[[Request], Found]:
    return READERS[request.param]


# -------------------------------------------------------------------------------------------------------- whole splits
def test_splits_labels_and_images(tmp_path: Path, read: Callable[[Request], Found]) -> None:
    found = read(Request(tmp_path, str(write_pets(tmp_path / "pets"))))
    assert found.labels == ["cat", "dog"]
    assert reds(found.train) == [0, 1, 2, 3, 4, 5, 6, 7]  # the order of the files, and of the rows in them
    assert reds(found.select) == [100, 101] and reds(found.eval) == [200, 201, 202]
    assert found.train.labels.tolist() == [0, 1] * 4 and found.eval.labels.tolist() == [0, 1, 1]
    assert found.train.labels.dtype == np.int64
    assert found.train.image(0).size == (4, 3)
    assert str(tmp_path) not in found.source


def test_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the registry, with a path relative to where the command is run."""
    for prefix, reader, full_name in (("hf", read_hub, full_hub_name), ("parquet", read_parquet_path, os.path.abspath)):
        monkeypatch.setitem(data_module.PREFIXES, prefix, data_module._Entry(reader, "flip", "NAME", full_name))
    write_pets(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    hub, parquet = (load_data_set(name, tmp_path) for name in ("hf:./pets", "parquet:pets"))
    assert (hub.name, hub.source) == (f"hf:{tmp_path / 'pets'}", "folder: pets")
    assert (parquet.name, parquet.source) == (f"parquet:{tmp_path / 'pets'}", "parquet: pets")
    assert hub.record()["splits"] == parquet.record()["splits"]
    assert [len(images) for images in (hub.train, hub.select, hub.eval)] == [8, 2, 3]


def test_the_log_of_a_whole_data_set_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="learnable_memory"):
        read_hub(Request(tmp_path, str(write_pets(tmp_path / "pets"))))
    assert caplog.messages == []


def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Request], Found]
) -> None:
    write_pets(tmp_path / "pets")
    for module in [name for name in sys.modules if name.partition(".")[0] == "datasets"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError) as caught:
        read(Request(tmp_path, str(tmp_path / "pets")))
    assert caught.value.name == "datasets"


class Missing:
    """A finder that finds no `datasets`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "datasets":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


# --------------------------------------------------------------------------------------------- what files call classes
ANIMALS = ["cat", "dog", "fox"]


def write_named(folder: Path, **files: tuple[list[str] | None, list[str]]) -> Path:
    """Parquet files, each with its own names of class 0, 1, .. (None: it names none) and the animals in its rows.

    The red of an image is 100, 101 or 102 by its animal.
    """
    (folder / "data").mkdir(parents=True)
    for name, (names, animals) in files.items():
        order = names or ANIMALS
        images = [{"bytes": encode(100 + ANIMALS.index(animal)), "path": None} for animal in animals]
        features = Features({"image": datasets.Image(), "label": ClassLabel(names=names) if names else Value("int64")})
        rows = Dataset.from_dict({"image": images, "label": [order.index(each) for each in animals]}, features=features)
        rows.to_parquet(str(folder / "data" / f"{name.replace('_', '-')}.parquet"))
    return folder


def animals_in(found: Found, role: str) -> list[tuple[str, str]]:
    """What each image of a split shows, and what it is called."""
    images = getattr(found, role)
    return [(ANIMALS[red - 100], found.labels[label]) for red, label in zip(reds(images), images.labels, strict=True)]


def test_files_with_the_same_classes_in_another_order_are_read_by_name(
    tmp_path: Path, read: Callable[[Request], Found], caplog: pytest.LogCaptureFixture
) -> None:
    write_named(
        tmp_path / "pets",
        test=(["fox", "dog", "cat"], ["cat", "dog", "fox", "cat"]),
        train_0=(ANIMALS, ["cat", "dog", "fox"]),
        train_1=(["dog", "fox", "cat"], ["dog", "cat"]),
        validation=(ANIMALS, ["fox"]),
    )
    with caplog.at_level(logging.INFO, logger="learnable_memory"):
        found = read(Request(tmp_path, str(tmp_path / "pets")))
    assert found.labels == ANIMALS  # as the training files have them
    for role, animals in (("train", "cat dog fox dog cat"), ("select", "fox"), ("eval", "cat dog fox cat")):
        assert animals_in(found, role) == [(animal, animal) for animal in animals.split()]
    said = "files have the same classes in different orders, which are put right by name"
    assert [message.partition(": ")[::2] for message in caplog.messages] == [
        (f"split {split} of {prefix_of(read)}:{tmp_path / 'pets'}", said) for split in ("train", "test")
    ]


def prefix_of(read: Callable) -> str:
    return next(prefix for prefix, reader in READERS.items() if reader is read)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (["cat", "dog", "owl"], "has other classes in the column label than the other files of the same data "
         "(only here: owl; only there: fox); give them the same"),
        (["cat", "dog"], "(only here: none; only there: fox); give them the same"),
        (["cat", "dog", "fox", "owl"], "(only here: owl; only there: none); give them the same"),
        (None, "has no names of classes for the column label, and other files of the same data have; save it with the "
         "datasets library, as the others"),
    ],
)  # fmt: skip
def test_files_with_other_classes_are_refused(
    tmp_path: Path, read: Callable[[Request], Found], test: list[str] | None, message: str
) -> None:
    write_named(tmp_path / "pets", train=(ANIMALS, ["cat", "dog", "fox"]), test=(test, ["cat", "dog"]))
    with pytest.raises(ValueError) as caught:
        read(Request(tmp_path, str(tmp_path / "pets")))
    assert str(caught.value).startswith(f"{tmp_path / 'pets' / 'data' / 'test.parquet'} has ")
    assert str(caught.value).endswith(message) and "\n" not in str(caught.value)


def describe(folder: Path, names: list[str]) -> None:
    """A description of the data set that names the classes, as its page on the hub has one."""
    numbered = "".join(f"          '{number}': {name}\n" for number, name in enumerate(names))
    features = "  - name: image\n    dtype: image\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
    text = f"---\ndataset_info:\n  features:\n{features}{numbered}---\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("described", "labels"),
    [
        (["fox", "cat", "dog"], ["fox", "cat", "dog"]),
        (["Katze", "Hund", "Fuchs"], ["Katze", "Hund", "Fuchs"]),
        (["cat", "dog", "Fuchs"], ["cat", "dog", "Fuchs"]),
    ],
)
def test_a_description_orders_or_renames_the_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, described: list[str], labels: list[str]
) -> None:
    folder = write_named(tmp_path / "pets", train=(ANIMALS, ["cat", "dog", "fox"]), test=(ANIMALS, ["fox", "cat"]))
    describe(folder, described)
    with caplog.at_level(logging.INFO, logger="learnable_memory"):
        found = read_hub(Request(tmp_path, str(folder)))
    assert found.labels == labels
    renamed = "Fuchs" in described
    names = dict(zip(ANIMALS, described if renamed else ANIMALS, strict=True))
    assert animals_in(found, "train") == [(animal, names[animal]) for animal in ANIMALS]
    assert animals_in(found, "eval") == [(animal, names[animal]) for animal in ("fox", "cat")]
    assert (f"its description calls them {', '.join(described)}: taken from there" in caplog.text) == renamed


def test_a_description_with_other_classes_in_another_order_is_refused(tmp_path: Path) -> None:
    folder = write_named(tmp_path / "pets", train=(ANIMALS, ["cat", "dog", "fox"]))
    describe(folder, ["dog", "cat", "wolf"])
    with pytest.raises(ValueError, match=r"\(only here: fox; only there: wolf\); give them the same"):
        read_hub(Request(tmp_path, str(folder)))


def test_arrow_files_name_their_classes_too(tmp_path: Path) -> None:
    folder = write_named(tmp_path / "parquet", train=(ANIMALS, ["cat", "fox"]), test=(ANIMALS[::-1], ["cat", "dog"]))
    (tmp_path / "pets").mkdir()
    for split in ("train", "test"):
        table = pq.read_table(folder / "data" / f"{split}.parquet")
        with pa.ipc.new_stream(str(tmp_path / "pets" / f"{split}.arrow"), table.schema) as writer:
            writer.write_table(table)
    found = read_hub(Request(tmp_path, str(tmp_path / "pets")))
    assert animals_in(found, "eval") == [("cat", "cat"), ("dog", "dog")]


# ---------------------------------------------------------------------------------------------- images kept as paths
def write_photos(folder: Path, *paths: str, red: int = 0) -> Path:
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode(red + number))
    return folder


def test_images_kept_as_paths_are_known_by_them(tmp_path: Path) -> None:
    """Not by their row: a file more, and all others have moved."""
    paths = [f"{split}/{name}/{number}.png" for split in ("train", "test") for name in "ab" for number in range(3)]
    one, two = (write_photos(tmp_path / name / "photos", *paths) for name in ("one", "two"))
    before, again = (read_hub(Request(tmp_path / "cache", str(root))) for root in (one, two))
    assert before.eval.hash == again.eval.hash
    assert [before.eval.identity(row) for row in range(6)] == paths[6:]
    (one / "test" / "a" / "1.png").rename(one / "test" / "a" / "9.png")
    after = read_hub(Request(tmp_path / "cache", str(one)))
    assert len(after.eval) == len(before.eval) and after.eval.hash != before.eval.hash


def test_a_changed_file_changes_the_stamp_of_its_row_alone(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", "train/a/0.png", "train/b/0.png", "train/b/1.png")
    images = read_hub(Request(tmp_path, str(photos))).train
    before = [images.images.stamp(row) for row in range(3)]
    (photos / "train" / "b" / "0.png").write_bytes(encode(7) + b"more")
    assert [images.images.stamp(row) == old for row, old in enumerate(before)] == [True, False, True]


def test_folders_of_the_system_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = write_photos(
        tmp_path / "photos", "train/cat/0.png", "train/dog/0.png", "train/@eaDir/0.png", "test/cat/1.png",
        "test/dog/1.png", "test/#recycle/1.png",
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="learnable_memory"):
        found = read_hub(Request(tmp_path, str(photos)))
    assert found.labels == ["cat", "dog"]
    for role, images in (("train", found.train), ("test", found.eval)):
        names = [images.identity(row).partition("/")[::2] for row in range(len(images))]
        assert [split for split, _ in names] == [role] * 2 and images.labels.tolist() == [0, 1]
    assert caplog.messages == ["skipped 2 images in folders of the system"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_column_of_paths(tmp_path: Path, suffix: str) -> None:
    """Relative to the folder of the table; or absolute, which means the same."""
    photos = write_photos(tmp_path / "photos", "images/0.png", "images/1.png", "images/2.png")
    paths = ["images/0.png", "./images/1.png", str(photos / "images" / "2.png")]
    rows = Dataset.from_dict({"file": paths, "label": ["cat", "dog", "cat"]})
    save = {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[suffix]
    save(str(photos / f"train.{suffix}"))
    read = read_parquet_path if suffix == "parquet" else read_hub
    prefix = "parquet" if suffix == "parquet" else "hf"
    with pytest.raises(ValueError) as caught:
        read(Request(tmp_path, str(photos)))
    assert str(caught.value).replace("large_", "") == (
        f"{prefix}:{photos} has columns of text that could be the images; name one of file, label with --image_column "
        "NAME; the columns are file (string), label (string)"
    )
    images = read(Request(tmp_path, str(photos), image_column="file", label_column="label")).train
    assert reds(images) == [0, 1, 2] and images.labels.tolist() == [0, 1, 0]
    assert [images.identity(row) for row in range(3)] == ["images/0.png", "images/1.png", "images/2.png"]


def test_paths_of_a_table_of_the_hub_lead_nowhere() -> None:
    rows = Dataset.from_dict({"file": ["a.png"], "label": ["cat"]})
    message = "hf:pets: the column file holds paths of files that are not part of it; download it, and name the folder"
    with pytest.raises(ValueError, match=message):
        find({"train": rows}, image_column="file", label_column="label")


# -------------------------------------------------------------------------------------------------------------- images
def test_images_stay_on_disk_and_travel_to_other_processes(tmp_path: Path, read: Callable[[Request], Found]) -> None:
    images = read(Request(tmp_path, str(write_pets(tmp_path / "pets")))).train
    assert [Path(file["filename"]).suffix for file in images.images.table.cache_files] == [".arrow"]
    pickled = pickle.dumps(images)
    assert encode(3) not in pickled
    assert reds(pickle.loads(pickled)) == list(range(8))


def first_red(batch: list[tuple[Image.Image, int]]) -> list[tuple[int, int]]:
    return [(image.getpixel((0, 0))[0], label) for image, label in batch]


@pytest.mark.slow  # a spawned worker imports torch
def test_spawned_workers(tmp_path: Path) -> None:
    images = read_parquet_path(Request(tmp_path, str(write_pets(tmp_path / "pets")))).train
    loader = DataLoader(images, 3, num_workers=2, multiprocessing_context="spawn", collate_fn=first_red)
    assert [item for batch in loader for item in batch] == [(red, red % 2) for red in range(8)]


def test_hashes_tell_whether_the_images_are_the_same(tmp_path: Path, read: Callable[[Request], Found]) -> None:
    write_pets(tmp_path / "one")
    write_pets(tmp_path / "two")
    one, again, two = (read(Request(tmp_path, str(tmp_path / name))).train for name in ("one", "one", "two"))
    assert one.hash == two.hash  # the same rows with the same labels, wherever they lie
    assert one.content_hash == again.content_hash
    assert len({one.images.stamp(row) for row in range(8)}) == 8
    file = tmp_path / "one" / "data" / "train-00000-of-00002.parquet"
    table(50, [0, 1, 0, 1]).to_parquet(str(file))
    os.utime(file, (1, 1))  # a clock that is too coarse would hide the change
    changed = read(Request(tmp_path, str(tmp_path / "one"))).train
    assert reds(changed) == [50, 51, 52, 53, 4, 5, 6, 7]
    assert changed.hash != one.hash  # images of other sizes: validation says that it is other data
    assert changed.content_hash != one.content_hash


@pytest.mark.parametrize("broken", [b"not an image", b"", encode(0)[:45], None], ids=str)
def test_a_broken_image_is_named_by_its_row(tmp_path: Path, broken: bytes | None) -> None:
    encoded = [encode(0), encode(1), broken, encode(3)]
    rows = {"image": [image and {"bytes": image, "path": None} for image in encoded], "label": [0, 1, 0, 1]}
    features = Features({"image": datasets.Image(), "label": PETS})
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "pets.parquet"))
    images = read_parquet_path(Request(tmp_path, str(tmp_path / "pets.parquet"))).train
    assert images.image(3).getpixel((0, 0)) == (3, 0, 0)
    expected = r"cannot read the image row 2 of split train of parquet:.*pets.parquet .*; repair it or remove it"
    with pytest.raises(ValueError, match=expected):
        images.image(2)


# -------------------------------------------------------------------------------------------------------------- splits
def find(splits: Mapping[str, Dataset], **columns: str) -> Found:
    return read_tables("hf:pets", splits, Request(Path("nowhere"), **columns), "test")


@pytest.mark.parametrize(
    ("splits", "select", "evaluation"),
    [
        ("train validation test", "validation", "test"),
        ("test valid train", "valid", "test"),
        ("train val", None, "val"),
        ("dev train", None, "dev"),
        ("dev validation train", None, "validation"),
        ("train test", None, "test"),
        ("train extra", None, None),
        ("train", None, None),
        ("test", None, None),
        ("everything", None, None),
    ],
)
def test_roles(splits: str, select: str | None, evaluation: str | None) -> None:
    names = splits.split()
    found = find({name: table(10 * place, [0, 1]) for place, name in enumerate(names)})
    train = names.index("train") if "train" in names else 0
    assert reds(found.train) == [10 * train, 10 * train + 1]
    for images, name in ((found.select, select), (found.eval, evaluation)):
        assert (images and reds(images)) == (name and [10 * names.index(name), 10 * names.index(name) + 1])


def test_a_split_without_a_role_is_said(caplog: pytest.LogCaptureFixture) -> None:
    splits = {name: table(0, [0, 1]) for name in ("train", "test", "extra", "validation", "dev")}
    found = find(splits)
    assert found.select is not None
    assert "hf:pets: no use for the split extra, dev" in caplog.text


@pytest.mark.parametrize(
    ("label_type", "hidden"), [(PETS, -1), (PETS, None), (Value("int32"), -1), (Value("string"), None)]
)
def test_a_test_split_with_hidden_labels_does_not_count(
    caplog: pytest.LogCaptureFixture, label_type: object, hidden: object
) -> None:
    """As in ImageNet-1k: validation is the split to evaluate on."""
    a, b = ("cat", "dog") if label_type == Value("string") else (0, 1)
    labels = {"train": [a, b], "validation": [b, a], "test": [hidden, hidden]}
    with caplog.at_level(logging.INFO, logger="learnable_memory"):
        found = find({name: table(10 * place, rows, label_type) for place, (name, rows) in enumerate(labels.items())})
    assert reds(found.eval) == [10, 11] and found.eval.labels.tolist() == [1, 0]
    assert found.select is None
    assert caplog.messages[-1] == "hf:pets: without labels, so not used: split test"
    guessed = [] if label_type == PETS else ["hf:pets: the column label is taken for the labels"]
    assert caplog.messages[:-1] == guessed


def test_several_splits_need_a_train() -> None:
    with pytest.raises(
        ValueError, match="hf:pets has the splits a, test; with more than one, one has to be called train"
    ):
        find({"a": table(0, [0]), "test": table(0, [0])})


# ------------------------------------------------------------------------------------------------------------- columns
def cifar100() -> Dataset:
    """The columns of the hub's CIFAR-100."""
    fine, coarse = ClassLabel(names=["apple", "bear"]), ClassLabel(names=["fruit", "mammal"])
    features = Features({"img": datasets.Image(), "fine_label": fine, "coarse_label": coarse, "id": Value("int64")})
    images = [{"bytes": encode(red), "path": None} for red in (0, 1)]
    columns = {"img": images, "fine_label": [0, 1], "coarse_label": [1, 0], "id": [7, 8]}
    return Dataset.from_dict(columns, features=features)


def test_two_label_columns_have_to_be_told_apart() -> None:
    with pytest.raises(ValueError) as caught:
        find({"train": cifar100()})
    assert str(caught.value) == (
        "hf:pets has several columns that could be the labels; name one of fine_label, coarse_label with "
        "--label_column NAME; the columns are img (Image), fine_label (ClassLabel of 2), "
        "coarse_label (ClassLabel of 2), id (int64)"
    )
    found = find({"train": cifar100()}, label_column="coarse_label")
    assert found.labels == ["fruit", "mammal"] and found.train.labels.tolist() == [1, 0]
    assert find({"train": cifar100()}, label_column="id").labels == ["7", "8"]


def test_two_image_columns_have_to_be_told_apart() -> None:
    other = [{"bytes": encode(red), "path": None} for red in (200, 201)]
    rows = cifar100().add_column("mask", other).cast_column("mask", datasets.Image())
    with pytest.raises(ValueError, match="could be the images; name one of img, mask with --image_column NAME"):
        find({"train": rows}, label_column="id")
    assert reds(find({"train": rows}, label_column="id", image_column="mask").train) == [200, 201]


def test_only_the_column_of_the_images_is_decoded() -> None:
    masks = [{"bytes": b"broken", "path": None}] * 2
    rows = cifar100().add_column("mask", masks).cast_column("mask", datasets.Image())
    assert reds(find({"train": rows}, label_column="id", image_column="img").train) == [0, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label_column": "breed"},
            "--label_column is breed; legal: fine_label, coarse_label, id; the columns are img",
        ),
        ({"label_column": "img"}, "--label_column is img; legal: fine_label"),
        (
            {"label_column": "id", "image_column": "id"},
            r"--image_column is id; legal: img; the columns are img \(Image\)",
        ),
    ],
)
def test_a_wrong_column(columns: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        find({"train": cifar100()}, **columns)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (["img"], r"has no column that could be the images; its columns are fine_label \(ClassLabel of 2\)"),
        (
            ["fine_label", "coarse_label", "id"],
            r"has no column that could be the labels; its columns are img \(Image\)",
        ),
    ],
)
def test_no_such_column(dropped: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find({"train": cifar100().remove_columns(dropped)})


def test_one_plain_column_is_the_labels_and_two_are_not() -> None:
    rows = cifar100().remove_columns(["fine_label", "coarse_label"])
    assert find({"train": rows}).labels == ["7", "8"]
    with pytest.raises(ValueError, match="could be the labels; name one of id, name with --label_column NAME"):
        find({"train": rows.add_column("name", ["a", "b"])})


# -------------------------------------------------------------------------------------------------------------- labels
def test_strings_are_sorted_by_code_point() -> None:
    train = table(0, ["ant", "Zebra", "ant", "äpfel"], Value("string"))
    found = find({"train": train, "test": table(10, ["äpfel", "ant"], Value("string"))})
    assert found.labels == ["Zebra", "ant", "äpfel"]
    assert found.train.labels.tolist() == [1, 0, 1, 2] and found.eval.labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("label_type", "train", "test", "message"),
    [
        (
            PETS,
            [0, -1, 1, None],
            [0],
            "the column label of split train of hf:pets has no label .empty, or below 0. in 2 of 4",
        ),
        (
            PETS,
            [0, 1],
            [1, 0, -1],
            "of split test of hf:pets has no label .* in 1 of 3 rows, the first is row 2; remove",
        ),
        (Value("string"), ["a", None], ["a"], "of split train .* has no label .* in 1 of 2 rows, the first is row 1"),
        (Value("uint8"), [3, 4], [4, 9, 0], "of split test .* has labels that are none of the 2 classes: 0, 9"),
        (Value("string"), ["a", "b"], ["c"], "of split test .* has labels that are none of the 2 classes: c"),
        (PETS, [-1, -1], [0, 1], "of split train .* has no label .* in 2 of 2 rows"),
    ],
)
def test_wrong_labels(label_type: object, train: list, test: list, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        find({"train": table(0, train, label_type), "test": table(0, test, label_type)})
    assert "\n" not in str(caught.value)


def test_a_number_beyond_the_class_names(tmp_path: Path) -> None:
    """The library checks ClassLabels when it writes them, not when it reads them."""
    write_pets(tmp_path / "pets")
    file = tmp_path / "pets" / "data" / "test-00000-of-00002.parquet"
    rows = pq.read_table(file)
    place = rows.schema.get_field_index("label")
    pq.write_table(rows.set_column(place, rows.schema.field(place), [pa.array([7] * len(rows))]), file)
    with pytest.raises(ValueError, match=r"of split test of hf:.* has labels that are none of the 2 classes: 7"):
        read_hub(Request(tmp_path, str(tmp_path / "pets")))
