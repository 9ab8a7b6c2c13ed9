"""Heads as files: everything comes back, nothing else is taken for a head, and an error says what is wrong."""

import dataclasses
import hashlib
import json
import os
import stat
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from learnable_memory import head_schema, heads, tensor_files
from learnable_memory.commands.passes import head_metadata
from learnable_memory.config import TrainOptions
from learnable_memory.data import DataSet, ImageSet
from learnable_memory.evaluate import Score
from learnable_memory.grid import Cell, Outcome
from learnable_memory.heads import HeadSpec, content_hash
from learnable_memory.images import ArrayImages
from learnable_memory.method_spec import MethodSpec
from learnable_memory.transforms import Preprocessing
from tiny import add_random_head, images, tiny_model
from vit import MemoryCapableViT

PREPROCESSING = Preprocessing(224, 224, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DIGITS = {"name": "Digits", "split_seed": 0}
METADATA = {
    "labels": ["cat", "dog", "Käfer", "\N{FOX FACE}"],
    "metrics": {"eval": {"top1": 0.875}},
    "notes": {"by": None},
}
KINDS = {
    "memory": {"memory_tokens": 2},
    "after the norm": {"memory_tokens": 3, "memory_norm": False},
    "class token only": {"memory_tokens": 0},
    "linear probe": {"memory_tokens": 0, "class_token": False},
}


def head_file(path, name="A", **kwargs):
    """A model with one random head of four classes, and the head's file."""
    model = tiny_model()
    add_random_head(model, name, 4, **{"memory_tokens": 2, **kwargs})
    model.save_head(name, path, METADATA)
    return model


def rewrite(path, tensors=None, **changes):
    """Write a head file again without any check; a change to None takes the key away."""
    file = heads.load(path)
    metadata = {key: value for key, value in {**file.metadata, **changes}.items() if value is not None}
    heads.write(path, file.tensors if tensors is None else tensors, {"head": metadata})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "A_model.safetensors"


# ---------------------------------------------------------------------------------------------------------- round trip
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head_comes_back_bit_for_bit(path, kind):
    model = head_file(path, **KINDS[kind])
    again = tiny_model()
    assert again.load_head(path) == "A"
    before, after = model.heads["A"].tensors(), again.heads["A"].tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(again(images())["A"].logits, model(images())["A"].logits)
    assert again.heads["A"].spec == dataclasses.replace(model.heads["A"].spec, metadata=METADATA)
    assert not any(parameter.requires_grad for parameter in again.heads.parameters())


def test_a_file_holds_this_head_only_under_our_own_names(path):
    model = tiny_model()
    add_random_head(model, "other", 9, 5)
    add_random_head(model, "A", 4, 2)
    model.save_head("A", path)
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
        assert {file.get_slice(name).get_dtype() for name in shapes} == {"F32"}
        assert set(file.metadata()) == {"head", "sha256"}
    assert shapes == {"class_token": (32,), "memory": (3, 2, 32), "classifier.weight": (4, 32), "classifier.bias": (4,)}


def test_metadata_says_what_the_head_is_and_belongs_to(path):
    model = head_file(path)
    expected = {
        "format_version": 3, "name": "A", "base": {"id": model.base_id, "fingerprint": model.fingerprint},
        "hidden_size": 32, "num_layers": 3, "num_labels": 4, "memory_tokens": 2, "memory_norm": True,
        "class_token": True, "extends": [], "low_rank": {}, "intermediate_size": 64,
    }  # fmt: skip
    assert heads.read_metadata(path) == heads.load(path).metadata == {**METADATA, **expected}


@given(
    memory_tokens=st.integers(0, 9), memory_norm=st.booleans(), extends=st.lists(st.sampled_from("BCD"), unique=True),
    notes=st.dictionaries(st.text(), st.integers() | st.text()),
)  # fmt: skip
def test_spec_of_is_the_reverse_of_describe(memory_tokens, memory_norm, extends, notes):
    spec = HeadSpec("A", 3, memory_tokens, extends, memory_norm, metadata={"notes": notes})
    parents = [{"name": name, "hash": "0" * 64} for name in extends]
    described = heads.describe(spec, {"id": "base", "fingerprint": "1" * 64}, 32, 3, parents)
    assert heads.spec_of(json.loads(json.dumps(described))) == spec


def test_metadata_survives_save_pretrained_and_a_second_file(tmp_path, path):
    head_file(path)
    model = tiny_model()
    model.load_head(path)
    model.save_pretrained(tmp_path / "model")
    again = MemoryCapableViT.from_pretrained(tmp_path / "model")
    again.save_head("A", tmp_path / "again.safetensors")
    assert heads.read_metadata(tmp_path / "again.safetensors") == heads.read_metadata(path)
    again.save_head("A", tmp_path / "more.safetensors", {"notes": {"seen": True}})
    assert heads.read_metadata(tmp_path / "more.safetensors") == {**heads.read_metadata(path), "notes": {"seen": True}}


CIFAR100_LABELS = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


def test_a_cifar100_head_with_one_cell_on_vit_b_is_small(path):
    """With all the metadata that training writes; the 2023 implementation saved 350 MB."""
    splits = [
        ImageSet(ArrayImages(np.zeros((count, 1, 1), np.uint8), ""), np.zeros(count)) for count in (45000, 5000, 10000)
    ]
    labels = CIFAR100_LABELS.split()
    data = DataSet("CIFAR100", labels, *splits, "crop_flip", "parquet: cifar100", 0, 0)
    score = {"images": 10000, "top1": 0.9123, "top5": 0.98765, "loss": 0.3123456789, "images_per_second": 123.456789}
    outcome = Outcome(Cell(MethodSpec("memory", 1), 0.03, 0), "CIFAR100", 0, 86_116, 17, None, score, score)
    spec = HeadSpec(
        "CIFAR100", 100, metadata=head_metadata(data, PREPROCESSING, TrainOptions(dataset="CIFAR100"), outcome)
    )
    base = {"id": "google/vit-base-patch32-224-in21k", "fingerprint": "f" * 64}
    metadata = heads.describe(spec, base, hidden_size=768, num_layers=12, parents=())
    shapes = {"class_token": (768,), "memory": (12, 1, 768), "classifier.weight": (100, 768), "classifier.bias": (100,)}
    assert len(set(labels)) == 100 and heads.expected_shapes(metadata) == shapes
    heads.save(path, {name: torch.randn(shape) for name, shape in shapes.items()}, metadata)
    numbers = 768 * (1 + 12 + 100) + 100
    assert 4 * numbers < path.stat().st_size <= 360_000
    assert heads.read_metadata(path)["labels"] == labels


# ---------------------------------------------------------------------------------------------------------- extensions
def family(tmp_path):
    """A, B built on A, C built on B and A, each in a file; returns the model and the files by name."""
    model = tiny_model()
    for name, extends in (("A", ()), ("B", ("A",)), ("C", ("B", "A"))):
        add_random_head(model, name, 4, 2, extends)
    files = {name: tmp_path / f"{name}.safetensors" for name in "ABC"}
    for name, file in files.items():
        model.save_head(name, file)
    return model, files


def test_a_child_comes_back_with_its_parents(tmp_path):
    model, files = family(tmp_path)
    first, second = (heads.read_metadata(files[name])["extends"] for name in "BC")
    assert [parent["name"] for parent in second] == ["B", "A"]
    assert second[1] == first[0]  # A goes by the same hash for each of its children
    again = tiny_model()
    for name in "ABC":
        again.load_head(files[name])
    assert torch.equal(again(images())["C"].logits, model(images())["C"].logits)


def test_a_child_needs_its_parents_as_they_were(tmp_path):
    _, files = family(tmp_path)
    model = tiny_model()
    with pytest.raises(ValueError, match=r"B.safetensors extends the head A, which is not loaded\. Load that one's"):
        model.load_head(files["B"])
    add_random_head(model, "A", 4, 2, seed=99)
    with pytest.raises(ValueError, match="extends the head A, which is loaded, but is not the one"):
        model.load_head(files["B"])
    assert model.head_names == ["A"]


# --------------------------------------------------------------------------------------------------------- another base
@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"seed": 1}, {"base fingerprint"}),
        ({"hidden_size": 48}, {"base fingerprint", "width 32 in the file, 48 in the model"}),
        ({"num_hidden_layers": 2}, {"base fingerprint", "number of layers 3 in the file, 2 in the model"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_head_of_another_base_is_refused_and_the_message_says_what_differs(path, changes, differing):
    theirs = head_file(path).fingerprint
    model = tiny_model(**changes)
    with pytest.raises(ValueError, match="was trained on another base") as caught:
        model.load_head(path)
    message = str(caught.value)
    assert str(path) in message and f"{theirs} in the file, {model.fingerprint} in the model" in message
    named = {what for what in ("base fingerprint", "width", "number of layers") if f"{what} " in message}
    assert named == {what.partition(" 3")[0] for what in differing}
    assert all(what in message for what in differing)
    assert model.head_names == []


def test_a_name_that_is_taken_is_refused(path):
    model = head_file(path)
    with pytest.raises(ValueError, match="There is a head A already"):
        model.load_head(path)


# -------------------------------------------------------------------------------------------------------- checksums
def mutants(whole, generator):
    """The bytes of a file with one thing wrong: a bit, a block of zeros, two swapped blocks, another length."""
    changed, start = bytearray(whole), 8 + int.from_bytes(whole[:8], "little")
    first, second = sorted(int(at) for at in generator.choice(np.arange(start, len(whole) - 8, 8), 2, replace=False))
    kind = generator.integers(6)
    if kind < 2:
        at = int(generator.integers(8, start) if kind else generator.integers(start, len(whole)))
        changed[at] ^= 1 << int(generator.integers(8))
    elif kind == 2:
        changed[first : first + 8] = bytes(8)
    elif kind == 3:
        changed[first : first + 8], changed[second : second + 8] = whole[second : second + 8], whole[first : first + 8]
    elif kind == 4:
        del changed[-int(generator.integers(1, 64)) :]
    else:
        changed += bytes(int(generator.integers(1, 64)))
    return bytes(changed)


def refuse_damage(path, load, contents, count):
    """None of `count` mutants of a file loads with other contents than the file itself."""
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    tensors, metadata = contents(load(path))
    loaded = 0
    for _ in range(count):
        path.write_bytes(mutants(whole, generator))
        try:
            found, said = contents(load(path))
        except ValueError as error:
            assert str(error).startswith(str(path))
            continue
        loaded += path.read_bytes() != whole
        assert said == metadata and found.keys() == tensors.keys()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())
    path.write_bytes(whole)
    assert loaded < count / 20  # spaces and zeros that mean nothing


def test_a_changed_file_is_refused(path):
    """Before there was a checksum, 899 of 2,000 mutants loaded."""
    head_file(path)
    refuse_damage(path, heads.load, lambda file: (file.tensors, file.metadata), 500)


@pytest.mark.parametrize(
    ("version", "gone"), [(1, ["low_rank", "intermediate_size"]), (2, [])], ids=["format 1", "format 2"]
)
def test_a_file_of_an_earlier_format_is_read_and_says_that_it_has_no_checksum(path, caplog, version, gone):
    model = head_file(path)
    file = heads.load(path)
    before = {key: value for key, value in file.metadata.items() if key not in gone} | {"format_version": version}
    before["dataset"] = {"name": "Digits", "split_seed": 0, "curator": "Ada"}  # which was let through then
    save_file(file.tensors, path, {"head": json.dumps({**before, "curve": [1, 2]})})
    caplog.set_level("INFO", "learnable_memory")
    again = tiny_model()
    again.load_head(path)
    assert caplog.messages == [
        f"{path} is of an earlier format, without a checksum: damage in it would not be noticed."
    ]
    assert torch.equal(again(images())["A"].logits, model(images())["A"].logits)
    # Written again, by whatever means, it is of this format.
    again.save_head("A", path.with_name("from_a_model.safetensors"))
    heads.save(path, **dataclasses.asdict(heads.load(path)))
    notes = {"by": None, "curve": [1, 2], "dataset.curator": "Ada"}
    for name in (path.name, "from_a_model.safetensors"):
        metadata = heads.read_metadata(path.with_name(name))
        assert (metadata["format_version"], metadata["notes"]) == (3, notes)
        assert metadata["dataset"] == {"name": "Digits", "split_seed": 0}
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("version", [1, 2, 3])
def test_no_version_number_takes_a_checksum_away(path, version):
    head_file(path)
    contents = tensor_files.read(path)
    metadata = {**json.loads(contents.header["head"]), "format_version": version}
    texts = {"head": json.dumps(metadata, separators=(",", ":"))}
    save_file(contents.tensors, path, {**texts, "sha256": "0" * 64})
    with pytest.raises(ValueError, match="is damaged: what it holds is not what was written, as its checksum tells"):
        heads.load(path)
    if version == 3:
        save_file(contents.tensors, path, texts)
        with pytest.raises(ValueError, match="is damaged or was changed: it has no checksum"):
            heads.load(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preprocesing": {}}, r"preprocesing \(did you mean preprocessing\?\)\."),
        ({"preprocessing": {"heigth": 3}}, r"preprocessing\.heigth \(did you mean height\?\)\."),
        ({"base": {"id": "x", "fingerprint": "f", "size": 3}}, r"base\.size"),
        ({"extends": [{"name": "B", "hash": "h", "order": 3}]}, r"extends\.order"),
        ({"metrics": {"test": {"top1": 1.0}}}, r"metrics\.test"),
        ({"metrics": {"eval": {"accuracy": 1.0}}}, r"metrics\.eval\.accuracy"),
        ({"dataset": {**DIGITS, "splits": {"evl": {}}}}, r"dataset\.splits\.evl \(did you mean eval\?\)"),
        ({"low_rank": {"quary": 2}}, r"low_rank\.quary \(did you mean query\?\)"),
        ({"xyz": 1, "zyx": 2}, r"xyz, zyx\. A newer one may know them; keys of your own belong under `notes`\.$"),
    ],
    ids=str,
)
def test_keys_that_nobody_knows_are_refused(path, changes, said):
    head_file(path)
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=f"A_model.safetensors has keys that this library does not know: {said}"):
        heads.load(path)


