"""`python -m learnable_memory data NAME`: its options, what it prints of few and of many classes, and its check."""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessor

from learnable_memory import data as registry
from learnable_memory import overview
from learnable_memory.__main__ import main as learnable_memory
from learnable_memory.commands.data import DataOptions, picture_path, preprocessing_for
from learnable_memory.data import DataSet, load_data_set
from learnable_memory.images import ArrayImages, ImageFiles, ImageSet
from learnable_memory.options import NOT_EMPTY, Options, option, parse, to_dict
from learnable_memory.sources.found import SPLITS
from learnable_memory.transforms import Preprocessing

ROOT = Path(__file__).resolve().parent.parent
BASE_TINY = ROOT / "models" / "base-tiny"
PROG = "python -m learnable_memory data"


# --------------------------------------------------------------------------------------------------- positional options
@dataclass(frozen=True, kw_only=True)
class Greeting(Options):
    """A word without a flag, and a flag."""

    name: str = option(help="whom to greet", flags=("NAME",), legal=NOT_EMPTY)
    times: int = option(1, "how often", flags=("-t", "--times"))


@pytest.mark.parametrize("argv", [["Ada", "-t", "3"], ["-t", "3", "Ada"]], ids=" ".join)
def test_a_positional_option_stands_anywhere(argv: list[str]) -> None:
    options = parse(Greeting, "Greet.", argv)
    assert options == Greeting(name="Ada", times=3)
    assert Greeting(**to_dict(options)) == options


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ([], "the following arguments are required: NAME"),
        ([""], "NAME is '', but it has to be a name or path without spaces around it."),
        (["--name", "Ada"], "unrecognized arguments: --name"),
        (["Ada", "Eve"], "unrecognized arguments: Eve"),
    ],
    ids=str,
)
def test_wrong_positional_options(capsys: pytest.CaptureFixture, argv: list[str], error: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Greeting, "Greet.", argv, prog="greet")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"greet: error: {error} (--help lists the options)\n"


def test_help_explains_a_positional_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(Greeting, "Greet.", ["--help"], prog="greet")
    printed = capsys.readouterr().out
    assert printed.startswith("usage: greet [-h] [-t N] NAME\n")
    assert re.search(r"\n  NAME +whom to greet \(required\)\n", printed)


