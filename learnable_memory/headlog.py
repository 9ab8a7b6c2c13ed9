"""Metrics of several heads in one log: their keys end in the head's name; those of a head that is alone do not."""

from collections.abc import Mapping, Sequence
from typing import Any

from learnable_memory.runlog import RunLog

PLACE = ("time", "step", "epoch")


class HeadLog:
    """Writes rows of heads; without a log it does nothing, as in all processes but the main one.

    Args:
        heads: whose rows there will be.
        alone: whether the log is of one head only, from its beginning to its end.
    """

    def __init__(self, log: RunLog | None, heads: Sequence[str], alone: bool) -> None:
        self.log, self.endings = log, {name: "" if alone else f"/{name}" for name in heads}

    def write(
        self, rows: Mapping[str, Mapping[str, Any]], step: int, epoch: int, common: Mapping[str, Any] | None = None
    ) -> None:
        """One line: the values of each head, and `common` ones."""
        if self.log is not None:
            merged = {f"{key}{self.endings[name]}": value for name, row in rows.items() for key, value in row.items()}
            self.log.metrics({**merged, **(common or {})}, step=step, epoch=epoch)


def metrics_of(metrics: Sequence[Mapping[str, Any]], head: str) -> list[dict[str, Any]]:
    """The rows of one of several heads, as if it had been alone in the log."""
    ending = f"/{head}"
    found = [
        {key.removesuffix(ending): value for key, value in row.items() if key.endswith(ending) or key in PLACE}
        for row in metrics
    ]
    return [row for row in found if row.keys() - set(PLACE)]
