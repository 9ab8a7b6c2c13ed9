"""The card of a head: what its YAML and its text say, for all that a header may hold or lack."""

import re
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard

from learnable_memory.model_card import is_generated, model_card

PIXELS = {
    "height": 224, "width": 224, "resample": "bilinear", "rescale": 1 / 255, "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5], "resize": [224, 224],
}  # fmt: skip
SPLITS = {
    "train": {"images": 45_000, "hash": "11aa"}, "select": {"images": 5_000, "hash": "22bb"},
    "eval": {"images": 10_000, "hash": "33cc"},
}  # fmt: skip
BASE = "google/vit-base-patch32-224-in21k"


def bare_head(name: str = "CIFAR100", **changes: object) -> dict:
    """The metadata that every head file has: ViT-B, one cell, 100 classes."""
    metadata = {
        "name": name, "format_version": 1, "base": {"id": BASE, "fingerprint": "f0f1"}, "hidden_size": 768,
        "num_layers": 12, "num_labels": 100, "memory_tokens": 1, "memory_norm": True, "class_token": True,
        "extends": [],
    }  # fmt: skip
    return {**metadata, **changes}


def trained_head(name: str = "CIFAR100", **changes: object) -> dict:
    """What training adds to it."""
    dataset = {
        "name": "CIFAR100", "source": "torchvision: cifar-100-python", "split_seed": 7, "select_seed": 8,
        "split": "seeded", "image_column": None, "label_column": None, "left_out": None, "splits": SPLITS,
    }  # fmt: skip
    known = {
        "labels": [f"class{number}" for number in range(100)],
        "preprocessing": PIXELS,
        "dataset": dataset,
        "metrics": {
            "epoch": 17,
            "select": {"images": 5_000, "top1": 0.91, "top5": 0.99, "loss": 0.3, "images_per_second": 100.0},
            "eval": {"images": 10_000, "top1": 0.9034, "top5": 0.988, "loss": 0.35, "images_per_second": 100.0},
        },
        "training": {"method": "memory", "lr": 0.03, "epochs": 20, "base_model": "/home/alice/vit", "max_steps": None},
        "versions": {"python": "3.11", "torch": "2.9"},
    }
    return bare_head(name, **{**known, **changes})


def trained_on(name: str, **changes: object) -> dict:
    dataset = {**trained_head()["dataset"], "name": name, **changes}
    return trained_head(dataset=dataset)


def header(card: ModelCard) -> dict:
    """The YAML, as any reader of YAML sees it."""
    return yaml.safe_load(str(card).split("---\n")[1])


def table(card: ModelCard) -> dict[str, str]:
    """The table of a card with one head."""
    lines = [line for line in str(card).splitlines() if line.startswith("| ") and line != "| | |"]
    cells = [re.split(r"(?<!\\)\|", line) for line in lines]
    assert {len(row) for row in cells} == {4}  # nothing before the first bar, nothing after the third
    return {row[1].strip(): row[2].strip() for row in cells}


# ---------------------------------------------------------------------------------------------------------------- YAML
def test_the_whole_header_of_a_trained_head():
    assert header(model_card(trained_head(), license="apache-2.0")) == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "datasets": ["uoft-cs/cifar100"],
        "library_name": "learnable-memory-vit",
        "license": "apache-2.0",
        "metrics": ["accuracy"],
        "pipeline_tag": "image-classification",
        "tags": ["learnable-memory", "vision", "image-classification", "head", "vit"],
        "model-index": [
            {
                "name": "CIFAR100",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": "CIFAR100", "type": "uoft-cs/cifar100", "split": "test"},
                        "metrics": [
                            {
                                "type": "accuracy",
                                "value": 0.9034,
                                "name": "top-1 accuracy of CIFAR100 on 10,000 images",
                            }
                        ],
                    }
                ],
            }
        ],
    }


def test_the_recipe_names_the_method_also_of_heads_that_call_it_regime():
    assert table(model_card(trained_head()))["training"].startswith("method memory, lr 0.03,")
    earlier = trained_head(training={"regime": "head+class", "lr": 0.1})
    assert table(model_card(earlier))["training"] == "regime head+class, lr 0.1"


def test_the_library_reads_it_back(tmp_path):
    card = model_card(trained_head())
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert str(loaded) == str(card)
    assert loaded.data.base_model == BASE
    assert loaded.data.eval_results[0].metric_value == 0.9034
    assert is_generated((tmp_path / "README.md").read_text(encoding="utf-8"), "CIFAR100_model.safetensors")


def test_it_is_what_the_hub_is_asked_to_check(monkeypatch):
    card, asked = model_card(trained_head()), []

    def post(url: str, json: dict, **options: object) -> SimpleNamespace:
        asked.append((url.partition("/api/")[2], json))
        return SimpleNamespace(headers={}, raise_for_status=lambda: None)

    monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: SimpleNamespace(post=post))
    card.validate()
    assert asked == [("validate-yaml", {"repoType": "model", "content": str(card)})]


