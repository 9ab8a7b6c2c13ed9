"""Families that transformers has a class for, which reads the files: so any spelling of the tensors' names will do."""

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from learnable_memory.families.plain import (
    PlainViT,
    dinov2_preprocessing,
    fold_scale,
    imagenet_preprocessing,
    mean_of_classifiers,
    place_extra_tokens,
    plain_vit,
    some,
)
from learnable_memory.families.refused import STOCK, refuse
from learnable_memory.pickles import unreadable
from learnable_memory.transforms import Preprocessing


@dataclass(frozen=True)
class Kind:
    """A family in transformers.

    Attributes:
        name: for people.
        model: the class with the family's classifier; without one in the files, the drawn one is dropped.
        readout: as in `plain_vit`.
        interpolation: as there.
        preprocessing: as there.
    """

    name: str
    model: str
    readout: str = "class"
    interpolation: str = "bicubic"
    preprocessing: Callable[[int, int], Preprocessing] = imagenet_preprocessing


KINDS = {
    "deit": Kind("DeiT", "DeiTForImageClassification"),
    "vit_mae": Kind("ViT-MAE", "ViTMAEModel"),
    "vit_msn": Kind(
        "ViT-MSN", "ViTMSNForImageClassification", preprocessing=partial(imagenet_preprocessing, resample="bilinear")
    ),
    "dinov2": Kind("DINOv2", "Dinov2ForImageClassification", "class+mean", preprocessing=dinov2_preprocessing),
    "dinov2_with_registers": Kind(
        "DINOv2 with registers", "Dinov2WithRegistersForImageClassification", "class+mean", "bicubic_antialias",
        dinov2_preprocessing,
    ),
}  # fmt: skip
DEIT_TEACHER = "DeiTForImageClassificationWithTeacher"

# Whatever version of transformers wrote or loaded them: the encoder's names -> those of its ViT.
RENAMES = {
    r"^(vit|deit|dinov2|dinov2_with_registers)\.": "",
    r"^encoder\.layer\.": "layers.",
    r"\.attention\.attention\.query\.": ".attention.q_proj.",
    r"\.attention\.attention\.key\.": ".attention.k_proj.",
    r"\.attention\.attention\.value\.": ".attention.v_proj.",
    r"\.attention\.output\.dense\.": ".attention.o_proj.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
}
# Other uses of the same encoder leave these in the files; no feature depends on them.
UNUSED = r"(^|\.)pooler\.|(^|\.)mask_token$|^decoder\."


def from_huggingface(folder: Path) -> PlainViT:
    """A base from a folder in HuggingFace's layout: DeiT, ViT-MAE, ViT-MSN, DINOv2 with and without registers.

    - DeiT: the distillation token becomes an extra token; with a teacher's classifier, the mean of both classifiers
      becomes one on both tokens. (Without one, HuggingFace reads the class token alone.)
    - ViT-MAE: the encoder, which sees all patches; there is no classifier.
    - DINOv2: layer scale is folded into the output projections. The classifier reads class token and mean patch.

    Raises:
        ValueError: it cannot be a base, a tensor is missing or unexpected, or the file is damaged or unsafe.
        OSError: the folder has no weights.
    """
    from transformers import PreTrainedConfig

    values = PreTrainedConfig.get_config_dict(folder)[0]
    refuse(values)
    if values["model_type"] == STOCK:
        raise ValueError(f"{folder} is a stock ViT already: load it with MemoryCapableViT.from_pretrained")
    kind = KINDS[values["model_type"]]
    if DEIT_TEACHER in (values.get("architectures") or ()):
        kind = replace(kind, name="DeiT, distilled", model=DEIT_TEACHER, readout="class+extra")
    config, state = _load(folder, kind.model)
    tensors = _plain_tensors(state)
    readout = kind.readout if "classifier.weight" in tensors else "class"
    side = config.image_size
    return plain_vit(
        folder, kind.name, tensors, readout=readout, interpolation=kind.interpolation,
        num_attention_heads=config.num_attention_heads, layer_norm_eps=config.layer_norm_eps,
        hidden_act=config.hidden_act, image_size=(side, side) if isinstance(side, int) else tuple(side),
        id2label=config.id2label, preprocessing=kind.preprocessing,
    )  # fmt: skip


def _load(folder: Path, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Configuration and float32 tensors as the original class reads them; a classifier only if the files have one."""
    import transformers
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its report would tell of a classifier that is dropped below
    try:
        # All that does not fit is judged below, in one line.
        model, info = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True,
            weights_only=True,
        )  # fmt: skip
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, KeyError) as error:
        raise unreadable(folder, error) from error
    finally:
        hf_logging.set_verbosity(verbosity)
    state = model.state_dict()
    missing, mismatched = set(info["missing_keys"]), {entry[0] for entry in info["mismatched_keys"]}
    unexpected = {key for key in info["unexpected_keys"] if not re.search(UNUSED, key)}
    classifier = {key for key in state if re.match(r"(\w+_)?classifier\.", key)}
    if classifier and classifier <= missing:
        missing -= classifier
        state = {key: tensor for key, tensor in state.items() if key not in classifier}
    missing = {key for key in missing if not re.search(UNUSED, key)}
    if missing or unexpected or mismatched:
        raise ValueError(
            f"{folder} is no whole {name} checkpoint; missing: {some(missing)}; unexpected: {some(unexpected)}; "
            f"of another shape: {some(mismatched)}"
        )
    return model.config, state


def _plain_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names and tensors of `plain_vit`."""
    tensors = {}
    for name, tensor in state.items():
        for pattern, replacement in RENAMES.items():
            name = re.sub(pattern, replacement, name)
        if not re.search(UNUSED, name):
            tensors[name] = tensor
    for name in [name for name in tensors if name.endswith(".lambda1")]:
        layer, _, scale = name.removesuffix(".lambda1").rpartition(".")
        output = {"layer_scale1": "attention.o_proj", "layer_scale2": "mlp.fc2"}[scale]
        fold_scale(tensors, f"{layer}.{output}", tensors.pop(name))
    if "embeddings.distillation_token" in tensors:
        token, positions = (tensors.pop(f"embeddings.{key}") for key in ("distillation_token", "position_embeddings"))
        place_extra_tokens(tensors, token, positions)
    if "embeddings.register_tokens" in tensors:  # these have no positions
        tensors["embeddings.extra_tokens"] = tensors.pop("embeddings.register_tokens")
    if "cls_classifier.weight" in tensors:
        pairs = [
            (tensors.pop(f"{name}_classifier.weight"), tensors.pop(f"{name}_classifier.bias"))
            for name in ("cls", "distillation")
        ]
        tensors |= mean_of_classifiers(*pairs)
    return tensors
