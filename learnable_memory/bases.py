"""Base models: from a name or a path to files on disk, what kind of model they are, and which pixels it expects."""

import json
import logging
from pathlib import Path
from typing import Any

from learnable_memory import families
from learnable_memory.families import PlainViT
from learnable_memory.transforms import Preprocessing
from learnable_memory.wording import in_one_line

logger = logging.getLogger(__name__)

SHIPPED_BASE = "models/base-tiny"

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # best first; a sharded one has NAME.index.json instead
CHECKPOINTS = (".bin", ".npz", ".pt", ".pth", ".safetensors", ".tar")  # endings that no model on the hub has
NETWORK_TIMEOUT = 5.0  # seconds to the hub's first answer: enough to tell whether there is a network


# ------------------------------------------------------------------------------------------------------- what it is
def is_stock(place: Path) -> bool:
    """Whether `MemoryCapableViT.from_pretrained` reads this base itself; others go through `convert`."""
    return place.is_dir() and read_config(place).get("model_type") == "vit"


def convert(place: Path) -> PlainViT:
    """A base of another family as a plain ViT.

    Args:
        place: from `find_base`: a folder in HuggingFace's or timm's layout, a Google `.npz` file, or a PyTorch file
            with timm's names (DeiT, DINO, DINOv2, MAE, MoCo v3).

    Raises:
        ValueError: the files are damaged, or such a model cannot be a base; the message says why.
        ModuleNotFoundError: a timm folder, without timm.
    """
    if place.suffix == ".npz":
        return families.from_npz(place)
    if place.is_file():
        return families.from_checkpoint_file(place)
    if _is_timm(place):
        return families.from_timm(place)
    return families.from_huggingface(place)


def preprocessing_of(place: Path, plain: PlainViT | None = None, used: bool = True) -> Preprocessing:
    """How the pixels of a base are made: as its processor says, or else as is usual in its family, which is logged.

    Args:
        place: from `find_base`.
        plain: what `convert` gave for it, if that was done already.
        used: whether pixels will be made so: if not, nothing is logged.

    Raises:
        ValueError: the processor does something that cannot be expressed, or comes with code of its own; a converted
            base was saved without one.
    """
    if (place / PROCESSOR).is_file():
        return Preprocessing.from_processor(read_processor(place))
    if is_stock(place):
        if read_config(place).get("base_layout"):
            raise ValueError(
                f"{place} was converted from another family than ViT and has no {PROCESSOR}: put there the one of the "
                "model that it was converted from"
            )
        side = read_config(place).get("image_size", 224)
        height, width = (side, side) if isinstance(side, int) else side
        usual, family = Preprocessing(height, width, "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3), "ViT"
    else:
        plain = plain or convert(place)
        usual, family = plain.preprocessing, plain.family
    if used and not (place.is_dir() and _is_timm(place)):  # timm keeps it in the config
        logger.warning("%s has no %s; pixels are made as is usual for %s: %s.", place, PROCESSOR, family, usual.words)
    return usual


def read_processor(folder: Path) -> Any:
    """The processor in a folder, as transformers reads it. Raises ValueError if it cannot."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)  # left out, it would ask
    except (ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot read {folder / PROCESSOR} ({reason}); code that comes with a model is never run: give a processor "
            "that transformers has"
        ) from error


def read_config(folder: Path) -> dict:
    """The folder's config.json. Raises ValueError if it is damaged, OSError if there is none."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
        return config
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}): replace it") from None


def _is_timm(folder: Path) -> bool:
    """timm's config.json names an architecture, HuggingFace's a model type."""
    config = read_config(folder)
    return "architecture" in config and "model_type" not in config


