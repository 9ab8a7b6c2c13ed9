"""Results of grids that nobody trained."""

from learnable_memory.grid import Cell, Outcome
from learnable_memory.method_spec import MethodSpec


def score(top1: float, loss: float | None = 1.0) -> dict[str, float | None]:
    return {"images": 100, "top1": top1, "top5": 1.0, "loss": loss, "images_per_second": 10.0}


def outcome(
    select: float | None,
    eval: float | None = None,
    *,
    tokens: int | None = 5,
    lr: float = 0.1,
    seed: int = 0,
    loss: float | None = 1.0,
    diverged_at: int | None = None,
    data_seed: int = 0,
) -> Outcome:
    """An outcome with these accuracies; `tokens=None` is a linear probe, 0 is head+class."""
    method = "head" if tokens is None else "memory" if tokens else "head+class"
    cell = Cell(MethodSpec(method, tokens or 0), lr, seed)
    return Outcome(
        cell,
        head=f"Digits_{cell.name}",
        data_seed=data_seed,
        parameters=100,
        epoch=None if select is None else 3,
        diverged_at=diverged_at,
        select=None if select is None else score(select, loss),
        eval=None if eval is None else score(eval),
    )
