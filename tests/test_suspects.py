"""`python -m learnable_memory data suspects FILE`: what it prints, lists and draws, and that it finds wrong labels."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from command_lines import CHANNELS, in_colour, save_pictures, train
from learnable_memory import out_of_fold
from learnable_memory.__main__ import main as learnable_memory
from learnable_memory.broken import Inspector, leave_out_broken
from learnable_memory.commands import suspects
from learnable_memory.contact_sheet import SIDE, suspects_sheet
from learnable_memory.data import DataSet, load_data_set
from learnable_memory.images import ArrayImages, ImageSet
from learnable_memory.out_of_fold import OutOfFold
from learnable_memory.plots import FAINT, HEADS, INK
from test_contact_sheet import check_layout, enlarged, texts, tile

PROG = "python -m learnable_memory data"


def judged(data: DataSet, probability: Sequence[float], predicted: Sequence[int], head: str = "pets") -> OutOfFold:
    """What heads might have said of the training images; whoever errs is sure of it by 0.9."""
    label, predicted = data.train.labels, np.array(predicted)
    confidence = np.where(label == predicted, probability, 0.9)
    names = [data.train.identity(index) for index in range(len(data.train))]
    fold = np.arange(len(names)) % 2
    return OutOfFold(
        head, 2, data.labels, data.record(), names, label, fold, predicted, np.array(probability), confidence
    )  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six training images of two classes, each of another green, and two to evaluate on."""
    for number, name in enumerate(["cat/a", "cat/b", "cat/c", "dog/d", "dog/e", "dog/f", "cat/x", "dog/y"]):
        path = tmp_path / "photos" / ("train" if number < 6 else "val") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (0, 10 * number, 0)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def written(photos: Path, tmp_path: Path) -> Path:
    """Predictions of which dog/e and cat/b are the most doubtful, in this order."""
    data = load_data_set(f"folder:{photos}", tmp_path).for_folds(2)
    found = judged(data, [0.8, 0.25, 0.7, 0.6, 1.25e-8, 0.9], [0, 1, 0, 1, 0, 1])
    return out_of_fold.save(found, tmp_path / "models" / "pets_out_of_fold.json")


def run(*argv: str | Path) -> int:
    return learnable_memory(["data", "suspects", *map(str, argv)])


# --------------------------------------------------------------------------------------------------------- the command
@pytest.mark.parametrize("by_name", [False, True])
def test_the_least_likely_labels_are_printed_listed_and_drawn(
    photos: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture, drawn: list[Figure], by_name: bool
) -> None:
    file = ["pets", "--models_folder", written.parent] if by_name else [written]
    assert run(*file, "--most", "3", "--output", tmp_path / "out", "-r", tmp_path, "--no_download") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"folder:{photos}: the 3 least likely labels of 6 training images, each judged by the one of 2 heads that has "
        "not learned from it",
        "",
        "rank  image            label  predicted  probability  confidence",
        "1     train/dog/e.png  dog    cat        0.0000       0.9000",
        "2     train/cat/b.png  cat    dog        0.2500       0.9000",
        "3     train/dog/d.png  dog    dog        0.6000       0.6000",
        "",
        f"list: {tmp_path / 'out' / 'pets_suspects.csv'}",
        f"contact sheet: {tmp_path / 'out' / 'pets_suspects.png'}",
    ]
    with (tmp_path / "out" / "pets_suspects.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "rank": "1", "image": "train/dog/e.png", "label": "dog", "predicted": "cat", "probability": "1.25e-08",
        "confidence": "0.9", "fold": "0", "where": str(photos / "train/dog/e.png"),
    }  # fmt: skip
    assert [Path(row["where"]).name for row in rows] == ["e.png", "b.png", "d.png"]
    with Image.open(tmp_path / "out" / "pets_suspects.png") as image:
        assert image.format == "PNG"
    middle = SIDE // 2
    shown = [tile(drawn[0], 0, column, lines=3)[middle, middle].tolist() for column in range(3)]
    assert shown == [[0, 40, 0], [0, 10, 0], [0, 30, 0]]


def test_a_picture_of_another_name_has_its_list_beside_it(written: Path, tmp_path: Path) -> None:
    assert run(written, "--output", tmp_path / "here" / "look.png") == 0
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["look.csv", "look.png"]
    assert (
        len((tmp_path / "here" / "look.csv").read_text(encoding="utf-8").splitlines()) == 7
    )  # all six are fewer than 40


