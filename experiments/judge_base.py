"""Which base heads stand on better: a linear probe and a head of 5 memory tokens with rank 8, on four data sets.

Card
    Data      CIFAR100-new20 and Fashion-MNIST (at most --images training and --tests test images of each class),
              Digits, and a folder of photographs. Evaluation views only, nothing augmented.
    Question  The mean over the data sets of both methods; each at its best rate on the selection split, three seeds.
    Set-up    pip install '.[experiments]'
    Command   python experiments/judge_base.py models/base-tiny models/base-small --data DIR/datasets/cifar100 \\
                  --photographs folder:PATH --work runs/judge
    Time      ten minutes a base on one free CPU core

A data set that has been judged for a base is not judged again; `WORK/results.jsonl` has a line for each run.
"""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FASHION = ROOT / "learnable_memory" / "assets" / "fashion_mnist"
NEW_CLASSES = range(4, 100, 5)  # of CIFAR-100, never seen by the bases
METHODS = ("head", "memory")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+", help="folders of base models; differences are to the first")
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-100's train-* and test-*.parquet")
    parser.add_argument("--photographs", required=True, help="folder:PATH with train and val")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these data sets, by their names in the table")
    parser.add_argument("--work", type=Path, default=Path("runs/judge"))
    parser.add_argument("--images", type=int, default=50, help="training images a class, at most")
    parser.add_argument("--tests", type=int, default=50, help="test images a class, at most")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.01], help="of AdamW")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def write_part(files: list[Path], label_column: str, classes, folder: Path, count: int) -> None:
    """The first images of each class as PNG files, a folder for each class."""
    left = dict.fromkeys(classes, count)
    for file in files:
        table = pq.read_table(file)
        images = table[next(name for name in ("img", "image") if name in table.column_names)]
        for number, label in enumerate(table[label_column].to_pylist()):
            if left.get(label, 0) > 0:
                left[label] -= 1
                place = folder / f"class{label:02d}"
                place.mkdir(parents=True, exist_ok=True)
                Image.open(io.BytesIO(images[number]["bytes"].as_py())).save(place / f"{left[label]:04d}.png")


def data_sets(args: argparse.Namespace) -> dict[str, str]:
    """What is judged on: its name in the table -> --dataset of vit_train.py."""
    new20, fashion = args.work / "CIFAR100-new20", args.work / "Fashion-MNIST"
    for split, part, count in (("train", "train", args.images), ("test", "val", args.tests)):
        if not (new20 / part).exists():
            write_part(sorted(args.data.glob(f"{split}-*.parquet")), "fine_label", NEW_CLASSES, new20 / part, count)
        if not (fashion / part).exists():
            write_part([FASHION / f"{split}.parquet"], "label", range(10), fashion / part, count)
    return {new20.name: f"folder:{new20}", "Photographs": args.photographs, "Digits": "Digits",
            fashion.name: f"folder:{fashion}"}  # fmt: skip


def judge(args: argparse.Namespace, base: str, name: str, source: str) -> list[dict]:
    """The runs of all methods, rates and seeds on one data set."""
    output = args.work / Path(base).name
    command = [sys.executable, str(ROOT / "vit_train.py"), "--dataset", source, "--name", name, "--base_model", base]
    command += ["--method", *METHODS, "-m", "5", "--rank", "8", "--optimizer", "adamw", "--epochs", str(args.epochs)]
    command += ["--lr", *map(str, args.rates), "--data_seeds", *map(str, args.seeds), "--batch_size", "64"]
    command += ["--views", "0", "--cache", "memory", "--output", str(output), "--overwrite", "--no_download"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    cells = json.loads((output / f"{name}_grid.json").read_text())["cells"]
    return [
        {"base": base, "data": name, "method": cell["method"], "lr": cell["lr"], "seed": cell["data_seed"],
         "select": cell["select"]["top1"], "top1": cell["eval"]["top1"]}
        for cell in cells
    ]  # fmt: skip


def chosen(rows: list[dict], **wanted) -> list[float]:
    """Top-1, in percent, of each seed at the rate that is best on the selection split."""
    rows = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    seeds = sorted({row["seed"] for row in rows})
    return [100 * max((r for r in rows if r["seed"] == seed), key=lambda r: r["select"])["top1"] for seed in seeds]


def table(rows: list[dict], bases: list[str], names: list[str]) -> str:
    """Markdown: a row for each base and method, mean and standard deviation over the seeds, and the mean of means."""
    lines = [f"| base | method | {' | '.join(names)} | mean |", "| --- | --- |" + " ---: |" * (len(names) + 1)]
    for method, label in zip(METHODS, ("linear probe", "5 memory tokens, rank 8"), strict=True):
        for base in bases:
            found = [chosen(rows, base=base, data=name, method=method) for name in names]
            texts = [f"{mean(f):.2f} ± {stdev(f) if len(f) > 1 else 0:.2f}" for f in found]
            lines.append(f"| {Path(base).name} | {label} | {' | '.join(texts)} | {mean(map(mean, found)):.2f} |")
    return "\n".join(lines)


def main() -> None:
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    sources = {name: source for name, source in data_sets(args).items() if name in (args.only or [name])}
    path = args.work / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for name, source in sources.items():
        for base in args.bases:
            if not any(row["base"] == base and row["data"] == name for row in rows):
                rows += judge(args, base, name, source)
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = table(rows, args.bases, list(sources))
    (args.work / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
