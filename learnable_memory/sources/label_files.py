"""Lists that say which class each image of a folder is of: text, CSV or JSON lines."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from learnable_memory.formats import ending_of, image_endings
from learnable_memory.sources.folder_levels import EVAL, ROLES, SELECT, SPLIT_WORDS, TRAIN, split_role
from learnable_memory.sources.found import Found, Request
from learnable_memory.sources.listed import require_images, split_sets
from learnable_memory.sources.rows import Rows, read_rows

SPLIT_COLUMN = "split"
Labels = dict[str, str]  # path of an image, relative to the folder -> its label


def read_label_files(root: Path, request: Request) -> Found:
    """The images in `root` that `request.label_files` name, with the labels that they give them.

    A file has a line for each image: its path relative to `root`, and its label, a name or a number. Which column is
    which is found where only one can be meant, or said with `image_column` and `label_column`: by name, or by number
    from 1 in a file that has no names of columns. A column called `split`, or one that holds nothing but names of
    splits, says which split an image belongs to; else the names of the files do (`train.txt`, `test_list.csv`). A
    single split is all there is, and a fifth of each class is held out for evaluation. Classes are the labels of the
    training images: numbers in their order, names by code point.

    Raises:
        FileNotFoundError: no such list, or an image in it is not in `root`.
        ValueError: columns that have to be named, a malformed or empty list, an image listed twice, a label that no
            training image has, or files whose names do not say which split they are.
    """
    splits: dict[str, Labels] = {}
    for file in request.label_files:
        rows = read_rows(find_list(root, file))
        for role, labels in _by_split(root, rows, request, alone=len(request.label_files) == 1).items():
            listed = splits.setdefault(role, {})
            if twice := listed.keys() & labels.keys():
                raise ValueError(f"{rows.path} lists {min(twice)}, which another list has too; remove one of the two")
            listed.update(labels)
    if len(splits) == 1:
        splits = {TRAIN: next(iter(splits.values()))}
    if TRAIN not in splits:
        raise ValueError("--labels gives images to evaluate on and none to train on: name the list to train on too")
    classes = _classes(splits[TRAIN])
    roles = [role for role in (TRAIN, SELECT, EVAL) if role in splits]
    numbered = {f"the {role} list": _numbers(role, splits[role], classes) for role in roles}
    require_images(root, numbered)
    train, *others = split_sets(root, numbered)
    source = f"lists {', '.join(Path(file).name for file in request.label_files)}"
    if not others:
        return Found(list(classes), train, f"{source}, a fifth held out")
    *select, evaluation = others
    return Found(list(classes), train, source, evaluation, *select)


# ---------------------------------------------------------------------------------------------------------------- files
def find_list(root: Path, file: str) -> Path:
    """Where a list lies: in `root`, or else where the command is run."""
    places = [root / file, Path(file)]  # an absolute path is the same in both
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"--labels {file}: no such file in {root} or {Path.cwd()}")


def full_names(folder: str, files: Sequence[str]) -> tuple[str, ...]:
    """The lists as a head file keeps them: relative to the folder of the images where they lie in it, else whole."""
    root = Path(folder).expanduser().resolve()
    found = [find_list(root, os.path.expanduser(file)).resolve() for file in files]
    return tuple(str(path.relative_to(root) if path.is_relative_to(root) else path) for path in found)


def _file_role(rows: Rows, alone: bool) -> str:
    """Which split a file is, by the words of its name; a single file may have any name."""
    roles = {ROLES[word] for word in re.findall("[a-z]+", rows.path.stem.lower()) if word in ROLES}
    if len(roles) == 1:
        return roles.pop()
    if alone:
        return TRAIN
    words = ", ".join(words[0] for words in SPLIT_WORDS.values())
    raise ValueError(
        f"the name of {rows.path} does not say which split it lists, and it has no column called {SPLIT_COLUMN}: call "
        f"each list by one of {words}, as train.txt"
    )


# ------------------------------------------------------------------------------------------------------------- columns
def _by_split(root: Path, rows: Rows, request: Request, alone: bool) -> dict[str, Labels]:
    """The images of a list, by what their split is for."""
    image = _image_column(rows, request.image_column)
    split = _split_column(rows, {image, request.label_column})
    label = _label_column(rows, request.label_column, {image, split})
    roles = _roles(rows, split) if split else [_file_role(rows, alone)] * len(rows.lines)
    found: dict[str, Labels] = {}
    seen: set[str] = set()
    for line, path, name, role in zip(rows.lines, rows.column(image), rows.column(label), roles, strict=True):
        inside = _relative(root, rows, line, path)
        if inside in seen:
            raise ValueError(f"{rows.path} lists {inside} twice, the second time in line {line}; remove one of the two")
        if not name:
            raise ValueError(f"{rows.path} gives {inside} no label, in line {line}")
        seen.add(inside)
        found.setdefault(role, {})[inside] = name
    return found


def _image_column(rows: Rows, named: str | None) -> str:
    if named is not None:
        return _known(rows, "image", named)
    likely = [name for name in rows.columns if all(ending_of(value) in image_endings() for value in rows.column(name))]
    if len(likely) == 1:
        return likely[0]
    raise ValueError(
        f"{rows.path} has {'several columns' if likely else 'no column'} of image files; name one with --image_column; "
        f"the columns are {rows.described()}"
    )


def _split_column(rows: Rows, taken: set[str | None]) -> str | None:
    """The one that says which split an image belongs to, if there is one."""
    free = [name for name in rows.columns if name not in taken]
    for name in free:
        if name.strip().lower() == SPLIT_COLUMN or all(split_role(value) for value in rows.column(name)):
            return name
    return None


def _label_column(rows: Rows, named: str | None, taken: set[str | None]) -> str:
    if named is not None:
        return _known(rows, "label", named)
    likely = [name for name in rows.columns if name not in taken]
    if len(likely) == 1:
        return likely[0]
    found = f"several columns that could be the labels; name one of {', '.join(likely)}" if likely else "no labels"
    raise ValueError(
        f"{rows.path} has {found}{' with --label_column NAME' if likely else ''}; the columns are {rows.described()}"
    )


def _known(rows: Rows, kind: str, name: str) -> str:
    if name not in rows.columns:
        raise ValueError(
            f"{rows.path}: --{kind}_column is {name}; legal: {', '.join(rows.columns)}; the columns are "
            f"{rows.described()}"
        )
    return name


def _roles(rows: Rows, column: str) -> list[str]:
    roles = []
    for line, word in zip(rows.lines, rows.column(column), strict=True):
        role = split_role(word)
        if role is None:
            legal = ", ".join(word for words in SPLIT_WORDS.values() for word in words)
            raise ValueError(f"{rows.path} has the {column} {word!r} in line {line}; legal: {legal}")
        roles.append(role)
    return roles


def _relative(root: Path, rows: Rows, line: int, path: str) -> str:
    """A path of the list relative to the folder of the images, written in one way."""
    inside = os.path.normpath(os.path.relpath(path, root) if os.path.isabs(path) else path)
    if inside.startswith(".."):
        raise ValueError(
            f"{rows.path} lists {path} in line {line}, which is not in {root}; name a folder of all images"
        )
    return Path(inside).as_posix()


# ------------------------------------------------------------------------------------------------------------- classes
def _classes(labels: Labels) -> dict[str, int]:
    """The number of each class."""
    names = set(labels.values())
    by_number = all(re.fullmatch(r"\d+", name) for name in names)
    ordered = sorted(names, key=(lambda name: (int(name), name)) if by_number else None)
    return {name: number for number, name in enumerate(ordered)}


def _numbers(role: str, labels: Labels, classes: dict[str, int]) -> dict[str, int]:
    for image, name in labels.items():
        if name not in classes:
            raise ValueError(f"{image}, of the {role} list, has the label {name}, which no training image has")
    return {image: classes[name] for image, name in labels.items()}
