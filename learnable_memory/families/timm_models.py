"""ViTs in timm's folders; needs timm, an optional extra."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from learnable_memory.families.checkpoints import read_checkpoint
from learnable_memory.families.plain import PlainViT
from learnable_memory.families.refused import AVERAGE, GATED, refuse, refuse_names
from learnable_memory.families.timm_names import from_timm_names
from learnable_memory.transforms import Preprocessing

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # best first
# timm's and PyTorch's modules -> transformers' names.
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu"}
# What an architecture may be told by a config; others of timm's arguments read files.
ARGUMENTS = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "init_values"}
ARGUMENTS |= {"class_token", "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm", "dynamic_img_size"}
ARGUMENTS |= {"qk_norm", "global_pool", "num_classes", "act_layer", "norm_layer", "mlp_layer", "proj_bias"}
# Of a config's entries, those that would send timm elsewhere for the weights.
PLACES = {"source", "url", "file", "hf_hub_id", "hf_hub_filename", "state_dict"}


def from_timm(folder: Path) -> PlainViT:
    """A base from a folder with timm's config.json and weights, such as a snapshot of a `timm/vit_..` repository.

    timm builds the model and maps the checkpoint onto it; the file is read here, never as an arbitrary pickle.
    Positions of other image sizes are made by antialiased bicubic interpolation, as timm does it.

    Raises:
        ModuleNotFoundError: timm is not installed.
        FileNotFoundError: the folder has no weights.
        ValueError: the model cannot be a base, or its preprocessing not be expressed; the message says why.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    refuse(config)
    model = _load(folder, config)
    name = f"timm's {config['architecture']}"
    _refuse_modules(name, model)
    prep = timm_preprocessing(name, model)
    labels = config.get("label_names")
    return from_timm_names(
        folder, model.state_dict(), name, num_attention_heads=model.blocks[0].attn.num_heads,
        positions_of="patches" if model.no_embed_class else "all tokens", interpolation="bicubic_antialias",
        layer_norm_eps=model.norm.eps, hidden_act=_activation(name, model.blocks[0].mlp.act),
        image_size=tuple(model.patch_embed.img_size),
        id2label=dict(enumerate(labels)) if isinstance(labels, list) else None, preprocessing=lambda *_: prep,
    )  # fmt: skip


def without_timm(folder: Path) -> ModuleNotFoundError:
    """What is raised where a folder needs timm, and it is not installed."""
    what = f"{folder} is a timm model, and timm is missing: pip install 'timm>=1.0.12'"
    return ModuleNotFoundError(what, name="timm")


def _load(folder: Path, config: Mapping[str, Any]) -> Any:
    """The model as timm makes it from the folder's config, with the folder's weights, all of them."""
    try:
        import timm
        from timm.models import PretrainedCfg
    except ModuleNotFoundError as error:
        raise without_timm(folder) from error
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} has neither {' nor '.join(WEIGHTS)}")
    known = {field.name for field in fields(PretrainedCfg)} - PLACES
    settings = {**config.get("pretrained_cfg", config), **config}  # older files have one level, newer ones two
    arguments = {key: config[key] for key in ("num_classes", "global_pool") if key in config}
    arguments |= config.get("model_args") or {}
    if others := arguments.keys() - ARGUMENTS:
        raise ValueError(f"{folder}: model_args has {', '.join(sorted(others))}; legal: {', '.join(sorted(ARGUMENTS))}")
    try:
        return timm.create_model(
            config["architecture"], pretrained=True,
            pretrained_cfg={key: value for key, value in settings.items() if key in known},
            pretrained_cfg_overlay={"state_dict": dict(read_checkpoint(weights))},
            **arguments,
        ).eval()  # fmt: skip
    except (RuntimeError, KeyError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"timm cannot make the model in {folder} ({reason})") from error


def _refuse_modules(name: str, model: Any) -> None:
    """What the names of tensors do not tell: order of the layers' parts, kind of the norms, pooling."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import Attention, Block, Mlp, VisionTransformer

    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        raise ValueError(f"{name} cannot be a base: it is a {type(model).__name__}, not timm's VisionTransformer")
    refuse_names(name, model.state_dict())
    if model.global_pool not in ("token", "") or (model.global_pool == "" and model.num_classes):
        raise ValueError(f"{name} cannot be a base: {AVERAGE} (global_pool {model.global_pool!r})")
    layer = model.blocks[0]  # timm makes all layers, and all norms, of one kind
    for part, plain, reason in (
        ("", Block, "its layers are not the pre-norm ones of the stock ViT"),
        ("attn", Attention, "its attention is not that of the stock ViT"),
        ("mlp", Mlp, GATED),
    ):
        found = type(layer.get_submodule(part))
        if found is not plain:
            raise ValueError(f"{name} cannot be a base: {reason} (found {found.__name__})")
    if not isinstance(model.norm, nn.LayerNorm):
        raise ValueError(f"{name} cannot be a base: it has {type(model.norm).__name__} where a base has a layer norm")


def _activation(name: str, module: nn.Module) -> str:
    kind = "GELUTanh" if getattr(module, "approximate", "none") == "tanh" else type(module).__name__
    if kind not in ACTIVATIONS:
        raise ValueError(f"{name} cannot be a base: its activation is {kind}; legal: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind]


def timm_preprocessing(name: str, model: nn.Module) -> Preprocessing:
    """timm's evaluation: resized to size / crop_pct, rounded down, and the centre cut out."""
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(model)
    height, width = data["input_size"][1:]
    stretched = data["crop_mode"] == "squash"
    if not (stretched or (data["crop_mode"] == "center" and height == width)):
        raise ValueError(
            f"{name} prepares images of {height}x{width} by crop_mode {data['crop_mode']!r}; legal: center for square "
            "images, and squash"
        )
    resize = tuple(math.floor(side / data["crop_pct"]) for side in ((height, width) if stretched else (height,)))
    return Preprocessing(height, width, data["interpolation"], 1 / 255, data["mean"], data["std"], resize)
