"""Broken images stop a run by name, or are left out before it."""

import dataclasses
import errno
import io
import logging
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vit_train
import vit_validation
from learnable_memory import broken, heads
from learnable_memory.broken import Inspector, find_broken, leave_out_broken
from learnable_memory.commands import run_command
from learnable_memory.data import DataSet, load_data_set
from learnable_memory.images import EncodedImages, ImageSet
from learnable_memory.loading import make_loader
from learnable_memory.transforms import Preprocessing
from odd_images import image_set, write_broken_files, write_odd_images, write_slim_images

BASE_TINY = Path(__file__).resolve().parent.parent / "models" / "base-tiny"
QUICK = ["--workers", "0", "--batch_size", "16", "--device", "cpu", "--no_download"]


# ------------------------------------------------------------------------------------------------------- what is broken
class Faulty:
    """Images that cannot be read for one reason."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def identity(self, row: int) -> str:
        return str(row)

    describe = identity

    def read(self, row: int, side: int = 0) -> Image.Image:
        raise self.error


def broken_in(images: Faulty) -> dict[int, str]:
    return find_broken(ImageSet(images, np.zeros(1, dtype=np.int64)), workers=0)


@pytest.mark.parametrize(
    "error",
    [
        OSError("image file is truncated"),
        SyntaxError("broken PNG file"),
        struct.error("unpack requires a buffer of 4 bytes"),
        zlib.error("incorrect header check"),
        OSError(errno.EINVAL, "Invalid argument"),  # a seek to a place that a damaged file names
    ],
    ids=repr,
)
def test_whatever_a_decoder_raises_means_a_broken_image(error: Exception) -> None:
    (reason,) = broken_in(Faulty(error)).values()
    assert reason == f"cannot read the image 0 ({type(error).__name__}: {error}); repair it or remove it"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
    ids=repr,
)
def test_faults_of_the_machine_are_no_broken_images(error: Exception) -> None:
    with pytest.raises(ValueError, match=f"cannot read the image 0 .{type(error).__name__}"):
        broken_in(Faulty(error))


def test_errors_that_are_no_broken_image_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(image: Image.Image) -> Image.Image:
        raise TypeError("a bug of ours")

    monkeypatch.setattr(broken, "to_rgb", bug)
    write_slim_images(tmp_path)
    with pytest.raises(TypeError, match="a bug of ours"):
        find_broken(image_set(tmp_path, ["dot.png"]), workers=0)


def test_an_image_that_cannot_be_converted_is_broken_too(tmp_path: Path) -> None:
    Image.new("F", (4, 4), -1.0).save(tmp_path / "negative.tif")
    found = find_broken(image_set(tmp_path, ["negative.tif"]), workers=0)
    assert list(found) == [0]
    assert found[0].startswith(f"{tmp_path / 'negative.tif'}: an image of mode 'F' holds values from -1 to -1")


def test_images_in_memory_are_checked_too() -> None:
    pa = pytest.importorskip("pyarrow")
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    column = pa.chunked_array([pa.array([file.getvalue(), b"", file.getvalue()], type=pa.binary())])
    found = find_broken(ImageSet(EncodedImages(column, "train.parquet"), np.zeros(3, dtype=np.int64)), workers=0)
    assert list(found) == [1]
    assert found[1].startswith("cannot read the image row 1 of train.parquet (")


# ----------------------------------------------------------------------------------------------------- leaving them out
COUNTS = {"ant": 20, "bee": 10}


def write_photos(root: Path) -> Path:
    for name, count in COUNTS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name / f"{number:02d}.png")
    return root


def spoil(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).write_bytes(b"no image")


def names_of(split: ImageSet) -> list[str]:
    return [split.identity(index) for index in range(len(split))]


def names_in(data: DataSet) -> dict[str, list[str]]:
    return {role: names_of(getattr(data, role)) for role in ("train", "select", "eval")}


def load(folder: Path) -> DataSet:
    return load_data_set(f"folder:{folder}", folder.parent)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def test_broken_images_leave_their_split_and_nothing_else_moves(photos: Path) -> None:
    whole = names_in(load(photos))
    spoiled = {role: names[1:3] for role, names in whole.items() if role != "select"}
    spoil(photos, [name for names in spoiled.values() for name in names])
    data = leave_out_broken(load(photos), Inspector(0))
    assert data.left_out == {**spoiled, "select": []}
    for role, names in names_in(data).items():
        assert names == [name for name in whole[role] if name not in data.left_out[role]]
    labels = [name.startswith("bee") for name in names_of(data.train)]
    assert data.train.labels.tolist() == labels
    for index in range(len(data.train)):
        assert data.train.image(index).getpixel((0, 0))[0] == int(Path(names_of(data.train)[index]).stem)


def test_whole_data_is_left_as_it_is_and_known_to_be_checked(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load(photos)
    assert before.left_out is None
    with caplog.at_level(logging.INFO, "learnable_memory"):
        after = leave_out_broken(before, Inspector(0))
    assert after.left_out == {"train": [], "select": [], "eval": []}
    assert names_in(after) == names_in(before)
    assert {role: getattr(after, role).hash for role in names_in(after)} == {
        role: getattr(before, role).hash for role in names_in(before)
    }
    assert caplog.messages == [
        f"{role}: all {len(names)} images can be read" for role, names in names_in(before).items()
    ]


def test_only_the_splits_that_are_asked_for_are_looked_at(photos: Path) -> None:
    whole = names_in(load(photos))
    spoil(photos, [whole["train"][0], whole["eval"][0]])
    data = leave_out_broken(load(photos), Inspector(0), ["eval"])
    assert data.left_out == {"eval": whole["eval"][:1]}
    assert names_of(data.train) == whole["train"]


def test_the_log_counts_what_is_left_out_and_names_the_first(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoiled = names_of(load(photos).train)[:5]
    spoil(photos, spoiled)
    leave_out_broken(load(photos), Inspector(0))
    (message,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert message.startswith("train: 5 of 21 images cannot be read and are left out: cannot read the image ")
    assert [name for name in spoiled if f"{photos / name} (" in message] == spoiled[:3]
    assert message.endswith("; and 2 more") and "UnidentifiedImageError" in message and "\n" not in message


def test_a_class_without_training_images_is_an_error(photos: Path) -> None:
    spoil(photos, [name for name in names_of(load(photos).train) if name.startswith("bee")])
    with pytest.raises(
        ValueError, match=r"^no training image of bee in folder:.*photos can be read: repair some of them"
    ):
        leave_out_broken(load(photos), Inspector(0))


def test_a_class_that_never_had_training_images_is_no_error(photos: Path) -> None:
    data = load(photos)
    ants = data.train.subset(np.flatnonzero(data.train.labels == 0))
    assert len(leave_out_broken(dataclasses.replace(data, train=ants), Inspector(0)).train) == len(ants)


@pytest.mark.parametrize(("role", "images"), [("train", 21), ("select", 3), ("eval", 6)])
def test_an_empty_split_is_an_error(photos: Path, role: str, images: int) -> None:
    spoil(photos, names_in(load(photos))[role])
    message = f"^none of the {images} images of folder:.*photos's {role} split can be read: repair them$"
    with pytest.raises(ValueError, match=message):
        leave_out_broken(load(photos), Inspector(0))


def test_worker_processes_find_the_same_in_the_same_order(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, "FEW", 0)
    monkeypatch.setattr(broken, "BATCH", 2)
    spoil(photos, names_of(load(photos).train)[::4])
    before = torch.get_rng_state()
    alone = leave_out_broken(load(photos), Inspector(0))
    helped = leave_out_broken(load(photos), Inspector(2))
    assert len(alone.left_out["train"]) == 6
    assert helped.left_out == alone.left_out
    assert names_in(helped) == names_in(alone)
    assert torch.equal(torch.get_rng_state(), before)  # nobody's random numbers depend on whether images were checked


@pytest.mark.parametrize(("few", "expected"), [(22, [0]), (21, [3])])
def test_few_images_take_no_workers(
    photos: Path, monkeypatch: pytest.MonkeyPatch, few: int, expected: list[int]
) -> None:
    asked = []

    def loader(images, batch, num_workers, **others):
        asked.append(num_workers)
        return [[(None, None)] * len(images)]

    monkeypatch.setattr(broken, "FEW", few)
    monkeypatch.setattr(broken, "DataLoader", loader)
    assert find_broken(load(photos).train, workers=3) == {}
    assert asked == expected
    find_broken(load_data_set("Digits", photos).train, workers=3)  # 1,295 images, but decoded already
    assert asked[1:] == [0]


@pytest.mark.slow  # torch waits five seconds for a worker that has raised
def test_faults_of_the_machine_come_out_of_a_worker(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, "FEW", 0)
    data = load(photos)
    missing = names_of(data.train)[2]
    (photos / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        leave_out_broken(data, Inspector(1))


def test_the_record_counts_all_that_is_left_out_and_names_a_hundred(photos: Path) -> None:
    data = load(photos)
    assert data.record()["left_out"] is None
    names = [f"ant/{number}.png" for number in range(150)]
    record = dataclasses.replace(data, left_out={"train": names, "eval": []}).record()["left_out"]
    assert record == {"train": {"images": 150, "names": names[:100]}, "eval": {"images": 0, "names": []}}


# ----------------------------------------------------------------------------------------------------------- end to end
def write_folder(root: Path, write_more: Callable[[Path], object]) -> Path:
    """12 ordinary photographs of each of two classes, cats darker than dogs, and some files more among the cats."""
    generator = np.random.default_rng(0)
    for name, brightness in (("cat", 0), ("dog", 100)):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 150, (40, 50, 3)) + brightness
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.jpg")
    write_odd_images(root / "dog")
    write_slim_images(root / "dog")
    write_more(root / "cat")
    return root


def train(photos: Path, output: Path, *flags: str) -> int:
    common = ["--base_model", str(BASE_TINY), "--output", str(output), "--epochs", "1", "-d", f"folder:{photos}"]
    return run_command(vit_train.main, [*QUICK, *common, *flags], prog="prog")


def difference_in_validation(output: Path, capsys: pytest.CaptureFixture) -> str:
    assert vit_validation.main([*QUICK, "--models_folder", str(output), "-m", "photos"]) == 0
    return capsys.readouterr().out.split()[-1]


@pytest.mark.slow
def test_training_stops_at_a_broken_image_and_goes_through_without(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photos = write_folder(tmp_path / "photos", write_broken_files)
    assert train(photos, tmp_path / "models") == 2
    *_, last = capsys.readouterr().err.splitlines()
    named = re.match(rf"prog: error: .*the image {photos}/cat/(\S+) ", last)
    names = write_broken_files(tmp_path)
    assert named[1] in names
    for name in names:
        (photos / "cat" / name).unlink()
    assert train(photos, tmp_path / "models", "--overwrite") == 0
    record = heads.read_metadata(tmp_path / "models" / "photos_model.safetensors")["dataset"]
    assert sum(split["images"] for split in record["splits"].values()) == 12 + 12 + 22 + 3
    capsys.readouterr()
    assert difference_in_validation(tmp_path / "models", capsys) == "+0.00"


@pytest.mark.slow
def test_broken_images_are_skipped_and_counted_in_the_head(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    photos = write_folder(tmp_path / "photos", write_broken_files)
    assert train(photos, tmp_path / "models", "--on_bad_image", "skip") == 0
    record = heads.read_metadata(tmp_path / "models" / "photos_model.safetensors")["dataset"]
    left_out = record["left_out"]
    expected = [f"cat/{name}" for name in write_broken_files(tmp_path)]
    assert sorted(name for role in left_out.values() for name in role["names"]) == expected
    assert sum(role["images"] for role in left_out.values()) == 4
    assert sum(split["images"] for split in record["splits"].values()) == 12 + 12 + 22 + 3
    assert "images cannot be read and are left out: " in caplog.text
    capsys.readouterr()
    assert difference_in_validation(tmp_path / "models", capsys) == "+0.00"


def test_a_header_that_claims_more_than_there_is_memory_for_is_a_broken_image() -> None:
    (reason,) = broken_in(Faulty(MemoryError())).values()
    assert "MemoryError" in reason


def test_each_image_is_decoded_once_for_all_selection_seeds(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(photos)
    spoil(photos, names_of(data.train)[:2])
    asked, look = [], broken.find_broken
    monkeypatch.setattr(
        broken, "find_broken", lambda split, *more, **named: asked.append(len(split)) or look(split, *more, **named)
    )
    inspector = Inspector(0)
    found = [leave_out_broken(data.with_select_seed(seed), inspector) for seed in (0, 1, 2)]
    everything = len(data.train) + len(data.select) + len(data.eval)
    assert sum(asked) == everything
    alone = [leave_out_broken(data.with_select_seed(seed), Inspector(0)) for seed in (0, 1, 2)]
    assert [names_in(each) for each in found] == [names_in(each) for each in alone]
    assert len({each.select.hash for each in found}) == 3
    for each in found:
        assert len(each.left_out["train"]) + len(each.left_out["select"]) == 2


def test_a_check_lists_missing_files_among_the_broken_ones(photos: Path) -> None:
    data = load(photos)
    first, second, third = names_of(data.train)[:3]
    spoil(photos, [first, third])
    (photos / second).unlink()
    found = find_broken(data.train, workers=0, all_faults=True)
    assert list(found) == [0, 1, 2] and second in found[1] and "FileNotFoundError" in found[1]
    with pytest.raises(ValueError, match=second):
        find_broken(data.train, workers=0)


@pytest.mark.parametrize("name", ["broken.png", "negative.tif"])
def test_a_broken_image_names_the_way_around_it(photos: Path, name: str) -> None:
    """Not where it is left out already, nor where the file is missing, which is none of its own faults."""
    skip = ", or train and predict without such images: --on_bad_image skip"
    if name == "broken.png":
        (photos / "bee" / name).write_bytes(b"no image")
    else:
        Image.new("F", (4, 4), -1.0).save(photos / "bee" / name)
    images = image_set(photos / "bee", [name])
    with pytest.raises(ValueError, match=re.escape(f"{skip}") + "$"):
        list(make_loader(images, Preprocessing(8, 8, "bilinear", 1, (0, 0, 0), (1, 1, 1)).eval_transform()))
    (reason,) = find_broken(images, workers=0).values()
    assert "--on_bad_image" not in reason
    (photos / "bee" / name).unlink()
    with pytest.raises(ValueError, match=r"repair it or remove it$"):
        images.image(0)
