"""Data sets by name, read from tiny files in their exact on-disk formats."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from file_server import md5, serving, tar
from learnable_memory.contents import difference
from learnable_memory.data import ImageSet, data_set_names, load_data_set
from learnable_memory.loading import make_loader
from learnable_memory.transforms import Preprocessing

REAL_CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar100"
PREPROCESSING = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Cifar:
    """How CIFAR-10 and CIFAR-100 differ on disk, and what the tests put into them: 300 and 100 images."""

    classes: int
    folder: str
    archive: str
    train_files: tuple[str, ...]
    test_file: str
    meta_file: str
    labels_key: str
    names_key: str
    hub_folder: str
    hub_column: str

    @property
    def names(self) -> list[str]:
        return [f"class{label:03d}" for label in range(self.classes)]

    @property
    def train_labels(self) -> np.ndarray:
        return np.tile(np.arange(self.classes), 300 // self.classes)

    @property
    def test_labels(self) -> np.ndarray:
        return np.tile(np.arange(self.classes)[::-1], 100 // self.classes)


CIFARS = {
    "CIFAR10": Cifar(
        10, "cifar-10-batches-py", "cifar-10-python.tar.gz", tuple(f"data_batch_{n}" for n in range(1, 6)),
        "test_batch", "batches.meta", "labels", "label_names", "cifar10", "label",
    ),
    "CIFAR100": Cifar(
        100, "cifar-100-python", "cifar-100-python.tar.gz", ("train",),
        "test", "meta", "fine_labels", "fine_label_names", "cifar100", "fine_label",
    ),
}  # fmt: skip
NAMES, TEST_LABELS = CIFARS["CIFAR100"].names, CIFARS["CIFAR100"].test_labels


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
def write_torchvision_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pickles of the Python version of CIFAR; torchvision gets their checksums in place of its own."""
    cifar = CIFARS[name]
    folder = root / "datasets" / cifar.folder
    folder.mkdir(parents=True)

    def dump(file: str, content: dict) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        return [file, md5((folder / file).read_bytes())]

    def batch(pixels: np.ndarray, labels: np.ndarray) -> dict:
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(labels), 3072)
        return {"data": rows, cifar.labels_key: labels.tolist(), "coarse_labels": (labels // 5).tolist()}

    parts = zip(
        np.split(pixels_of(cifar.train_labels), len(cifar.train_files)),
        np.split(cifar.train_labels, len(cifar.train_files)),
        strict=True,
    )
    train = [dump(file, batch(*part)) for file, part in zip(cifar.train_files, parts, strict=True)]
    test = [dump(cifar.test_file, batch(pixels_of(cifar.test_labels), cifar.test_labels))]
    _, meta = dump(cifar.meta_file, {cifar.names_key: cifar.names, "coarse_label_names": []})
    kind = getattr(torchvision.datasets, name)
    monkeypatch.setattr(kind, "train_list", train)
    monkeypatch.setattr(kind, "test_list", test)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta})
    return folder


