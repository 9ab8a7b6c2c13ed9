"""Data sets from a folder with one folder of images for each class."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from learnable_memory.data import ImageSet, load_data_set
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


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_names_of_the_validation_folder(tmp_path: Path, name: str) -> None:
    for brightness, split in enumerate(("train", name, "test")):
        write_classes(tmp_path / split, CLASSES, brightness)
    data = load_data_set(f"folder:{tmp_path}", tmp_path)
    assert [{pixel[0] for pixel in first_pixels(split)} for split in (data.train, data.select, data.eval)] == [
        {0}, {1}, {2},
    ]  # fmt: skip
    assert data.source == f"folder with train, {name}, test"


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
        (lambda root: (root / "ant").mkdir(parents=True), ValueError, "ant has no images .looked for .avif, .bmp,"),
        (lambda root: write_classes(root / "train", CLASSES), ValueError, "has train/ but neither val/ nor test/"),
        (lambda root: write_classes(root, {"ant": 1}), ValueError, "cannot hold out 20% of 1 images: no class has two"),
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
            "test has no class folders",
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
