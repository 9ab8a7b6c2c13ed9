"""A base from the hub, a folder or memory, as its own stock class with heads on it; and back to disk."""

import copy
import dataclasses
import logging
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging as hf_logging
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from learnable_memory.heads import HeadSpec
from learnable_memory.model.families import Anatomy
from learnable_memory.model.family_check import check_layers
from learnable_memory.model.mixin import Stock

logger = logging.getLogger(__name__)

CLASSIFIERS = ("classifier", "cls_classifier", "distillation_classifier")
# What other uses of the same encoder leave in its files: pooled features, masked images, text.
UNUSED = (
    r"(^|\.)pooler\.|mask_token|^(decoder|lm_head|text_model|text_projection|visual_projection|logit_)|\.text_model\."
)
CLASSES: dict[tuple[Any, Any], Any] = {}  # made once each, so that models of one kind are of one class
HUB_ARGUMENTS = ("cache_dir", "revision", "token", "local_files_only", "subfolder", "force_download")


def over(mixin: Any, stock: Any) -> Any:
    """The class that is `stock` with heads; it has its name, by which transformers knows how to read the files."""
    if (mixin, stock) not in CLASSES:
        members = {"__module__": mixin.__module__, "__doc__": mixin.__doc__, "stock": stock, "mixin": mixin}
        CLASSES[mixin, stock] = type(stock.__name__, (mixin, stock), members)
    return CLASSES[mixin, stock]


def stock_class(values: Mapping[str, Any]) -> type:
    """The class of transformers for a base, by its config.json.

    A classifier where the config names one, or names nothing that is known and the family has one; else the bare vision
    encoder. Of models for images and text it is the vision encoder alone.

    Raises ValueError for a model type that the installed transformers has no vision encoder for.
    """
    kind, names = values.get("model_type"), values.get("architectures") or []
    known = [getattr(transformers, name, None) for name in names]
    for name, found in zip(names, known, strict=True):
        if found is not None and name.endswith(("ForImageClassification", "ForImageClassificationWithTeacher")):
            return found
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"the installed transformers {transformers.__version__} has no model of type {kind!r}")
    config = CONFIG_MAPPING[kind]
    if "vision_config" in config.sub_configs:
        config = config.sub_configs["vision_config"]
    elif not any(known) and config in AutoModelForImageClassification._model_mapping:
        return AutoModelForImageClassification._model_mapping[config]
    if config not in AutoModel._model_mapping and any(known):
        return next(filter(None, known))
    if config not in AutoModel._model_mapping:
        raise ValueError(f"transformers has no vision encoder for model type {kind!r}")
    return AutoModel._model_mapping[config]


