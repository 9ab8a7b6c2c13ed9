"""What training and validation do alike before they start: the device, the base, and its preprocessing."""

import logging
from pathlib import Path

import torch
import transformers

from learnable_memory.bases import convert, find_base, is_huggingface, preprocessing_of, read_config, refuse
from learnable_memory.config import RunOptions
from learnable_memory.methods import TunedModel
from learnable_memory.progress import hide_bars_of_libraries
from learnable_memory.transforms import Preprocessing
from learnable_memory.wording import counted
from vit import MemoryCapableViT

logger = logging.getLogger(__name__)


def start_logging() -> None:
    """Messages of this project on stderr; those of the libraries only if something is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("learnable_memory").setLevel(logging.INFO)
    transformers.utils.logging.disable_progress_bar()
    hide_bars_of_libraries()


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ValueError for a device that this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device is {name}, which this machine does not have ({reason}): use cpu or auto.") from None


def advise_bfloat16(device: torch.device) -> None:
    """Say it where the processor that is going to compute in float32 has units for something several times as fast."""
    if device.type == "cpu" and has_bfloat16_units():
        logger.info(
            "This processor has matrix units for bfloat16: --precision bfloat16 would be several times as fast, and "
            "change answers by rounding."
        )


def has_bfloat16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies matrices of bfloat16 (AMX, or AVX-512's dot products); False where unknown."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def check_channels(base: str, channels: int) -> None:
    """Raise ValueError for a base that takes something else than the three channels that images are given in."""
    if channels != 3:
        raise ValueError(
            f"{base} takes images of {counted(channels, 'channel')}, and they are given to a base in 3, grey ones too: "
            "choose a base for RGB images."
        )


def open_base(
    base: str,
    cache_dir: Path | None = None,
    download: bool = True,
    image_size: int | None = None,
    sized: bool = True,
    own_pixels: bool = True,
) -> tuple[MemoryCapableViT, Preprocessing]:
    """A base of any family by name, frozen and without heads, and how its pixels are made; the model takes their size.

    Args:
        base: a name on the hub, a folder, or a checkpoint file; see `bases.convert` for what it may hold.
        cache_dir: a HuggingFace cache; HuggingFace's own if left out.
        download: whether it may be fetched from the hub.
        image_size: the side of the images in pixels; None for the base's own.
        sized: whether the model is to take images of that size at once; heads may ask for others.
        own_pixels: whether its own preprocessing will be used; heads may all bring theirs.

    Raises:
        ValueError: it cannot be a base, it is damaged, or it cannot take images of this size.
        FileNotFoundError: it is neither here nor reachable.
    """
    place = find_base(base, cache_dir, download)
    if is_huggingface(place):
        refuse(read_config(place))
        model = MemoryCapableViT.from_pretrained(place)
        for name in reversed(model.head_names):  # a folder with heads of its own serves as a base all the same
            model.remove_head(name)
    else:
        model = MemoryCapableViT.from_base(convert(place))
    check_channels(base, model.anatomy.channels)
    model.base_id = base  # not the folder in the cache
    preprocessing = preprocessing_of(place, model, own_pixels)
    if image_size is not None:
        preprocessing = preprocessing.at(image_size)
    if sized:
        try:
            model.set_image_size((preprocessing.height, preprocessing.width))
        except ValueError as error:
            whose = "The base's own images do not fit it" if image_size is None else f"--image_size is {image_size}"
            raise ValueError(f"{whose}. {error} Choose a size with --image_size.") from None
    return model, preprocessing


def check_no_attention(base: str, options: RunOptions) -> None:
    """Raise ValueError if a run on a convolutional network is told how to compute attention."""
    if options.attn_implementation:
        raise ValueError(f"{base} is a convolutional network, without attention: leave --attn_implementation out.")


def check_with_base(model: MemoryCapableViT | TunedModel) -> None:
    """Raise ValueError if `--with_base` asks a base for answers that has none."""
    if not model.has_base_classifier:
        raise ValueError(f"{model.base_id} has no classifier, so it has no answers of its own: leave --with_base.")


def choose_attention(model: MemoryCapableViT, implementation: str, precision: str) -> None:
    """Let the base's attention be computed so. Raises ValueError if it cannot be, here or in this precision."""
    device = next(model.parameters()).device.type
    if implementation == "flash_attention_2" and (precision != "bfloat16" or device == "cpu"):
        raise ValueError(
            f"--attn_implementation {implementation} does not work here: it needs bfloat16 on a GPU, and this is "
            f"{precision} on {device}. Choose sdpa or eager, or give --precision and --device."
        )
    try:
        model.set_attn_implementation(implementation)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--attn_implementation {implementation} does not work here: {reason}") from None


def autocast_of(options: RunOptions) -> torch.dtype | None:
    """The arithmetic of weights that are kept in float32 because they are learned; None for float32."""
    precision = options.precision or "float32"
    return None if precision == "float32" else getattr(torch, precision)


def load_base(
    base: str,
    options: RunOptions,
    device: torch.device | None = None,
    image_size: int | None = None,
    sized: bool = True,
    own_pixels: bool = True,
    exact: bool = False,
) -> tuple[MemoryCapableViT, Preprocessing]:
    """`open_base`, as a run's options say; `device` stands for theirs.

    Args:
        exact: its weights are float32 and not compiled, because they are to be learned: the precision is then a matter
            of autocast, and what is compiled is the network that is made of them.
    """
    model, preprocessing = open_base(base, options.base_cache, not options.no_download, image_size, sized, own_pixels)
    precision = options.precision or "float32"
    # A copy in bfloat16 instead of autocast, which would convert the frozen weights again in every step.
    model.to(device or resolve_device(options.device), torch.float32 if exact else getattr(torch, precision))
    if options.attn_implementation:
        choose_attention(model, options.attn_implementation, precision)
    if options.compile and not exact:
        model.compile()
    return model, preprocessing
