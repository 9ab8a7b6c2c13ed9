"""Preprocessing: the base's own pixels for evaluation, random views for training, RGB from every PIL mode."""

import hashlib
import io
import itertools
import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    BeitImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DINOv3ViTImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from learnable_memory.bases import read_processor
from learnable_memory.legacy import preprocessing
from learnable_memory.rgb import to_rgb
from learnable_memory.transforms import VIEWS, Preprocessing

VIT = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
ORIENTATION = 0x0112  # the EXIF tag
SQUARE = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def processors() -> dict:
    resamples = {name: ViTImageProcessor(**VIT, resample=number) for number, name in enumerate(("n", "l", "b", "c"))}
    return {
        **{f"ViT resample {name}": processor for name, processor in resamples.items()},
        "ViT not square": ViTImageProcessor(size={"height": 12, "width": 20}),
        "ViT old size": ViTImageProcessor(size=16),
        "not normalised": ViTImageProcessor(size=16, do_normalize=False),
        "not rescaled": ViTImageProcessor(size=16, do_rescale=False),
        "one mean for all channels": ViTImageProcessor(size=16, image_mean=0.25, image_std=0.5),
        "CLIP": CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        "CLIP odd margins": CLIPImageProcessor(size={"shortest_edge": 19}, crop_size={"height": 16, "width": 12}),
        "BEiT": BeitImageProcessor(size=16),
        "BEiT, crop of a square": BeitImageProcessor(size=18, crop_size=15, do_center_crop=True),
        "DINOv2": BitImageProcessor(size={"shortest_edge": 18}, crop_size=16),
        "SigLIP": SiglipImageProcessor(size={"height": 16, "width": 16}),
        "SigLIP, not normalised": SiglipImageProcessor(size={"height": 16, "width": 16}, do_normalize=False),
        "DINOv3": DINOv3ViTImageProcessor(size={"height": 16, "width": 16}),
        "DINOv3, bicubic": DINOv3ViTImageProcessor(size={"height": 16, "width": 16}, resample=3),
        "DINOv3, centre": DINOv3ViTImageProcessor(
            size={"shortest_edge": 18}, crop_size={"height": 16, "width": 12}, do_center_crop=True
        ),
        "DINOv3, not normalised": DINOv3ViTImageProcessor(size={"height": 16, "width": 16}, do_normalize=False),
    }


# ---------------------------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize("name", processors())
@pytest.mark.parametrize("shape", [(32, 32), (16, 16), (40, 23), (23, 41), (5, 7)])
def test_eval_transform_gives_the_pixels_of_the_processor(name: str, shape: tuple[int, int]) -> None:
    processor = processors()[name]
    assert processor.backend == "torchvision"
    expected = processor(images=noise(*shape), return_tensors="pt")["pixel_values"][0]
    pixels = Preprocessing.from_processor(processor).eval_transform()(noise(*shape))
    assert pixels.dtype == torch.float32
    assert pixels.shape == expected.shape
    # Rescaling alone is a multiplication there and a division here: one unit in the last place of values up to 1.
    assert (pixels - expected).abs().max() <= 1e-6


LEGACY_224 = Preprocessing(224, 224, "bilinear", 1 / 255, (0, 0, 0), (1, 1, 1))


def test_the_preprocessing_of_the_2023_implementation_has_a_name() -> None:
    assert LEGACY_224.name == "legacy-2023"
    assert LEGACY_224.words == "legacy-2023: resized to 224x224 (bilinear), values in [0, 1]"
    made = Preprocessing.from_dict(preprocessing((192, 224)))  # by the reader of its files
    assert made == replace(LEGACY_224, height=192, resize=(192, 224))
    assert (made.name, made.words) == ("legacy-2023", "legacy-2023: resized to 192x224 (bilinear), values in [0, 1]")
    assert LEGACY_224.to_dict().keys() == SQUARE.to_dict().keys()  # the numbers are the one truth


@pytest.mark.parametrize(
    "change",
    [{"resample": "bicubic"}, {"mean": (0.5, 0, 0)}, {"std": (1, 1, 0.5)}, {"rescale": 1.0}, {"resize": (256, 256)}],
    ids=lambda change: next(iter(change)),
)
def test_any_other_number_is_another_preprocessing_without_a_name(change: dict) -> None:
    other = replace(LEGACY_224, **change)
    assert other.name is None and "legacy-2023" not in other.words


