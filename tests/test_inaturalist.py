"""iNaturalist 2017 from tiny files in its exact layout."""

import json
from pathlib import Path

import pytest
from torchvision.datasets import inaturalist

from image_trees import labelled, names_of, pack, write_images
from learnable_memory.data import load_data_set
from learnable_memory.sources.found import Request
from learnable_memory.sources.inaturalist import read_inaturalist

SPECIES = ["Animalia/Iris", "Aves/Anas acuta", "Plantae/Acer rubrum", "Plantae/Iris"]


def images(first: int, last: int) -> list[str]:
    return [f"{species}/{index:032x}.jpg" for species in SPECIES for index in range(first, last)]


def write_list(path: Path, names: list[str]) -> None:
    """In COCO's format, as train2017.json is; last image first, category numbers in no order of ours."""
    numbers = {species: number for number, species in enumerate([*reversed(SPECIES), "Fungi/Amanita"])}
    content = {
        "info": {"year": 2017},
        "images": [
            {"id": row, "file_name": f"train_val_images/{name}", "width": 4, "height": 4}
            for row, name in reversed(list(enumerate(names)))
        ],
        "annotations": [
            {"id": row, "image_id": row, "category_id": numbers[name.rpartition("/")[0]]}
            for row, name in enumerate(names)
        ],
        "categories": [
            {"id": number, "name": species.partition("/")[2], "supercategory": species.partition("/")[0]}
            for species, number in numbers.items()
        ],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten images of each of four species, the first seven in the list to train on and two to evaluate on."""
    root = tmp_path / "datasets"
    write_images(root / "2017", images(0, 10))
    write_list(root / "train2017.json", images(0, 7))
    write_list(root / "val2017.json", images(7, 9))
    return root


def test_all_images_without_a_split_of_its_own(root: Path) -> None:
    found = read_inaturalist(Request(root.parent, download=False))
    assert labelled(found.train, root / "2017") == [(name, row // 10) for row, name in enumerate(images(0, 10))]
    assert (found.eval, found.select) == (None, None)


def test_names_are_those_of_the_species_unless_two_share_one(root: Path) -> None:
    found = read_inaturalist(Request(root.parent, download=False))
    assert found.labels == ["Animalia/Iris", "Anas acuta", "Acer rubrum", "Plantae/Iris"]


def test_a_fifth_of_each_species_is_held_out(root: Path) -> None:
    found = load_data_set("INaturalist", root.parent, download=False)
    assert sorted(found.eval.labels) == [0, 0, 1, 1, 2, 2, 3, 3]
    splits = (found.train, found.select, found.eval)
    assert sorted(name for split in splits for name in names_of(split, root / "2017")) == images(0, 10)
    assert found.source == "iNaturalist 2017, a fifth held out"


def test_seeded_split_needs_no_lists(root: Path) -> None:
    for path in root.glob("*.json"):
        path.unlink()
    assert len(load_data_set("INaturalist", root.parent, download=False).eval) == 8


def test_official_split(root: Path) -> None:
    found = load_data_set("INaturalist", root.parent, download=False, split="official")
    assert labelled(found.eval, root / "2017") == [(name, row // 2) for row, name in enumerate(images(7, 9))]
    assert sorted(names_of(found.train, root / "2017") + names_of(found.select, root / "2017")) == images(0, 7)
    assert found.labels == ["Animalia/Iris", "Anas acuta", "Acer rubrum", "Plantae/Iris"]
    assert found.source == "iNaturalist 2017, train2017.json and val2017.json"


def test_missing_list_is_told_before_the_images_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_data_set("INaturalist", tmp_path, download=True, split="official")
    assert str(caught.value) == (
        f"INaturalist: --split official needs {tmp_path / 'datasets' / 'train2017.json'} (from "
        "ml-inat-competition-datasets.s3.amazonaws.com/2017/train_val2017.zip); put it there, or take --split seeded, "
        "which needs no lists"
    )


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (
            images(10, 11)[:1],
            FileNotFoundError,
            r"val2017.json lists Animalia/Iris/0{30}0a.jpg, which is not in .*/2017",
        ),
        (["Fungi/Amanita/1.jpg"], FileNotFoundError, r"val2017.json lists Fungi/Amanita/1.jpg, which is not in"),
        (images(8, 9) * 2, ValueError, r"val2017.json lists Plantae/Iris/0{31}8.jpg twice; remove one of the two"),
        ([], ValueError, r"val2017.json lists no images"),
        (
            images(6, 9),
            ValueError,
            r"Animalia/Iris/0{31}6.jpg is in .*train2017.json and in .*val2017.json; an image belongs to one split",
        ),
    ],
)
def test_lists_that_do_not_fit(root: Path, names: list[str], error: type[Exception], message: str) -> None:
    write_list(root / "val2017.json", names)
    with pytest.raises(error, match=message) as caught:
        load_data_set("INaturalist", root.parent, download=False, split="official")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", '{"annotations": []}', '{"images": [{"id": 1}]}', '{"images": 5}'])
def test_lists_in_another_format(root: Path, content: str) -> None:
    (root / "val2017.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot read .*val2017.json .it has no list `images` of objects with a"):
        load_data_set("INaturalist", root.parent, download=False, split="official")


def test_half_a_list(root: Path) -> None:
    (root / "val2017.json").write_text((root / "val2017.json").read_text()[:100], encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot read .*val2017.json .*; delete it or replace it"):
        load_data_set("INaturalist", root.parent, download=False, split="official")


def test_species_without_images(root: Path) -> None:
    """Otherwise every class after it would have another number."""
    (root / "2017" / "Aves" / "Anas crecca").mkdir()
    with pytest.raises(ValueError, match=r"2017/Aves/Anas crecca has no images .looked for .avif"):
        load_data_set("INaturalist", root.parent, download=False)


def test_folder_without_species(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "2017").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"datasets/2017 has no folders SUPER/SPECIES/; delete it to download it"):
        load_data_set("INaturalist", tmp_path, download=False)


def test_from_its_archive(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_inaturalist(Request(root.parent, download=False))
    md5 = pack(root / "train_val_images.tar.gz", {"train_val_images": root / "2017"})
    monkeypatch.setitem(inaturalist.DATASET_MD5, "2017", md5)
    after = read_inaturalist(Request(root.parent))
    assert (after.labels, after.train.hash) == (before.labels, before.train.hash)


def test_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"INaturalist: no 2017/SUPER/SPECIES/ in .*, and downloading is off; put"
    ):
        load_data_set("INaturalist", tmp_path, download=False)
