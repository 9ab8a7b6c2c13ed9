"""`python -m learnable_memory figures`: draw the pictures of the README from the code that they explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learnable_memory.options import Options, option, parse

PATCHES = 4  # few enough that every token is a square that can be seen
MEMORY_TOKENS = [2, 1, 3]


@dataclass(frozen=True, kw_only=True)
class FiguresOptions(Options):
    """Where the pictures go."""

    output: Path = option(Path("images"), "folder for the pictures")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the mask, the extension's mask and the two streams, and print where they are."""
    options = parse(FiguresOptions, "Draw the pictures of the README.", argv, prog="python -m learnable_memory figures")

    from learnable_memory import plots
    from learnable_memory.two_streams_plot import two_streams
    from vit import build_attention_mask

    for name, extension in (("attention_mask", False), ("attention_mask_extension", True)):
        mask = build_attention_mask(PATCHES, MEMORY_TOKENS, extension)
        path = plots.attention_mask(mask, MEMORY_TOKENS, PATCHES, options.output / f"{name}.png", extension)
        print(path)
    print(two_streams(options.output / "two_streams.png"))