@pytest.mark.parametrize("shape", [(256, 256), (224, 224), (300, 200), (90, 160)])
def test_the_pixels_of_the_2023_implementation(shape: tuple[int, int]) -> None:
    """The whole image, whatever its aspect, as Pillow resizes it, divided by 255."""
    expected = np.asarray(noise(*shape).resize((224, 224), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    pixels = LEGACY_224.eval_transform()(noise(*shape)).numpy()
    assert np.abs(pixels - expected).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("name", processors())
def test_a_saved_processor_is_read_as_it_was(name: str, tmp_path: Path) -> None:
    """Also by the names that older versions wrote."""
    processors()[name].save_pretrained(tmp_path)
    assert Preprocessing.from_processor(read_processor(tmp_path)) == Preprocessing.from_processor(processors()[name])
    file = tmp_path / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"image_processor_type": settings["image_processor_type"] + "Fast"}))
    assert Preprocessing.from_processor(read_processor(tmp_path)) == Preprocessing.from_processor(processors()[name])


def test_values_that_are_not_rounded_are_another_preprocessing() -> None:
    """What is not said is as it was before: neither files nor hashes changed."""
    unrounded = replace(SQUARE, rounded=False)
    assert SQUARE.to_dict().keys() == unrounded.to_dict().keys() - {"rounded"}
    assert unrounded.hash != SQUARE.hash and unrounded.words.startswith(
        "resized to 16x16 (bilinear, not rounded), mean"
    )
    pixels, rounded = (way.eval_transform()(noise(40, 23)) for way in (unrounded, SQUARE))
    assert 0 < (pixels - rounded).abs().max() <= 1 / 255 / 0.5 + 1e-6  # half a step in each direction


def test_from_processor_reads_every_number() -> None:
    processor = CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 12}, resample=3)
    processor.image_mean, processor.image_std, processor.rescale_factor = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 1 / 100
    expected = Preprocessing(16, 12, "bicubic", 1 / 100, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize=(20,))
    assert Preprocessing.from_processor(processor) == expected


@pytest.mark.parametrize(
    ("key", "processor"),
    [
        ("do_resize", ViTImageProcessor(do_resize=False)),
        ("do_pad", ViTImageProcessor(do_pad=True, pad_size={"height": 300, "width": 300})),
        ("resample", ViTImageProcessor(resample=4)),
        ("size", ViTImageProcessor(size={"shortest_edge": 16})),
        ("size", ViTImageProcessor(size={"shortest_edge": 16, "longest_edge": 32})),
        ("crop_size", CLIPImageProcessor(crop_size={"shortest_edge": 16})),
        ("crop_pct", ConvNextImageProcessor()),
        ("max_num_patches", Siglip2ImageProcessor()),
        ("image_mean", ViTImageProcessor(image_mean=[0.5])),
    ],
)
def test_from_processor_names_the_key_it_cannot_express(key: str, processor: ViTImageProcessor) -> None:
    with pytest.raises(ValueError, match=f"^cannot express {type(processor).__name__} with {key}="):
        Preprocessing.from_processor(processor)


# -------------------------------------------------------------------------------------------------- a value, as a file
def test_round_trip_through_json_is_exact() -> None:
    for processor in processors().values():
        preprocessing = Preprocessing.from_processor(processor)
        read_back = Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict())))
        assert read_back == preprocessing
        assert read_back.hash == preprocessing.hash


def test_hash_sees_every_field_and_nothing_else() -> None:
    changes = {
        "height": 15,
        "width": 15,
        "resample": "bicubic",
        "rescale": 1 / 256,
        "mean": (0.5, 0.5, 0.4),
        "std": (0.5, 0.5, 0.4),
        "resize": (16,),
        "rounded": False,
    }
    assert changes.keys() == SQUARE.to_dict().keys() | {"rounded"}
    hashes = {replace(SQUARE, **{name: value}).hash for name, value in changes.items()} | {SQUARE.hash}
    assert len(hashes) == len(changes) + 1
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in hashes)
    same = Preprocessing(16, 16, "bilinear", 1 / 255, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], resize=[16, 16])
    whole = Preprocessing(16, 16, "bilinear", 1, (0, 0, 0), (1, 1, 1))
    assert same.hash == SQUARE.hash
    assert whole.hash == Preprocessing(16, 16, "bilinear", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).hash


