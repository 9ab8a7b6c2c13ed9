"""Predictions: what each head says of each image, from a generator in a notebook or from `vit_predict.py`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

import vit_predict
from learnable_memory import heads
from learnable_memory.commands import predict as command
from learnable_memory.commands import run_command
from learnable_memory.config import PredictOptions
from learnable_memory.heads import HeadFile
from learnable_memory.image_paths import named_images
from learnable_memory.images import ArrayImages, ImageSet
from learnable_memory.loading import make_loader
from learnable_memory.predict import Answer, Prediction, labels_of, predict
from learnable_memory.transforms import Preprocessing
from tiny import add_random_head, tiny_base, tiny_model
from vit import MemoryCapableViT

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--workers", "0", "--device", "cpu", "--no_download"]
PLAIN = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LARGE = Preprocessing(32, 32, "nearest", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LABELS = {"colours": ["red", "green", "blue"], "child": ["cat", "dog"], "base": ["a", "b", "c", "d", "e"]}


# ------------------------------------------------------------------------------------------------------------ stand-ins
def save_base(folder: Path, seed: int = 0, **changes) -> Path:
    tiny_base(seed, id2label=dict(enumerate(LABELS["base"])), **changes).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def with_heads(folder: Path) -> MemoryCapableViT:
    """`colours`, `child` that extends it, `old` as from a 2023 file, without labels, and `large` for other pixels."""
    model = MemoryCapableViT.from_pretrained(folder)
    add_random_head(model, "colours", 3, 2, metadata={"labels": LABELS["colours"]})
    add_random_head(model, "child", 2, 1, extends=("colours",), metadata={"labels": LABELS["child"]})
    add_random_head(model, "old", 9, 1, memory_norm=False)
    add_random_head(model, "large", 4, 1, metadata={"preprocessing": LARGE.to_dict()})
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base) -> MemoryCapableViT:
    return with_heads(base)


@pytest.fixture(scope="module")
def models(model, base, tmp_path_factory) -> Path:
    """A folder with a file for each head, both.safetensors with `old` and `colours`, and their base."""
    folder = tmp_path_factory.mktemp("models")
    (folder / base.name).symlink_to(base)
    for name in model.head_names:
        model.save_head(name, folder / heads.file_name(name))
    heads.save_all(folder / "both.safetensors", [heads.load(folder / heads.file_name(n)) for n in ("old", "colours")])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Five noisy PNGs of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(5):
        pixels = generator.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def say(models: Path, *flags) -> None:
    assert vit_predict.main([*map(str, flags), "--models_folder", str(models), *QUICK]) == 0


def fails(capsys, *flags) -> str:
    """The line on stderr that a command line ends with; nothing is on stdout."""
    try:
        code = run_command(vit_predict.main, [*map(str, flags), *QUICK], prog="prog")
    except SystemExit as ended:  # from the parser
        code = ended.code
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and "Traceback" not in printed.err
    assert printed.err.splitlines()[-1].partition(": ")[2].startswith("error: ")
    return printed.err


def expected(model: MemoryCapableViT, name: str, path: Path, size: int = 16) -> torch.Tensor:
    """Probabilities [C] of one head in one image, with HuggingFace's own processor and softmax in float32."""
    look = {} if size == 16 else {"resample": 0, "do_normalize": False}
    processor = ViTImageProcessor(size={"height": size, "width": size}, **look)
    model.set_image_size(size)
    with Image.open(path) as image, torch.no_grad():
        pixel_values = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        logits = model(pixel_values, heads=[] if name == "base" else [name], with_base=name == "base")[name].logits
    return logits[0].float().softmax(-1)


def check(answers: list[Answer], probabilities: torch.Tensor, labels: list[str], top: int) -> None:
    order = sorted(range(len(labels)), key=lambda index: -probabilities[index])[:top]
    assert [(answer.label, answer.index) for answer in answers] == [(labels[index], index) for index in order]
    assert [answer.probability for answer in answers] == pytest.approx(probabilities[order].tolist(), abs=1e-5)


