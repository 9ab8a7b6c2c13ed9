"""What heads are built on, and in which order they can be loaded. Standard library only."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Head = TypeVar("Head", bound=Hashable)


def with_ancestors(heads: Iterable[Head], parents_of: Callable[[Head], Iterable[Head]]) -> list[Head]:
    """These heads and all that they are built on, each once, in an order in which they can be loaded.

    A parent that comes late moves before its first child; an order that can be loaded stays as it is.

    Args:
        heads: by name, or whatever stands for them.
        parents_of: the heads that one extends; asked once for each.

    Raises ValueError if heads extend each other in a circle.
    """
    order: dict[Head, None] = {}

    def place(head: Head, path: tuple[Head, ...]) -> None:
        if head in path:
            raise ValueError(f"Heads cannot extend each other in a circle: {' -> '.join(map(str, (*path, head)))}.")
        if head not in order:
            for parent in parents_of(head):
                place(parent, (*path, head))
            order[head] = None

    for head in heads:
        place(head, ())
    return list(order)
