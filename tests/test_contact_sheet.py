"""The contact sheet shows images of some classes as they are stored and exactly as a model gets them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from learnable_memory.contact_sheet import contact_sheet, some_images, views, visible
from learnable_memory.data import DataSet
from learnable_memory.images import ArrayImages, ImageFiles, ImageSet
from learnable_memory.loading import make_loader
from learnable_memory.plots import DPI
from learnable_memory.transforms import Preprocessing

PLAIN = Preprocessing(16, 12, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
UNEVEN = Preprocessing(16, 12, "nearest", 1 / 200, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def in_memory(labels: Sequence[int], name: str = "noise", classes: Sequence[str] | None = None) -> DataSet:
    """A data set whose three splits are the same noisy images."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 20, 30, 3), dtype=np.uint8)
    images = ImageSet(ArrayImages(pixels, name), np.array(labels))
    classes = list(classes or (f"class {label}" for label in range(max(labels) + 1)))
    return DataSet(name, classes, images, images, images, "resized_crop_flip", "memory", 0, 0)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def pictures(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


@pytest.mark.parametrize(
    ("labels", "most", "expected"),
    [
        ([2, 0, 2, 0, 1], 8, [1, 3, 4, 0, 2]),  # by class, two of each where there are two
        ([5, 9, 5], 8, [0, 2, 1]),  # classes without images are passed over
        (list(range(15)), 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        ([0, 0, 1, 1, 2, 2, 3, 3, 4], 3, [0, 4, 8]),  # the first, the middle and the last class
        ([3, 3], 8, [0, 1]),
        ([4] * 20 + [6], 4, [0, 19, 20]),  # the first and the last of a class
    ],
)
def test_images_are_spread_over_classes_and_in_them(labels: list[int], most: int, expected: list[int]):
    assert some_images(in_memory(labels).train, most) == expected


@pytest.mark.parametrize("preprocessing", [PLAIN, UNEVEN], ids=["plain", "uneven"])
def test_normalisation_is_undone_exactly(preprocessing: Preprocessing) -> None:
    """Levels that all of the mean, the std and the scale change differently."""
    colour = (10, 200, 90)
    shown = visible(preprocessing.eval_transform()(Image.new("RGB", (5, 5), colour)), preprocessing)
    assert (shown.dtype, shown.shape) == (np.uint8, (16, 12, 3))
    assert (shown == colour).all()


def test_values_that_are_no_colours_are_cut_off() -> None:
    beyond = torch.tensor([-1.5, 1.5, 1 / 255])[:, None, None].expand(3, 2, 2)
    assert visible(beyond, PLAIN)[0, 0].tolist() == [0, 255, 128]


def test_the_views_are_those_of_the_first_epochs_with_seed_0() -> None:
    data = in_memory([0, 1, 0])
    loader = make_loader(data.train, UNEVEN.train_transform(data.views), 3, seed=0)
    expected = [visible(UNEVEN.eval_transform()(data.train.image(1)), UNEVEN)]
    for epoch in range(4):
        loader.batch_sampler.set_epoch(epoch)
        ((pixel_values, _),) = loader
        expected.append(visible(pixel_values[1], UNEVEN))
    found = views(data, UNEVEN, 1, range(4))
    assert len(found) == 5
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)
    assert len({view.tobytes() for view in found}) == 5


@pytest.mark.drawing
def test_a_row_for_each_class_with_its_stored_image_and_its_views(tmp_path: Path, drawn: list[Figure]) -> None:
    data = in_memory([0, 1, 2], classes=["ant", "bee", "cow"])
    path = contact_sheet(data, PLAIN, tmp_path / "new" / "sheet.png")
    (figure,) = drawn
    with Image.open(path) as image:
        assert image.format == "PNG"
        # six columns and three rows of 1.5 inches and a tenth between, beside 1.8 and under 0.95 inches of text
        assert image.size == pytest.approx(((1.8 + 6 * 1.6) * DPI, (0.95 + 3 * 1.6) * DPI), abs=1)
    shown = pictures(figure)
    assert len(shown) == 18
    for row in range(3):
        assert np.array_equal(shown[6 * row], np.asarray(data.train.image(row)))
        for picture, view in zip(shown[6 * row + 1 : 6 * row + 6], views(data, PLAIN, row, range(4)), strict=True):
            assert np.array_equal(picture, view)
    head = ["noise: 3 classes", PLAIN.words, "training views: resized_crop_flip"]
    columns = ["stored", "evaluation", *(f"training, epoch {epoch}" for epoch in (1, 2, 3, 4))]
    rows = [text for name in ("ant", "bee", "cow") for text in (name, "30x20, RGB")]
    assert texts(figure) == [*head, *columns, *rows]


def test_at_most_eight_classes(tmp_path: Path, drawn: list[Figure]) -> None:
    contact_sheet(in_memory(range(15)), PLAIN, tmp_path / "sheet.png")
    (figure,) = drawn
    assert texts(figure)[9::2] == [f"class {label}" for label in range(0, 15, 2)]


def test_data_that_is_not_augmented_has_two_columns(tmp_path: Path, drawn: list[Figure]) -> None:
    data = replace(in_memory([0, 1]), views=None)
    contact_sheet(data, PLAIN, tmp_path / "sheet.png")
    (figure,) = drawn
    rows = ["class 0", "30x20, RGB", "class 1", "30x20, RGB"]
    assert texts(figure)[2:] == ["training views: as in evaluation", "stored", "evaluation", *rows]
    shown = pictures(figure)
    assert len(shown) == 4
    for row in range(2):
        expected = visible(PLAIN.eval_transform()(data.train.image(row)), PLAIN)
        assert np.array_equal(shown[2 * row + 1], expected)


def test_long_and_odd_names_fit(tmp_path: Path, drawn: list[Figure]) -> None:
    """A dollar starts no formula; a long class name takes up to four lines, and of a long path the end is shown."""
    classes = ["from $_{ to $", "Animalia_Chordata_Aves_Passeriformes_Troglodytidae", "word " * 40]
    contact_sheet(in_memory([0, 1, 2], "folder:/" + "long/" * 40 + "end", classes), PLAIN, tmp_path / "sheet.png")
    (figure,) = drawn
    title, *_ = texts(figure)
    assert title.startswith("…") and title.endswith("long/end: 3 classes") and len(title) == 80 + len(": 3 classes")
    names = [name.split("\n") for name in texts(figure)[9::2]]
    assert names[0] == [classes[0]]
    assert "".join(names[1]) == classes[1]
    assert len(names[2]) == 4 and names[2][-1].endswith(" …")
    assert max(len(line) for name in names for line in name) <= 22


def test_stored_images_are_upright_and_not_drawn_larger_than_needed(tmp_path: Path, drawn: list[Figure]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (2000, 10), 50).save(tmp_path / "turned.png", exif=exif)
    data = in_memory([0])
    images = ImageSet(ImageFiles(tmp_path, ["turned.png"]), np.array([0]))
    data = DataSet("turned", ["one"], images, data.select, data.eval, "flip", "files", 0, 0)
    contact_sheet(data, PLAIN, tmp_path / "sheet.png")
    (figure,) = drawn
    assert texts(figure)[-1] == "10x2000, L"
    assert pictures(figure)[0].shape == (512, 3, 3)  # 2.56 pixels wide, rounded


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    images = ImageSet(ImageFiles(tmp_path, ["empty.jpg"]), np.array([0]))
    data = DataSet("broken", ["one"], images, images, images, "flip", "files", 0, 0)
    with pytest.raises(ValueError, match=r"cannot read the image .*empty\.jpg"):
        contact_sheet(data, PLAIN, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
