"""Classes are compared by their names: in another order they are matched, and others are refused with what differs."""

import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features

import vit_train
import vit_validation
from command_lines import QUICK, rows_of, validate
from interruptions import Killed, at_call, kill
from learnable_memory import heads
from learnable_memory import train as training
from learnable_memory.class_names import check_classes
from learnable_memory.commands import run_command
from learnable_memory.data import DataSet, load_data_set
from learnable_memory.images import ArrayImages, ImageSet
from pet_tables import encode

MATCHED = "has its classes in another order here: they are matched by their names."
ANIMALS = ["cat", "dog", "fox"]


def write_table(folder: Path, names: list[str], called: dict[str, str] | None = None) -> Path:
    """36 images of three animals, whose classes are numbered in the order of `names`; some are called otherwise."""
    animals = ANIMALS * 12
    numbers = [names.index((called or {}).get(animal, animal)) for animal in animals]
    pictures = [{"bytes": encode(row), "path": None} for row in range(36)]
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=names)})
    folder.mkdir(exist_ok=True)
    Dataset.from_dict({"image": pictures, "label": numbers}, features=features).to_parquet(str(folder / "a.parquet"))
    return folder / "a.parquet"


@pytest.fixture
def table(tmp_path) -> Path:
    return write_table(tmp_path / "animals", ANIMALS)


def flags_of(base, table, output, *more) -> list[str]:
    flags = [*QUICK, "--base_model", base, "--output", output, "--directory", output, "-e", "2", "--lr", "0.3", *more]
    return [*map(str, flags), "-d", f"parquet:{table}", "--name", "animals"]


def refused(capsys, flags, command=vit_train) -> str:
    capsys.readouterr()
    assert run_command(command.main, list(map(str, flags)), prog="prog") == 2
    return capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------------ the data
