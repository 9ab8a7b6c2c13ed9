"""A hundred heads at once: load, answer, save."""

import pytest
import torch

from learnable_memory import heads
from learnable_memory.many_heads_plot import many_heads
from tiny import add_random_head, images, tiny_base, tiny_model
from vit import MemoryCapableViT

COUNT = 100


@pytest.fixture(scope="module")
def crowd() -> MemoryCapableViT:
    """Heads with 0 to 4 cells; every tenth extends the two before it."""
    model = tiny_model(attn_implementation="sdpa")
    for i in range(COUNT):
        extends = (f"head{i - 1}", f"head{i - 2}") if i % 10 == 9 else ()
        add_random_head(model, f"head{i}", 2 + i % 7, i % 5, extends=extends, memory_norm=i % 3 > 0, seed=i)
    return model


@pytest.fixture(scope="module")
def file(crowd, tmp_path_factory):
    """All of them in one file."""
    folder = tmp_path_factory.mktemp("crowd")
    for name in crowd.head_names:
        crowd.save_head(name, folder / heads.file_name(name))
    files = [heads.load(folder / heads.file_name(name)) for name in crowd.head_names]
    return heads.save_all(folder / "all.safetensors", files)


def fresh() -> MemoryCapableViT:
    return MemoryCapableViT.from_base(tiny_base(attn_implementation="sdpa"))


def test_they_load_from_one_file_and_answer_each_as_alone(crowd, file):
    model, pixels = fresh(), images(2)
    assert model.load_heads(file) == crowd.head_names
    together, served = model(pixels), model.for_inference()(pixels)
    assert torch.equal(together["base"].logits, tiny_base(attn_implementation="sdpa")(pixels).logits)
    for wanted in ("head0", "head3", "head9", "head54", "head99"):
        alone = fresh()
        for loaded in heads.load_all(file):
            if loaded.metadata["name"] in model.with_ancestors([wanted]):
                alone.load_head(loaded)
        expected = alone(pixels)[wanted].logits
        for answers in (together, served):
            torch.testing.assert_close(answers[wanted].logits, expected, rtol=0, atol=1e-5)
    for name, output in together.items():
        torch.testing.assert_close(served[name].logits, output.logits, rtol=0, atol=1e-5)


def test_they_come_back_from_a_saved_model(crowd, tmp_path):
    crowd.save_pretrained(tmp_path)
    again = MemoryCapableViT.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert again.head_names == crowd.head_names
    answers = again(images(2))
    for name, output in crowd(images(2)).items():
        assert torch.equal(answers[name].logits, output.logits)


def test_work_grows_with_what_each_head_sees_not_with_all_memories(crowd, monkeypatch):
    """The widest row of scores: the base's tokens, the class tokens, itself, inherited and own cells."""
    from vit import attend

    widths = []

    def spy(*args):
        context, weights = attend(*args)
        widths.append(weights.shape[-1])
        return context, weights

    monkeypatch.setattr("vit.attend", spy)
    crowd(images(1), with_base=False)
    all_cells = sum(head.spec.memory_tokens for head in crowd.heads.values())
    assert set(widths) == {17 + COUNT + 1 + 5 + 4} and all_cells == 200


@pytest.mark.drawing
def test_the_picture_shows_each_size(tmp_path, drawn):
    row = {"plain base": 20.0, "one model": 18.0, "one model, heads": 19.0, "separate models": 5.0}
    row["one model / separate models"] = 3.6
    results = [
        {"size": size, "batch_size": 8, "arithmetic": {"2": 0.96, "4": 0.93}, "heads": {"2": row, "4": row}}
        for size in ("B/32", "B/16")
    ]
    assert many_heads(results, tmp_path / "many.png").stat().st_size > 10_000
    assert [axes.get_title() for axes in drawn[0].axes] == [f"ViT-{size}, batches of 8" for size in ("B/32", "B/16")]
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn[0].axes[1].lines}
    assert lines["separate models"] == [5.0, 5.0]
    assert lines["one model, by arithmetic"] == pytest.approx([19.2, 18.6])
