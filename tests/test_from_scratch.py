"""`mnist/`: the method from scratch says the same as vit.py, and its script does what it prints."""

import ast
import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import vit
from test_mnist import write_raw
from tiny import add_random_head
from vit import MemoryCapableViT

FOLDER = Path(__file__).resolve().parent.parent / "mnist"
# name -> (classes, memory tokens, extends)
HEADS = {
    "first": (3, 2, ()),
    "without": (4, 0, ()),
    "child": (5, 1, ("first",)),
    "grandchild": (2, 3, ("child", "without")),
    "last": (6, 5, ()),
}


def from_file(name: str):
    """A module of `mnist/`, where files have names that are common elsewhere."""
    spec = importlib.util.spec_from_file_location(f"from_scratch_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


scratch = from_file("model")
CONFIG = scratch.Config(width=32, layers=3, mlp_width=48, classes=7)


# ------------------------------------------------------------------------------------------------------- same as vit.py
def library_model(dtype: torch.dtype) -> MemoryCapableViT:
    """Of the same sizes, with weights so large that attention is far from uniform, and the same heads."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=CONFIG.image_size, patch_size=CONFIG.patch_size, num_channels=CONFIG.channels,
        hidden_size=CONFIG.width, num_hidden_layers=CONFIG.layers, num_attention_heads=CONFIG.attention_heads,
        intermediate_size=CONFIG.mlp_width, hidden_act="gelu", layer_norm_eps=torch.nn.LayerNorm(1).eps,
        num_labels=CONFIG.classes, attn_implementation="sdpa",  # the eager form rounds its softmax to float32
    )  # fmt: skip
    base = ViTForImageClassification(config)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = MemoryCapableViT.from_base(base.to(dtype).eval())
    for name, (classes, memory_tokens, extends) in HEADS.items():
        add_random_head(model, name, classes, memory_tokens, extends)
    return model


def scratch_model(dtype: torch.dtype, config=CONFIG, seed: int = 0, heads=HEADS):
    torch.manual_seed(seed)
    model = scratch.MemoryViT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = model.to(dtype)
    for name, head in heads.items():
        for parameter in model.add_head(name, *head):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def paired(ours: MemoryCapableViT, theirs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each tensor of vit.py's model and the one of `mnist/model.py` that says the same, as views of one shape."""
    embeddings = ours.vit.embeddings
    pairs = [
        (embeddings.patch_embeddings.projection.weight.flatten(1), theirs.patch_embedding.weight),
        (embeddings.patch_embeddings.projection.bias, theirs.patch_embedding.bias),
        (embeddings.cls_token[0, 0], theirs.class_token),
        (embeddings.position_embeddings[0, 1:], theirs.positions[:-1]),  # patches
        (embeddings.position_embeddings[0, 0], theirs.positions[-1]),  # class token
    ]
    modules = [(ours.vit.layernorm, theirs.norm), (ours.classifier, theirs.classifier)]
    for layer, block in zip(ours.vit.layers, theirs.blocks, strict=True):
        modules += [
            (layer.layernorm_before, block.attention_norm), (layer.layernorm_after, block.mlp_norm),
            (layer.attention.q_proj, block.attention.query), (layer.attention.k_proj, block.attention.key),
            (layer.attention.v_proj, block.attention.value), (layer.attention.o_proj, block.attention.output),
            (layer.mlp.fc1, block.mlp_in), (layer.mlp.fc2, block.mlp_out),
        ]  # fmt: skip
    for name, head in theirs.heads.items():
        library = ours.heads[name]
        modules.append((library.classifier, head.classifier))
        pairs += [(library.class_token, head.class_token), *zip(library.memory, head.memory, strict=False)]
    for library, block in modules:
        pairs += [(library.weight, block.weight), (library.bias, block.bias)]
    return pairs


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)], ids=str)
@pytest.mark.parametrize("direction", ["to mnist", "from mnist"])
@torch.no_grad()
def test_same_logits_as_the_library(direction, dtype, tolerance):
    library, model = library_model(dtype).to(dtype), scratch_model(dtype)
    pairs = paired(library, model)
    assert sum(a.numel() for a, _ in pairs) == sum(p.numel() for p in model.parameters())
    assert sum(a.numel() for a, _ in pairs) == sum(p.numel() for p in library.parameters())
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        theirs.copy_(ours) if direction == "to mnist" else ours.copy_(theirs)
    images = torch.randn(4, 1, 28, 28, dtype=dtype)
    expected, found = library(images), model(images)
    assert list(found) == list(expected) == ["base", *HEADS]
    for name, logits in found.items():
        assert expected[name].logits.std() > 0.1
        torch.testing.assert_close(logits, expected[name].logits, rtol=0, atol=tolerance)


