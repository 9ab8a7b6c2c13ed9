"""How the classes of transformers hold an encoder's tensors: in which shapes, and under which names on the hub.

Every version of transformers reads the names of the hub, while those of its modules have changed.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from learnable_memory.bases.encoder import CLASS, Encoder

Tensors = dict[str, Tensor]
# Regular expressions for the names of `Encoder`, applied in their order.
Names = dict[str, str | Callable[[re.Match[str]], str]]

# --------------------------------------------------------------------------------------------------------------- names
TOKENS: Names = {
    r"^class_token$": "embeddings.cls_token",
    r"^distillation_token$": "embeddings.distillation_token",
    r"^registers$": "embeddings.register_tokens",
    r"^mask_token$": "embeddings.mask_token",
    r"^positions$": "embeddings.position_embeddings",
}
PROJECTIONS: Names = {
    r"\.(query|key|value)\.": lambda found: f".attention.{found[1][0]}_proj.",
    r"\.(gate|up|down)\.": r".mlp.\1_proj.",
    r"\.scale(\d)$": r".layer_scale\1.lambda1",
}
TWO_MAPS: Names = {r"\.mlp_in\.": ".mlp.fc1.", r"\.mlp_out\.": ".mlp.fc2."}
OLD: Names = TOKENS | {
    r"^patches\.": "embeddings.patch_embeddings.projection.",
    r"^norm\.": "layernorm.",
    r"^layers\.": "encoder.layer.",
    r"\.(query|key|value)\.": r".attention.attention.\1.",
    r"\.output\.": ".attention.output.dense.",
}
VIT: Names = OLD | {
    r"\.mlp_in\.": ".intermediate.dense.",
    r"\.mlp_out\.": ".output.dense.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
}
DEIT: Names = VIT | {r"^classifier\.": "cls_classifier."}
BEIT: Names = VIT | {
    r"^pooled_norm\.": "pooler.layernorm.",
    r"\.scale(\d)$": r".lambda_\1",
    r"^relative_positions$": "encoder.relative_position_bias.relative_position_bias_table",
    r"\.relative_positions$": ".attention.attention.relative_position_bias.relative_position_bias_table",
}
DINOV2: Names = OLD | TWO_MAPS | {
    r"\.scale(\d)$": r".layer_scale\1.lambda1",
    r"\.packed\.": ".mlp.weights_in.",
    r"\.down\.": ".mlp.weights_out.",
}  # fmt: skip
TIPSV2: Names = {  # those of the original code
    r"^patches\.": "patch_embed.proj.",
    r"^class_token$": "cls_token",
    r"^registers$": "register_tokens",
    r"^positions$": "pos_embed",
    r"^layers\.": "blocks.",
    r"\.(qkv|output)\.": lambda found: f".attn.{'qkv' if found[1] == 'qkv' else 'proj'}.",
    r"\.scale(\d)$": r".ls\1.gamma",
    r"\.mlp_in\.": ".mlp.c_fc.",
    r"\.mlp_out\.": ".mlp.c_proj.",
    r"\.packed\.": ".mlp.w12.",
    r"\.down\.": ".mlp.w3.",
}
RADIO: Names = TWO_MAPS | {
    r"^patches\.": "model.patch_generator.embedder.",
    r"^tokens$": "model.patch_generator.cls_token.token",
    r"^positions$": "model.patch_generator.pos_embed",
    r"^layers\.": "model.blocks.",
    r"\.(qkv|output)\.": lambda found: f".attn.{'qkv' if found[1] == 'qkv' else 'proj'}.",
    r"\.scale(\d)$": r".layer_scale\1.lambda1",
    r"^(mean|std)$": r"input_conditioner.norm_\1",
}
DINOV3: Names = TOKENS | PROJECTIONS | {
    r"^patches\.": "embeddings.patch_embeddings.",
    r"^layers\.": "layer.",
    r"\.output\.": ".attention.o_proj.",
    r"\.mlp_in\.": ".mlp.up_proj.",
    r"\.mlp_out\.": ".mlp.down_proj.",
}  # fmt: skip
CLIP: Names = {  # and SigLIP
    r"^probe$": "head.probe",
    r"^pool\.in_proj_": "head.attention.in_proj_",
    r"^pool\.output\.": "head.attention.out_proj.",
    r"^pool\.norm\.": "head.layernorm.",
    r"^pool\.": "head.",
    r"^patches\.": "embeddings.patch_embedding.",
    r"^class_token$": "embeddings.class_embedding",
    r"^positions$": "embeddings.position_embedding.weight",
    r"^first_norm\.": "pre_layrnorm.",
    r"^norm\.": "post_layernorm.",
    r"^layers\.": "encoder.layers.",
    r"\.norm(\d)\.": r".layer_norm\1.",
    r"\.(query|key|value)\.": lambda found: f".self_attn.{found[1][0]}_proj.",
    r"\.output\.": ".self_attn.out_proj.",
    **TWO_MAPS,
}
AIMV2: Names = PROJECTIONS | {
    r"^patches\.": "embeddings.patch_embed.",
    r"^patch_norm\.": "embeddings.rms_norm.",
    r"^positions$": "embeddings.position_embedding.weight",
    r"^norm\.": "rms_norm.",
    r"^layers\.": "encoder.layers.",
    r"\.norm(\d)\.": r".rms_norm\1.",
    r"\.(gate|up|down)\.": r".ffn.\1_proj.",
    r"\.output\.": ".attention.out_proj.",
}


# -------------------------------------------------------------------------------------------------------------- shapes
def positions_of_all(encoder: Encoder, tensors: Tensors) -> None:
    """[1, 1 or 2 + P, D]: special tokens come first, and have positions."""
    tokens = [token for token in ("class", "distillation") if f"{token}_position" in tensors]
    parts = [tensors.pop(f"{token}_position") for token in tokens]
    tensors["positions"] = torch.cat([*parts, tensors["positions"]], dim=1)


def dinov2(encoder: Encoder, tensors: Tensors) -> None:
    """Gate and up in one, and a classifier of class token and mean patch [C, 2D], even if it needs one of them only."""
    positions_of_all(encoder, tensors)
    _fill_scales(encoder, tensors)
    if encoder.gated:
        _pack(encoder, tensors, "packed", ("gate", "up"))
    if "classifier.weight" in tensors:
        weight = tensors["classifier.weight"]
        pair = [weight, torch.zeros_like(weight)]
        tensors["classifier.weight"] = torch.cat(pair if encoder.reads == CLASS else pair[::-1], dim=1)


def dinov2_with_registers(encoder: Encoder, tensors: Tensors) -> None:
    """As DINOv2, and the token for masked patches is always there."""
    dinov2(encoder, tensors)
    tensors["mask_token"] = torch.zeros(1, encoder.width)


def tipsv2(encoder: Encoder, tensors: Tensors) -> None:
    """As DINOv2 with registers, and queries, keys and values in one."""
    dinov2_with_registers(encoder, tensors)
    _pack(encoder, tensors, "qkv", ("query", "key", "value"))


def dinov3(encoder: Encoder, tensors: Tensors) -> None:
    """Layer scale, registers, though none, and a token for masked patches."""
    _fill_scales(encoder, tensors)
    tensors.setdefault("registers", torch.zeros(1, 0, encoder.width))
    tensors["mask_token"] = torch.zeros(1, 1, encoder.width)


def clip(encoder: Encoder, tensors: Tensors) -> None:
    """Positions [1 + P, D] and a class token [D]."""
    positions_of_all(encoder, tensors)
    tensors["positions"] = tensors["positions"][0]
    tensors["class_token"] = tensors["class_token"].flatten()


def siglip(encoder: Encoder, tensors: Tensors) -> None:
    """Positions [P, D]; the attention pool is torch's `MultiheadAttention`."""
    tensors["positions"] = tensors["positions"][0]
    if "probe" in tensors:
        for leaf in ("weight", "bias"):
            parts = [tensors.pop(f"pool.{part}.{leaf}") for part in ("query", "key", "value")]
            tensors[f"pool.in_proj_{leaf}"] = torch.cat(parts)