def test_hash_is_that_of_its_definition() -> None:
    """Written down so that a later version cannot change it unnoticed: head files store it."""
    text = (
        '{"height":16,"mean":[0.5,0.5,0.5],"resample":"bilinear","rescale":0.00392156862745098,"resize":[16,16],'
        '"std":[0.5,0.5,0.5],"width":16}'
    )
    assert SQUARE.hash == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": "cubic"}, "resample is 'cubic'; legal: nearest, bilinear, bicubic, lanczos"),
        ({"height": 0}, "at least 1 pixel"),
        ({"resize": (16, 16, 16)}, "resize is .shorter side,. or .height, width."),
        ({"mean": (0.5,)}, "three numbers each"),
        ({"std": (0.5, 0, 0.5)}, "without zeros"),
        ({"rescale": 0}, "rescale must be positive"),
        ({"resize": (15,)}, "crop of 16x16 is larger than the image resized to .15,."),
        ({"resize": (16, 15)}, "larger than the image"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SQUARE, **change)


def test_from_dict_names_missing_and_unknown_keys() -> None:
    values = SQUARE.to_dict()
    values["colour"] = values.pop("mean")
    with pytest.raises(ValueError, match=r"missing: \['mean'\], unknown: \['colour'\]"):
        Preprocessing.from_dict(values)


# ------------------------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("resize", [(16, 16), (18, 20), (16,), (24,)])
def test_training_views_have_the_shape_and_range_of_the_base(views: str, resize: tuple[int, ...]) -> None:
    transform = replace(SQUARE, width=12, resize=resize).train_transform(views)
    for mode in ("RGB", "L", "P"):
        pixels = transform(noise(30, 45).convert(mode))
        assert pixels.shape == (3, 16, 12)
        assert pixels.dtype == torch.float32
        assert pixels.min() >= -1 and pixels.max() <= 1


@pytest.mark.parametrize(
    ("views", "mirrored"), [("resized_crop_flip", True), ("crop_flip", True), ("flip", True), ("shift", False)]
)
def test_only_the_flip_views_mirror(views: str, mirrored: bool) -> None:
    ramp = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (32, 1))  # dark left, bright right
    transform = SQUARE.train_transform(views)
    falling = [bool(view[0, 0, 0] > view[0, 0, -1]) for view in (transform(Image.fromarray(ramp)) for _ in range(40))]
    assert any(falling) == mirrored
    assert not all(falling)


def test_crop_views_keep_seven_eighths_of_the_image() -> None:
    """A ramp from 0 to 255: a crop of 14 of 16 pixels spans 7/8 of its values, wherever it lies, mirrored or not."""
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1)))
    settings = replace(SQUARE, height=14, width=14, resize=(), mean=(0, 0, 0), std=(1, 1, 1))
    views = [settings.train_transform("crop_flip")(ramp) for _ in range(60)]
    darkest = {round(float(view[0, 0].min()) * 255) for view in views}
    assert darkest == {0, 16, 32}  # the three places for 14 pixels in 16
    assert all(round(float(view[0, 0].max() - view[0, 0].min()) * 255) == 13 * 16 for view in views)


def test_shift_views_move_the_image_by_up_to_a_sixteenth_and_repeat_its_border() -> None:
    """A ramp of 16 pixels, moved by -1 to 1: the span shrinks by the move, and the border stands there again."""
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1)))
    transform = replace(SQUARE, mean=(0, 0, 0), std=(1, 1, 1)).train_transform("shift")
    rows = [(transform(ramp)[0, 0] * 255 / 16).round().int().tolist() for _ in range(100)]
    moved = {tuple(min(max(column + move, 0), 15) for column in range(16)) for move in range(-1, 2)}
    assert {tuple(row) for row in rows} == moved


