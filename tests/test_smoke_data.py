"""The smoke form of a card: tiny data sets that the readers take for real ones, tiny bases, small options."""

import logging
import sys
from pathlib import Path

import pytest
import torch

from learnable_memory.bases import is_huggingface, preprocessing_of
from learnable_memory.convolutional import ConvolutionalBase
from learnable_memory.data import load_data_set
from learnable_memory.experiments.card_types import Card, Grid
from learnable_memory.experiments.smoke import smoke_card
from learnable_memory.experiments.smoke_bases import write_base
from learnable_memory.experiments.smoke_data import write_data_sets
from learnable_memory.method_spec import MethodSpec
from vit import MemoryCapableViT

VIT, BIT = "google/vit-base-patch32-224-in21k", "timm/resnetv2_152x4_bit.goog_in21k"

# Three classes with 8 images each; a fifth of 8 is 1.6, so 2 are held out where the reader draws the split, and a tenth
# of the 6 that are left is 1, to choose on. Flowers has a part of its own to choose on.
SPLITS = {
    "CIFAR10": (10, 15, 3, 6), "CIFAR100": (100, 15, 3, 6), "CUB": (3, 15, 3, 6), "Flowers": (102, 18, 6, 6),
    "ImageNet": (3, 15, 3, 6), "INaturalist": (3, 15, 3, 6), "Pets": (3, 15, 3, 6), "Places": (3, 15, 3, 6),
    "Sun": (3, 15, 3, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_data_sets_load(tmp_path: Path, name: str) -> None:
    write_data_sets([name], tmp_path)
    data = load_data_set(name, tmp_path, download=False)
    assert (len(data.labels), len(data.train), len(data.select), len(data.eval)) == SPLITS[name]
    for split in (data.train, data.select, data.eval):
        assert len(set(split.labels.tolist())) == 3
        colours = {}
        for index in range(len(split)):
            image, label = split[index]
            assert image.mode == "RGB" and min(image.size) >= 32
            red, green, blue = image.resize((1, 1)).getpixel((0, 0))
            colours.setdefault(label, set()).add(max((red, "red"), (green, "green"), (blue, "blue"))[1])
        assert sorted(map(sorted, colours.values())) == [
            ["blue"],
            ["green"],
            ["red"],
        ]  # a class can be told by its colour


def test_the_images_of_a_class_differ(tmp_path: Path) -> None:
    write_data_sets(["Pets"], tmp_path)
    images = list((tmp_path / "datasets" / "oxford-iiit-pet" / "images").iterdir())
    assert len({image.read_bytes() for image in images}) == len(images) == 24


def test_only_what_is_named_is_written(tmp_path: Path) -> None:
    write_data_sets(["Sun", "CIFAR10"], tmp_path)
    assert sorted(path.name for path in (tmp_path / "datasets").iterdir()) == ["SUN397", "cifar10"]


def test_a_data_set_without_a_tiny_form(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        write_data_sets(["MNIST"], tmp_path)
    assert str(caught.value) == (
        "MNIST has no tiny form for --smoke; those that have one: CIFAR10, CIFAR100, CUB, Flowers, ImageNet, "
        "INaturalist, Pets, Places, Sun."
    )


# --------------------------------------------------------------------------------------------------------------- bases
def test_a_tiny_vit_is_a_base_like_those_of_imagenet_21k(tmp_path: Path) -> None:
    place = write_base(VIT, tmp_path)
    model = MemoryCapableViT.from_pretrained(place)
    assert is_huggingface(place) and not model.has_base_classifier
    preprocessing = preprocessing_of(place)
    assert (preprocessing.height, preprocessing.width, preprocessing.mean) == (32, 32, (0.5, 0.5, 0.5))
    for side in (16, 32, 48):
        model.set_image_size(side)
        model.add_head(f"at{side}", 3, memory_tokens=2)
        assert model(torch.zeros(2, 3, side, side))[f"at{side}"].logits.shape == (2, 3)


def test_bases_of_other_names_have_other_weights(tmp_path: Path) -> None:
    fingerprints = [
        MemoryCapableViT.from_pretrained(write_base(name, tmp_path / folder)).fingerprint
        for folder, name in (("a", VIT), ("b", VIT), ("a", VIT.replace("base", "large")))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize("name", [VIT, BIT])
def test_nobody_elses_random_numbers_are_used_up(tmp_path: Path, name: str) -> None:
    state = torch.random.get_rng_state()
    write_base(name, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_tiny_convolutional_network(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    base = ConvolutionalBase.open(write_base(BIT, tmp_path), BIT)
    assert (base.preprocessing.height, base.preprocessing.width, base.preprocessing.mean) == (32, 32, (0.5, 0.5, 0.5))
    network = base.network(MethodSpec("full"), 3, gradient_checkpointing=True)
    for side in (16, 32, 48):
        assert network(torch.ones(2, 3, side, side)).shape == (2, 3)


def test_a_convolutional_network_without_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        write_base(BIT, tmp_path)
    assert str(caught.value) == (
        "timm--resnetv2_152x4_bit.goog_in21k takes the place of a model of timm, which is missing: "
        "pip install 'timm>=1.0.12'"
    )


def test_a_base_without_a_tiny_form(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        write_base("someone/mixer-base", tmp_path)
    assert str(caught.value) == (
        "someone/mixer-base has no tiny form for --smoke; its name has to contain one of vit, resnetv2."
    )


# --------------------------------------------------------------------------------------------------------------- cards
def card(options: dict, *entries: dict, **texts: object) -> Card:
    grid = Grid("main", (0, 1, 2), "first", options, {"method": tuple({"lr": (0.1,), **entry} for entry in entries)})
    words = dict.fromkeys(("title", "question", "paper", "command", "expected_time", "expected_result"), "words")
    return Card(name="mine", grids=(grid,), **words, **texts)


ASKED = {"base_model": VIT, "dataset": "Flowers", "batch_size": 512}


def test_numbers_become_small_and_stay_in_order(tmp_path: Path) -> None:
    mine = card(
        {**ASKED, "image_size": 224, "precision": "bfloat16"},
        {"label": "a", "image_size": 384, "max_steps": 500, "epochs": 90, "lr": (0.1, 0.2, 0.3)},
        {
            "label": "b",
            "image_size": 112,
            "max_steps": 20_000,
            "epochs": 7,
            "precision": "bfloat16",
            "number_of_memory_tokens": 100,
        },
        {"label": "c"},
    )
    a, b, c = smoke_card(mine, tmp_path).variants()
    base = str(tmp_path / "bases" / "google--vit-base-patch32-224-in21k")
    same = {"base_model": base, "dataset": "Flowers", "precision": "float32", "batch_size": 4}
    assert a.options == {**same, "image_size": 48, "max_steps": 2, "epochs": 2}
    assert b.options == {**same, "image_size": 16, "max_steps": 3, "epochs": 1, "number_of_memory_tokens": 100}
    assert c.options == {**same, "image_size": 32, "max_steps": 2, "epochs": 1}
    assert (a.rates, b.rates) == ((0.1, 0.2), (0.1,))
    assert a.data_seeds == (0, 1)
    assert sorted(path.name for path in (tmp_path / "data" / "datasets").iterdir()) == ["flowers-102"]


def test_flash_attention_is_replaced_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    eager, flash = ({"label": name, "attn_implementation": name} for name in ("eager", "flash_attention_2"))
    with caplog.at_level(logging.WARNING, "learnable_memory.experiments.smoke"):
        assert smoke_card(card(ASKED, eager), tmp_path).variants()[0].options["attn_implementation"] == "eager"
        assert caplog.messages == []
        variants = smoke_card(card(ASKED, eager, flash), tmp_path).variants()
    assert [variant.options["attn_implementation"] for variant in variants] == ["eager", "sdpa"]
    assert caplog.messages == ["flash_attention_2 does not take float32: mine --smoke runs sdpa in its place."]


def test_the_cards_own_smoke_options_come_last(tmp_path: Path) -> None:
    smoke = {"options": {"max_steps": 9, "precision": "bfloat16"}}
    mine = card({**ASKED, "max_steps": 50}, {"label": "a", "max_steps": 100}, smoke=smoke)
    (variant,) = smoke_card(mine, tmp_path).variants()
    assert (variant.options["max_steps"], variant.options["precision"]) == (9, "bfloat16")
    assert smoke_card(card(ASKED, {"label": "a"}), tmp_path).variants()[0].options["precision"] == "float32"
