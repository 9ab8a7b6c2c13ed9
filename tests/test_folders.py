"""Data sets from a folder with one folder of images for each class."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from learnable_memory import formats
from learnable_memory.data import DataSet, ImageSet, load_data_set
from learnable_memory.images import ImageFiles
from learnable_memory.loading import make_loader
from learnable_memory.sources.folders import read_folder
from learnable_memory.sources.found import Request
from learnable_memory.transforms import Preprocessing

PREPROCESSING = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLASSES = {"ant": 20, "bee": 10, "cow": 10}


def write_classes(root: Path, classes: dict[str, int], brightness: int = 0) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (brightness, index, 0)).save(root / name / f"{index:02d}.png")
    return root


def first_pixels(images: ImageSet) -> list[tuple[int, int, int]]:
    return [images.image(index).getpixel((0, 0)) for index in range(len(images))]


def test_flat_folder_is_split(tmp_path: Path) -> None:
    data = load_data_set(f"folder:{write_classes(tmp_path / 'flat', CLASSES)}", tmp_path)
    assert data.labels == ["ant", "bee", "cow"]
    assert data.views == "resized_crop_flip"
    counts = [np.bincount(images.labels).tolist() for images in (data.train, data.select, data.eval)]
    assert counts == [[14, 7, 7], [2, 1, 1], [4, 2, 2]]  # a fifth, then a tenth of the rest
    assert load_data_set(f"folder:{tmp_path / 'flat'}", tmp_path, split_seed=1).eval.hash != data.eval.hash


@pytest.mark.parametrize(
    ("splits", "select", "evaluation"), [(("val", "test"), 1, 2), (("val",), 0, 1), (("test",), 0, 2)]
)
def test_folder_with_splits(tmp_path: Path, splits: tuple[str, ...], select: int, evaluation: int) -> None:
    """Brightness tells where an image came from: 0 train, 1 val, 2 test."""
    for brightness, split in enumerate(("train", "val", "test")):
        if split == "train" or split in splits:
            write_classes(tmp_path / split, CLASSES, brightness)
    data = load_data_set(f"folder:{tmp_path}", tmp_path)
    for images, expected in ((data.train, 0), (data.select, select), (data.eval, evaluation)):
        assert {pixel[0] for pixel in first_pixels(images)} == {expected}
    assert len(data.eval) == 40
    assert len(data.train) + (len(data.select) if select == 0 else 0) == 40
    assert data.source == f"folder with {', '.join(('train', *splits))}"


def test_the_hash_of_a_split_sees_which_files_are_in_it_wherever_the_folder_lies(tmp_path: Path) -> None:
    """A renamed file moves all that follow it, and with them training images into the evaluation split."""
    hashes = []
    for number, root in enumerate(("here", "there", "renamed")):
        folder = write_classes(tmp_path / root, {"a": 10, "b": 10})
        if root == "renamed":
            first = min((folder / "a").iterdir())
            first.rename(first.with_name(f"zzz{first.suffix}"))
        hashes.append(load_data_set(f"folder:{folder}", tmp_path).eval.hash)
        assert number or len(load_data_set(f"folder:{folder}", tmp_path).eval) == 4
    assert hashes[0] == hashes[1] != hashes[2]


def test_names_that_are_no_utf8_have_hashes_too() -> None:
    def hash_of(*names: bytes) -> str:
        files = ImageFiles(Path("/nowhere"), [os.fsdecode(name) for name in names])
        return ImageSet(files, np.zeros(len(names))).hash

    assert hash_of(b"a\xff.png") not in (hash_of(b"a\xfe.png"), hash_of("aÿ.png".encode()))


def test_folder_is_recorded_with_its_resolved_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "flat", CLASSES)
    monkeypatch.chdir(tmp_path)
    assert load_data_set("folder:flat/../flat", tmp_path).record()["name"] == f"folder:{(tmp_path / 'flat').resolve()}"


def test_folder_takes_images_only_and_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_classes(tmp_path, {"b": 12, "a": 12})
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._01.png").write_text("what macOS leaves")
    write_classes(tmp_path / ".cache", {"c": 1})
    write_classes(tmp_path / "b" / ".thumbnails", {"c": 1})
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "cover.png").write_bytes(b"of no class")
    (tmp_path / "a" / "00.png").rename(tmp_path / "a" / "00.PNG")
    data = load_data_set(f"folder:{tmp_path}", tmp_path)
    everything = {
        data_row: (label, pixel[1])
        for images in (data.train, data.select, data.eval)
        for data_row, label, pixel in zip(images.indices, images.labels, first_pixels(images), strict=True)
    }
    assert everything == {row: divmod(row, 12) for row in range(24)}


@pytest.mark.parametrize("train", ["train", "Train", "training", "TRAINING"])
@pytest.mark.parametrize("name", ["val", "Valid", "validation", "dev"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_splits_by_their_usual_words_in_any_case(tmp_path: Path, train: str, name: str, test: str) -> None:
    for brightness, split in enumerate((train, name, test)):
        write_classes(tmp_path / split, {"ant": 2, "bee": 2}, brightness)
    data = load_data_set(f"folder:{tmp_path}", tmp_path)
    assert data.labels == ["ant", "bee"]
    assert [{pixel[0] for pixel in first_pixels(split)} for split in (data.train, data.select, data.eval)] == [
        {0}, {1}, {2},
    ]  # fmt: skip
    assert data.source == f"folder with {train}, {name}, {test}"


@pytest.mark.parametrize("train", ["train", "Training"])
def test_a_training_split_alone_is_split_as_a_folder_without_any(tmp_path: Path, train: str) -> None:
    write_classes(tmp_path / train, CLASSES)
    write_classes(tmp_path / "plain", CLASSES)
    data, plain = (load_data_set(f"folder:{root}", tmp_path) for root in (tmp_path, tmp_path / "plain"))
    assert data.labels == plain.labels == ["ant", "bee", "cow"]
    for role in ("train", "select", "eval"):
        one, other = getattr(data, role), getattr(plain, role)
        assert [one.identity(index) for index in range(len(one))] == [
            f"{train}/{other.identity(index)}" for index in range(len(other))
        ]


ONE_EACH = {"ant": 1, "bee": 1, "cow": 1}


def test_nothing_is_held_out_to_choose_on_where_nobody_chooses(tmp_path: Path) -> None:
    """Three images, with a split to report on: none can be held out, and with folds none has to be."""
    for split in ("train", "test"):
        write_classes(tmp_path / split, ONE_EACH)
    with pytest.raises(ValueError) as caught:
        load_data_set(f"folder:{tmp_path}", tmp_path)
    assert str(caught.value) == (
        "cannot hold out 10% of 3 images: no class has two images left; add images, or give the data a selection split "
        "of its own, such as the folder validation/ beside train/ and test/, or cross-validate with --folds, which "
        "holds nothing out to choose on"
    )
    crossed = load_data_set(f"folder:{tmp_path}", tmp_path, folds=2)
    assert crossed.folds == 2 and crossed.select is crossed.train and len(crossed.train) == 3
    assert crossed.with_select_seed(5).train is crossed.train and crossed.with_select_seed(5).select_seed == 5
    write_classes(tmp_path / "validation", ONE_EACH)
    assert [len(split) for split in splits_of(load_data_set(f"folder:{tmp_path}", tmp_path))] == [3, 3, 3]


def splits_of(data: DataSet) -> list[ImageSet]:
    return [data.train, data.select, data.eval]


# ------------------------------------------------------------------------------------------------- a wrong folder level
def write_tree(root: Path, *folders: str) -> Path:
    """One small image in each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(root / folder / "1.png")
    return root


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (  # an archive unpacked twice
            ["photos/cat", "photos/dog"],
            "{root} has one class folder, photos, and in photos are the folders cat, dog: probably "
            "folder:{root}/photos is meant",
        ),
        (
            ["a/b/c/cat", "a/b/c/dog", "a/b/c/fox", "a/b/c/owl"],
            "{root} has one class folder, a, and in a/b/c are the folders cat, dog, fox and 1 more: probably "
            "folder:{root}/a/b/c is meant",
        ),
        (
            ["data/Train/cat", "data/Train/dog", "data/Val/cat", "data/Val/dog"],
            "{root} has one class folder, data, and in data are the folders Train, Val: probably folder:{root}/data is "
            "meant",
        ),
        (
            ["train/photos/cat", "train/photos/dog", "test/photos/cat", "test/photos/dog"],
            "{root}/train has one class folder, photos, and in photos are the folders cat, dog: probably "
            "folder:{root}/train/photos is meant",
        ),
        (
            ["cat"],
            "{root} has one class folder, cat, and nothing can be learned from one class; add the folders of the "
            "others",
        ),
        (
            ["val/cat", "val/dog", "test/cat", "test/dog"],
            "test/, val/ in {root} are named like splits, but there is no train/ with a folder for each class beside "
            "them",
        ),
        (
            ["cat", "dog", "Testing/cat", "Testing/dog"],
            "Testing/ in {root} are named like splits, but there is no train/ with a folder for each class beside them",
        ),
        (
            ["train", "test"],
            "test/, train/ in {root} are named like splits, and hold images instead of a folder for each class; if a "
            "list says which class each image is of, give it with --labels FILE",
        ),
        (
            ["site1/cat", "site1/dog", "site2/cat", "site2/dog", "site2/fox"],
            "the folders site1, site2 in {root} have no images of their own, but the same folders, cat, dog; probably "
            "these are the classes: name one folder that holds them, as folder:{root}/site1, or --class_folders first "
            "takes each of them for a class all the same",
        ),
        (
            ["cat/train", "cat/test", "dog/train", "dog/test"],
            "the folders cat, dog in {root} have no images of their own, but the same folders, test, train: the splits "
            "have to lie above the classes, as test/cat; or --class_folders first takes each of them for a class all "
            "the same",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_folder_level_is_refused_with_what_was_probably_meant(
    tmp_path: Path, folders: list[str], message: str
) -> None:
    write_tree(tmp_path, *folders)
    with pytest.raises(ValueError) as caught:
        load_data_set(f"folder:{tmp_path}", tmp_path)
    assert str(caught.value) == message.format(root=tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        ["car", "plane", "train"],  # what a picture shows
        ["cat/images", "dog/images"],  # as in Tiny ImageNet
        ["cat", "cat/indoors", "cat/outdoors", "dog/indoors", "dog/outdoors"],
        ["fruit/apple", "fruit/pear", "milk/oat", "milk/soy"],
    ],
    ids=" ".join,
)
def test_folders_that_are_classes_are_taken_for_them(tmp_path: Path, folders: list[str]) -> None:
    found = read_folder(Request(tmp_path, str(write_tree(tmp_path, *folders))))
    assert found.labels == sorted({folder.partition("/")[0] for folder in folders})
    assert len(found.train) == len(folders)