def test_nothing_is_claimed_that_the_file_does_not_say():
    data = header(model_card(bare_head()))
    assert data.keys() == {
        "base_model", "base_model_relation", "library_name", "pipeline_tag", "tags",
    }  # fmt: skip
    text = str(model_card(bare_head()))
    assert "| data | unknown |" in text and "| accuracy on eval | not recorded |" in text
    assert "The file has no names for its classes." in text


@pytest.mark.parametrize(
    ("name", "expected", "shown"),
    [
        ("CIFAR10", ["uoft-cs/cifar10"], "CIFAR10"),
        ("MNIST", ["ylecun/mnist"], "MNIST"),
        ("FashionMNIST", ["zalando-datasets/fashion_mnist"], "FashionMNIST"),
        ("ImageNet", ["ILSVRC/imagenet-1k"], "ImageNet"),
        ("hf:someone/pets", ["someone/pets"], "hf:someone/pets"),
        ("hf:someone/pets:small", ["someone/pets"], "hf:someone/pets:small"),
        ("hf:/home/alice/pets", None, "hf:pets"),
        ("folder:/home/alice/roses", None, "folder:roses"),
        ("parquet:/home/alice/roses.parquet", None, "parquet:roses.parquet"),
        ("Pets", None, "Pets"),
        ("CIFAR100-new20", None, "CIFAR100-new20"),
        ("vtab:dtd", None, "vtab:dtd"),
    ],
)
def test_data_sets_of_the_hub_are_linked_and_paths_are_not_told(name, expected, shown):
    card = model_card(trained_on(name))
    data = header(card)
    assert data.get("datasets") == expected
    result = data["model-index"][0]["results"][0]["dataset"]
    assert result["type"] == (expected[0] if expected else shown)
    assert result["name"] == shown
    assert table(card)["data"] == f"{shown}, torchvision: cifar-100-python"
    assert "alice" not in str(card)


def test_the_configuration_of_a_hub_data_set():
    data = header(model_card(trained_on("hf:someone/pets:small")))
    assert data["model-index"][0]["results"][0]["dataset"]["config"] == "small"


@pytest.mark.parametrize(
    ("name", "images", "split"),
    [("FashionMNIST", 10_000, "test"), ("FashionMNIST", 2_000, None), ("ImageNet", 50_000, "validation"),
     ("ImageNet", 10_000, None), ("hf:someone/pets", 10_000, None)],
)  # fmt: skip
def test_a_split_of_the_hub_is_named_only_if_all_of_it_was_seen(name, images, split):
    head = trained_on(name)
    head["metrics"]["eval"]["images"] = images
    result = header(model_card(head))["model-index"][0]["results"][0]
    assert result["dataset"].get("split") == split
    assert result["metrics"][0]["name"] == f"top-1 accuracy of CIFAR100 on {images:,} images"