class Loading(Stock):
    """A mixin: `from_pretrained`, `from_base`, `save_pretrained`."""

    config: Any
    base_id: str | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if not issubclass(cls, nn.Module):  # from a config, which says over which stock class
            config = args[0] if args else kwargs["config"]
            cls = over(cls, stock_class(config.to_dict()))
        return super().__new__(cls)

    @classmethod
    def is_custom_code(cls) -> bool:
        """As the stock class: else transformers would not know the older names of its tensors."""
        return cls.stock.is_custom_code()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any,
        dtype: torch.dtype | str | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Load a checkpoint of any vision encoder of transformers, with the heads that `save_pretrained` put there.

        As in HuggingFace, with two differences: `dtype` is float32 unless told otherwise, whatever the file holds, and
        a tensor that is missing, unexpected or of another shape is an error. A checkpoint without a classifier gets
        none: no `"base"` entry. Of a model for images and text the text tower is not loaded. Of ViT-MAE the encoder
        becomes a ViTModel. Heads arrive frozen; `train_only` wakes them.

        Raises ValueError for such tensors, a damaged file and a model that cannot be a base, OSError if there is no
        checkpoint.
        """
        name = pretrained_model_name_or_path
        dtype = kwargs.pop("torch_dtype", None) or dtype
        want_info = kwargs.pop("output_loading_info", False)
        where = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        given = kwargs.get("config")
        values = (
            given.to_dict()
            if isinstance(given, PreTrainedConfig)
            else PreTrainedConfig.get_config_dict(name, **where)[0]
        )
        if values.get("model_type") == "vit_mae":
            stock, info = _load(transformers.ViTMAEModel, name, args, kwargs)
            _judge(stock, info, name, kwargs)
            model = cls.from_base(stock)
            model.base_id = str(name)
        else:
            try:
                kind = cls if issubclass(cls, nn.Module) else over(cls, stock_class(values))
                _refuse_early(kind.stock, given, name, where)
            except ValueError as error:
                raise ValueError(f"{name or 'This model'} cannot be a base: {error}.") from None
            model, info = _load(super(Loading, kind), name, args, kwargs)
            _judge(model, info, name, kwargs)
            check_layers(model)
            model._recognise(name)
        model.requires_grad_(False).eval()
        if dtype == "auto":  # what the config on disk says; the loaded one says float32
            dtype = getattr(torch, str(values.get("dtype") or values.get("torch_dtype") or "float32"))
        if dtype is not None:
            model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return (model, info) if want_info else model

    def _recognise(self, source: Any) -> None:
        """Take the fingerprint of a base that was just loaded, or the recorded one if nobody changed it since.

        The recorded one is that of the values before a cast to bfloat16, say, which those on disk cannot tell any more.
        """
        record = getattr(self.config, "learnable_memory", None) or {}
        found = self._hash_base()
        if found == record.get("saved_as"):
            self._take_fingerprint(record.get("fingerprint"))
        elif self.heads:
            raise ValueError(
                f"The base in {source} was changed after its heads were saved with it: they do not fit it."
            )
        else:
            self._take_fingerprint(found)
            self.base_id = None if source is None else str(source)

    @classmethod
    def from_base(cls, base: PreTrainedModel) -> Any:
        """Put heads on a model that is already there. Its modules are shared, not copied, and are frozen from now on.

        Args:
            base: a vision encoder of transformers, or an image classifier around one; of a model for images and text
                its `vision_model` is taken. Of ViT-MAE, whose own class masks and shuffles patches, the encoder becomes
                a ViTModel on the same storage.

        The fingerprint is taken from the values as they are, so a base cast to bfloat16 before this call is not the
        base on disk any more: load it with `from_pretrained(..., dtype=torch.bfloat16)` instead.

        Raises TypeError for what is no model of transformers, ValueError for one that cannot be a base.
        """
        if not isinstance(base, PreTrainedModel):
            raise TypeError(f"from_base takes a vision encoder of transformers, got {type(base).__name__}.")
        if isinstance(getattr(base, "text_model", None), nn.Module) and hasattr(base, "vision_model"):
            base = base.vision_model
        if base.config.model_type == "vit_mae":
            base = _vit_of_mae(base)
        model = cls._around(base)
        check_layers(model)
        return model.requires_grad_(False).train(base.training)

    @classmethod
    def _around(cls, base: Any) -> Any:
        """A model without heads that shares the modules of `base`."""
        if not any(isinstance(module, PreTrainedModel) for module in list(base.modules())[1:]):
            # Who collects hidden states keeps a mark of it in itself: two who share modules would collect them twice.
            maybe_install_capturing_hooks(base)
        model: Any = object.__new__(over(getattr(cls, "mixin", cls), getattr(base, "stock", type(base))))
        containers = (dict, set)  # of modules, parameters, hooks: the model has its own, with the same things in it
        model.__dict__ = {
            key: copy.copy(value) if isinstance(value, containers) else value for key, value in vars(base).items()
        }
        model._modules.pop("heads", None)
        _introduce(type(model), base.config)
        model._find_base()
        model._without_heads()
        shared = base.fingerprint if isinstance(base, Loading) else None
        model._take_fingerprint(shared)  # now, before any cast
        model.base_id = getattr(base, "base_id", None) or base.config.name_or_path
        model._image_size = getattr(base, "_image_size", None)
        return model

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        """As in HuggingFace; the heads and the base's fingerprint are recorded in the config, so that they return."""
        self.config.learnable_memory = self._record()
        try:
            return super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config.learnable_memory = None  # it may be the config of others, who have no heads

    def _record(self) -> dict:
        return {
            "fingerprint": self.fingerprint,
            "saved_as": self._hash_base(),
            "base_id": self.base_id,
            "image_size": self._image_size,
            "heads": [dataclasses.asdict(head.spec) for head in self.heads.values()],
            "answers": getattr(self, "head_name", None),  # of a HeadClassifier
        }

    def _restore(self, record: Mapping[str, Any]) -> None:
        """The heads of a record, with values still to come."""
        self.base_id = record.get("base_id")
        if record.get("image_size"):
            self.set_image_size(record["image_size"])
        for spec in record.get("heads", ()):
            self._add(HeadSpec(**spec))