def test_folders_are_classes_where_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(tmp_path, "old/man", "old/woman", "young/man", "young/woman")
    with caplog.at_level(logging.INFO):
        data = read_folder(Request(tmp_path, str(tmp_path), class_folders="first"))
    assert data.labels == ["old", "young"] and data.train.labels.tolist() == [0, 0, 1, 1]
    assert caplog.messages == []


GROCERIES = ["Fruit/Apple/Golden-Delicious", "Fruit/Apple/Pink-Lady", "Fruit/Avocado", "Milk/Oat", "Milk/Soy", "Oat"]


def test_a_class_that_merges_folders_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "test"):
        write_tree(tmp_path / split, *GROCERIES)
    with caplog.at_level(logging.INFO):
        assert read_folder(Request(tmp_path, str(tmp_path))).labels == ["Fruit", "Milk", "Oat"]
    said = (
        "2 classes merge the images of several folders (Fruit of 3); --class_folders deepest makes each of these a "
        "class, --class_folders first says that they are meant to be merged"
    )
    assert caplog.messages == [f"{tmp_path / split}: {said}" for split in ("train", "test")]


def test_the_deepest_folders_as_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A name that two of them have is told apart by its whole path; an image beside the folders is of no class."""
    for split in ("train", "test"):
        write_tree(tmp_path / split, *GROCERIES)
    Image.new("RGB", (2, 2)).save(tmp_path / "train" / "cover.png")
    with caplog.at_level(logging.INFO):
        data = load_data_set(f"folder:{tmp_path}", tmp_path, class_folders="deepest", folds=2)
    assert data.labels == ["Golden-Delicious", "Pink-Lady", "Avocado", "Milk/Oat", "Soy", "Oat"]
    assert data.train.labels.tolist() == data.eval.labels.tolist() == list(range(6))
    assert [data.eval.identity(index) for index in range(6)] == [f"test/{folder}/1.png" for folder in GROCERIES]
    assert caplog.messages == [f"1 image in {tmp_path / 'train'} itself: of no class, not looked at"]
    assert data.record()["class_folders"] == "deepest"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["data/Train/cat", "data/Train/dog", "data/Val/cat", "data/Val/dog"],
            "the folders data/Train, data/Val in {root} are named like splits, and would be mixed: name the "
            "folder that holds them, folder:{root}/data",
        ),
        (["a/cat"], "{root} has images in a/cat alone, and nothing can be learned from one class"),
    ],
)
def test_deepest_folders_that_are_no_classes(tmp_path: Path, folders: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_folder(Request(tmp_path, str(write_tree(tmp_path, *folders)), class_folders="deepest"))
    assert str(caught.value) == message.format(root=tmp_path)


def test_images_of_folders_within_a_deepest_one_are_not_its_own(tmp_path: Path) -> None:
    write_tree(tmp_path, "cat", "cat/tabby", "dog")
    found = read_folder(Request(tmp_path, str(tmp_path), class_folders="deepest"))
    assert found.labels == ["cat", "tabby", "dog"] and found.train.labels.tolist() == [0, 1, 2]


def test_class_folders_of_what_is_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^Digits is no folder of images: leave --class_folders and --labels out$"):
        load_data_set("Digits", tmp_path, class_folders="deepest")
    with pytest.raises(ValueError, match=r"^class_folders is 'last'; legal: None, first, deepest$"):
        load_data_set(f"folder:{tmp_path}", tmp_path, class_folders="last")


# ------------------------------------------------------------------------------------------------- what is passed over
SYSTEM_FOLDERS = ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", ".cache", "System Volume Information"]


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
@pytest.mark.parametrize("inside", ["", "cat", "cat/deep"])
def test_system_folders_are_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, inside: str) -> None:
    write_tree(tmp_path, "cat", "cat/deep", "dog")
    write_tree(tmp_path / inside, name, f"{name}/cat")
    with caplog.at_level(logging.INFO):
        found = read_folder(Request(tmp_path, str(tmp_path), class_folders="first"))
    assert found.labels == ["cat", "dog"] and len(found.train) == 3
    shown = "hidden" if name.startswith(".") else name
    assert caplog.messages == [f"skipped what is the system's: {shown} 1"]


def test_a_system_folder_is_no_split(tmp_path: Path) -> None:
    for root in ("train", "val", "__MACOSX/train", "__MACOSX/val"):
        write_tree(tmp_path / root, "cat", "dog")
    assert read_folder(Request(tmp_path, str(tmp_path))).source == "folder with train, val"


def test_files_passed_over_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """30 photographs of a telephone beside 6 JPEGs are worth a warning, a note beside 20 images is not."""
    write_classes(tmp_path, {"cat": 6, "dog": 20})
    for number in range(30):
        (tmp_path / "cat" / f"{number}.HEIC").write_bytes(b"")
    for name in ("notes.txt", "README"):
        (tmp_path / "dog" / name).write_text("a note")
    for name in ("Thumbs.db", "desktop.ini", "._1.png", ".DS_Store"):
        (tmp_path / "dog" / name).write_bytes(b"")
    with caplog.at_level(logging.INFO):
        assert len(read_folder(Request(tmp_path, str(tmp_path))).train) == 26
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "cat: 30 files not looked at (.heic 30; .heic: pip install pillow-heif)",
        ),
        ("INFO", "dog: 2 files not looked at (.txt 1, no ending 1)"),
        ("INFO", "skipped what is the system's: hidden 2, desktop.ini 1, Thumbs.db 1"),
    ]


def test_few_of_many_folders_with_other_files_have_a_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_classes(tmp_path, {f"c{number}": 1 for number in range(9)})
    for number in range(9):
        for more in range(number):
            (tmp_path / f"c{number}" / f"{more}.xml").write_text("<annotation/>")
    read_folder(Request(tmp_path, str(tmp_path)))
    assert caplog.messages == [
        *(f"c{number}: {number} files not looked at (.xml {number})" for number in (8, 7, 6, 5, 4)),
        "and in 3 folders: 6 files not looked at (.xml 6)",
    ]


def test_a_class_of_files_that_a_plug_in_reads_says_which(tmp_path: Path) -> None:
    write_tree(tmp_path, "dog")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jxl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cat has no images \(looked for .*; .jxl: pip install pillow-jxl-plugin\)"):
        read_folder(Request(tmp_path, str(tmp_path)))


PLUGIN = """
from PIL import Image, ImageFile
class Heic(ImageFile.ImageFile):
    format = format_description = "HEIC"
    def _open(self):
        self._mode, self._size, self.tile = "RGB", (2, 1), [("raw", (0, 0, 2, 1), 4, ("RGB", 0, 1))]
