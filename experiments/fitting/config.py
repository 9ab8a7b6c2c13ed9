"""What matters in fitting a head

Question: The paper fits heads by SGD with momentum and nothing else. Which of AdamW, weight decay, label smoothing and
a moving average makes a head better?

Paper: Sandler et al., CVPR 2022, arXiv 2203.15243, section 4.1 (SGD with momentum 0.9, gradients clipped, 5 steps of
warm-up, cosine).

Command: `python experiments/run.py fitting`

Expected result: not published anywhere. Found - AdamW helps heads with low-rank weights on two of three data sets and
plain heads on none; weight decay and a moving average change little; label smoothing helps once and harms once. Many
chosen rates are the highest of their grids.

Expected time: about half an hour on one CPU core that does nothing else. It took 26 minutes as two processes, beside
other work.
"""

SGD = (0.03, 0.1, 0.3, 1.0)
ADAMW = (0.0003, 0.001, 0.003, 0.01)
SHARED = dict(base_model="models/base-tiny", warmup_steps=5, method="memory", number_of_memory_tokens=5)
DATA = {
    "CIFAR100-new20": dict(dataset="CIFAR100-new20", epochs=2, batch_size=64),
    "Fashion-MNIST": dict(dataset="FashionMNIST-subset", epochs=2, batch_size=32),
    "Digits": dict(dataset="Digits", epochs=6, batch_size=32),
}
HEADS = {"5 cells": {}, "5 cells, rank 8": dict(rank=8)}
FITS = {
    "SGD": dict(lr=SGD),
    "SGD, weight decay 0.001": dict(weight_decay=0.001, lr=SGD),
    "SGD, label smoothing 0.1": dict(label_smoothing=0.1, lr=SGD),
    "SGD, average 0.99": dict(ema=0.99, lr=SGD),
    "AdamW": dict(optimizer="adamw", lr=ADAMW),
    "AdamW, weight decay 0.05": dict(optimizer="adamw", weight_decay=0.05, lr=ADAMW),
}
COMPARED = {fit: "AdamW" if fit.startswith("AdamW, ") else "SGD" for fit in FITS if fit != "SGD"}

GRIDS = {
    "main": dict(options=SHARED, over={"data": DATA, "head": HEADS, "fit": FITS}),
    "groups": dict(
        options=dict(**SHARED, rank=8),
        over={
            "data": DATA,
            "fit": {
                "SGD, low-rank rate x 3": dict(rank_lr=3.0, lr=SGD),
                "AdamW for low-rank weights, rate x 0.01": dict(optimizer="mixed", rank_lr=0.01, lr=SGD),
                "AdamW for low-rank weights, rate x 0.03": dict(optimizer="mixed", rank_lr=0.03, lr=SGD),
            },
        },
    ),
}
TABLES = [
    dict(
        title="Top-1, percent",
        rows=("head", "fit"),
        columns="data",
        differences=[(f"{head}, {of}", f"{head}, {to}") for head in HEADS for of, to in COMPARED.items()],
        note="Each way of fitting at its own best rate, chosen on the selection split of the first data seed.",
    ),
    dict(
        title="Top-1, percent, of 5 cells with rank 8 and a rate or an optimizer of the low-rank weights' own (beside "
        "SGD and AdamW above)",
        grid="groups",
        rows="fit",
        columns="data",
    ),
    dict(title="Learning rates chosen on the selection split", rows=("head", "fit"), columns="data", values=("lr",)),
    dict(title="Rates chosen with groups of their own", grid="groups", rows="fit", columns="data", values=("lr",)),
]
FIGURES = {
    "fits": dict(
        kind="points", title="Every way of fitting at its own best rate", rows=("head", "fit"), columns="data"
    ),
}
