"""Other families of ViT as plain ViTs: one converter for each kind of files.

A converter gives a `PlainViT`, whose tensors fit the stock layers: what a family adds is folded in (layer scale) or
becomes a token (registers, DeiT's distillation token). Where that cannot be done exactly, it refuses and says why.
Nothing is approximated, and nothing here runs code that comes with a model.
"""

from learnable_memory.families.checkpoints import from_checkpoint_file
from learnable_memory.families.huggingface import from_huggingface
from learnable_memory.families.npz import from_npz
from learnable_memory.families.plain import PlainViT
from learnable_memory.families.refused import refuse
from learnable_memory.families.timm_models import from_timm
from learnable_memory.families.timm_names import from_timm_names

__all__ = [
    "PlainViT",
    "from_checkpoint_file",
    "from_huggingface",
    "from_npz",
    "from_timm",
    "from_timm_names",
    "refuse",
]
