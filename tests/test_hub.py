"""Data sets of the hub from its cache, and folders in its layout; nothing is downloaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset
from huggingface_hub.errors import LocalEntryNotFoundError

from learnable_memory.sources.found import Request
from learnable_memory.sources.hub import full_hub_name, read_hub
from learnable_memory.sources.parquet import read_parquet_path
from pet_tables import encode, reds, refuse_network, table, write_hub_layout, write_pets

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)


def write_cache(root: Path, tmp_path: Path, config: str = "default") -> None:
    """What `load_dataset("someone/pets")` leaves behind: OWNER___NAME/CONFIG/VERSION/COMMIT/NAME-SPLIT.arrow."""
    prepared = root / "someone___pets" / config / "0.0.0" / COMMIT
    builder = datasets.load_dataset_builder(
        str(write_pets(tmp_path / f"pets-{config}" / "pets")), cache_dir=str(tmp_path)
    )
    builder.download_and_prepare(str(prepared))


def test_without_downloads_the_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cache(tmp_path / "datasets" / "huggingface", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    found = read_hub(Request(tmp_path, "someone/pets", download=False))
    assert datasets.config.HF_HUB_OFFLINE is False
    assert reds(found.eval) == [200, 201, 202]
    assert found.source == f"hub: someone/pets, revision {COMMIT}"
    with pytest.raises(ValueError, match=r"hf:someone/pets:small: .*small.*; write hf:NAME:CONFIG") as caught:
        read_hub(Request(tmp_path, "someone/pets:small", download=False))
    assert "\n" not in str(caught.value)


def test_what_was_made_of_a_folder_is_no_data_set_of_the_hub(tmp_path: Path) -> None:
    read_hub(Request(tmp_path, str(write_pets(tmp_path / "pets"))))
    with pytest.raises(FileNotFoundError) as caught:
        read_hub(Request(tmp_path, "pets", download=False))
    assert str(caught.value) == (
        f"hf:pets: not in {tmp_path / 'datasets' / 'huggingface'}, and downloading is off; load it once with a network"
    )


class ReadTimeout(Exception):
    """As the library that makes the requests raises it: no OSError."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."),
            FileNotFoundError,
            "hf:a/b: DatasetNotFoundError: Dataset 'a/b' is a gated dataset on the Hub.; check the name; to a gated "
            "data set ask for access on its page, then run `hf auth login`",
        ),
        (
            ConnectionError("Couldn't reach\n'a/b' on the Hub"),
            FileNotFoundError,
            "hf:a/b: not in {cache}, and downloading failed (ConnectionError: Couldn't reach 'a/b' on the Hub); "
            "load it once with a network",
        ),
        (
            ReadTimeout("too slow"),
            FileNotFoundError,
            "hf:a/b: not in {cache}, and downloading failed (ReadTimeout: too slow); load it once with a network",
        ),
        (
            LocalEntryNotFoundError("not in the cache"),
            FileNotFoundError,
            "hf:a/b: not in {cache}, and downloading failed (LocalEntryNotFoundError: not in the cache); "
            "load it once with a network",
        ),
        (
            datasets.exceptions.DataFilesNotFoundError("no data files"),
            ValueError,
            "cannot read hf:a/b (DataFilesNotFoundError: no data files); check its files",
        ),
        (RuntimeError("no luck"), ValueError, "cannot read hf:a/b (RuntimeError: no luck); check its files"),
    ],
)
def test_errors_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(kind) as caught:
        read_hub(Request(tmp_path, "a/b"))
    assert str(caught.value) == message.format(cache=tmp_path / "datasets" / "huggingface")


def test_a_library_that_a_data_set_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, **arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'zebra'", name="zebra")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ModuleNotFoundError, match="zebra"):
        read_hub(Request(tmp_path, "a/b"))


def test_a_name_of_the_hub_with_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load_dataset(path: str, **arguments: object) -> dict[str, Dataset]:
        asked.update(arguments, path=path, offline=datasets.config.HF_HUB_OFFLINE)
        return {"train": table(0, [0, 1])}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assert read_hub(Request(tmp_path, "a/b:small")).source == "hub: a/b (small)"
    assert (asked["path"], asked["name"], asked["offline"]) == ("a/b", "small", False)
    assert asked["trust_remote_code"] is False
    assert asked["cache_dir"] == str(tmp_path / "datasets" / "huggingface")
    read_hub(Request(tmp_path, "a/b", download=False))
    assert (asked["name"], asked["offline"]) == (None, True)
    read_hub(Request(tmp_path, str(tmp_path)))
    assert (asked["path"], asked["offline"]) == (str(tmp_path), True)  # some versions would count the load at the hub


