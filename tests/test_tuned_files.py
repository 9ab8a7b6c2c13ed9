"""Networks as files: everything comes back, nothing else is taken for a network, and an error says what is wrong."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from learnable_memory import heads, tensor_files, tuned_files
from learnable_memory.method_spec import MethodSpec
from learnable_memory.tuned_files import TunedFile, describe, is_tuned
from test_heads import refuse_damage
from tiny import add_random_head, tiny_model

BASE = {"id": "someone/vit-tiny", "fingerprint": "f" * 64}
TENSORS = {
    "base.vit.layernorm.bias": torch.arange(4.0),
    "classifier.weight": torch.arange(12.0).view(3, 4) / 7,
    "classifier.bias": torch.tensor([0.5, -1.0, 1e-30]),
}
CONVOLUTIONAL = {
    "model.norm.running_mean": torch.tensor([0.25, -0.5]),
    "model.norm.num_batches_tracked": torch.tensor(2**40 + 1),
    "model.classifier.weight": torch.ones(3, 2),
}
KNOWN = {
    "labels": ["cat", "Käfer", "\N{FOX FACE}"],
    "metrics": {"eval": {"top1": 0.875}},
    "dataset": {"name": "Pets", "split_seed": 7, "splits": {"eval": {"images": 3, "hash": "0" * 16}}},
    "notes": {"by": None},
}
# As the issue and the paper have it: what each method changes that others would see.
REASONS = {
    "full": (MethodSpec("full"), "it changes the base's own weights"),
    "bias": (MethodSpec("bias"), "it changes the base's own biases"),
    "lora": (MethodSpec("lora", rank=4), "it changes what the base's own projections give"),
    "shallow": (MethodSpec("vpt-shallow", 2), "its prompts are seen by the base's own tokens"),
    "deep": (MethodSpec("vpt-deep", 2, prompt_dropout=0.1), "its prompts are seen by the base's own tokens"),
    "unmasked": (MethodSpec("memory", 2, masking="none"), "its memory is seen by the base's own tokens"),
    "update": (
        MethodSpec("memory", 2, memory_update="additive"),
        "its memory goes from layer to layer, which the two streams do not carry",
    ),
}
SPEC = MethodSpec("bias")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "Pets_model.safetensors"


def metadata(spec: MethodSpec = SPEC, kind: str = "vit", **known) -> dict:
    return describe("Pets", BASE, kind, spec, 3, known)


def rewrite(path: Path, tensors: dict | None = None, **changes) -> None:
    """Write a file without any check; a change to ... takes the key away."""
    record = {key: value for key, value in {**metadata(), **changes}.items() if value is not ...}
    heads.write(path, TENSORS if tensors is None else tensors, {"network": record})


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items()
    )


# ---------------------------------------------------------------------------------------------------------- round trip
@pytest.mark.parametrize("kind", REASONS)
def test_every_method_comes_back_and_says_why_it_stands_alone(path, kind):
    spec, reason = REASONS[kind]
    assert tuned_files.save(path, TENSORS, metadata(spec, **KNOWN)) == path
    file = tuned_files.load(path)
    assert same(file.tensors, TENSORS)
    assert (file.name, file.spec) == ("Pets", spec)
    assert file.metadata["reason"] == reason and file.metadata["combinable"] is False
    assert {key: file.metadata[key] for key in KNOWN} == KNOWN


def test_what_is_in_the_header(path):
    tuned_files.save(path, TENSORS, metadata(labels=["a", "b", "c"]))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header.keys() == {"network", "sha256"}
    assert json.loads(header["network"]) == {
        "format_version": 2, "name": "Pets", "base": BASE, "kind": "vit", "num_labels": 3, "combinable": False,
        "reason": "it changes the base's own biases", "labels": ["a", "b", "c"],
        "spec": {
            "method": "bias", "memory_tokens": 0, "masking": "masked", "memory_update": "none", "memory_norm": True,
            "train_class_token": True, "rank": 0, "prompt_dropout": 0.0,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("full", "it changes the base's own weights"),
        ("head", "its base is a convolutional network, which has no tokens that heads could see"),
    ],
)
def test_a_convolutional_network_keeps_its_statistics_and_its_count_of_batches(path, method, reason):
    tuned_files.save(path, CONVOLUTIONAL, metadata(MethodSpec(method), "convolutional"))
    file = tuned_files.load(path)
    assert same(file.tensors, CONVOLUTIONAL)
    assert file.metadata["reason"] == reason


def test_a_base_without_a_name_is_legal(path):
    tuned_files.save(path, TENSORS, {**metadata(), "base": {"id": None, "fingerprint": "f"}})
    assert tuned_files.load(path).metadata["base"]["id"] is None


def test_a_share_of_prompts_may_be_a_whole_number(path):
    tuned_files.save(path, TENSORS, metadata(MethodSpec("vpt-deep", 2, prompt_dropout=0)))
    assert tuned_files.load(path).spec == MethodSpec("vpt-deep", 2, prompt_dropout=0.0)


def test_metadata_cannot_take_the_place_of_what_the_file_says_itself():
    with pytest.raises(ValueError, match=r"^Metadata cannot be called reason: the file of a network has these already"):
        metadata(reason="none")


def test_a_file_is_whole_or_not_there(path, monkeypatch):
    tuned_files.save(path, TENSORS, metadata())
    before = path.read_bytes()

    def full_disk(tensors, place, metadata):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tuned_files.save(path, CONVOLUTIONAL, metadata(MethodSpec("full"), "convolutional"))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_only_such_a_file_is_one(path, tmp_path):
    assert not is_tuned(path)
    path.write_bytes(b"half a file")
    assert not is_tuned(path) and not is_tuned(tmp_path)
    tuned_files.save(path, TENSORS, metadata())
    assert is_tuned(path)
    model = tiny_model()
    add_random_head(model, "A", 3)
    model.save_head("A", tmp_path / "A_model.safetensors")
    assert not is_tuned(tmp_path / "A_model.safetensors")
    save_file(TENSORS, tmp_path / "other.safetensors")
    assert not is_tuned(tmp_path / "other.safetensors")


# ---------------------------------------------------------------------------------------------------- what is no head
@pytest.mark.parametrize("kind", REASONS)
def test_it_is_not_taken_for_a_head_and_the_reason_is_told(path, kind):
    spec, reason = REASONS[kind]
    tuned_files.save(path, TENSORS, metadata(spec))
    model = tiny_model()
    line = f"{path} holds a `{spec.method}` model, not a head: {reason}. Evaluate it alone with vit_validation.py."
    for read in (
        heads.load, heads.load_all, heads.read_metadata, heads.read_all_metadata, model.load_head, model.load_heads,
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            read(path)
        assert str(caught.value) == line
    assert model.head_names == []


@pytest.mark.parametrize(
    "header", ["[]", "3", '{"spec": 3, "reason": "x"}', '{"spec": {"method": "full"}}', '{"a": 1}']
)
def test_a_header_that_does_not_say_why_is_damaged(path, header):
    save_file(TENSORS, path, {"network": header})
    with pytest.raises(ValueError, match="has a damaged header: it does not say what its network is, and why it is no"):
        heads.load(path)


def test_a_head_is_not_taken_for_a_network(path):
    model = tiny_model()
    add_random_head(model, "A", 3)
    model.save_head("A", path)
    with pytest.raises(ValueError, match=r"holds no network of its own: its header has no 'network' entry\.$"):
        tuned_files.load(path)


def test_a_file_of_version_1_is_read_and_written_again_with_a_checksum(path, caplog):
    caplog.set_level("INFO", "learnable_memory")
    record = {**metadata(), "format_version": 1, "curve": [1, 2]}
    save_file(TENSORS, path, {"network": json.dumps(record)})
    file = tuned_files.load(path)
    assert same(file.tensors, TENSORS) and file.metadata == record
    assert caplog.messages == [
        f"{path} is of an earlier format, without a checksum: damage in it would not be noticed."
    ]
    tuned_files.save(path, file.tensors, file.metadata)
    assert tuned_files.load(path).metadata == {**metadata(), "notes": {"curve": [1, 2]}}
    assert len(caplog.messages) == 1


# -------------------------------------------------------------------------------------------------------- damaged files
def test_a_changed_file_is_refused(path):
    tuned_files.save(path, CONVOLUTIONAL, metadata(MethodSpec("full"), "convolutional", **KNOWN))
    refuse_damage(path, tuned_files.load, lambda file: (file.tensors, file.metadata), 100)


def test_unknown_keys_are_refused(path):
    with pytest.raises(
        ValueError, match=r"^The metadata of Pets has keys .* not know: label \(did you mean labels\?\)\."
    ):
        metadata(label=["a", "b", "c"])
    rewrite(path, base={**BASE, "size": 3})
    with pytest.raises(ValueError, match=r"has keys that this library does not know: base\.size"):
        tuned_files.load(path)


def test_a_file_that_is_not_there(path):
    with pytest.raises(FileNotFoundError, match=r"There is no head file .*Pets_model\.safetensors"):
        tuned_files.load(path)


def test_a_file_cut_anywhere_is_an_error(path):
    tuned_files.save(path, TENSORS, metadata())
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged or cut short"):
            tuned_files.load(path)


@pytest.mark.parametrize(("header", "message"), [("{'a': 1}", "damaged header: "), ("[1]", "JSON object, got list")])
def test_a_header_that_is_no_json_object(path, header, message):
    save_file(TENSORS, path, {"network": header})
    with pytest.raises(ValueError, match=message):
        tuned_files.load(path)


@pytest.mark.parametrize("version", [0, 3, "1", ...])
def test_another_format_version_is_refused(path, version):
    rewrite(path, format_version=version)
    shown = None if version is ... else version
    with pytest.raises(ValueError, match=f"has network format version {shown!r}; this library reads version 1"):
        tuned_files.load(path)


@pytest.mark.parametrize("key", ["name", "base", "kind", "spec", "num_labels", "combinable", "reason"])
def test_missing_metadata_is_named(path, key):
    rewrite(path, **{key: ...})
    with pytest.raises(ValueError, match=f"is not complete: its metadata lacks {key}\\.$"):
        tuned_files.load(path)


def spec_with(**changes) -> dict:
    record = {**metadata()["spec"], **changes}
    return {key: value for key, value in record.items() if value is not ...}


FIELDS = "method, memory_tokens, masking, memory_update, memory_norm, train_class_token, rank, prompt_dropout"
UNFIT = [
    ({"name": "a/../../b"}, "'a/../../b' cannot be the name of a head"),
    ({"name": ["A"], "num_labels": True}, "name is ['A'], num_labels is True."),
    ({"num_labels": 0}, "num_labels must be a whole number of at least 1"),
    ({"base": 3}, "base is 3."),
    ({"base": {"id": 7, "fingerprint": "x"}}, "base.id is 7."),
    ({"base": {"id": "x", "fingerprint": None}}, "base.fingerprint is None."),
    ({"kind": "transformer"}, "kind is 'transformer', but it has to be one of vit, convolutional."),
    ({"kind": ["vit"]}, "kind is ['vit']."),
    ({"kind": "convolutional"}, "a convolutional network learns full or head, not bias."),
    ({"spec": 3}, "spec is 3."),
    ({"spec": {"method": "full"}}, f"spec has to hold {FIELDS}; got method."),
    ({"spec": spec_with(temperature=1.0)}, f"spec has to hold {FIELDS}; got {FIELDS}, temperature."),
    ({"spec": spec_with(memory_tokens=True, rank="8")}, "spec.memory_tokens is True, spec.rank is '8'."),
    ({"spec": spec_with(prompt_dropout="0.1")}, "spec.prompt_dropout is '0.1'."),
    ({"spec": spec_with(memory_norm=1)}, "spec.memory_norm is 1."),
    ({"spec": spec_with(method="magic")}, "method is 'magic', but it has to be one of memory, "),
    ({"spec": spec_with(method="lora")}, "lora needs a rank of at least 1, got 0"),
    ({"spec": spec_with(method="head")}, "head is what a head learns, and heads have files of their own."),
    ({"combinable": True}, "combinable is True, but it has to be false."),
    ({"combinable": 0}, "combinable is 0."),
    ({"reason": " "}, "reason is ' ', but it has to say why the network cannot be put together with others."),
    ({"reason": 3}, "reason is 3."),
    ({"labels": ["a"]}, "labels have to be a list of 3 names, one for each class."),
    ({"labels": ["a", "b", 3]}, "labels is 3."),
    ({"metrics": 3, "preprocessing": "x"}, "metrics is 3, preprocessing is 'x'."),
    ({"training": {"precision": ["x"]}}, "training.precision is ['x']."),
    ({"dataset": {"name": "Digits", "split_seed": 0}}, "dataset has no splits."),
    ({"dataset": {"name": "Digits", "split_seed": 0, "splits": {"eval": {}}}}, "which images eval had."),
]


@pytest.mark.parametrize(("changes", "message"), UNFIT, ids=str)
def test_metadata_that_cannot_be_a_networks_is_neither_read_nor_written(path, changes, message):
    with pytest.raises(ValueError) as caught:
        tuned_files.save(path, TENSORS, {**metadata(), **changes})
    assert not path.exists()
    rewrite(path, **changes)
    said = [str(caught.value)]
    with pytest.raises(ValueError) as caught:
        tuned_files.load(path)
    said.append(str(caught.value))
    assert all(line.startswith(f"{path} has a damaged header: ") and message in line for line in said), said


COUNTER = "a.num_batches_tracked"
UNFIT_TENSORS = {
    "none": ({}, "vit", "full", "holds no tensors: a network has learned at least a classifier."),
    "float16": (
        {"x": torch.zeros(1).half(), "y": torch.zeros(1)}, "vit", "full",
        "holds tensors of other types: x is torch.float16 and has to be torch.float32.",
    ),
    "a counter of a ViT": (
        {COUNTER: torch.tensor(1)}, "vit", "full",
        f"{COUNTER} is torch.int64 and has to be torch.float32.",
    ),
    "a counter in float32": (
        {COUNTER: torch.tensor(1.0)}, "convolutional", "full",
        f"{COUNTER} is torch.float32 and has to be torch.int64.",
    ),
    "another whole number": (
        {"a.steps": torch.tensor(1)}, "convolutional", "full", "a.steps is torch.int64 and has to be torch.float32.",
    ),
    "infinite": (
        {"x": torch.tensor([1.0, float("inf")]), "y": torch.zeros(1), "z": torch.tensor(float("nan"))}, "vit", "full",
        "has values that are not finite in x, z: its training has diverged.",
    ),
    "many": (
        {f"t{i}": torch.tensor(float("nan")) for i in range(6)}, "vit", "full",
        "has values that are not finite in t0, t1, t2, t3 and 2 more: its training has diverged.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT_TENSORS)
def test_tensors_that_do_not_fit_are_neither_read_nor_written(path, case):
    tensors, kind, method, message = UNFIT_TENSORS[case]
    record = metadata(MethodSpec(method), kind)
    with pytest.raises(ValueError) as caught:
        tuned_files.save(path, tensors, record)
    assert str(caught.value).startswith(str(path)) and str(caught.value).endswith(message) and not path.exists()
    heads.write(path, tensors, {"network": record})
    with pytest.raises(ValueError) as caught:
        tuned_files.load(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).endswith(message)


@pytest.mark.parametrize(("base_id", "shown"), [("someone/vit", "someone/vit"), (None, "unnamed")])
def test_another_base_is_refused(base_id, shown):
    file = TunedFile(TENSORS, {**metadata(), "base": {"id": base_id, "fingerprint": "a" * 64}})
    tuned_files.check_base(file.metadata, "a" * 64)
    with pytest.raises(ValueError) as caught:
        tuned_files.check_base(file.metadata, "b" * 64)
    assert str(caught.value) == (
        f"Pets was trained on another base ({shown}): base fingerprint {'a' * 64} in the file, {'b' * 64} in the "
        "model. Load the base that it was trained on, or train the network again on this one."
    )
