"""Data sets by name, read from tiny files in their exact on-disk formats."""

import gzip
import hashlib
import io
import json
import logging
import pickle
import socket
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from learnable_memory.data import ImageSet, data_set_names, load_data_set
from learnable_memory.loading import make_loader
from learnable_memory.transforms import Preprocessing

REAL_CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar100"
PREPROCESSING = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = [f"class{label:03d}" for label in range(100)]
TRAIN_LABELS, TEST_LABELS = np.tile(np.arange(100), 3), np.arange(100)[::-1]


def pixels_of(labels: np.ndarray, size: int = 32) -> np.ndarray:
    """uint8 [n, size, size, 3]: noise whose first pixel is (label, row mod 256, 0), so that every image is known."""
    pixels = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    pixels[:, 0, 0] = [(label, row % 256, 0) for row, label in enumerate(labels)]
    return pixels


def encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# --------------------------------------------------------------------------------------------------- files, as on disk
def write_torchvision_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three pickles of the Python version of CIFAR-100; torchvision gets their checksums in place of its own."""
    folder = root / "datasets" / "cifar-100-python"
    folder.mkdir(parents=True)
    checksums = {}

    def dump(name: str, content: dict) -> None:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name, labels in (("train", TRAIN_LABELS), ("test", TEST_LABELS)):
        rows = pixels_of(labels).transpose(0, 3, 1, 2).reshape(len(labels), 3072)
        dump(name, {"data": rows, "fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist()})
    dump("meta", {"fine_label_names": NAMES, "coarse_label_names": []})
    cifar = torchvision.datasets.CIFAR100
    monkeypatch.setattr(cifar, "train_list", [["train", checksums["train"]]])
    monkeypatch.setattr(cifar, "test_list", [["test", checksums["test"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": checksums["meta"]})


def write_parquet(file: Path, encoded: list[bytes | None], labels: np.ndarray, names: list[str] | None = NAMES) -> None:
    """One file of the hub's CIFAR-100, class names in the metadata of the `datasets` library."""
    file.parent.mkdir(parents=True, exist_ok=True)
    features = {"img": {"_type": "Image"}, "fine_label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    schema = pa.schema(
        {"img": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "fine_label": pa.int64()}, metadata=metadata
    )
    columns = {"img": [{"bytes": image, "path": None} for image in encoded], "fine_label": labels.astype(np.int64)}
    pq.write_table(pa.table(columns, schema=schema), file)


