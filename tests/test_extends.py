"""`vit_train.py --extends`: a head learns on top of others, which stay as they are."""

import json
import logging
from pathlib import Path

import pytest
import torch

import vit_train
from command_lines import QUICK, rows_of, same_tensors, save_base, train, validate
from interruptions import Killed, at_call, kill
from learnable_memory import heads
from learnable_memory import train as training
from learnable_memory.commands import run_command
from learnable_memory.commands import train as train_command
from oracle import joint_logits
from process_groups import assert_same_head, launch
from tiny import add_random_head, images
from vit import MemoryCapableViT


def save_random_head(model: MemoryCapableViT, folder: Path, name: str, *args, **kwargs) -> Path:
    add_random_head(model, name, *args, **kwargs)
    path = folder / heads.file_name(name)
    model.save_head(name, path)
    return path


@pytest.fixture
def models(base, tmp_path) -> Path:
    """A folder with the head `A`, with `B` on top of it, and `C` for itself."""
    model = MemoryCapableViT.from_pretrained(base)
    save_random_head(model, tmp_path, "A", 4, 2)
    save_random_head(model, tmp_path, "B", 3, 1, extends=["A"])
    save_random_head(model, tmp_path, "C", 2, 0)
    return tmp_path


def flags_of(colours, *more) -> list[str]:
    return ["-d", f"folder:{colours}", "-e", "2", "--lr", "0.3", *map(str, more)]


def head_of(folder: Path, name: str = "colours") -> heads.HeadFile:
    return heads.load(folder / heads.file_name(name))


def names_extended(file: heads.HeadFile) -> list[str]:
    return [parent["name"] for parent in file.metadata["extends"]]


def fails(capsys, *flags) -> str:
    """The last line of stderr; messages of logging are before it."""
    capsys.readouterr()
    assert run_command(vit_train.main, [*QUICK, *map(str, flags)], prog="prog") == 2
    return capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------ what is learned
def test_the_child_sees_its_ancestors_and_they_stay_as_they_are(models, base, colours, monkeypatch):
    before = {name: head_of(models, name).tensors for name in "AB"}
    pixels, trained, plain = images(), [], train_command.run_passes
    alone = MemoryCapableViT.from_pretrained(base)
    alone.load_head(models / "A_model.safetensors")
    alone.load_head(models / "B_model.safetensors")
    monkeypatch.setattr(train_command, "run_passes", lambda base, *rest: trained.append(base.vit) or plain(base, *rest))
    train(base, models, *flags_of(colours, "--extends", "B", "-m", 2))

    (model,) = trained
    assert model.head_names == ["A", "B", "colours"]  # C was not asked for
    for name in "AB":
        after = model.heads[name].tensors()
        assert all(torch.equal(after[key], value) for key, value in before[name].items())
    with torch.no_grad():
        theirs, ours = (each(pixels, heads=["A", "B"]) for each in (alone, model))
    assert all(torch.equal(ours[name].logits, theirs[name].logits) for name in ("base", "A", "B"))

    assert names_extended(head_of(models)) == ["B"]
    exact = MemoryCapableViT.from_pretrained(base)
    for name in ("A", "B", "colours"):  # which refuses parents of another hash
        exact.load_head(models / heads.file_name(name))
    exact = exact.double()
    with torch.no_grad():
        expected, found = joint_logits(exact, pixels.double()), exact(pixels.double())
    assert expected.keys() == {"base", "A", "B", "colours"}
    assert all(torch.allclose(found[name].logits, expected[name], rtol=0, atol=1e-9) for name in expected)


@pytest.mark.slow
def test_training_differs_with_what_is_extended(models, base, colours):
    """The same seeds, so that nothing but the parents can make a difference; they decide the evaluation too."""
    for folder, extends in (("none", ()), ("A", ("A",)), ("C", ("C",)), ("AC", ("A", "C"))):
        paths = [models / heads.file_name(name) for name in extends]
        flags = flags_of(colours, *(["--extends", *paths] if paths else []))
        train(base, models / folder, *flags)
        assert names_extended(head_of(models / folder)) == list(extends)
    found = [head_of(models / folder) for folder in ("none", "A", "C", "AC")]
    memories = [file.tensors["memory"] for file in found]
    assert not any(torch.equal(one, other) for i, one in enumerate(memories) for other in memories[:i])
    losses = {file.metadata["metrics"]["eval"]["loss"] for file in found}
    assert len(losses) == 4