def test_another_order_is_matched_by_name_before_splits_are_drawn(table, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = load_data_set(f"parquet:{table}", tmp_path)
    write_table(table.parent, ["fox", "dog", "cat"])
    unmatched = load_data_set(f"parquet:{table}", tmp_path)
    assert unmatched.labels == ["fox", "dog", "cat"] and unmatched.eval.hash != before.eval.hash
    assert MATCHED not in caplog.text
    matched = load_data_set(f"parquet:{table}", tmp_path, labels=ANIMALS)
    assert matched.labels == ANIMALS and matched.record()["splits"] == before.record()["splits"]
    assert [matched.train.labels.tolist(), matched.eval.labels.tolist()] == [
        before.train.labels.tolist(), before.eval.labels.tolist()
    ]  # fmt: skip
    assert caplog.messages == [f"parquet:{table} {MATCHED}"]


@pytest.mark.parametrize("labels", [None, ANIMALS, ["cat", "dog"], ["cat", "dog", "wolf"], ["cat", "cat", "fox"]])
def test_other_classes_stay_as_they_are(table, tmp_path, labels, caplog):
    caplog.set_level(logging.INFO)
    assert load_data_set(f"parquet:{table}", tmp_path, labels=labels).labels == ANIMALS
    assert MATCHED not in caplog.text


def data_of(labels: list[str]) -> DataSet:
    some = ImageSet(ArrayImages(np.zeros((1, 4, 4), np.uint8), "a"), np.zeros(1))
    return DataSet("folder:/x/pets", labels, some, some, some, None, "folder", 0, 0)


@pytest.mark.parametrize(
    ("labels", "here", "said"),
    [
        (["a", "b", "c"], ["a", "b", "d"], "has 3 classes, and folder:/x/pets here (folder) has 3 classes; not in the "
         "data: c; only in the data: d. Give the data that it was trained on, by --directory or by their name."),
        (["a"], ["a", "b"], "has 1 class, and folder:/x/pets here (folder) has 2 classes; only in the data: b. Give"),
        (["a", "b"], ["b", "a"], "; some have one name, so they cannot be matched by it. Give"),
        ([f"c{i}" for i in range(12)], ["x"], "; not in the data: c0, c1, c2, c3, c4, c5, c6, c7 and 4 more; only"),
        (None, ["a", "b"], "has 3 classes, and folder:/x/pets here (folder) has 2 classes. Give the data"),
    ],
)  # fmt: skip
def test_what_differs_is_said(labels, here, said):
    with pytest.raises(ValueError) as caught:
        check_classes(labels, 3 if labels is None else len(labels), data_of(here), "The head pets")
    assert str(caught.value).startswith("The head pets has ") and said in str(caught.value)


@pytest.mark.parametrize("labels", [["a", "b"], None])
def test_the_same_classes_are_no_error(labels):
    check_classes(labels, 2, data_of(["a", "b"]), "The head pets")


# -------------------------------------------------------------------------------------------------------- the commands
def test_a_head_is_validated_by_the_names_of_its_classes(base, table, tmp_path, capsys, caplog):
    vit_train.main(flags_of(base, table, tmp_path))
    where = ["-m", "animals", "--directory", str(tmp_path)]
    validate(tmp_path, *where)
    before = rows_of(capsys.readouterr().out)
    assert before["animals"]["against the file"] == "+0.00" and MATCHED not in caplog.text

    write_table(table.parent, ["fox", "cat", "dog"])
    validate(tmp_path, *where)
    assert rows_of(capsys.readouterr().out) == before
    assert MATCHED in caplog.text

    write_table(table.parent, ["cat", "dog", "wolf"], {"fox": "wolf"})
    error = refused(capsys, [*QUICK, "--models_folder", tmp_path, *where], vit_validation)
    assert "The head animals has 3 classes, and parquet:" in error
    assert "not in the data: fox; only in the data: wolf." in error


def test_a_run_goes_on_by_the_names_of_its_classes(base, table, tmp_path, monkeypatch, capsys, caplog):
    vit_train.main(flags_of(base, table, tmp_path / "whole"))
    flags = flags_of(base, table, tmp_path / "out", "--checkpoint_steps", "1")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_call(patch, training, "train_step", [3], kill)
        vit_train.main(flags)
    write_table(table.parent, ["cat", "dog", "wolf"], {"fox": "wolf"})
    line = refused(capsys, [*flags, "--resume"])
    assert f"The run in {tmp_path / 'out' / 'animals_run'} has 3 classes" in line and "only in the data: wolf" in line
    write_table(table.parent, ["dog", "fox", "cat"])
    assert vit_train.main([*flags, "--resume"]) == 0
    assert MATCHED in caplog.text
    found, expected = (heads.load(tmp_path / name / "animals_model.safetensors") for name in ("out", "whole"))
    assert found.metadata["labels"] == ANIMALS and found.metadata["metrics"]["eval"]["loss"] == pytest.approx(
        expected.metadata["metrics"]["eval"]["loss"], rel=1e-6
    )


def test_a_head_begins_with_another_by_the_names_of_its_classes(base, table, tmp_path, capsys, caplog):
    vit_train.main(flags_of(base, table, tmp_path))
    again = ["--init_from", "animals", "--name", "more"]
    write_table(table.parent, ["cat", "dog", "wolf"], {"fox": "wolf"})
    line = refused(capsys, [*flags_of(base, table, tmp_path), *again])
    assert "animals, which --init_from begins with, has 3 classes" in line and "not in the data: fox" in line
    write_table(table.parent, ["dog", "fox", "cat"])
    assert vit_train.main([*flags_of(base, table, tmp_path, "--max_steps", "1", "--lr", "1e-9"), *again]) == 0
    assert MATCHED in caplog.text
    first, second = (heads.load(tmp_path / f"{name}_model.safetensors") for name in ("animals", "more"))
    assert second.metadata["labels"] == ANIMALS
    assert np.allclose(first.tensors["classifier.weight"], second.tensors["classifier.weight"], atol=1e-6)


def test_a_head_on_top_of_another_of_the_same_data_has_its_classes(base, table, tmp_path, capsys, caplog):
    vit_train.main(flags_of(base, table, tmp_path, "--max_steps", "1"))
    above = ["--extends", "animals", "--name", "above", "--max_steps", "1"]
    write_table(table.parent, ["cat", "dog", "wolf"], {"fox": "wolf"})
    line = refused(capsys, [*flags_of(base, table, tmp_path), *above])
    assert "animals, which --extends builds on, has 3 classes" in line and "not in the data: fox" in line
    write_table(table.parent, ["dog", "fox", "cat"])
    assert vit_train.main([*flags_of(base, table, tmp_path), *above]) == 0
    assert MATCHED in caplog.text
    assert heads.read_metadata(tmp_path / "above_model.safetensors")["labels"] == ANIMALS
