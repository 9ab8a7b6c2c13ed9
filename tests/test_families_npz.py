"""Google's `.npz` files against the original computation, written down in numpy float64 on the original kernels.

Measured: features and answers differ by at most 3e-6.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from families_reference import assert_same, reference, through_the_model
from learnable_memory.families import from_npz
from tiny import images

D, H, F, P, LAYERS, SIDE, CLASSES = 24, 3, 40, 4, 2, 4, 5  # H heads of 8; F in the MLP; patches of P x P pixels

BLOCK = {
    "LayerNorm_0/scale": (D,), "LayerNorm_0/bias": (D,), "LayerNorm_2/scale": (D,), "LayerNorm_2/bias": (D,),
    **{f"MultiHeadDotProductAttention_1/{part}/kernel": (D, H, D // H) for part in ("query", "key", "value")},
    **{f"MultiHeadDotProductAttention_1/{part}/bias": (H, D // H) for part in ("query", "key", "value")},
    "MultiHeadDotProductAttention_1/out/kernel": (H, D // H, D), "MultiHeadDotProductAttention_1/out/bias": (D,),
    "MlpBlock_3/Dense_0/kernel": (D, F), "MlpBlock_3/Dense_0/bias": (F,),
    "MlpBlock_3/Dense_1/kernel": (F, D), "MlpBlock_3/Dense_1/bias": (D,),
}  # fmt: skip
SHAPES = {
    "cls": (1, 1, D), "embedding/kernel": (P, P, 3, D), "embedding/bias": (D,), "head/kernel": (D, CLASSES),
    "head/bias": (CLASSES,), "Transformer/posembed_input/pos_embedding": (1, 1 + SIDE**2, D),
    "Transformer/encoder_norm/scale": (D,), "Transformer/encoder_norm/bias": (D,),
    **{f"Transformer/encoderblock_{layer}/{name}": shape for layer in range(LAYERS) for name, shape in BLOCK.items()},
}  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {name: array + 1 if name.endswith("scale") else array for name, array in arrays.items()}


def original(arrays: dict[str, np.ndarray], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All tokens after the last norm, and the answers, of images [B, height, width, 3]."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}

    def norm(x, name):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"]

    batch, height, width, _ = pixels.shape
    windows = pixels.reshape(batch, height // P, P, width // P, P, 3)
    x = np.einsum("bipjqc,pqcd->bijd", windows, w["embedding/kernel"]) + w["embedding/bias"]
    x = np.concatenate([np.tile(w["cls"], (batch, 1, 1)), x.reshape(batch, -1, D)], axis=1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    for layer in range(LAYERS):
        block = f"Transformer/encoderblock_{layer}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        y = norm(x, f"{block}/LayerNorm_0")
        q, k, v = (
            np.einsum("bnd,dhe->bnhe", y, w[f"{attention}/{part}/kernel"]) + w[f"{attention}/{part}/bias"]
            for part in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("bnhe,bmhe->bhnm", q, k) / np.sqrt(D // H))
        mixed = np.einsum("bhnm,bmhe->bnhe", scores / scores.sum(-1, keepdims=True), v)
        x = x + np.einsum("bnhe,hed->bnd", mixed, w[f"{attention}/out/kernel"]) + w[f"{attention}/out/bias"]
        y = (
            norm(x, f"{block}/LayerNorm_2") @ w[f"{block}/MlpBlock_3/Dense_0/kernel"]
            + w[f"{block}/MlpBlock_3/Dense_0/bias"]
        )
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))  # jax.nn.gelu, as it is by default
        x = x + y @ w[f"{block}/MlpBlock_3/Dense_1/kernel"] + w[f"{block}/MlpBlock_3/Dense_1/bias"]
    x = norm(x, "Transformer/encoder_norm")
    return x, x[:, 0] @ w["head/kernel"] + w["head/bias"]


def zoomed(positions: np.ndarray, size: int) -> np.ndarray:
    """As the original's load_pretrained."""
    grid = positions[0, 1:].reshape(SIDE, SIDE, D)
    grid = zoom(grid, (size / SIDE, size / SIDE, 1), order=1)
    return np.concatenate([positions[:, :1], grid.reshape(1, -1, D)], axis=1)