def test_validation_repeats_what_training_said(models, base, colours, capsys, caplog):
    train(base, models, *flags_of(colours, "--extends", "B"))
    capsys.readouterr()
    caplog.set_level(logging.INFO)
    results = models / "results.json"
    validate(models, "-m", "colours", "--output", str(results))
    assert rows_of(capsys.readouterr().out).keys() == {"colours"}  # those that come along do not answer
    (row,) = json.loads(results.read_text())["heads"]
    stored = head_of(models).metadata["metrics"]["eval"]
    assert row["difference"] == 0
    assert row["loss"] == pytest.approx(stored["loss"], rel=1e-5)
    where = {name: models / heads.file_name(name) for name in "AB"}
    assert f"loaded too: B, which colours extends, from {where['B']}" in caplog.messages
    assert f"loaded too: A, which B extends, from {where['A']}" in caplog.messages


@pytest.mark.slow
def test_children_of_children_and_files_of_several_heads(models, base, brightness, colours):
    train(base, models / "first", *flags_of(brightness, "--extends", models / "B_model.safetensors"))
    heads.save_all(models / "first" / "pair.safetensors", [head_of(models, "A"), head_of(models, "C")])
    for name in "AB":  # the child's parents lie beside it from now on
        (models / heads.file_name(name)).rename(models / "first" / heads.file_name(name))
    child, pair = models / "first" / "brightness_model.safetensors", models / "first" / "pair.safetensors"
    train(base, models / "second", *flags_of(colours, "--extends", child))
    assert names_extended(head_of(models / "second")) == ["brightness"]
    train(base, models / "third", *flags_of(colours, "--extends", pair))
    assert names_extended(head_of(models / "third")) == ["A", "C"]


@pytest.mark.slow
def test_every_cell_of_a_grid_extends_the_same_heads(models, base, colours):
    grid = ("--extends", "B", "--keep_all", "-m", 0, 2, "--data_seeds", 0, 1)
    train(base, models, *flags_of(colours, *grid))
    cells = sorted(path for path in models.glob("colours*_model.safetensors"))
    assert len(cells) == 1 + 4
    parents = [heads.read_metadata(path)["extends"] for path in cells]
    assert all(each == parents[0] for each in parents) and [parent["name"] for parent in parents[0]] == ["B"]
    assert not any("extends" in heads.read_metadata(path)["training"] for path in cells)


@pytest.mark.slow
def test_a_cache_changes_nothing(models, base, colours):
    once = ("--views", 1, "--extends", models / "B_model.safetensors")
    for cache in ("none", "memory"):
        train(base, models / cache, *flags_of(colours, *once, "--cache", cache))
    assert same_tensors(*(models / cache / "colours_model.safetensors" for cache in ("none", "memory")))


@pytest.mark.slow
def test_parents_trained_on_other_pixels_are_announced(models, base, colours, caplog):
    file = head_of(models, "C")
    pixels = {
        "height": 32, "width": 32, "resample": "bilinear", "rescale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1],
        "resize": [32, 32],
    }  # fmt: skip
    heads.save(models / "C_model.safetensors", file.tensors, {**file.metadata, "preprocessing": pixels})
    caplog.set_level(logging.INFO)
    train(base, models, *flags_of(colours, "--extends", "C"))
    assert (
        "C was trained on images legacy-2023: resized to 32x32 (bilinear), values in [0, 1]; below the new head it "
        "sees them resized to 16x16 (bilinear), JPEG decoded at 2 times that or more, "
        "mean 0.5 0.5 0.5, std 0.5 0.5 0.5."
    ) in caplog.messages
    assert any(message.startswith("colours, built on C, on ") for message in caplog.messages)
    caplog.clear()
    train(base, models, *flags_of(colours, "--extends", "colours", "--name", "again"))
    said = [message for message in caplog.messages if "was trained on images" in message]
    assert [message.split()[0] for message in said] == ["C"]  # an ancestor; `colours` has the pixels of this run


# ------------------------------------------------------------------------------------------------------------- resuming
@pytest.fixture
def broken_off(models, base, colours, monkeypatch) -> list[str]:
    """The flags of a run on top of B that was killed at its 8th step of 12."""
    own = ["--base_model", base, "--output", models, "--checkpoint_steps", 1, "--extends", "B"]
    flags = [*QUICK, *map(str, own), *flags_of(colours)]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_call(patch, training, "train_step", [8], kill)
        vit_train.main(flags)
    return flags


@pytest.mark.slow
def test_resumed_as_if_nothing_had_happened(models, base, colours, broken_off):
    run = models / "colours_run"
    (recorded,) = json.loads((run / "parents.json").read_text())
    assert recorded["name"] == "B" and len(recorded["hash"]) == 64
    assert vit_train.main([*broken_off, "--resume"]) == 0
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "options.json"]
    whole = models / "whole"
    train(base, whole, *flags_of(colours, "--extends", models / "B_model.safetensors"))
    assert same_tensors(models / "colours_model.safetensors", whole / "colours_model.safetensors")


