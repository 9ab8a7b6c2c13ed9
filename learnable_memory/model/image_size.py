"""The size of the images that a model takes, and what follows from it."""

import inspect
from collections.abc import Sequence
from typing import Any

from learnable_memory.model.families import Anatomy
from learnable_memory.model.mixin import Stock


class ImageSize(Stock):
    """A mixin over a stock class."""

    anatomy: Anatomy
    encoder_module: Any
    _image_size: tuple[int, int] | None

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that the model takes, in pixels."""
        return self._image_size or self.anatomy.native_size

    def set_image_size(self, size: int | Sequence[int]) -> None:
        """Take images of another size from now on: positions are resized as the base's family does it.

        Weights, fingerprint and heads stay as they are.

        Args:
            size: (height, width) in pixels, or one number for both.

        Raises ValueError if they are not multiples of the patch size, or the base's positions cannot be resized.
        """
        height, width = (size, size) if isinstance(size, int) else size
        patch_height, patch_width = self.anatomy.patch_size
        if min(height, width) < 1 or height % patch_height or width % patch_width:
            raise ValueError(
                f"Images of {height}x{width} pixels cannot be cut into patches of {patch_height}x{patch_width}: "
                f"take multiples of these, such as {max(1, round(height / patch_height)) * patch_height}x"
                f"{max(1, round(width / patch_width)) * patch_width}."
            )
        native = self.anatomy.native_size
        if (height, width) != native:
            kind = type(self.encoder_module).__name__
            if not (self.anatomy.family.resizes or self._takes_interpolation() or self._is_native()):
                raise ValueError(f"A {kind} takes images of {native[0]}x{native[1]} pixels and no others.")
            if native[0] != native[1] and self.anatomy.has_positions(self.encoder_module):
                raise ValueError(
                    f"HuggingFace resizes positions of square images only; this {kind} takes {native[0]}x{native[1]}."
                )
        self._image_size = (height, width)

    def _is_native(self) -> bool:
        return bool(getattr(self.encoder_module.config, "is_native", False))  # AIMv2: positions computed, not learned

    def _takes_interpolation(self) -> bool:
        kind = type(self.encoder_module)
        return "interpolate_pos_encoding" in inspect.signature(getattr(kind, "stock", kind).forward).parameters

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(rows, columns) of patches in an image of the present size."""
        patch_height, patch_width = self.anatomy.patch_size
        height, width = self.image_size
        return height // patch_height, width // patch_width

    @property
    def num_tokens(self) -> int:
        """N, the base's tokens of an image of the present size."""
        rows, columns = self.patch_grid
        return self.anatomy.special + rows * columns

    def _check_size(self, height: int, width: int) -> bool:
        """Whether positions have to be resized for images of the model's size. Raises ValueError for another size."""
        if (height, width) != self.image_size:
            raise ValueError(
                f"The images have {height}x{width} pixels, but the model takes {self.image_size[0]}x"
                f"{self.image_size[1]}. Resize them, or the model with set_image_size."
            )
        return self.image_size != self.anatomy.native_size
