"""Where bases and data lie on this machine of which head files keep the last part of the path alone.

A run of `vit_train.py` leaves the whole path in the options.json of its folder, beside the head. Whether it is the
right one, the base's fingerprint and the split's hash tell.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from learnable_memory.bases import SHIPPED_BASE
from learnable_memory.public_names import public_name
from learnable_memory.wording import some

RUNS = "*_run/options.json"


def kept_places(dataset: str, base_model: str) -> dict[str, str]:
    """What a run keeps of them: the data set's name in full, the base's path if it is one."""
    base = Path(base_model).expanduser()
    return {"dataset": dataset, "base_model": str(base.resolve()) if base.exists() else base_model}


def find_place(what: str, name: str, folders: Iterable[Path]) -> str | None:
    """The whole name of a base or data set, as a run has kept it in one of the folders; None if none has.

    Args:
        what: "dataset" or "base_model".
        name: as the head file has it.
        folders: where heads lie, the nearest first.

    Raises ValueError if runs in one folder have kept several that are still there.
    """
    for folder in folders:
        kept = {_kept(path).get(what) for path in sorted(folder.glob(RUNS))}
        there = sorted(each for each in kept if each and public_name(each) == name and _path_of(each).exists())
        if len(there) > 1:
            raise ValueError(f"{name} may be {some(there, 4)}, by the runs in {folder}: name the one that is meant.")
        if there:
            return there[0]
    return None


def _kept(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("places", {})
    except (ValueError, OSError, AttributeError):  # half written, or somebody else's
        return {}


def _path_of(name: str) -> Path:
    """The path in a name; of `hf:PATH:CONFIG` too."""
    kind, colon, argument = name.partition(":")
    return Path((argument.partition(":")[0] if kind == "hf" else argument) if colon else name)


def is_path_cut(name: str, source: str | None = None) -> bool:
    """Whether the name of a data set in a head file is the last part of a path, and not a whole name.

    Args:
        source: what the file says was read.
    """
    kind, _, argument = name.partition(":")
    local = kind in ("folder", "parquet") or (kind == "hf" and (source or "").startswith("folder:"))
    return local and not Path(argument).is_absolute()


def place_of_base(base_id: str, folders: Sequence[Path], who: str) -> str:
    """Where the base of a head file is: its name on the hub, or a path here.

    Args:
        base_id: as the file has it.
        folders: where heads lie, the nearest first.
        who: the file, for an error.

    Raises ValueError if it is the last part of a path, and nothing tells which one.
    """
    if "/" in base_id or Path(base_id).exists():
        return base_id
    near = (place / base_id for folder in folders for place in (folder, folder.resolve().parent))
    beside = (str(place) for place in near if place.exists())
    shipped = SHIPPED_BASE if base_id == Path(SHIPPED_BASE).name else None
    found = find_place("base_model", base_id, folders) or next(beside, shipped)
    if found is None:
        raise ValueError(
            f"{who} was trained on a base that lay in a folder {base_id}, and nothing tells where that is here: name "
            "it with --base_model."
        )
    return found


def place_of_data(
    record: Mapping[str, Any], folders: Sequence[Path], head: str, named: Sequence[str], alone: bool
) -> str:
    """Where the data of a head file are: the name with which they can be read here.

    Args:
        record: the file's `dataset`.
        folders: where heads lie, the nearest first.
        head: its name, for an error.
        named: what the user says of where data are.
        alone: whether no other data are asked for, so that one name is enough whatever it is.

    Raises ValueError if it is the last part of a path, and nothing tells which one.
    """
    name = record["name"]
    matching = [each for each in named if public_name(each) == public_name(name)]
    if matching or (alone and len(named) == 1):
        return (matching or named)[0]
    if not is_path_cut(name, record.get("source")):
        return name
    found = find_place("dataset", name, folders)
    if found is None:
        raise ValueError(
            f"{head} was trained on {name}, of which its file keeps no more, and nothing tells where that is here: "
            f"name it with --datasets {name.partition(':')[0]}:PATH."
        )
    return found
