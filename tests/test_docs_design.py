"""The design page: its formulas and numbers are those of the code, and of counted tensors."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from learnable_memory import cost
from learnable_memory.features import Contents, expected_gain
from learnable_memory.projections import USUAL_PROJECTIONS
from tiny import images, tiny_model

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
FORMULAS = re.search(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)[1]
SIZES = {  # N, D, L, H and the side of a patch
    "ViT-B/32": (50, 768, 12, 12, 32),
    "ViT-B/16": (197, 768, 12, 12, 16),
    "ViT-L/16": (197, 1024, 24, 16, 16),
}
CELLS = (0, 1, 5, 10, 20)
RANKS = (1, 2, 4, 8)
TINY = {"N": 17, "D": 32, "F": 64, "L": 3, "H": 4, "P": 16, "p": 48, "T": 1}  # tests/tiny.py


def computed(**letters: int) -> dict[str, int]:
    """What the formulas of the page give."""
    names = dict(letters)
    exec(FORMULAS, {}, names)
    return {name: value for name, value in names.items() if name not in letters}


def letters_of(size: str, T: int = 1, m: int = 1, r: int = 0) -> dict[str, int]:
    N, D, L, H, side = SIZES[size]
    return {"N": N, "D": D, "L": L, "H": H, "F": 4 * D, "P": N - 1, "p": 3 * side**2, "T": T, "m": m, "r": r, "C": 100}


def contents(form: str, N: int, D: int, L: int, H: int) -> Contents:
    return Contents("", "float32", "", "", None, 0, form, "float32", L, H, N, D, D)


def rows_of(first: str) -> list[list[str]]:
    """The table rows that begin with this cell."""
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] == first]


# ------------------------------------------------------------------------------------------------------------ formulas
@pytest.mark.parametrize(("m", "r"), [(0, 0), (1, 0), (7, 0), (1, 1), (7, 6)])
def test_the_formulas_of_cost_are_those_of_the_code(m, r):
    given = {"N": 19, "D": 24, "F": 60, "L": 5, "H": 4, "P": 17, "p": 48, "T": 3, "m": m, "r": r, "C": 11}
    found, ranks = computed(**given), dict.fromkeys(USUAL_PROJECTIONS, r)
    assert found["base"] == cost.base(19, 24, 60, 5, 48, 17)
    assert found["low_rank"] == cost.low_rank_layer(24, 60, ranks)
    assert found["head"] == cost.head(19, 24, 60, 5, m, 11, ranks)
    assert found["head_numbers"] == cost.head_numbers(24, 60, 5, m, 11, ranks)
    assert found["heads_together"] == found["base"] + 3 * found["head"]


@pytest.mark.parametrize(("m", "r"), [(0, 0), (1, 0), (7, 0), (1, 1), (7, 6)])
def test_the_numbers_of_a_head_are_counted(m, r):
    parameters = tiny_model().add_head("A", 11, memory_tokens=m, rank=r)
    assert computed(**TINY, m=m, r=r, C=11)["head_numbers"] == sum(parameter.numel() for parameter in parameters)


def test_the_numbers_of_ranks_for_each_projection_are_counted():
    ranks = {"query": 1, "key": 2, "value": 3, "output": 4, "mlp_in": 5, "mlp_out": 6}
    parameters = tiny_model().add_head("A", 11, memory_tokens=2, rank=ranks)
    assert cost.head_numbers(32, 64, 3, 2, 11, ranks) == sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize("ranks", [{name: 3} for name in USUAL_PROJECTIONS] + [{"query": 2, "mlp_out": 5}], ids=str)
def test_the_multiplications_of_ranks_are_what_torch_counts(ranks):
    counted = []
    for own in ({}, ranks):
        model = tiny_model()
        model.add_head("A", 11, memory_tokens=2, rank=own)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images(4), heads=["A"])
        counted.append(counter.get_total_flops() // 2)  # a multiplication and its addition count as two
    assert counted[1] - counted[0] == 4 * 3 * cost.low_rank_layer(32, 64, ranks)
    expected = cost.head(17, 32, 64, 3, 2, 11, ranks) - cost.head(17, 32, 64, 3, 2, 11)
    assert expected == 3 * cost.low_rank_layer(32, 64, ranks)


def test_the_numbers_of_a_cached_image_are_counted():
    model = tiny_model()
    found = computed(**TINY, m=1, r=0, C=5)
    for form, keys_and_values in (("keys_and_values", True), ("tokens", False)):
        kept = model.base_tokens(torch.randn(1, 3, 16, 16), keys_and_values)
        assert found[form] == kept.layers.numel() + kept.output.numel()
    assert found["keys_and_values"] == contents("keys_values", 17, 32, 3, 4).numbers
    assert found["tokens"] == contents("tokens", 17, 32, 3, 4).numbers


def kept_for_the_backward_pass(model: nn.Module, images: torch.Tensor) -> int:
    """Numbers that autograd keeps of a pass, the parameters aside; what shares its storage counts once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes() // 4, tensor  # held, so that no place is used twice
        return tensor

    labels = {name: torch.zeros(len(images), dtype=torch.long) for name in model.head_names}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(images, with_base=False, labels=labels)
    assert all(output.loss.requires_grad for output in outputs.values())
    return sum(count for count, _ in storages.values())


