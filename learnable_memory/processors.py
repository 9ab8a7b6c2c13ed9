"""What HuggingFace's image processors do to an image, as the numbers of a `Preprocessing`."""

from typing import Any

RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as processors store them
UNROUNDED = "DINOv3ViTImageProcessor"  # the processor that rescales first
# What `settings_of` reads, and what a processor may say besides without changing the pixels of an RGB image.
_READ = {"do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"}
_READ |= {"do_normalize", "image_mean", "image_std"}
_HARMLESS = {"image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "data_format"}
_HARMLESS |= {"input_data_format", "return_tensors", "device", "disable_grouping", "default_to_square", "pad_size"}
_HARMLESS |= {"auto_map"}  # of another class's code, which is not asked


def settings_of(processor: Any) -> dict[str, Any]:
    """The fields of the `Preprocessing` that makes the pixels of an image processor.

    Raises:
        ValueError: the processor does something that these fields cannot express; the message names the key.
    """
    config = processor.to_dict()
    for key in sorted(config.keys() - _READ - _HARMLESS):
        if not key.startswith("_") and config[key] not in (None, False):
            raise _cannot_express(config, key)
    if not config.get("do_resize"):
        raise _cannot_express(config, "do_resize")
    if config.get("resample") not in RESAMPLE_NAMES:
        raise _cannot_express(config, "resample")
    resize = _sides(config, "size")
    crop = _sides(config, "crop_size") if config.get("do_center_crop") else resize
    if len(crop) != 2:
        # Without a crop the shape would differ from image to image.
        raise _cannot_express(config, "crop_size" if config.get("do_center_crop") else "size")
    normalize, rescale = config.get("do_normalize"), config.get("do_rescale")
    return {
        "height": crop[0],
        "width": crop[1],
        "resample": RESAMPLE_NAMES[config["resample"]],
        "rescale": config["rescale_factor"] if rescale else 1.0,
        "mean": _channels(config, "image_mean") if normalize else (0.0, 0.0, 0.0),
        "std": _channels(config, "image_std") if normalize else (1.0, 1.0, 1.0),
        "resize": resize,
        "rounded": not (rescale and type(processor).__name__.startswith(UNROUNDED)),
    }


def _cannot_express(config: dict[str, Any], key: str) -> ValueError:
    kind = config.get("image_processor_type", "the processor")
    return ValueError(
        f"cannot express {kind} with {key}={config.get(key)!r}: supported are resizing to height and width or to a "
        "shortest_edge (nearest, lanczos, bilinear, bicubic), a centre crop, rescaling and normalising"
    )


def _sides(config: dict[str, Any], key: str) -> tuple[int, ...]:
    """(height, width) or (shortest edge,) of a processor's size."""
    size = config.get(key)
    size = dict(size) if size else {}
    if size.keys() == {"height", "width"}:
        return size["height"], size["width"]
    if size.keys() == {"shortest_edge"}:
        return (size["shortest_edge"],)
    raise _cannot_express(config, key)


def _channels(config: dict[str, Any], key: str) -> tuple[float, ...]:
    """A processor's mean or standard deviation: three numbers, or one for all channels."""
    value = config.get(key)
    if isinstance(value, (int, float)):
        return (value,) * 3
    if value is None or len(value) != 3:
        raise _cannot_express(config, key)
    return tuple(value)
