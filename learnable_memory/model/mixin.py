"""What a mixin stands over. To a type checker it is a model of transformers; when it runs, nothing yet."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Stock
else:
    Stock = object

__all__ = ["Stock"]
