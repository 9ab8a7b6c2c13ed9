"""Several processes, and trackers besides our own log: both are accelerate's, and it is loaded for them only."""

import importlib.util
import os
from typing import TYPE_CHECKING

from learnable_memory.config import TrainOptions, to_dict

if TYPE_CHECKING:
    from accelerate import Accelerator


def start_accelerator(options: TrainOptions) -> "Accelerator | None":
    """An Accelerator under `accelerate launch` or torchrun, or with --log_with; else None.

    Raises ValueError for a tracker that is not installed, or a batch that is smaller than the number of processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 and not options.log_with:
        return None
    for tracker in options.log_with or ():
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"--log_with {tracker} needs the package {tracker}: pip install {tracker}")
    if options.batch_size < processes:
        raise ValueError(
            f"--batch_size is {options.batch_size}, the images of one step over all {processes} processes: each needs "
            "one at least."
        )
    from accelerate import Accelerator

    accelerator = Accelerator(
        cpu=options.device == "cpu", log_with=list(options.log_with or ()) or None, project_dir=options.output
    )
    if options.log_with:
        config = {
            key: value if isinstance(value, (int, float, bool)) else str(value)
            for key, value in to_dict(options).items()
        }
        accelerator.init_trackers(f"{options.name}_run", config=config)
    return accelerator