def register_heif_opener():
    Image.register_open("HEIC", Heic, lambda prefix: prefix.startswith(b"heic"))
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stands for pillow_heif: it reads "heic" and six bytes of pixels."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pillow_heif.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    formats.image_endings.cache_clear()
    yield
    formats.image_endings.cache_clear()
    sys.modules.pop("pillow_heif", None)


def test_formats_of_a_plug_in_that_is_installed_are_images(
    tmp_path: Path, plug_in: None, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.HEIC").write_bytes(b"heic" + bytes(range(1, 7)))
    images = read_folder(Request(tmp_path, str(tmp_path / "photos"))).train
    formats.image_endings.cache_clear()  # as in a loader process, which has not looked for files
    monkeypatched = Image.OPEN.pop("HEIC")
    assert monkeypatched and images.image(0).getpixel((1, 0)) == (4, 5, 6)
    assert caplog.messages == []


@pytest.mark.parametrize(("module", "ending"), [("pillow_heif", ".heic"), ("pillow_jxl", ".jxl")])
def test_real_plug_ins(tmp_path: Path, module: str, ending: str) -> None:
    pytest.importorskip(module)
    formats.image_endings()
    for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 200))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), colour).save(tmp_path / name / f"1{ending}")
    red, green, blue = read_folder(Request(tmp_path, str(tmp_path))).train.image(0).convert("RGB").getpixel((9, 9))
    assert red > 190 and max(green, blue) < 10