def _introduce(kind: type, config: Any) -> None:
    """Let transformers know a class of which no instance was made by its constructor: what outputs it can collect."""
    PreTrainedModel.__init__(object.__new__(kind), copy.deepcopy(config))


def drop_classifier(model: Any) -> None:
    """Leave the base without answers of its own."""
    for name in CLASSIFIERS:
        if getattr(model, name, None) is not None:
            setattr(model, name, nn.Identity())


def _vit_of_mae(mae: Any) -> ViTModel:
    """The encoder of a ViT-MAE as a ViTModel on the same storage: it sees all patches, in their order."""
    encoder = getattr(mae, "vit", mae)
    values = encoder.config.to_dict()
    known = {key: value for key, value in values.items() if key in ViTConfig().to_dict() and key != "model_type"}
    with torch.device("meta"):
        vit = ViTModel(ViTConfig(**known), add_pooling_layer=False)
    vit.load_state_dict(
        {name: tensor for name, tensor in encoder.state_dict().items() if "mask_token" not in name}, assign=True
    )
    vit.config.name_or_path = mae.config.name_or_path
    return vit.train(mae.training)


def _refuse_early(stock: Any, given: Any, name: Any, where: Mapping[str, Any]) -> None:
    """Raise ValueError, before any weight is read, if a model of this class and config cannot be a base."""
    config = given if isinstance(given, PreTrainedConfig) else stock.config_class.from_pretrained(name, **where)
    with torch.device("meta"):
        Anatomy(stock(config))


def _load(kind: Any, name: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[Any, dict]:
    """What transformers loads, in float32, and what it says of it."""
    # float32 first, because the fingerprint is taken before any cast; all that does not fit is judged afterwards.
    ours = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its report would tell of a classifier that is going to be trained
    try:
        return kind.from_pretrained(name, *args, **{**kwargs, **ours})
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"The weights in {name} are damaged or cut short, or a pickle with more than tensors: {reason}."
        ) from None
    finally:
        hf_logging.set_verbosity(verbosity)


def _judge(model: Any, info: Mapping[str, Any], name: Any, kwargs: Mapping[str, Any]) -> None:
    """Take out of a model what its checkpoint has no weights for and may lack; raise ValueError for the rest."""
    missing = {key for key in info["missing_keys"] if "mask_token" not in key}
    unexpected = {key for key in info["unexpected_keys"] if not re.search(UNUSED, key)}
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    classifier = {key for key in model.state_dict() if key.startswith(tuple(f"{part}." for part in CLASSIFIERS))}
    if classifier <= missing:
        if "num_labels" in kwargs:
            raise ValueError(f"{name} has no classifier. For a new one: add_head(name, {kwargs['num_labels']}, ...).")
        missing -= classifier
        if classifier:
            drop_classifier(model)
            model.num_labels, model.config.num_labels = 0, 0
    pooler = {key for key in missing if re.search(r"(^|\.)pooler\.", key)}
    if pooler:  # saved without
        missing -= pooler
        model.get_submodule(next(iter(pooler)).partition("pooler.")[0].rstrip(".")).pooler = None
    heads = {key for key in model.state_dict() if key.startswith("heads.")}
    if heads and heads <= missing:  # a stock class has loaded and saved it, who knows nothing of heads
        missing -= heads
        logger.warning(
            "%s records heads (%s), but a program that does not know them has saved it without.",
            name,
            ", ".join(model.heads),
        )
        for head in reversed(model.head_names):
            model.remove_head(head)
    if missing or unexpected or mismatched:
        raise ValueError(
            f"{name} is not a whole {type(model).__name__} checkpoint. Missing: {some(missing)}; unexpected: "
            f"{some(unexpected)}; of another shape: {some(mismatched)}."
        )


def some(names: Iterable[str]) -> str:
    """A list for an error message, not longer than somebody reads."""
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "nothing"
