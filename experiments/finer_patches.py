"""A ViT for patches of half the side that answers like the one it is made from: no training, four times the tokens.

The old network sees patches of side p, next to each other. The new one sees patches of side p / 2, and its tokens are
what the old one would have seen in a window of side p that slides by p / 2: a class that is stock (kernel = stride) and
yet looks through overlapping patches, which the old layers understand at once. On CIFAR-100 it is better than the old
network before the first step.

A window is a small patch and its right, lower and diagonal neighbours, so one more layer in front is enough: each of
three attention heads fetches one neighbour's pixels. For that the stream of tokens carries, in directions that the
windows' embeddings hardly use,

    copy * pixels        of the small patch, 3 (p / 2)^2 directions, for the neighbours to read;
    code * place         unit vectors of its row, its column, and of being a patch or the class token;
    constant             one direction, large, so that the layer norm divides each token by nearly the same number.

The attention output adds the neighbours' parts of the window; the MLP, whose GELU is nearly the identity far right of
zero, takes the three helpers away again. At the right and the lower edge a patch is its own neighbour. Memory tokens of
heads lack the constant, and are ignored in this layer.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

CONSTANT, CODE, COPY = 16.0, 1.0, 0.3
SHARPNESS = 12.0  # logit of the neighbour that is fetched; the others get less than half of it at most
REAL = 60.0  # logit of all tokens that carry the constant: memory tokens do not, and are not to be attended to here
OFFSET = 5.0  # of the units of the MLP: GELU(x) = x to 1e-5 there


@torch.no_grad()
def finer_patches(coarse: ViTForImageClassification, pixels: torch.Tensor) -> ViTForImageClassification:
    """The network described above: one layer more, patches of half the side.

    Args:
        coarse: D / heads at least 3 (p / 2)^2 (what a head has to carry), three heads or more.
        pixels: [B, 3, H, W], some normalised images: which directions are free, and what the norms divide by.
    """
    config = coarse.config
    half, heads, width = (
        config.patch_size // 2,
        config.num_attention_heads,
        config.hidden_size // config.num_attention_heads,
    )
    count = 3 * half**2
    if heads < 3 or width < count:
        raise ValueError(f"{heads} attention heads of {width}: at least 3 of {count} are needed")
    fine = ViTForImageClassification(
        ViTConfig(**config.to_dict() | {"patch_size": half, "num_hidden_layers": config.num_hidden_layers + 1})
    )
    _copy_layers(coarse, fine)
    kernel = coarse.vit.embeddings.patch_embeddings.projection.weight
    rows = kernel.split(half, 2)
    own, *others = (part.flatten(1) for row in rows for part in row.split(half, 3))  # [D, 3 (p / 2)^2] each
    side = config.image_size // half
    place = _codes(side)  # [1 + P, E]
    free = _free_directions(coarse, own, others, pixels, count + place.shape[1] + 1)  # [D, ..]
    copies, codes, constant = free[:, :count], free[:, count:-1], CONSTANT * free[:, -1]

    embeddings, old = fine.vit.embeddings, coarse.vit.embeddings
    embeddings.patch_embeddings.projection.weight.copy_((own + COPY * copies).reshape(-1, 3, half, half))
    embeddings.patch_embeddings.projection.bias.copy_(old.patch_embeddings.projection.bias + constant)
    embeddings.position_embeddings[0, 0] = CODE * codes @ place[0]
    embeddings.position_embeddings[0, 1:] = (
        _positions_between(old.position_embeddings, side) + CODE * place[1:] @ codes.T
    )
    embeddings.cls_token.copy_(old.cls_token + old.position_embeddings[:, :1] + constant)

    layer = fine.vit.layers[0]
    for parameter in layer.parameters():
        parameter.zero_()
    layer.layernorm_before.weight.fill_(1)
    layer.layernorm_after.weight.fill_(1)
    tokens = embeddings(pixels)
    _fetch_neighbours(layer.attention, others, copies, codes, side, _spread(tokens))
    _ignore_memory(layer.attention, codes.shape[1], constant, _spread(tokens))
    tokens = tokens + layer.attention(layer.layernorm_before(tokens))[0]
    _remove_helpers(layer.mlp, torch.cat([copies, codes], 1), constant, _spread(tokens))
    return fine.eval()


def _copy_layers(coarse: ViTForImageClassification, fine: ViTForImageClassification) -> None:
    """Everything but the embeddings; layer i becomes layer i + 1."""
    for old, new in zip(coarse.vit.layers, fine.vit.layers[1:], strict=True):
        new.load_state_dict(old.state_dict())
    fine.vit.layernorm.load_state_dict(coarse.vit.layernorm.state_dict())
    fine.classifier.load_state_dict(coarse.classifier.state_dict())


def _spread(tokens: torch.Tensor) -> torch.Tensor:
    """What a layer norm divides patch tokens by, on average."""
    return tokens[:, 1:].var(2, unbiased=False).sqrt().mean()


def _simplex(corners: int) -> torch.Tensor:
    """Unit vectors with equal angles, their sum zero: [corners, corners - 1]."""
    u, s, _ = torch.linalg.svd(torch.eye(corners) - 1 / corners)
    return F.normalize(u[:, :-1] * s[:-1], dim=1)


def _codes(side: int) -> torch.Tensor:
    """Row, column, and 1 for the class token or -1 for a patch: [1 + side * side, 2 (side - 1) + 1]."""
    line = _simplex(side)
    patches = torch.cat([line.repeat_interleave(side, 0), line.repeat(side, 1), -torch.ones(side * side, 1)], 1)
    cls = torch.zeros(1, patches.shape[1])
    cls[0, -1] = 1
    return torch.cat([cls, patches])


def _positions_between(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Old positions [1, 1 + g * g, D] at every half patch: [side * side, D]; the last window is half outside."""
    grid = positions[0, 1:]
    old = int(len(grid) ** 0.5)
    line = ((torch.arange(side) / 2).clamp(max=old - 0.75) + 0.5) / old * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = grid.T.reshape(1, -1, old, old)
    found = F.grid_sample(grid, torch.stack([x, y], -1)[None], "bicubic", "border", align_corners=False)
    return found[0].flatten(1).T


