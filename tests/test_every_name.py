"""Every data set by name, from tiny files in its exact layout through the command lines.

The files are those of the readers' own tests, and so is what has to be in them.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import ViTImageProcessor

import vit_train
import vit_validation
from learnable_memory import heads
from learnable_memory.__main__ import main
from learnable_memory.data import data_set_names
from pet_tables import write_pets
from test_benchmark_lists import write_fgvc, write_vtab
from test_data import write_torchvision_cifar
from test_fine_grained import cub, flowers, pets  # noqa: F401 (fixtures)
from test_imagenet import tree  # noqa: F401
from test_inaturalist import root  # noqa: F401
from test_mnist import write_raw
from test_scenes import write_places, write_sun
from tiny import tiny_base

QUICK = ["--workers", "0", "--batch_size", "16", "--device", "cpu", "--no_download"]


def files_of(name: str) -> Callable[[pytest.FixtureRequest, Path], object]:
    """What writes the files of a data set below a directory."""
    by_fixture = {"CUB": "cub", "Flowers": "flowers", "ImageNet": "tree", "INaturalist": "root", "Pets": "pets"}
    if name in by_fixture:
        return lambda request, directory: request.getfixturevalue(by_fixture[name])
    if name.startswith("CIFAR"):
        kind = name.partition("-")[0]
        return lambda request, directory: write_torchvision_cifar(
            directory, kind, request.getfixturevalue("monkeypatch")
        )
    by_function = {
        "Digits": lambda directory: None,
        "FashionMNIST-subset": lambda directory: None,
        "FashionMNIST": lambda directory: write_raw(directory, "FashionMNIST"),
        "MNIST": lambda directory: write_raw(directory, "MNIST"),
        "Places": write_places,
        "Sun": lambda directory: write_sun(directory, partition=True),
        "fgvc:CUB": write_fgvc,
        "hf:DIR/pets": lambda directory: write_pets(directory / "pets"),
        "parquet:DIR/pets": lambda directory: write_pets(directory / "pets"),
        "vtab:kitti": write_vtab,
    }
    return lambda request, directory: by_function[name](directory)


# name, flags, classes, images of train, select and eval
CASES = [
    ("CIFAR10", [], 10, (270, 30, 100)),
    ("CIFAR100", [], 100, (200, 100, 100)),
    ("CIFAR100-new20", [], 20, (40, 20, 20)),
    ("CUB", [], 2, (2, 2, 2)),
    ("Digits", [], 10, (1295, 143, 359)),  # fifths and tenths of 174 to 183 of a class, rounded
    ("FashionMNIST", [], 10, (30, 10, 20)),
    ("FashionMNIST-subset", [], 10, (5400, 600, 2000)),
    ("Flowers", [], 102, (2, 2, 3)),
    ("ImageNet", [], 3, (3, 3, 3)),
    ("INaturalist", [], 4, (28, 4, 8)),  # 10 of each species: 2 held out, and 1 of the 8 that are left
    ("INaturalist", ["--split", "official"], 4, (24, 4, 8)),
    ("MNIST", [], 10, (30, 10, 20)),
    ("Pets", [], 2, (2, 2, 2)),
    ("Places", [], 3, (4, 3, 2)),
    ("Sun", [], 3, (21, 3, 6)),
    ("Sun", ["--split", "official"], 3, (6, 3, 6)),
    ("fgvc:CUB", [], 2, (3, 1, 2)),
    ("hf:DIR/pets", [], 2, (8, 2, 3)),
    ("parquet:DIR/pets", [], 2, (8, 2, 3)),
    ("vtab:kitti", [], 4, (3, 2, 2)),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_base().save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_no_name_is_left_out() -> None:
    assert {name for name, *_ in CASES if ":" not in name} == set(data_set_names())


FAST = ("CIFAR100-new20", "Flowers", "parquet:DIR/pets")  # arrays, files and a table: all go the same way from there


@pytest.mark.parametrize(
    ("name", "flags", "classes", "images"),
    [pytest.param(*case, marks=[] if case[0] in FAST else pytest.mark.slow) for case in CASES],
    ids=lambda value: str(value)[:40],
)
def test_a_head_is_trained_and_validated_on_exactly_what_was_held_out(
    name: str, flags: list[str], classes: int, images: tuple[int, int, int], base: Path, tmp_path: Path,
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    files_of(name)(request, tmp_path)
    name = name.replace("DIR", str(tmp_path))
    where = ["--directory", str(tmp_path), "--no_download"]
    assert main(["data", name, *where, *flags, "--base_model", str(base), "--output", str(tmp_path / "sheet.png")]) == 0
    printed = capsys.readouterr().out
    assert f"{classes:,} classes" in printed.splitlines()[0]
    assert (tmp_path / "sheet.png").is_file()

    trained = ["--base_model", str(base), "--output", str(tmp_path), "--name", "head", *where, *QUICK]
    assert vit_train.main(["--dataset", name, *flags, *trained, "--epochs", "1", "--max_steps", "3"]) == 0
    metadata = heads.load(tmp_path / "head_model.safetensors").metadata
    assert (metadata["num_labels"], len(metadata["labels"])) == (classes, classes)
    splits = metadata["dataset"]["splits"]
    assert tuple(splits[role]["images"] for role in ("train", "select", "eval")) == images
    assert metadata["dataset"]["split"] == (flags[-1] if flags else "seeded")
    results = tmp_path / "results.json"
    validated = ["--models_list", "head", "--models_folder", str(tmp_path), "--output", str(results), *where, *QUICK]
    assert vit_validation.main(validated) == 0
    (row,) = json.loads(results.read_text())["heads"]
    assert row["dataset"]["splits"] == splits
    assert (row["difference"], row["images"]) == (0, images[2])
