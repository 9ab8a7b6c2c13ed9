"""Pretrain `models/base-tiny`, the Vision Transformer that ships with this project.

Card
    Data      80 of the 100 classes of the CIFAR-100 training set: every fifth class (index 4, 9, 14, ...) is left out,
              so that those 20 (data set `CIFAR100-new20`) are natural images the base has never seen.
    Model     plain HuggingFace `ViTForImageClassification`: 32x32 pixels, patches of 8x8, 17 tokens, width 192,
              9 layers, 3 attention heads, 4.0 million weights, saved as float16.
    Recipe    A small convolutional network learns the 80 classes first (SGD, one cycle) and then teaches the
              transformer: a transformer alone needs far more images than 40,000 to learn that neighbouring pixels
              belong together (DeiT, Touvron et al. 2021, section 5; "a good teacher is patient and consistent",
              Beyer et al. 2022, section 3: teacher and student see the very same augmented image).
              Student: Muon for the matrices of the layers and AdamW for everything else, warm-up + cosine,
              TrivialAugment, random crop and flip, CutMix or MixUp, label smoothing.
    Set-up    pip install .
    Command   python experiments/pretrain_base_tiny.py --data DIR/datasets/cifar100 --output models/base-tiny
    Time      about two hours on two CPU cores
    Result    in `models/base-tiny/README.md`, written at the end of the run

The test images of the 80 classes are looked at once, at the end. The teacher is kept beside the output (`--work`) and
read back on a second start, and the student goes on from its last finished epoch.
"""
# ruff: noqa: E501 (rows of the card's table)

import argparse
import json
import logging
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

logger = logging.getLogger("pretrain_base_tiny")
HELD_OUT = range(4, 100, 5)  # class indices of CIFAR100-new20
KEPT = [index for index in range(100) if index not in HELD_OUT]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-100's train-* and test-*.parquet")
    parser.add_argument("--output", type=Path, default=Path("models/base-tiny"))
    parser.add_argument("--work", type=Path, default=Path("runs/base-tiny"), help="teacher and progress are kept here")
    parser.add_argument("--teacher_epochs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak rate of Muon and of AdamW")
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--distillation", type=float, default=0.8, help="weight of the teacher's answers in the loss")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--patch_size", type=int, default=8)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


