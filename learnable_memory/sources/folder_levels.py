"""Which folder is which: splits above classes above images; and what to say where one level too many was named."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from learnable_memory.sources.image_files import has_images, subfolders
from learnable_memory.wording import some

TRAIN, SELECT, EVAL = "train", "select", "eval"
# What splits are called, in any case; the usual name first.
SPLIT_WORDS = {
    TRAIN: ("train", "training"),
    SELECT: ("validation", "val", "valid", "dev"),
    EVAL: ("test", "testing"),
}
ROLES = {word: role for role, words in SPLIT_WORDS.items() for word in words}
MERGE = "--class_folders first takes each of them for a class all the same"


def split_role(name: str) -> str | None:
    """What a split of this name is for, `TRAIN`, `SELECT` or `EVAL`; None if it is no name of a split."""
    return ROLES.get(name.lower())


def split_folders(root: Path) -> dict[str, str]:
    """The folders of splits in `root`, by what they are for.

    Raises:
        ValueError: two of them mean the same.
    """
    found: dict[str, str] = {}
    for name in subfolders(root):
        role = split_role(name)
        if role in found:
            raise ValueError(f"folder:{root} has {found[role]}/ and {name}/, which mean the same; keep one of them")
        if role:
            found[role] = name
    return found


def check_level(where: Path, classes: Sequence[str], merge: bool) -> None:
    """Raise ValueError where the folders `classes` in `where` are most likely no classes, with what was found there.

    Args:
        where: the folder of a split, or of all images.
        merge: it was said that each of them is a class, whatever is below it.
    """
    if len(classes) == 1:
        raise _single_class(where, classes[0])
    words = [name for name in classes if split_role(name)]
    with_images = {name for name in classes if has_images(where / name)}
    # A train is a thing that a picture may show; two splits, or a folder of folders called "train", are no classes.
    if len(words) > 1 or any(name not in with_images for name in words):
        raise _splits_for_classes(where, words, with_images)
    inside = [set(subfolders(where / name)) for name in classes]
    same = sorted(set.intersection(*inside)) if inside else []
    if merge or with_images or len(same) < 2:
        return
    found = (
        f"the folders {some(classes, 3)} in {where} have no images of their own, but the same folders, {some(same, 3)}"
    )
    if all(split_role(name) for name in same):
        raise ValueError(f"{found}: the splits have to lie above the classes, as {same[0]}/{classes[0]}; or {MERGE}")
    raise ValueError(
        f"{found}; probably these are the classes: name one folder that holds them, as folder:{where / classes[0]}, or "
        f"{MERGE}"
    )


def check_deepest(where: Path, classes: Sequence[str]) -> None:
    """Raise ValueError where `classes`, the folders below `where` that have images of their own, lie in splits.

    Args:
        classes: POSIX paths relative to `where`.
    """
    if len(classes) == 1:
        raise ValueError(f"{where} has images in {classes[0]} alone, and nothing can be learned from one class")
    inside = {str(parent) for name in classes for parent in PurePosixPath(name).parents if split_role(parent.name)}
    if inside:
        above = where / PurePosixPath(min(inside)).parent
        raise ValueError(
            f"the folders {some(sorted(inside), 3)} in {where} are named like splits, and would be mixed: name the "
            f"folder that holds them, folder:{above}"
        )


def _single_class(where: Path, name: str) -> ValueError:
    deepest = where / name
    while len(inside := subfolders(deepest)) == 1 and not has_images(deepest):
        deepest /= inside[0]
    found = f"{where} has one class folder, {name}"
    if not inside:
        return ValueError(f"{found}, and nothing can be learned from one class; add the folders of the others")
    below = deepest.relative_to(where).as_posix()
    return ValueError(f"{found}, and in {below} are the folders {some(inside, 3)}: probably folder:{deepest} is meant")


def _splits_for_classes(where: Path, words: Sequence[str], with_images: set[str]) -> ValueError:
    folders = ", ".join(f"{name}/" for name in words)
    if all(name in with_images for name in words):
        return ValueError(
            f"{folders} in {where} are named like splits, and hold images instead of a folder for each class; if "
            "a list says which class each image is of, give it with --labels FILE"
        )
    return ValueError(
        f"{folders} in {where} are named like splits, but there is no train/ with a folder for each class beside them"
    )
