"""Several processes, and trackers besides our own log: both are accelerate's, and it is loaded for them only."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from learnable_memory.config import Machine, RunOptions, TrainOptions, to_dict
from learnable_memory.sharing import is_main

if TYPE_CHECKING:
    from accelerate import Accelerator

AnyRunOptions = TypeVar("AnyRunOptions", bound=RunOptions)

# What `accelerate launch` tells the processes that it starts, and what is said of it here: what would be passed over is
# refused. Variable, flag, and its value where the flag was not given.
NOT_FOR_US = (
    ("ACCELERATE_USE_DEEPSPEED", "--use_deepspeed", "false"),
    ("ACCELERATE_USE_FSDP", "--use_fsdp", "false"),
    ("ACCELERATE_USE_MEGATRON_LM", "--use_megatron_lm", "false"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "--use_parallelism_config", "false"),
    ("ACCELERATE_DYNAMO_BACKEND", "--dynamo_backend", "no"),
)


def launched(options: AnyRunOptions) -> AnyRunOptions:
    """The options with what `accelerate launch` was told besides: `--mixed_precision bf16` and `--cpu`.

    Raises ValueError where it was told something else than the options, or what is not known here.
    """
    for variable, flag, usual in NOT_FOR_US:
        if os.environ.get(variable, usual).lower() != usual:
            instead = " (--compile does that)" if "dynamo" in flag else ""
            raise ValueError(f"accelerate launch {flag} means nothing here{instead}: leave it out.")
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if mixed not in ("no", "bf16"):
        raise ValueError(f"accelerate launch --mixed_precision {mixed} is not known here: take bf16, or leave it out.")
    if mixed == "bf16":
        if options.precision not in (None, "bfloat16"):
            raise ValueError(
                f"accelerate launch says --mixed_precision bf16, and --precision says {options.precision}: leave one "
                "of them out."
            )
        options = replace(options, precision="bfloat16")
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes"):
        if options.device not in ("auto", "cpu"):
            raise ValueError(f"accelerate launch says --cpu, and --device says {options.device}: leave one out.")
        options = replace(options, device="cpu")
    return options


def process_count() -> int:
    """How many processes a launcher has started for this job; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the main one, before there is an accelerator to ask."""
    return os.environ.get("RANK", "0") == "0"


def start_processes(
    options: Machine, trackers: Sequence[str] = (), project_dir: Path | None = None
) -> "Accelerator | None":
    """An Accelerator under `accelerate launch` or torchrun, or for trackers; else None. Only the main process talks.

    Raises ValueError if one device is named for several processes.
    """
    if process_count() == 1 and not trackers:
        return None
    if process_count() > 1 and ":" in options.device:
        raise ValueError(
            f"--device is {options.device}, one device for {process_count()} processes: leave the number out, and each "
            "takes its own."
        )
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=options.device == "cpu", log_with=list(trackers) or None, project_dir=project_dir)
    if not is_main(accelerator):
        logging.getLogger("learnable_memory").setLevel(logging.WARNING)
    return accelerator


def start_accelerator(options: TrainOptions) -> "Accelerator | None":
    """The same for training, also with --log_with.

    Raises ValueError for a tracker that is not installed, or a batch that is smaller than the number of processes.
    """
    for tracker in options.log_with or ():
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"--log_with {tracker} needs the package {tracker}: pip install {tracker}")
    if options.batch_size < process_count():
        raise ValueError(
            f"--batch_size is {options.batch_size}, the images of one step over all {process_count()} processes: each "
            "needs one at least."
        )
    accelerator = start_processes(options, options.log_with or (), options.output)
    if accelerator is not None and options.log_with:
        config = {
            key: value if isinstance(value, (int, float, bool)) else str(value)
            for key, value in to_dict(options).items()
        }
        accelerator.init_trackers(f"{options.name}_run", config=config)
    return accelerator