def beit(encoder: Encoder, tensors: Tensors) -> None:
    """A bias of the keys adds the same number to all scores of a query, which the softmax takes out again."""
    if "positions" in tensors:
        positions_of_all(encoder, tensors)
    for layer in range(encoder.depth):
        tensors.pop(f"layers.{layer}.key.bias", None)


def aimv2(encoder: Encoder, tensors: Tensors) -> None:
    """Positions [P, D]."""
    tensors["positions"] = tensors["positions"][0]


def radio(encoder: Encoder, tensors: Tensors) -> None:
    """Patches are embedded without a bias, which the positions take over. Pixels come normalised."""
    _fill_scales(encoder, tensors)
    _pack(encoder, tensors, "qkv", ("query", "key", "value"))
    tensors["patches.weight"] = tensors["patches.weight"].flatten(1)
    tensors["positions"] = tensors["positions"] + tensors.pop("patches.bias", torch.zeros(encoder.width))
    first = tensors.pop("class_token") + tensors.pop("class_position")
    tensors["tokens"] = torch.cat([first, tensors.pop("registers", first[:, :0])], dim=1)[0]
    tensors |= {"summary_idxs": torch.tensor([0]), "mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}


def _fill_scales(encoder: Encoder, tensors: Tensors) -> None:
    if not encoder.has("scale1"):
        for layer in range(encoder.depth):
            tensors.update({f"layers.{layer}.scale{part}": torch.ones(encoder.width) for part in (1, 2)})


def _pack(encoder: Encoder, tensors: Tensors, name: str, parts: tuple[str, ...]) -> None:
    """Some linear maps of each layer as one."""
    for layer in range(encoder.depth):
        for leaf in ("weight", "bias"):
            found = [tensors.pop(f"layers.{layer}.{part}.{leaf}", None) for part in parts]
            if whole := [tensor for tensor in found if tensor is not None]:
                tensors[f"layers.{layer}.{name}.{leaf}"] = torch.cat(whole)
