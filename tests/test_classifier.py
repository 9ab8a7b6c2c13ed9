"""`classifier_for`: one head as HuggingFace's own tools take it."""

import json
import logging
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, ViTForImageClassification, ViTImageProcessor, pipeline

from tiny import add_random_head, images, tiny_model
from vit import HeadClassifier, MemoryCapableViT

LABELS = ["ant", "bee", "cow"]


@pytest.fixture
def model() -> MemoryCapableViT:
    model = tiny_model()
    add_random_head(model, "Other", 7, 1)
    add_random_head(model, "Parent", 4, 2)
    add_random_head(model, "Animals", 3, 2, extends=("Parent",), metadata={"labels": LABELS})
    return model


def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": 16, "width": 16})


def photos(number: int) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (number, 20, 30, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]


def test_it_looks_like_a_vit_for_image_classification(model):
    classifier = model.classifier_for("Animals")
    assert isinstance(classifier, ViTForImageClassification)
    assert classifier.config.num_labels == classifier.num_labels == 3
    assert classifier.config.id2label == dict(enumerate(LABELS))
    assert classifier.config.label2id == {"ant": 0, "bee": 1, "cow": 2}
    assert model.config.num_labels == 5 and model.num_labels == 5  # of the base
    assert classifier.head_names == ["Parent", "Animals"]
    assert model.classifier_for("Other").config.id2label[6] == "LABEL_6"


def test_it_answers_as_the_head(model):
    pixels, targets = images(), torch.tensor([0, 2, 1])
    expected = model(pixels, heads=["Animals"])["Animals"].logits
    classifier = model.classifier_for("Animals")
    output = classifier(pixel_values=pixels, labels=targets)
    assert torch.equal(output.logits, expected)
    torch.testing.assert_close(output.loss, F.cross_entropy(expected, targets), rtol=0, atol=0)
    assert classifier(pixels).loss is None
    loss, logits = classifier(pixels, targets, return_dict=False)
    assert torch.equal(logits, expected) and torch.equal(loss, output.loss)
    seen = classifier(pixels, output_attentions=True, output_hidden_states=True)
    assert len(seen.attentions) == 3 and len(seen.hidden_states) == 4


def test_an_unknown_head_is_refused(model):
    with pytest.raises(KeyError, match="There is no head 'Plants'"):
        model.classifier_for("Plants")


def test_a_linear_probe_is_a_classifier_too():
    model = tiny_model()
    add_random_head(model, "probe", 3, 0, class_token=False)
    assert torch.equal(model.classifier_for("probe")(images()).logits, model(images())["probe"].logits)


def test_the_pipeline_takes_it(model, caplog):
    model.eval()
    classifier = model.classifier_for("Animals")
    with caplog.at_level(logging.WARNING):
        pipe = pipeline("image-classification", model=classifier, image_processor=processor())
    assert "not supported" not in caplog.text
    photo = photos(1)[0]
    found = pipe(photo)
    with torch.no_grad():
        expected = model(processor()(photo, return_tensors="pt")["pixel_values"])["Animals"].logits[0].softmax(-1)
    assert {answer["label"] for answer in found} == set(LABELS)
    for answer in found:
        assert answer["score"] == pytest.approx(expected[LABELS.index(answer["label"])].item(), abs=1e-6)
    assert found == sorted(found, key=lambda answer: -answer["score"])
    assert len(pipe(photos(2), top_k=1)) == 2


class Pairs(torch.utils.data.Dataset):
    """Images whose class is written into their first channel."""

    def __init__(self, number: int) -> None:
        self.labels = torch.arange(number) % 3
        self.pixels = images(number, seed=5) + 3 * F.one_hot(self.labels, 3)[:, :, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def trainer(classifier: HeadClassifier, folder, **changes) -> Trainer:
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 6, "num_train_epochs": 4, "learning_rate": 0.05,
        "report_to": [], "eval_strategy": "epoch", "save_strategy": "epoch", "logging_steps": 1, "use_cpu": True,
        "disable_tqdm": True, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
    }  # fmt: skip
    arguments = TrainingArguments(**{**settings, **changes})
    return Trainer(classifier, arguments, train_dataset=Pairs(24), eval_dataset=Pairs(12))


def test_the_trainer_trains_the_head_and_nothing_else(model, tmp_path):
    model.train_only(["Animals"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classifier = model.classifier_for("Animals")
    run = trainer(classifier, tmp_path)
    first = run.evaluate()["eval_loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        run.train()
    last = run.evaluate()
    assert last["eval_loss"] < first
    assert last["eval_loss"] == pytest.approx(run.state.best_metric, abs=1e-6)  # the best was taken back
    with torch.no_grad():
        expected = F.cross_entropy(classifier.eval()(Pairs(12).pixels).logits, Pairs(12).labels).item()
    assert last["eval_loss"] == pytest.approx(expected, abs=1e-5)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed and all(name.startswith("heads.Animals.") for name in changed)


def test_gradients_over_several_batches_are_those_of_one(model, tmp_path):
    """With accumulation the Trainer divides by all items itself, if the model hands `num_items_in_batch` on."""
    results = []
    for size, steps in ((12, 1), (4, 3)):
        ours = tiny_model()
        add_random_head(ours, "Animals", 3, 2)
        run = trainer(
            ours.classifier_for("Animals"), tmp_path / str(size), per_device_train_batch_size=size,
            gradient_accumulation_steps=steps, max_steps=2, eval_strategy="no", save_strategy="no",
            load_best_model_at_end=False, optim="sgd", learning_rate=0.1,
        )  # fmt: skip
        run.train()
        results.append(ours.heads["Animals"].tensors())
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=0, atol=1e-5)


def test_on_disk_it_is_a_model_with_this_head(model, tmp_path):
    model.eval()
    classifier, pixels = model.classifier_for("Animals"), images()
    classifier.save_pretrained(tmp_path)
    assert classifier.config.num_labels == 3
    config = json.loads((tmp_path / "config.json").read_text())
    assert len(config["id2label"]) == 5
    whole = MemoryCapableViT.from_pretrained(tmp_path, attn_implementation="eager")
    assert whole.head_names == ["Parent", "Animals"]
    answers, expected = (each(pixels, heads=["Animals"]) for each in (whole, model))
    assert torch.equal(answers["base"].logits, expected["base"].logits)
    assert torch.equal(answers["Animals"].logits, expected["Animals"].logits)
    again = HeadClassifier.from_pretrained(tmp_path, attn_implementation="eager")
    assert again.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(again(pixels).logits, classifier(pixels).logits)
    # How the Trainer takes its best model back; of a stock ViT too, transformers stores the encoder under old names.
    saved = load_file(tmp_path / "model.safetensors")
    again.load_state_dict(saved, strict=False)
    mine = {name for name in again.state_dict() if name.startswith("heads.")}
    assert mine == {name for name in saved if name.startswith("heads.")} and len(mine) == 2 * (1 + 3 + 2)


def test_which_head_a_folder_means(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert HeadClassifier.from_pretrained(tmp_path, head="Other").num_labels == 7
    with pytest.raises(ValueError, match=r"has 3 heads \(Other, Parent, Animals\): say which with head="):
        HeadClassifier.from_pretrained(tmp_path)
    alone, info = HeadClassifier.from_pretrained(tmp_path, head="Parent", output_loading_info=True)
    assert alone.head_names == ["Parent"] and not info["missing_keys"]
