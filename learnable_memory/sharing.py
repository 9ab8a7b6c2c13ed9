"""Several processes on one job, under `accelerate launch` or torchrun: who talks, and how what each has found comes
together. Without an accelerator there is one process, which does everything.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

Found = TypeVar("Found")


def is_shared(accelerator: "Accelerator | None") -> "TypeGuard[Accelerator]":
    """Whether several processes work on the same batches."""
    return accelerator is not None and accelerator.num_processes > 1


def is_main(accelerator: "Accelerator | None") -> bool:
    """Whether this process is the one that writes and talks."""
    return accelerator is None or accelerator.is_main_process


def gathered(mine: Found, accelerator: "Accelerator | None") -> list[Found]:
    """What each process has, in their order; all have to ask, and all are told. It has to be picklable."""
    if not is_shared(accelerator):
        return [mine]
    from accelerate.utils import gather_object

    return gather_object([mine])


def of_all(find: Callable[[], Found], accelerator: "Accelerator | None") -> list[Found]:
    """What `find` gives in each process. If it raises ValueError in one, all raise it: nobody is left waiting."""
    if not is_shared(accelerator):
        return [find()]
    mine: Any
    try:
        mine = find()
    except ValueError as error:
        mine = ValueError(str(error))
    found = gathered(mine, accelerator)
    for each in found:
        if isinstance(each, ValueError):
            raise each
    return found
