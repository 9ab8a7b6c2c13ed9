"""MNIST and Fashion-MNIST: torchvision's idx files, their download, and the subset that is committed."""

import gzip
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision

from file_server import FileServer, md5, serving
from learnable_memory.data import load_data_set
from learnable_memory.sources.small import FASHION_SUBSET

KINDS = {"MNIST": "shift", "FashionMNIST": "flip"}  # a mirrored digit is another one
FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx_files() -> dict[str, bytes]:
    """40 and 20 images as published, but unpacked: big-endian header, then bytes; image i is filled with i."""
    files = {}
    for split, count in (("train", 40), ("t10k", 20)):
        images = np.arange(count, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files[f"{split}-images-idx3-ubyte"] = struct.pack(">4i", 2051, count, 28, 28) + images.tobytes()
        files[f"{split}-labels-idx1-ubyte"] = struct.pack(">2i", 2049, count) + labels.tobytes()
    return files


def write_raw(root: Path, name: str) -> Path:
    raw = root / "datasets" / name / "raw"
    raw.mkdir(parents=True)
    for file, content in idx_files().items():
        (raw / file).write_bytes(content)
    return raw


def check(name: str, directory: Path, **options: bool) -> None:
    data = load_data_set(name, directory, **options)
    assert data.source == f"torchvision: {name}/raw"
    assert (len(data.train), len(data.select), len(data.eval)) == (30, 10, 20)  # one of four is held out of each class
    assert data.views == KINDS[name]
    assert [image.getpixel((5, 5)) for image in map(data.eval.image, range(20))] == list(range(20))
    assert data.eval.labels.tolist() == [*range(10), *range(10)]
    assert [image.getpixel((27, 27)) for image in map(data.train.image, range(30))] == data.train.indices.tolist()
    assert data.train.labels.tolist() == [row % 10 for row in data.train.indices]
    assert data.eval.image(0).mode == "L" and data.eval.image(0).size == (28, 28)


@pytest.mark.parametrize("name", KINDS)
def test_from_files(tmp_path: Path, name: str) -> None:
    write_raw(tmp_path, name)
    check(name, tmp_path, download=False)


def test_label_names(tmp_path: Path) -> None:
    for name in KINDS:
        write_raw(tmp_path, name)
    assert load_data_set("MNIST", tmp_path).labels[7] == "7 - seven"
    assert load_data_set("FashionMNIST", tmp_path).labels[9] == "Ankle boot"


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    raw = write_raw(tmp_path, name)
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx_files()["t10k-images-idx3-ubyte"][:-1])
    with pytest.raises(ValueError, match=rf"cannot read .*{name}/raw \(.+\); delete it or replace it"):
        load_data_set(name, tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_as_many_labels_as_images(tmp_path: Path, name: str) -> None:
    raw = write_raw(tmp_path, name)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx_files()["train-labels-idx1-ubyte"])
    with pytest.raises(ValueError, match=rf"cannot read .*{name}/raw \(20 images but 40 labels\)"):
        load_data_set(name, tmp_path)


# ------------------------------------------------------------------------------------------------------------- download
def publish(server: FileServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve the four files under torchvision's names, with its class made to look for them there."""
    kind = getattr(torchvision.datasets, name)
    assert [file for file, _ in kind.resources] == [f"{file}.gz" for file in FILES]
    for file, content in idx_files().items():
        server.files[f"second/{file}.gz"] = gzip.compress(content, mtime=0)
    resources = [(f"{file}.gz", md5(server.files[f"second/{file}.gz"])) for file in FILES]
    monkeypatch.setattr(kind, "resources", resources)
    monkeypatch.setattr(kind, "mirrors", [server.url("first/"), server.url("second/")])


@pytest.mark.parametrize("name", KINDS)
def test_downloaded_from_the_mirror_that_has_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch) as server:
        publish(server, name, monkeypatch)
        check(name, tmp_path)
        expected = [(f"{mirror}/{file}.gz", None) for file in FILES for mirror in ("first", "second")]
        assert server.requests == expected
        check(name, tmp_path)
        assert server.requests == expected
    raw = tmp_path / "datasets" / name / "raw"
    assert sorted(path.name for path in raw.iterdir() if path.suffix != ".lock") == sorted(FILES)


def test_only_the_missing_file_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_raw(tmp_path, "MNIST") / FILES[3]).unlink()
    with serving(monkeypatch) as server:
        publish(server, "MNIST", monkeypatch)
        check("MNIST", tmp_path)
    assert [path for path, _ in server.requests] == [f"first/{FILES[3]}.gz", f"second/{FILES[3]}.gz"]


def test_missing_mnist_without_download(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_data_set("MNIST", tmp_path, download=False)
    assert str(caught.value) == (
        f"MNIST: no MNIST/raw/*-ubyte in {tmp_path / 'datasets'}, and downloading is off; put the files there"
    )


# ----------------------------------------------------------------------------------------------------- committed subset
def check_committed_subset(directory: Path, allowed: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="learnable_memory"):
        data = load_data_set("FashionMNIST", directory, download=allowed)
    assert "the committed subset in its place" in caplog.text
    assert str(directory / "datasets") in caplog.text
    assert data.record()["source"] == "committed subset: 6000 training and 2000 test images"


def test_fashion_mnist_without_download_is_the_committed_subset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_committed_subset(tmp_path, False, caplog)
    assert "downloading is off" in caplog.text
    assert not (tmp_path / "datasets").exists()


def test_fashion_mnist_without_network_is_the_committed_subset_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch) as server:
        sleep = "huggingface_hub.file_download.time.sleep"
        monkeypatch.setattr(sleep, lambda seconds: pytest.fail("it was tried again"))
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [server.url("")])
        check_committed_subset(tmp_path, True, caplog)
    assert "404" in caplog.text
    assert len(server.requests) == 1


def test_a_damaged_archive_is_an_error_not_the_committed_subset(tmp_path: Path) -> None:
    raw = tmp_path / "datasets" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / f"{FILES[0]}.gz").write_bytes(b"half of it")
    with pytest.raises(ValueError, match=rf"{FILES[0]}.gz has the md5 .*, expected .*; delete it"):
        load_data_set("FashionMNIST", tmp_path)


def test_committed_subset_is_balanced_small_and_licensed(tmp_path: Path) -> None:
    data = load_data_set("FashionMNIST", tmp_path, download=False)
    counts = [np.bincount(images.labels).tolist() for images in (data.train, data.select, data.eval)]
    assert counts == [[540] * 10, [60] * 10, [200] * 10]
    assert data.labels == list(torchvision.datasets.FashionMNIST.classes)
    assert all(data.eval.image(index).size == (28, 28) for index in range(0, 2000, 100))
    assert sum(file.stat().st_size for file in FASHION_SUBSET.iterdir()) <= 4e6
    assert "Zalando SE" in (FASHION_SUBSET / "LICENSE").read_text(encoding="utf-8")