# ----------------------------------------------------------------------------------------------------------------- mask
@pytest.mark.parametrize(
    ("memory_tokens", "extends"),
    [
        ([], []),
        ([0], [()]),
        ([2, 1, 3], [(), (), ()]),
        ([2, 1, 3], [(), (0,), (1,)]),
        ([1, 0, 2, 4], [(), (), (0, 1), (2,)]),
        ([3, 0, 0, 1], [(), (0,), (0,), (1, 2)]),
    ],
)
def test_the_mask_is_the_librarys(memory_tokens, extends):
    found = scratch.build_attention_mask(4, memory_tokens, extends)
    assert found.dtype == torch.float32
    assert torch.equal(found, vit.build_attention_mask(4, memory_tokens, extends)[0])


def test_the_mask_by_hand():
    rows = scratch.build_attention_mask(1, [1, 2], [(), (0,)]) == 0
    assert rows.int().tolist() == [  # columns: INP, CLS, C_1, C_2, M_1, M_2, M_2
        [1, 1, 0, 0, 0, 0, 0],  # INP
        [1, 1, 0, 0, 0, 0, 0],  # CLS
        [1, 1, 1, 0, 1, 0, 0],  # C_1
        [1, 1, 1, 1, 1, 1, 1],  # C_2, which extends head 1
    ]


def test_the_model_uses_the_mask_of_its_heads():
    model = scratch_model(torch.float32)
    expected = vit.build_attention_mask(16, [2, 0, 1, 3, 5], [(), (), (0,), (2, 1), ()])[0]
    assert torch.equal(model.mask(), expected)
    _, weights = model.encode(torch.randn(2, 1, 28, 28))
    assert len(weights) == CONFIG.layers
    for layer in weights:
        assert layer.shape == (2, CONFIG.attention_heads, *expected.shape)
        assert torch.equal((layer != 0).all(0).all(0), expected == 0)
        torch.testing.assert_close(layer.sum(-1), torch.ones(layer.shape[:-1]))


# ---------------------------------------------------------------------------------------------------------------- heads
def sgd_step(model, name: str, parameters, images: torch.Tensor, labels: torch.Tensor) -> None:
    loss = torch.nn.functional.cross_entropy(model(images)[name], labels)
    loss.backward()
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.1 * parameter.grad
            parameter.grad = None


def test_training_a_head_moves_the_head_and_nothing_else():
    model = scratch_model(torch.float32, heads={"parent": (3, 2, ())})
    parameters = model.add_head("child", 4, 2, extends=("parent",))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.randn(8, 1, 28, 28), torch.arange(8) % 4
    base_before = model(images)["base"]
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    expected = ["class_token", "memory", "classifier.weight", "classifier.bias"]
    assert trainable == [f"heads.child.{name}" for name in expected]
    for _ in range(3):
        sgd_step(model, "child", parameters, images, labels)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert sorted(moved) == sorted(trainable)
    assert torch.equal(model(images)["base"], base_before)


def test_heads_start_as_is_written_and_cost_what_is_written():
    model = scratch_model(torch.float32, heads={})
    torch.manual_seed(1)
    parameters = model.add_head("new", 1000, 40)
    head, width = model.heads["new"], CONFIG.width
    assert torch.equal(head.class_token, model.class_token)
    assert head.memory.std().item() == pytest.approx(0.02, rel=0.05)
    assert head.classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not head.classifier.bias.any()
    assert sum(p.numel() for p in parameters) == width + CONFIG.layers * 40 * width + 1000 * (width + 1)


@pytest.mark.parametrize("added", list(HEADS))
@torch.no_grad()
def test_a_head_changes_no_answer_that_was_there(added):
    images = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    names = list(HEADS)[: list(HEADS).index(added)]
    before = scratch_model(torch.float64, heads={name: HEADS[name] for name in names})
    expected = before(images)
    before.add_head(added, *HEADS[added])
    found = before(images)
    assert list(found) == ["base", *names, added]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)], ids=str)
@torch.no_grad()
def test_together_as_alone(dtype, tolerance):
    together = scratch_model(dtype, heads={"first": HEADS["first"], "child": HEADS["child"]})
    other = scratch_model(dtype, heads={"without": HEADS["without"], "last": HEADS["last"]})
    images = torch.randn(4, 1, 28, 28, dtype=dtype)
    expected = together(images) | other(images)
    together.concatenate(other)
    assert not any(parameter.requires_grad for parameter in together.base_parameters().values())
    found = together(images)
    assert list(found) == ["base", "first", "child", "without", "last"]
    for name, logits in found.items():
        torch.testing.assert_close(logits, expected[name], rtol=0, atol=tolerance)
    other.heads["last"].memory.zero_()  # they were copied
    assert torch.equal(together(images)["last"], found["last"])


