"""Figures: each is one readable PNG, and what it shows is what the data says."""

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from learnable_memory import plots
from learnable_memory.commands import figures
from learnable_memory.two_streams_plot import two_streams
from vit import build_attention_mask

pytestmark = pytest.mark.drawing
METRICS = [
    {"step": 1, "train/loss": 2.0, "train/lr": 0.01},
    {"step": 2, "train/loss": None, "train/lr": 0.03},
    {"step": 3, "train/loss": 1.0, "train/lr": 0.02},
    {"step": 3, "epoch": 1, "select/top1": 0.6, "select/loss": 1.5},
    {"step": 6, "epoch": 2, "select/top1": 0.5, "select/loss": 1.6},
    {"step": 6, "eval/top1": 0.55, "eval/top5": 0.9},
]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_training_curves_show_loss_accuracy_and_the_evaluation(tmp_path, drawn):
    path = plots.training_curves(METRICS, tmp_path / "new" / "curves.png", "Digits")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 1200
    (figure,) = drawn
    assert figure.get_suptitle() == "Head Digits"
    loss, accuracy = figure.axes
    lines = {line.get_label(): line for line in (*loss.lines, *accuracy.lines)}
    assert lines["train, each step"].get_ydata()[[0, 2]].tolist() == [2.0, 1.0]
    assert math.isnan(lines["train, each step"].get_ydata()[1])
    assert lines["best, 60.0%"].get_xydata().tolist() == [[3.0, 0.6]]
    assert lines["evaluation split, 55.0%"].get_xydata().tolist() == [[3.0, 0.55]]


def test_curves_of_a_cross_validated_run_show_what_is_known_at_its_end(tmp_path, drawn):
    end = {"step": 6, "eval/top1": 0.55, "folds/top1": 0.625}
    plots.training_curves([*METRICS[:3], end], tmp_path / "curves.png")
    (figure,) = drawn
    accuracy = figure.axes[1]
    lines = {line.get_label(): line for line in accuracy.lines}
    assert lines["training images, out of fold, 62.5%"].get_xydata().tolist() == [[6.0, 0.625]]
    assert lines["evaluation split, 55.0%"].get_xydata().tolist() == [[6.0, 0.55]]


def test_curves_are_drawn_before_the_first_epoch_ends_and_for_a_diverged_run(tmp_path):
    assert plots.training_curves(METRICS[:1], tmp_path / "one.png").exists()
    diverged = [{"step": 1, "train/loss": None}, {"step": 1, "select/top1": None, "select/loss": None}]
    assert plots.training_curves(diverged, tmp_path / "two.png").exists()


def test_curves_of_no_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"No row has 'train/loss', .*: check that these are a run's metrics"):
        plots.training_curves(METRICS[3:], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_smoothing_keeps_means_at_the_ends_and_gaps():
    assert plots.smoothed(np.full(100, 3.0)) == pytest.approx(np.full(100, 3.0))
    values = np.arange(100.0)
    assert plots.smoothed(values)[50] == pytest.approx(50.0)
    assert plots.smoothed(values)[0] == pytest.approx(1.0)  # the mean of 0, 1 and 2: half of the window of five
    values[50] = np.nan
    assert math.isnan(plots.smoothed(values)[50])
    assert plots.smoothed(values)[49] == pytest.approx((47 + 48 + 49 + 51) / 4)
    assert plots.smoothed(np.array([1.0])).tolist() == [1.0]


@pytest.mark.parametrize("extension", [False, True, [[], [0], []]])
def test_the_mask_picture_colours_what_is_visible(tmp_path, drawn, extension):
    counts, patches = [2, 0, 3], 4
    mask = build_attention_mask(patches, counts, extension)
    plots.attention_mask(mask, counts, patches, tmp_path / "mask.png", extension)
    squares = [patch for patch in drawn[0].axes[0].patches if isinstance(patch, Rectangle) and patch.get_width() == 1]
    shown = torch.full(mask.shape[1:], False)
    for square in squares:
        shown[square.get_y(), square.get_x()] = to_hex(square.get_facecolor()) != plots.HIDDEN
    assert len(squares) == mask[0].numel()
    assert torch.equal(shown, mask[0] == 0)


def test_the_mask_picture_says_what_each_row_sees(tmp_path, drawn):
    plots.attention_mask(build_attention_mask(4, [2, 1], True), [2, 1], 4, tmp_path / "mask.png", True)
    found = texts(drawn[0])
    assert {"INP", "CLS", "C1", "C2", "M1", "M2"} <= set(found)
    sees = [text for text in found if text.startswith("sees")]
    assert sees == ["sees INP, CLS", "sees INP, CLS", "sees INP, CLS, C1, M1", "sees INP, CLS, C1, C2, M1, M2"]


def test_a_mask_of_another_shape_is_refused(tmp_path):
    message = r"The mask is \[1, 7, 10\], but 5 patches and memory tokens \[2, 1\] give \[1, 8, 11\]: pass what"
    with pytest.raises(ValueError, match=message):
        plots.attention_mask(build_attention_mask(4, [2, 1]), [2, 1], 5, tmp_path / "mask.png")


def test_every_head_has_a_colour():
    assert plots.head_colour(len(plots.HEADS)) == plots.HEADS[0]
    assert plots.lighter("#204060", 0) == "#204060"
    assert plots.lighter("#204060", 1) == "#ffffff"


def test_the_figures_command_draws_the_pictures_of_the_readme(tmp_path, capsys):
    figures.main(["--output", str(tmp_path / "images")])
    written = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert written == ["attention_mask.png", "attention_mask_extension.png", "two_streams.png"]
    assert [line.rpartition("images")[2][1:] for line in capsys.readouterr().out.splitlines()] == written
    with Image.open(tmp_path / "images" / "two_streams.png") as image:
        assert image.width == 1920


def test_drawing_leaves_pyplot_alone(tmp_path):
    import sys

    loaded = "matplotlib.pyplot" in sys.modules
    two_streams(tmp_path / "streams.png")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_of_equal_accuracies_the_epoch_that_training_chose_is_marked(tmp_path, drawn):
    rows = [
        {"step": step, "epoch": step, "train/loss": 1.0, "select/top1": 0.5, "select/loss": loss}
        for step, loss in ((1, 0.9), (2, 0.7), (3, 0.8))
    ]
    plots.training_curves(rows, tmp_path / "curves.png", "Digits")
    _, accuracy = drawn[0].axes
    (ring,) = [line for line in accuracy.lines if line.get_fillstyle() == "none"]
    assert list(ring.get_xdata()) == [2]
