"""The design page: its formulas and numbers are those of the code, and of counted tensors."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from learnable_memory import cost
from learnable_memory.features import Contents, expected_gain
from tiny import tiny_model

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "design.md").read_text(encoding="utf-8")
FORMULAS = re.search(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)[1]
SIZES = {  # N, D, L, H and the side of a patch
    "ViT-B/32": (50, 768, 12, 12, 32),
    "ViT-B/16": (197, 768, 12, 12, 16),
    "ViT-L/16": (197, 1024, 24, 16, 16),
}
CELLS = (0, 1, 5, 10, 20)


def computed(**letters: int) -> dict[str, int]:
    """What the formulas of the page give."""
    names = dict(letters)
    exec(FORMULAS, {}, names)
    return {name: value for name, value in names.items() if name not in letters}


def letters_of(size: str, T: int = 1, m: int = 1, C: int = 100) -> dict[str, int]:
    N, D, L, H, side = SIZES[size]
    return {"N": N, "D": D, "L": L, "H": H, "F": 4 * D, "P": N - 1, "p": 3 * side**2, "T": T, "m": m, "C": C}


def contents(form: str, N: int, D: int, L: int, H: int) -> Contents:
    return Contents("", "float32", "", "", None, 0, form, "float32", L, H, N, D)


def rows_of(first: str) -> list[list[str]]:
    """The table rows that begin with this cell."""
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] == first]


# ------------------------------------------------------------------------------------------------------------ formulas
@pytest.mark.parametrize("m", [0, 1, 7])
def test_the_formulas_of_cost_are_those_of_the_code(m):
    given = {"N": 19, "D": 24, "F": 60, "L": 5, "H": 4, "P": 17, "p": 48, "T": 3, "m": m, "C": 11}
    found = computed(**given)
    assert found["base"] == cost.base(19, 24, 60, 5, 48, 17)
    assert found["head"] == cost.head(19, 24, 60, 5, m, 11)
    assert found["heads_together"] == found["base"] + 3 * found["head"]


@pytest.mark.parametrize("m", [0, 1, 7])
def test_the_numbers_of_a_head_are_counted(m):
    model = tiny_model()
    parameters = model.add_head("A", 11, memory_tokens=m)
    found = computed(N=17, D=32, F=64, L=3, H=4, P=16, p=48, T=1, m=m, C=11)
    assert found["head_numbers"] == sum(parameter.numel() for parameter in parameters)


def test_the_numbers_of_a_cached_image_are_counted():
    model = tiny_model()
    found = computed(N=17, D=32, F=64, L=3, H=4, P=16, p=48, T=1, m=1, C=5)
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


@pytest.mark.parametrize("width", [32, 64])
def test_what_training_keeps_is_counted(width):
    model = tiny_model(image_size=32, hidden_size=width, intermediate_size=4 * width)
    model.add_head("A", 5)
    model.add_head("B", 5)
    model.train_only(["A", "B"])
    model.train()
    images = 16
    pixels = torch.randn(images, 3, 32, 32)
    two = kept_for_the_backward_pass(model, pixels)
    for name in ("C", "D"):
        model.add_head(name, 5)
    model.train_only(model.head_names)
    four = kept_for_the_backward_pass(model, pixels)
    found = computed(N=65, D=width, F=4 * width, L=3, H=4, P=64, p=48, T=2, m=1, C=5)
    head = (four - two) / 2 / images
    assert head == pytest.approx(found["kept_by_a_head"], rel=0.05)
    assert two / images - 2 * head == pytest.approx(found["kept_by_the_base"], rel=0.05)


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


@pytest.mark.parametrize("size", ["ViT-B/32", "ViT-B/16"])
def test_the_table_of_gains(size):
    N, D, L, H, _ = SIZES[size]
    forms = [contents(form, N, D, L, H) for form in ("keys_values", "tokens")]
    gains = [f"{expected_gain(form, heads):.1f}" for form in forms for heads in (1, 4, 20)]
    assert rows_of(size)[1] == [size, *gains]


def test_numbers_in_the_text():
    one = computed(**letters_of("ViT-B/32"))
    kept, head = (4 * one[name] / 1e6 for name in ("kept_by_the_base", "kept_by_a_head"))
    text = " ".join(PAGE.split())
    assert f"that is {kept:.1f} MB an image, and {head:.2f} MB for each head" in text

    tiny = computed(N=17, D=192, F=768, L=9, H=3, P=16, p=192, T=1, m=1, C=100)
    doubles = [found["base"] / found["head"] for found in (tiny, one, computed(**letters_of("ViT-B/16")))]
    words = "(N = 17) {:.0f} heads double a pass, on ViT-B/32 {:.0f}, on ViT-B/16 {:.0f}.".format(*doubles)
    assert words in text

    N, D, F, L = 50, 768, 3072, 12
    whole, last_keys_and_values = one["base"], 2 * N * D * D
    saved = cost.base_layer(N, D, F) - last_keys_and_values
    assert L * cost.base_layer(N, D, F) < whole and f"saves {100 * saved / whole:.1f} % of ViT-B/32" in text
