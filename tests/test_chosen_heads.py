"""From the names of heads to a model that has them: what is read, what comes along, and what is refused."""

import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import ViTImageProcessor

from learnable_memory import heads
from learnable_memory.commands.chosen_heads import choose_heads, load_chosen
from learnable_memory.config import ValidationOptions
from learnable_memory.transforms import Preprocessing
from tiny import add_random_head, images, tiny_base
from vit import MemoryCapableViT

PIXELS = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
GRAPH = {"A": (), "B": ("A",), "C": ("B",), "D": ("C", "A"), "E": ()}
METADATA = {
    "A": {"training": {"precision": "float32"}},
    "B": {"preprocessing": PIXELS.to_dict(), "training": {"precision": "bfloat16"}},
    "E": {"preprocessing": {**PIXELS.to_dict(), "mean": [0.2] * 3}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_base().save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(base) -> MemoryCapableViT:
    """Five heads: B on A, C on B, D on C and A, and E for itself."""
    model = MemoryCapableViT.from_pretrained(base)
    for cells, (name, extends) in enumerate(GRAPH.items()):
        add_random_head(model, name, 3, cells, extends=extends, metadata=METADATA.get(name))
    return model


def save(model: MemoryCapableViT, folder: Path, names: str) -> Path:
    for name in names:
        model.save_head(name, folder / heads.file_name(name))
    here = folder / Path(model.base_id or "").name  # where the base is found
    if model.base_id and not here.exists():
        here.symlink_to(model.base_id)
    return folder


def parts(folder: Path, names: str) -> list[heads.HeadFile]:
    return [heads.load(folder / heads.file_name(name)) for name in names]


def options(**changes) -> ValidationOptions:
    return ValidationOptions(models_list=("A",), device="cpu", no_download=True, **changes)


# --------------------------------------------------------------------------------------------------- who comes along
@pytest.mark.parametrize(
    ("asked", "come_along"),
    [("A", ""), ("B", "A"), ("C", "BA"), ("D", "CBA"), ("CA", "B"), ("EB", "A"), ("BDA", "C")],
)
def test_what_heads_extend_comes_along(tmp_path, model, caplog, asked, come_along):
    caplog.set_level(logging.INFO)
    chosen = choose_heads(list(asked), save(model, tmp_path, "ABCDE"))
    assert chosen.names == list(asked)
    assert set(chosen.files) == set(asked + come_along)
    order = list(chosen.files)
    assert all(order.index(parent) < order.index(name) for name in order for parent in GRAPH[name])
    assert {name: file.metadata["name"] for name, file in chosen.files.items()} == {name: name for name in order}
    assert chosen.paths == {name: tmp_path / f"{name}_model.safetensors" for name in order}
    said = [message.split(",")[0] for message in caplog.messages if message.startswith("loaded too: ")]
    assert sorted(said) == sorted(f"loaded too: {name}" for name in come_along)


def test_the_log_says_who_needs_what_comes_along(tmp_path, model, caplog):
    caplog.set_level(logging.INFO)
    choose_heads(["B"], save(model, tmp_path, "AB"))
    assert caplog.messages == [f"loaded too: A, which B extends, from {tmp_path / 'A_model.safetensors'}"]


def test_a_parent_may_lie_beside_the_file_that_needs_it(tmp_path, model):
    elsewhere = save(model, tmp_path / "elsewhere", "ABC")
    chosen = choose_heads([str(elsewhere / "C_model.safetensors")], tmp_path)
    assert list(chosen.files) == ["A", "B", "C"] and chosen.names == ["C"]
    assert chosen.paths["A"] == elsewhere / "A_model.safetensors"  # two steps from what was asked for


def test_all_heads_of_a_file_answer(tmp_path, model):
    save(model, tmp_path, "ABCDE")
    together = tmp_path / "all.safetensors"
    heads.save_all(together, parts(tmp_path, "AB"))
    chosen = choose_heads([str(together), "E"], tmp_path)
    assert chosen.asked == {together: ["A", "B"], tmp_path / "E_model.safetensors": ["E"]}
    assert chosen.names == ["A", "B", "E"]


def test_a_parent_in_a_file_of_several_heads_comes_without_the_others(tmp_path, model):
    save(model, tmp_path, "ABE")
    heads.save_all(tmp_path / "A_model.safetensors", parts(tmp_path, "EA"))
    chosen = choose_heads(["B"], tmp_path)
    assert set(chosen.files) == {"A", "B"}


def test_each_file_is_read_once(tmp_path, model, monkeypatch):
    read, load_all = Counter(), heads.load_all

    def counted(path):
        read[Path(path).name[0]] += 1
        return load_all(path)

    monkeypatch.setattr(heads, "load_all", counted)
    choose_heads(["C", "A"], save(model, tmp_path, "ABC"))
    assert read == {"A": 1, "B": 1, "C": 1}


# ----------------------------------------------------------------------------------------------------- what is refused
def test_a_parent_that_is_nowhere(tmp_path, model):
    elsewhere = save(model, tmp_path / "elsewhere", "B")
    with pytest.raises(FileNotFoundError) as raised:
        choose_heads([str(elsewhere / "B_model.safetensors")], tmp_path)
    assert str(raised.value) == (
        "B extends A, whose file is not there: looked for A_model.safetensors and A_model.pt in "
        f"{tmp_path} and {elsewhere}. Put it there, or name it too."
    )


def other_a(model: MemoryCapableViT, folder: Path) -> Path:
    """A head that is called A and is another one."""
    tensors = {name: tensor + 1 for name, tensor in model.heads["A"].tensors().items()}
    save(model, folder, "A")
    path = folder / "A_model.safetensors"
    return heads.save(path, tensors, heads.load(path).metadata)


def test_of_two_heads_of_the_name_the_one_that_was_extended_is_taken(tmp_path, model):
    other_a(model, tmp_path)
    elsewhere = save(model, tmp_path / "elsewhere", "AB")
    chosen = choose_heads([str(elsewhere / "B_model.safetensors")], tmp_path)
    assert chosen.paths["A"] == elsewhere / "A_model.safetensors"


def test_another_head_of_the_name_is_no_parent(tmp_path, model):
    save(model, tmp_path, "B")
    wrong = other_a(model, tmp_path)
    with pytest.raises(ValueError) as raised:
        choose_heads(["B"], tmp_path)
    assert str(raised.value) == (
        f"B extends A, but {wrong} is not the A that it was trained on: put that one's file there, or name it too."
    )


def test_another_head_of_the_name_that_was_asked_for_is_refused_too(tmp_path, model):
    wrong = other_a(model, tmp_path / "other")
    with pytest.raises(ValueError, match="B extends A, which is not the one among them"):
        choose_heads(["B", str(wrong)], save(model, tmp_path, "AB"))


def test_two_heads_of_one_name(tmp_path, model):
    first, second = save(model, tmp_path, "A"), save(model, tmp_path / "second", "A")
    paths = [folder / "A_model.safetensors" for folder in (first, second)]
    with pytest.raises(ValueError) as raised:
        choose_heads(["A", str(paths[1])], tmp_path)
    assert str(raised.value) == (
        f"{paths[0]} and {paths[1]} both hold a head A: two heads of one name cannot answer together."
    )


def test_heads_of_two_bases(tmp_path, model):
    save(model, tmp_path, "A")
    other = MemoryCapableViT.from_base(tiny_base(seed=1))
    add_random_head(other, "Z", 2)
    save(other, tmp_path, "Z")
    with pytest.raises(ValueError, match="they were trained on 2 bases"):
        choose_heads(["A", "Z"], tmp_path)


# ----------------------------------------------------------------------------------------------- a model with them
def test_the_model_answers_as_the_one_that_they_come_from(tmp_path, model, base):
    chosen = choose_heads(["D", "E"], save(model, tmp_path, "ABCDE"))
    loaded, preprocessing = load_chosen(chosen, options())
    assert set(loaded.head_names) == set("ABCDE") and loaded.base_id == str(tmp_path / base.name)
    assert preprocessing == PIXELS
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        found, expected = (each(images(), heads=["D", "E"]) for each in (loaded, model))
    assert list(found) == ["base", "D", "E"]
    assert all(torch.allclose(found[name].logits, expected[name].logits, rtol=0, atol=1e-5) for name in found)


def test_the_base_is_the_named_one_or_that_of_the_first_file_that_says_one(tmp_path, model, base):
    save(model, tmp_path, "AE")
    nameless = heads.load(tmp_path / "A_model.safetensors")
    heads.save(
        tmp_path / "A_model.safetensors", nameless.tensors,
        {**nameless.metadata, "base": {**nameless.metadata["base"], "id": None}},
    )  # fmt: skip
    assert choose_heads(["A", "E"], tmp_path).base() == str(tmp_path / base.name)
    assert choose_heads(["A", "E"], tmp_path).base("another") == "another"
    with pytest.raises(ValueError) as raised:
        choose_heads(["A"], tmp_path).base()
    path = tmp_path / "A_model.safetensors"
    assert str(raised.value) == f"{path} does not say which base it was trained on: name it with --base_model."


@pytest.mark.parametrize(
    ("asked", "expected"), [("A", "float32"), ("B", "bfloat16"), ("E", "float32"), ("BE", "float32")]
)
def test_the_precision_is_that_of_those_that_answer(tmp_path, model, asked, expected):
    chosen = choose_heads(list(asked), save(model, tmp_path, "ABE"))
    assert chosen.precision() == expected  # B's parent, in float32, does not
    loaded, _ = load_chosen(chosen, options())
    assert loaded.vit.layernorm.weight.dtype == getattr(torch, expected)
    other = {"bfloat16": "float32", "float32": "bfloat16"}[expected]
    loaded, _ = load_chosen(chosen, options(precision=other))
    assert loaded.vit.layernorm.weight.dtype == getattr(torch, other)


def test_heads_of_several_precisions_say_so(tmp_path, model, caplog):
    caplog.set_level(logging.INFO)
    assert choose_heads(["B", "E"], save(model, tmp_path, "ABE")).precision() == "float32"
    assert "The heads were trained in bfloat16 and float32: all answer in float32." in caplog.messages


def test_heads_share_a_pass_if_their_pixels_are_made_alike(tmp_path, model):
    chosen = choose_heads(["E", "B", "C"], save(model, tmp_path, "ABCE"))
    other = Preprocessing.from_dict(METADATA["E"]["preprocessing"])
    assert chosen.by_preprocessing(PIXELS) == {other: ["E"], PIXELS: ["B", "C"]}  # C's file does not say
    assert chosen.by_preprocessing(other) == {other: ["E", "C"], PIXELS: ["B"]}


def test_what_a_head_that_extends_these_says_of_them(tmp_path, model):
    chosen = choose_heads(["C", "A"], save(model, tmp_path, "ABC"))
    assert chosen.record() == save_and_read(model, tmp_path, "D")["extends"]


def save_and_read(model: MemoryCapableViT, folder: Path, name: str) -> dict:
    return heads.read_metadata(save(model, folder, name) / heads.file_name(name))


def test_nothing_is_chosen_of_nothing(tmp_path):
    chosen = choose_heads([], tmp_path)
    assert (chosen.names, chosen.files, chosen.record()) == ([], {}, [])


def test_a_parent_that_lies_in_the_parents_own_file(model, tmp_path):
    """C extends B, which extends A; B's file holds both, and nothing is called A_model."""
    save(model, tmp_path, "ABC")
    both = parts(tmp_path, "AB")
    for name in "AB":
        (tmp_path / heads.file_name(name)).unlink()
    heads.save_all(tmp_path / heads.file_name("B"), both)
    chosen = choose_heads(["C"], tmp_path)
    assert list(chosen.files) == ["A", "B", "C"] and chosen.names == ["C"]
