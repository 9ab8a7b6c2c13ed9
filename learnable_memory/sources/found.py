"""What a reader is asked for, and what it gives back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from learnable_memory.images import ImageSet

SPLITS = ("seeded", "official")
CLASS_FOLDERS = ("first", "deepest")


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    Attributes:
        directory: the folder that holds `datasets/`.
        argument: what follows the colon in `folder:PATH`, `hf:NAME`; empty for a data set with a name of its own.
        download: whether missing files may be fetched into `directory`.
        split: "seeded" or "official": what `eval` is to be where a data set comes without a split, but lists of an
            official one were published. Data sets that have their split in their files take no notice.
        image_column: of a table or list; found by its type where left out.
        label_column: the same of the labels.
        class_folders: of folders, what is a class: "first", a folder with all that is below it; "deepest", each folder
            that has images of its own; None: the first, unless they look as if they were none.
        label_files: of folders, lists that say which image is of which class, instead of their folders.
    """

    directory: Path
    argument: str = ""
    download: bool = True
    split: str = "seeded"
    image_column: str | None = None
    label_column: str | None = None
    class_folders: str | None = None
    label_files: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The folder of all data sets."""
        return self.directory / "datasets"


@dataclass(frozen=True)
class Found:
    """A data set as its files give it.

    Attributes:
        labels: the name of class 0, 1, ..
        train: the training images; all images where there is no evaluation split.
        source: what was read, without the path of the machine.
        eval: the official evaluation split, or a fixed one; None: a seeded fifth of `train` is to be held out.
        select: the split to choose on, if the data set has one of its own; None: a tenth of train is to be held out.
    """

    labels: list[str]
    train: ImageSet
    source: str
    eval: ImageSet | None = None
    select: ImageSet | None = None


def absolute(path: str) -> str:
    """A path as it is kept in a head file: whole, `~` and links resolved."""
    return str(Path(path).expanduser().resolve())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong in reading `path` becomes a ValueError that names it."""
    try:
        yield
    except Exception as error:  # pickle, struct, pyarrow and torchvision each have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read {path} ({reason}); delete it or replace it") from error
