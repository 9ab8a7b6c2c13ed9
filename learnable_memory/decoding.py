"""Decoding no more of a large JPEG than a model is shown: the format can be read at 1/2, 1/4 and 1/8 of its size."""

from PIL import Image


def reduce_decoding(image: Image.Image, side: int) -> None:
    """Have an image that was opened and not yet decoded be decoded at a smaller scale, if its format can.

    The smallest scale is taken at which both sides keep at least `side` pixels. An image that is decoded already, and
    one of another format than JPEG, stays as it is.

    Args:
        side: 0: nothing is done.
    """
    if side:
        image.draft(None, (side, side))  # None keeps the mode
