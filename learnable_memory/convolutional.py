"""Convolutional networks to compare with: ResNet, BiT, RegNet and ConvNeXt, learned whole or probed.

They have no tokens, so no head of ours fits them: each data set costs a network of its own, which is not combinable.
transformers reads them, and wraps those of timm.
"""

import copy
import importlib.util
import pickle
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from learnable_memory.bases import PROCESSORS, has_processor, read_config, read_processor
from learnable_memory.bases.encoder import some
from learnable_memory.bases.refused import CONVOLUTIONAL_NAMES, CONVOLUTIONAL_TYPES
from learnable_memory.bases.timm_models import timm_preprocessing, without_timm
from learnable_memory.head_metadata import content_hash
from learnable_memory.method_spec import OF_ANY_NETWORK, MethodSpec
from learnable_memory.methods import new_classifier
from learnable_memory.pickles import unreadable
from learnable_memory.transforms import Preprocessing

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

TIMM = "timm_wrapper"  # transformers' type for all of timm's; their own files have none
STRETCHED = 384  # pixels from which on ConvNeXt's processor cuts nothing away


def is_convolutional(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, transformers' or timm's, is that of a network that `ConvolutionalBase` opens."""
    kind = config.get("model_type")
    if kind in (None, TIMM):
        return re.search(CONVOLUTIONAL_NAMES, config.get("architecture", "")) is not None
    return kind in CONVOLUTIONAL_TYPES


class ConvolutionalBase:
    """A pretrained network, frozen; `network` makes of it what is trained on one data set.

    Attributes:
        fingerprint: SHA-256 of all tensors but the classifier's, in float32; batch norm's statistics count.
        base_id: its name, for people and files.
        preprocessing: how its processor makes pixels; it takes images of any other size too (`preprocessing.at`).
    """

    def __init__(self, model: "PreTrainedModel", base_id: str, preprocessing: Preprocessing) -> None:
        """`model` is kept, not copied; its classifier is never used."""
        self.model = model.requires_grad_(False).eval()
        self.base_id, self.preprocessing = base_id, preprocessing
        old = f"{_classifier_name(model)}."
        tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(old)}
        self.fingerprint = content_hash(tensors)

    @classmethod
    def open(cls, place: Path, base_id: str) -> "ConvolutionalBase":
        """Read a folder in transformers' or timm's layout, in float32 whatever it holds; `place` is `find_base`'s.

        Raises:
            ValueError: it is no such network, a tensor is missing, unexpected or of another shape (the classifier's
                aside), the file is damaged, or there is no processor, or one that cannot be expressed.
            ModuleNotFoundError: a timm folder, without timm.
            OSError: the folder has no weights.
        """
        config = read_config(place) if place.is_dir() else {}
        if not is_convolutional(config):
            found = config.get("architecture") or config.get("model_type")
            raise ValueError(
                f"{place} holds no convolutional network that is known here (found {found!r}); legal: folders of "
                f"{', '.join(CONVOLUTIONAL_TYPES)}, and of timm's ResNet, BiT, RegNet and ConvNeXt"
            )
        if "architecture" not in config:
            return cls(_load(place), base_id, _preprocessing(place))
        if importlib.util.find_spec("timm") is None:
            raise without_timm(place)
        return cls(_load(place), base_id, timm_preprocessing(place, config))

    @property
    def channels(self) -> int:
        """Of the images that it takes."""
        return next(module.in_channels for module in self.model.modules() if isinstance(module, nn.Conv2d))

    @cached_property
    def batch_norms(self) -> list[str]:
        """The names of its batch norms, whose running statistics each batch of a training moves."""
        modules = self.model.named_modules()
        return [name for name, module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def check(self, spec: MethodSpec, gradient_checkpointing: bool = False, processes: int = 1) -> None:
        """What can be said before a network is made.

        Raises ValueError for a method of ViTs, and where checkpointing is not there or would change the result, as
        several processes would.
        """
        if spec.method not in OF_ANY_NETWORK:
            raise ValueError(
                f"{spec.label} belongs to the layers of a ViT, and {self.base_id} is convolutional: give "
                f"{' or '.join(f'--method {method}' for method in OF_ANY_NETWORK)}, or another --base_model."
            )
        if gradient_checkpointing and not self.model.supports_gradient_checkpointing:
            raise ValueError(
                f"{self.base_id} is a {type(self.model).__name__}, which has no gradient checkpointing: leave "
                "--gradient_checkpointing, or take the same network from timm."
            )
        moved = self.batch_norms if spec.method == "full" else []
        if moved and gradient_checkpointing:
            raise ValueError(
                f"{self.base_id} has batch norms ({moved[0]}), whose running statistics would count each batch twice, "
                "because gradient checkpointing computes layers twice: leave --gradient_checkpointing."
            )
        if moved and processes > 1:
            raise ValueError(
                f"{self.base_id} has batch norms ({moved[0]}), which {processes} processes would feed with different "
                "parts of each batch: train it in one process, or take a network without, such as BiT or ConvNeXt."
            )

    def network(
        self, spec: MethodSpec, num_labels: int, generator: torch.Generator | None = None,
        gradient_checkpointing: bool = False, autocast: torch.dtype | None = None,
    ) -> "ConvolutionalNetwork":  # fmt: skip
        """The network with a new classifier of `num_labels` classes: weight N(0, 0.02^2), bias 0.

        Args:
            spec: "full", whose network shares nothing with the base, or "head", whose network shares everything.
            generator: on the CPU; draws the classifier.
            gradient_checkpointing: keep fewer activations, and compute them again for the gradients.
            autocast: the precision of the arithmetic of all but the classifier; None for float32.

        Raises ValueError as `check`.
        """
        self.check(spec, gradient_checkpointing)
        whole = spec.method == "full"
        kept = () if whole else chain(self.model.parameters(), self.model.buffers())
        model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in kept})
        name = _classifier_name(model)
        parent, _, child = name.rpartition(".")
        classifier = Classifier(new_classifier(model.get_submodule(name).weight.shape[1], num_labels, generator))
        setattr(model.get_submodule(parent), child, classifier)
        if gradient_checkpointing:
            # transformers 5.23 has a new name for it, and warns of the old one.
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        return ConvolutionalNetwork(model, classifier, whole, autocast)


class Classifier(nn.Module):
    """A linear map from pooled features of any dtype, [B, D] or [B, D, 1, 1], to float32 logits [B, C]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] or [B, D, 1, 1] -> float32 logits [B, C], also under autocast"""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.flatten(1).to(self.weight.dtype), self.weight, self.bias)


class ConvolutionalNetwork(nn.Module):
    """What is trained on one data set; exactly what is learned has `requires_grad`.

    Learned whole, its batch norms move their running statistics in train mode: these buffers belong to what was
    learned. A probed network stays in eval mode whatever `train` says, and nothing but its classifier ever changes.
    """

    def __init__(
        self, model: "PreTrainedModel", classifier: Classifier, whole: bool, autocast: torch.dtype | None
    ) -> None:
        super().__init__()
        self.model, self.whole, self.autocast = model.requires_grad_(whole), whole, autocast
        classifier.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> "ConvolutionalNetwork":
        """As in torch, but a probed network stays in eval mode."""
        super().train(mode)
        if not self.whole:
            self.model.eval()
        return self

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, height, width] -> float32 logits [B, C]"""
        with torch.autocast(pixel_values.device.type, self.autocast, enabled=self.autocast is not None):
            return self.model(pixel_values).logits


