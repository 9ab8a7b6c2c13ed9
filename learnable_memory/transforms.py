"""From a PIL image to the pixels that a base model was trained on.

`Preprocessing` holds all numbers that decide what the model sees, read from the base's own HuggingFace processor. It is
saved with every head, and two heads share a forward pass only if their hashes are equal.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2

from learnable_memory.batch_transform import BatchTransform, Step
from learnable_memory.decoding import reduce_decoding
from learnable_memory.processors import RESAMPLE_NAMES, settings_of
from learnable_memory.rgb import to_rgb

INTERPOLATION = {
    # Pillow's nearest takes the pixel under the centre, which torchvision calls "exact"; so does HuggingFace.
    "nearest": v2.InterpolationMode.NEAREST_EXACT,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
    "lanczos": v2.InterpolationMode.LANCZOS,
}
VIEWS = ("resized_crop_flip", "crop_flip", "flip", "shift")
LEGACY = "legacy-2023"  # what the heads of the 2023 implementation were trained on
OPTIONAL = {"rounded": True, "scaled_decoding": 0}  # what older heads do not say, and what they mean by that
SCALED_DECODING = 2  # of new heads
BATCH_VIEWS = ("crop_flip", "flip", "shift")  # all crops of a batch have one size: they can be made in one go

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels are made for a base: everything that changes the numbers, nothing else.

    The image is resized to `resize`, its centre of `height` x `width` is cut out, and each channel c becomes
    `(value * rescale - mean[c]) / std[c]`, with values 0..255.

    Attributes:
        height: of what the model sees, in pixels.
        width: of the same, in pixels.
        resample: "nearest", "bilinear", "bicubic" or "lanczos", all antialiased but the first.
        rescale: factor for the values 0..255; usually 1/255.
        mean: three numbers; (0, 0, 0) where the base's processor does not normalise.
        std: three numbers; (1, 1, 1) there.
        resize: two numbers, (height, width): the whole image is stretched to them; one number: the shorter side becomes
            that long and the aspect stays. Left out: (height, width), so that nothing is cut away.
        rounded: whether values are whole numbers after resizing, as they are in images. DINOv3's processor rescales
            before it resizes, so that they are not.
        scaled_decoding: JPEG files are decoded at the smallest of the scales 1/8, 1/4, 1/2 and 1 at which both sides
            have at least this many times the pixels of the longest of `resize`, for training and evaluation alike; 0:
            always as large as they are.

    Raises:
        ValueError: a number out of range, an unknown `resample`, or a crop larger than the resized image.
    """

    height: int
    width: int
    resample: str
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[int, ...] = ()
    rounded: bool = True
    scaled_decoding: int = 0

    def __post_init__(self) -> None:
        # Equal preprocessing must have an equal hash, so 0 and 0.0, a list and a tuple become one.
        object.__setattr__(self, "height", int(self.height))
        object.__setattr__(self, "width", int(self.width))
        resize = tuple(self.resize) or (self.height, self.width)
        object.__setattr__(self, "resize", tuple(int(side) for side in resize))
        object.__setattr__(self, "rescale", float(self.rescale))
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        self._check()

    def _check(self) -> None:
        if self.resample not in INTERPOLATION:
            raise ValueError(f"resample is {self.resample!r}; legal: {', '.join(INTERPOLATION)}")
        if len(self.resize) > 2 or min(self.height, self.width, *self.resize) < 1:
            raise ValueError(
                f"height {self.height}, width {self.width} and resize {self.resize}: sides are at least 1 pixel, "
                "and resize is (shorter side,) or (height, width)"
            )
        if type(self.scaled_decoding) is not int or self.scaled_decoding < 0:
            raise ValueError(f"scaled_decoding is {self.scaled_decoding!r}; legal: 0, or a whole number above it")
        if len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std or self.rescale <= 0:
            raise ValueError(
                f"rescale {self.rescale}, mean {self.mean}, std {self.std}: rescale must be positive, "
                "mean and std three numbers each, std without zeros"
            )
        if self.height > self.resize[0] or self.width > self.resize[-1]:
            raise ValueError(
                f"the crop of {self.height}x{self.width} is larger than the image resized to {self.resize}: "
                "the rest would be black; make resize at least as large"
            )

    @classmethod
    def from_processor(cls, processor: Any) -> "Preprocessing":
        """The preprocessing of a HuggingFace image processor (ViT, DeiT, BEiT, CLIP, SigLIP, DINOv3 and the like).

        Raises:
            ValueError: the processor does something that these fields cannot express; the message names the key.
        """
        return cls(**settings_of(processor))

    def at(self, size: int) -> "Preprocessing":
        """The same for images of size x size pixels: what is cut away stays the same share of the image."""
        resize: tuple[int, ...]
        if len(self.resize) == 1:
            resize = (round(self.resize[0] * size / min(self.height, self.width)),)
        else:
            resize = round(self.resize[0] * size / self.height), round(self.resize[1] * size / self.width)
        return replace(self, height=size, width=size, resize=resize)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, and the exact input of `from_dict`.

        Without what is optional where it says nothing: so the hash is the one that heads had before there was any.
        """
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if name not in OPTIONAL or value != OPTIONAL[name]}

    def to_processor(self) -> Any:
        """A HuggingFace image processor that makes these pixels, as `transformers.pipeline` takes one.

        It is given images, and cannot say at which scale they are decoded.
        """
        from transformers import CLIPImageProcessor, DINOv3ViTImageProcessor  # ViT's own cannot cut the centre out

        names = ("shortest_edge",) if len(self.resize) == 1 else ("height", "width")
        return (CLIPImageProcessor if self.rounded else DINOv3ViTImageProcessor)(
            do_center_crop=True,
            size=dict(zip(names, self.resize, strict=True)),
            crop_size={"height": self.height, "width": self.width},
            resample=next(number for number, name in RESAMPLE_NAMES.items() if name == self.resample),
            rescale_factor=self.rescale,
            image_mean=list(self.mean),
            image_std=list(self.std),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if values.keys() | OPTIONAL.keys() != names:
            needed = names - OPTIONAL.keys()
            raise ValueError(
                f"preprocessing needs exactly the keys {sorted(needed)}, and may have {', '.join(sorted(OPTIONAL))}; "
                f"missing: {sorted(needed - values.keys())}, unknown: {sorted(values.keys() - names)}"
            )
        return cls(**values)

    @classmethod
    def of_head(cls, metadata: Mapping[str, Any]) -> "Preprocessing | None":
        """What a head's metadata says of its pixels; None if it says nothing. Raises ValueError as `from_dict`."""
        settings = metadata.get("preprocessing")
        return cls.from_dict(settings) if settings else None

    @property
    def name(self) -> str | None:
        """`LEGACY`, if these are its numbers: the whole image stretched, bilinear, to values in [0, 1]."""
        legacy = Preprocessing(self.height, self.width, "bilinear", 1 / 255, mean=(0, 0, 0), std=(1, 1, 1))
        return LEGACY if self == legacy else None

    @property
    def words(self) -> str:
        """In words, for people: what is done to an image, in order."""
        if self.name:
            return f"{self.name}: resized to {self.height}x{self.width} ({self.resample}), values in [0, 1]"
        sides = f"{self.resize[0]}x{self.resize[1]}" if len(self.resize) == 2 else f"shorter side {self.resize[0]}"
        cut = "" if self.resize == (self.height, self.width) else f", centre {self.height}x{self.width}"
        numbers = [" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
        how = self.resample if self.rounded else f"{self.resample}, not rounded"
        scale = f", JPEG decoded at {self.scaled_decoding} times that or more" if self.scaled_decoding else ""
        return f"resized to {sides} ({how}){scale}{cut}, mean {numbers[0]}, std {numbers[1]}"

    @property
    def hash(self) -> str:
        """16 hex characters that two preprocessings share only if they make the same pixels of every image."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def decoded_side(self) -> int:
        """What both sides of a JPEG are decoded to at least, in pixels; 0: as large as they are."""
        return self.scaled_decoding * max(self.resize)

    @property
    def of_decoded(self) -> "Preprocessing":
        """What is done to an image once it is decoded: the same for all that differ in decoding only."""
        return replace(self, scaled_decoding=0)

    def eval_transform(self) -> "ImageTransform":
        """What the base's own processor does: any PIL image -> float32 [3, height, width], without randomness."""
        return ImageTransform([*self._steps(None), self._normalize()], self.decoded_side)

    def train_transform(self, views: str) -> "ImageTransform":
        """A random view of any PIL image -> float32 [3, height, width]; draws from torch's global CPU generator.

        Args:
            views: "resized_crop_flip": a random 8 to 100 percent of the image, resized, mirrored half of the time
                (Szegedy et al. 2015, the paper's choice); "crop_flip": resized to 8/7 of the size, a random crop of the
                size, mirrored half of the time (the paper's choice for CIFAR-100); "flip": the whole image,
                mirrored half of the time, for objects that fill it; "shift": moved by up to a sixteenth of the size,
                the border repeated, never mirrored, for classes that a mirror changes (digits).

        Raises:
            ValueError: unknown `views`.
        """
        if views not in VIEWS:
            raise ValueError(f"views is {views!r}; legal: {', '.join(VIEWS)}")
        return ImageTransform([*self._steps(views), self._normalize()], self.decoded_side)

    def batch_transform(self, views: str | None) -> BatchTransform:
        """`train_transform(views)`, or `eval_transform()` for None, of many images of one size at a time.

        Raises:
            ValueError: `views` is neither None nor one of `BATCH_VIEWS`.
        """
        if views is not None and views not in BATCH_VIEWS:
            raise ValueError(f"views is {views!r}; legal for batches: {', '.join(BATCH_VIEWS)}")
        return BatchTransform(self._steps(views), (self.height, self.width), self._normalize())

    def _steps(self, views: str | None) -> list[Step]:
        """uint8 [.., 3, H, W] -> [.., 3, height, width]: uint8 if `rounded`, else rescaled float32.

        A random crop and a flip come last, in this order.
        """
        return [*([] if self.rounded else [_Rescale(self.rescale)]), *self._resizing(views)]

    def _resizing(self, views: str | None) -> list[Step]:
        size, interpolation = (self.height, self.width), INTERPOLATION[self.resample]
        flip = [v2.RandomHorizontalFlip()]
        if views == "resized_crop_flip":
            crop = v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=interpolation, antialias=True)
            return [crop, *flip]
        if views == "crop_flip":
            return [v2.Resize(self._room_for_crops(), interpolation, antialias=True), v2.RandomCrop(size), *flip]
        whole = [v2.Resize(list(self.resize), interpolation, antialias=True), _CenterCrop(*size)]
        if views == "shift":
            room = [self.width // 16, self.height // 16]  # left and right, above and below
            return [*whole, v2.Pad(room, padding_mode="edge"), v2.RandomCrop(size)]
        return whole + flip if views == "flip" else whole

    def _room_for_crops(self) -> list[int]:
        """`resize`, enlarged where it leaves a random crop less room than 8/7 of the size (256 for 224)."""
        if len(self.resize) == 1:
            return [max(self.resize[0], _eight_sevenths(max(self.height, self.width)))]
        return [max(self.resize[0], _eight_sevenths(self.height)), max(self.resize[1], _eight_sevenths(self.width))]

    def _normalize(self) -> "_Normalize":
        return _Normalize(self.rescale if self.rounded else 1.0, self.mean, self.std)


class ImageTransform:
    """Any PIL image -> float32 [3, height, width], for a model.

    Args:
        steps: uint8 [3, H, W] -> float32 [3, height, width].
        decoded_side: as of `Preprocessing`; who decodes the images for it has to ask for it. An image that `Image.open`
            gave and that nobody has looked at is decoded so here, and has the smaller size from then on.
    """

    def __init__(self, steps: list[Step], decoded_side: int) -> None:
        self.decoded_side, self._steps = decoded_side, v2.Compose(steps)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The pixels, float32 [3, height, width]."""
        reduce_decoding(image, self.decoded_side)
        return self._steps(_to_pixels(image))


def _to_pixels(image: Image.Image) -> torch.Tensor:
    """Any PIL image -> uint8 [3, H, W]; contiguous, because resizing picks its kernel by the layout."""
    return v2.functional.pil_to_tensor(to_rgb(image)).contiguous()


class _CenterCrop:
    """[.., 3, H, W] -> its centre. Odd margins are rounded down as HuggingFace does; torchvision rounds to even."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        top, left = (pixels.shape[-2] - self.height) // 2, (pixels.shape[-1] - self.width) // 2
        return pixels[..., top : top + self.height, left : left + self.width]


class _Rescale:
    """uint8 [.., 3, H, W] -> float32, times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * self.factor


class _Normalize:
    """uint8 or float32 [.., 3, H, W] -> float32.

    (x * rescale - mean) / std as (x - mean / rescale) / (std / rescale), in one pass.
    """

    def __init__(self, rescale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        # In float32 from the start, as HuggingFace's processors do, for the same last bit.
        self.mean = torch.tensor(mean)[:, None, None] * (1.0 / rescale)  # [3, 1, 1]
        self.std = torch.tensor(std)[:, None, None] * (1.0 / rescale)  # [3, 1, 1]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.mean.device != pixels.device:  # copied once and kept: a copy in each batch would wait for the GPU
            self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return pixels.to(torch.float32).sub_(self.mean).div_(self.std)


def _eight_sevenths(side: int) -> int:
    return round(side * 8 / 7)