# ------------------------------------------------------------------------------------------------------- the generator
def test_every_head_answers_every_image_as_alone(model, photos):
    names = ["colours", "base", "old"]
    images = named_images([photos])
    found = list(predict(model, images, {PLAIN: names}, top=3, batch_size=2))
    assert [prediction.image for prediction in found] == [str(photos / f"{number}.png") for number in range(5)]
    for number, prediction in enumerate(found):
        assert prediction.answers.keys() == set(names) and prediction.looks == {}
        for name in names:
            labels = LABELS.get(name) or [f"class {index}" for index in range(9)]
            check(prediction.answers[name], expected(model, name, photos / f"{number}.png"), labels, top=3)


def test_heads_that_want_other_pixels_take_a_pass_of_their_own(model, photos):
    passes = {PLAIN: ["colours"], LARGE: ["large", "old"]}
    for number, prediction in enumerate(predict(model, named_images([photos]), passes, batch_size=3)):
        path = photos / f"{number}.png"
        check(prediction.answers["colours"], expected(model, "colours", path), LABELS["colours"], top=5)
        for name, classes in (("large", 4), ("old", 9)):
            labels = [f"class {index}" for index in range(classes)]
            check(prediction.answers[name], expected(model, name, path, size=32), labels, top=5)


class Counted(ArrayImages):
    """Grey images that know how often they were read."""

    def __init__(self, count: int) -> None:
        super().__init__(np.zeros((count, 4, 4), dtype=np.uint8), "grey")
        self.read_rows: list[int] = []

    def read(self, row: int, side: int = 0) -> Image.Image:
        self.read_rows.append(row)
        return super().read(row, side)


def test_images_are_read_as_they_are_asked_for_and_once(model):
    images = Counted(100)
    answered = predict(model, ImageSet(images, np.zeros(100)), {PLAIN: ["colours"], LARGE: ["large"]}, batch_size=4)
    assert images.read_rows == []
    assert next(answered).image == "row 0 of grey"
    assert images.read_rows == [0, 1, 2, 3]
    assert len(list(answered)) == 99
    assert images.read_rows == list(range(100))


def test_loading_processes_change_nothing(model, photos):
    images, passes = named_images([photos]), {PLAIN: ["colours"], LARGE: ["large"]}
    alone = list(predict(model, images, passes, batch_size=2))
    assert list(predict(model, images, passes, batch_size=2, workers=2)) == alone


def test_no_process_is_started_for_a_single_batch(model, photos, monkeypatch):
    started = []

    def make_loader_here(images, transform, workers, batch_sampler):
        started.append(workers)
        return make_loader(images, transform, batch_sampler=batch_sampler)

    monkeypatch.setattr("learnable_memory.predict.make_loader", make_loader_here)
    for batch_size in (4, 5, 6):  # there are five images
        assert (
            len(list(predict(model, named_images([photos]), {PLAIN: ["old"]}, batch_size=batch_size, workers=2))) == 5
        )
    assert started == [2, 0, 0]


def test_the_model_is_evaluated_and_trained_on_afterwards(model, photos):
    model.train()
    answered = predict(model, named_images([photos]), {PLAIN: ["colours"]}, batch_size=1)
    next(answered)
    assert not model.heads["colours"].training
    answered.close()
    assert model.heads["colours"].training
    model.eval()


def test_attention_comes_with_the_pixels_that_it_is_over(model, photos):
    passes = {PLAIN: ["child", "base"], LARGE: ["large"]}
    (prediction,) = predict(model, named_images([photos / "0.png"]), passes, attention=True)
    for settings, names in passes.items():
        with Image.open(photos / "0.png") as image:
            pixel_values = settings.eval_transform()(image)
        model.set_image_size(settings.height)
        outputs = model(pixel_values[None], output_attentions=True)
        for name in names:
            look = prediction.looks[name]
            assert torch.equal(look.pixel_values, pixel_values)
            side = settings.height // 4
            patches = outputs[name].attentions[-1].detach()[0, :, 0, 1 : 1 + side**2].mean(0)
            assert look.attention.maps[-1].ravel() == pytest.approx(patches.numpy(), abs=1e-6)
    assert prediction.looks["child"].attention.share("inherited").all()
    assert not prediction.looks["base"].attention.share("memory").any()


