"""Names of data sets and bases as everybody may see them: without the paths of a machine. Standard library only."""

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

WITH_NAMES = {"base": ("id",), "dataset": ("name", "label_files"), "training": None}  # in metadata; None: all keys


def public_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a head or network without the paths of a machine."""
    found = dict(metadata)
    for within, keys in WITH_NAMES.items():
        if isinstance(found.get(within), Mapping):
            told = found[within]
            found[within] = {key: _public(told[key]) if keys is None or key in keys else told[key] for key in told}
    return found


def _public(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_public(each) for each in value]
    return public_name(value) if isinstance(value, str) else value


def public_name(name: str) -> str:
    """Of a path that tells where it lies the last part; every other name, and the relative path of a base, as it is.

    `/home/ada/cats` gives cats, `folder:pets/cats` folder:cats, `hf:~/cats:large` hf:cats:large; `Digits`,
    `hf:ada/cats:large` and `models/base-tiny` stay.
    """
    if _tells(name):
        return _last(name)
    kind, colon, argument = name.partition(":")
    if not colon or not (_tells(argument) or kind in ("folder", "parquet")):
        return name
    place, colon, configuration = argument.partition(":") if kind == "hf" else (argument, "", "")
    return f"{kind}:{_last(place)}{colon}{configuration}"


def _tells(name: str) -> bool:
    return name.startswith(("/", "~", ".")) or PureWindowsPath(name).is_absolute()


def _last(path: str) -> str:
    windows = PureWindowsPath(path)
    return (windows if windows.drive else PurePosixPath(path)).name or path
