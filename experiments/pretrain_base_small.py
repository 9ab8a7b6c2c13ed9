"""Pretrain `models/base-small`: `models/base-tiny` made to look through overlapping patches, 65 tokens instead of 17.

Card
    Data      the 40,000 images of `pretrain_base_tiny.py` (80 classes of CIFAR-100), nothing else.
    Model     plain HuggingFace `ViTForImageClassification`: 32x32 pixels, patches of 4x4, 65 tokens, width 192,
              10 layers, 3 attention heads, 4.5 million weights, saved as float16 (9 MB).
    Recipe    base-tiny's two hours are the coarse stage. `finer_patches.py` turns it into a network of 65 tokens that
              is a little better before the first step, and training goes on from there:
              - half of the patches are dropped at random behind the first layer until the rate decays (Liu et al. 2022,
                PatchDropout), so that an image costs half;
              - base-tiny teaches: it sees the same augmented image (Hinton et al. 2015);
              - Muon for the matrices of the layers, AdamW for the rest; warm-up, constant rate, linear decay by the
                clock, with all patches; crop, flip, TrivialAugment, CutMix, label smoothing; averaged weights.
    Set-up    pip install '.[experiments]'
    Command   python experiments/pretrain_base_small.py --data DIR/datasets/cifar100 [--until 18:15]
    Time      a minute for the construction alone, which is what ships; as long as one likes with --until

It can be stopped at any time: SIGTERM, `--until` and the file `WORK/decay_now` (decay at once) end it in order, and every
few minutes `WORK/latest` is written as a model of its own. `WORK/stable.pt` holds everything up to the decay; a second
start goes on from it. Two threads share each batch, in parts, so that a busy core does not hold up the other.
"""
# ruff: noqa: E501 (rows of the card's table)

import argparse
import json
import logging
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import torch
from finer_patches import finer_patches
from pretrain_base_tiny import accuracy, crop_and_flip, distillation_loss, load_split, normalise, trivial_augment
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2
from transformers import ViTForImageClassification, ViTImageProcessor

logger = logging.getLogger("pretrain_base_small")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-100's train-* and test-*.parquet")
    parser.add_argument("--start", type=Path, default=Path("models/base-tiny"), help="the coarser base to start from")
    parser.add_argument("--output", type=Path, default=Path("models/base-small"), help="written after the decay only")
    parser.add_argument("--work", type=Path, default=Path("runs/base-small"), help="progress is kept here")
    parser.add_argument(
        "--until", help="train until HH:MM of the clock, when the rate has decayed to zero; else only the construction"
    )
    parser.add_argument("--decay", type=float, default=0.2, help="the last part of the time, in which the rate decays")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--part", type=int, default=32, help="images that one thread takes at a time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=4e-4, help="peak rate of Muon and of AdamW")
    parser.add_argument("--warmup", type=int, default=20, help="steps")
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--distillation", type=float, default=0.5, help="weight of the teacher's answers in the loss")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--kept", type=int, default=32, help="patches of an image that are kept before the decay")
    parser.add_argument("--cutmix", type=float, default=0.6, help="share of the batches")
    parser.add_argument("--average", type=float, default=0.98, help="decay of the averaged weights")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# --------------------------------------------------------------------------------------------------------------- model
def answer(base: ViTForImageClassification, pixels: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """[B, 3, 32, 32] and the patches that go on after the first layer [B, K] -> logits [B, C]."""
    first, *rest = base.vit.layers
    tokens = first(base.vit.embeddings(pixels))  # [B, 1 + P, D]
    index = kept[:, :, None].expand(-1, -1, tokens.shape[2])
    tokens = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, index)], dim=1)  # [B, 1 + K, D]
    for layer in rest:
        tokens = layer(tokens)
    return base.classifier(base.vit.layernorm(tokens)[:, 0])


def freeze_fetching(base: ViTForImageClassification) -> None:
    """Leave the embeddings and the first layer's queries and keys as they were made: they only find the neighbours."""
    for part in (base.vit.embeddings, base.vit.layers[0].attention.q_proj, base.vit.layers[0].attention.k_proj):
        part.requires_grad_(False)


# ----------------------------------------------------------------------------------------------------------- optimizer
def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration of Muon (Jordan 2024) for a stack of matrices [S, n, m], n <= m, all at once."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` in float32: that one iterates in bfloat16, ten times slower on a CPU that has no units for it."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                stacks.setdefault(parameter.shape, []).append(parameter)
            for (rows, columns), parameters in stacks.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(state["momentum"], group["momentum"]))
                stack = torch.stack(updates)
                stack = orthogonalise(stack.mT).mT if rows > columns else orthogonalise(stack)
                scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5  # the size of AdamW's updates
                for parameter, update in zip(parameters, stack, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)