# ------------------------------------------------------------------------------------------------ the command's options
def test_help_loads_nothing_heavy() -> None:
    """What the whole process has loaded when it ends."""
    script = (
        "import sys; from learnable_memory.__main__ import main\n"
        "try: main(['data', '--help'])\n"
        "finally: print(sorted({'torch', 'numpy', 'PIL', 'matplotlib', 'transformers'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"usage: {PROG} ") and "--check" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_options_know_every_split() -> None:
    for split in SPLITS:
        assert DataOptions(name="Sun", split=split).split == split
    with pytest.raises(ValueError, match=f"--split is 'random', but it has to be one of {', '.join(SPLITS)}"):
        DataOptions(name="Sun", split="random")


def test_without_a_base_the_pixels_are_those_of_googles_vits() -> None:
    """HuggingFace's class has their numbers as its defaults."""
    assert preprocessing_for(DataOptions(name="Digits")) == Preprocessing.from_processor(ViTImageProcessor())


@pytest.mark.parametrize(
    ("output", "name", "expected"),
    [
        ("runs/data", "CIFAR100", "runs/data/CIFAR100.png"),
        ("here", "folder:/data/my cats", "here/my_cats.png"),
        ("here", "hf:someone/cats:large", "here/cats_large.png"),
        ("here", "parquet:/data/cats.parquet", "here/cats.parquet.png"),
        ("here/cats.PNG", "folder:/data/dogs", "here/cats.PNG"),
    ],
)
def test_where_the_contact_sheet_goes(output: str, name: str, expected: str) -> None:
    assert picture_path(Path(output), name) == Path(expected)


# ------------------------------------------------------------------------------------------------------------- in words
def counted(counts: dict[str, Sequence[int]], names: Sequence[str]) -> DataSet:
    """A data set with these counts of each class in train, select and eval."""
    splits = []
    for role in ("train", "select", "eval"):
        labels = np.repeat(np.arange(len(names)), counts[role])
        splits.append(ImageSet(ArrayImages(np.zeros((len(labels), 2, 2), np.uint8), role), labels))
    return DataSet("counted", list(names), *splits, "flip", "memory", 0, 0)


def cells(table: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in table.splitlines()]


def test_the_table_of_splits() -> None:
    counts = {"train": [1200, 7, 0, 30], "select": [5, 5, 5, 5], "eval": [0, 0, 0, 2]}
    data = counted(counts, ["ant", "bee", "cow", "d" * 50])
    d = "d" * 35 + "…"
    assert cells(overview.splits_table(data)) == [
        ["train", "select", "eval"],
        ["images", "1,237", "20", "2"],
        ["smallest class", "7 (bee)", "5 (ant)", f"2 ({d})"],
        ["median class", f"30 ({d})", "5 (bee)", f"2 ({d})"],
        ["largest class", "1,200 (ant)", f"5 ({d})", f"2 ({d})"],
        ["classes without images", "1", "0", "3"],
        ["hash", data.train.hash, data.select.hash, data.eval.hash],
    ]


def test_a_line_for_each_of_few_classes() -> None:
    counts = {"train": [1200, 300, 0], "select": [5, 6, 7], "eval": [1, 2, 3]}
    assert cells(overview.class_balance(counted(counts, ["ant", "bee", "cow"]))) == [
        ["class", "train", "select", "eval", "share of train"],
        ["ant", "1,200", "5", "1", "80.0 %"],
        ["bee", "300", "6", "2", "20.0 %"],
        ["cow", "0", "7", "3", "0.0 %"],
    ]


def test_quantiles_and_extremes_of_many_classes() -> None:
    """25 classes with 25, 24, .., 1 training images: p percent of them are ceil(25 p / 100) classes."""
    down = list(range(25, 0, -1))
    data = counted({"train": down, "select": [3] * 25, "eval": [0] * 24 + [9]}, [f"c{count}" for count in down])
    *table, rarest, frequent = overview.class_balance(data).splitlines()
    assert cells("\n".join(table)) == [
        ["images per class, quantiles", "0 %", "10 %", "25 %", "50 %", "75 %", "90 %", "100 %"],
        ["train", "1", "3", "7", "13", "19", "23", "25"],
        ["select", "3", "3", "3", "3", "3", "3", "3"],
        ["eval", "0", "0", "0", "0", "0", "0", "9"],
    ]
    assert rarest.split(maxsplit=3)[3] == "1 (c1), 2 (c2), 3 (c3), 4 (c4), 5 (c5)"
    assert frequent.split(maxsplit=2)[2] == "25 (c25), 24 (c24), 23 (c23), 22 (c22), 21 (c21)"


def test_many_balanced_classes_have_no_extremes() -> None:
    data = counted({role: [1500] * 21 for role in ("train", "select", "eval")}, [str(label) for label in range(21)])
    assert overview.class_balance(data).splitlines()[-1] == "balanced: every class has 1,500 training images"


def test_sizes_and_modes_of_a_sample_of_every_split(tmp_path: Path) -> None:
    sizes = [(10, 40), (30, 20), (20, 5)]
    splits = []
    for role, mode in (("train", "RGB"), ("select", "L"), ("eval", "RGB")):
        names = [f"{role}{number}.png" for number in range(100)]
        for number, name in enumerate(names):
            Image.new(mode, sizes[number % 3] if role == "train" else (20, 20)).save(tmp_path / name)
        splits.append(ImageSet(ImageFiles(tmp_path, names), np.zeros(100, dtype=np.int64)))
    data = DataSet("sampled", ["one"], *splits, "flip", "files", 0, 0)
    assert overview.sampled_sizes(data) == (
        "96 images looked at: width 10 / 20 / 30, height 5 / 20 / 40 pixels (smallest / median / largest); "
        "modes: 64 RGB, 32 L"
    )


def test_a_small_split_is_looked_at_as_a_whole() -> None:
    data = counted({"train": [3, 4], "select": [1, 0], "eval": [2, 2]}, ["a", "b"])
    assert overview.sampled_sizes(data).startswith("12 images looked at: width 2 / 2 / 2, height 2 / 2 / 2 pixels")


# ---------------------------------------------------------------------------------------------------------- the command
@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, count in {"ant": 20, "bee": 10, "cow": 10}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 6), (count + len(name), number, ord(name[0]))).save(
                tmp_path / "photos" / name / f"{number:02d}.png"
            )
    return tmp_path / "photos"