def test_a_base_without_a_classifier_is_not_asked():
    with pytest.raises(ValueError, match=r"The base has no classifier, .*: ask the heads alone\."):
        model = tiny_model()
        model.classifier = torch.nn.Identity()
        predict(model, ImageSet(Counted(1), np.zeros(1)), {PLAIN: ["base"]})


def test_names_of_classes(model):
    assert labels_of(model, "child") == ["cat", "dog"]
    assert labels_of(model, "base") == ["a", "b", "c", "d", "e"]
    assert labels_of(model, "old") == [f"class {index}" for index in range(9)]


# -------------------------------------------------------------------------------------------------------- the command
def lines_of(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_has_a_line_for_each_image_with_the_heads_in_their_order(model, models, photos, capsys):
    say(models, photos, "--heads", "large", "old", "colours", "--top", "2", "--json", "--with_base")
    lines = lines_of(capsys)
    assert [line.keys() for line in lines] == [{"image", "heads"}] * 5
    assert [line["image"] for line in lines] == [str(photos / f"{number}.png") for number in range(5)]
    for number, line in enumerate(lines):
        assert list(line["heads"]) == ["base", "large", "old", "colours"]
        path = photos / f"{number}.png"
        for name, size in (("base", 16), ("large", 32), ("old", 16), ("colours", 16)):
            probabilities = expected(model, name, path, size)
            labels = LABELS.get(name) or [f"class {index}" for index in range(len(probabilities))]
            said = [Answer(each["label"], each["class"], each["probability"]) for each in line["heads"][name]]
            check(said, probabilities, labels, top=2)


def test_text_is_a_block_for_each_image():
    prediction = Prediction("photos/cat.jpg")
    prediction.answers["CIFAR100"] = [Answer("cat", 3, 0.9312), Answer("dog", 5, 0.0588)]
    prediction.answers["D"] = [Answer("class 17", 17, 1.0), Answer("7", 7, 0.0004)]
    assert command.text_block(prediction, ["D", "CIFAR100"]).splitlines() == [
        "photos/cat.jpg",
        "  D         class 17 100.0%  7 0.0%",
        "  CIFAR100  cat 93.1%        dog 5.9%",
    ]


def test_text_on_stdout_and_messages_on_stderr(models, photos, capsys):
    say(models, photos / "3.png", photos / "1.png", "--heads", "child", "large", "--top", "1")
    printed = capsys.readouterr()
    blocks = printed.out.splitlines()
    assert [blocks[0], blocks[3]] == [str(photos / "3.png"), str(photos / "1.png")]
    assert all(re.fullmatch(r"  child  (cat|dog) \d+\.\d%", blocks[line]) for line in (1, 4))
    assert all(re.fullmatch(r"  large  class [0-3] \d+\.\d%", blocks[line]) for line in (2, 5))
    assert len(blocks) == 6


def test_more_answers_than_classes(models, photos, capsys):
    say(models, photos / "0.png", "--heads", "child", "--json", "--top", "100")
    (line,) = lines_of(capsys)
    assert {answer["label"] for answer in line["heads"]["child"]} == {"cat", "dog"}
    assert sum(answer["probability"] for answer in line["heads"]["child"]) == pytest.approx(1, abs=1e-6)


def test_heads_that_are_extended_come_along_and_do_not_answer(model, models, photos, capsys):
    say(models, photos / "0.png", "--heads", "child", "--json")
    (line,) = lines_of(capsys)
    assert list(line["heads"]) == ["child"]
    best = max(answer["probability"] for answer in line["heads"]["child"])
    assert best == pytest.approx(float(expected(model, "child", photos / "0.png").max()), abs=1e-5)


def test_all_heads_of_a_merged_file_answer(models, photos, capsys):
    say(models, photos / "0.png", "--heads", models / "both.safetensors", "child", "--json", "--top", "1")
    (line,) = lines_of(capsys)
    assert list(line["heads"]) == ["old", "colours", "child"]


def test_precision_is_that_of_the_heads_training(models, photos, tmp_path, monkeypatch):
    loaded = []
    load = command.load_model
    monkeypatch.setattr(command, "load_model", lambda *given: loaded.append(load(*given)[0]) or load(*given))
    file = heads.load(models / "old_model.safetensors")
    heads.save(
        tmp_path / "old_model.safetensors", file.tensors, {**file.metadata, "training": {"precision": "bfloat16"}}
    )
    say(models, photos / "0.png", "--heads", tmp_path / "old_model.safetensors")
    say(models, photos / "0.png", "--heads", "old")
    say(models, photos / "0.png", "--heads", "old", "--precision", "bfloat16")
    assert [model.dtype for model in loaded] == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_broken_images_are_left_out_and_named(models, photos, tmp_path, capsys, caplog):
    (tmp_path / "a.png").write_bytes((photos / "0.png").read_bytes())
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "c.png").write_bytes((photos / "1.png").read_bytes())
    say(models, tmp_path, "--heads", "old", "--json", "--on_bad_image", "skip")
    assert [Path(line["image"]).name for line in lines_of(capsys)] == ["a.png", "c.png"]
    (left_out,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert left_out.startswith(f"left out: cannot read the image {tmp_path / 'b.png'} (UnidentifiedImageError: ")


def test_a_picture_of_the_attention(models, photos, tmp_path, capsys, caplog):
    picture = tmp_path / "new" / "attention.png"
    say(models, photos, "--heads", "large", "child", "--with_base", "--json", "--attention", picture)
    assert len(lines_of(capsys)) == 5
    assert [record.getMessage() for record in caplog.records][-1] == f"picture: {picture}"
    assert picture.is_file()


def test_a_name_that_is_no_text(models, photos, tmp_path, capsys):
    name = "caf\udce9.png"  # Latin-1 in a file system of UTF-8
    (tmp_path / name).write_bytes((photos / "0.png").read_bytes())
    say(models, tmp_path, "--heads", "old", "--top", "1")
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path}/caf\\udce9.png"
    say(models, tmp_path, "--heads", "old", "--top", "1", "--json")
    assert lines_of(capsys)[0]["image"] == str(tmp_path / name)


