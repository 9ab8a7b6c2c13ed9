"""The attention picture shows the numbers that it is given, each in its place, and can be read."""

import itertools
import re

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from learnable_memory import plots
from learnable_memory.attention import PARTS, HeadAttention
from learnable_memory.attention_plot import attention_picture, shown_layers
from learnable_memory.contact_sheet import visible
from learnable_memory.predict import Answer, Look, Prediction
from learnable_memory.transforms import Preprocessing

PLAIN = Preprocessing(16, 24, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OTHER = Preprocessing(8, 8, "bilinear", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LONG = "a fish of the family of carps, with a name that is much too long for a line"


def prediction(image: str, heads: dict[str, Preprocessing], layers: int, label: str = "cat") -> Prediction:
    """Random weights of 2 x 3 patches; `base` and `bare` have no memory, and only `child` inherits."""
    generator = np.random.default_rng(sum(map(ord, image)))
    found = Prediction(image)
    for name, settings in heads.items():
        weights = generator.uniform(0.1, 1, (layers, 10))
        weights[:, 0] *= name not in ("base", "bare")
        weights[:, 1] *= name == "child"
        weights /= weights.sum(axis=1, keepdims=True)
        shares = np.concatenate([weights[:, :4], weights[:, 4:].sum(axis=1, keepdims=True)], axis=1)
        pixel_values = torch.from_numpy(generator.uniform(0, 1, (3, settings.height, settings.width)))
        found.answers[name] = [Answer(label, 3, 0.875), Answer("dog", 1, 0.125)]
        found.looks[name] = Look(pixel_values, HeadAttention(weights[:, 4:].reshape(layers, 2, 3), shares))
    return found


def draw(path, drawn: list[Figure], images: list[str], heads: dict[str, Preprocessing], layers: int = 3, **how):
    """The figure, and what it was drawn from."""
    passes = {settings: [name for name in heads if heads[name] == settings] for settings in (OTHER, PLAIN)}
    predictions = [prediction(image, heads, layers, **how) for image in images]
    assert attention_picture(predictions, passes, list(heads), path / "new" / "a.png") == path / "new" / "a.png"
    return drawn[-1], predictions


def place(axes: Axes):
    """Where it was put, before it shrank to the shape of its picture."""
    return axes.get_position(original=True)


def rows_of(figure: Figure) -> list[tuple[Axes, list[Axes], Axes, Axes]]:
    """For each row, from the top, its view, its maps, their scale and the bars."""
    tops = sorted({round(place(axes).y1, 6) for axes in figure.axes}, reverse=True)
    rows = []
    for top in tops:
        of_row = [axes for axes in figure.axes if round(place(axes).y1, 6) == top]
        view, *maps, scale, bars = sorted(of_row, key=lambda axes: place(axes).x0)
        rows.append((view, maps, scale, bars))
    return rows


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


@pytest.mark.drawing
def test_a_row_for_each_head_of_each_image(tmp_path, drawn):
    heads = {"base": PLAIN, "A": OTHER, "child": PLAIN}
    figure, predictions = draw(tmp_path, drawn, ["x/one.png", "two.png"], heads)
    rows = rows_of(figure)
    assert len(rows) == 6
    for (view, maps, _, bars), (found, name) in zip(rows, itertools.product(predictions, heads), strict=True):
        look = found.looks[name]
        assert np.array_equal(view.images[0].get_array(), visible(look.pixel_values, heads[name]))
        assert np.array_equal([axes.images[-1].get_array() for axes in maps], look.attention.maps)
        heights = np.array([[bar.get_height() for bar in part] for part in bars.containers])  # [parts, layers]
        assert np.allclose(heights.T, look.attention.shares, rtol=0, atol=1e-9)
        tops = [bar.get_y() + bar.get_height() for bar in bars.containers[-1]]
        assert tops == pytest.approx([1, 1, 1])
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.format == "PNG" and image.width > 1200


def test_the_text_says_image_head_label_and_probability(tmp_path, drawn):
    figure, _ = draw(tmp_path, drawn, ["x/one.png", "two.png"], {"A": PLAIN, "bare": PLAIN})
    found = texts(figure)
    assert [found.count(text) for text in ("one.png", "two.png", "A", "bare", "cat", "87.5%")] == [1, 1, 2, 2, 4, 4]
    assert found.index("one.png") < found.index("A") < found.index("bare") < found.index("two.png")
    assert {"layer 1", "layer 2", "layer 3"} <= set(found)


def test_colours_mean_the_same_in_all_layers_of_a_row_and_the_scale_says_what(tmp_path, drawn):
    figure, (found,) = draw(tmp_path, drawn, ["one.png"], {"A": PLAIN, "bare": PLAIN})
    for (_, maps, scale, _), name in zip(rows_of(figure), ("A", "bare"), strict=True):
        largest = found.looks[name].attention.maps.max()
        for axes in maps:
            norm = axes.images[-1].norm
            assert (norm.vmin, norm.vmax) == (0, largest)
            assert norm(largest / 4) == pytest.approx(0.5)  # a square root
            extent = axes.images[-1].get_extent()
            assert extent == axes.images[0].get_extent()  # the map lies on the picture
        shown = [label.get_text() for label in scale.get_yticklabels()]
        assert shown == [f"{100 * weight:.1f}%" for weight in (0, largest / 4, largest)]
    assert any("square-root scale that all layers of a row share" in text for text in texts(figure))


def test_memory_has_the_colour_of_its_head_and_its_share_in_numbers(tmp_path, drawn):
    figure, (found,) = draw(tmp_path, drawn, ["one.png"], {"base": PLAIN, "A": PLAIN, "child": PLAIN, "bare": PLAIN})
    base, a, child, bare = (bars for *_, bars in rows_of(figure))
    for bars, name, number in ((a, "A", 0), (child, "child", 1)):
        assert to_hex(bars.containers[PARTS.index("memory")][0].get_facecolor()) == plots.head_colour(number)
        shares = found.looks[name].attention.share("memory")
        assert [text.get_text() for text in bars.texts] == [f"{100 * share:.0f}" for share in shares]
    assert [len(base.texts), len(bare.texts)] == [0, 0]


@pytest.mark.parametrize(
    ("heads", "parts"),
    [
        (("A", "child", "bare"), list(PARTS)),
        (("A",), ["memory", "own class token", "special tokens", "patches"]),
        (("base", "bare"), ["own class token", "special tokens", "patches"]),
    ],
)
def test_one_legend_names_the_parts_that_there_are(tmp_path, drawn, heads, parts):
    figure, _ = draw(tmp_path, drawn, ["one.png", "two.png"], dict.fromkeys(heads, PLAIN))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == parts
    assert [axes for axes in figure.axes if axes.get_legend()] == []


@pytest.mark.parametrize(
    ("layers", "shown"),
    [
        (1, [1]),
        (6, [1, 2, 3, 4, 5, 6]),
        (7, [1, 2, 3, 5, 6, 7]),
        (12, [1, 3, 5, 8, 10, 12]),
        (24, [1, 6, 10, 15, 19, 24]),
    ],
)
def test_deep_models_show_six_layers_and_the_bars_of_all(tmp_path, drawn, layers, shown):
    assert [layer + 1 for layer in shown_layers(layers)] == shown
    figure, (found,) = draw(tmp_path, drawn, ["one.png"], {"A": PLAIN}, layers)
    ((_, maps, _, bars),) = rows_of(figure)
    assert [text for text in texts(figure) if text.startswith("layer ")] == [f"layer {layer}" for layer in shown]
    for axes, layer in zip(maps, shown, strict=True):
        assert np.array_equal(axes.images[-1].get_array(), found.looks["A"].attention.maps[layer - 1])
    assert bars.get_xticks().tolist() == list(range(1, layers + 1))


@pytest.mark.parametrize("layers", [3, *(pytest.param(layers, marks=pytest.mark.slow) for layers in (1, 12, 24))])
def test_no_text_runs_into_another_or_out_of_the_picture(tmp_path, drawn, layers):
    images = ["a photo with a name that does not end.jpeg", "two.png"]
    heads = {"base": PLAIN, "child-of-many-heads-with-long-names": PLAIN, "child": PLAIN}
    figure, _ = draw(tmp_path, drawn, images, heads, layers, label=LONG)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # only now the legend has its place
    renderer, (legend,) = canvas.get_renderer(), figure.legends
    written = [*figure.texts, *legend.get_texts()]
    for axes in figure.axes:
        labels = [*axes.get_xticklabels(), *axes.get_yticklabels()] if axes.axison else []
        written += [*axes.texts, *labels]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in written if text.get_text()]
    width, height = canvas.get_width_height()
    outside = [text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    assert outside == []
    assert [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)] == []
    pictures = [axes.get_window_extent(renderer) for axes in figure.axes if axes.images]
    at_the_left = [box for text, box in boxes if box.x0 < pictures[0].x0]
    assert [box for box in at_the_left if box.x1 > pictures[0].x0 and any(box.overlaps(p) for p in pictures)] == []


def test_a_dollar_begins_no_formula(tmp_path, drawn):
    figure, _ = draw(tmp_path, drawn, ["$x$.png"], {"A": PLAIN}, label="5$ and \\frac$")
    assert {"$x$.png", "5$ and \\frac$"} <= set(texts(figure))


@pytest.mark.drawing
@pytest.mark.parametrize("ending", [".pdf", ".svg"])
def test_other_kinds_of_pictures(tmp_path, ending):
    found = prediction("one.png", {"A": PLAIN}, layers=2)
    path = attention_picture([found], {PLAIN: ["A"]}, ["A"], tmp_path / f"a{ending}")
    assert path.read_bytes()[:5] in (b"%PDF-", b"<?xml")


@pytest.mark.parametrize(("images", "rows"), [(0, 0), (101, 202)])
def test_pictures_that_nobody_could_open_are_refused(tmp_path, images, rows):
    found = [prediction("one.png", {"A": PLAIN, "B": PLAIN}, layers=1)] * images
    said = f"{images} images and 2 heads are {rows} rows, but the picture can have 1 to 200: name fewer."
    with pytest.raises(ValueError, match=re.escape(said)):
        attention_picture(found, {PLAIN: ["A", "B"]}, ["A", "B"], tmp_path / "a.png")