# ------------------------------------------------------------------------------------------------------ from the disk
def _load(folder: Path) -> "PreTrainedModel":
    """The network in float32, with all its tensors from the files, except a classifier of one class that was drawn."""
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its report would tell of the classifier
    try:
        # One class, because the classifier is replaced anyway, and timm's folders need not have one. All that does not
        # fit is judged below, in one line.
        model, info = AutoModelForImageClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
            local_files_only=True, weights_only=True, trust_remote_code=False,
        )  # fmt: skip
    except (ImportError, TypeError) as error:  # an architecture or argument that this version of timm does not know
        raise ValueError(f"cannot make the model in {folder} ({' '.join(str(error).split())[:200]})") from error
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, KeyError) as error:
        raise unreadable(folder, error) from error
    finally:
        hf_logging.set_verbosity(verbosity)
    old = f"{_classifier_name(model)}."
    missing, unexpected = info["missing_keys"], info["unexpected_keys"]
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    missing, mismatched = ({name for name in names if not name.startswith(old)} for names in (missing, mismatched))
    if missing or unexpected or mismatched:
        raise ValueError(
            f"{folder} is no whole {type(model).__name__} checkpoint; missing: {some(missing)}; unexpected: "
            f"{some(unexpected)}; of another shape: {some(mismatched)}"
        )
    return model


def _classifier_name(model: "PreTrainedModel") -> str:
    """Where the layer that gives the logits is: alone, behind a `Flatten`, or somewhere in a model of timm's."""
    classifier = model.timm_model.get_classifier() if model.config.model_type == TIMM else model.classifier
    layers = {module for module in classifier.modules() if hasattr(module, "weight")}
    return next(name for name, module in model.named_modules() if module in layers)


# ------------------------------------------------------------------------------------------------------------- pixels
def _preprocessing(folder: Path) -> Preprocessing:
    if not has_processor(folder):
        raise ValueError(f"{folder} has no {PROCESSORS[0]}, which says how pixels are made: put there the model's own")
    processor = read_processor(folder)
    if type(processor).__name__.startswith("ConvNext"):  # that of most ResNets and RegNets, too
        processor = _step_by_step(processor)
    return Preprocessing.from_processor(processor)


def _step_by_step(processor: "BaseImageProcessor") -> "BaseImageProcessor":
    """A processor that names the steps which ConvNeXt's takes unasked.

    It resizes to size / crop_pct and cuts the centre out; to 384 pixels or more it stretches. Raises ValueError if it
    is told of other steps.
    """
    from transformers import CLIPImageProcessor

    settings = processor.to_dict()
    size, cut, share = dict(settings["size"]), settings.get("do_center_crop"), settings.pop("crop_pct")
    if size.keys() != {"shortest_edge"} or cut:
        raise ValueError(
            f"cannot express {type(processor).__name__} with size={size} and do_center_crop={cut}: it has to have a "
            "shortest_edge, and cuts the centre out without being told"
        )
    side = size["shortest_edge"]
    square = {"height": side, "width": side}
    if side < STRETCHED:
        settings |= {"size": {"shortest_edge": int(side / share)}, "do_center_crop": True, "crop_size": square}
    else:
        settings |= {"size": square, "do_center_crop": False}
    return CLIPImageProcessor.from_dict(settings)
