"""The best epoch of a head, or of a network, on the selection split."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from learnable_memory.evaluate import Score

if TYPE_CHECKING:
    from learnable_memory.methods import Learned


@dataclass
class Best:
    """The best epoch of a head on the selection split so far.

    Attributes:
        epoch: counted from 0; -1 before the first.
        score: on the selection split.
        tensors: the head's state dict then, on the CPU.
        diverged_at: the step, from 1, at which its loss or gradient was not finite and it was stopped; None if it went
            through.
        steps: of the whole pass, known at its end.
        seconds: what these steps took, loading included and selection not.
    """

    epoch: int = -1
    score: Score | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    diverged_at: int | None = None
    steps: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """As plain values and tensors."""
        score = None if self.score is None else asdict(self.score)
        return {"epoch": self.epoch, "score": score, "tensors": self.tensors, "diverged_at": self.diverged_at}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Best":
        """The reverse of `state_dict`."""
        score = None if state["score"] is None else Score(**state["score"])
        return cls(state["epoch"], score, state["tensors"], state["diverged_at"])

    def consider(self, epoch: int, score: Score, head: "nn.Module | Learned") -> bool:
        """Keep this epoch if it is better than all before it.

        On a small split many epochs have the same accuracy: then the lower loss decides, and at last the earlier one.
        """
        if self.score is not None and (score.top1, -score.loss) <= (self.score.top1, -self.score.loss):
            return False
        self.keep(epoch, head, score)
        return True

    def keep(self, epoch: int, head: "nn.Module | Learned", score: Score | None = None) -> None:
        """Take the head as it is, whatever was kept before."""
        self.epoch, self.score = epoch, score
        # Not on the device: of a network that is learned whole that would be another whole network there.
        self.tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in head.state_dict().items()}
