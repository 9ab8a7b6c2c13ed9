"""Where a run of `vit_train.py` leaves what."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learnable_memory import confusion, heads, out_of_fold
from learnable_memory.config import TrainOptions
from learnable_memory.runlog import write_json


@dataclass(frozen=True)
class Files:
    """Where a run leaves what."""

    options: TrainOptions

    @property
    def head(self) -> Path:
        """The last file to be written: with it the run is finished."""
        return self.options.output / heads.file_name(self.options.name)

    @property
    def folder(self) -> Path:
        """Metrics and options, and while it runs all that `--resume` needs."""
        return self.options.output / f"{self.options.name}_run"

    def checkpoint(self, suffix: str) -> Path:
        """The state of the pass whose files end in `suffix`."""
        return self.folder / f"checkpoint{suffix}.pt"

    def outcomes(self, suffix: str) -> Path:
        """Of one finished pass, with where in the log it ended."""
        return self.folder / f"outcomes{suffix}.json"

    def out_of_fold(self, name: str | None = None) -> Path:
        """The predictions of `--folds`: of a cell until the best of all is known, and then beside the head."""
        if name is None:
            return self.options.output / f"{self.options.name}{out_of_fold.ENDING}"
        return self.folder / f"{name}{out_of_fold.ENDING}"

    def classes(self, name: str | None = None) -> Path:
        """How well each class is recognised: by a cell until the best of all is known, and then beside the head."""
        if name is None:
            return self.options.output / f"{self.options.name}{confusion.ENDING}"
        return self.folder / f"{name}{confusion.ENDING}"

    @property
    def parents(self) -> Path:
        """What the heads are built on, by hash."""
        return self.folder / "parents.json"

    def learned(self, name: str) -> Path:
        """What a cell of a finished pass has learned, until the best of all is known."""
        return self.folder / heads.file_name(name)

    def splits(self, suffix: str) -> Path:
        """What a pass is trained and evaluated on, by hash, and what its classes are called."""
        return self.folder / f"splits{suffix}.json"

    def labels(self) -> list[str] | None:
        """What the run that is resumed calls its classes; None where none is, or it has not come that far."""
        begun = sorted(self.folder.glob("splits*.json")) if self.options.resume else []
        return json.loads(begun[0].read_text(encoding="utf-8")).get("labels") if begun else None

    def under_way(self) -> bool:
        """Whether a run has begun and not come to its end."""
        return any(self.folder.glob("splits*.json")) or bool(self.unfinished())

    def unfinished(self) -> list[Path]:
        """What an interrupted run has left to go on with."""
        return sorted([*self.folder.glob("checkpoint*.pt"), *self.folder.glob("outcomes*.json")])

    def done_with(self) -> list[Path]:
        """What is of no use once the head is written; a process that was killed while it wrote leaves half a file."""
        halves = self.folder.glob(".*.unfinished")
        endings = heads.SUFFIX, out_of_fold.ENDING, confusion.ENDING
        learned = (path for ending in endings for path in self.folder.glob(f"*{ending}"))
        return [*self.unfinished(), self.parents, *self.folder.glob("splits*.json"), *learned, *halves]

    def keep(self, path: Path, found: Any, what: str, writes: bool) -> None:
        """Write what a run begins with. Raises ValueError if it goes on and began with something else."""
        if self.options.resume and path.exists() and json.loads(path.read_text(encoding="utf-8")) != found:
            raise ValueError(f"{what} than when the run in {self.folder} began: start anew with --overwrite.")
        if writes:
            write_json(path, found)