@pytest.mark.parametrize("name", ["A", pytest.param("B", marks=pytest.mark.slow)])
def test_a_run_does_not_go_on_with_parents_that_changed(models, base, broken_off, name, capsys):
    """A grandparent counts too: B's hash is made of A's."""
    old = {each: (models / heads.file_name(each)).read_bytes() for each in "AB"}
    model = MemoryCapableViT.from_pretrained(base)
    for each, cells in (("A", 2), ("B", 1)):
        add_random_head(model, each, 3, cells, extends=["A"] if each == "B" else [], seed=int(each >= name))
        model.save_head(each, models / heads.file_name(each))
    line = fails(capsys, *broken_off, "--resume")
    assert line == (
        f"prog: error: --extends gives other heads than when the run in {models / 'colours_run'} began: "
        "start anew with --overwrite."
    )
    for each, content in old.items():
        (models / heads.file_name(each)).write_bytes(content)
    assert vit_train.main([*broken_off, "--resume"]) == 0


def test_a_run_does_not_go_on_with_other_names(broken_off, capsys):
    assert "--extends differ" in fails(capsys, *broken_off, "--resume", "--extends", "A")


# ------------------------------------------------------------------------------------------------------------ wrong use
@pytest.fixture
def wrong(models, colours, capsys):
    """The last line with which training ends before its base is looked for, and so before anything is loaded."""

    def ending(*flags) -> str:
        before = sorted(models.rglob("*"))
        line = fails(capsys, "--base_model", models / "no base", "--output", models, *flags_of(colours, *flags))
        assert sorted(models.rglob("*")) == before
        return line.removeprefix("prog: error: ")

    return ending


def test_the_name_of_an_ancestor_is_taken(models, wrong):
    place = models / "A_model.safetensors"
    expected = f"A cannot extend the A in {place}: give another --name."
    assert wrong("--name", "A", "--extends", "B", "--overwrite") == expected
    (models / "aside").mkdir()
    for name in "AB":
        (models / heads.file_name(name)).rename(models / "aside" / heads.file_name(name))
    place = models / "aside" / "A_model.safetensors"  # nothing would be replaced
    expected = f"A cannot extend the A in {place}: give another --name."
    assert wrong("--name", "A", "--extends", models / "aside" / "B_model.safetensors") == expected


def test_the_file_of_a_parent_is_taken(models, wrong):
    """A file may hold a head of another name than its own."""
    (models / "B_model.safetensors").rename(models / "X_model.safetensors")
    expected = f"X cannot extend the B in {models / 'X_model.safetensors'}: give another --name."
    assert wrong("--name", "X", "--extends", "X", "--overwrite") == expected


def test_parents_without_a_file(models, wrong):
    assert wrong("--extends", "A", "Z").startswith(f"No head file for Z in {models} (looked for Z_model.safetensors")
    (models / "A_model.safetensors").unlink()
    assert wrong("--extends", "B").startswith("B extends A, whose file is not there: looked for A_model.safetensors")


def test_a_linear_probe_is_no_parent(models, base, wrong):
    model = MemoryCapableViT.from_pretrained(base)
    save_random_head(model, models, "A", 2, 0, class_token=False)
    expected = "--extends names A: a linear probe has nothing that other heads could see."
    assert wrong("--extends", "A", "C") == expected


def test_a_linear_probe_extends_nothing(models, colours, capsys):
    with pytest.raises(SystemExit, match="2"):  # seen while the command line is read
        vit_train.main([*QUICK, "--output", str(models), *flags_of(colours, "--extends", "A", "--method", "head")])
    assert "--extends needs class tokens, which linear probes do not have" in capsys.readouterr().err


def test_a_parent_of_another_base(models, colours, capsys):
    other = save_base(models / "other", seed=1)
    line = fails(capsys, "--base_model", other, "--output", models, *flags_of(colours, "--extends", "A"))
    assert line.startswith("prog: error: A was trained on another base")


# -------------------------------------------------------------------------------------------------------- two processes
@pytest.mark.slow
def test_two_processes_train_the_child_of_one(models, base, colours):
    flags = ["--base_model", base, *flags_of(colours, "--extends", models / "B_model.safetensors")]
    for folder in ("one", "two"):
        arguments = [*QUICK, *map(str, flags), "--output", str(models / folder)]
        launch(arguments) if folder == "two" else vit_train.main(arguments)
    assert_same_head(*(models / folder / "colours_model.safetensors" for folder in ("two", "one")))
    assert head_of(models / "two").metadata["extends"] == head_of(models / "one").metadata["extends"]
