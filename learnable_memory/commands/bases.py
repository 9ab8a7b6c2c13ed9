"""`python -m learnable_memory bases MODEL`: what a base is, and what heads on it cost, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learnable_memory.config import Places
from learnable_memory.options import NOT_EMPTY, at_least, option, parse
from learnable_memory.projections import USUAL_PROJECTIONS
from learnable_memory.text_table import side_by_side
from learnable_memory.wording import counted

if TYPE_CHECKING:
    from learnable_memory.transforms import Preprocessing
    from vit import MemoryCapableViT

CLASSES = 100  # of the heads whose cost is shown
HEADS = ((0, 0), (1, 0), (5, 0), (20, 0), (1, 1), (1, 8))  # their cells, and their rank


@dataclass(frozen=True, kw_only=True)
class BasesOptions(Places):
    """Which base."""

    model: str = option(help="a name on the hub, a folder, or a checkpoint file", flags=("MODEL",), legal=NOT_EMPTY)
    image_size: int | None = option(
        None, "side of the images", legal=at_least(1), unit="pixels", default_help="the base's own"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Load the base and print its description."""
    options = parse(
        BasesOptions, "Show what a base is, and what it costs.", argv, prog="python -m learnable_memory bases"
    )
    from learnable_memory.commands.model import open_base, start_logging

    start_logging()
    model, preprocessing = open_base(options.model, options.base_cache, not options.no_download, options.image_size)
    rows = describe(model, preprocessing)
    print(side_by_side([list(rows), list(rows.values())], str.ljust))


def describe(model: MemoryCapableViT, preprocessing: Preprocessing) -> dict[str, str]:
    """What the command prints: a name for each line, and its text."""
    from learnable_memory import cost

    (rows, columns), (patch_height, patch_width) = model.patch_grid, model.anatomy.patch_size
    shape = model.num_tokens, model.base_width, model.base_mlp_width, model.base_layers
    patch_values = 3 * patch_height * patch_width
    base = cost.base(*shape, patch_values, rows * columns)
    labels = model.config.num_labels
    classes = counted(labels, "class", "classes") if model.has_base_classifier else "none, so no answers of its own"
    has_class_token = model.anatomy.has_class_token(model.encoder_module)
    special = (
        f"the class token, {model.anatomy.special - 1} further special tokens" if has_class_token else "no class token"
    )
    lines = {
        "base": str(model.base_id),
        "class": type(model).__name__,
        "tokens": f"{model.num_tokens:,}: {special}, {rows}x{columns} patches of {patch_height}x{patch_width} pixels",
        "width": f"{model.base_width:,}, MLP {model.base_mlp_width:,}",
        "layers": f"{model.base_layers}, {model.base_attention_heads} attention heads each",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "classifier": classes,
        "preprocessing": f"{preprocessing.words}; hash {preprocessing.hash}",
        "fingerprint": model.fingerprint,
        "base, an image": f"{_operations(base)} multiplications with their additions",
    }
    for memory_tokens, rank in HEADS:
        ranks = dict.fromkeys(USUAL_PROJECTIONS, rank)
        extra = cost.head(*shape, memory_tokens, CLASSES, ranks)
        numbers = cost.head_numbers(*shape[1:], memory_tokens, CLASSES, ranks)
        cells = f"{memory_tokens} {'cell' if memory_tokens == 1 else 'cells'}"
        lines[f"+ a head, {cells}{f', rank {rank}' if rank else ''}"] = (
            f"{_operations(extra)} more, {extra / base:.2%} of the base; {numbers:,} numbers to learn, "
            f"{4 * numbers / 1000:,.0f} kB ({CLASSES} classes)"
        )
    return lines


def _operations(multiplications: int) -> str:
    return f"{multiplications / 1e9:.2f} G" if multiplications >= 1e9 else f"{multiplications / 1e6:.2f} M"
