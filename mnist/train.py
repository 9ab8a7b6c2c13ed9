"""Train a small ViT on handwritten digits, teach it two further tasks, put these together, and check what is promised.

    python mnist/train.py --directory DIR       # MNIST, downloaded into DIR/datasets
    python mnist/train.py --no_download         # scikit-learn's Digits, unless MNIST is there already

The base learns to tell the ten digits. Then it is frozen, and two copies of it learn one task each:

    fashion    ten kinds of clothing: images that look like nothing the base has seen
    rotation   by how many quarter turns a digit was turned: the base's images, but a question it was never asked, and
               whose answer it had no reason to keep in its class token. A turned 0 or 8 often looks upright, so nobody
               can reach 100 percent.

Each image set has its own training and test images; a rotated test image comes from the test images.
"""

import argparse
import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from model import Config, MemoryViT
from torch import Tensor, nn

FASHION = Path(__file__).resolve().parent.parent / "learnable_memory" / "assets" / "fashion_mnist"
MEMORY_TOKENS = {"fashion": 10, "rotation": 5}
BASE_LR, HEAD_LR = 1e-3, 3e-2  # chosen on a tenth of Digits' and Fashion-MNIST's training images, held out for it
ROUNDING = 1e-4  # of a logit; see `greatest_difference`


