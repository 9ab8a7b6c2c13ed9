"""Base models: from a name or a path to files on disk, what they are, and which pixels they expect.

What is in HuggingFace's layout, `MemoryCapableViT.from_pretrained` reads. Everything else, timm's folders and files of
the original code, becomes a model of transformers first: `convert`.
"""

from learnable_memory.bases.convert import convert
from learnable_memory.bases.find import (
    CHECKPOINTS,
    CONFIG,
    NETWORK_TIMEOUT,
    PROCESSORS,
    SHIPPED_BASE,
    find_base,
    has_processor,
    is_huggingface,
    is_timm,
    read_config,
)
from learnable_memory.bases.preprocessing import preprocessing_of, read_processor
from learnable_memory.bases.refused import refuse

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "NETWORK_TIMEOUT",
    "PROCESSORS",
    "SHIPPED_BASE",
    "convert",
    "find_base",
    "has_processor",
    "is_huggingface",
    "is_timm",
    "preprocessing_of",
    "read_config",
    "read_processor",
    "refuse",
]