def test_folders_within_a_class_belong_to_it(tmp_path: Path) -> None:
    """Ordered by the whole path as text: "-" comes before "/", and "/" before letters."""
    for name in ("ant/x/1.png", "ant/x-1/1.png", "ant/xy/deep/1.png", "ant/x.png", "ant-2/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    found = read_folder(Request(tmp_path, str(tmp_path)))
    assert found.labels == ["ant", "ant-2"]
    names = [Path(found.train.describe(index)).relative_to(tmp_path).as_posix() for index in range(5)]
    assert names == ["ant-2/1.png", "ant/x-1/1.png", "ant/x.png", "ant/x/1.png", "ant/xy/deep/1.png"]
    assert found.train.labels.tolist() == [1, 0, 0, 0, 0]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    elsewhere = write_classes(tmp_path / "elsewhere", CLASSES)
    linked = tmp_path / "linked"
    (linked / "bee" / "part").mkdir(parents=True)
    (linked / "ant").symlink_to(elsewhere / "ant")
    (linked / "bee" / "part" / "all").symlink_to(elsewhere / "bee")
    (linked / "cow").mkdir()
    for index in range(10):
        (linked / "cow" / f"{index}.png").symlink_to(elsewhere / "cow" / f"{index:02d}.png")
    found = read_folder(Request(tmp_path, str(linked)))
    assert np.bincount(found.train.labels).tolist() == [20, 10, 10]
    assert found.train.image(39).size == (8, 8)
    assert found.train.describe(20) == str(linked / "bee" / "part" / "all" / "00.png")


def test_link_in_a_circle_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "b" / "again").symlink_to(tmp_path / "b")
    with pytest.raises(ValueError, match=r"b/again links to a folder that it lies in; remove the link$"):
        load_data_set(f"folder:{tmp_path}", tmp_path)