def test_resized_crops_take_8_to_100_percent_of_the_image() -> None:
    """On a ramp from left to right the span of a view's values is its width, relative to the image's."""
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    transform = replace(SQUARE, mean=(0, 0, 0), std=(1, 1, 1)).train_transform("resized_crop_flip")
    spans = np.array([float(view[0].max() - view[0].min()) for view in (transform(ramp) for _ in range(100))])
    narrowest = np.sqrt(0.08 * 3 / 4)  # 8 percent of the area, of an aspect of 3 to 4
    # Averaging over 1/16 of the view at each end takes a sixteenth of the span away.
    assert spans.min() >= narrowest * 14 / 16
    assert spans.min() < 0.5
    assert 0.8 < spans.max() <= 1


def test_unknown_views_are_refused() -> None:
    with pytest.raises(ValueError, match=r"views is 'mosaic'; legal: resized_crop_flip, crop_flip, flip, shift$"):
        SQUARE.train_transform("mosaic")


@pytest.mark.parametrize("views", VIEWS)
def test_transforms_can_be_pickled(views: str) -> None:
    """Where loader processes are not forked, they get their transform this way."""
    image = noise(20, 20)
    assert torch.equal(pickle.loads(pickle.dumps(SQUARE.eval_transform()))(image), SQUARE.eval_transform()(image))
    assert pickle.loads(pickle.dumps(SQUARE.train_transform(views)))(image).shape == (3, 16, 16)


# ----------------------------------------------------------------------------------------------------------------- RGB
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)
PALETTE = [*RED, 0, 255, 0, 0, 0, 255]


def palette_image(index: int, transparent: int | bytes | None = None) -> Image.Image:
    image = Image.new("P", (4, 4), index)
    image.putpalette(PALETTE)
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def transparent_palette_image() -> Image.Image:
    image = Image.new("PA", (4, 4), (0, 0))
    image.putpalette(PALETTE)
    return image


def with_transparency(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
    image.info["transparency"] = colour
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (4, 4), 1), WHITE),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        (Image.new("RGBX", (4, 4), (1, 2, 3, 0)), (1, 2, 3)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),  # a fifth of black on white
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)).convert("RGBa"), (204, 204, 204)),
        (Image.new("LA", (4, 4), (0, 51)), (204, 204, 204)),
        (Image.new("LA", (4, 4), (0, 51)).convert("La"), (204, 204, 204)),
        (palette_image(0).convert("PA"), RED),
        (transparent_palette_image(), WHITE),
        (palette_image(0), RED),
        (palette_image(2), (0, 0, 255)),
        (palette_image(0, transparent=0), WHITE),
        (palette_image(0, transparent=1), RED),
        (palette_image(0, transparent=bytes([0, 255, 255])), WHITE),
        (with_transparency(Image.new("RGB", (4, 4), BLACK), BLACK), WHITE),
        (with_transparency(Image.new("L", (4, 4), 0), 0), WHITE),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), RED),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), BLACK),
        (Image.new("YCbCr", (4, 4), (128, 128, 128)), (128, 128, 128)),
        (Image.new("HSV", (4, 4), (0, 255, 255)), RED),
        (Image.new("I;16", (4, 4), 65535), WHITE),
        (Image.new("I;16", (4, 4), 257 * 100), (100, 100, 100)),
        (Image.new("I;16B", (4, 4), 257 * 100), (100, 100, 100)),
        (Image.new("I;16L", (4, 4), 257 * 100), (100, 100, 100)),
        (Image.new("I;16N", (4, 4), 257 * 100), (100, 100, 100)),
        (Image.new("I", (4, 4), 257 * 100), (100, 100, 100)),
        (Image.new("F", (4, 4), 100.2), (100, 100, 100)),
        (Image.new("F", (4, 4), 0.0), BLACK),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    converted = to_rgb(image)
    assert converted.mode == "RGB"
    assert converted.size == (4, 4)
    assert (np.asarray(converted) == expected).all()


