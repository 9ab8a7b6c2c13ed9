"""The contact sheet shows images of some classes as they are stored and exactly as a model gets them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from learnable_memory.contact_sheet import GAP, HEAD, LINE, SIDE, contact_sheet, some_images, views, visible
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
    return [text.get_text() for text in figure.axes[0].texts]


def tile(figure: Figure, row: int, column: int, lines: int) -> np.ndarray:
    """What is shown in one place, under which captions take so many lines: uint8 [SIDE, SIDE, 3]."""
    top, left = GAP + row * (SIDE + lines * LINE + GAP), GAP + column * (SIDE + GAP)
    return np.asarray(figure.axes[0].images[0].get_array())[top : top + SIDE, left : left + SIDE]


def enlarged(picture: np.ndarray) -> np.ndarray:
    """A picture whose longer side divides SIDE, pixel by pixel, in the middle of a white square."""
    times = SIDE // max(picture.shape)
    picture = picture.repeat(times, 0).repeat(times, 1)
    height, width, _ = picture.shape
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square = np.full((SIDE, SIDE, 3), 255, np.uint8)
    square[top : top + height, left : left + width] = picture
    return square


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
        assert image.size == (GAP + 6 * (SIDE + GAP), HEAD + GAP + 3 * (SIDE + 2 * LINE + GAP))
    for row in range(3):
        shown = [np.asarray(data.train.image(row)), *views(data, PLAIN, row, range(4))]
        for column, picture in enumerate(shown):
            assert np.array_equal(tile(figure, row, column, lines=2), enlarged(picture))
    columns = ["evaluation", *(f"training, epoch {epoch}" for epoch in (1, 2, 3, 4))]
    rows = [text for name in ("ant", "bee", "cow") for text in (name, "stored: 30x20, RGB", *columns)]
    assert texts(figure) == ["noise: 3 classes", PLAIN.words, "training views: resized_crop_flip", *rows]


def test_at_most_eight_classes(tmp_path: Path, drawn: list[Figure]) -> None:
    contact_sheet(in_memory(range(15)), PLAIN, tmp_path / "sheet.png")
    (figure,) = drawn
    assert texts(figure)[3::7] == [f"class {label}" for label in range(0, 15, 2)]


def test_data_that_is_not_augmented_has_two_columns(tmp_path: Path, drawn: list[Figure]) -> None:
    data = replace(in_memory([0, 1]), views=None)
    contact_sheet(data, PLAIN, tmp_path / "sheet.png")
    (figure,) = drawn
    rows = ["class 0", "stored: 30x20, RGB", "evaluation", "class 1", "stored: 30x20, RGB", "evaluation"]
    assert texts(figure)[2:] == ["training views: as in evaluation", *rows]
    expected = visible(PLAIN.eval_transform()(data.train.image(1)), PLAIN)
    assert np.array_equal(tile(figure, 1, 1, lines=2), enlarged(expected))


def check_layout(figure: Figure) -> None:
    """No text overlaps another or leaves the page."""
    figure.dpi = DPI  # as in the file
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number]), texts(figure)[number]
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1


def test_long_and_odd_names_fit(tmp_path: Path, drawn: list[Figure]) -> None:
    """A dollar starts no formula; of a long class name the beginning is shown, of a long path the end."""
    classes = ["from $_{ to $", "Animalia_Chordata_Aves_Passeriformes_Troglodytidae", "wood pigeons, " * 4]
    contact_sheet(in_memory([0, 1, 2], "folder:/" + "long/" * 40 + "end", classes), PLAIN, tmp_path / "sheet.png")
    (figure,) = drawn
    title, *_ = texts(figure)
    assert title.startswith("…") and title.endswith("long/end: 3 classes") and len(title) == 80 + len(": 3 classes")
    assert texts(figure)[3::7] == [classes[0], classes[1][:23] + "…", "wood pigeons, wood pige…"]
    check_layout(figure)


def test_stored_images_are_upright_and_photographs_are_averaged(tmp_path: Path, drawn: list[Figure]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((SIDE, 4 * SIDE), np.uint8)
    pixels[:, 1::2] = 100  # grey, seen from afar
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    images = ImageSet(ImageFiles(tmp_path, ["turned.png"]), np.array([0]))
    data = DataSet("turned", ["one"], images, images, images, None, "files", 0, 0)
    contact_sheet(data, PLAIN, tmp_path / "sheet.png")
    (figure,) = drawn
    assert texts(figure)[4] == f"stored: {SIDE}x{4 * SIDE}, L"
    shown = tile(figure, 0, 0, lines=2)
    assert (shown[:, SIDE * 3 // 8 : SIDE * 5 // 8] == 50).all() and (shown[:, : SIDE * 3 // 8] == 255).all()


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    images = ImageSet(ImageFiles(tmp_path, ["empty.jpg"]), np.array([0]))
    data = DataSet("broken", ["one"], images, images, images, "flip", "files", 0, 0)
    with pytest.raises(ValueError, match=r"cannot read the image .*empty\.jpg"):
        contact_sheet(data, PLAIN, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