def write_parquet_cifar(root: Path, names: list[str] = NAMES) -> Path:
    folder = root / "datasets" / "cifar100"
    for split, labels in (("train", TRAIN_LABELS), ("test", TEST_LABELS)):
        for part in (0, 1):  # two files each, as the hub cuts large ones
            half = slice(part * len(labels) // 2, (part + 1) * len(labels) // 2)
            encoded = [encode(image) for image in pixels_of(labels)[half]]
            write_parquet(folder / f"{split}-0000{part}-of-00002.parquet", encoded, labels[half], names)
    return folder


def write_fashion(root: Path) -> Path:
    """The four uncompressed idx files that torchvision leaves in FashionMNIST/raw; image i is filled with i."""
    raw = root / "datasets" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 20)):
        images = np.arange(count, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return raw


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# ----------------------------------------------------------------------------------------------------------- CIFAR-100
@pytest.fixture(params=["torchvision", "parquet"])
def cifar_directory(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "torchvision":
        write_torchvision_cifar(tmp_path, monkeypatch)
    else:
        write_parquet_cifar(tmp_path)
    return tmp_path


def first_pixels(images: ImageSet) -> list[tuple[int, int, int]]:
    return [images.image(index).getpixel((0, 0)) for index in range(len(images))]


def test_cifar100_from_files(cifar_directory: Path) -> None:
    data = load_data_set("CIFAR100", cifar_directory, download=False)
    assert data.labels == NAMES
    assert data.views == "crop_flip"
    assert data.eval.labels.tolist() == TEST_LABELS.tolist()
    assert data.eval.labels.dtype == np.int64
    assert first_pixels(data.eval) == [(label, row, 0) for row, label in enumerate(TEST_LABELS)]
    rows = np.concatenate([data.train.indices, data.select.indices])
    assert sorted(rows) == list(range(300))
    for images in (data.train, data.select):
        assert images.labels.tolist() == TRAIN_LABELS[images.indices].tolist()
        expected = [(TRAIN_LABELS[row], row % 256, 0) for row in images.indices]
        assert first_pixels(images) == expected
    assert data.eval.image(3).mode == "RGB" and data.eval.image(3).size == (32, 32)
    assert np.array_equal(np.array(data.eval.image(3)), pixels_of(TEST_LABELS)[3])


def test_both_kinds_of_files_are_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torchvision_cifar(tmp_path / "a", monkeypatch)
    write_parquet_cifar(tmp_path / "b")
    one, two = (load_data_set("CIFAR100", tmp_path / name, download=False).record() for name in "ab")
    assert (one.pop("source"), two.pop("source")) == ("torchvision: cifar-100-python", "parquet: cifar100")
    assert one == two


def test_new20_is_every_fifth_class_relabelled(cifar_directory: Path) -> None:
    data = load_data_set("CIFAR100-new20", cifar_directory, download=False)
    assert data.labels == [NAMES[label] for label in range(4, 100, 5)]
    assert (len(data.train) + len(data.select), len(data.eval)) == (60, 20)
    for images in (data.train, data.select, data.eval):
        old = [pixel[0] for pixel in first_pixels(images)]
        assert old == [4 + 5 * label for label in images.labels]
        assert set(images.labels) == set(range(20))


def test_damaged_torchvision_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torchvision_cifar(tmp_path, monkeypatch)
    with (tmp_path / "datasets" / "cifar-100-python" / "test").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"cannot read .*cifar-100-python \(.*corrupted.*\); delete it or replace it"):
        load_data_set("CIFAR100", tmp_path)


def test_missing_cifar_without_download(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_data_set("CIFAR100", tmp_path, download=False)
    assert str(caught.value) == (
        f"CIFAR100: no cifar-100-python/ or cifar100/{{train,test}}-*.parquet in {tmp_path / 'datasets'}, "
        "and downloading is off; put the files there"
    )


@pytest.mark.usefixtures("no_network")
def test_missing_cifar_without_network(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"downloading failed .URLError: .*no network in tests") as caught:
        load_data_set("CIFAR100", tmp_path)
    assert "\n" not in str(caught.value)


def test_downloading_has_a_time_limit_and_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def notice(*args: object, **kwargs: object) -> None:
        limits.append(socket.getdefaulttimeout())
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", notice)
    before = socket.getdefaulttimeout()
    with pytest.raises(FileNotFoundError):
        load_data_set("CIFAR100", tmp_path)
    assert limits and all(0 < limit <= 60 for limit in limits)
    assert socket.getdefaulttimeout() == before


def test_missing_cifar_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torchvision.datasets.CIFAR100, "download", lambda self: write_torchvision_cifar(tmp_path, monkeypatch)
    )
    assert load_data_set("CIFAR100", tmp_path).labels == NAMES


# ------------------------------------------------------------------------------------------------------------- parquet
def test_parquet_without_a_split(tmp_path: Path) -> None:
    for file in write_parquet_cifar(tmp_path).glob("test-*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no test-\*.parquet in .*cifar100"):
        load_data_set("CIFAR100", tmp_path)


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (write_parquet_cifar(tmp_path) / "train-00001-of-00002.parquet").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"cannot read .*train-00001-of-00002.parquet"):
        load_data_set("CIFAR100", tmp_path)


