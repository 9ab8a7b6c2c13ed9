"""Heads with low-rank weights as files: what is refused, several in one, `heads SUBCOMMAND`, the hub, and exported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from learnable_memory import heads
from learnable_memory.export import FORMATS, export
from learnable_memory.hub import from_hub, push_to_hub
from learnable_memory.projections import PROJECTIONS
from test_export import run as answers_of
from test_heads_command import output, run
from test_legacy import old_state
from test_low_rank import old_file
from tiny import add_random_head, images, tiny_model
from vit import MemoryCapableViT

RANKS = {
    "A": 2,
    "child": {"value": 1, "mlp_out": 3},
    "all": dict.fromkeys(PROJECTIONS, 2),
    "plain": 0,
}


def family(**changes) -> MemoryCapableViT:
    """Heads of several ranks; `child` is built on `A` and `plain`."""
    model = tiny_model(**changes)
    for name in ("A", "plain", "child", "all"):
        extends = ("A", "plain") if name == "child" else ()
        add_random_head(model, name, 3, 2, extends, rank=RANKS[name], metadata={"labels": ["a", "b", "c"]})
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The present folder, with the family in `models`; `plain` is of format version 1."""
    monkeypatch.chdir(tmp_path)
    model = family()
    for name in model.head_names:
        model.save_head(name, Path("models") / heads.file_name(name))
    old_file(Path("models/plain_model.safetensors"), model)
    return tmp_path


def logits(model: MemoryCapableViT, names=None) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {name: output.logits for name, output in model(images(), names).items()}


def assert_same_answers(found: MemoryCapableViT, names) -> None:
    ours, theirs = logits(found, names), logits(family(), names)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