def test_the_sheet_is_shorter_than_a_long_list(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "MOST_DRAWN", 4)
    assert run(written, "--most", "5", "--output", tmp_path) == 0
    assert capsys.readouterr().out.endswith("pets_suspects.png, the first 4\n")
    assert len((tmp_path / "pets_suspects.csv").read_text(encoding="utf-8").splitlines()) == 6
    assert texts(drawn[0])[0].endswith(": 4 of 6 training images, the least likely labels first")


def test_images_left_out_as_broken_are_left_out_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whatever has become of them: nothing is decoded to find that out."""
    (photos / "train" / "cat" / "a.png").write_bytes(b"")
    data = leave_out_broken(load_data_set(f"folder:{photos}", tmp_path).for_folds(2), Inspector(0))
    path = out_of_fold.save(judged(data, [0.9, 0.8, 0.7, 0.6, 0.1], [0, 0, 1, 1, 0]), tmp_path / "a.json")
    Image.new("RGB", (8, 6)).save(photos / "train" / "cat" / "a.png")
    assert run(path, "--output", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "of 5 training images" in printed and "a.png" not in printed and "\n1     train/dog/f.png" in printed


# ------------------------------------------------------------------------------------------------------------ wrong use
def refused(capsys: pytest.CaptureFixture, *argv: str | Path) -> str:
    """The one line with which the command ends."""
    assert run(*argv) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.startswith(f"{PROG}: error: ")
    return printed.err.removeprefix(f"{PROG}: error: ")


@pytest.mark.parametrize("change", ["moved", "added"])
def test_other_data_is_refused(
    photos: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: str
) -> None:
    before = load_data_set(f"folder:{photos}", tmp_path).for_folds(2).train.hash
    if change == "moved":  # to another class
        (photos / "train/dog/e.png").rename(photos / "train/cat/e.png")
    else:
        Image.new("RGB", (8, 6)).save(photos / "train/dog/new.png")
    after = load_data_set(f"folder:{photos}", tmp_path).for_folds(2).train
    assert refused(capsys, written, "--output", tmp_path / "out") == (
        f"The training images of folder:{photos}, or their labels, are not those that pets was cross-validated on "
        f"({len(after)} images of hash {after.hash} here, 6 of {before} then): choose the --directory that has those, "
        "or run vit_train.py --folds again.\n"
    )
    assert not (tmp_path / "out").exists()


def test_classes_are_matched_by_their_names(photos: Path, written: Path, tmp_path: Path, caplog) -> None:
    """The predictions know them in another order than folders are sorted."""
    found = out_of_fold.load(written)
    turned = replace(found, labels=["dog", "cat"], label=1 - found.label, predicted=1 - found.predicted)
    turned = replace(turned, dataset=with_labels(photos, tmp_path, ["dog", "cat"]).record())
    out_of_fold.save(turned, written)
    assert run(written, "--most", "1", "--output", tmp_path / "out", "-r", tmp_path) == 0
    assert "1,train/dog/e.png,dog,cat," in (tmp_path / "out" / "pets_suspects.csv").read_text(encoding="utf-8")
    assert "they are matched by their names" in caplog.text


def with_labels(photos: Path, directory: Path, labels: list[str]) -> DataSet:
    return load_data_set(f"folder:{photos}", directory, labels=labels).for_folds(2)


def test_other_classes_are_refused_by_name(
    photos: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for split in ("train", "val"):
        (photos / split / "dog").rename(photos / split / "wolf")
    said = refused(capsys, written, "--output", tmp_path / "out")
    assert said.startswith("The cross-validation of pets has 2 classes") and "not in the data: dog; only" in said


def test_data_that_is_not_there(photos: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos.rename(tmp_path / "elsewhere")
    assert f"folder:{photos} is not a folder" in refused(capsys, written)


def test_what_is_no_file_of_predictions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a_grid.json").write_text('{"best": "a", "cells": []}', encoding="utf-8")
    (tmp_path / "a_model.safetensors").write_bytes(b"\x88\xff\x00\x00\x00\x00\x00\x00{}")
    for name in ("a_grid.json", "a_model.safetensors"):
        assert "is no file of out-of-fold predictions, as vit_train.py --folds writes" in refused(
            capsys, tmp_path / name
        )
    lost = refused(capsys, "pets", "--models_folder", tmp_path)
    assert lost.startswith(f"There is no file pets, and no pets_out_of_fold.json in {tmp_path} (there: none)")


def test_an_output_that_cannot_be_written(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "taken").write_bytes(b"")
    assert str(tmp_path / "taken") in refused(capsys, written, "--output", tmp_path / "taken")
    assert "not a directory" in refused(capsys, written, "--output", tmp_path / "taken" / "new").lower()


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["a.json", "--most", "0"], "--most is 0, but it has to be 1 or more."),
        ([], "the following arguments are required: FILE"),
        (["a.json", "--check"], "unrecognized arguments: --check"),
    ],
    ids=str,
)
def test_wrong_options(capsys: pytest.CaptureFixture, argv: list[str], error: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{PROG} suspects: error: {error} (--help lists the options)\n"


# ------------------------------------------------------------------------------------------------------------ the sheet
def in_memory(image_set: ImageSet, labels: list[str], name: str = "pets") -> DataSet:
    return DataSet(name, labels, image_set, image_set, image_set, None, "memory", 0, 0, folds=2)


def test_each_image_has_its_label_and_the_predicted_class_below(tmp_path: Path, drawn: list[Figure]) -> None:
    """Small grey images are shown pixel by pixel; a wrong prediction is coloured."""
    pixels = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    data = in_memory(ImageSet(ArrayImages(pixels, "digits"), np.array([1, 0, 0])), ["zero", "one"])
    suspects_sheet(data.train, judged(data, [0.004, 0.5, 0.6], [0, 0, 0]), [0, 2], tmp_path / "sheet.png")
    (figure,) = drawn
    assert texts(figure)[0] == "pets: 2 of 3 training images, the least likely labels first"
    assert texts(figure)[1].endswith("66.7% of all are recognised as their label")
    assert texts(figure)[3:] == ["1: 0", "0.4% one", "90.0% → zero", "2: 2", "60.0% zero", "60.0% → zero"]
    colours = [to_hex(text.get_color()) for text in figure.axes[0].texts[3:]]
    assert colours == [FAINT, INK, HEADS[0], FAINT, INK, FAINT]
    for column, expected in enumerate(pixels[[0, 2]]):
        assert np.array_equal(tile(figure, 0, column, lines=3), enlarged(np.repeat(expected[..., None], 3, axis=2)))


def test_long_names_stay_in_their_cells(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["Animalia_Chordata_Aves_Passeriformes_Troglodytidae", "from $_{ to $", "wood pigeons, " * 4]
    labels = np.arange(20) % 3
    data = in_memory(ImageSet(ArrayImages(np.zeros((20, 4, 4), np.uint8), "a"), labels), names, "folder:/" + "a/" * 90)
    found = judged(data, np.linspace(0, 1, 20), (labels + 1) % 3)
    found.image[3] = "train/" + "very_long_name_" * 10 + "end.jpg"
    suspects_sheet(data.train, found, range(20), tmp_path / "sheet.png")
    (figure,) = drawn
    assert texts(figure)[4] == "0.0% Animalia_Chordata_…"
    assert texts(figure)[3 + 3 * 3] == "4: …" + found.image[3][-20:]
    check_layout(figure)


def test_a_single_image(tmp_path: Path, drawn: list[Figure]) -> None:
    data = in_memory(ImageSet(ArrayImages(np.zeros((1, 4, 4), np.uint8), "a"), np.array([0])), ["one"])
    suspects_sheet(data.train, judged(data, [1.0], [0]), [0], tmp_path / "sheet.png")
    assert (tile(drawn[0], 0, 0, lines=3) == 0).all()
    check_layout(drawn[0])


# ------------------------------------------------------------------------------------------------- does it find errors?
@pytest.mark.slow
def test_flipped_labels_come_first(base: Path, tmp_path: Path) -> None:
    """6 of 60 images were put into a wrong folder. By chance 1.2 of them would be among the 12 first."""

    classes = sorted(CHANNELS)
    root = tmp_path / "photos"
    save_pictures(root / "train", classes, in_colour)
    save_pictures(root / "val", classes, in_colour)
    for number in range(6):
        right, wrong = classes[number % 3], classes[(number + 1 + number // 3) % 3]
        (root / "train" / right / f"{number}.png").rename(root / "train" / wrong / f"wrong{number}.png")
    train(base, tmp_path / "models", "-d", f"folder:{root}", "--folds", "4", "-m", "1", "--epochs", "4", "--lr", "0.3")
    assert run("photos", "--models_folder", tmp_path / "models", "--most", "12", "--output", tmp_path) == 0
    listed = (tmp_path / "photos_suspects.csv").read_text(encoding="utf-8")
    assert listed.count("/wrong") // 2 >= 5  # each is named twice: by its name, and where it is
