"""`vit_validation.py` with the heads of the 2023 implementation, as they were published: `{dataset}_model.pt`.

What they have to answer is worked out by that implementation's own joint attention (test_legacy.py), on pixels that
Pillow alone has made.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vit_validation
from image_trees import write_images, write_lines
from learnable_memory.commands import run_command, validation
from learnable_memory.data import load_data_set
from learnable_memory.rgb import to_rgb
from test_data import write_torchvision_cifar
from test_inaturalist import root  # noqa: F401 (a fixture)
from test_legacy import PATCH, SIDE, base_of, old_logits, old_state, written
from test_scenes import write_places, write_sun
from tiny import add_random_head
from vit import MemoryCapableViT

QUICK = ["--workers", "0", "--batch_size", "16", "--device", "cpu", "--no_download"]
PIXELS = SIDE * PATCH
# data set -> classes and cells of its head, images to evaluate on; SUN and iNaturalist hold a fifth out
FOUR = {"CIFAR100": (100, 1, 100), "INaturalist": (4, 2, 8), "Places": (3, 1, 2), "Sun": (3, 4, 6)}
DRAWN = ("INaturalist", "Sun")  # of which that implementation drew a split of its own
NOTE = (
    "the 2023 implementation drew its own split of these data, so that these heads may have been trained on some of "
    "the images that they are evaluated on here"
)

WITHOUT_IMAGES = "Places: 1 of 3 classes has no evaluation image: apartment_building/outdoor"


def old_head(classes: int, memory_tokens: int) -> dict[str, Tensor]:
    """The state dict of a file with one head; all have the same base."""
    generator = torch.Generator().manual_seed(classes)
    own = old_state((memory_tokens,))
    weights = own["classifiers.1.weight"]
    own["classifiers.1.weight"] = torch.randn(classes, weights.shape[1], generator=generator)
    own["classifiers.1.bias"] = torch.randn(classes, generator=generator)
    added = ("memory_tokens", "attention_mask", "cls_tokens.1", "classifiers.1")
    return own | {name: value for name, value in old_state().items() if not any(word in name for word in added)}


@pytest.fixture
def base(tmp_path) -> Path:
    base_of(old_state(), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def four(tmp_path, base, root, monkeypatch) -> Path:  # noqa: F811
    """A directory with tiny data sets of the four names, and a head on each in models/."""
    write_torchvision_cifar(tmp_path, "CIFAR100", monkeypatch)
    write_places(tmp_path)
    write_sun(tmp_path)
    (tmp_path / "models").mkdir()
    for name, (classes, memory_tokens, _) in FOUR.items():
        written(tmp_path / "models" / f"{name}_model.pt", old_head(classes, memory_tokens))
    return tmp_path


def validate(directory: Path, *flags) -> dict[str, dict]:
    """The rows of the JSON file by head."""
    results = directory / "results.json"
    where = ["--directory", directory, "--models_folder", directory / "models", "--output", results]
    assert vit_validation.main([*QUICK, *map(str, [*where, *flags])]) == 0
    return {row["head"]: row for row in json.loads(results.read_text())["heads"]}


@pytest.fixture
def fails(capsys) -> Callable[..., str]:
    def ending(directory: Path, *flags) -> str:
        """The last line of stderr; messages of logging are before it."""
        where = ["--directory", directory, "--models_folder", directory / "models"]
        assert run_command(vit_validation.main, [*QUICK, *map(str, [*where, *flags])], prog="prog") == 2
        return capsys.readouterr().err.splitlines()[-1].removeprefix("prog: error: ")

    return ending


def old_scores(directory: Path, name: str, state: dict[str, Tensor], mean: float = 0.0) -> tuple[float, float]:
    """Top-1 and loss as that implementation would have them on the images that are held out here."""
    images = load_data_set(name, directory, download=False).eval
    pixels = [to_rgb(images.image(row)).resize((PIXELS, PIXELS), 2) for row in range(len(images))]  # 2: bilinear
    pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255 - mean
    logits, labels = old_logits(state, pixels)[1], torch.from_numpy(images.labels)
    return (logits.argmax(1) == labels).float().mean().item(), F.cross_entropy(logits, labels).item()


# --------------------------------------------------------------------------------------------------------- as published
def test_the_four_published_names(four, base, capsys):
    rows = validate(four, "--models-list", *FOUR, "--base_model", base)
    assert list(rows) == list(FOUR)
    for name, (classes, memory_tokens, images) in FOUR.items():
        row = rows[name]
        assert (row["memory_tokens"], row["images"]) == (memory_tokens, images)
        top1, loss = old_scores(four, name, old_head(classes, memory_tokens))
        assert row["top1"] == pytest.approx(top1, abs=1e-6)
        assert row["loss"] == pytest.approx(loss, abs=1e-5)
        normalised = old_scores(four, name, old_head(classes, memory_tokens), mean=0.5)[1]
        assert normalised != pytest.approx(loss, abs=1e-2)
        assert row["split"] == ("unknown" if name in DRAWN else "published")
        assert row["stored_top1"] is row["difference"] is None
        assert row["dataset"]["splits"].keys() == {"eval"} and row["dataset"]["split_seed"] == 0

    titles, *lines = capsys.readouterr().out.splitlines()
    assert titles.split()[-4:] == ["against", "the", "file", "split"]
    assert [line.split()[0] for line in lines[:4]] == list(FOUR)
    assert [line.split()[-2:] for line in lines[:4]] == [["unknown", rows[name]["split"]] for name in FOUR]
    assert lines[4:] == [
        WITHOUT_IMAGES,
        f"split unknown (INaturalist, Sun): {NOTE}",
        f"written to {four / 'results.json'}",
    ]


def test_where_every_split_is_published_nothing_is_marked(four, base, capsys):
    rows = validate(four, "-m", "CIFAR100", "Places", "--base_model", base)
    assert {row["split"] for row in rows.values()} == {"published"}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 + 2 and lines[0].endswith("against the file")
    assert lines[3] == WITHOUT_IMAGES and lines[4].startswith("written to ")


def test_the_real_files(legacy, tmp_path, monkeypatch):
    """CIFAR-100 and 365 places, of which three have images."""
    write_torchvision_cifar(tmp_path, "CIFAR100", monkeypatch)
    places = tmp_path / "datasets"
    categories = [f"/p/place{number:03d}" for number in range(365)]
    write_lines(places / "categories_places365.txt", [f"{name} {label}" for label, name in enumerate(categories)])
    train = [f"{categories[label]}/{number:08d}.jpg {label}" for label in (0, 9, 364) for number in range(3)]
    held_out = [f"Places365_val_{number:08d}.jpg {label}" for number, label in enumerate((364, 0, 9, 9))]
    write_lines(places / "places365_train_standard.txt", train)
    write_lines(places / "places365_val.txt", held_out)
    write_images(places / "data_256_standard", [line.split()[0].lstrip("/") for line in train])
    write_images(places / "val_256", [line.split()[0] for line in held_out])

    flags = ["--models_folder", legacy, "--base_model", legacy / "base"]
    rows = validate(tmp_path, "--models-list", "CIFAR100", "Places", *flags)
    assert {name: (row["images"], row["memory_tokens"]) for name, row in rows.items()} == {
        "CIFAR100": (100, 1),
        "Places": (4, 4),
    }
    assert validate(tmp_path, "-m", "Places", *flags)["Places"]["loss"] == pytest.approx(rows["Places"]["loss"])


def test_beside_a_head_that_says_what_it_has_seen(four, base):
    """The same data set, and so the same images, but other pixels: each has its own."""
    model, sun = MemoryCapableViT.from_pretrained(base), load_data_set("Sun", four, download=False)
    add_random_head(model, "new", 3, 1, metadata={"dataset": sun.record(), "labels": sun.labels})
    model.save_head("new", four / "models" / "new_model.safetensors")
    rows = validate(four, "-m", "Sun", "new")  # the base is the one that the new head names
    assert (rows["Sun"]["split"], rows["new"]["split"]) == ("unknown", "recorded")
    assert rows["new"]["dataset"] == sun.record()
    assert rows["Sun"]["loss"] == pytest.approx(validate(four, "-m", "Sun", "--base_model", base)["Sun"]["loss"])


def test_memory_tokens_are_those_of_the_files(four, base, fails):
    right = [str(memory_tokens) for _, memory_tokens, _ in FOUR.values()]
    assert validate(four, "-m", *FOUR, "-t", *right, "--base_model", base).keys() == FOUR.keys()
    path = four / "models" / "INaturalist_model.pt"
    assert fails(four, "-m", *FOUR, "-t", "1") == (
        f"--number_of_memory_tokens says 1, but {path} has 2. Leave the flag out: the file knows."
    )


# ------------------------------------------------------------------------------------------------------ what is refused
def test_files_that_do_not_say_their_base(four, fails):
    path = four / "models" / "CIFAR100_model.pt"
    assert fails(four, "-m", "CIFAR100", "Sun") == (
        f"{path} does not say which base it was trained on: name it with --base_model."
    )


def test_data_with_other_classes(four, base, fails):
    written(four / "models" / "Sun_model.pt", old_head(397, 1))
    assert fails(four, "-m", "CIFAR100", "Sun", "--base_model", base) == (
        "The head Sun has 397 classes, and Sun here (SUN397, a fifth held out) has 3 classes. Give the data that it "
        "was trained on, by --directory or by their name."
    )


def test_a_file_with_the_name_of_no_data_set(four, base, fails):
    written(four / "models" / "mine_model.pt", old_head(3, 1))
    line = fails(four, "-m", "mine", "--base_model", base)
    assert line.startswith("The head mine comes from a file of the 2023 implementation, which says by its name alone")
    assert ", and mine is no data set (legal: CIFAR10, CIFAR100, " in line
    assert line.endswith("write it again under the right name with python -m learnable_memory heads convert --names.")


def test_what_is_missing_shows_before_anything_is_evaluated(four, base, fails, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("evaluated")

    monkeypatch.setattr(validation, "evaluate", never)
    (four / "datasets" / "places365_val.txt").unlink()
    assert "places365_val.txt" in fails(four, "-m", "CIFAR100", "Sun", "Places", "--base_model", base)
    model = MemoryCapableViT.from_pretrained(base)  # also where it is the second kind of pixels that lacks its data
    record = {"name": "Places", "split_seed": 0, "splits": {}}
    add_random_head(model, "new", 3, 1, metadata={"dataset": record})
    model.save_head("new", four / "models" / "new_model.safetensors")
    assert "places365_val.txt" in fails(four, "-m", "CIFAR100", "new", "--base_model", base)


def test_an_extension_file_is_evaluated_on_the_data_of_its_last_head(four, base, caplog):
    """Its first head is called after no data; the last one is named by the file."""
    added = ("memory_tokens", "attention_mask", "cls_tokens.1", "cls_tokens.2", "classifiers.1", "classifiers.2")
    chain = {name: value for name, value in old_state().items() if not any(word in name for word in added)}
    chain |= {k: v for k, v in old_state((1, 2), ((), (1,))).items() if any(word in k for word in added)}
    generator = torch.Generator().manual_seed(0)
    chain["classifiers.2.weight"] = torch.randn(3, chain["classifiers.2.weight"].shape[1], generator=generator)
    chain["classifiers.2.bias"] = torch.randn(3, generator=generator)
    written(four / "models" / "Places_model.pt", chain)
    with caplog.at_level("INFO"):
        rows = validate(four, "-m", "Places", "--base_model", base)
    assert list(rows) == ["Places"] and rows["Places"]["memory_tokens"] == 2
    assert "Places-1 does not say on which data it was trained: it is not evaluated." in caplog.messages
