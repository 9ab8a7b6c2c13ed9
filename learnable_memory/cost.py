"""What the two streams cost, by arithmetic alone: multiplications with their additions, of one image, forward."""


def base_layer(tokens: int, width: int, mlp_width: int) -> int:
    """One layer of the base: four projections, the MLP, scores and mixing."""
    return tokens * (4 * width * width + 2 * width * mlp_width) + 2 * tokens * tokens * width


def head_layer(tokens: int, width: int, mlp_width: int, memory_tokens: int = 0) -> int:
    """One layer of a head's class token, which asks all base tokens, itself and its memory.

    Keys and values of the memory are left out: they are computed once for a batch, not for each image.
    """
    return 4 * width * width + 2 * width * mlp_width + 2 * (tokens + 1 + memory_tokens) * width


def base(tokens: int, width: int, mlp_width: int, layers: int, patch_values: int, patches: int) -> int:
    """The base's forward pass; `patch_values` is channels x height x width of a patch."""
    return layers * base_layer(tokens, width, mlp_width) + patches * patch_values * width


def head(tokens: int, width: int, mlp_width: int, layers: int, memory_tokens: int, classes: int) -> int:
    """What one more head adds to it."""
    return layers * head_layer(tokens, width, mlp_width, memory_tokens) + classes * width