# ----------------------------------------------------------------------------------------------------- what is refused
TENSORS = {"lacks": {"low_rank.mlp_in.up": None}, "has more": {"low_rank.key.down": torch.zeros(3, 2, 32)}}
TENSORS |= {"other shape": {"low_rank.query.up": torch.zeros(3, 31, 2)}}
NAN = torch.full((3, 32, 2), torch.nan)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (TENSORS["lacks"], {}, r"low_rank.mlp_in.up: found nothing, expected \(3, 64, 2\)"),
        (TENSORS["has more"], {}, r"low_rank.key.down: found \(3, 2, 32\), expected nothing"),
        (TENSORS["other shape"], {}, r"low_rank.query.up: found \(3, 31, 2\), expected \(3, 32, 2\)"),
        ({"low_rank.query.up": NAN}, {}, "values that are not finite in low_rank.query.up: its training has diverged"),
        ({"low_rank.query.up": NAN.half()}, {}, "float32 tensors only, but low_rank.query.up is torch.float16"),
        ({}, {"low_rank": None}, "is not complete: its metadata lacks low_rank"),
        ({}, {"intermediate_size": None}, "is not complete: its metadata lacks intermediate_size"),
        ({}, {"low_rank": None, "format_version": 1}, "low_rank.query.up: found .*, expected nothing"),
        ({}, {"class_token": False, "memory_tokens": 0}, "is a linear probe: .* no rank"),
        ({}, {"intermediate_size": 65}, r"low_rank.mlp_in.up: found \(3, 64, 2\), expected \(3, 65, 2\)"),
        ({}, {"format_version": 4}, "format version 4; this library reads version 1, 2, 3"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_clear_error(folder, tensors, metadata, message):
    """None stands for what is not there at all."""
    path = Path("models/A_model.safetensors")
    file = heads.load(path)
    kept = {name: tensor for name, tensor in (file.tensors | tensors).items() if tensor is not None}
    header = {key: value for key, value in (file.metadata | metadata).items() if value is not None}
    heads.write(path, kept, {"head": header})
    for read in (heads.load, tiny_model().load_head):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_base_of_another_mlp_is_another_base(folder):
    """Its width says so, and its fingerprint."""
    other = tiny_model(intermediate_size=96)
    with pytest.raises(
        ValueError, match=r"was trained on another base .*: width of the MLP 64 in the file, 96 in the model; base fing"
    ):
        other.load_head("models/A_model.safetensors")


def test_a_file_of_version_2_without_ranks_is_read(folder):
    family().save_head("plain", "new.safetensors")
    metadata = heads.read_metadata("new.safetensors")
    assert (metadata["format_version"], metadata["low_rank"], metadata["intermediate_size"]) == (3, {}, 64)
    model = tiny_model()
    model.load_head("new.safetensors")
    assert_same_answers(model, ["plain"])


# ----------------------------------------------------------------------------------------------------- several in one
def test_merged_and_split_they_are_what_they_were(folder, capsys):
    output(capsys, "merge", "child", "A", "plain", "all", "-o", "merged.safetensors")
    with safe_open("merged.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {"A.low_rank.query.down", "child.low_rank.mlp_out.up", "all.low_rank.key.up"} <= names
    assert not any(name.startswith("plain.low_rank") for name in names)
    model = tiny_model()
    model.load_heads("merged.safetensors")
    assert_same_answers(model, ["A", "plain", "child", "all"])
    output(capsys, "split", "merged.safetensors", "-o", "apart")
    for name in RANKS:
        found, expected = (heads.load(Path(place) / heads.file_name(name)) for place in ("apart", "models"))
        assert found.metadata == heads.current(expected.metadata) and found.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(found.tensors[key], value) for key, value in expected.tensors.items())


def test_show_says_the_ranks(folder, capsys):
    lines = output(capsys, "show", "A", "plain", "child", "all").splitlines()
    where = slice(lines[0].index("base") + 8, lines[0].index("classes"))
    assert [line[where].strip() for line in lines[:5]] == ["cells", "2, rank 2", "2", "2, rank 1/3", "2, rank 2"]
    assert lines[-1] == "They can be put together: one pass over an image answers all."
    rows = json.loads(output(capsys, "show", "child", "plain", "--json"))["heads"]
    assert [row["low_rank"] for row in rows] == [{"value": 1, "mlp_out": 3}, {}]


def test_what_is_converted_has_none(folder, capsys):
    torch.save(old_state(), "Cars_model.pt")
    assert run("convert", "Cars_model.pt", "cars.safetensors") == 0
    metadata = heads.read_metadata("cars.safetensors")
    assert (metadata["format_version"], metadata["low_rank"]) == (3, {})


# ------------------------------------------------------------------------------------------------------------- the hub
def test_pushed_and_fetched_it_answers_the_same(folder):
    Path("hub").mkdir()
    push_to_hub("models/all_model.safetensors", "hub")
    model = tiny_model()
    model.load_heads(from_hub("hub"))
    assert_same_answers(model, ["all"])
    card = Path("hub/README.md").read_text(encoding="utf-8")
    assert "| low-rank weights | rank 2 of query, key, value, output, mlp\\_in, mlp\\_out, in each layer, for " in card
    numbers = sum(tensor.numel() for tensor in heads.load("models/all_model.safetensors").tensors.values())
    assert f"{numbers:,} numbers" in card


# ------------------------------------------------------------------------------------------------------------ exported
@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_an_exported_file_answers_as_the_model(format, tmp_path):
    model = family(num_hidden_layers=2)
    path = tmp_path / f"heads{FORMATS[format].suffix}"
    assert export(model, path, format) < 5e-6  # of the largest logit, as of plain heads
    expected = logits(model)
    found = answers_of(path, images())
    assert list(found) == list(expected) == ["base", "A", "plain", "child", "all"]
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 5e-6 * max(1.0, value.abs().max().item()), name
    without = family(num_hidden_layers=2)
    for head in without.heads.values():
        for update in head.low_rank.values():
            torch.nn.init.zeros_(update.up)
    plain = logits(without)
    assert all((plain[name] - expected[name]).abs().max() > 0.1 for name in ("A", "child", "all"))


@pytest.mark.parametrize("width", [1, 63])
def test_a_head_for_another_width_of_the_mlp_is_refused_and_not_there(tmp_path, width):
    """Its tensors fit its own metadata; width 1 would be broadcast."""
    model = tiny_model()
    model.add_head("A", 3, 1, rank=2)
    model.save_head("A", tmp_path / "A.safetensors")
    file = heads.load(tmp_path / "A.safetensors")
    tensors = {**file.tensors}
    tensors["low_rank.mlp_in.up"] = tensors["low_rank.mlp_in.up"][:, :width].contiguous()
    tensors["low_rank.mlp_out.down"] = tensors["low_rank.mlp_out.down"][:, :, :width].contiguous()
    heads.save(tmp_path / "B.safetensors", tensors, {**file.metadata, "intermediate_size": width})
    other = tiny_model()
    with pytest.raises(ValueError, match=f"width of the MLP {width} in the file, 64 in the model"):
        other.load_head(tmp_path / "B.safetensors")
    assert other.head_names == []