def test_what_is_refused_and_then_nothing_has_changed():
    model = scratch_model(torch.float32, heads={"a": (3, 1, ()), "b": (3, 1, ())})
    with pytest.raises(ValueError, match="There is a 'a' already: give the new head another name"):
        model.add_head("a", 3, 1)
    with pytest.raises(ValueError, match="There is a 'base' already"):
        model.add_head("base", 3, 1)
    with pytest.raises(ValueError, match=r"c cannot extend d: the heads are a, b\."):
        model.add_head("c", 3, 1, extends=("a", "d"))
    with pytest.raises(ValueError, match="Both models have a head b: train one of them under another name"):
        model.concatenate(scratch_model(torch.float32, heads={"c": (3, 1, ()), "b": (3, 1, ())}))
    for other in (
        scratch_model(torch.float32, seed=1, heads={"c": (3, 1, ())}),
        scratch_model(torch.float32, replace(CONFIG, layers=2), heads={"c": (3, 1, ())}),
        scratch_model(torch.float32, replace(CONFIG, attention_heads=2), heads={"c": (3, 1, ())}),  # of equal weights
    ):
        with pytest.raises(ValueError, match="The models have different bases"):
            model.concatenate(other)
    assert list(model.heads) == list(model.extends) == ["a", "b"]


# ---------------------------------------------------------------------------------------------------------------- files
def test_the_model_is_short_and_needs_torch_alone():
    source = (FOLDER / "model.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    nodes = list(ast.walk(ast.parse(source)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names == {"torch"}


def test_the_script_does_not_import_the_package():
    source = (FOLDER / "train.py").read_text(encoding="utf-8")
    assert re.findall(r"^\s*(?:import|from)\s+(?:learnable_memory|vit|transformers)", source, re.MULTILINE) == []


def run_train(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(FOLDER / "train.py"), *args], capture_output=True, text=True, timeout=300, **options
    )


@pytest.mark.slow
def test_the_script_without_network_says_that_it_uses_digits(tmp_path):
    ran = run_train("--no_download", "--steps", "2", "--directory", str(tmp_path), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == f"No MNIST in {tmp_path / 'datasets'} (--no_download)."
    assert lines[1].startswith("Going on with scikit-learn's Digits in its place")
    assert lines[2] == "base: Digits, 1,437 training and 360 test images"
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines[-3:]]
    assert [row[:3] for row in rows] == [["base", "10", "0"], ["fashion", "10", "10"], ["rotation", "4", "5"]]
    assert [row[3] for row in rows] == [row[4] for row in rows]
    assert not any(float(row[5]) > 1e-5 for row in rows)


@pytest.fixture(scope="module")
def train():
    """`mnist/train.py`, which finds its neighbour as scripts do."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield from_file("train")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("model", None)


def test_wrong_use_of_the_script(train, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--steps", "0"])
    with pytest.raises(SystemExit, match="2"):
        train.main()
    assert capsys.readouterr().err.endswith("train.py: error: --steps is 0, but it has to be 1 or more\n")


def test_digits_are_split_by_class_and_look_like_mnist(train):
    digits = train.read_digits()
    for images, per_class in ((digits.train, (139, 146)), (digits.test, (34, 37))):
        assert images.pixels.dtype == torch.uint8 and images.pixels.shape[1:] == (28, 28)
        counts = images.labels.bincount()
        assert counts.min() >= per_class[0] and counts.max() <= per_class[1]
        frame = images.pixels.clone()
        frame[:, 4:24, 4:24] = 0
        assert not frame.any() and images.pixels.max() == 255
    images, labels = digits.train.batch(slice(5))
    assert images.shape == (5, 1, 28, 28) and images.min() == -1 and images.max() == 1 and labels.shape == (5,)


def test_turned_images_can_be_turned_back(train):
    digits = train.read_digits().test
    turned = train.turned(digits, seed=1)
    assert turned.labels.bincount().min() > 50
    back = torch.stack([image.rot90(-int(turns), (0, 1)) for image, turns in zip(*turned, strict=True)])
    assert torch.equal(back, digits.pixels)


def test_fashion_has_the_committed_images(train):
    fashion = train.read_fashion()
    assert fashion.train.labels.bincount().tolist() == [600] * 10
    assert fashion.test.labels.bincount().tolist() == [200] * 10
    assert fashion.train.pixels.shape == (6000, 28, 28)


def test_the_script_would_notice_a_leak(train, monkeypatch):
    base = scratch_model(torch.float32, heads={})
    together = scratch_model(torch.float32, heads={"a": (3, 2, ())})
    images = train.read_digits().test
    train.check_base(base, together, images)
    with monkeypatch.context() as patch:
        patch.setattr(scratch.MemoryViT, "mask", lambda self: torch.zeros(18, 20))  # everybody sees everything
        with pytest.raises(RuntimeError, match="answers depend on what the heads hold"):
            train.check_base(base, together, images)
    with torch.no_grad():
        together.blocks[1].mlp_in.bias[0] += 1e-6
    with pytest.raises(RuntimeError, match="a weight of the base has changed"):
        train.check_base(base, together, images)


def test_mnist_is_read_as_it_is_stored(train, tmp_path):
    write_raw(tmp_path, "MNIST")
    task = train.read_mnist(tmp_path / "datasets", download=False)
    assert (task.classes, len(task.train.pixels), len(task.test.pixels)) == (10, 40, 20)
    assert task.test.pixels.shape == (20, 28, 28) and task.test.pixels.dtype == torch.uint8
    assert task.test.labels.tolist() == [*range(10), *range(10)]
    assert task.test.pixels[:, 5, 5].tolist() == list(range(20))
