"""Any image that PIL reads as an upright RGB image of 8 bits."""

import numpy as np
from PIL import ExifTags, Image, ImageCms

TURNS = {  # EXIF orientation -> what makes the stored pixels upright; 1 and unknown numbers: nothing
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as mode "RGB", upright as its EXIF orientation says, transparency on white.

    16-bit grey is scaled to 8 bits, not cut off. Mode "I" is read as 16 bits (this is how Pillow gives PGM and older
    16-bit PNG files), mode "F" as 0..255 (Pillow's own convention).

    Raises:
        ValueError: the values of a mode "I" or "F" image fit neither, so that its white is unknown.
    """
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _deep_grey_to_8_bits(image).convert("RGB")
    if image.mode == "LAB":
        # Older Pillow has no conversion for it.
        lab_to_rgb = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        converted = ImageCms.applyTransform(image, lab_to_rgb)
        assert converted is not None  # as it is only where the image itself is changed
        return converted
    if image.mode == "La":
        image = image.convert("LA")  # the only way out of premultiplied grey
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; EXIF data that cannot be read counts as none, as in every viewer.

    Not `ImageOps.exif_transpose`: that also writes new EXIF data, and fails where any entry of the old one is damaged.
    """
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # PIL's parser raises anything from SyntaxError to struct.error
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    # The orientation must not stay, or the image would be turned again; transparency still counts.
    turned.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return turned


def _deep_grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Modes "I;16", "I;16B", .., "I" and "F" -> mode "L"."""
    values = np.asarray(image).astype(np.float64)  # [H, W]
    low, high = values.min(), values.max()
    white = 255.0 if image.mode == "F" else 65535.0
    # Floats within 0..1 most likely mean 1 for white, but a very dark image looks the same: not ours to guess.
    unclear = image.mode == "F" and 0 < high <= 1
    if unclear or not (low >= 0 and high <= white):
        raise ValueError(
            f"an image of mode {image.mode!r} holds values from {low:g} to {high:g}, expected 0 to {white:g}: "
            "save it with 8 or 16 bits"
        )
    return Image.fromarray(np.round(values * (255.0 / white)).astype(np.uint8))
