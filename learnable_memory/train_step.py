"""One step of every head on one batch: losses, gradients, and what several processes exchange."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learnable_memory.evaluate import is_shared
from learnable_memory.optim import HeadOptimizers

if TYPE_CHECKING:
    from accelerate import Accelerator

    from learnable_memory.methods import TunedModel
    from vit import MemoryCapableViT


def train_step(
    model: "MemoryCapableViT | TunedModel", optimizers: HeadOptimizers, batch: tuple[Any, ...] | None,
    accelerator: "Accelerator | None" = None, stop: object = False,
) -> tuple[dict[str, dict[str, float]], bool]:  # fmt: skip
    """One step of every head on one batch.

    A head whose loss or gradient is not finite makes no step: its parameters stay finite, and so does all that stands
    beside them in the pass.

    Args:
        batch: pixel_values [B, channels, height, width] (or `BaseTokens`), labels int64 [B] and, of a `FoldLoader`, the
            folds int64 [B], on the CPU; None where another process has all of it.
        stop: true if this process was asked to stop; looked at after the gradients are there.

    Returns for each head its `train/loss`, `train/lr` and `train/gradient_norm`, and whether any process has to stop.
    A head that holds all of the batch out has no such row, and learns nothing from it.

    Raises ValueError if a head holds a fold out and the batch does not tell the folds.
    """
    device = next(model.parameters()).device
    names = optimizers.names
    losses, images = torch.zeros(len(names), device=device), [0] * len(names)
    if batch is not None:
        inputs, labels = batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)
        outputs = model(inputs, heads=names, with_base=False)
        rows = learned_rows(optimizers, batch[2] if len(batch) > 2 else None)
        images = [len(labels) if kept is None else len(kept) for kept in rows.values()]
        on_device = {name: None if kept is None else kept.to(device, non_blocking=True) for name, kept in rows.items()}
        losses = torch.stack([optimizers.loss(name, outputs[name].logits, labels, on_device[name]) for name in names])
        losses.sum().backward()  # each head gets the gradient of its own loss: no other depends on its parameters
    losses, stop = losses.detach(), bool(stop)
    if is_shared(accelerator):
        losses, images, stop = average_over_processes(accelerator, optimizers, losses, images, stop)
    norms = optimizers.clip()
    # The device is waited for once in a step, not once for each head.
    numbers = torch.stack([losses.to(norms.dtype), norms], dim=1).tolist()
    metrics = {
        name: {"train/loss": loss, "train/lr": optimizers.rate(name), "train/gradient_norm": norm}
        for name, (loss, norm), learned_from in zip(names, numbers, images, strict=True)
        if learned_from
    }
    finite = [name for name, row in metrics.items() if all(map(math.isfinite, row.values()))]
    optimizers.step(finite)
    return metrics, stop


def learned_rows(optimizers: HeadOptimizers, folds: Tensor | None) -> dict[str, Tensor | None]:
    """Of a batch with these folds [B] the rows that each head learns from, int64 on the CPU; None: all."""
    held_out = {name: optimizers.recipes[name].held_out for name in optimizers.names}
    kept: dict[int | None, Tensor | None] = {None: None}
    for fold in {fold for fold in held_out.values() if fold is not None}:
        if folds is None:
            raise ValueError(f"A recipe holds fold {fold} out, but batches do not tell their folds: use a FoldLoader.")
        kept[fold] = folds.ne(fold).nonzero().flatten()
    return {name: kept[fold] for name, fold in held_out.items()}


def average_over_processes(
    accelerator: "Accelerator", optimizers: HeadOptimizers, losses: Tensor, images: Sequence[int],
    stop: bool,
) -> tuple[Tensor, list[int], bool]:  # fmt: skip
    """Make mean losses [T] and gradients over this process's images those over the whole batch, in one exchange.

    All processes get the same bits, so they agree on which heads have diverged, and on stopping.

    Args:
        images: from how many of them each head learns, [T].

    Returns the losses, these numbers over all processes, and whether any of them has to stop.
    """
    parameters = [(p, place) for place, learned in enumerate(optimizers.parameters.values()) for p in learned]
    gradients = [(p.new_zeros(p.shape) if p.grad is None else p.grad, place) for p, place in parameters]
    dtype = gradients[0][0].dtype
    mine = [gradient.flatten() * images[place] for gradient, place in gradients]
    mine += [losses.to(dtype) * losses.new_tensor(images, dtype=dtype), losses.new_tensor([*images, stop], dtype=dtype)]
    *shares, loss, total = accelerator.reduce(torch.cat(mine), "sum").split([len(part) for part in mine])
    counts = total[:-1].clamp(min=1)
    for (parameter, place), share in zip(parameters, shares, strict=True):
        parameter.grad = (share / counts[place]).view_as(parameter)
    *numbers, stopping = total.tolist()
    return loss / counts, [round(number) for number in numbers], stopping > 0