def saved(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("size", [4, 6, 3])
def test_features_are_those_of_the_original(tmp_path: Path, size: int) -> None:
    """At its own size, and with positions for others."""
    arrays = weights()
    plain = from_npz(saved(tmp_path / "ViT-B_16.npz", arrays))
    if size != SIDE:
        positions = "Transformer/posembed_input/pos_embedding"
        arrays[positions] = zoomed(arrays[positions], size)
    pixels = images(size=size * P)
    tokens, answers = original(arrays, pixels.permute(0, 2, 3, 1).double().numpy())
    assert_same(plain, pixels, torch.from_numpy(tokens), torch.from_numpy(answers))


def test_configuration(tmp_path: Path) -> None:
    plain = from_npz(saved(tmp_path / "x.npz", weights()))
    config, prep = plain.config, plain.preprocessing
    assert (config.num_attention_heads, config.hidden_size, config.intermediate_size, config.num_labels) == (
        3,
        24,
        40,
        5,
    )
    assert (config.num_hidden_layers, config.patch_size, config.image_size, config.qkv_bias) == (2, 4, 16, True)
    assert config.base_layout == {"extra_tokens": 0, "readout": "class", "interpolation": "bilinear_corners"}
    assert (prep.height, prep.width, prep.resize, prep.resample) == (16, 16, (16, 16), "bilinear")
    assert prep.mean == prep.std == (0.5, 0.5, 0.5)


def test_tensors_are_float32_and_their_own(tmp_path: Path) -> None:
    halves = {name: array.astype(np.float16) for name, array in weights().items()}
    plain = from_npz(saved(tmp_path / "x.npz", halves))
    assert {tensor.dtype for tensor in plain.tensors.values()} == {torch.float32}
    assert all(tensor.is_contiguous() for tensor in plain.tensors.values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"pre_logits/kernel": np.ones((D, D), "f4"), "pre_logits/bias": np.ones(D, "f4")},
            "it reads a pre_logits layer",
        ),
        ({"head/kernel": np.zeros((D, CLASSES), "f4"), "head/bias": np.zeros(CLASSES, "f4")}, "it is all zero"),
    ],
    ids=["pre_logits", "zero"],
)
def test_classifiers_that_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict, reason: str
) -> None:
    whole = from_npz(saved(tmp_path / "x.npz", weights()))
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        plain = from_npz(saved(tmp_path / "y.npz", weights() | changes))
    assert f"the classifier is left out, because {reason}" in caplog.text
    assert plain.config.num_labels == 0
    for forward in (reference, through_the_model):
        tokens, answers = forward(plain, images())
        assert answers is None
        assert torch.equal(tokens, forward(whole, images())[0])


def test_a_head_whose_bias_alone_is_zero_is_kept(tmp_path: Path) -> None:
    plain = from_npz(saved(tmp_path / "x.npz", weights() | {"head/bias": np.zeros(CLASSES, "f4")}))
    assert plain.config.num_labels == CLASSES


# -------------------------------------------------------------------------------------------------------------- errors
def without(*names: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in weights().items() if name not in names}


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (weights() | {"conv_root/kernel": ONE}, "cannot be a base: its patches come from a stack of convolutions"),
        (weights() | {"block1/unit1/conv1/kernel": ONE}, "its patches come from a stack of convolutions"),
        (without("cls"), r"it has no class token, .* \(no cls among its arrays\)"),
        ({"cls": ONE}, r"is no ViT of the original code: no Transformer/encoderblock_0/.*/query/kernel \[D, H, d\]"),
        (without("Transformer/encoder_norm/bias"), r"missing: vit\.layernorm\.bias; unexpected: nothing;"),
        (weights() | {"new/kernel": np.ones((2, 2))}, r"unexpected: vit\.new\.weight;"),
        (weights() | {"embedding/bias": ONE}, r"of another shape: vit\..*\.projection\.bias$"),
        (weights() | {"step": np.array(3)}, r"holds step \(int64\); the arrays of a ViT are floating point numbers"),
        ({"x": np.array([object()])}, "cannot read .*: it is damaged or holds more than arrays; replace it"),
    ],
)  # fmt: skip
def test_errors(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = saved(tmp_path / "x.npz", arrays)
    with pytest.raises(ValueError, match=message) as caught:
        from_npz(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", weights())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cannot read .*x\.npz"):
        from_npz(path)
    with pytest.raises(FileNotFoundError):
        from_npz(tmp_path / "nowhere.npz")