def test_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = write_classes(tmp_path, {"a": 3, "b": 3}) / "b" / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="b/closed"):
        load_data_set(f"folder:{tmp_path}", tmp_path)


def spoil(path: Path) -> None:
    """Half of a file, as an interrupted copy leaves it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def folder_with_a_broken_file(tmp_path: Path) -> ImageSet:
    for split in ("train", "test"):
        write_classes(tmp_path / split, CLASSES)
    spoil(tmp_path / "test" / "bee" / "03.png")
    return load_data_set(f"folder:{tmp_path}", tmp_path).eval


def test_broken_file_is_named(folder_with_a_broken_file: ImageSet) -> None:
    with pytest.raises(ValueError, match=r"cannot read the image .*test/bee/03.png .*repair it or remove it"):
        folder_with_a_broken_file.image(23)
    with pytest.raises(ValueError, match=r"test/bee/03.png"):
        list(make_loader(folder_with_a_broken_file, PREPROCESSING.eval_transform(), 8))


@pytest.mark.slow  # torch waits five seconds for a worker that has raised
def test_broken_file_is_named_by_workers(folder_with_a_broken_file: ImageSet) -> None:
    with pytest.raises(ValueError, match=r"test/bee/03.png"):
        list(make_loader(folder_with_a_broken_file, PREPROCESSING.eval_transform(), 8, workers=1))


def test_image_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    Image.new("F", (4, 4), -1.0).save(tmp_path / "a" / "x.tif")
    images = load_data_set(f"folder:{tmp_path}", tmp_path)
    parts = (images.train, images.select, images.eval)
    with pytest.raises(ValueError, match=r"a/x.tif: an image of mode 'F' holds values from -1"):
        for part in parts:
            list(make_loader(part, PREPROCESSING.eval_transform(), 2))


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda root: None, FileNotFoundError, "folder:.*nowhere is not a folder"),
        (lambda root: root.mkdir(), ValueError, "nowhere has no class folders"),
        (
            lambda root: (write_classes(root, {"bee": 1}), (root / "ant").mkdir()),
            ValueError,
            "ant has no images .looked for .avif, .bmp,",
        ),
        (
            lambda root: write_classes(root, {"ant": 1, "bee": 1}),
            ValueError,
            "cannot hold out 20% of 2 images: no class has two images left; add images, or give the data an evaluation "
            "split of its own, such as the folders train/ and test/$",
        ),
        (
            lambda root: (write_classes(root / "train", CLASSES), write_classes(root / "val", {"ant": 1, "dog": 1})),
            ValueError,
            "the classes in .*val and .*train differ: bee, cow, dog$",
        ),
        (
            lambda root: (
                write_classes(root / "train", {f"c{index:02d}": 1 for index in range(15)}),
                write_classes(root / "val", {"c00": 1, "c14": 1}),
            ),
            ValueError,
            "differ: c01, c02, c03, c04, c05, c06, c07, c08, c09, c10 and 3 more$",
        ),
        (
            lambda root: (write_classes(root / "train", CLASSES), (root / "test").mkdir()),
            ValueError,
            "test has no class folders; it should hold one folder of images for each class, or be moved away$",
        ),
        (
            lambda root: [write_classes(root / split, CLASSES) for split in ("train", "val", "valid")],
            ValueError,
            "nowhere has val/ and valid/, which mean the same; keep one of them",
        ),
    ],
)
def test_folder_errors(tmp_path: Path, prepare: Callable[[Path], object], error: type[Exception], message: str) -> None:
    prepare(tmp_path / "nowhere")
    with pytest.raises(error, match=message) as caught:
        load_data_set(f"folder:{tmp_path / 'nowhere'}", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_has_no_official_split(tmp_path: Path) -> None:
    write_classes(tmp_path, CLASSES)
    with pytest.raises(ValueError, match=r"folder:.* has no official split; take --split seeded"):
        load_data_set(f"folder:{tmp_path}", tmp_path, split="official")