def test_what_is_printed_and_drawn(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["data", f"folder:{photos}", "--split_seed", "3", "--output", str(tmp_path / "out"), "--no_download"]
    assert learnable_memory([*argv, "--base_model", str(BASE_TINY), "--check", "--workers", "0"]) == 0
    data = load_data_set(f"folder:{photos}", tmp_path, split_seed=3)
    # a fifth of each class is held out, then a tenth of the rest
    table = [["train", "select", "eval"], ["images", "28", "4", "8"]]
    table += [["smallest class", "7 (bee)", "1 (bee)", "2 (bee)"], ["median class", "7 (cow)", "1 (cow)", "2 (cow)"]]
    table += [["largest class", "14 (ant)", "2 (ant)", "4 (ant)"], ["classes without images", "0", "0", "0"]]
    table += [["hash", data.train.hash, data.select.hash, data.eval.hash]]
    balance = [["class", "train", "select", "eval", "share of train"], ["ant", "14", "2", "4", "50.0 %"]]
    balance += [["bee", "7", "1", "2", "25.0 %"], ["cow", "7", "1", "2", "25.0 %"]]
    blocks = capsys.readouterr().out.split("\n\n")
    assert blocks[0].splitlines() == [
        f"folder:{photos}: 3 classes, from folder, a fifth held out",
        "split seeded, split seed 3, selection seed 3",
    ]
    assert [cells(block) for block in blocks[1:3]] == [table, balance]
    assert blocks[3] == "images that cannot be read: 0\ncopies: none"
    assert blocks[4].splitlines() == [
        "40 images looked at: width 8 / 8 / 8, height 6 / 6 / 6 pixels (smallest / median / largest); modes: 40 RGB",
        f"pixels for {BASE_TINY}: resized to 32x32 (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        f"contact sheet: {tmp_path / 'out' / 'photos.png'}",
    ]
    with Image.open(tmp_path / "out" / "photos.png") as image:
        assert image.format == "PNG"


def test_every_option_reaches_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load(name, directory, split_seed, download, **others):
        asked.update(name=name, directory=directory, split_seed=split_seed, download=download, **others)
        raise ValueError("enough")

    monkeypatch.setattr(registry, "load_data_set", load)
    flags = ["-r", str(tmp_path), "--split", "official", "--image_column", "img", "--label_column", "fine_label"]
    flags += ["--class_folders", "deepest", "--labels", "train.txt", "test.txt"]
    assert learnable_memory(["data", "hf:someone/cats", *flags, "--no_download", "--split_seed", "5"]) == 2
    assert asked == {
        "name": "hf:someone/cats", "directory": tmp_path, "split_seed": 5, "download": False, "split": "official",
        "image_column": "img", "label_column": "fine_label", "class_folders": "deepest",
        "label_files": ("train.txt", "test.txt"),
    }  # fmt: skip


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_check_lists_what_is_broken(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, workers: str
) -> None:
    data = load_data_set(f"folder:{photos}", tmp_path)
    spoiled = {role: photos / getattr(data, role).identity(0) for role in ("train", "eval")}
    for path in spoiled.values():
        path.write_bytes(b"")
    argv = ["data", f"folder:{photos}", "--output", str(tmp_path / "out"), "--check", "--workers", workers]
    assert learnable_memory(argv) == 1
    *reasons, count, no_copies = capsys.readouterr().out.split("\n\n")[3].splitlines()
    assert (count, no_copies) == ("images that cannot be read: 2", "copies: none")
    for reason, (role, path) in zip(reasons, spoiled.items(), strict=True):
        assert reason.startswith(f"{role}: cannot read the image {path} (") and reason.endswith(
            "repair it or remove it"
        )
    assert not (tmp_path / "out").exists()


def write_splits(root: Path, places: dict[str, int]) -> Path:
    """Images by their path without ending, each of one number; the same number is the same image."""
    for path, number in places.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / f"{path}.png")
    return root