@pytest.mark.parametrize("version", [None, 4, "3"])
def test_no_other_version_is_written(path, version):
    head_file(path)
    file = heads.load(path)
    with pytest.raises(ValueError, match=f"has head format version {version!r}"):
        heads.save(path, file.tensors, {**file.metadata, "format_version": version})


def test_a_key_that_nobody_knows_is_not_written(path):
    with pytest.raises(ValueError, match=r"^The metadata of A has keys .*: label \(did you mean labels\?\)\. A newer"):
        tiny = tiny_model()
        tiny.add_head("A", 3)
        tiny.save_head("A", path, {"label": ["a", "b", "c"]})


def test_the_schema_has_what_preprocessing_and_scores_have():
    assert set(head_schema.PREPROCESSING) == {field.name for field in dataclasses.fields(Preprocessing)}
    assert set(head_schema.SCORE) == {field.name for field in dataclasses.fields(Score)}


# -------------------------------------------------------------------------------------------------------- damaged files
@pytest.mark.parametrize("version", [0, 4, "1", None, True])
def test_another_format_version_is_refused(path, version):
    head_file(path)
    rewrite(path, format_version=version)
    with pytest.raises(ValueError, match=f"has head format version {version!r}; this library reads version 1, 2, 3"):
        heads.load(path)


