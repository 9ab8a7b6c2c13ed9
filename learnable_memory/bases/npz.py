"""Google's original files (`ViT-B_16.npz` and the like) of github.com/google-research/vision_transformer."""

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from learnable_memory.bases.encoder import Encoder
from learnable_memory.bases.refused import CONVOLUTIONS

logger = logging.getLogger(__name__)

# Those of flax -> those of `Encoder`.
RENAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^cls$": "class_token",
    r"^Transformer/posembed_input/pos_embedding$": "positions",
    r"^embedding/": "patches/",
    r"^Transformer/encoderblock_(\d+)/": r"layers.\1.",
    r"^Transformer/encoder_norm/": "norm/",
    r"LayerNorm_([02])/": lambda found: f"norm{1 if found[1] == '0' else 2}/",
    r"MultiHeadDotProductAttention_1/(query|key|value)/": r"\1/",
    r"MultiHeadDotProductAttention_1/out/": "output/",
    r"MlpBlock_3/Dense_0/": "mlp_in/",
    r"MlpBlock_3/Dense_1/": "mlp_out/",
    r"^head/": "classifier/",
    r"/(scale|kernel)$": ".weight",
    r"/bias$": ".bias",
}
QUERY = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"  # [D, H, d]


def from_npz(path: Path) -> Encoder:
    """An encoder from one of Google's `.npz` files, as the original JAX code computes it.

    That is: layer norms with epsilon 1e-6 and GELU in its tanh form, the defaults of flax. (HuggingFace's conversions
    run the same tensors with 1e-12 and the exact GELU, so that features differ in the third or fourth digit.)

    A classifier is left out, which is logged, if it reads not the class token but a further `pre_logits` layer, as in
    some of the ImageNet-21k files, or if it is all zero, as before training.

    Raises:
        ValueError: the file is damaged or holds pickled objects, is a hybrid with a ResNet, or no such ViT.
    """
    arrays = _read(path)
    if any(re.match(r"conv_root|block\d", name) for name in arrays):
        raise ValueError(f"{path} cannot be a base: {CONVOLUTIONS}")
    if "cls" not in arrays or QUERY not in arrays or arrays[QUERY].ndim != 3:
        raise ValueError(f"{path} is no ViT of the original code, with cls and {QUERY} [D, H, d]")
    _drop_unusable_classifier(path, arrays)
    tensors = dict(_converted(name, array) for name, array in arrays.items())
    positions = tensors.pop("positions", None)  # [1, 1 + P, D]
    if positions is None or math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:
        found = "none" if positions is None else f"of shape {list(positions.shape)}"
        raise ValueError(
            f"{path} has to have positions of a class token and of the patches of a square; found: {found}"
        )
    tensors["class_position"], tensors["positions"] = positions[:, :1], positions[:, 1:]
    side = math.isqrt(positions.shape[1] - 1) * len(arrays.get("embedding/kernel", ()))
    return Encoder(
        path, "ViT of the original JAX code", tensors, num_attention_heads=arrays[QUERY].shape[1], layer_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh", image_size=(side, side),
    )  # fmt: skip


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"cannot read {path} ({reason}): it is damaged or holds more than arrays; replace it"
        ) from error
    others = [f"{name} ({array.dtype})" for name, array in arrays.items() if array.dtype.kind != "f"]
    if others:
        raise ValueError(f"{path} holds {others[0]}; the arrays of a ViT are floating point numbers")
    return arrays


def _drop_unusable_classifier(path: Path, arrays: dict[str, np.ndarray]) -> None:
    head = [name for name in arrays if name.startswith("head/")]
    before = [name for name in arrays if name.startswith("pre_logits/")]
    untrained = bool(head) and not any(arrays[name].any() for name in head)
    if before or untrained:
        reason = "reads a pre_logits layer" if before else "is all zero"
        logger.warning("%s: the classifier is left out, because it %s", path, reason)
        for name in head + before:
            del arrays[name]


def _converted(name: str, array: np.ndarray) -> tuple[str, torch.Tensor]:
    """flax's kernels map from the first axes to the last, PyTorch's weights from the last to the first."""
    if name.endswith("/kernel"):
        if name == "embedding/kernel":  # [p, p, 3, D]
            array = array.transpose(3, 2, 0, 1)
        elif name.endswith("/out/kernel"):  # [H, d, D]
            array = array.reshape(-1, array.shape[-1]).T
        else:  # [D, H, d] or [in, out]
            array = array.reshape(array.shape[0], -1).T
    elif "MultiHeadDotProductAttention" in name:  # biases [H, d] or [D]
        array = array.reshape(-1)
    for pattern, replacement in RENAMES.items():
        name = re.sub(pattern, replacement, name)
    return name, torch.from_numpy(np.ascontiguousarray(array))
