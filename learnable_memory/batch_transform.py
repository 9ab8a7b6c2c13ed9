"""The views of many images of one size, made at once."""

from collections.abc import Callable

import torch
from torchvision.transforms import v2

Step = Callable[[torch.Tensor], torch.Tensor]


class BatchTransform:
    """The transform of a `Preprocessing` for many images of one size, whose random numbers were drawn before.

    Drawn apart, the numbers of an image can depend on its own seed, while the pixels of all images are moved at once,
    wherever they are. On the CPU the bits are those of the transform for one image. On other devices torchvision
    resizes in float32: bilinear values may be off by one of 255, bicubic and lanczos ones by more at sharp edges, where
    the CPU clips to 0..255 between its two passes.

    Args:
        steps: uint8 [.., 3, H, W] -> uint8 [.., 3, height, width], as `Preprocessing` makes them.
        size: (height, width).
        normalize: uint8 -> float32.
    """

    def __init__(self, steps: list[Step], size: tuple[int, int], normalize: Step) -> None:
        drawing = (v2.RandomCrop, v2.RandomHorizontalFlip)  # what is done here, each image with its own numbers
        self._fixed = v2.Compose([step for step in steps if not isinstance(step, drawing)])
        self._flips = any(isinstance(step, v2.RandomHorizontalFlip) for step in steps)
        self._size, self._normalize = size, normalize
        self._rooms: dict[tuple[int, int], tuple[int, int]] = {}

    def draw(self, height: int, width: int) -> tuple[int, int, int]:
        """The random numbers of one image of this size: (top, left, mirrored), from torch's global CPU generator.

        They are the ones that `v2.RandomCrop` and `v2.RandomHorizontalFlip` draw, in their order, and no others: the
        same seed has to give the same view. Calling those would cost several times as much.
        """
        if (height, width) not in self._rooms:
            large = self._fixed(torch.zeros(3, height, width, dtype=torch.uint8)).shape
            self._rooms[height, width] = large[-2] - self._size[0], large[-1] - self._size[1]
        down, right = self._rooms[height, width]
        top = int(torch.randint(0, down + 1, size=())) if down else 0
        left = int(torch.randint(0, right + 1, size=())) if right else 0
        return top, left, int(self._flips and torch.rand(1).item() < 0.5)

    def __call__(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """The views.

        Args:
            pixels: uint8 [B, 3, H, W].
            draws: int64 [B, 3], rows of `draw(H, W)`, on the device of `pixels`; not looked at for evaluation.

        Returns:
            float32 [B, 3, height, width], on the device of `pixels`.
        """
        pixels = self._fixed(pixels)
        down, right = (large - side for large, side in zip(pixels.shape[-2:], self._size, strict=True))
        if down or right or self._flips:
            pixels = self._crop_and_mirror(pixels, draws, right)
        return self._normalize(pixels)

    def _crop_and_mirror(self, pixels: torch.Tensor, draws: torch.Tensor, right: int) -> torch.Tensor:
        """One gather for all images. What is mirrored is cut out of the mirrored image, for want of negative strides;
        choosing between two crops instead would take longer on a CPU, and picking the mirrored ones waits for a GPU."""
        top, left, mirrored = draws.unbind(1)
        left = torch.where(mirrored > 0, right - left, left)
        images = torch.stack([pixels, pixels.flip(-1)]) if self._flips else pixels[None]
        windows = images.unfold(3, self._size[0], 1).unfold(4, self._size[1], 1)  # [1 or 2, B, 3, tops, lefts, h, w]
        return windows[mirrored, torch.arange(len(pixels), device=pixels.device), :, top, left]  # [B, 3, h, w]
