"""Small images: batches that are made in one go have the bits of those that are made image by image."""

import io
import pickle
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from learnable_memory.images import ArrayImages, EncodedImages, ImageFiles, ImageSet
from learnable_memory.loading import EpochBatches, make_loader
from learnable_memory.small_images import SmallImageLoader, decode, fits
from learnable_memory.transforms import BATCH_VIEWS, INTERPOLATION, Preprocessing
from pairs import pairwise

SQUARE = Preprocessing(48, 48, "bilinear", 1 / 255, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
VIEWS = [*BATCH_VIEWS, None]
SHAPES = {"digits": (8, 8), "grey": (28, 28), "colour": (32, 32, 3), "upright": (40, 24, 3)}

Batch = tuple[torch.Tensor, torch.Tensor]


def some_images(shape: tuple[int, ...] = (32, 32, 3), count: int = 13) -> ImageSet:
    """Noise; no two images are alike, and the labels are not the indices."""
    pixels = np.random.default_rng(len(shape)).integers(0, 256, (count, *shape), dtype=np.uint8)
    return ImageSet(ArrayImages(pixels, "memory"), np.arange(count) * 7 % 5)


def encoded(images: Iterable[Image.Image | bytes], name: str = "file.parquet") -> ImageSet:
    files = []
    for image in images:
        file = io.BytesIO()
        if isinstance(image, bytes):
            file.write(image)
        else:
            image.save(file, "TIFF" if image.mode == "F" else "PNG", exif=image.getexif())
        files.append(file.getvalue())
    column = pa.chunked_array([pa.array(files, type=pa.binary())])
    return ImageSet(EncodedImages(column, name), np.arange(len(files)))


def one_by_one(
    images: ImageSet, preprocessing: Preprocessing, views: str | None, seed: int, batches: EpochBatches
) -> list[Batch]:
    transform = preprocessing.eval_transform() if views is None else preprocessing.train_transform(views)
    return list(make_loader(images, transform, seed=seed, batch_sampler=batches))


def assert_same_bits(found: Iterable[Batch], expected: Iterable[Batch]) -> None:
    found, expected = list(found), list(expected)
    assert [len(labels) for _, labels in found] == [len(labels) for _, labels in expected]
    for (pixel_values, labels), (expected_values, expected_labels) in zip(found, expected, strict=True):
        assert pixel_values.dtype == torch.float32 and labels.dtype == torch.int64
        assert torch.equal(pixel_values, expected_values)
        assert torch.equal(labels, expected_labels)


# ------------------------------------------------------------------------------------------------------------- promise
CHANGES = [
    {},  # as many places for a crop as there are pixels in a seventh of the side
    {"width": 36},
    {"height": 20, "resize": (30, 49)},
    {"height": 33, "resize": (51,)},  # the shorter side: what is left over depends on the image
    {"height": 32, "width": 32},  # CIFAR is not resized, but for crops
    {"height": 8, "width": 20},  # shifted sideways only
    {"height": 20, "width": 8},  # shifted up and down only
    {"height": 3, "width": 3},  # no room to crop or to shift
    {"rounded": False},
]


@pytest.mark.parametrize(("views", "shape", "change"), pairwise(VIEWS, SHAPES.values(), CHANGES), ids=str)
def test_batches_have_the_bits_of_single_images(views: str | None, shape: tuple[int, ...], change: dict) -> None:
    images, preprocessing = some_images(shape), replace(SQUARE, **({"resize": ()} | change))
    batches = EpochBatches(len(images), 5, seed=3, shuffle=True)
    batches.set_epoch(2)
    loader = SmallImageLoader(images, preprocessing, views, batches, seed=3)
    assert_same_bits(loader, one_by_one(images, preprocessing, views, 3, batches))


@pytest.mark.parametrize(("views", "resample", "batch_size"), pairwise(VIEWS, INTERPOLATION, [1, 2, 13, 64]))
def test_every_resampling_and_batch_size(views: str | None, resample: str, batch_size: int) -> None:
    images, preprocessing = some_images(), replace(SQUARE, resample=resample)
    batches = EpochBatches(len(images), batch_size)
    loader = SmallImageLoader(images, preprocessing, views, batches)
    assert_same_bits(loader, one_by_one(images, preprocessing, views, 0, batches))


@pytest.mark.parametrize("views", VIEWS)
def test_epochs_and_seeds(views: str | None) -> None:
    """One loader through several epochs, as training does it; random views are new in each."""
    images, seen = some_images(), []
    for seed in (0, 2**40):
        batches = EpochBatches(len(images), 13, seed)
        loader = SmallImageLoader(images, SQUARE, views, batches, seed)
        for epoch in (0, 1, 500):
            batches.set_epoch(epoch)
            seen += list(loader)
            assert_same_bits(seen[-1:], one_by_one(images, SQUARE, views, seed, batches))
    different = {pixel_values.numpy().tobytes() for pixel_values, _ in seen}
    assert len(different) == (1 if views is None else len(seen))


def test_draws_reach_every_place_and_no_other() -> None:
    """For a size of 20x40: crops lie in 23x46, shifts go by up to 20 // 16 and 40 // 16."""
    preprocessing = replace(SQUARE, height=20, width=40, resize=())
    expected = {"crop_flip": (4, 7, 2), "flip": (1, 1, 2), "shift": (3, 5, 1), None: (1, 1, 1)}
    for views, places in expected.items():
        transform = preprocessing.batch_transform(views)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            draws = [transform.draw(32, 32) for _ in range(200)]
        assert [set(column) for column in zip(*draws, strict=True)] == [set(range(count)) for count in places]


def test_images_of_a_batch_may_show_different_views() -> None:
    images, keys = some_images(), [[(0, 4), (7, 4), (2, 9)], [(5, 0)]]
    transform = SQUARE.train_transform("crop_flip")
    loader = SmallImageLoader(images, SQUARE, "crop_flip", keys, seed=1)
    assert_same_bits(loader, make_loader(images, transform, seed=1, batch_sampler=keys))
    first, second = next(iter(loader))[0][:2]
    assert not torch.equal(first, second)


def test_processes_share_out_the_batches() -> None:
    """Together the parts of all processes are the batches of one; the last of 13 images is too small for the third."""
    images = some_images()
    whole = SmallImageLoader(images, SQUARE, "crop_flip", EpochBatches(13, 6, seed=2, shuffle=True), seed=2)
    parts = []
    for process in range(3):
        batches = EpochBatches(13, 6, seed=2, shuffle=True, process=process, processes=3)
        loader = SmallImageLoader(images, SQUARE, "crop_flip", batches, seed=2)
        assert_same_bits(loader, one_by_one(images, SQUARE, "crop_flip", 2, batches))
        parts.append(list(loader))
    assert [len(part) for part in parts] == [3, 2, 2]
    for number, (pixel_values, labels) in enumerate(whole):
        of_it = [part[number] for part in parts if number < len(part)]
        for process, (part_values, part_labels) in enumerate(of_it):
            assert torch.equal(part_values, pixel_values[process::3])
            assert torch.equal(part_labels, labels[process::3])


def test_a_part_of_a_data_set_keeps_its_images_and_labels() -> None:
    images = some_images().subset([11, 3, 8]).relabel([1, 2])  # labels 2, 1 and 1 before
    assert images.labels.tolist() == [1, 0, 0]
    batches = EpochBatches(3, 2)
    loader = SmallImageLoader(images, SQUARE, None, batches)
    assert_same_bits(loader, one_by_one(images, SQUARE, None, 0, batches))
    assert torch.cat([labels for _, labels in loader]).tolist() == [1, 0, 0]


def test_encoded_images_of_any_mode() -> None:
    colours = some_images((24, 24, 3), 5)
    sideways = colours.image(4)
    sideways.getexif()[0x0112] = 6
    pictures = [colours.image(0), *(colours.image(index + 1).convert(mode) for index, mode in enumerate(("L", "P")))]
    pictures += [colours.image(3).convert("RGBA"), sideways]
    pictures[3].putalpha(100)
    images, batches = encoded(pictures), EpochBatches(5, 3)
    assert_same_bits(
        SmallImageLoader(images, SQUARE, "shift", batches), one_by_one(images, SQUARE, "shift", 0, batches)
    )
    assert torch.equal(decode(images)[4], decode(colours)[4].rot90(-1, (1, 2)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("views", VIEWS)
def test_a_gpu_makes_the_same_views(views: str | None) -> None:
    """It resizes in float32, so that a value may be off by one of 255."""
    images, batches = some_images(), EpochBatches(13, 5, shuffle=True)
    expected = SmallImageLoader(images, SQUARE, views, batches)
    found = SmallImageLoader(images, SQUARE, views, batches, device="cuda")
    for (pixel_values, labels), (expected_values, expected_labels) in zip(found, expected, strict=True):
        assert pixel_values.device.type == labels.device.type == "cuda"
        assert (pixel_values.cpu() - expected_values).abs().max() <= 1.01 / 255 / min(SQUARE.std)
        assert torch.equal(labels.cpu(), expected_labels)


# -------------------------------------------------------------------------------------------------------------- loader
def test_a_loader_can_be_asked_for_what_it_serves() -> None:
    images, batches = some_images(), EpochBatches(13, 5)
    loader = SmallImageLoader(images, SQUARE, "flip", batches)
    assert loader.dataset is images and loader.batch_sampler is batches
    assert len(loader) == 3
    pixel_values, labels = next(iter(loader))
    assert pixel_values.shape == (5, 3, 48, 48) and pixel_values.is_contiguous()
    assert labels.tolist() == [0, 2, 4, 1, 3]


def test_images_are_decoded_once_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read, images = [], some_images()
    stored = ArrayImages.read
    monkeypatch.setattr(ArrayImages, "read", lambda self, row, side: read.append(row) or stored(self, row, side))
    loader = SmallImageLoader(images, SQUARE, "flip", EpochBatches(13, 5))
    batches = iter(loader)
    assert read == []
    next(batches)
    assert read == list(range(13))
    assert len(list(loader)) == 3 and read == list(range(13))


def test_a_batch_is_the_caller_s_to_change() -> None:
    """Without any resizing, too, what comes out is a copy of what is kept."""
    preprocessing = replace(SQUARE, height=32, width=32, resize=())
    loader = SmallImageLoader(some_images(), preprocessing, None, EpochBatches(13, 13))
    first = next(iter(loader))
    kept = first[0].clone(), first[1].clone()
    first[0].zero_()
    first[1].zero_()
    assert_same_bits(loader, [kept])


def test_batches_begun_without_gradients_serve_training() -> None:
    """What is kept must not remember the mode in which it was made."""
    loader = SmallImageLoader(some_images(), SQUARE, "crop_flip", EpochBatches(13, 13))
    with torch.inference_mode():
        list(loader)
    (pixel_values, labels), weights = next(iter(loader)), torch.ones(5, 3, requires_grad=True)
    torch.nn.functional.cross_entropy(pixel_values.mean((2, 3)) @ weights.T, labels).backward()
    assert weights.grad is not None


def test_set_epoch_during_a_pass_is_for_the_next_one() -> None:
    images, batches = some_images(), EpochBatches(13, 5, shuffle=True)
    expected = one_by_one(images, SQUARE, "shift", 0, batches)
    passing = iter(SmallImageLoader(images, SQUARE, "shift", batches))
    batches.set_epoch(9)
    assert_same_bits(passing, expected)


@pytest.mark.parametrize("views", VIEWS)
def test_no_global_random_state_is_touched(views: str | None) -> None:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    loader = SmallImageLoader(some_images(), SQUARE, views, EpochBatches(13, 5, shuffle=True))
    for _ in loader:
        assert torch.equal(before[2], torch.get_rng_state())
    assert before[0] == random.getstate()
    assert pickle.dumps(before[1]) == pickle.dumps(np.random.get_state())


def test_random_state_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = SmallImageLoader(some_images(), SQUARE, "flip", [[(0, 1), (0, -1)]])
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="non-negative"):
        list(loader)
    assert torch.equal(before, torch.get_rng_state())


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("views", ["resized_crop_flip", "mosaic"])
def test_views_that_no_batch_can_have_are_refused(views: str) -> None:
    with pytest.raises(ValueError, match=f"views is '{views}'; legal for batches: crop_flip, flip, shift$"):
        SmallImageLoader(some_images(), SQUARE, views, EpochBatches(13, 5))


def test_the_image_that_cannot_be_decoded_is_named() -> None:
    images = encoded([some_images().image(0), b"no image"])
    with pytest.raises(ValueError, match=r"cannot read the image row 1 of file.parquet \(UnidentifiedImageError"):
        next(iter(SmallImageLoader(images, SQUARE, None, EpochBatches(2, 1))))


def test_the_image_of_unknown_white_is_named() -> None:
    images = encoded([Image.new("L", (4, 4)), Image.new("F", (4, 4), 0.5)])
    with pytest.raises(ValueError, match=r"^row 1 of file.parquet: an image of mode 'F' holds values from 0.5 to 0.5"):
        decode(images)


def test_the_image_of_another_size_is_named() -> None:
    images = encoded([Image.new("L", (9, 7)), Image.new("RGB", (9, 7)), Image.new("L", (7, 9))])
    with pytest.raises(
        ValueError, match=r"^row 2 of file.parquet has 9x7 pixels, but the first image of the split 7x9"
    ):
        decode(images)


def test_no_images_are_no_batches() -> None:
    assert decode(some_images().subset([])).shape[:2] == (0, 3)
    assert list(SmallImageLoader(some_images().subset([]), SQUARE, None, EpochBatches(0, 5))) == []


# ---------------------------------------------------------------------------------------------------------------- fits
@pytest.mark.parametrize(
    ("views", "expected"),
    [("crop_flip", True), ("flip", True), ("shift", True), (None, True), ("resized_crop_flip", False), ("x", False)],
)
def test_fits_asks_for_views_that_batches_can_have(views: str | None, expected: bool) -> None:
    assert fits(some_images(), views) is expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64, 64), True), ((64, 64, 3), True), ((65, 8), False), ((8, 65), False), ((8, 65, 3), False)],
)
def test_fits_asks_for_small_images(shape: tuple[int, ...], expected: bool) -> None:
    images = some_images(shape, 2)
    assert fits(images, None) is expected
    assert fits(encoded(images.image(index) for index in range(2)), None) is expected


def test_fits_asks_for_images_in_memory(tmp_path: Path) -> None:
    some_images().image(0).save(tmp_path / "one.png")
    images = ImageSet(ImageFiles(tmp_path, ["one.png"]), np.zeros(1))
    assert fits(images, None) is False


def test_fits_decodes_the_first_image_of_the_split_at_most() -> None:
    images = encoded([b"no image", Image.new("L", (8, 8)), b"no image"])
    assert fits(images.subset([1, 2]), "flip") is True
    assert fits(images, "resized_crop_flip") is False
    assert fits(images.subset([]), None) is False
    with pytest.raises(ValueError, match=r"cannot read the image row 0 of file.parquet"):
        fits(images, None)