@pytest.mark.parametrize("key", [key for key in heads.REQUIRED if key != "format_version"])
def test_missing_metadata_is_named(path, key):
    head_file(path)
    rewrite(path, **{key: None})
    with pytest.raises(ValueError, match=f"is not complete: its metadata lacks {key}.$"):
        heads.load(path)


@pytest.mark.parametrize(
    ("changes", "message"), [({"format_version": 4}, "version 4"), ({"base": None, "extends": None}, "base, extends")]
)
def test_reading_the_metadata_alone_checks_it_too(path, changes, message):
    head_file(path)
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message):
        heads.read_metadata(path)


@pytest.mark.parametrize(
    "changes", [{"base": {"id": "x"}}, {"extends": [{"name": "B"}]}, {"dataset": {"name": "Digits"}}], ids=str
)
def test_incomplete_metadata_within_a_key_is_an_error(path, changes):
    head_file(path)
    rewrite(path, **changes)
    model = tiny_model()
    model.add_head("B", 3)
    with pytest.raises(ValueError, match="metadata lacks"):
        model.load_head(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": 3}, r"base is 3\.$"),
        ({"extends": {}}, r"extends is \{\}\.$"),
        ({"extends": ["B"]}, r"extends is 'B'\.$"),
        ({"num_layers": 3.0}, r"num_layers is 3\.0\.$"),
        ({"hidden_size": "32"}, r"hidden_size is '32'\.$"),
        ({"class_token": "yes", "memory_norm": 1}, r"memory_norm is 1, class_token is 'yes'\.$"),
        ({"base": {"id": 7, "fingerprint": 8}}, r"base\.id is 7, base\.fingerprint is 8\.$"),
        ({"extends": [{"name": 3, "hash": ["x"]}]}, r"extends\.name is 3, extends\.hash is \['x'\]\.$"),
        ({"name": "a/../../b"}, "'a/../../b' cannot be the name of a head"),
        ({"name": ["A"]}, r"name is \['A'\]"),
        ({"num_labels": True}, "num_labels is True"),
        ({"memory_tokens": -1}, "memory_tokens must be a whole number"),
        ({"extends": [{"name": "x" * 3 + "/", "hash": "h"}]}, "'xxx/' cannot be the name of a head"),
        ({"labels": ["a"]}, r"labels have to be a list of 4 names, one for each class\.$"),
        ({"labels": "abcd"}, r"labels is 'abcd'\.$"),
        ({"labels": ["a", "b", "c", 4]}, r"labels is 4\.$"),
        ({"training": [1]}, r"training is \[1\]\.$"),
        ({"training": {"precision": ["x"]}}, r"training\.precision is \['x'\]\.$"),
        ({"metrics": 3, "preprocessing": "x"}, r"metrics is 3, preprocessing is 'x'\.$"),
        ({"preprocessing": {"mean": [0.5, "x"]}}, r"preprocessing\.mean is 'x'\.$"),
        ({"metrics": {"folds": [{"top1": 1, "top5": None}, {"top1": None}]}}, r"metrics\.folds\.top1 is None\.$"),
        ({"dataset": "Digits"}, r"dataset is 'Digits'\.$"),
        ({"dataset": {**DIGITS, "splits": [1]}}, r"dataset\.splits is \[1\]\.$"),
        ({"dataset": {**DIGITS, "splits": {"eval": {}}}}, r"dataset\.splits does not say"),
        ({"dataset": {**DIGITS, "splits": {"train": {}}}}, r"dataset\.splits does not"),
    ],
    ids=str,
)
def test_metadata_that_cannot_be_a_heads_is_refused(path, changes, message):
    head_file(path)
    rewrite(path, **changes)
    for read in (heads.load, heads.read_metadata):
        with pytest.raises(ValueError, match=f"A_model.safetensors has a damaged header: .*{message}"):
            read(path)