# ---------------------------------------------------------------------------------------------------------------- data
def load_split(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """The kept classes of one split: images uint8 [n, 3, 32, 32], labels int64 [n] in 0..79, their 80 names."""
    from datasets import load_dataset

    files = sorted(str(path) for path in folder.glob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"no {split}-*.parquet in {folder}")
    data = load_dataset("parquet", data_files={split: files}, split=split)
    names = data.features["fine_label"].names
    new_label = {old: new for new, old in enumerate(KEPT)}
    data = data.filter(lambda label: label in new_label, input_columns="fine_label")
    labels = torch.tensor([new_label[label] for label in data["fine_label"]])
    images = torch.stack([v2.functional.pil_to_tensor(row["img"]) for row in data])
    return images, labels, [names[index] for index in KEPT]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> float32 in [-1, 1], the mean and standard deviation of 0.5 that the processor writes."""
    return images.float().div_(127.5).sub_(1.0)


def crop_and_flip(images: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """A random crop of each padded image and a random flip, all images of the batch at once; uint8 in and out."""
    batch, _, height, width = images.shape
    padded = F.pad(images.float(), (padding,) * 4, mode="reflect").to(torch.uint8)
    device = images.device
    rows = torch.randint(0, 2 * padding + 1, (batch, 1), device=device) + torch.arange(height, device=device)
    columns = torch.randint(0, 2 * padding + 1, (batch, 1), device=device) + torch.arange(width, device=device)
    flipped = torch.rand(batch, device=device) < 0.5
    columns[flipped] = columns[flipped].flip(1)
    index = torch.arange(batch, device=device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=device)[None, :, None, None]
    return padded[index, channel, rows[:, None, :, None], columns[:, None, None, :]]


def trivial_augment(images: torch.Tensor, group: int = 8) -> torch.Tensor:
    """TrivialAugment with one draw per group of images: on a CPU one draw per image would cost as much as training."""
    augment = v2.TrivialAugmentWide()
    return torch.cat([augment(part) for part in images.split(group)])


# ------------------------------------------------------------------------------------------------------------- teacher
class Block(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )


class Residual(nn.Module):
    """x + two blocks of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(channels, channels), Block(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.blocks(x)


def build_teacher(num_labels: int, width: int = 64) -> nn.Module:
    """A residual network of eleven convolutions; pixels [B, 3, 32, 32] -> logits [B, num_labels]."""
    stages: list[nn.Module] = [Block(3, width // 2)]
    inputs = width // 2
    for outputs in (width, 2 * width, 4 * width):
        stages += [Block(inputs, outputs, stride=2), Residual(outputs)]
        inputs = outputs
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_labels))
    return nn.Sequential(*stages, pool).to(memory_format=torch.channels_last)


def train_teacher(args: argparse.Namespace, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Train the teacher with one cycle of SGD, or read it back where an earlier start has finished it."""
    teacher = build_teacher(len(KEPT)).to(args.device)
    path = args.work / "teacher.pt"
    if path.exists():
        teacher.load_state_dict(torch.load(path, weights_only=True))
        return teacher.eval()
    steps = args.teacher_epochs * (len(images) // args.batch_size)
    optimizer = torch.optim.SGD(teacher.parameters(), 0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.25)
    for epoch in range(args.teacher_epochs):
        batches = torch.randperm(len(images)).split(args.batch_size)[: len(images) // args.batch_size]
        for index in (bar := tqdm(batches, desc=f"teacher {epoch + 1}/{args.teacher_epochs}", mininterval=10)):
            pixels = normalise(crop_and_flip(images[index])).contiguous(memory_format=torch.channels_last)
            with torch.autocast(args.device, torch.bfloat16):
                logits = teacher(pixels)
            loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    torch.save(teacher.state_dict(), path)
    return teacher.eval()


# ------------------------------------------------------------------------------------------------------------- student
def build_student(args: argparse.Namespace, names: list[str]) -> ViTForImageClassification:
    """A randomly initialised ViT whose position embeddings start as two-dimensional sines and cosines."""
    config = ViTConfig(
        image_size=32, patch_size=args.patch_size, hidden_size=args.width, intermediate_size=4 * args.width,
        num_hidden_layers=args.layers, num_attention_heads=args.width // 64, layer_norm_eps=1e-6,
        num_labels=len(names), id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    student = ViTForImageClassification(config)
    side, quarter = 32 // args.patch_size, args.width // 4
    angle = torch.arange(side)[:, None] * torch.exp(-math.log(10.0 * side) * torch.arange(quarter) / quarter)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, D / 2]
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=2)  # [side, side, D]
    with torch.no_grad():
        student.vit.embeddings.position_embeddings[0, 1:] = 0.1 * grid.flatten(0, 1)
    return student


def build_optimizers(args: argparse.Namespace, student: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest; no decay for vectors and positions."""
    matrices = [p for n, p in student.named_parameters() if ".layers." in n and p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in student.parameters() if id(p) not in inside]
    groups = [
        {"params": [p for p in rest if p.ndim in (2, 4)], "weight_decay": args.weight_decay},
        {"params": [p for p in rest if p.ndim not in (2, 4)], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(
        matrices, lr=args.lr, momentum=0.95, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99))]


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def distillation_loss(args, logits: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(1 - w) cross entropy with the mixed labels + w T^2 KL(teacher || student) at temperature T (Hinton 2015)."""
    temperature, weight = args.temperature, args.distillation
    hard = F.cross_entropy(logits, targets, label_smoothing=0.1)
    soft = F.kl_div(
        F.log_softmax(logits / temperature, 1), F.log_softmax(taught / temperature, 1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    return (1 - weight) * hard + weight * temperature**2 * soft


def train_student(args, student: nn.Module, teacher: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """All epochs of the student; each finished epoch is kept, and a second start goes on after the last one."""
    optimizers = build_optimizers(args, student)
    mix = v2.RandomChoice([v2.CutMix(num_classes=len(KEPT)), v2.MixUp(alpha=0.4, num_classes=len(KEPT)),
                           lambda pixels, y: (pixels, F.one_hot(y, len(KEPT)).float())], p=[0.4, 0.2, 0.4])  # fmt: skip
    per_epoch = len(images) // args.batch_size
    steps, path, first = args.epochs * per_epoch, args.work / "student.pt", 0
    if path.exists():
        kept = torch.load(path, weights_only=True)
        student.load_state_dict(kept["student"])
        for optimizer, state in zip(optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first = kept["epochs"]
    student.train()
    for epoch in range(first, args.epochs):
        torch.manual_seed(args.seed * 1000 + epoch + 1)  # so that a second start draws what one long run would draw
        total = 0.0
        batches = torch.randperm(len(images)).split(args.batch_size)[:per_epoch]
        for number, index in enumerate(bar := tqdm(batches, desc=f"student {epoch + 1}/{args.epochs}", mininterval=10)):
            pixels, targets = mix(normalise(trivial_augment(crop_and_flip(images[index]))), labels[index])
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * rate_factor(epoch * per_epoch + number, steps, 2 * per_epoch)
            with torch.autocast(args.device, torch.bfloat16):
                with torch.no_grad():
                    taught = teacher(pixels.contiguous(memory_format=torch.channels_last))
                logits = student(pixels).logits
            loss = distillation_loss(args, logits.float(), taught.float(), targets)
            student.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            total += loss.item()
            bar.set_postfix(loss=f"{total / (number + 1):.3f}")
        state = {"student": student.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
        torch.save(state | {"epochs": epoch + 1}, path)
    student.eval()


# ------------------------------------------------------------------------------------------------------ test and write
@torch.no_grad()
def accuracy(model, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 over all images, in [0, 1]."""
    right = 0
    for pixels, truth in zip(images.split(500), labels.split(500), strict=True):
        output = model(normalise(pixels))
        right += int((getattr(output, "logits", output).argmax(1) == truth).sum())
    return right / len(images)


CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-classification
datasets: [uoft-cs/cifar100]
metrics: [accuracy]
---
# base-tiny

A plain HuggingFace `ViTForImageClassification` for demonstrations and tests: {pixels}x{pixels} pixels, {tokens} tokens,
width {width}, {layers} layers, {weights:.1f} million weights. float16 in the file, float32 in use.

| | |
|---|---|
| data | 80 of the 100 classes of CIFAR-100's training images (40,000 images); every fifth class (index 4, 9, 14, ...) was left out and is the data set `CIFAR100-new20` |
| recipe | distilled from a small convolutional network trained on the same images ({teacher_epochs} epochs; its test top-1 is {teacher:.2%}); {epochs} epochs of Muon + AdamW, warm-up + cosine, peak rate {lr}, batch {batch_size}, random crop, flip, TrivialAugment, CutMix or MixUp, label smoothing 0.1 |
| test accuracy | **{student:.2%}** top-1 on the 8,000 test images of the 80 classes, measured once on the saved float16 weights |
| training time | {minutes:.0f} minutes (teacher and student) on {machine} |
| command | `python experiments/pretrain_base_tiny.py --data DIR/datasets/cifar100 --epochs {epochs} --teacher_epochs {teacher_epochs}` |

Not meant for anything but this project: 80 classes of tiny photographs.
"""


def write(args, student: ViTForImageClassification, facts: dict) -> None:
    """Weights as float16, a config that says float32, the processor and the card."""
    student.half().save_pretrained(args.output)
    config = json.loads((args.output / "config.json").read_text())
    config["dtype"] = "float32"
    (args.output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    size = {"height": 32, "width": 32}
    ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(args.output)
    tokens = (32 // args.patch_size) ** 2 + 1
    card = CARD.format(
        pixels=32, tokens=tokens, weights=sum(p.numel() for p in student.parameters()) / 1e6, **vars(args), **facts
    )
    (args.output / "README.md").write_text(card)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    start = time.time()
    images, labels, names = load_split(args.data, "train")
    images, labels = images.to(args.device), labels.to(args.device)
    teacher = train_teacher(args, images, labels)
    student = build_student(args, names).to(args.device)
    train_student(args, student, teacher, images, labels)
    minutes = (time.time() - start) / 60

    test_images, test_labels, _ = load_split(args.data, "test")
    test_images, test_labels = test_images.to(args.device), test_labels.to(args.device)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU cores"
    facts = {"minutes": minutes, "machine": machine, "teacher": accuracy(teacher, test_images, test_labels)}
    facts["student"] = accuracy(student.half().float(), test_images, test_labels)
    write(args, student, facts)
    logger.info("test top-1 of the 80 classes: teacher %.4f, student %.4f", facts["teacher"], facts["student"])


if __name__ == "__main__":
    main()
