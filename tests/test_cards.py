"""The cards that ship: what they say is what was published, every run of theirs is legal, in the smoke form too."""

import re
from collections import Counter
from pathlib import Path

import pytest

from learnable_memory.config import TrainOptions
from learnable_memory.experiments.card import Card, Variant, read_card
from learnable_memory.experiments.smoke import smoke_card

FOLDER = Path(__file__).parent.parent / "experiments"
OF_PAPERS = ("table2", "masking", "memory_update", "sizes", "fine_tuning", "prompts")
NAMES = (*OF_PAPERS, "here_and_now")
ON_THE_PAPERS_SCHEDULE = ("table2", "masking", "memory_update", "sizes")

# Images left to train on: the official part, without a fifth where there is none, and without the tenth to choose on.
TRAIN_IMAGES = {
    "CIFAR10": 50_000 * 0.9, "CIFAR100": 50_000 * 0.9, "CUB": 5_994 * 0.9, "Flowers": 1_020,
    "ImageNet": 1_281_167 * 0.9, "INaturalist": 675_170 * 0.8 * 0.9, "Pets": 3_680 * 0.9, "Places": 1_803_460 * 0.9,
    "Sun": 108_754 * 0.8 * 0.9,
}  # fmt: skip


@pytest.fixture(params=NAMES)
def card(request: pytest.FixtureRequest) -> Card:
    return read_card(FOLDER / request.param)


def train_options(variant: Variant) -> TrainOptions:
    return TrainOptions(**variant.options, lr=variant.rates, data_seeds=variant.data_seeds)


def repeated(card: Card) -> list[str]:
    """Variants that are the same run as another one: the second would find the results of the first and not run."""
    seen = Counter(repr((sorted(variant.options.items()), variant.rates)) for variant in card.variants())
    return [text for text, count in seen.items() if count > 1]


# --------------------------------------------------------------------------------------------------------- all of them
@pytest.mark.slow
def test_every_run_is_legal_and_one_method(card: Card) -> None:
    for variant in card.variants():
        (spec,) = train_options(variant).method_specs
        assert spec.memory_tokens == variant.options.get("number_of_memory_tokens", 0)


def test_no_two_variants_are_the_same_run(card: Card) -> None:
    assert repeated(card) == []


