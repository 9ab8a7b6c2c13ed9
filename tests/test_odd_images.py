"""Images of every odd kind become RGB, upright and in their colours; enormous ones are named with the limit."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from learnable_memory.images import ImageFiles, ImageSet
from learnable_memory.rgb import to_rgb
from learnable_memory.transforms import VIEWS, Preprocessing
from odd_images import (
    COLOURS,
    HEIGHT,
    WIDTH,
    image_set,
    seen,
    write_broken_files,
    write_odd_images,
    write_slim_images,
)

PREPROCESSING = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LOSSY = 12  # of 255: what JPEG may change in the middle of a flat quarter; a wrong quarter is 85 away or more


# ----------------------------------------------------------------------------------------------------------- odd images
def test_every_odd_kind_is_read_upright_and_in_its_colours(tmp_path: Path) -> None:
    expected = write_odd_images(tmp_path)
    assert len(expected) == 22
    images = image_set(tmp_path, list(expected))
    for index, (name, colours) in enumerate(expected.items()):
        image = to_rgb(images.image(index))
        assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT)), name
        off = np.abs(np.subtract(seen(image), colours)).max()
        assert off <= (LOSSY if name.endswith(".jpg") else 0), name


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.jpg", "L"),
        ("bits.png", "1"),
        ("palette.png", "P"),
        ("palette_transparent.png", "P"),
        ("rgba.png", "RGBA"),
        ("grey_alpha.png", "LA"),
        ("grey16.png", "I"),  # of 16 bits, which older Pillow does not say
        ("grey16.tif", "I"),
        ("colour16.png", "RGB"),  # Pillow keeps the upper 8 bits of 16-bit colour
        ("cmyk.jpg", "CMYK"),
        ("animated.gif", "P"),
        ("photo.webp", "RGB"),
    ],
)
def test_the_odd_files_are_as_odd_as_they_say(tmp_path: Path, name: str, mode: str) -> None:
    write_odd_images(tmp_path)
    assert image_set(tmp_path, [name]).image(0).mode.removesuffix(";16") == mode


def adobe_jpeg(samples: tuple[int, int, int, int]) -> bytes:
    """A CMYK JPEG of 8x8 equal pixels as Adobe's programs write it, made without Pillow (ITU-T T.81, annex B).

    One block for each ink: the quantised mean in as many bits as it takes, behind their number in four, and a 0 that
    ends the block.
    """

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    bits = ""
    for sample in samples:
        mean = sample - 128  # the block's mean times 8, over the quantiser's 8
        size = abs(mean).bit_length()
        bits += f"{size:04b}" + (f"{mean if mean > 0 else mean + 2**size - 1:0{size}b}" if size else "") + "0"
    bits += "1" * (-len(bits) % 8)
    coded = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    inks = range(1, 5)
    means_table = b"\x00" + bytes([0, 0, 0, 9] + [0] * 12) + bytes(range(9))  # nine codes of four bits: sizes 0 to 8
    rest_table = b"\x10" + bytes([1] + [0] * 15) + b"\0"  # one code: the block ends
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0)),  # the last 0: the inks themselves
            segment(0xDB, b"\0" + bytes([8] * 64)),
            segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 4) + b"".join(bytes([ink, 0x11, 0]) for ink in inks)),
            segment(0xC4, means_table),
            segment(0xC4, rest_table),
            segment(0xDA, b"\x04" + b"".join(bytes([ink, 0]) for ink in inks) + b"\0\x3f\0"),
            coded,
            b"\xff\xd9",
        ]
    )


@pytest.mark.parametrize("colour", [*COLOURS, (10, 200, 90)])
def test_photographs_in_ink_are_no_negatives(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """Adobe stores 255 for no ink and says so nowhere but in its own marker: the samples are red, green, blue again."""
    (tmp_path / "cmyk.jpg").write_bytes(adobe_jpeg((*colour, 255)))
    image = image_set(tmp_path, ["cmyk.jpg"]).image(0)
    assert image.mode == "CMYK"
    assert (np.asarray(to_rgb(image)) == colour).all()


@pytest.mark.parametrize("views", [None, *VIEWS])
@pytest.mark.parametrize("name", ["dot.png", "thin.png", "flat.png"])
def test_slim_images_fill_every_view(tmp_path: Path, name: str, views: str | None) -> None:
    write_slim_images(tmp_path)
    transform = PREPROCESSING.train_transform(views) if views else PREPROCESSING.eval_transform()
    view = transform(image_set(tmp_path, [name]).image(0))
    assert view.shape == (3, 16, 16)
    assert torch.equal(view, torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 16, 16))  # red everywhere


# ------------------------------------------------------------------------------------------------------ enormous images
def test_an_enormous_image_is_named_with_the_limit(tmp_path: Path) -> None:
    write_broken_files(tmp_path)
    with pytest.raises(ValueError) as caught:
        image_set(tmp_path, ["enormous.png"]).image(0)
    message = str(caught.value)
    assert message.startswith(
        f"the image {tmp_path / 'enormous.png'} is too large to be decoded (Image size (2500000000 "
    )
    assert "PIL's Image.MAX_IMAGE_PIXELS" in message and "\n" not in message


def test_an_image_between_the_limit_and_twice_the_limit_is_read_and_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (15, 10), COLOURS[0]).save(tmp_path / "large.png")
    images = image_set(tmp_path, ["large.png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(Image.DecompressionBombWarning):
        assert images.image(0).size == (15, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 74)  # 150 pixels are more than twice as many
    with pytest.raises(ValueError, match=r"large\.png is too large to be decoded"):
        images.image(0)


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK", "RGB"])
def test_uncompressed_tiffs_are_upright_from_files_too(tmp_path: Path, mode: str) -> None:
    """PIL maps some of them when it is given a path, and forgets the orientation."""
    image = Image.new("I;16" if mode == "I;16" else mode, (20, 10))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn
    image.save(tmp_path / "turned.tif", exif=exif)
    stored = ImageSet(ImageFiles(tmp_path, ["turned.tif"]), np.zeros(1)).image(0)
    assert to_rgb(stored).size == (10, 20)