@pytest.mark.parametrize(
    ("base", "expected", "words"),
    [
        (BASE, BASE, f"[{BASE}](https://huggingface.co/{BASE})"),
        ("models/base-tiny", None, "models/base-tiny, which ships with the library"),
        ("/home/alice/vit", None, "vit, which is not on the hub"),
        ("./vit", None, "vit, which is not on the hub"),
        ("weights/ViT-B_16.npz", None, r"ViT-B\_16.npz, which is not on the hub"),
        ("bases/mine", None, "mine, which is not on the hub"),  # a folder here
        ("a/b/c", None, "c, which is not on the hub"),
        ("no owner/vit", None, "vit, which is not on the hub"),
        (None, None, "a base that the file does not name"),
    ],
)
def test_a_base_is_linked_only_if_it_is_a_name_on_the_hub(base, expected, words, tmp_path, monkeypatch):
    (tmp_path / "bases" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = model_card(bare_head(base={"id": base, "fingerprint": "f0f1"}))
    data = header(card)
    assert data.get("base_model") == expected
    assert data.get("base_model_relation") == (expected and "adapter")
    assert table(card)["base"] == words
    assert table(card)["base fingerprint"] == "f0f1"


# ---------------------------------------------------------------------------------------------------------------- text
def test_the_table_of_a_trained_head():
    rows = table(model_card(trained_head()))
    assert rows.pop("base").startswith(f"[{BASE}]")
    assert rows == {
        "base fingerprint": "f0f1",
        "layers, width": "12, 768",
        "cells": "1 in each layer, through the layer's first norm",
        "classes": "100",
        "pixels": "resized to 224x224 (bilinear), mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        "data": "CIFAR100, torchvision: cifar-100-python",
        "split": "seeded, split seed 7, select seed 8",
        "images of train": "45,000 (hash 11aa)",
        "images of select": "5,000 (hash 22bb)",
        "images of eval": "10,000 (hash 33cc)",
        "accuracy on select": "top-1 91.00%, top-5 99.00%, 5,000 images",
        "accuracy on eval": "top-1 90.34%, top-5 98.80%, 10,000 images",
        "training": "method memory, lr 0.03, epochs 20",
        "versions": "python 3.11, torch 2.9",
    }


@pytest.mark.parametrize(
    ("changes", "cells", "numbers"),
    [
        # a classifier of 100 x 768 + 100, a class token of 768, and 12 x m x 768
        ({}, "1 in each layer, through the layer's first norm", "86,884"),
        ({"memory_norm": False, "memory_tokens": 5}, "5 in each layer, after the layer's first norm",
         "123,748"),
        ({"memory_tokens": 0}, "none: a class token and a classifier", "77,668"),
        ({"memory_tokens": 0, "class_token": False}, "none: a linear probe on the base's class token", "76,900"),
    ],
)  # fmt: skip
def test_memory_in_words_and_the_number_of_numbers(changes, cells, numbers):
    card = model_card(bare_head(**changes))
    assert table(card)["cells"] == cells
    assert f"This is a **head**, not a whole model: {numbers} numbers" in str(card)


@pytest.mark.parametrize(
    ("changes", "words", "numbers"),
    [
        # as above, and of 12 layers rank x (inputs + outputs): 768 + 768, and for the MLP 768 + 3072
        ({"low_rank": dict.fromkeys(("query", "output", "mlp_in", "mlp_out"), 8)},
         "rank 8 of query, output, mlp\\_in, mlp\\_out, in each layer, for its class token alone",
         86_884 + 12 * 8 * 2 * (1536 + 3840)),
        ({"low_rank": {"query": 1, "key": 1, "output": 4}},
         "rank 1 of query, key; rank 4 of output, in each layer, for its class token and, of key and value, its memory",
         86_884 + 12 * (2 + 4) * 1536),
        ({"low_rank": {"value": 2}, "memory_tokens": 0},
         "rank 2 of value, in each layer, for its class token alone", 77_668 + 12 * 2 * 1536),
    ],
)  # fmt: skip
def test_low_rank_weights_in_words_and_numbers(changes, words, numbers):
    card = model_card(bare_head(format_version=2, intermediate_size=3072, **changes))
    assert table(card)["low-rank weights"] == words
    assert f"{numbers:,} numbers" in str(card)


def test_without_ranks_nothing_is_said_of_them():
    for head in (bare_head(), bare_head(format_version=2, low_rank={}, intermediate_size=3072)):
        assert "low-rank weights" not in table(model_card(head))


def test_of_a_cross_validated_head_the_accuracy_is_out_of_fold():
    head = trained_head()
    head["metrics"]["folds"] = [head["metrics"]["select"]] * 5
    rows = table(model_card(head))
    assert rows["accuracy out of fold, 5 folds"] == "top-1 91.00%, top-5 99.00%, 5,000 images"
    assert "accuracy on select" not in rows


def test_the_recipe_names_the_optimizer():
    training = {"method": "memory", "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.05, "ema": 0.99}
    said = table(model_card(trained_head(training=training)))["training"]
    assert said == r"method memory, optimizer adamw, lr 0.001, weight\_decay 0.05, ema 0.99"


def test_a_head_of_the_2023_implementation():
    """No labels, no metrics, and nobody knows which images were held out."""
    dataset = {"name": "CIFAR100", "source": "the 2023 implementation", "split_seed": 0}
    pixels = {**PIXELS, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    card = model_card(bare_head(memory_norm=False, dataset=dataset, preprocessing=pixels))
    data, rows = header(card), table(card)
    assert data["datasets"] == ["uoft-cs/cifar100"]
    assert "metrics" not in data and "model-index" not in data
    assert rows["split"] == "unknown: the file does not say which images were held out"
    assert rows["accuracy on eval"] == rows["accuracy on select"] == "not recorded"
    assert rows["data"] == "CIFAR100, the 2023 implementation"
    assert rows["pixels"].startswith("legacy-2023: ")


def test_images_that_were_left_out_are_counted():
    left_out = {"train": {"images": 1_200, "names": ["a.png"]}, "eval": {"images": 3, "names": []}}
    assert table(model_card(trained_on("Pets", left_out=left_out)))["broken images left out"] == "1,203"
    assert "broken images left out" not in table(model_card(trained_on("Pets", left_out={})))


def test_of_many_labels_the_first_are_named():
    text = str(model_card(trained_head(labels=[f"kind{number}." for number in range(5089)], num_labels=5089)))
    assert "19: kind19.; and 5,069 more, which the file names." in text
    assert "kind20." not in text
    assert "| classes | 5,089 |" in text
    assert "Classes: 0: cat; 1: dog.\n" in str(model_card(trained_head(labels=["cat", "dog"], num_labels=2)))


def test_several_heads_in_one_file():
    parent = trained_head("Animals", num_labels=2, labels=["cat", "dog"])
    child = trained_head("Dogs", extends=[{"name": "Animals", "hash": "abcd"}])
    other = trained_head("Digits", base={"id": "someone/vit", "fingerprint": "e0e1"})
    card = model_card(parent, child, other, filename="all_model.safetensors", repo_id="me/all")
    text, data = str(card), header(card)
    assert "\n# Dogs, Digits\n" in text  # Animals stands for no task of its own any more
    assert "These are **3 heads**, not a whole model: " in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Animals", "## Dogs", "## Digits", "## Use", "## Method",
    ]  # fmt: skip
    assert "| extends | Animals (hash abcd) |" in text
    assert data["base_model"] == [BASE, "someone/vit"]
    assert data["model-index"][0]["name"] == "all"
    names = [metric["name"] for result in data["model-index"][0]["results"] for metric in result["metrics"]]
    assert names == [f"top-1 accuracy of {name} on 10,000 images" for name in ("Animals", "Dogs", "Digits")]
    assert 'from_hub("me/all", filename="all_model.safetensors")' in text


def test_usage_names_what_there_is():
    text = str(model_card(trained_head(), repo_id="me/cifar"))
    assert 'from_hub("me/cifar", filename="CIFAR100_model.safetensors")' in text
    assert f'open_base("{BASE}")' in text
    assert 'print(metadata["labels"][int(logits.argmax())])' in text
    assert "heads fetch me/cifar --filename CIFAR100_model.safetensors" in text
    bare = str(model_card(bare_head(base={"id": "/home/alice/vit", "fingerprint": "f0f1"})))
    assert 'from_hub("OWNER/REPOSITORY", filename="CIFAR100_model.safetensors")' in bare
    assert 'open_base("FOLDER/OF/THE/BASE")' in bare
    assert "print(int(logits.argmax()))" in bare
    assert 'metadata["preprocessing"]' not in bare
    assert "alice" not in bare


# ------------------------------------------------------------------------------------------------------- hostile names
HOSTILE = [
    "a | b", "a: b # c", "- x\n---\nlicense: mit\n---", "`code` *bold* _under_ [link](http://x)", "<script>x</script>",
    "\ud800half", "back\\slash\\|", "-->", "'\"{}&!%@", "\x00\x1b[31m\u2028\u202e",
    "{{ 6 * 7 }}{% raw %}",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_break_neither_yaml_nor_table(name, tmp_path):
    head = trained_on(name, source=name)
    head |= {"labels": [name, "plain"], "versions": {name: name}, "base": {"id": name, "fingerprint": name}}
    card = model_card(head)
    (tmp_path / "README.md").write_bytes(str(card).encode())  # a half surrogate would not encode
    loaded = ModelCard.load(tmp_path / "README.md")
    data = header(loaded)
    assert data["tags"][0] == "learnable-memory" and "license" not in data
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.9034
    assert table(loaded).keys() == {"base", *table(model_card(trained_head()))}  # as many rows, as many cells
    assert not re.search(r"(?<!\\)<script", loaded.text)
    assert all(letter.isprintable() or letter == "\n" for letter in loaded.text)
    assert is_generated(str(loaded), "CIFAR100_model.safetensors")


def test_markup_in_names_is_shown_as_it_is_written():
    card = model_card(trained_head(labels=["a|b", "*x*", "snake_case", "<b>", "a\nb", "back\\slash"]))
    assert r"Classes: 0: a\|b; 1: \*x\*; 2: snake\_case; 3: \<b\>; 4: a b; 5: back\\slash." in card.text


# ---------------------------------------------------------------------------------------------------------- is it ours
def test_a_card_is_generated_until_somebody_edits_it():
    card, name = str(model_card(trained_head())), "CIFAR100_model.safetensors"
    assert is_generated(card, name)
    assert not is_generated(card, "Digits_model.safetensors")
    for edited in (
        card.replace("adapter", "finetune"),
        card.replace("# CIFAR100\n", "# My CIFAR100\n"),
        card + "One more line.\n",
        card.replace("sha256 of this card: ", "sha256 of this card: 0"),
        "\n".join(card.splitlines()[:-1]),
        "# By hand\n",
        "",
    ):
        assert edited != card
        assert not is_generated(edited, name)


def test_a_damaged_preprocessing_is_an_error():
    with pytest.raises(ValueError, match="preprocessing needs exactly the keys"):
        model_card(trained_head(preprocessing={"height": 224}))