def rewrite_test_split(folder: Path, **changes: object) -> None:
    for file in folder.glob("test-*"):
        file.unlink()
    arguments = {"encoded": [encode(image) for image in pixels_of(TEST_LABELS)], "labels": TEST_LABELS} | changes
    write_parquet(folder / "test-00000-of-00001.parquet", **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, "test-00000-of-00001.parquet .its metadata has no class names for the column fine_label"),
        ({"names": NAMES[:50]}, "test-00000-of-00001.parquet .the column fine_label has values outside 0..49"),
        ({"labels": np.full(100, -1)}, "the column fine_label has values outside 0..99"),
        ({"names": NAMES[::-1]}, "the class names of train-.* and test-.* in .*cifar100 differ"),
    ],
)
def test_parquet_with_wrong_labels(tmp_path: Path, changes: dict, message: str) -> None:
    rewrite_test_split(write_parquet_cifar(tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        load_data_set("CIFAR100", tmp_path)


def test_parquet_with_other_columns(tmp_path: Path) -> None:
    folder = write_parquet_cifar(tmp_path)
    pq.write_table(pa.table({"image": [1], "label": [2]}), folder / "train-00000-of-00002.parquet")
    with pytest.raises(ValueError, match="its columns are image, label; expected img and fine_label"):
        load_data_set("CIFAR100", tmp_path)


@pytest.mark.parametrize("broken", [b"not an image", None, encode(np.zeros((64, 64, 3), np.uint8))[:60]])
def test_broken_image_in_parquet_is_named_by_its_row(tmp_path: Path, broken: bytes | None) -> None:
    encoded = [encode(image) for image in pixels_of(TEST_LABELS)]
    encoded[17] = broken
    rewrite_test_split(write_parquet_cifar(tmp_path), encoded=encoded)
    images = load_data_set("CIFAR100", tmp_path).eval
    assert images.image(16).size == (32, 32)
    with pytest.raises(ValueError, match=r"cannot read the image row 17 of .*test-\*.parquet .*repair it or remove it"):
        images.image(17)


# -------------------------------------------------------------------------------------------------------------- Digits
def test_digits(tmp_path: Path) -> None:
    data = load_data_set("Digits", tmp_path, download=False)
    assert data.labels == [str(digit) for digit in range(10)]
    assert data.views == "shift"  # a mirrored digit is another one
    assert len(data.train) + len(data.select) + len(data.eval) == 1797
    assert abs(len(data.eval) - 1797 / 5) <= 5  # a fifth of each of the 10 classes, rounded
    rows = np.concatenate([images.indices for images in (data.train, data.select, data.eval)])
    assert sorted(rows) == list(range(1797))

    from sklearn.datasets import load_digits

    digits = load_digits()
    for index in (0, 100):
        image = data.eval.image(index)
        assert (image.mode, image.size) == ("L", (8, 8))
        assert np.abs(np.array(image) - digits.images[data.eval.indices[index]] * 255 / 16).max() <= 0.5
        assert data.eval.labels[index] == digits.target[data.eval.indices[index]]


def test_digits_are_evaluated_on_the_same_images_whatever_the_seed(tmp_path: Path) -> None:
    one, two = (load_data_set("Digits", tmp_path, split_seed=seed) for seed in (0, 1))
    assert one.eval.hash == two.eval.hash
    assert one.select.hash != two.select.hash


# ------------------------------------------------------------------------------------------------------- Fashion-MNIST
def test_fashion_mnist_from_torchvision_files(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    data = load_data_set("FashionMNIST", tmp_path, download=False)
    assert data.source == "torchvision: FashionMNIST/raw"
    assert (len(data.train), len(data.select), len(data.eval)) == (30, 10, 20)  # one of four is held out of each class
    assert data.labels[9] == "Ankle boot"
    assert data.views == "flip"
    assert [image.getpixel((5, 5)) for image in map(data.eval.image, range(20))] == list(range(20))
    assert data.eval.image(0).mode == "L"


def check_committed_subset(directory: Path, download: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="learnable_memory"):
        data = load_data_set("FashionMNIST", directory, download=download)
    assert "the committed subset in its place" in caplog.text
    assert str(directory / "datasets") in caplog.text
    assert data.record()["source"] == "committed subset: 6000 training and 2000 test images"


def test_fashion_mnist_without_download_is_the_committed_subset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_committed_subset(tmp_path, False, caplog)
    assert "downloading is off" in caplog.text


@pytest.mark.usefixtures("no_network")
def test_fashion_mnist_without_network_is_the_committed_subset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_committed_subset(tmp_path, True, caplog)
    assert "no network in tests" in caplog.text


def test_damaged_fashion_mnist_is_named(tmp_path: Path) -> None:
    raw = write_fashion(tmp_path)
    (raw / "t10k-images-idx3-ubyte").write_bytes(gzip.compress(b"still packed"))
    with pytest.raises(ValueError, match=r"cannot read .*FashionMNIST/raw"):
        load_data_set("FashionMNIST", tmp_path)


def test_committed_subset_is_balanced_small_and_licensed(tmp_path: Path) -> None:
    data = load_data_set("FashionMNIST", tmp_path, download=False)
    counts = [np.bincount(images.labels).tolist() for images in (data.train, data.select, data.eval)]
    assert counts == [[540] * 10, [60] * 10, [200] * 10]
    assert data.labels == list(torchvision.datasets.FashionMNIST.classes)
    assert all(data.eval.image(index).size == (28, 28) for index in range(0, 2000, 100))
    from learnable_memory.sources.small import FASHION_SUBSET

    assert sum(file.stat().st_size for file in FASHION_SUBSET.iterdir()) <= 4e6
    assert "Zalando SE" in (FASHION_SUBSET / "LICENSE").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ names, records
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar100", "unknown data set 'cifar100', did you mean CIFAR100?"),
        ("FashonMNIST", "did you mean FashionMNIST?"),
        ("zebra", "unknown data set 'zebra'; legal: CIFAR100, CIFAR100-new20, Digits, FashionMNIST, folder:PATH"),
        ("folder", "unknown data set 'folder', did you mean folder:PATH?"),
        ("web:zebra", "unknown data set 'web:zebra'"),
        ("folder:", "folder: needs a name behind it, as in folder:PATH"),
    ],
)
def test_unknown_names(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_data_set(name, tmp_path)
    assert message in str(caught.value)
    assert "folder:PATH" in str(caught.value)


def test_names_are_listed() -> None:
    assert data_set_names() == ["CIFAR100", "CIFAR100-new20", "Digits", "FashionMNIST"]


def test_record_is_json_and_tells_the_splits(tmp_path: Path) -> None:
    data = load_data_set("Digits", tmp_path, split_seed=3)
    record = json.loads(json.dumps(data.record()))
    assert record == data.record()
    assert (record["name"], record["source"], record["split_seed"]) == ("Digits", "scikit-learn: load_digits", 3)
    assert record["splits"]["select"] == {"images": len(data.select), "hash": data.select.hash}
    assert set(record["splits"]) == {"train", "select", "eval"}


# ----------------------------------------------------------------------------------------------------------- real data
@pytest.mark.slow
@pytest.mark.skipif(not REAL_CIFAR.is_dir(), reason="the real CIFAR-100 is not there")
def test_real_cifar100(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "cifar100").symlink_to(REAL_CIFAR)
    data = load_data_set("CIFAR100", tmp_path, download=False)
    counts = [np.bincount(images.labels).tolist() for images in (data.train, data.select, data.eval)]
    assert counts == [[450] * 100, [50] * 100, [100] * 100]
    assert (data.labels[0], data.labels[4], data.labels[99]) == ("apple", "beaver", "worm")
    new = load_data_set("CIFAR100-new20", tmp_path, download=False)
    assert [len(images) for images in (new.train, new.select, new.eval)] == [9000, 1000, 2000]
    assert new.labels == data.labels[4::5]
    # The 20 classes lie where they lie in the whole: evaluation image 0 of class k is the same picture in both.
    for label in range(20):
        whole = data.eval.image(int(np.flatnonzero(data.eval.labels == 4 + 5 * label)[0]))
        part = new.eval.image(int(np.flatnonzero(new.eval.labels == label)[0]))
        assert np.array_equal(np.array(whole), np.array(part))
    pixel_values, _ = next(iter(make_loader(data.eval, PREPROCESSING.eval_transform(), 64)))
    assert pixel_values.shape == (64, 3, 16, 16)
