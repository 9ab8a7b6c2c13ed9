"""ViTs in timm's folders; needs timm, an optional extra."""

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from learnable_memory.bases.checkpoints import read_checkpoint
from learnable_memory.bases.encoder import ATTENTION, BOTH, CLASS, OTHER, PATCHES, POOLED, Encoder, some
from learnable_memory.bases.names import from_timm_names
from learnable_memory.bases.refused import ROTARY, refuse
from learnable_memory.transforms import Preprocessing

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # best first
# timm's and PyTorch's modules -> transformers' names.
ACTIVATIONS = {
    "GELU": "gelu",
    "GELUTanh": "gelu_pytorch_tanh",
    "QuickGELU": "quick_gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}
# Of a config's entries, those that would send timm elsewhere for the weights.
PLACES = {"source", "url", "file", "hf_hub_id", "hf_hub_filename", "state_dict"}


def from_timm(folder: Path, config: Mapping[str, Any]) -> Encoder:
    """An encoder from a folder with timm's config.json and weights, such as a snapshot of a `timm/vit_..` repository.

    timm builds the model and maps the checkpoint onto it; the file is read here, never as an arbitrary pickle.

    Raises:
        ModuleNotFoundError: timm is not installed.
        FileNotFoundError: the folder has no weights.
        ValueError: there is something in its modules that no class of transformers has; the message says what.
    """
    refuse(config)
    model = _load(folder, config)
    name = f"timm's {config['architecture']}"
    gated, layer = _check_modules(name, model), model.blocks[0]
    state = model.state_dict()
    if gated:
        state = {re.sub(r"^(blocks\.\d+\.mlp)\.fc2\.", r"\1.w3.", key): value for key, value in state.items()}
    if gated == "packed":
        state = {re.sub(r"^(blocks\.\d+\.mlp)\.fc1\.", r"\1.w12.", key): value for key, value in state.items()}
    if model.global_pool != "map":
        state = {key: value for key, value in state.items() if not key.startswith("attn_pool.")}
    labels = config.get("label_names")
    return Encoder(
        folder, name, from_timm_names(folder, state, name, model.patch_embed.num_patches),
        num_attention_heads=layer.attn.num_heads, layer_norm_eps=layer.norm1.eps, hidden_act=_activation(name, layer),
        image_size=tuple(model.patch_embed.img_size), reads=_reads(model), rope_theta=_rope_theta(name, model),
        rms=not isinstance(layer.norm1, nn.LayerNorm),
        id2label=dict(enumerate(labels)) if isinstance(labels, list) else None,
    )  # fmt: skip


def without_timm(folder: Path) -> ModuleNotFoundError:
    """What is raised where a folder needs timm, and it is not installed."""
    what = f"{folder} is a timm model, and timm is missing: pip install 'timm>=1.0.12'"
    return ModuleNotFoundError(what, name="timm")


# ------------------------------------------------------------------------------------------------------------- loading
def _load(folder: Path, config: Mapping[str, Any]) -> Any:
    """The model as timm makes it from the folder's config, with the folder's weights, all of them."""
    try:
        import timm
        from timm.models import PretrainedCfg
    except ModuleNotFoundError as error:
        raise without_timm(folder) from error
    if not timm.is_model(config["architecture"]):  # a name like hf-hub:.. would have timm fetch a model from elsewhere
        raise ValueError(f"{folder}: timm {timm.__version__} has no architecture {config['architecture']!r}")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} has neither {' nor '.join(WEIGHTS)}")
    known = {field.name for field in fields(PretrainedCfg)} - PLACES
    settings = {**config.get("pretrained_cfg", config), **config}  # older files have one level, newer ones two
    state = dict(read_checkpoint(weights))
    try:
        model = timm.create_model(
            config["architecture"], pretrained=True,
            pretrained_cfg={key: value for key, value in settings.items() if key in known},
            pretrained_cfg_overlay={"state_dict": state}, **_arguments(folder, config),
        ).eval()  # fmt: skip
    except (RuntimeError, KeyError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"timm cannot make the model in {folder} ({reason})") from error
    # SigLIP without its attention pool: timm takes a file that has more, and by that one that has less.
    if "siglip" in config["architecture"] and (missing := model.state_dict().keys() - state.keys()):
        raise ValueError(f"timm cannot make the model in {folder} (the weights have no {some(missing)})")
    return model


