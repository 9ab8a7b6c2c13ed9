"""Names of data sets and bases as everybody may see them: without the paths of a machine. Standard library only."""

from pathlib import PurePosixPath, PureWindowsPath


def public_name(name: str) -> str:
    """Of a path that tells where it lies the last part; every other name, and a relative path, as it is.

    `/home/ada/cats` gives cats, `folder:/home/ada/cats` folder:cats, `hf:~/cats:large` hf:cats:large; `Digits`,
    `hf:ada/cats:large` and `models/base-tiny` stay.
    """
    if _tells(name):
        return _last(name)
    kind, colon, argument = name.partition(":")
    if not colon or not _tells(argument):
        return name
    place, colon, configuration = argument.partition(":") if kind == "hf" else (argument, "", "")
    return f"{kind}:{_last(place)}{colon}{configuration}"


def _tells(name: str) -> bool:
    return name.startswith(("/", "~", ".")) or PureWindowsPath(name).is_absolute()


def _last(path: str) -> str:
    windows = PureWindowsPath(path)
    return (windows if windows.drive else PurePosixPath(path)).name or path