@pytest.mark.slow
def test_a_shell_gets_json_lines_and_nothing_else_on_stdout(models, photos):
    line = [sys.executable, "vit_predict.py", f"{photos}/*.png", "--heads", "child", "large", "--json", *QUICK]
    ran = subprocess.run([*line, "--models_folder", models], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    checked = [sys.executable, "-m", "json.tool", "--json-lines"]
    assert subprocess.run(checked, input=ran.stdout, capture_output=True, text=True).returncode == 0
    assert len(ran.stdout.splitlines()) == 5
    assert "The heads need 2 kinds of preprocessing, so each image takes one pass of its kind." in ran.stderr


# ----------------------------------------------------------------------------------------------------------- wrong use
def test_defaults():
    options = PredictOptions(images="a.png", heads="A")
    assert (options.images, options.heads, options.models_folder) == (("a.png",), ("A",), Path("models"))
    assert (options.top, options.json, options.with_base, options.attention) == (5, False, False, None)
    assert (options.on_bad_image, options.base_model, options.precision) == ("stop", None, None)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--heads", "A"], "the following arguments are required: IMAGE"),
        (["a.png"], "the following arguments are required: --heads"),
        (["", "--heads", "A"], "IMAGE is '', but it has to be a file, a folder or a pattern."),
        (["a.png", "--heads", "A", "--top", "0"], "--top is 0, but it has to be 1 or more."),
        (["a.png", "--heads", "A", "--attention", "out"], "--attention is out, but it has to be a file ending in .png"),
        (["a.png", "--heads", "A", "--on_bad_image", "guess"], "argument --on_bad_image: invalid choice: 'guess'"),
    ],
)
def test_options_that_are_not_legal(capsys, flags, error):
    assert f"error: {error}" in fails(capsys, *flags)


def test_images_that_are_not_there(models, capsys):
    asked = ["--heads", "old", "--models_folder", models]
    assert "no image matches the pattern 'none/*.png'" in fails(capsys, "none/*.png", *asked)
    assert "there is no image file or folder none.png" in fails(capsys, "none.png", *asked)
    assert f"{ROOT / 'README.md'} is no image file: it has to end in" in fails(capsys, ROOT / "README.md", *asked)


