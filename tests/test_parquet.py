"""Parquet files of any size, by their path."""

import io
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features
from PIL import Image

from learnable_memory.sources.found import Request
from learnable_memory.sources.parquet import read_parquet_path
from pet_tables import PETS, encode, reds, refuse_network, table, write_pets


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)


@pytest.mark.parametrize(
    ("files", "select", "evaluation"),
    [
        (["train.parquet", "val.parquet", "test.parquet"], [10, 11], [20, 21]),
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], None, [10, 11]),
        (["train-a.parquet", "validation-a.parquet"], None, [10, 11]),
        (["Training.parquet", "Valid.parquet", "TESTING-0.parquet"], [10, 11], [20, 21]),
    ],
)
def test_names_of_parquet_files(
    tmp_path: Path, files: list[str], select: list[int] | None, evaluation: list[int]
) -> None:
    for place, file in enumerate(files):
        (tmp_path / "pets" / file).parent.mkdir(parents=True, exist_ok=True)
        table(10 * place, [0, 1]).to_parquet(str(tmp_path / "pets" / file))
    found = read_parquet_path(Request(tmp_path, str(tmp_path / "pets")))
    assert reds(found.train) == [0, 1] and reds(found.eval) == evaluation
    assert (found.select and reds(found.select)) == select


def test_parquet_without_split_names_is_one_split(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    for red, name in ((10, "b"), (0, "a"), (20, "trainer")):
        table(red, [0, 1]).to_parquet(str(tmp_path / "pets" / f"{name}.parquet"))
    found = read_parquet_path(Request(tmp_path, str(tmp_path / "pets")))
    assert reds(found.train) == [0, 1, 10, 11, 20, 21]  # by name, whatever the folder lists first
    assert found.eval is None and found.select is None


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        ({}, FileNotFoundError, r"parquet:.*pets: no such file, nor a folder with \*.parquet or data/\*.parquet in it"),
        ({"train.parquet": b"<html>"}, ValueError, "cannot read .*pets/train.parquet .*; delete it or replace it"),
        (
            {"train.parquet": b"", "more.parquet": b""},
            ValueError,
            "has files of splits, and others: more.parquet; move",
        ),
    ],
)
def test_wrong_parquet_paths(tmp_path: Path, write: dict[str, bytes], error: type[Exception], message: str) -> None:
    for name, content in write.items():
        (tmp_path / "pets").mkdir(exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_parquet_path(Request(tmp_path, str(tmp_path / "pets")))
    assert "\n" not in str(caught.value)


def test_parquet_damaged_in_the_middle(tmp_path: Path) -> None:
    file = tmp_path / "pets.parquet"
    table(0, [0, 1] * 50).to_parquet(str(file))
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^cannot read parquet:.*pets.parquet \(\w+: .*\); replace what is damaged$"):
        read_parquet_path(Request(tmp_path, str(file)))


def test_other_columns_in_one_of_the_files(tmp_path: Path) -> None:
    file = write_pets(tmp_path / "pets") / "data" / "train-00001-of-00002.parquet"
    pq.write_table(pa.table({"image": [b"x"], "name": ["y"]}), file)
    with pytest.raises(ValueError, match=r"^cannot read parquet:.*pets \(.*\); replace what is damaged$") as caught:
        read_parquet_path(Request(tmp_path, str(tmp_path / "pets")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_whose_metadata_say_nothing(tmp_path: Path, as_struct: bool) -> None:
    """Written by another tool: bytes, alone or beside a path, are the images; distinct numbers are the classes."""
    encoded = [encode(red) for red in (5, 6, 7)]
    images = [{"bytes": image, "path": "x.png"} for image in encoded] if as_struct else encoded
    pq.write_table(pa.table({"picture": images, "weight": [0.5] * 3, "digit": [4, 0, 9]}), tmp_path / "digits.parquet")
    found = read_parquet_path(Request(tmp_path, str(tmp_path / "digits.parquet")))
    assert reds(found.train) == [5, 6, 7]
    assert found.labels == ["0", "4", "9"] and found.train.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize("folder", ["p*", "p[1]", "p?"])
def test_a_path_is_no_pattern(tmp_path: Path, folder: str) -> None:
    for name, rows in ((folder, [0, 1, 0]), ("pp", [1, 0]), ("p1", [1, 0])):
        (tmp_path / name).mkdir()
        table(0, rows).to_parquet(str(tmp_path / name / "train.parquet"))
    found = read_parquet_path(Request(tmp_path / "cache", str(tmp_path / folder)))
    assert found.train.labels.tolist() == [0, 1, 0]


def test_rows_that_changed_places_are_another_split(tmp_path: Path) -> None:
    """The labels stay as they are; the images of a class have other sizes."""
    hashes = []
    for name, order in (("one", [0, 1, 2, 3]), ("two", [2, 1, 0, 3])):
        pictures = []
        for side in order:
            file = io.BytesIO()
            Image.effect_noise((8 + 8 * side, 8), 50).save(file, "PNG")
            pictures.append({"bytes": file.getvalue(), "path": None})
        features = Features({"image": datasets.Image(), "label": PETS})
        rows = Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, features=features)
        rows.to_parquet(str(tmp_path / f"{name}.parquet"))
        hashes.append(read_parquet_path(Request(tmp_path, str(tmp_path / f"{name}.parquet"))).train.hash)
    assert hashes[0] != hashes[1]