def build_optimizers(args: argparse.Namespace, student: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest; no decay for vectors and positions."""
    matrices = [p for n, p in student.named_parameters() if ".layers." in n and p.ndim == 2 and p.requires_grad]
    inside = {id(p) for p in matrices}
    rest = [p for p in trained(student) if id(p) not in inside]
    groups = [
        {"params": [p for p in rest if p.ndim in (2, 4)], "weight_decay": args.weight_decay},
        {"params": [p for p in rest if p.ndim not in (2, 4)], "weight_decay": 0.0},
    ]
    return [Muon(matrices, args.lr, weight_decay=args.weight_decay), torch.optim.AdamW(groups, args.lr, (0.9, 0.99))]


# ---------------------------------------------------------------------------------------------------------------- step
def cut_mix(args, pixels: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix (Yun et al. 2019) of some batches: pixels [B, 3, H, W] and targets [B, C]."""
    if torch.rand(()) < args.cutmix:
        return v2.CutMix(num_classes=classes)(pixels, labels)
    return pixels, F.one_hot(labels, classes).float()


def trained(base: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in base.parameters() if parameter.requires_grad]


def gradients(args, student: ViTForImageClassification, teacher: nn.Module, part, share: float):
    """Loss of a part of the batch and its gradients, weighted by the part's share of the batch."""
    pixels, targets, kept = part
    with torch.no_grad():
        taught = teacher(pixels).logits
    loss = distillation_loss(args, answer(student, pixels, kept), taught, targets)
    return loss.item() * share, torch.autograd.grad(loss * share, trained(student))


def train_step(args, student, teacher: nn.Module, pool: ThreadPoolExecutor, batch, kept: int) -> float:
    """Gradients of one batch, clipped, in `.grad`; the threads take its parts in turn."""
    images, labels = batch
    pixels = normalise(trivial_augment(crop_and_flip(images)))
    pixels, targets = cut_mix(args, pixels, labels, student.config.num_labels)
    patches = (student.config.image_size // student.config.patch_size) ** 2
    chosen = torch.rand(len(images), patches).argsort(1)[:, :kept]  # [B, K]
    parts = zip(pixels.split(args.part), targets.split(args.part), chosen.split(args.part), strict=True)
    answers = list(pool.map(lambda part: gradients(args, student, teacher, part, len(part[0]) / len(images)), parts))
    for parameter, *pieces in zip(trained(student), *(found for _, found in answers), strict=True):
        parameter.grad = torch.stack(pieces).sum(0)
    nn.utils.clip_grad_norm_(trained(student), 1.0)
    return sum(loss for loss, _ in answers)


# ------------------------------------------------------------------------------------------------------------ schedule
class Clock:
    """Warm-up by steps, constant rate, linear decay by the clock; ends in order when asked to."""

    def __init__(self, args: argparse.Namespace) -> None:
        now = datetime.now()
        end = now.replace(hour=int(args.until[:2]), minute=int(args.until[3:]), second=0)
        self.end = (end if end > now else end + timedelta(days=1)).timestamp()
        self.decay_from = self.end - args.decay * (self.end - time.time())
        self.warmup, self.flag, self.stopped = args.warmup, args.work / "decay_now", False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_) -> None:
        self.stopped = True

    @property
    def decaying(self) -> bool:
        if self.flag.exists() and time.time() < self.decay_from:
            length, self.decay_from = self.end - self.decay_from, time.time()
            self.end = min(self.end, self.decay_from + length)
        return time.time() >= self.decay_from

    def factor(self, step: int) -> float:
        """What the peak rate is multiplied with; 0 when it is over."""
        rest = (self.end - time.time()) / (self.end - self.decay_from) if self.decaying else 1.0
        return 0.0 if self.stopped else max(0.0, min(1.0, (step + 1) / self.warmup, rest))


class Progress:
    """Everything that a second start needs: weights, their average, optimizers, numbers of steps and seconds."""

    def __init__(self, args, student: ViTForImageClassification, optimizers: list[torch.optim.Optimizer]) -> None:
        self.args, self.student, self.optimizers = args, student, optimizers
        self.average = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        self.step, self.seconds, self.path = 0, 0.0, args.work / "stable.pt"
        if self.path.exists():
            kept = torch.load(self.path, weights_only=True)
            student.load_state_dict(kept["student"])
            for optimizer, state in zip(optimizers, kept["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.average, self.step, self.seconds = kept["average"], kept["step"], kept["seconds"]
            logger.info("going on after step %d", self.step)

    @torch.no_grad()
    def update(self, seconds: float) -> None:
        """Count a step and move the average towards the weights; faster at first."""
        self.step, self.seconds = self.step + 1, self.seconds + seconds
        decay = min(self.args.average, (1 + self.step) / (10 + self.step))
        for name, tensor in self.student.state_dict().items():
            self.average[name].lerp_(tensor, 1 - decay)

    def save(self, decaying: bool) -> None:
        """The averaged base as a model; the whole state unless the rate decays (then the last one before stays)."""
        write(self.averaged(), self.args.work / "latest")
        if not decaying:
            state = {"student": self.student.state_dict(), "average": self.average, "step": self.step}
            state |= {"optimizers": [o.state_dict() for o in self.optimizers], "seconds": self.seconds}
            torch.save(state, self.path.with_suffix(".part"))
            self.path.with_suffix(".part").replace(self.path)

    def averaged(self) -> ViTForImageClassification:
        """A copy of the base with the averaged weights, rounded as they are saved."""
        base = ViTForImageClassification(self.student.config)
        base.load_state_dict(self.average)
        return base.half().float().eval()


def train_student(args, progress: Progress, teacher: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Until the clock says so; the progress is written every few minutes."""
    student = progress.student
    clock, patches = Clock(args), (student.config.image_size // student.config.patch_size) ** 2
    torch.manual_seed(args.seed + progress.step)
    order: list[torch.Tensor] = []
    started = saved = time.time()
    losses: list[float] = []
    was_decaying = False
    with ThreadPoolExecutor(args.threads) as pool:
        while (factor := clock.factor(progress.step)) > 0:
            if clock.decaying and not was_decaying:
                progress.save(decaying=False)
                was_decaying = True
            order = order or list(torch.randperm(len(images)).split(args.batch_size)[: len(images) // args.batch_size])
            index = order.pop()
            before = time.time()
            kept = patches if was_decaying else args.kept
            losses.append(train_step(args, student, teacher, pool, (images[index], labels[index]), kept))
            for optimizer in progress.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * factor
                optimizer.step()
            progress.update(time.time() - before)
            if progress.step % 20 == 0:
                rate = args.batch_size * len(losses) / (time.time() - started)
                logger.info("step %d  rate %.2g  loss %.3f  %.0f images/s", progress.step, args.lr * factor, sum(losses) / len(losses), rate)  # fmt: skip
                started, losses = time.time(), []
            if time.time() - saved > 240:
                progress.save(was_decaying)
                saved = time.time()
    progress.save(was_decaying)


# --------------------------------------------------------------------------------------------------------------- write
TRAINING = """Then {step} steps of batch {batch_size} ({epochs:.1f} epochs): base-tiny teaches, {kept} of 64 patches kept until the rate decays, Muon + AdamW, peak rate {lr}, crop, flip, TrivialAugment, CutMix, averaged weights."""
CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-classification
datasets: [uoft-cs/cifar100]
metrics: [accuracy]
---
# base-small

A plain HuggingFace `ViTForImageClassification` for demonstrations and tests: 32x32 pixels, patches of 4x4, 65 tokens,
width 192, 10 layers, {weights:.1f} million weights. float16 in the file, float32 in use.

| | |
|---|---|
| data | 80 of the 100 classes of CIFAR-100's training images (40,000 images); every fifth class (index 4, 9, 14, ...) was left out and is the data set `CIFAR100-new20` |
| recipe | `base-tiny` with one layer more in front, which turns patches of 4x4 into windows of 8x8 that overlap: computed, not learned (`experiments/finer_patches.py`). {training} |
| test accuracy | **{student:.2%}** top-1 on the 8,000 test images of the 80 classes, measured once on the saved float16 weights (base-tiny: {teacher:.2%}) |
| training time | base-tiny's 114 minutes{time} |
| command | `python experiments/pretrain_base_small.py --data DIR/datasets/cifar100{until}` |

Not meant for anything but this project: 80 classes of tiny photographs.
"""


def write(base: ViTForImageClassification, folder: Path) -> None:
    """Weights as float16, a config that says float32, the processor."""
    base.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    size = {"height": base.config.image_size, "width": base.config.image_size}
    ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)


def main() -> None:
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(args.work / "log.txt")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    torch.set_num_threads(1)  # the threads of `--threads` share the work instead
    torch.manual_seed(args.seed)
    teacher = ViTForImageClassification.from_pretrained(args.start).float().eval().requires_grad_(False)
    images, labels, _ = load_split(args.data, "train")
    student = finer_patches(teacher, normalise(images[:200])).train()
    freeze_fetching(student)
    progress = Progress(args, student, build_optimizers(args, student))
    if args.until:
        train_student(args, progress, teacher, images, labels)

    base = progress.averaged()
    images_seen = progress.step * args.batch_size
    test_images, test_labels, _ = load_split(args.data, "test")
    facts = {"student": accuracy(base, test_images, test_labels), "teacher": accuracy(teacher, test_images, test_labels)}  # fmt: skip
    logger.info("test top-1 of the 80 classes: base-tiny %(teacher).4f, base-small %(student).4f", facts)
    facts |= {
        "weights": base.num_parameters() / 1e6,
        "training": "Nothing was trained after that.",
        "time": "",
        "until": "",
    }
    if progress.step:
        facts |= {"training": TRAINING.format(step=progress.step, epochs=images_seen / len(images), **vars(args))}
        facts |= {
            "time": f" and {progress.seconds / 60:.0f} minutes more on {args.threads} CPU cores",
            "until": " --until HH:MM",
        }
    write(base, args.output)
    (args.output / "README.md").write_text(CARD.format(**vars(args) | facts))


if __name__ == "__main__":
    main()
