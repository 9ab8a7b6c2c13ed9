"""The method as the paper writes it, naively: all tokens in one tensor, one joint attention, one full mask.

Deliberately shares nothing with vit.py but `build_attention_mask` (which has tests of its own) and the weights.
"""

import math

import torch
from torch.nn import functional as F

from vit import build_attention_mask


def project(module, name: str, index: int, inputs: torch.Tensor, heads, first_row: int) -> torch.Tensor:
    """A projection of all rows [B, rows, outputs], with the heads' low-rank weights for rows of theirs: class tokens
    from `first_row` on and, where it is asked too, their memory behind them."""
    outputs = F.linear(inputs, module.weight, module.bias)
    cell = first_row + len(heads)
    for i, (_, head) in enumerate(heads):
        cells = range(cell, cell + head.spec.memory_tokens)
        cell = cells.stop
        if name in head.low_rank:
            update = head.low_rank[name]
            for row in (first_row + i, *(row for row in cells if row < inputs.shape[1])):
                outputs[:, row] = F.linear(
                    inputs[:, row], module.weight + update.up[index] @ update.down[index], module.bias
                )
    return outputs


def joint_logits(model, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits of the base and of every head with a class token, by name."""
    vit, heads = model.vit, list(model.heads.items())
    names = [name for name, _ in heads]
    patches = vit.embeddings.patch_embeddings.projection(pixel_values).flatten(2).transpose(1, 2)
    positions, batch = vit.embeddings.position_embeddings[0], len(pixel_values)
    patches = patches + positions[1:]
    base_class = (vit.embeddings.cls_token[0, 0] + positions[0]).expand(batch, 1, -1)
    added = [(head.class_token + positions[0]).expand(batch, 1, -1) for _, head in heads]
    x = torch.cat([patches, base_class, *added], dim=1)
    extension = [[names.index(parent) for parent in head.spec.extends] for _, head in heads]
    first = patches.shape[1] + 1  # rows of the heads' class tokens
    mask = build_attention_mask(patches.shape[1], [head.spec.memory_tokens for _, head in heads], extension).to(x)

    for index, layer in enumerate(vit.layers):

        def norm(values, module):
            return F.layer_norm(values, values.shape[-1:], module.weight, module.bias, module.eps)

        def linear(inputs, module, name, index=index):
            return project(module, name, index, inputs, heads, first_row=first)

        normed = norm(x, layer.layernorm_before)
        memory = [
            norm(head.memory[index], layer.layernorm_before) if head.spec.memory_norm else head.memory[index]
            for _, head in heads
            if head.spec.memory_tokens
        ]
        asked = torch.cat([normed, *(cells.expand(batch, -1, -1) for cells in memory)], dim=1)
        attention, outputs = layer.attention, []
        query = linear(normed, attention.q_proj, "query")
        key, value = linear(asked, attention.k_proj, "key"), linear(asked, attention.v_proj, "value")
        for h in range(attention.num_attention_heads):
            columns = slice(h * attention.head_dim, (h + 1) * attention.head_dim)
            q, k, v = query[..., columns], key[..., columns], value[..., columns]
            outputs.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(attention.head_dim) + mask, -1) @ v)
        x = x + linear(torch.cat(outputs, -1), attention.o_proj, "output")
        inner = F.gelu(linear(norm(x, layer.layernorm_after), layer.mlp.fc1, "mlp_in"))
        x = x + linear(inner, layer.mlp.fc2, "mlp_out")

    x = F.layer_norm(x, x.shape[-1:], vit.layernorm.weight, vit.layernorm.bias, vit.layernorm.eps)
    first -= 1  # that of the base's class token
    logits = {"base": F.linear(x[:, first], model.classifier.weight, model.classifier.bias)}
    for i, (name, head) in enumerate(heads):
        logits[name] = F.linear(x[:, first + 1 + i], head.classifier.weight, head.classifier.bias)
    return logits
