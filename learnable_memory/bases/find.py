"""Where a base is: a folder, a file, the hub's cache, or a download; and what kind of files it has."""

import json
import logging
from pathlib import Path

from learnable_memory.wording import in_one_line

logger = logging.getLogger(__name__)

SHIPPED_BASE = "models/base-tiny"

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the second of a model with a tokenizer
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # best first; a sharded one has NAME.index.json instead
CHECKPOINTS = (".bin", ".npz", ".pt", ".pth", ".safetensors", ".tar")  # endings that no model on the hub has
NETWORK_TIMEOUT = 5.0  # seconds to the hub's first answer: enough to tell whether there is a network


# ------------------------------------------------------------------------------------------------------- what it is
def is_huggingface(place: Path) -> bool:
    """Whether this is a folder in HuggingFace's layout, of any model; others go through `convert`."""
    return place.is_dir() and "model_type" in read_config(place)


def is_timm(place: Path) -> bool:
    """Whether this is a folder in timm's layout, whose config.json names an architecture and no model type."""
    return place.is_dir() and "architecture" in read_config(place) and not is_huggingface(place)


def has_processor(folder: Path) -> bool:
    """Whether a folder says how its pixels are made."""
    return any((folder / name).is_file() for name in PROCESSORS)


def read_config(folder: Path) -> dict:
    """The folder's config.json. Raises ValueError if it is damaged, OSError if there is none."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
        return config
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}): replace it") from None


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
        place = Path(__file__).resolve().parents[2] / SHIPPED_BASE
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
    if cached and (has_processor(cached) or is_timm(cached)):
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
        logger.warning("%s is in the cache without %s, which could not be fetched (%s)", cached, PROCESSORS[0], reason)
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
    wanted = [CONFIG, *PROCESSORS, *_weight_files(name, files)]
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