class Images(NamedTuple):
    """Grey pixels uint8 [n, 28, 28] and labels int64 [n]."""

    pixels: Tensor
    labels: Tensor

    def batch(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images [B, 1, 28, 28] in [-1, 1] and labels [B]."""
        return self.pixels[rows, None].float() / 127.5 - 1, self.labels[rows]


class Task(NamedTuple):
    classes: int
    train: Images
    test: Images


# ---------------------------------------------------------------------------------------------------------------- data
def read_mnist(folder: Path, download: bool) -> Task:
    """MNIST, 60,000 and 10,000 images, as torchvision stores it. Raises RuntimeError or OSError if it cannot be had."""
    from torchvision.datasets import MNIST

    train, test = (MNIST(folder, train=train, download=download) for train in (True, False))
    return Task(10, Images(train.data, train.targets), Images(test.data, test.targets))


def read_digits() -> Task:
    """scikit-learn's Digits, 1,797 images of 8x8 pixels: enlarged to 20x20 in a black frame, as MNIST has them.

    There is no official test split: a fixed fifth of each class is held out.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # [n, 1, 8, 8], values were 0..16
    large = nn.functional.interpolate(small, size=(20, 20), mode="bilinear", align_corners=False)
    everything = Images(
        nn.functional.pad(large, (4, 4, 4, 4))[:, 0].round().to(torch.uint8), torch.from_numpy(digits.target).long()
    )
    rows = train_test_split(range(len(everything.labels)), test_size=0.2, random_state=0, stratify=digits.target)
    return Task(10, *(Images(*(tensor[torch.tensor(part)] for tensor in everything)) for part in rows))


def read_fashion() -> Task:
    """The part of Fashion-MNIST that is committed beside this folder: 6,000 and 2,000 images."""
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    def read(split: str) -> Images:
        table = pq.read_table(FASHION / f"{split}.parquet").to_pydict()
        images = [np.array(Image.open(io.BytesIO(image["bytes"]))) for image in table["image"]]
        return Images(torch.from_numpy(np.stack(images)), torch.tensor(table["label"]))

    return Task(10, read("train"), read("test"))


def turned(images: Images, seed: int) -> Images:
    """Each image, turned by a random number of quarter turns, which is its new label."""
    turns = torch.randint(4, images.labels.shape, generator=torch.Generator().manual_seed(seed))
    pixels = torch.empty_like(images.pixels)
    for quarter in range(4):
        pixels[turns == quarter] = images.pixels[turns == quarter].rot90(quarter, (1, 2))
    return Images(pixels, turns)


def load_tasks(directory: Path, download: bool = True) -> dict[str, Task]:
    """The base's task, called "base", and those of the two heads."""
    try:
        digits, source = read_mnist(directory / "datasets", download), "MNIST"
    except (RuntimeError, OSError) as error:
        why = str(error).splitlines()[0] if download else "--no_download"  # torchvision would advise its own option
        print(f"No MNIST in {directory / 'datasets'} ({why}).")
        print("Going on with scikit-learn's Digits in its place: its figures are not MNIST's.")
        digits, source = read_digits(), "Digits"
    print(f"base: {source}, {len(digits.train.labels):,} training and {len(digits.test.labels):,} test images")
    rotation = Task(4, turned(digits.train, seed=0), turned(digits.test, seed=1))
    return {"base": digits, "fashion": read_fashion(), "rotation": rotation}


# ------------------------------------------------------------------------------------------------------------ training
def train(
    model: MemoryViT, name: str, parameters: Sequence[nn.Parameter], images: Images, steps: int, seed: int,
    lr: float, batch_size: int = 64,
) -> list[float]:  # fmt: skip
    """Train `parameters` on the answer called `name`: AdamW, short warm-up, cosine decay. Returns each step's loss."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    order, losses = torch.empty(0, dtype=torch.long), []
    for _ in range(steps):
        if len(order) < batch_size:  # every image once before any comes again
            order = torch.cat([order, torch.randperm(len(images.labels), generator=generator)])
        rows, order = order[:batch_size], order[batch_size:]
        pixels, labels = images.batch(rows)
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()  # pixels; one shift for the batch
        loss = nn.functional.cross_entropy(model(pixels.roll(shift, (2, 3)))[name], labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def answers(model: MemoryViT, images: Images, batch_size: int = 500) -> dict[str, Tensor]:
    """Logits [n, C] of the base and of each head for all images."""
    batches = [model(images.batch(slice(i, i + batch_size))[0]) for i in range(0, len(images.labels), batch_size)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def greatest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Of two ways to the same logits. On paper it is 0.

    In float32 a sum may be taken in another order if it has more terms, even where the further terms are 0. The default
    run without MNIST showed up to 7e-6; ROUNDING leaves room for other machines and larger logits.
    """
    return (ours - theirs).abs().max().item()


# --------------------------------------------------------------------------------------------------------------- story
def train_base(task: Task, steps: int, seed: int) -> tuple[MemoryViT, list[float]]:
    torch.manual_seed(seed)
    base = MemoryViT(Config(classes=task.classes))
    return base, train(base, "base", list(base.parameters()), task.train, steps, seed, BASE_LR)


def train_head(base: MemoryViT, name: str, task: Task, steps: int, seed: int) -> tuple[MemoryViT, list[float]]:
    """A copy of the base with one head, as somebody would train it who knows nothing of the other heads."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    parameters = model.add_head(name, task.classes, MEMORY_TOKENS[name])
    return model, train(model, name, parameters, task.train, steps, seed, HEAD_LR)


def put_together(base: MemoryViT, alone: dict[str, MemoryViT]) -> MemoryViT:
    together = copy.deepcopy(base)
    for model in alone.values():
        together.concatenate(model)
    return together


def check_base(base: MemoryViT, together: MemoryViT, images: Images) -> None:
    """That training heads moved no weight of the base, and that no value in a head reaches its answers.

    Raises RuntimeError otherwise.
    """
    ours, theirs = base.base_parameters(), together.base_parameters()
    if not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise RuntimeError("a weight of the base has changed while heads were trained")
    other_heads = copy.deepcopy(together)
    for parameter in other_heads.heads.parameters():
        nn.init.normal_(parameter)
    # The shapes are the same, so there is no rounding to allow for.
    if not torch.equal(answers(together, images)["base"], answers(other_heads, images)["base"]):
        raise RuntimeError("the base's answers depend on what the heads hold")


def report(base: MemoryViT, alone: dict[str, MemoryViT], together: MemoryViT, tasks: dict[str, Task]) -> None:
    """Print a row for each task. Raises RuntimeError if an answer moved by more than ROUNDING."""
    print("| task | classes | memory tokens | alone | together | greatest difference of a logit |")
    print("|---|---|---|---|---|---|")
    for name, model in {"base": base, **alone}.items():
        images = tasks[name].test
        before, after = answers(model, images)[name], answers(together, images)[name]
        difference = greatest_difference(before, after)
        scores = f"{accuracy(before, images.labels):.1f} | {accuracy(after, images.labels):.1f}"
        print(f"| {name} | {tasks[name].classes} | {MEMORY_TOKENS.get(name, 0)} | {scores} | {difference:.0e} |")
        if not difference <= ROUNDING:
            raise RuntimeError(f"{name} does not answer together as it did alone: {difference:.0e} > {ROUNDING:.0e}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path.home(), help="MNIST is kept in its folder datasets/")
    parser.add_argument("--no_download", action="store_true", help="take Digits where MNIST is not there already")
    parser.add_argument("--steps", type=int, default=1000, help="of 64 images each, for the base and for each head")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and of the order of the images")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}, but it has to be 1 or more")
    return args


def main() -> None:
    args, start = parse_arguments(), time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - start:4.0f} s  {what}", flush=True)

    tasks = load_tasks(args.directory, download=not args.no_download)
    base, losses = train_base(tasks["base"], args.steps, args.seed)
    say(f"base: loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    alone = {}
    for name in MEMORY_TOKENS:
        alone[name], losses = train_head(base, name, tasks[name], args.steps, args.seed)
        say(f"{name}, in a copy of the base: loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    together = put_together(base, alone)
    check_base(base, together, tasks["base"].test)
    say("put together; the base's weights are unchanged, and its answers do not depend on the heads, bit for bit")
    print("\ntop-1 on the test images, in percent")
    report(base, alone, together, tasks)


if __name__ == "__main__":
    main()
