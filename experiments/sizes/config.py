"""Sizes of the base

Question: Does memory bring the same on smaller patches and on a larger network, and how does what is learned grow?

Paper: Sandler et al., CVPR 2022, arXiv 2203.15243, section 4 (B/32, B/16 and L/32); numbers in brackets are those of
its Table 2, for B/32. Its table for B/16 and L/32 is not transcribed here.

Command: `python experiments/run.py sizes --directory DIR`

Expected result: Every method gains from B/32 to B/16 and to L/32; the order of the methods is the same on each base.

Expected time: About 12 days on one A100, of which full fine-tuning takes most (an estimate; it has not run). Full
fine-tuning computes each layer twice (gradient checkpointing), so that 512 images fit on one accelerator.
"""

from experiments.table2.config import DATA, METHODS, PAPER, SCHEDULE

BASES = {
    "B/32": dict(base_model="google/vit-base-patch32-224-in21k"),
    "B/16": dict(base_model="google/vit-base-patch16-224-in21k"),
    "L/32": dict(base_model="google/vit-large-patch32-224-in21k"),
}
CHOSEN = {name: METHODS[name] for name in ("full", "head", "head+class", "1 cell", "5 cells")}
CHOSEN["full"] = dict(**METHODS["full"], gradient_checkpointing=True)

GRIDS = {"main": dict(options=SCHEDULE, over={"base": BASES, "data": DATA, "method": CHOSEN})}
TABLES = [
    dict(
        title="Top-1, percent (in brackets, the paper's Table 2)",
        rows=("base", "method"),
        columns="data",
        published={f"B/32, {name}": PAPER[name] for name in CHOSEN},
        differences=[
            *((f"{base}, 5 cells", f"{base}, full") for base in BASES),
            ("B/16, 5 cells", "B/32, 5 cells"),
            ("L/32, 5 cells", "B/32, 5 cells"),
        ],
    ),
    dict(
        title="What is learned and what it costs, on CIFAR-100",
        rows=("base", "method"),
        where={"data": "CIFAR-100"},
        values=("parameters", "megabytes", "train_seconds", "step_milliseconds", "peak_memory"),
    ),
]
