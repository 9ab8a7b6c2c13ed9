"""What the two streams cost, by arithmetic alone: multiplications with their additions, of one image, forward; and how
many numbers a head has. `ranks` are those of its low-rank weights by projection, as `HeadSpec.low_rank`."""

from collections.abc import Mapping
from types import MappingProxyType

from learnable_memory.projections import projection_size

NO_RANKS: Mapping[str, int] = MappingProxyType({})


def base_layer(tokens: int, width: int, mlp_width: int) -> int:
    """One layer of the base: four projections, the MLP, scores and mixing."""
    return tokens * (4 * width * width + 2 * width * mlp_width) + 2 * tokens * tokens * width


def low_rank_layer(width: int, mlp_width: int, ranks: Mapping[str, int]) -> int:
    """One layer of low-rank weights: their numbers, and as many multiplications for the class token."""
    return sum(rank * sum(projection_size(name, width, mlp_width)) for name, rank in ranks.items())


def head_layer(
    tokens: int, width: int, mlp_width: int, memory_tokens: int = 0, ranks: Mapping[str, int] = NO_RANKS
) -> int:
    """One layer of a head's class token, which asks all base tokens, itself and its memory.

    Keys and values of the memory are left out: they are computed once for a batch, not for each image.
    """
    projections = 4 * width * width + 2 * width * mlp_width + low_rank_layer(width, mlp_width, ranks)
    return projections + 2 * (tokens + 1 + memory_tokens) * width


def base(tokens: int, width: int, mlp_width: int, layers: int, patch_values: int, patches: int) -> int:
    """The base's forward pass; `patch_values` is channels x height x width of a patch."""
    return layers * base_layer(tokens, width, mlp_width) + patches * patch_values * width


def head(
    tokens: int, width: int, mlp_width: int, layers: int, memory_tokens: int, classes: int,
    ranks: Mapping[str, int] = NO_RANKS,
) -> int:  # fmt: skip
    """What one more head adds to it."""
    return layers * head_layer(tokens, width, mlp_width, memory_tokens, ranks) + classes * width


def head_numbers(
    width: int, mlp_width: int, layers: int, memory_tokens: int, classes: int, ranks: Mapping[str, int] = NO_RANKS
) -> int:
    """The numbers of a head: class token, memory, low-rank weights, and the classifier with its bias."""
    of_layers = layers * (memory_tokens * width + low_rank_layer(width, mlp_width, ranks))
    return width + of_layers + classes * (width + 1)
