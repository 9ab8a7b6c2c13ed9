"""Masking, and heads put together

Question: What does it cost that the base's tokens do not see the memory, and what does it save once heads are put
together?

Paper: Sandler et al., CVPR 2022, arXiv 2203.15243, sections 3.3 and 4.4, Table 1.

Command: `python experiments/run.py masking --keep_all --directory DIR`, then `python experiments/masking/together.py
--directory DIR` for all four in one model, with the mask and without it

Expected result: Masked a little below unmasked alone; together, masked heads answer as they do alone, and unmasked ones
destroy each other (the paper's section 4.4, iNaturalist: 50.0 alone, 28.1 with Places added, 17.3 with all four).

Expected time: About 10 days on one A100, nearly all of it for the unmasked runs, which each are a pass of their own (an
estimate; it has not run).
"""

from experiments.table2.config import CELLS, DATA, METHODS, SCHEDULE

APART = (0.03, 0.1, 0.3)
UNMASKED = {
    f"unmasked, {name}": dict(method="memory", masking="none", number_of_memory_tokens=m, lr=APART)
    for name, m in CELLS.items()
}
FROZEN = dict(**UNMASKED["unmasked, 10 cells"], train_class_token=False)
# 10 cells, because the paper's iNaturalist model of section 4.4 scores 50.0 alone, as its 10 cells do in Table 2.
TOGETHER = {"masked": "masked, 10 cells", "unmasked": "unmasked, 10 cells"}
ORDER = ("iNaturalist", "Places-365", "CIFAR-100", "SUN-397")  # in which they are added

GRIDS = {
    "main": dict(
        options=dict(**SCHEDULE, base_model="google/vit-base-patch32-224-in21k"),
        over={
            "data": DATA,
            "method": {
                "head+class": METHODS["head+class"],
                **{f"masked, {name}": METHODS[name] for name in CELLS},
                **UNMASKED,
                "unmasked, 10 cells, base class token": FROZEN,
            },
        },
    ),
}
TABLES = [
    dict(
        title="Each data set alone, top-1, percent",
        rows="method",
        columns="data",
        differences=[
            *((f"masked, {name}", f"unmasked, {name}") for name in CELLS),
            ("unmasked, 10 cells", "unmasked, 10 cells, base class token"),
        ],
    ),
    dict(
        title="What each costs, on CIFAR-100",
        rows="method",
        where={"data": "CIFAR-100"},
        values=("parameters", "train_seconds", "eval_seconds", "step_milliseconds", "peak_memory", "combinable"),
    ),
]
