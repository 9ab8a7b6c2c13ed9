"""What speaks against loading heads into one model. All of it is known from their files, without a base model."""

from collections import Counter
from collections.abc import Sequence

from learnable_memory import heads
from learnable_memory.heads import HeadFile


def hash_of(file: HeadFile) -> str:
    """By what another head names this one as its parent (`heads.head_hash`). Raises ValueError as `heads.spec_of`."""
    return heads.head_hash(heads.spec_of(file.metadata), file.tensors, file.metadata["extends"])


def reasons_against(files: Sequence[HeadFile]) -> list[str]:
    """Why these heads cannot be loaded into one model, a sentence without its full stop for each; empty if they can.

    They may belong to several bases, share a name, or extend a head that is absent, is not the one that they were
    trained on, or is a linear probe. Raises ValueError if a head's own metadata is not legal.
    """
    return [*_several_bases(files), *_shared_names(files), *_unfit_parents(files)]


def check_together(files: Sequence[HeadFile]) -> None:
    """Raise ValueError, with all reasons in one line, if these heads cannot be loaded into one model."""
    reasons = reasons_against(files)
    if reasons:
        raise ValueError(f"These heads cannot be put together: {'; '.join(reasons)}.")


def _several_bases(files: Sequence[HeadFile]) -> list[str]:
    groups: dict[str, list[HeadFile]] = {}
    for file in files:
        groups.setdefault(file.metadata["base"]["fingerprint"], []).append(file)
    if len(groups) < 2:
        return []
    listed = []
    for fingerprint, members in groups.items():
        name = next(filter(None, (file.metadata["base"]["id"] for file in members)), "unnamed")
        listed.append(f"{', '.join(file.metadata['name'] for file in members)} on {name} ({fingerprint[:8]})")
    return [f"they were trained on {len(groups)} bases: {', '.join(listed)}"]


def _shared_names(files: Sequence[HeadFile]) -> list[str]:
    reasons = []
    for name, count in Counter(file.metadata["name"] for file in files).items():
        if count > 1:
            contents = {hash_of(file) for file in files if file.metadata["name"] == name}
            what = "they are the same head" if len(contents) == 1 else "they differ"
            reasons.append(f"{count} of them are called {name}, and {what}")
    return reasons


def _unfit_parents(files: Sequence[HeadFile]) -> list[str]:
    named: dict[str, list[HeadFile]] = {}
    for file in files:
        named.setdefault(file.metadata["name"], []).append(file)
    reasons = []
    for file in files:
        for parent in file.metadata["extends"]:
            there = named.get(parent["name"], [])
            what = None
            if not there:
                what = "which is not among them"
            elif parent["hash"] not in map(hash_of, there):
                what = "which is not the one among them: it was trained on another head of that name"
            elif not all(candidate.metadata["class_token"] for candidate in there):
                what = "which is a linear probe and has nothing to be seen"
            if what:
                reasons.append(f"{file.metadata['name']} extends {parent['name']}, {what}")
    return reasons