def test_several_configurations(tmp_path: Path) -> None:
    configs = ""
    for config, red in (("large", 0), ("small", 100)):
        (tmp_path / "pets" / config).mkdir(parents=True)
        table(red, [0, 1]).to_parquet(str(tmp_path / "pets" / config / "train.parquet"))
        configs += f"- config_name: {config}\n  data_files: {config}/*.parquet\n"
    (tmp_path / "pets" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"available configs: \['large', 'small'\]; write hf:NAME:CONFIG$") as caught:
        read_hub(Request(tmp_path, str(tmp_path / "pets")))
    assert "\n" not in str(caught.value)
    found = read_hub(Request(tmp_path, f"{tmp_path / 'pets'}:small"))
    assert reds(found.train) == [100, 101] and found.source == "folder: pets (small)"


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda folder: None, FileNotFoundError, "^hf:.*pets: .*pets is not a folder$"),
        (lambda folder: folder.mkdir(), ValueError, "^cannot read hf:.*pets .EmptyDatasetError: .*; check its files$"),
        (
            lambda folder: (write_pets(folder) / "data" / "test-00000-of-00002.parquet").write_bytes(b"<html>"),
            ValueError,
            "^cannot read hf:.*pets .ArrowInvalid: .*Parquet .*; check its files$",
        ),
    ],
)
def test_wrong_folders(tmp_path: Path, prepare: Callable, error: type[Exception], message: str) -> None:
    prepare(tmp_path / "pets")
    with pytest.raises(error, match=message) as caught:
        read_hub(Request(tmp_path, str(tmp_path / "pets")))
    assert "\n" not in str(caught.value)


def test_a_name_that_is_also_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pets(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        read_hub(Request(tmp_path, "mnist"))
    assert str(caught.value) == "hf:mnist is a folder here and maybe a name of the hub; for the folder write hf:./mnist"


def test_code_in_a_data_set_is_never_run(tmp_path: Path) -> None:
    script = write_pets(tmp_path / "pets") / "pets.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot read hf:.*pets"):
        read_hub(Request(tmp_path, str(tmp_path / "pets")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("argument", "full"),
    [
        ("someone/pets", "someone/pets"),
        ("someone/pets:small", "someone/pets:small"),
        ("./pets", "{here}/pets"),
        ("./a/../pets:small", "{here}/pets:small"),
        ("~/pets", "{home}/pets"),
    ],
)
def test_full_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, full: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert full_hub_name(argument) == full.format(here=tmp_path, home=tmp_path / "home")


def test_a_folder_of_image_files(tmp_path: Path) -> None:
    """The `imagefolder` layout: SPLIT/CLASS/FILE; the library keeps paths and no bytes."""
    for split, red in (("train", 0), ("test", 100)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for row in (0, 1):
                path = tmp_path / "pets" / split / name / f"{row}.png"
                path.write_bytes(encode(red + 10 * label + row))
    found = read_hub(Request(tmp_path, str(tmp_path / "pets")))
    assert found.labels == ["cat", "dog"]
    assert reds(found.train) == [0, 1, 10, 11] and reds(found.eval) == [100, 101, 110, 111]
    assert found.eval.labels.tolist() == [0, 0, 1, 1]
    (tmp_path / "pets" / "test" / "dog" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"image row 2 of split test of hf:.*FileNotFoundError.*dog/0.png"):
        found.eval.image(2)


def test_a_folder_that_reads_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "pets[1]").mkdir()
    with pytest.raises(ValueError, match=r"has one of the characters \* \? \[ in it: rename the folder"):
        read_hub(Request(tmp_path, str(tmp_path / "pets[1]")))


def test_the_classes_of_files_in_the_hubs_cache_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the network is there or not: the files that were downloaded lie in HuggingFace's own cache."""
    snapshot = tmp_path / "hub" / "datasets--someone--pets" / "snapshots" / COMMIT
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    test = table(10, [0, 1, 1], ClassLabel(names=["dog", "cat"]))
    files = write_hub_layout(tmp_path / "pets", train=table(0, [0, 1]), test=test)
    shutil.copytree(files, snapshot)
    builder = datasets.load_dataset_builder(str(files), cache_dir=str(tmp_path))
    builder.download_and_prepare(str(tmp_path / "datasets" / "huggingface" / "someone___pets/default/0.0.0" / COMMIT))
    found = read_hub(Request(tmp_path, "someone/pets", download=False))
    assert found.labels == ["cat", "dog"] and found.eval.labels.tolist() == [1, 0, 0]
    shutil.rmtree(tmp_path / "hub")
    with caplog.at_level("INFO", logger="learnable_memory"):
        read_hub(Request(tmp_path, "someone/pets", download=False))
    assert "its files are not in HuggingFace's cache any more: their class names are not compared" in caplog.text


@pytest.mark.parametrize(
    ("directory", "hub", "message"),
    [
        (
            "file/home",
            "hub",
            "cannot write to {root}/file/home/datasets/huggingface: name another folder with --directory",
        ),
        (
            "home",
            "file/hub",
            "cannot write to {root}/file/hub: set the environment variable HF_HOME to a folder for what the hub's "
            "library downloads, beside --directory for all else",
        ),
    ],
)  # fmt: skip
def test_a_home_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, hub: str, message: str
) -> None:
    """Here it lies in what is no folder: what may write anywhere may not write there."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / hub))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    def fail(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(PermissionError) as caught:
        read_hub(Request(tmp_path / directory, "someone/pets"))
    assert str(caught.value) == message.format(root=tmp_path)


def test_a_folder_with_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    write_pets(tmp_path / "pets")
    for read in (read_hub, read_parquet_path):
        with pytest.raises(PermissionError, match=r"huggingface-local: name another folder with --directory$"):
            read(Request(tmp_path / "file", str(tmp_path / "pets")))
