"""One head as a HuggingFace classifier, for `transformers.pipeline`, `Trainer` and the like."""

import copy
import os
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from learnable_memory.model.loading import CLASSES
from learnable_memory.model.mixin import Stock


class OneHead(Stock):
    """A mixin over a model with heads; see `vit.HeadClassifier`."""

    config: Any
    base_config: Any
    head_name: str
    of_model: Any  # MemoryCapableViT

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, head: str | None = None, **kwargs: Any
    ) -> Any:
        """As `MemoryCapableViT.from_pretrained`, then `classifier_for(head)`; `head` may be left out if it was saved
        from a classifier, or has only one. Raises ValueError if it has several."""
        model = cls.of_model.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, *info = model if isinstance(model, tuple) else (model,)
        classifier = cls.of(model, only_head(model, head, pretrained_model_name_or_path))
        return (classifier, *info) if info else classifier

    @classmethod
    def of(cls, model: Any, name: str) -> Any:
        """As `MemoryCapableViT.classifier_for`."""
        spec = model._head(name).spec
        shared = model._around(model)
        for member in model.with_ancestors([name]):
            shared.heads[member] = model.heads[member]
        classifier: Any = object.__new__(answering(cls, type(shared)))
        classifier.__dict__ = vars(shared)
        classifier.head_name, classifier.base_config = name, model.config
        classifier.config = copy.deepcopy(model.config)
        classifier.loss_type = "ForImageClassification"  # which HuggingFace guesses from the name of the class
        labels = spec.metadata.get("labels") or [f"LABEL_{i}" for i in range(spec.num_labels)]
        classifier.config.id2label = dict(enumerate(labels))  # and with it num_labels
        classifier.config.label2id = {label: i for i, label in enumerate(labels)}
        classifier.config.problem_type = "single_label_classification"
        classifier.num_labels = spec.num_labels
        return classifier.train(model.training)

    def __reduce__(self) -> tuple:
        kind = type(self)
        return _blank, (kind.answers_as, kind.with_all_heads), vars(self)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        """As MemoryCapableViT: the base's own configuration and classifier stay what they are."""
        ours, self.config = self.config, self.base_config
        kind = type(self)
        try:
            # Under the class of the base, by whose name transformers knows the names of the tensors.
            self.__class__ = kind.with_all_heads
            return self.save_pretrained(save_directory, **kwargs)
        finally:
            self.__class__ = kind
            self.config = ours

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> ImageClassifierOutput | tuple:  # fmt: skip
        """As `ViTForImageClassification.forward`: pixel_values [B, channels, height, width], labels int64 [B].

        `logits` are [B, C], float32; `loss` is the mean cross entropy, if there are labels. `kwargs` go to
        HuggingFace's loss (`num_items_in_batch` of its Trainer).
        """
        answers = super().forward(
            pixel_values, [self.head_name], with_base=False, interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states, output_attentions=output_attentions,
        )  # fmt: skip
        output = answers[self.head_name]
        if labels is not None:  # a new one, for the loss has to come first in its tuple
            loss = self.loss_function(labels, output.logits, self.config, **kwargs)
            output = ImageClassifierOutput(loss, output.logits, output.hidden_states, output.attentions)
        return output if return_dict in (None, True) else output.to_tuple()


def answering(mixin: Any, model: Any) -> Any:
    """The class of a model, answering with one head. transformers calls all of them by the name that it knows."""
    if (mixin, model) not in CLASSES:
        members = {"__module__": mixin.__module__, "answers_as": mixin, "with_all_heads": model}
        CLASSES[mixin, model] = type("HeadClassifier", (mixin, model), members)
    return CLASSES[mixin, model]


def _blank(mixin: type, model: type) -> Any:
    """What a pickle of a classifier is filled into: its class has no name of its own."""
    return object.__new__(answering(mixin, model))


def only_head(model: Any, name: str | None, source: Any) -> str:
    """Which head a loaded model is to answer with. Raises ValueError if nothing says which."""
    saved = getattr(model.config, "learnable_memory", None) or {}
    found = name or saved.get("answers") or (model.head_names[0] if len(model.heads) == 1 else None)
    if found is None:
        raise ValueError(
            f"{source} has {len(model.heads)} heads ({', '.join(model.heads) or 'none'}): say which with head=..."
        )
    return found


# The pipeline looks for a model's class name here, and would call this one unsupported on every start.
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["HeadClassifier"] = "HeadClassifier"