@pytest.mark.slow
def test_every_dataset_has_the_epochs_that_its_steps_need(card: Card) -> None:
    for variant in card.variants():
        options = train_options(variant)
        if options.max_steps is not None:
            assert options.epochs * (TRAIN_IMAGES[options.dataset] // options.batch_size) >= options.max_steps, variant


def test_the_command_runs_this_card(card: Card) -> None:
    assert f"python -m learnable_memory experiments run {card.name} --resume" in card.command


def test_bases_are_those_of_imagenet_21k_or_the_one_that_ships(card: Card) -> None:
    bases = {variant.options["base_model"] for variant in card.variants()}
    if card.name == "here_and_now":
        assert bases == {"models/base-tiny"}  # it ships, and needs no download
        return
    assert all(re.fullmatch(r"google/vit-(base|large)-patch(16|32)-224-in21k", name) for name in bases - {BIT})
    assert (BIT in bases) == (card.name == "fine_tuning")


BIT = "timm/resnetv2_152x4_bit.goog_in21k"


@pytest.mark.parametrize("name", ON_THE_PAPERS_SCHEDULE)
def test_schedule_of_the_paper(name: str) -> None:
    for variant in read_card(FOLDER / name).variants():
        options = train_options(variant)
        assert (options.batch_size, options.momentum, options.clip, options.warmup_steps) == (512, 0.9, 1, 5)
        assert options.max_steps == 20_000 or (name == "memory_update" and variant.grid == "norm")
        assert options.image_size is None and options.views is None


# ---------------------------------------------------------------------------------------------------- what they compare
# The paper's Table 2 as it stands there: data sets are rows.
TABLE_2_METHODS = ("full", "head", "head+class", "1 cell", "5 cells", "10 cells", "20 cells")
TABLE_2 = {
    "SUN-397": (76.9, 75.9, 76.4, 77.0, 76.8, 76.9, 76.9),
    "iNaturalist": (54.0, 46.3, 48.7, 49.4, 50.1, 50.0, 50.0),
    "CIFAR-100": (91.8, 85.8, 88.6, 90.9, 91.0, 91.1, 90.9),
    "Places-365": (55.9, 50.9, 52.4, 53.3, 53.8, 53.9, 54.1),
}
PAPER = {(method, data): row[column] for data, row in TABLE_2.items() for column, method in enumerate(TABLE_2_METHODS)}


def test_table_2_of_the_paper() -> None:
    card = read_card(FOLDER / "table2")
    top1, reproduction, *_ = card.tables
    assert top1.published == PAPER
    assert {(v.labels["method"], v.labels["data"]) for v in card.variants()} == set(PAPER)
    assert reproduction.published == {
        ("1 cell", "SUN-397"): 80.96, ("1 cell", "iNaturalist"): 58.70,
        ("1 cell", "CIFAR-100"): 64.08, ("1 cell", "Places-365"): 50.47,
    }  # fmt: skip
    assert all(variant.data_seeds == (0, 1, 2) for variant in card.variants())


def test_sizes_has_three_bases_and_the_papers_numbers_for_one() -> None:
    card = read_card(FOLDER / "sizes")
    assert {variant.labels["base"] for variant in card.variants()} == {"B/32", "B/16", "L/32"}
    assert card.tables[0].published == {
        (f"B/32, {method}", data): number for (method, data), number in PAPER.items() if method[:2] not in ("10", "20")
    }


def test_masking_compares_each_number_of_cells_with_and_without() -> None:
    card = read_card(FOLDER / "masking")
    specs = Counter(
        (spec.masking, spec.memory_tokens) for v in card.variants() for spec in train_options(v).method_specs
    )
    assert specs == {
        ("masked", 0): 4, **{("masked", cells): 4 for cells in (1, 5, 10, 20)},
        **{("none", cells): 4 for cells in (1, 5, 20)}, ("none", 10): 8,  # with the learned and the base class token
    }  # fmt: skip


def test_heads_put_together_are_heads_of_the_grid() -> None:
    card = read_card(FOLDER / "masking")
    assert [analysis.settings["kind"] for analysis in card.together] == ["concatenation", "extension", "unmasked"]
    for analysis in card.together:
        kind, grid, heads, along, order = (
            analysis.settings[key] for key in ("kind", "grid", "heads", "along", "order")
        )
        assert len(analysis.settings) == 5
        chosen = [v for v in card.grid(grid).variants() if all(v.labels[key] == label for key, label in heads.items())]
        assert sorted(variant.labels[along] for variant in chosen) == sorted(order)
        assert {spec.combinable for v in chosen for spec in train_options(v).method_specs} == {kind != "unmasked"}


def test_without_the_mask_inaturalist_falls() -> None:
    unmasked = read_card(FOLDER / "masking").together[-1]
    order = unmasked.settings["order"]
    assert order[:2] == ["iNaturalist", "Places-365"]
    prefixes = [" + ".join(order[:count]) for count in range(1, 5)]
    assert unmasked.published == dict(
        zip([(prefix, "iNaturalist") for prefix in prefixes], (50.0, 28.1, 27.8, 17.3), strict=True)
    )


def test_memory_update_compares_every_form_with_and_without_mask() -> None:
    specs = {
        (spec.masking, spec.memory_update, spec.memory_norm)
        for variant in read_card(FOLDER / "memory_update").grid("update").variants()
        for spec in train_options(variant).method_specs
    }
    forms = {("none", True), ("propagate", True), ("additive", True), ("none", False)}
    assert specs == {(masking, *form) for masking in ("masked", "none") for form in forms}


def test_fine_tuning_grid_of_the_vit_paper() -> None:
    """Dosovitskiy et al. 2021, Table 4."""
    card = read_card(FOLDER / "fine_tuning")
    low, high = (0.001, 0.003, 0.01, 0.03), (0.003, 0.01, 0.03, 0.06)
    grid = {
        "ImageNet": (20_000, high), "CIFAR-100": (10_000, low), "CIFAR-10": (10_000, low), "Pets": (500, low),
        "Flowers": (500, low),
    }  # fmt: skip
    main = card.grid("main").variants()
    assert len(main) == 10
    for variant in main:
        assert (variant.options["max_steps"], variant.rates) == grid[variant.labels["data"]]
    assert {(train_options(v).batch_size, train_options(v).method) for v in card.variants()} == {(512, ("full",))}
    vit = dict(
        zip(("ImageNet", "CIFAR-10", "CIFAR-100", "Pets", "Flowers"), (85.30, 99.15, 93.25, 94.67, 99.61), strict=True)
    )
    bit = dict(zip(vit, (87.54, 99.37, 93.51, 96.62, 99.63), strict=True))
    rows = {"ViT-L/16": vit, "ResNet-152x4": bit}
    assert card.tables[0].published == {(row, data): n for row, numbers in rows.items() for data, n in numbers.items()}


def test_one_thing_changes_in_a_row_of_the_sensitivity() -> None:
    main = dict(zip(("seed", "max_steps", "image_size"), (0, 500, 384), strict=True))
    changed = Counter()
    for variant in read_card(FOLDER / "fine_tuning").grid("sensitivity").variants():
        (key,) = [key for key, value in main.items() if getattr(train_options(variant), key) != value]
        changed[key] += 1
    assert changed == {"seed": 8, "max_steps": 16, "image_size": 8}  # 2 bases x 2 data sets x their rows


def test_memory_study_has_24_runs_of_vpt_on_each_data_set() -> None:
    card = read_card(FOLDER / "prompts")
    runs: dict[str, set] = {"CUB": set(), "Flowers": set()}
    for variant in card.grid("memory_use").variants():
        options = train_options(variant)
        assert options.number_of_memory_tokens == (100,)
        if options.method == ("vpt-deep",):
            switches = (options.image_size, options.attn_implementation, options.gradient_checkpointing)
            runs[options.dataset].add((options.base_model, *switches))
    assert [len(found) for found in runs.values()] == [24, 24]
    assert {size for found in runs.values() for _, size, *_ in found} == {112, 224, 336}


def test_published_numbers_of_vpt() -> None:
    """Jia et al. 2022, the FGVC tasks on ViT-B/16 pretrained on ImageNet-21k."""
    methods = ("full", "linear", "bias", "VPT-shallow, 100 prompts", "VPT-deep, 100 prompts")
    cub = dict(zip(methods, (87.3, 85.3, 88.4, 86.7, 88.5), strict=True))
    flowers = dict(zip(methods, (98.8, 97.9, 98.8, 98.4, 99.0), strict=True))
    columns = {"CUB": cub, "Flowers": flowers}
    published = {(method, data): number for data, numbers in columns.items() for method, number in numbers.items()}
    assert read_card(FOLDER / "prompts").tables[0].published == published


def test_accuracy_at_a_rate_that_was_not_tuned_says_so() -> None:
    card = read_card(FOLDER / "prompts")
    assert all(len(variant.rates) == 1 for variant in card.grid("memory_use").variants())
    shown = [table for table in card.tables if table.view.grid == "memory_use" and table.values == ("top1",)]
    assert [table.view.where["data"] for table in shown] == [("CUB",), ("Flowers",)]
    assert all("at one learning rate that was not tuned" in table.note for table in shown)


def test_here_and_now_has_what_was_asked_for() -> None:
    """Each method on three data sets with three data seeds; those of one family choose among the same rates."""
    (grid,) = read_card(FOLDER / "here_and_now").grids
    assert (grid.data_seeds, grid.sweep) == ((0, 1, 2), "first")
    assert [entry["dataset"] for entry in grid.over["data"]] == ["CIFAR100-new20", "FashionMNIST-subset", "Digits"]
    rates: dict[str, set[tuple[float, ...]]] = {"masked": set(), "in the base": set(), "full": set()}
    runs = Counter()
    for variant in grid.variants():
        (spec,) = train_options(variant).method_specs
        runs[spec.method, spec.masking, spec.memory_tokens] += 1
        family = "full" if spec.method == "full" else "masked" if spec.combinable else "in the base"
        rates[family].add(variant.rates)
    cells = {("memory", masking, count) for masking in ("masked", "none") for count in (1, 5, 10, 20)}
    others = {(method, "masked", 0) for method in ("full", "head", "head+class", "lora")}
    assert runs == dict.fromkeys(cells | others | {("vpt-deep", "masked", 10)}, 3)
    assert [len(found) for found in rates.values()] == [1, 1, 1]
    assert all(len(found) >= 3 for (found,) in rates.values())


# ---------------------------------------------------------------------------------------------------------- smoke form
@pytest.mark.slow
@pytest.mark.parametrize("name", OF_PAPERS)
def test_smoke_form_is_legal_small_and_keeps_variants_apart(name: str, tmp_path: Path) -> None:
    card = read_card(FOLDER / name)
    if name == "fine_tuning":
        pytest.importorskip("timm")
    small = smoke_card(card, tmp_path)
    assert [variant.labels for variant in small.variants()] == [variant.labels for variant in card.variants()]
    assert repeated(small) == []
    assert (small.tables, small.figures, small.together) == (card.tables, card.figures, card.together)
    for variant in small.variants():
        options = train_options(variant)
        assert len(options.lr) <= 2 and len(options.data_seeds) <= 2
        assert (options.max_steps or 99) <= 8 and options.batch_size < 8 and (options.image_size or 32) <= 48
        assert options.precision == "float32"
        assert (tmp_path / "data" / "datasets").is_dir() and Path(options.base_model).parent == tmp_path / "bases"
        assert (Path(options.base_model) / "config.json").is_file()
