"""Base models: from a name or a folder to a folder on disk, and its image processor."""

import json
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SHIPPED_BASE = "models/base-tiny"

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # best first; a sharded one has NAME.index.json instead
NETWORK_TIMEOUT = 5.0  # seconds to the hub's first answer: enough to tell whether there is a network


def find_base(name_or_folder: str, cache_dir: Path | None = None, download: bool = True) -> Path:
    """The folder of a base model: config, processor and weights.

    What the cache has complete is used as it is, without a question to the network.

    Args:
        name_or_folder: a folder in HuggingFace's layout, or a model's name on the hub.
        cache_dir: a HuggingFace cache; HuggingFace's own if left out.
        download: whether a model that is not in the cache may be fetched from the hub.

    Raises:
        ValueError: a folder without config.json.
        FileNotFoundError: neither a folder, nor in the cache, nor reachable.
    """
    folder = Path(name_or_folder).expanduser()
    if name_or_folder == SHIPPED_BASE and not folder.is_dir():  # called from another folder than the project's
        folder = Path(__file__).resolve().parent.parent / SHIPPED_BASE
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise ValueError(f"the base model folder {folder} has no {CONFIG}; give a folder saved by save_pretrained")
        return folder
    cached = _find_in_cache(name_or_folder, cache_dir)
    if cached and (cached / PROCESSOR).is_file():
        return cached
    if not download:
        if cached:
            return cached
        raise _not_found(name_or_folder, cache_dir, "downloading is off")
    try:
        return _download(name_or_folder, cache_dir)
    except Exception as error:  # the hub's network library, and its errors, differ from version to version
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if not cached:
            raise _not_found(name_or_folder, cache_dir, reason) from error
        logger.warning("%s is in the cache without %s, which could not be fetched (%s)", cached, PROCESSOR, reason)
        return cached


def load_processor(folder: Path) -> Any:
    """The image processor of a base model's folder.

    Raises:
        FileNotFoundError: the folder has no preprocessor_config.json, so nobody knows which pixels the base expects.
    """
    if not (Path(folder) / PROCESSOR).is_file():
        raise FileNotFoundError(
            f"the base model folder {folder} has no {PROCESSOR}; add the one that the model was trained with "
            f"(ViTImageProcessor(..).save_pretrained({str(folder)!r}) writes it)"
        )
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder)


def _not_found(name: str, cache_dir: Path | None, reason: str) -> FileNotFoundError:
    place = f" {cache_dir}" if cache_dir else ""
    return FileNotFoundError(
        f"the base model {name!r} is neither a folder, nor in the cache{place}, nor reachable ({reason}); "
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