@pytest.mark.parametrize(("lab", "expected"), [((255, 128, 128), WHITE), ((0, 128, 128), BLACK)])
def test_lab_becomes_rgb(lab: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    converted = to_rgb(Image.new("LAB", (4, 4), lab))
    assert converted.mode == "RGB"
    assert np.abs(np.array(converted).astype(int) - expected).max() <= 1  # a and b have no exact zero in 8 bits


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            Image.new("I", (2, 2), 65536),
            "mode 'I' holds values from 65536 to 65536, expected 0 to 65535: save it with 8",
        ),
        (Image.new("I", (2, 2), -1), "from -1 to -1"),
        (Image.new("F", (2, 2), 255.5), "mode 'F' holds values from 255.5 to 255.5, expected 0 to 255"),
        (Image.new("F", (2, 2), 0.5), "from 0.5 to 0.5"),
        (Image.new("F", (2, 2), float("nan")), "from nan to nan"),
    ],
)
def test_grey_of_unknown_white_is_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rgb(image)


@settings(max_examples=30, deadline=None)
@given(value=st.integers(0, 255))
def test_16_bit_grey_is_8_bit_grey_times_257(value: int) -> None:
    assert to_rgb(Image.new("I;16", (1, 1), value * 257)).getpixel((0, 0)) == (value, value, value)


def stored_and_read(image: Image.Image, kind: str, exif: bytes | Image.Exif) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(file) as stored:
        stored.load()
    return stored


def white_corner(mode: str = "RGB") -> Image.Image:
    """8x4 pixels, black but for the quarter in the upper left."""
    image = Image.new(mode, (8, 4))
    image.paste("white", (0, 0, 4, 2))
    return image


def where_white(image: Image.Image) -> list[str]:
    sides = {
        f"{vertical} {horizontal}": (x, y)
        for vertical, y in (("top", 0), ("bottom", image.height - 1))
        for horizontal, x in (("left", 0), ("right", image.width - 1))
    }
    return [side for side, corner in sides.items() if image.getpixel(corner)[0] > 128]


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [
        (1, (8, 4), "top left"),
        (2, (8, 4), "top right"),
        (3, (8, 4), "bottom right"),
        (4, (8, 4), "bottom left"),
        (5, (4, 8), "top left"),
        (6, (4, 8), "top right"),
        (7, (4, 8), "bottom right"),
        (8, (4, 8), "bottom left"),
    ],
)
def test_exif_orientation_is_applied_once(orientation: int, size: tuple[int, int], corner: str) -> None:
    """The stored upper left quarter appears where the orientation puts it, and stays there."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for kind, mode in itertools.product(["JPEG", "PNG", "TIFF", "WEBP"], ["RGB", "L"]):
        upright = to_rgb(stored_and_read(white_corner(mode), kind, exif))
        for image in (upright, to_rgb(upright)):
            assert (image.size, where_white(image)) == (size, [corner]), (kind, mode)


def exif_bytes(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of (tag, type, count, four bytes of value), big-endian."""
    rows = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries)) + rows + b"\0\0\0\0"


TURNED = (ORIENTATION, 3, 1, struct.pack(">HH", 6, 0))  # type 3: a number of 16 bits
TEXT_FOR_A_NUMBER = (0x0128, 2, 2, b"x\0\0\0")  # ResolutionUnit, as text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (exif_bytes(TURNED), (4, 8)),
        (exif_bytes(TURNED, TEXT_FOR_A_NUMBER), (4, 8)),
        (exif_bytes((ORIENTATION, 3, 1, struct.pack(">HH", 9, 0))), (8, 4)),
        (exif_bytes((ORIENTATION, 2, 2, b"6\0\0\0")), (8, 4)),
        (b"Exif\0\0not EXIF at all", (8, 4)),
    ],
    ids=["whole", "another entry is damaged", "no such orientation", "an orientation in letters", "no EXIF"],
)
def test_damaged_exif_data_spoils_no_image(kind: str, exif: bytes, size: tuple[int, int]) -> None:
    assert to_rgb(stored_and_read(white_corner(), kind, exif)).size == size


def test_transparency_survives_being_turned() -> None:
    stored = with_transparency(white_corner(), BLACK)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored.paste((1, 2, 3), (4, 0, 8, 4))
    upright = to_rgb(stored_and_read(stored, "PNG", exif))
    assert upright.getpixel((0, 0)) == WHITE  # black that cannot be seen, on white
    assert upright.getpixel((0, 7)) == (1, 2, 3)
    assert upright.mode == "RGB"
