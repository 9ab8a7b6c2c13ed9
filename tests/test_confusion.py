"""Accuracy class by class and the confusion matrix, against counting by hand; files, pictures and sentences."""

import json

import numpy as np
import pytest
from PIL import Image

from learnable_memory import confusion_plot
from learnable_memory.confusion import Confusion, load, said_of_missing, save
from learnable_memory.confusion_plot import confusion_matrix, most_confused

#                      ant  ant  ant  bee  cow  cow
LABEL = np.array([0, 0, 0, 1, 3, 3])
PREDICTED = np.array([0, 1, 1, 1, 0, 3])
LABELS = ["ant", "bee", "none of these", "cow"]


@pytest.fixture
def found() -> Confusion:
    return Confusion(LABELS, LABEL, PREDICTED)


def test_each_class_is_counted_for_itself(found):
    assert found.images.tolist() == [3, 1, 0, 2] and found.right.tolist() == [1, 1, 0, 1]
    assert found.accuracy[[0, 1, 3]].tolist() == [1 / 3, 1, 1 / 2] and np.isnan(found.accuracy[2])
    assert found.top1 == 3 / 6
    assert found.mean_accuracy == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert found.without_images == ["none of these"]


def test_the_matrix_has_classes_as_rows_and_answers_as_columns(found):
    whole = np.array([[1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]])
    assert found.matrix(np.arange(4)).tolist() == whole.tolist()
    assert found.matrix(np.array([3, 0])).tolist() == [[1, 1], [0, 1]]
    rebuilt = np.zeros((4, 4), dtype=int)
    rebuilt[found.cells[:, 0], found.cells[:, 1]] = found.cells[:, 2]
    assert rebuilt.tolist() == whole.tolist() and len(found.cells) == 5


def test_a_random_matrix_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    label, predicted = generator.integers(0, 9, (2, 500))
    label[label == 4] = 5  # a class without images, which is answered
    found = Confusion([str(index) for index in range(9)], label, predicted)
    assert found.matrix(np.arange(9)).tolist() == metrics.confusion_matrix(label, predicted, labels=range(9)).tolist()
    recalls = metrics.recall_score(label, predicted, labels=np.unique(label), average=None)
    assert found.mean_accuracy == pytest.approx(recalls.mean())


def test_there_and_back(found, tmp_path):
    path = save(found, tmp_path / "new" / "a_classes.json", "animals")
    again = load(path)
    assert again.labels == LABELS
    assert again.matrix(np.arange(4)).tolist() == found.matrix(np.arange(4)).tolist()
    record = json.loads(path.read_text())
    assert record["classes"][2] == {"label": "none of these", "images": 0, "right": 0, "accuracy": None}
    assert (record["head"], record["images"], record["top1"]) == ("animals", 6, 0.5)
    assert sorted(record["confusion"]) == [[0, 0, 1], [0, 1, 2], [1, 1, 1], [3, 0, 1], [3, 3, 1]]


@pytest.mark.parametrize("text", ["{}", '{"format": 2}', "no JSON", "[1]", '{"format": 1, "confusion": [[1, 2]]}'])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "a_classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"a_classes\.json is no file of accuracies by class, or is damaged"):
        load(tmp_path / "a_classes.json")


@pytest.mark.parametrize(
    ("missing", "classes", "said"),
    [
        ([], 3, ""),
        (["fox"], 1, "1 of 1 class has no evaluation image: fox"),
        (["fox", "owl"], 1200, "2 of 1,200 classes have no evaluation image: fox, owl"),
        ([f"c{i}" for i in range(10)], 20, "10 of 20 classes have no evaluation image: c0, c1, c2, c3, c4, c5, c6, c7 "
         "and 2 more"),
    ],
)  # fmt: skip
def test_classes_that_nothing_is_known_of_are_said(missing, classes, said):
    assert said_of_missing(missing, classes) == said


# --------------------------------------------------------------------------------------------------------- the picture
def test_the_picture_shows_the_counts(found, tmp_path, drawn):
    path = confusion_matrix(found, tmp_path / "a.png", "animals")
    with Image.open(path) as image:
        assert image.format == "PNG"
    (axes,) = drawn[0].axes
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "1", (0, 1): "2", (1, 1): "1", (3, 0): "1", (3, 3): "1"}  # (class, answer)
    assert [text.get_text() for text in axes.get_yticklabels()] == LABELS
    assert axes.images[0].get_array()[0].tolist() == pytest.approx([1 / 3, 2 / 3, 0, 0])
    assert drawn[0].get_suptitle() == "animals: top-1 50.0%, mean over classes 61.1%"


def test_of_many_classes_those_that_are_confused_are_drawn(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(confusion_plot, "MOST", 3)
    label = np.repeat(np.arange(8), 5)
    predicted = label.copy()
    predicted[:4] = 6  # class 0 is taken for class 6 four times
    predicted[10] = 3  # and class 2 for class 3 once
    found = Confusion([f"{'long ' * 9}{index}" for index in range(8)], label, predicted)
    assert most_confused(found, 3).tolist() == [0, 2, 6]
    confusion_matrix(found, tmp_path / "a.png", "x")
    assert drawn[0].get_suptitle().startswith("x: the 3 most confused of 8 classes\ntop-1 87.5%")
    assert drawn[0].axes[0].get_yticklabels()[0].get_text() == "long long long lo…"
