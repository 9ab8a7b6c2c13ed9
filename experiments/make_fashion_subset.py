"""Draw the part of Fashion-MNIST that is committed under `learnable_memory/assets/fashion_mnist`.

    apt-get install dataset-fashion-mnist
    python experiments/make_fashion_subset.py /usr/share/datasets/fashion-mnist

Balanced over the 10 classes, from the official training and test split, in the official order. The rows' `path` holds
the official split and index, so that everybody can check where an image came from.
"""

import argparse
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
OFFICIAL_NAMES = {"train": "train", "test": "t10k"}
SEED = 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the four official *-ubyte.gz files")
    parser.add_argument("--output", type=Path, default=Path("learnable_memory/assets/fashion_mnist"))
    parser.add_argument("--train_per_class", type=int, default=600)
    parser.add_argument("--test_per_class", type=int, default=200)
    return parser.parse_args()


def read_idx(path: Path, header: int) -> np.ndarray:
    """The values of a gzipped idx file as flat uint8, after a header of so many bytes."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def draw(labels: np.ndarray, per_class: int) -> np.ndarray:
    """`per_class` indices of each class, sorted; from RandomState, whose stream NumPy promises to keep."""
    random = np.random.RandomState(SEED)
    members = [random.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(len(CLASSES))]
    return np.sort(np.concatenate(members))


def to_png(pixels: np.ndarray) -> bytes:
    """uint8 [28, 28] -> the bytes of a grey PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def write_split(folder: Path, split: str, per_class: int, output: Path) -> None:
    """One parquet file in the hub's layout, with the class names where the `datasets` library keeps them."""
    name = OFFICIAL_NAMES[split]
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28)
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz", header=8)
    rows = draw(labels, per_class)
    features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table(
        {
            "image": [{"bytes": to_png(images[row]), "path": f"{split}-{row:05d}.png"} for row in rows],
            "label": labels[rows].astype(np.int64),
        },
        schema=schema,
    )
    pq.write_table(table, output / f"{split}.parquet", compression="zstd", use_dictionary=["label"])


if __name__ == "__main__":
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    write_split(args.folder, "train", args.train_per_class, args.output)
    write_split(args.folder, "test", args.test_per_class, args.output)