def _arguments(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config tells the architecture: arguments of timm's classes, while others of timm's read files.

    Raises ValueError for those.
    """
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    arguments = {key: config[key] for key in ("num_classes", "global_pool") if key in config}
    arguments |= config.get("model_args") or {}
    legal = set().union(*(inspect.signature(kind).parameters for kind in (VisionTransformer, Eva, Beit)))
    legal -= {"device", "dtype"}
    if others := arguments.keys() - legal:
        raise ValueError(f"{folder}: model_args has {', '.join(sorted(others))}; legal: {', '.join(sorted(legal))}")
    return arguments


# ------------------------------------------------------------------------------------------------------------- modules
def _check_modules(name: str, model: Any) -> str:
    """How its MLPs are gated: "", "packed" or "apart". timm makes all layers, and all norms, of one kind.

    Raises ValueError for a part that no class of transformers has.
    """
    from timm.layers import GluMlp, Mlp, RmsNorm, SwiGLU
    from timm.models import beit, deit, eva, vision_transformer

    kinds = (vision_transformer.VisionTransformer, deit.VisionTransformerDistilled, eva.Eva, beit.Beit)
    if type(model) not in kinds:
        raise ValueError(
            f"{name} cannot be a base: it is a {type(model).__name__}, of which transformers has none; legal: "
            f"{', '.join(kind.__name__ for kind in kinds)}"
        )
    layer = model.blocks[0]
    legal: dict[str, tuple[type, ...]] = {
        "": (vision_transformer.Block, eva.EvaBlock, beit.Block),
        "attn": (vision_transformer.Attention, eva.EvaAttention, beit.Attention),
        "mlp": (Mlp, GluMlp, SwiGLU),
        "norm1": (nn.LayerNorm, RmsNorm),
    }
    for part, types in legal.items():
        found = layer.get_submodule(part)
        if type(found) not in types and not (part == "norm1" and isinstance(found, types)):
            raise ValueError(
                f"{name} cannot be a base: none of transformers' classes has its {part or 'layers'} (found "
                f"{type(found).__name__}; legal: {', '.join(dict.fromkeys(kind.__name__ for kind in types))})"
            )
    mlp = layer.mlp
    gated = "packed" if isinstance(mlp, GluMlp) else "apart" if isinstance(mlp, SwiGLU) else ""
    if gated and (not isinstance(mlp.act, nn.SiLU) or getattr(mlp, "gate_last", False)):
        raise ValueError(f"{name} cannot be a base: its MLP is gated, and not as SwiGLU is (found {mlp.act})")
    return gated


def _activation(name: str, layer: Any) -> str:
    module = layer.mlp.act
    kind = "GELUTanh" if getattr(module, "approximate", "none") == "tanh" else type(module).__name__
    if kind not in ACTIVATIONS:
        raise ValueError(f"{name} cannot be a base: its activation is {kind}; legal: {', '.join(ACTIVATIONS.values())}")
    return ACTIVATIONS[kind]


def _rope_theta(name: str, model: Any) -> float | None:
    """The base of rotary positions as DINOv3 has them, None without. Raises ValueError for others."""
    rope = getattr(model, "rope", None)
    if rope is None:
        return None
    settings = {"normalize_coords": "separate", "grid_offset": 0, "grid_indexing": "ij", "rotate_half": True}
    settings["min_period"] = None
    others = [
        f"{key} {getattr(rope, key, None)}" for key, value in settings.items() if getattr(rope, key, None) != value
    ]
    if type(rope).__name__ != "RotaryEmbeddingDinoV3" or others:
        found = ", ".join(others) if type(rope).__name__ == "RotaryEmbeddingDinoV3" else type(rope).__name__
        raise ValueError(f"{name} cannot be a base: {ROTARY} (found {found})")
    return rope.temperature


def _reads(model: Any) -> str:
    """What the classifier reads, as in `encoder`."""
    if hasattr(model, "head_dist"):
        return BOTH
    if getattr(model, "pool_include_prefix", False) and model.num_prefix_tokens:
        return OTHER
    pooled = not isinstance(model.fc_norm, nn.Identity)
    reads = {"avg": POOLED} if pooled else {"token": CLASS, "avg": PATCHES, "map": ATTENTION}
    return reads.get(model.global_pool, OTHER)


# -------------------------------------------------------------------------------------------------------------- pixels
def timm_preprocessing(folder: Path, config: Mapping[str, Any]) -> Preprocessing:
    """timm's evaluation: resized to size / crop_pct, rounded down, and the centre cut out.

    Args:
        folder: where the config is, for messages.
        config: its config.json.

    Raises:
        ValueError: it crops in a way that cannot be expressed.
        ModuleNotFoundError: timm is not installed.
    """
    try:
        from timm.data import resolve_data_config
    except ModuleNotFoundError as error:
        raise without_timm(folder) from error
    data = resolve_data_config(pretrained_cfg=config.get("pretrained_cfg") or config)
    height, width = data["input_size"][1:]
    stretched = data["crop_mode"] == "squash"
    if not (stretched or (data["crop_mode"] == "center" and height == width)):
        raise ValueError(
            f"timm's {config['architecture']} prepares images of {height}x{width} by crop_mode {data['crop_mode']!r}; "
            "legal: center for square images, and squash"
        )
    resize = tuple(math.floor(side / data["crop_pct"]) for side in ((height, width) if stretched else (height,)))
    return Preprocessing(height, width, data["interpolation"], 1 / 255, data["mean"], data["std"], resize)