def _free_directions(coarse, own: torch.Tensor, others, pixels: torch.Tensor, number: int) -> torch.Tensor:
    """The directions [D, number] that windows, positions, class token and the mean of the layer norm use the least."""
    half, embeddings = coarse.config.patch_size // 2, coarse.vit.embeddings
    patches = F.unfold(pixels, half, stride=half).mT.flatten(0, 1)  # [B * P, 3 (p / 2)^2]
    used = torch.cat([patches @ part.T for part in (own, *others)])
    gram = used.T @ used / len(patches)
    for exact in (embeddings.position_embeddings[0], embeddings.cls_token[0], torch.ones_like(embeddings.cls_token[0]),
                  embeddings.patch_embeddings.projection.bias[None]):  # fmt: skip
        gram = gram + 100 * exact.T @ exact
    return torch.linalg.eigh(gram).eigenvectors[:, :number]


def _fetch_neighbours(attention: nn.Module, others, copies, codes, side: int, spread: torch.Tensor) -> None:
    """Head 1 attends to the right neighbour, 2 to the lower, 3 to the diagonal one; the class token to itself."""
    line = _simplex(side)
    following = line[torch.arange(1, side + 1).clamp(max=side - 1)]
    step = torch.linalg.lstsq(torch.cat([line, torch.ones(side, 1)], 1), following).solution  # affine: next = A^T x + b
    width, size = attention.q_proj.weight.shape[0] // attention.num_attention_heads, codes.shape[1]
    gain = (SHARPNESS * width**0.5) ** 0.5
    row, column = slice(side - 1), slice(side - 1, 2 * (side - 1))
    for head, (down, right) in enumerate(((False, True), (True, False), (True, True))):
        turn, shift = torch.eye(size), torch.zeros(size)
        turn[-1, -1] = 0.75
        for wanted, axis in ((down, row), (right, column)):
            if wanted:
                turn[axis, axis], shift[axis] = step[:-1].T, step[-1]
        start = head * width
        attention.q_proj.weight[start : start + size] = gain * spread / CODE * turn @ codes.T
        attention.q_proj.bias[start : start + size] = gain * shift
        attention.k_proj.weight[start : start + size] = gain * spread / CODE * codes.T
        attention.v_proj.weight[start : start + copies.shape[1]] = spread / COPY * copies.T
        attention.o_proj.weight[:, start : start + copies.shape[1]] = others[head]


def _ignore_memory(attention: nn.Module, coordinate: int, constant: torch.Tensor, spread: torch.Tensor) -> None:
    """One more coordinate of queries and keys, which tokens that lack the constant (a head's memory) do not have.

    Behind the layer norm, memory that is not learned yet is large in all directions: it would pass for a neighbour.
    """
    width = attention.q_proj.weight.shape[0] // attention.num_attention_heads
    for row in range(coordinate, attention.q_proj.weight.shape[0], width):
        attention.q_proj.bias[row] = REAL * width**0.5
        attention.k_proj.weight[row] = spread * constant / constant.square().sum()


def _remove_helpers(mlp: nn.Module, helpers: torch.Tensor, constant: torch.Tensor, spread: torch.Tensor) -> None:
    """x - helpers helpers^T x - constant, for what comes out of the layer norm; the other units stay free to learn."""
    number = helpers.shape[1]
    nn.init.trunc_normal_(mlp.fc1.weight, std=0.02)
    mlp.fc1.weight[:number] = helpers.T
    mlp.fc1.bias[:number] = OFFSET
    mlp.fc2.weight[:, :number] = -spread * helpers
    mlp.fc2.bias.copy_(spread * OFFSET * helpers.sum(1) - constant)