def test_a_base_without_a_name_is_legal(path):
    head_file(path)
    rewrite(path, base={"id": None, "fingerprint": "f"})
    assert heads.read_metadata(path)["base"]["id"] is None


def test_values_that_are_not_finite_are_refused(path):
    model = tiny_model()
    model.add_head("A", 3)
    with torch.no_grad():
        model.heads["A"].memory[1][0, 0] = float("inf")
    with pytest.raises(ValueError, match="has values that are not finite in memory: its training has diverged"):
        model.save_head("A", path)
    assert not path.exists()


def test_metadata_cannot_take_the_place_of_what_the_file_says_itself(path):
    model = tiny_model()
    model.add_head("A", 3)
    with pytest.raises(ValueError, match="Metadata cannot be called base: a head file has these already"):
        model.save_head("A", path, {"base": "mine"})


def test_a_parent_is_another_one_if_it_reads_its_memory_in_another_way(tmp_path):
    """Its tensors are the same, its answers are not."""
    model, other = tiny_model(), tiny_model()
    for each, memory_norm in ((model, True), (other, False)):
        each.add_head("A", 3, memory_norm=memory_norm, generator=torch.Generator().manual_seed(0))
    model.add_head("B", 3, extends=["A"])
    model.save_head("B", tmp_path / "B.safetensors")
    with pytest.raises(ValueError, match="extends the head A, which is loaded, but is not the one that it was trained"):
        other.load_head(tmp_path / "B.safetensors")