def test_an_image_that_cannot_be_read(models, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    asked = [tmp_path, "--heads", "old", "--models_folder", models]
    named = f"the image {tmp_path / 'broken.png'} (UnidentifiedImageError: "
    assert f"prog: error: cannot read {named}" in fails(capsys, *asked)
    assert fails(capsys, *asked, "--on_bad_image", "skip").endswith("error: none of the 1 images can be read\n")


def test_an_image_whose_values_have_no_meaning(models, tmp_path, capsys):
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "dark.tiff")
    error = fails(capsys, tmp_path, "--heads", "old", "--models_folder", models)
    assert f"error: {tmp_path / 'dark.tiff'}: an image of mode 'F' holds values from 0.5 to 0.5" in error


def test_heads_that_are_not_there(models, photos, capsys):
    error = fails(capsys, photos, "--heads", "old", "new", "--models_folder", models)
    assert f"No head file for new in {models}" in error


def test_heads_of_different_bases(models, base, photos, tmp_path, capsys):
    other = save_base(tmp_path / "other", seed=1)
    stranger = MemoryCapableViT.from_pretrained(other)
    add_random_head(stranger, "stranger", 2, 1)
    stranger.save_head("stranger", tmp_path / "stranger_model.safetensors")
    asked = [photos, "--heads", "old", tmp_path / "stranger_model.safetensors", "--models_folder", models]
    error = fails(capsys, *asked)
    assert f"old on {base.name} (" in error and "stranger on other (" in error
    error = fails(capsys, photos, "--heads", "old", "--models_folder", models, "--base_model", other)
    assert "old was trained on another base" in error


def test_a_base_that_nobody_names(models, photos, tmp_path, capsys):
    file: HeadFile = heads.load(models / "old_model.safetensors")
    nameless = {**file.metadata, "base": {**file.metadata["base"], "id": None}}
    path = heads.save(tmp_path / "old_model.safetensors", file.tensors, nameless)
    error = fails(capsys, photos, "--heads", path)
    assert f"{path} does not say which base it was trained on: name it with --base_model." in error


def test_the_answers_of_a_base_that_has_none(photos, tmp_path, capsys):
    folder = save_base(tmp_path / "base", num_labels=5)
    tiny_base().vit.save_pretrained(folder)
    model = MemoryCapableViT.from_pretrained(folder)
    add_random_head(model, "A", 2, 1)
    model.save_head("A", tmp_path / "A_model.safetensors")
    error = fails(capsys, photos, "--heads", tmp_path / "A_model.safetensors", "--with_base")
    assert f"{folder} has no classifier, so it has no answers of its own: leave --with_base." in error


def test_a_picture_that_cannot_be_drawn(models, photos, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    asked = [photos, "--heads", "old", "--models_folder", models]
    error = fails(capsys, *asked, "--attention", tmp_path / "folder.png")
    assert f"--attention {tmp_path / 'folder.png'} is a folder: name a file in it, such as attention.png." in error
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes((photos / "0.png").read_bytes())
    many = [tmp_path / f"{number}.png" for number in range(9)]
    error = fails(capsys, *many, *asked[1:], "--attention", tmp_path / "a.png")
    assert "--attention draws at most 8 images, but these are 9: name fewer." in error
    assert not (tmp_path / "a.png").exists()


def test_labels_that_others_wrote_cannot_steer_the_terminal(model, tmp_path, photos, capsys):
    model.save_head("large", tmp_path / heads.file_name("large"))
    file = heads.load(tmp_path / heads.file_name("large"))
    labels = [f"\x1b[31mclass\n{i}" for i in range(file.metadata["num_labels"])]
    heads.save(tmp_path / heads.file_name("large"), file.tensors, {**file.metadata, "labels": labels})
    say(tmp_path, photos / "0.png", "--heads", "large", "--top", "1", "--base_model", model.base_id)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and len(printed.splitlines()) == 2 and "�[31mclass�" in printed


def test_too_many_rows_are_refused_before_anything_is_answered(models, photos, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("learnable_memory.attention.MOST_ROWS", 3)
    flags = [photos / "0.png", photos / "1.png", "--heads", "old", "large", "--attention", tmp_path / "a.png"]
    error = fails(capsys, *flags, "--models_folder", models)
    assert "2 images and 2 heads are 4 rows, but the picture can have 1 to 3: name fewer." in error