def check_of(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    """Exit code and lines of the check; whatever copies there are, the contact sheet is drawn."""
    argv = ["data", f"folder:{root}", "--output", str(tmp_path / "out"), "--check", "--workers", "0"]
    code = learnable_memory(argv)
    assert (tmp_path / "out" / f"{root.name}.png").exists()
    return code, capsys.readouterr().out.split("\n\n")[3].splitlines()


def test_the_check_finds_a_validation_split_that_is_a_copy_of_train(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Here the test split; and one image of it, stored in another format, in the validation split too."""
    numbers = {f"cat/{number}": number for number in range(3)} | {f"dog/{number}": 10 + number for number in range(3)}
    places = {f"{split}/{path}": number for split in ("train", "test") for path, number in numbers.items()}
    root = write_splits(tmp_path / "photos", places | {"val/cat/x": 50, "val/dog/x": 51})
    Image.new("RGB", (4, 4), (2, 0, 0)).save(root / "val" / "cat" / "y.bmp")
    Image.new("RGB", (4, 8), (1, 0, 0)).save(
        root / "val" / "cat" / "z.png"
    )  # as many bytes of the same colour, not more
    code, lines = check_of(root, tmp_path, capsys)
    assert code == 1 and lines == [
        "images that cannot be read: 0",
        "1 of 4 images of select are in train too, pixel for pixel:",
        "  select: val/cat/y.bmp (cat) = train: train/cat/2.png (cat)",
        "6 of 6 images of eval are in train too, pixel for pixel:",
        *(f"  eval: test/{path}.png ({path[:3]}) = train: train/{path}.png ({path[:3]})" for path in numbers),
        "1 of 6 images of eval are in select too, pixel for pixel:",
        "  eval: test/cat/2.png (cat) = select: val/cat/y.bmp (cat)",
    ]


def test_the_check_finds_copies_with_different_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Twelve images that are in both classes: ten are named."""
    places = {
        f"{split}/cat/{number}": 20 * s + number for s, split in enumerate(("train", "test")) for number in range(15)
    }
    places |= {f"train/dog/{number}": number for number in range(12)} | {"test/dog/1": 99, "train/dog/a": 98}
    code, (unreadable, heading, *pairs, more) = check_of(write_splits(tmp_path / "photos", places), tmp_path, capsys)
    # whatever select has drawn of train, a cat and the dog that is its copy are told apart by their labels alone
    assert code == 1 and unreadable == "images that cannot be read: 0"
    *_, heading = [line for line in (heading, *pairs) if not line.startswith("  ")]
    assert heading == "12 images with different labels:" and more == "  and 2 more"
    listed = pairs[-10:]
    assert len({pair.partition("/cat/")[2].partition(".")[0] for pair in listed}) == 10
    for pair in listed:
        numbers = re.findall(r"/(\d+)\.png", pair)
        assert len(numbers) == 2 and len(set(numbers)) == 1 and "(cat)" in pair and "(dog)" in pair


def test_a_place_that_cannot_be_written_to_names_the_option(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out").write_text("no folder")
    assert learnable_memory(["data", f"folder:{photos}", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"error: cannot write the contact sheet to {tmp_path / 'out' / 'photos.png'} (" in error
    assert error.endswith("): choose another place with --output\n")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("Digit", "unknown data set 'Digit', did you mean Digits?"),
        ("folder:nowhere", "nowhere is not a folder; it should hold one folder of images for each class"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, error: str) -> None:
    assert learnable_memory(["data", name, "-r", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"{PROG}: error: ") and error in printed.err


def test_a_broken_image_that_would_be_shown_is_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = load_data_set(f"folder:{photos}", tmp_path)
    (photos / data.train.identity(0)).write_bytes(b"")
    assert learnable_memory(["data", f"folder:{photos}", "--output", str(tmp_path / "out")]) == 2
    assert f"error: cannot read the image {photos / data.train.identity(0)} (" in capsys.readouterr().err