UNFIT = {
    "another number of classes": (
        lambda tensors: {**tensors, "classifier.weight": torch.zeros(5, 32), "classifier.bias": torch.zeros(5)},
        r"classifier.bias: found \(5,\), expected \(4,\); classifier.weight: found \(5, 32\), expected \(4, 32\)\.",
    ),
    "no memory": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "memory"},
        r"memory: found nothing, expected \(3, 2, 32\)\.",
    ),
    "one layer too few": (
        lambda tensors: {**tensors, "memory": torch.zeros(2, 2, 32)},
        r"memory: found \(2, 2, 32\), expected \(3, 2, 32\)\.",
    ),
    "something else": (
        lambda tensors: {**tensors, "prompt": torch.zeros(1)},
        r"prompt: found \(1,\), expected nothing\.",
    ),
    "float16": (
        lambda tensors: {**tensors, "class_token": tensors["class_token"].half()},
        r"must hold float32 tensors only, but class_token is torch.float16\.",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_tensors_that_do_not_fit_are_neither_read_nor_written(path, kind):
    change, message = UNFIT[kind]
    head_file(path)
    file = heads.load(path)
    unfit = change(file.tensors)
    with pytest.raises(ValueError, match=message):
        heads.save(path, unfit, file.metadata)
    assert content_hash(heads.load(path).tensors) == content_hash(file.tensors)
    rewrite(path, unfit)
    with pytest.raises(ValueError, match=message) as caught:
        heads.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 an old .pt file", bytes(64)], ids=["empty", "zip", "zeros"])
def test_something_else_than_safetensors(path, content):
    path.write_bytes(content)
    for read in (heads.load, heads.read_metadata):
        with pytest.raises(ValueError, match="is not a safetensors file, or is damaged or cut short") as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_a_file_cut_anywhere_is_an_error(path):
    head_file(path)
    whole = path.read_bytes()
    for length in (4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged or cut short"):
            heads.load(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "is a safetensors file but not a head file: its header has no 'head' entry"),
        ({"format": "pt"}, "is a safetensors file but not a head file: its header has no 'head' entry"),
        ({"head": "{'name': 1}"}, "has a damaged header: "),
        ({"head": "[1, 2]"}, "has a damaged header: expected a JSON object for each head, got list"),
    ],
)
def test_safetensors_without_a_heads_header(path, header, message):
    save_file({"class_token": torch.zeros(32)}, path, header)
    for read in (heads.load, heads.read_metadata):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_no_such_file(tmp_path):
    for read in (heads.load, heads.read_metadata, tiny_model().load_head):
        for path in (tmp_path / "none.safetensors", tmp_path):
            with pytest.raises(FileNotFoundError, match=f"There is no head file {path}"):
                read(path)


