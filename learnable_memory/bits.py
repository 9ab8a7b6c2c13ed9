"""Answers that are right or wrong as text of a bit an image: `eval_right` of a results file."""

import base64
import binascii

import numpy as np


def pack_bits(right: np.ndarray) -> str:
    """bool [images] -> base64 of `numpy.packbits`: the first image is the highest bit.

    Raises ValueError for anything but one row of booleans.
    """
    right = np.asarray(right)
    if right.ndim != 1 or right.dtype != bool:
        raise ValueError(f"right is {right.dtype} {list(right.shape)}, but it has to be bool [images].")
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack_bits(text: str, images: int) -> np.ndarray:
    """What `pack_bits` was given, bool [images].

    Raises ValueError if the text is not of so many images.
    """
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except binascii.Error:
        raise ValueError(f"the answers {text[:20]!r}.. are not base64: they were not written by pack_bits.") from None
    if len(packed) != -(-images // 8):
        raise ValueError(f"the answers are {len(packed)} bytes, but {images} images take {-(-images // 8)}.")
    return np.unpackbits(packed, count=images).astype(bool)