# ------------------------------------------------------------------------------------------------------ where it is
def find_base(name_or_path: str, cache_dir: Path | None = None, download: bool = True) -> Path:
    """The folder of a base model (config, processor and weights), or its one file.

    What the cache has complete is used as it is, without a question to the network.

    Args:
        name_or_path: a folder in HuggingFace's layout, a checkpoint file, or a model's name on the hub.
        cache_dir: a HuggingFace cache; HuggingFace's own if left out.
        download: whether a model that is not in the cache may be fetched from the hub.

    Raises:
        ValueError: a folder without config.json.
        FileNotFoundError: neither a folder, nor a file, nor in the cache, nor reachable.
    """
    place = Path(name_or_path).expanduser()
    if name_or_path == SHIPPED_BASE and not place.is_dir():  # called from another folder than the project's
        place = Path(__file__).resolve().parent.parent / SHIPPED_BASE
        if not place.is_dir():
            raise FileNotFoundError(
                f"the base {SHIPPED_BASE} comes with a clone of the repository, and this is none: clone it, or name "
                "another base"
            )
    if place.is_file():
        return place
    if place.is_dir():
        if not (place / CONFIG).is_file():
            raise ValueError(f"the base model folder {place} has no {CONFIG}; give a folder saved by save_pretrained")
        return place
    if name_or_path.startswith(("/", ".", "~")) or place.suffix in CHECKPOINTS:
        raise _not_found(name_or_path, cache_dir, "a path that is not there")
    cached = _find_in_cache(name_or_path, cache_dir)
    if cached and ((cached / PROCESSOR).is_file() or _is_timm(cached)):
        return cached
    if not download:
        if cached:
            return cached
        raise _not_found(name_or_path, cache_dir, "downloading is off")
    try:
        return _download(name_or_path, cache_dir)
    except Exception as error:  # the hub's network library, and its errors, differ from version to version
        reason = in_one_line(error)
        if not cached:
            raise _not_found(name_or_path, cache_dir, reason) from error
        logger.warning("%s is in the cache without %s, which could not be fetched (%s)", cached, PROCESSOR, reason)
        return cached


def _not_found(name: str, cache_dir: Path | None, reason: str) -> FileNotFoundError:
    place = f" {cache_dir}" if cache_dir else ""
    return FileNotFoundError(
        f"the base model {name!r} is neither a folder nor a file, nor in the cache{place}, nor reachable ({reason}); "
        f"check its name and the network, or take the one that ships: --base_model {SHIPPED_BASE}"
    )


def _find_in_cache(name: str, cache_dir: Path | None) -> Path | None:
    """The cached snapshot of a model, if its config and all of its weights are there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, CONFIG, cache_dir=cache_dir)
    except HFValidationError:  # a path, which no model on the hub can be called
        return None
    if not isinstance(config, str):  # not there, or known not to exist
        return None
    folder = Path(config).parent
    return folder if any(_has_weights(folder, weights) for weights in WEIGHTS) else None


def _has_weights(folder: Path, name: str) -> bool:
    """Whether the weights are there, with all of their shards: an interrupted download leaves some of them."""
    if (folder / name).is_file():
        return True
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return False
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return all((folder / shard).is_file() for shard in shards)


def _download(name: str, cache_dir: Path | None) -> Path:
    """Fetch config, processor and weights in one format from the hub."""
    from huggingface_hub import HfApi, snapshot_download

    # Asked first for the files' names, and because a request with a time limit fails at once where there is no network.
    files = {file.rfilename for file in HfApi().model_info(name, timeout=NETWORK_TIMEOUT).siblings or ()}
    wanted = [CONFIG, PROCESSOR, *_weight_files(name, files)]
    return Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=wanted))


def _weight_files(name: str, files: set[str]) -> list[str]:
    """The files of the best weight format among a repository's files, as patterns: one format, not all of them.

    Raises:
        FileNotFoundError: the repository has neither safetensors nor PyTorch weights.
    """
    for weights in WEIGHTS:
        if weights in files:
            return [weights]
        if f"{weights}.index.json" in files:
            stem, _, suffix = weights.rpartition(".")
            return [f"{weights}.index.json", f"{stem}-*-of-*.{suffix}"]
    raise FileNotFoundError(f"{name} has neither {' nor '.join(WEIGHTS)} on the hub")