# -------------------------------------------------------------------------------------------------------------- writing
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    model = head_file(path)
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"the first half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        model.save_head("A", path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_takes_the_place_of_an_older_one_without_writing_into_it(path):
    head_file(path)
    old = path.read_bytes()
    with path.open("rb") as reader:  # another process that has just opened the old one
        model = head_file(path, memory_tokens=1)
        assert reader.read() == old
    assert heads.load(path).tensors["memory"].shape == (3, 1, 32)
    assert content_hash(heads.load(path).tensors) == content_hash(model.heads["A"].tensors())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_folders_are_made(tmp_path):
    head_file(tmp_path / "new" / "folder" / "A_model.safetensors")
    assert tiny_model().load_head(tmp_path / "new" / "folder" / "A_model.safetensors") == "A"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_permissions_are_those_of_any_new_file(path, umask, mode):
    before = os.umask(umask)
    try:
        head_file(path)
        assert os.umask(umask) == umask  # and stays what it was
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


# --------------------------------------------------------------------------------------------------------- content hash
TENSORS = {"b": torch.tensor([[1.0, -2.5], [0.0, 3.25]]), "a": torch.tensor([0.5])}


def test_hash_is_sha256_of_names_shapes_and_values():
    """Written out, because fingerprints in files must outlive this implementation."""
    expected = hashlib.sha256(b"a[1]" + struct.pack("<f", 0.5) + b"b[2, 2]" + struct.pack("<4f", 1, -2.5, 0, 3.25))
    assert content_hash(TENSORS) == expected.hexdigest()


