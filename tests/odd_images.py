"""Image files of every odd kind, all with the same four quarters, and files that are no images.

Upright and on white, the upper left quarter is the first of its four colours, the upper right the second, the lower
left the third, the lower right the fourth.
"""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from learnable_memory.images import ImageFiles, ImageSet

HEIGHT, WIDTH = 24, 32
COLOURS = ((255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255))
GREYS = (0, 85, 170, 255)  # what grey kinds have instead
JPEG = {"quality": 95, "subsampling": 0}
ORIENTATION = 0x0112  # the EXIF tag


def quarters(values: Sequence, dtype: type = np.uint8) -> np.ndarray:
    """Four values, or tuples of c values -> [HEIGHT, WIDTH] or [HEIGHT, WIDTH, c]"""
    upper, lower = ([np.asarray(value, dtype=dtype) for value in pair] for pair in (values[:2], values[2:]))
    rows = [[pair[column >= WIDTH // 2] for column in range(WIDTH)] for pair in (upper, lower)]
    return np.array([rows[row >= HEIGHT // 2] for row in range(HEIGHT)])


def seen(image: Image.Image) -> list[tuple[int, ...]]:
    """The middle of each quarter."""
    places = [
        (x, y) for y in (image.height // 4, image.height * 3 // 4) for x in (image.width // 4, image.width * 3 // 4)
    ]
    return [image.getpixel(place) for place in places]


def as_stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright pixels [H, W, 3] as a camera stores them.

    The EXIF standard says of each number which visual side the stored row 0 and the stored column 0 are.
    """
    sides = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    if "bottom" in sides:
        pixels = pixels[::-1]
    if "right" in sides:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if sides[0] in ("left", "right") else pixels)


def write_png(path: Path, height: int, width: int, depth: int, colour_type: int, rows: bytes) -> None:
    """A PNG with these raw rows (each after a zero for its filter); Pillow cannot write 16 bits of colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def write_odd_images(folder: Path) -> dict[str, list[tuple[int, int, int]]]:
    """One file of each kind; returns its name -> the colours of its quarters."""
    grey = Image.fromarray(quarters(GREYS))
    colour = Image.fromarray(quarters(COLOURS))
    deep = quarters(GREYS, np.uint16) * np.uint16(257)
    # what is invisible is black underneath
    see_through = Image.fromarray(quarters([(*colour, 255) for colour in COLOURS[:3]] + [(0, 0, 0, 0)]), "RGBA")
    palette = Image.fromarray(quarters(range(4)), "P")
    palette.putpalette([value for colour in COLOURS[:3] for value in colour] + [255, 255, 255])
    hole = palette.copy()
    hole.putpalette([value for colour in COLOURS[:3] for value in colour] + [0, 0, 0])

    grey.save(folder / "grey.jpg", **JPEG)
    Image.fromarray(quarters((0, 255, 255, 0))).convert("1").save(folder / "bits.png")
    palette.save(folder / "palette.png")
    hole.save(folder / "palette_transparent.png", transparency=3)
    see_through.save(folder / "rgba.png")
    Image.fromarray(quarters([(0, 255), (85, 255), (170, 255), (0, 0)]), "LA").save(folder / "grey_alpha.png")
    Image.fromarray(deep).save(folder / "grey16.png")
    Image.fromarray(deep).save(folder / "grey16.tif")
    rows = quarters(COLOURS, np.uint16) * np.uint16(257)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    write_png(folder / "colour16.png", HEIGHT, WIDTH, 16, 2, raw)
    ink = [(*(255 - value for value in colour), 0) for colour in COLOURS]
    Image.fromarray(quarters(ink), "CMYK").save(folder / "cmyk.jpg", **JPEG)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored = Image.fromarray(as_stored(quarters(COLOURS), orientation))
        stored.save(folder / f"exif{orientation}.jpg", exif=exif, **JPEG)
    black = Image.new("RGB", (WIDTH, HEIGHT))
    colour.save(folder / "animated.gif", save_all=True, append_images=[black, black])
    colour.save(folder / "pages.tif", save_all=True, append_images=[black])
    colour.save(folder / "photo.bmp")
    colour.save(folder / "photo.webp", lossless=True)
    greys = [(value,) * 3 for value in GREYS]
    return {
        **{path.name: list(COLOURS) for path in folder.iterdir()},
        **{name: greys for name in ("grey.jpg", "grey_alpha.png", "grey16.png", "grey16.tif")},
        "bits.png": [(value,) * 3 for value in (0, 255, 255, 0)],
    }


def write_slim_images(folder: Path) -> None:
    for name, size in {"dot": (1, 1), "thin": (1, 500), "flat": (500, 1)}.items():
        Image.new("RGB", size, COLOURS[0]).save(folder / f"{name}.png")


def write_broken_files(folder: Path) -> list[str]:
    """A truncated photograph, an empty file, a text, and an image of 2.5 billion pixels; returns their names."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image\n")
    write_png(folder / "enormous.png", 50_000, 50_000, 8, 2, b"")
    return ["cut.jpg", "empty.jpg", "enormous.png", "text.jpg"]


def image_set(folder: Path, names: list[str]) -> ImageSet:
    """These files as a split of one class."""
    return ImageSet(ImageFiles(folder, names), np.zeros(len(names), dtype=np.int64))
