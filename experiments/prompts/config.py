"""Prompts, and the memory that training takes

Question: What do 100 prompts cost in accelerator memory and time, how much do fused attention and checkpointing save,
and what does masked memory of the same size need?

Paper: Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119; its FGVC table for ViT-B/16 pretrained on
ImageNet-21k stands in brackets.

Command: `python experiments/run.py prompts --directory DIR`

Expected result: The same accuracy with and without fused attention and checkpointing, at a fraction of the memory;
masked memory needs the memory of an evaluation, and about a third of the time.

Expected time: About 3 days on one A100, with the flash-attn package (an estimate; it has not run).
"""

SHARED = dict(batch_size=64, epochs=100, precision="bfloat16")
DATA = {  # warm-up: 10 epochs
    "CUB": dict(dataset="CUB", warmup_steps=850),
    "Flowers": dict(dataset="Flowers", warmup_steps=160),
}
BASES = {
    "B/16": dict(base_model="google/vit-base-patch16-224-in21k"),
    "L/16": dict(base_model="google/vit-large-patch16-224-in21k"),
}
RATES = (0.03, 0.1, 0.3, 1.0)
VPT = (0.0625, 0.25, 0.625, 2.5)

GRIDS = {
    "accuracy": dict(
        options=dict(**SHARED, **BASES["B/16"], attn_implementation="sdpa"),
        over={
            "data": DATA,
            "method": {
                "full": dict(method="full", lr=(0.001, 0.003, 0.01, 0.03)),
                "linear": dict(method="head", lr=RATES),
                "bias": dict(method="bias", lr=(0.01, 0.03, 0.1, 0.3)),
                "VPT-shallow, 100 prompts": dict(method="vpt-shallow", number_of_memory_tokens=100, lr=VPT),
                "VPT-deep, 100 prompts": dict(method="vpt-deep", number_of_memory_tokens=100, lr=VPT),
                "masked memory, 5 cells": dict(method="memory", number_of_memory_tokens=5, lr=RATES),
                "masked memory, 100 cells": dict(method="memory", number_of_memory_tokens=100, lr=RATES),
            },
        },
    ),
    "memory_use": dict(  # one rate that was not tuned, which changes neither time nor memory
        data_seeds=(0,),
        options=dict(**SHARED, number_of_memory_tokens=100),
        over={
            "data": DATA,
            "base": BASES,
            "size": {f"{side} px": dict(image_size=side) for side in (112, 224, 336)},
            "attention": {
                "eager": dict(attn_implementation="eager"),
                "flash": dict(attn_implementation="flash_attention_2"),
            },
            "method": {
                "VPT-deep": dict(method="vpt-deep", lr=(0.25,)),
                "VPT-deep, checkpointed": dict(method="vpt-deep", gradient_checkpointing=True, lr=(0.25,)),
                "masked memory": dict(method="memory", lr=(0.3,)),
            },
        },
    ),
}
COSTS = dict(grid="memory_use", rows=("base", "attention", "method"), columns=("data", "size"))
PUBLISHED = {
    "full": {"CUB": 87.3, "Flowers": 98.8},
    "linear": {"CUB": 85.3, "Flowers": 97.9},
    "bias": {"CUB": 88.4, "Flowers": 98.8},
    "VPT-shallow, 100 prompts": {"CUB": 86.7, "Flowers": 98.4},
    "VPT-deep, 100 prompts": {"CUB": 88.5, "Flowers": 99.0},
}
TABLES = [
    dict(
        title="Top-1, percent (in brackets, as published by Jia et al.)",
        rows="method",
        columns="data",
        published=PUBLISHED,
        differences=[
            ("masked memory, 100 cells", "VPT-deep, 100 prompts"),
            ("masked memory, 5 cells", "linear"),
            ("VPT-deep, 100 prompts", "full"),
        ],
        note="The published numbers are with the best number of prompts, rate and weight decay of each data set, "
        "chosen on its validation part, and with random crops of images resized to 256 pixels.",
    ),
    dict(**COSTS, title="Peak memory", values=("peak_memory",)),
    dict(**COSTS, title="Time of a training step", values=("step_milliseconds",)),
    dict(
        **COSTS,
        title="Top-1, percent, of the same runs",
        note="One run each, at one learning rate that was not tuned; the first table has each method at its best rate.",
    ),
]