def test_hash_does_not_depend_on_order_layout_or_storage():
    expected = content_hash(TENSORS)
    assert content_hash(dict(reversed(TENSORS.items()))) == expected
    assert content_hash({"a": TENSORS["a"], "b": TENSORS["b"].T.contiguous().T}) == expected
    for dtype in (torch.float16, torch.bfloat16, torch.float64):  # all four values are exact in each
        assert content_hash({name: tensor.to(dtype) for name, tensor in TENSORS.items()}) == expected
    assert content_hash({name: torch.nn.Parameter(tensor) for name, tensor in TENSORS.items()}) == expected


def test_hash_sees_every_value_shape_and_name():
    hashes = {content_hash(TENSORS), content_hash({"b": TENSORS["b"]})}
    for index in range(4):
        changed = TENSORS["b"].clone()
        changed.view(-1)[index] = torch.nextafter(changed.view(-1)[index], torch.tensor(9.0))
        hashes.add(content_hash({**TENSORS, "b": changed}))
    hashes.add(content_hash({**TENSORS, "b": TENSORS["b"].T}))
    hashes.add(content_hash({**TENSORS, "b": TENSORS["b"].view(4)}))
    hashes.add(content_hash({**TENSORS, "b": TENSORS["b"].view(1, 2, 2)}))
    hashes.add(content_hash({"a": TENSORS["a"], "c": TENSORS["b"]}))
    assert len(hashes) == 2 + 4 + 4


# ------------------------------------------------------------------------------------------------------ names and specs
def test_find_takes_names_and_paths(tmp_path):
    folder = tmp_path / "models"
    head_file(folder / "A_model.safetensors")
    head_file(tmp_path / "elsewhere.safetensors")
    found = heads.find(["A", str(tmp_path / "elsewhere.safetensors")], folder)
    assert found == [folder / "A_model.safetensors", tmp_path / "elsewhere.safetensors"]