def kept_per_image(width: int, heads: int, rank: int) -> float:
    """Numbers, of an image more: what is kept once for a batch is not among them."""
    model = tiny_model(image_size=32, hidden_size=width, intermediate_size=4 * width)
    for number in range(heads):
        model.add_head(f"h{number}", 5, rank=rank)
    model.train_only(model.head_names)
    model.train()
    few, many = (kept_for_the_backward_pass(model, torch.randn(count, 3, 32, 32)) for count in (8, 24))
    return (many - few) / 16


@pytest.mark.parametrize("width", [32, 64])
def test_what_training_keeps_is_counted(width):
    two, four = (kept_per_image(width, heads, rank=0) for heads in (2, 4))
    found = computed(N=65, D=width, F=4 * width, L=3, H=4, P=64, p=48, T=2, m=1, r=0, C=5)
    head = (four - two) / 2
    assert head == pytest.approx(found["kept_by_a_head"], rel=0.05) and found["kept_for_low_rank"] == 0
    assert two - 2 * head == pytest.approx(found["kept_by_the_base"], rel=0.05)


@pytest.mark.parametrize("rank", [1, 8])
def test_what_training_keeps_for_low_rank_weights_is_counted(rank):
    plain, ranked = (kept_per_image(32, 2, each) for each in (0, rank))
    found = computed(N=65, D=32, F=128, L=3, H=4, P=64, p=48, T=2, m=1, r=rank, C=5)
    assert ranked - plain == 2 * found["kept_for_low_rank"]


# ------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize("size", SIZES)
def test_the_table_of_sizes(size):
    N, D, L, _, _ = SIZES[size]
    one, twenty = computed(**letters_of(size)), computed(**letters_of(size, T=20))
    assert rows_of(size)[0] == [
        size, str(N), str(D), str(L), f"{one['base'] / 1e9:.2f}", f"{one['head'] / 1e6:.1f}",
        f"{100 * one['head'] / one['base']:.2f} %", f"{twenty['heads_together'] / one['base']:.2f}",
        f"{4 * one['keys_and_values'] / 1e6:.2f}", f"{4 * one['tokens'] / 1e6:.2f}",
    ]  # fmt: skip


@pytest.mark.parametrize(("row", "size"), [("ViT-B", "ViT-B/32"), ("ViT-L", "ViT-L/16")])
def test_the_table_of_heads(row, size):
    numbers = [computed(**letters_of(size, m=m))["head_numbers"] for m in CELLS]
    assert rows_of(row) == [[row, *(f"{count:,} ({4 * count / 1000:,.0f} kB)" for count in numbers)]]


@pytest.mark.parametrize(("row", "size"), [("ViT-B, 1 cell", "ViT-B/32"), ("ViT-L, 1 cell", "ViT-L/16")])
def test_the_table_of_ranks(row, size):
    numbers = [computed(**letters_of(size, r=r))["head_numbers"] for r in RANKS]
    assert rows_of(row) == [[row, *(f"{count:,} ({4 * count / 1000:,.0f} kB)" for count in numbers)]]


@pytest.mark.parametrize("size", ["ViT-B/32", "ViT-B/16"])
def test_the_table_of_gains(size):
    N, D, L, H, _ = SIZES[size]
    forms = [contents(form, N, D, L, H) for form in ("keys_values", "tokens")]
    gains = [f"{expected_gain(form, heads):.1f}" for form in forms for heads in (1, 4, 20)]
    assert rows_of(size)[1] == [size, *gains]