def write_parquet(
    file: Path, encoded: list[bytes | None], labels: np.ndarray, names: list[str] | None, column: str
) -> None:
    """One file of the hub's CIFAR, class names in the metadata of the `datasets` library."""
    file.parent.mkdir(parents=True, exist_ok=True)
    features = {"img": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    schema = pa.schema(
        {"img": pa.struct({"bytes": pa.binary(), "path": pa.string()}), column: pa.int64()}, metadata=metadata
    )
    columns = {"img": [{"bytes": image, "path": None} for image in encoded], column: labels.astype(np.int64)}
    pq.write_table(pa.table(columns, schema=schema), file)


def write_parquet_cifar(root: Path, name: str = "CIFAR100") -> Path:
    cifar = CIFARS[name]
    folder = root / "datasets" / cifar.hub_folder
    for split, labels in (("train", cifar.train_labels), ("test", cifar.test_labels)):
        for part in (0, 1):  # two files each, as the hub cuts large ones
            half = slice(part * len(labels) // 2, (part + 1) * len(labels) // 2)
            encoded = [encode(image) for image in pixels_of(labels)[half]]
            file = folder / f"{split}-0000{part}-of-00002.parquet"
            write_parquet(file, encoded, labels[half], cifar.names, cifar.hub_column)
    return folder


# --------------------------------------------------------------------------------------------------------------- CIFAR
@pytest.fixture(params=CIFARS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["torchvision", "parquet"])
def write_cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    def write(name: str) -> Path:
        if request.param == "torchvision":
            write_torchvision_cifar(tmp_path, name, monkeypatch)
        else:
            write_parquet_cifar(tmp_path, name)
        return tmp_path

    return write


def first_pixels(images: ImageSet) -> list[tuple[int, int, int]]:
    return [images.image(index).getpixel((0, 0)) for index in range(len(images))]


def test_cifar_from_files(write_cifar: Callable, name: str) -> None:
    cifar = CIFARS[name]
    data = load_data_set(name, write_cifar(name), download=False)
    assert data.labels == cifar.names
    assert data.views == "crop_flip"
    assert data.eval.labels.tolist() == cifar.test_labels.tolist()
    assert data.eval.labels.dtype == np.int64
    assert first_pixels(data.eval) == [(label, row, 0) for row, label in enumerate(cifar.test_labels)]
    rows = np.concatenate([data.train.indices, data.select.indices])
    assert sorted(rows) == list(range(300))
    for images in (data.train, data.select):
        assert images.labels.tolist() == cifar.train_labels[images.indices].tolist()
        expected = [(cifar.train_labels[row], row % 256, 0) for row in images.indices]
        assert first_pixels(images) == expected
    assert data.eval.image(3).mode == "RGB" and data.eval.image(3).size == (32, 32)
    assert np.array_equal(np.array(data.eval.image(3)), pixels_of(cifar.test_labels)[3])


def test_both_kinds_of_files_are_the_same_data(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_torchvision_cifar(tmp_path / "a", name, monkeypatch)
    tables = write_parquet_cifar(tmp_path / "b", name)
    one, two = (load_data_set(name, tmp_path / root, download=False).record() for root in "ab")
    assert (one.pop("source"), two.pop("source")) == (f"torchvision: {folder.name}", f"parquet: {tables.name}")
    assert one == two


def test_where_both_kinds_are_there_torchvisions_are_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_torchvision_cifar(tmp_path, name, monkeypatch)
    write_parquet_cifar(tmp_path, name)
    assert load_data_set(name, tmp_path).source == f"torchvision: {folder.name}"


def test_new20_is_every_fifth_class_relabelled(write_cifar: Callable) -> None:
    data = load_data_set("CIFAR100-new20", write_cifar("CIFAR100"), download=False)
    assert data.labels == [NAMES[label] for label in range(4, 100, 5)]
    assert (len(data.train) + len(data.select), len(data.eval)) == (60, 20)
    for images in (data.train, data.select, data.eval):
        old = [pixel[0] for pixel in first_pixels(images)]
        assert old == [4 + 5 * label for label in images.labels]
        assert set(images.labels) == set(range(20))


def test_a_pickle_with_another_checksum_is_never_loaded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_torchvision_cifar(tmp_path, name, monkeypatch)
    with (folder / CIFARS[name].test_file).open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("a pickle was loaded"))
    message = rf"cannot read .*{folder.name} \(.*corrupted.*\); delete it or replace it"
    with pytest.raises(ValueError, match=message):
        load_data_set(name, tmp_path)


def test_missing_cifar_without_download(tmp_path: Path, name: str) -> None:
    expected = f"{CIFARS[name].folder}/ or {CIFARS[name].hub_folder}/{{train,test}}-*.parquet"
    with pytest.raises(FileNotFoundError) as caught:
        load_data_set(name, tmp_path, download=False)
    assert str(caught.value) == (
        f"{name}: no {expected} in {tmp_path / 'datasets'}, and downloading is off; put the files there"
    )


def test_missing_cifar_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch) as server:  # whose address answers no more
        monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", server.url("cifar.tar.gz"))
    with pytest.raises(FileNotFoundError, match=r"downloading failed \(http://.*: ConnectError: ") as caught:
        load_data_set("CIFAR100", tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_cifar_is_downloaded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_torchvision_cifar(tmp_path / "published", name, monkeypatch)
    kind, cifar = getattr(torchvision.datasets, name), CIFARS[name]
    assert kind.url.endswith(f"/{cifar.archive}")
    with serving(monkeypatch) as server:
        archive = tar({f"{folder.name}/{file.name}": file.read_bytes() for file in folder.iterdir()})
        server.files[cifar.archive] = archive
        monkeypatch.setattr(kind, "url", server.url(cifar.archive))
        monkeypatch.setattr(kind, "tgz_md5", md5(archive))
        data = load_data_set(name, tmp_path / "here")
        again = load_data_set(name, tmp_path / "here")
    assert data.source == f"torchvision: {folder.name}"
    assert first_pixels(data.eval) == [(label, row, 0) for row, label in enumerate(cifar.test_labels)]
    assert again.record() == data.record()
    assert len(server.requests) == 1


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
    images = [encode(image) for image in pixels_of(TEST_LABELS)]
    arguments = {"encoded": images, "labels": TEST_LABELS, "names": NAMES, "column": "fine_label"} | changes
    write_parquet(folder / "test-00000-of-00001.parquet", **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, "test-00000-of-00001.parquet .its metadata has no class names for the column fine_label"),
        ({"names": NAMES[:50]}, "test-00000-of-00001.parquet .the column fine_label has values outside 0..49"),
        ({"labels": np.full(100, -1)}, "the column fine_label has values outside 0..99"),
        (
            {"names": [*NAMES[:-1], "zebra"]},
            r"test-00000-of-00001.parquet has other classes in the column fine_label than the other files of the same "
            r"data \(only here: zebra; only there: class099\); give them the same$",
        ),
    ],
)
def test_parquet_with_wrong_labels(tmp_path: Path, changes: dict, message: str) -> None:
    rewrite_test_split(write_parquet_cifar(tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        load_data_set("CIFAR100", tmp_path)


def test_files_with_the_classes_in_another_order_are_read_by_name(tmp_path: Path) -> None:
    """A class keeps its name, whatever number each file gives it; the red of an image is its class in `NAMES`."""
    folder = write_parquet_cifar(tmp_path)
    rewrite_test_split(folder, names=NAMES[::-1], labels=99 - TEST_LABELS)
    second = folder / "train-00001-of-00002.parquet"
    rows = pq.read_table(second)
    turned = pa.array(99 - rows["fine_label"].to_numpy())
    names = json.dumps({"info": {"features": {"fine_label": {"names": NAMES[::-1], "_type": "ClassLabel"}}}})
    rows = rows.set_column(rows.schema.get_field_index("fine_label"), "fine_label", turned)
    pq.write_table(rows.replace_schema_metadata({"huggingface": names}), second)
    data = load_data_set("CIFAR100", tmp_path, download=False)
    assert data.labels == NAMES
    for images in (data.train, data.select, data.eval):
        assert images.labels.tolist() == [pixel[0] for pixel in first_pixels(images)]


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


# ------------------------------------------------------------------------------------------------------ names, records
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar100", "unknown data set 'cifar100', did you mean CIFAR100?"),
        ("FashonMNIST", "did you mean FashionMNIST?"),
        ("zebra", "unknown data set 'zebra'; legal: CIFAR10, CIFAR100, "),
        ("zebra", ", Sun, folder:PATH, hf:NAME[:CONFIG], parquet:PATH, vtab:NAME, fgvc:NAME"),
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
    published = "CIFAR10 CIFAR100 CUB Digits FashionMNIST Flowers ImageNet INaturalist MNIST Pets Places Sun"
    assert set(data_set_names()) == {*published.split(), "CIFAR100-new20", "FashionMNIST-subset"}


def test_record_is_json_and_tells_the_splits(tmp_path: Path) -> None:
    data = load_data_set("Digits", tmp_path, split_seed=3)
    record = json.loads(json.dumps(data.record()))
    assert record == data.record()
    assert (record["name"], record["source"], record["split_seed"]) == ("Digits", "scikit-learn: load_digits", 3)
    assert record["splits"]["select"] == {"images": len(data.select), "hash": data.select.hash}
    assert set(record["splits"]) == {"train", "select", "eval"}


def test_the_record_of_eval_sees_what_changes_under_the_same_name(tmp_path: Path) -> None:
    """Other sizes, and other contents of the same size; of what an earlier record does not say, nothing."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / split / name / f"{number}.bmp")

    def record() -> dict:
        return load_data_set(f"folder:{tmp_path}", tmp_path).record()["splits"]["eval"]

    first, file = record(), tmp_path / "test" / "b" / "1.bmp"
    assert first["bytes"] == 6 * file.stat().st_size and len(first["contents"]) == 16
    assert difference(first, record()) is None
    Image.new("RGB", (4, 4), (9, 0, 0)).save(file)
    other = record()
    assert (other["hash"], other["bytes"]) == (first["hash"], first["bytes"]) and other != first
    assert difference(first, other) == "images of the same names have changed since (of the same size in all)"
    Image.new("RGB", (5, 4)).save(file)
    sizes = f"{record()['bytes']:,} bytes in all here, {first['bytes']:,} there"
    assert difference(first, record()) == f"images of the same names have changed since ({sizes})"
    earlier = {"images": 6, "hash": first["hash"]}
    assert difference(earlier, record()) is None
    assert difference(first | {"hash": "0" * 16}, first) == "it has other images or labels (6 here, 6 there)"
    assert difference({"hash": "0" * 16}, first) == "it has other images or labels (another hash)"
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^cannot read the image .*/test/b/1.bmp \(.*No such file.*\); put it there$"):
        record()


@pytest.mark.parametrize("name", ["photos", "nested/photos", "~/photos", "tables", "pets.parquet"])
def test_a_path_that_is_taken_for_a_name_is_told_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("photos/cat", "nested/photos/cat", "tables", "digits"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("pets.parquet", "tables/train.parquet"):
        (tmp_path / file).write_bytes(b"")
    kind = "parquet" if name in ("tables", "pets.parquet") else "folder"
    with pytest.raises(ValueError) as caught:
        load_data_set(name, tmp_path)
    assert str(caught.value) == (
        f"unknown data set {name!r}, but there is such a path here: for that write {kind}:{name}"
    )
    with pytest.raises(ValueError, match="did you mean Digits"):  # whatever lies here
        load_data_set("digits", tmp_path)


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


def test_digits_have_no_official_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Digits has no official split; take --split seeded"):
        load_data_set("Digits", tmp_path, split="official")


@pytest.mark.parametrize("name", ["CIFAR10", "Digits", "folder:DIR"])
def test_columns_of_what_is_no_table_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"is no table: leave --image_column and --label_column out"):
        load_data_set(name.replace("DIR", str(tmp_path)), tmp_path, download=False, label_column="label")


@pytest.mark.parametrize(("name", "views"), [("vtab:kitti", None), ("fgvc:CUB", "resized_crop_flip")])
def test_views_of_published_lists(tmp_path: Path, name: str, views: str | None) -> None:
    """VTAB's protocol shows whole images; VPT's crops and mirrors the fine-grained ones."""
    from test_benchmark_lists import write_fgvc, write_vtab

    write_vtab(tmp_path)
    write_fgvc(tmp_path)
    assert load_data_set(name, tmp_path, download=False).views == views


def test_another_selection_of_the_same_data_reads_nothing_again(tmp_path: Path) -> None:
    data = load_data_set("Digits", tmp_path)
    for seed in (0, 3):
        drawn, read = data.with_select_seed(seed), load_data_set("Digits", tmp_path, select_seed=seed)
        assert drawn.record() == read.record()
        assert drawn.train.images is data.train.images