def test_find_lists_what_is_lost_and_what_is_there(tmp_path):
    for name in ("Pets", "Digits"):
        head_file(tmp_path / heads.file_name(name))
    with pytest.raises(FileNotFoundError) as caught:
        heads.find(["Digit", "Pets", "CUB"], tmp_path)
    assert str(caught.value) == (
        f"No head file for Digit, CUB in {tmp_path} (looked for Digit_model.safetensors and Digit_model.pt). "
        "Heads there: Digits, Pets."
    )
    with pytest.raises(FileNotFoundError, match=r"Heads there: none\.$"):
        heads.find(["A"], tmp_path / "nothing")


def test_file_names():
    assert heads.file_name("CIFAR100") == "CIFAR100_model.safetensors"
    assert heads.file_name("someone/cats") == "someone-cats_model.safetensors"


@pytest.mark.parametrize("name", ["A", "CIFAR100-new20", "cats+dogs_2", "9"])
def test_legal_names(path, name):
    head_file(path, name)
    assert tiny_model().load_head(path) == name


NAMES = ["", "base", "a.b", "a b", "-a", "a/b", "größe", "A\n", "keys", "forward", "training", None, 3]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_a_head_cannot_have(name):
    with pytest.raises(ValueError, match=r"cannot be the name of a head\. Use letters, digits"):
        HeadSpec(name, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_labels": 0}, "num_labels must be a whole number of at least 1, got 0"),
        ({"num_labels": True}, "num_labels must be a whole number of at least 1, got True"),
        ({"num_labels": 2.0}, "num_labels must be a whole number of at least 1, got 2.0"),
        ({"memory_tokens": -1}, "memory_tokens must be a whole number of at least 0, got -1"),
        ({"memory_tokens": "1"}, "memory_tokens must be a whole number of at least 0, got '1'"),
        ({"class_token": False}, r"is a linear probe: .* got 1, \(\) and \{\}"),
        ({"class_token": False, "memory_tokens": 0, "extends": ["B"]}, r"is a linear probe: .* got 0, \('B',\) and"),
    ],
)
def test_specs_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        HeadSpec("A", **{"num_labels": 3, **arguments})


@pytest.mark.parametrize("header", ["[" * 200_000, "1" * 5_000], ids=["nested", "a long number"])
def test_headers_that_json_itself_gives_up_on(path, header):
    save_file({"class_token": torch.zeros(32)}, path, {"head": header})
    for read in (heads.load, heads.read_metadata):
        with pytest.raises(ValueError, match=r"A_model\.safetensors has a damaged header"):
            read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("memory"),
        lambda tensors: tensors.update({"classifier.bias": torch.zeros(1)}),
        lambda tensors: tensors.update({"more": torch.zeros(1)}),
    ],
    ids=["missing", "another shape", "unexpected"],
)
def test_what_was_read_before_is_checked_when_it_is_loaded(path, change):
    head_file(path)
    file = heads.load(path)
    change(file.tensors)
    model = tiny_model()
    with pytest.raises(ValueError, match=r"^A holds tensors that do not fit its own metadata"):
        model.load_head(file)
    assert model.head_names == []


def test_a_graph_with_many_paths_is_hashed_head_by_head(path, monkeypatch):
    model = tiny_model()
    for i in range(12):
        model.add_head(f"head{i}", 2, 1, extends=model.head_names)
    hashed = []
    real = heads.head_hash
    monkeypatch.setattr(heads, "head_hash", lambda spec, *rest: hashed.append(spec.name) or real(spec, *rest))
    model.save_head("head11", path)
    assert len(hashed) == sum(range(1, 12))  # each of its 11 parents with the parents of that one, not 2 ** 11
