"""Time and memory of each method, each in a process of its own: cards train heads together and cannot tell.

    python benchmarks/methods_alone.py --directory DIR              # CIFAR-100 is in DIR/datasets

Each process trains a few steps on CIFAR100-new20 with the base that ships. Memory is the largest resident size of the
process on a CPU (what torch has allocated on a GPU), most of which is Python, torch, data and base.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from learnable_memory.runlog import read_metrics, versions, write_json

ROOT = Path(__file__).resolve().parent.parent
STEPS, BATCH = 40, 64
METHODS = {
    "head": ["--method", "head"],
    "head+class": ["--method", "head+class"],
    "5 cells": ["-m", "5"],
    "5 cells, rank 1": ["-m", "5", "--rank", "1"],
    "5 cells, rank 8": ["-m", "5", "--rank", "8"],
    "5 cells, unmasked": ["-m", "5", "--masking", "none"],
    "LoRA, rank 8": ["--method", "lora", "--rank", "8"],
    "full": ["--method", "full"],
}


def measured(flags: list[str], directory: Path) -> dict[str, float]:
    """Images a second and peak memory of a run; the first ten steps are not looked at."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "vit_train.py", "-d", "CIFAR100-new20", "--name", "run", "--base_model", "models/base-tiny",
            "--directory", str(directory), "--no_download", "--max_steps", str(STEPS), "--batch_size", str(BATCH),
            "--output", folder, *flags,
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        rows = [row for row in read_metrics(Path(folder) / "run_run" / "metrics.jsonl") if row["step"] > 10]
    speeds = [row["train/images_per_second"] for row in rows if "train/images_per_second" in row]
    memory = max(row.get("train/peak_memory_bytes", 0) for row in rows)
    return {"images_per_second": median(speeds), "peak_memory_bytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "methods_alone.json")
    options = parser.parse_args()
    rows = {name: measured(flags, options.directory) for name, flags in METHODS.items()}
    write_json(options.output, {"steps": STEPS, "batch_size": BATCH, "methods": rows, "versions": versions()})
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
