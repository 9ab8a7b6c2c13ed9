"""JPEG files that are far larger than what a model is shown are decoded at a smaller scale, everywhere alike."""

import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import vit_train
import vit_validation
from learnable_memory import heads
from learnable_memory.image_paths import named_images
from learnable_memory.images import EncodedImages, ImageFiles, ImageSet
from learnable_memory.loading import EpochBatches, make_loader
from learnable_memory.predict import predict
from learnable_memory.rgb import to_rgb
from learnable_memory.small_images import SmallImageLoader
from learnable_memory.transforms import VIEWS, Preprocessing
from tiny import add_random_head, tiny_model

WHOLE = Preprocessing(16, 16, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SCALED = replace(WHOLE, scaled_decoding=2)  # JPEGs keep 32 pixels of each side
ORIENTATION = 0x0112  # the EXIF tag


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Broad patches of colour and a little noise: what most of a photograph is like."""
    generator = np.random.default_rng(seed)
    patches = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + generator.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def stored(folder: Path, content: bytes, name: str = "photo.jpg") -> ImageSet:
    (folder / name).write_bytes(content)
    return ImageSet(ImageFiles(folder, [name]), np.zeros(1))


# ------------------------------------------------------------------------------------------------------------ the scale
@pytest.mark.parametrize(
    ("size", "side", "decoded"),
    [
        ((400, 300), 0, (400, 300)),
        ((400, 300), 32, (50, 38)),  # an eighth, rounded up: the smallest that the format has
        ((400, 300), 38, (100, 75)),  # an eighth would keep 37 and a half
        ((400, 300), 75, (100, 75)),
        ((400, 300), 76, (200, 150)),
        ((400, 300), 151, (400, 300)),
        ((40, 30), 32, (40, 30)),
    ],
)
def test_the_smallest_scale_that_keeps_so_many_pixels(
    tmp_path: Path, size: tuple[int, int], side: int, decoded: tuple[int, int]
) -> None:
    assert stored(tmp_path, jpeg(Image.new("RGB", size))).image(0, side).size == decoded


@pytest.mark.parametrize(
    "kind", ["grey", "CMYK", "progressive", "turned", "two pictures in a file", "restart markers", "4:4:4"]
)
def test_every_kind_of_jpeg(tmp_path: Path, kind: str) -> None:
    image, options, size = photograph(400, 300), {}, (50, 38)
    if kind in ("grey", "CMYK"):
        image = image.convert({"grey": "L", "CMYK": "CMYK"}[kind])
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION], size = 6, (38, 50)
    options |= {"progressive": {"progressive": True}, "restart markers": {"restart_marker_blocks": 4}}.get(kind, {})
    options |= {"subsampling": 0} if kind == "4:4:4" else {}
    content = jpeg(image, **options)
    if kind == "two pictures in a file":  # as telephones write them
        file = io.BytesIO()
        image.save(file, "MPO", save_all=True, append_images=[image])
        content = file.getvalue()
    images = stored(tmp_path, content)
    scaled, whole = to_rgb(images.image(0, 32)), to_rgb(images.image(0))
    assert scaled.size == size and whole.size == tuple(round(8 * side / 100) * 100 for side in size)
    same = np.asarray(whole.resize(size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(scaled) - same).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_are_decoded_whole(tmp_path: Path, kind: str) -> None:
    file = io.BytesIO()
    photograph(400, 300).save(file, kind)
    assert stored(tmp_path, file.getvalue()).image(0, 32).size == (400, 300)


@pytest.mark.parametrize("cut", [20, 200, 2000, 10_000])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_truncated_jpeg_is_broken_at_every_scale(tmp_path: Path, cut: int, options: dict) -> None:
    images = stored(tmp_path, jpeg(photograph(400, 300), **options)[:-cut])
    for side in (0, 1, 32):
        with pytest.raises(ValueError, match=r"cannot read the image .*truncated"):
            images.image(0, side)


# ---------------------------------------------------------------------------------------------------- the preprocessing
@pytest.mark.parametrize(
    ("changes", "side"),
    [({}, 32), ({"resize": (18, 20)}, 40), ({"resize": (24,)}, 48), ({"scaled_decoding": 0}, 0), ({"height": 8}, 32)],
)
def test_what_is_kept_is_twice_what_the_image_is_resized_to(changes: dict, side: int) -> None:
    preprocessing = replace(SCALED, **changes)
    assert preprocessing.decoded_side == side
    assert preprocessing.eval_transform().decoded_side == preprocessing.train_transform("flip").decoded_side == side


def test_the_scale_is_part_of_the_preprocessing_and_of_its_hash() -> None:
    assert SCALED.hash != WHOLE.hash and replace(SCALED, scaled_decoding=3).hash not in (SCALED.hash, WHOLE.hash)
    assert Preprocessing.from_dict(json.loads(json.dumps(SCALED.to_dict()))) == SCALED
    assert SCALED.to_dict() == {**WHOLE.to_dict(), "scaled_decoding": 2}
    assert SCALED.of_decoded == WHOLE and SCALED.at(32).decoded_side == 64
    assert SCALED.words == (
        "resized to 16x16 (bilinear), JPEG decoded at 2 times that or more, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    )


def test_what_says_nothing_of_it_is_decoded_whole() -> None:
    """The heads of before: their hash is what it was."""
    assert "scaled_decoding" not in WHOLE.to_dict()
    assert Preprocessing.from_dict(WHOLE.to_dict()).decoded_side == 0
    legacy = Preprocessing(224, 224, "bilinear", 1 / 255, (0, 0, 0), (1, 1, 1))
    assert legacy.name == "legacy-2023" and replace(legacy, scaled_decoding=2).name is None


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "2"])
def test_no_other_scales(wrong: object) -> None:
    with pytest.raises(ValueError, match=f"scaled_decoding is {wrong!r}; legal: 0, or a whole number above it"):
        replace(WHOLE, scaled_decoding=wrong)


# ----------------------------------------------------------------------------------------------------- in every loader
@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five JPEGs, ten times as large as the model's images."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(jpeg(photograph(240, 160 + number, number)))
    return folder


def expected(path: Path, views: str | None = None) -> torch.Tensor:
    """What the definition gives: the format's own reduction, then the transform of an image that is decoded."""
    with Image.open(path) as image:
        image.draft("RGB", (32, 32))
        image.load()
    assert image.size[0] == 60
    return (WHOLE.train_transform(views) if views else WHOLE.eval_transform())(image)


def test_a_loader_shows_what_the_definition_says(photos: Path) -> None:
    images = named_images([photos])
    ((pixel_values, _),) = make_loader(images, SCALED.eval_transform(), 5)
    for number, path in enumerate(sorted(photos.iterdir())):
        assert torch.equal(pixel_values[number], expected(path))
    ((whole, _),) = make_loader(images, WHOLE.eval_transform(), 5)
    assert not torch.equal(pixel_values, whole)
    differences = (pixel_values - whole).abs()  # on a scale from -1 to 1, in steps of 0.008
    assert differences.mean() < 0.02 and differences.max() < 0.2  # measured: 0.013 and 0.149


@pytest.mark.parametrize("views", VIEWS)
def test_training_views_are_of_the_same_pixels(photos: Path, views: str) -> None:
    class Fixed:
        """The transform of whole images, given those that the definition decodes."""

        def __call__(self, image: Image.Image) -> torch.Tensor:
            assert image.size[0] == 60
            return WHOLE.train_transform(views)(image)

        decoded_side = 32

    images = named_images([photos])
    ((ours, _),) = make_loader(images, SCALED.train_transform(views), 5, seed=3, shuffle=True)
    ((theirs, _),) = make_loader(images, Fixed(), 5, seed=3, shuffle=True)
    assert torch.equal(ours, theirs)


def test_an_image_that_was_only_opened_is_decoded_at_that_scale_too(photos: Path) -> None:
    """As the model card and the guide show it; one that is decoded already is what it is."""
    path = min(photos.iterdir())
    transform = pickle.loads(pickle.dumps(SCALED.eval_transform()))
    assert torch.equal(transform(Image.open(path)), expected(path))
    with Image.open(path) as image:
        image.load()
    assert torch.equal(transform(image), WHOLE.eval_transform()(image))


@pytest.mark.parametrize("views", [None, "flip"])
def test_small_images_in_memory_are_no_exception(views: str | None) -> None:
    """64 pixels are four times the model's: the batches that are made at once are those of the loader of all others."""
    encoded = pa.chunked_array([pa.array([jpeg(photograph(64, 64, seed)) for seed in range(6)], type=pa.binary())])
    images = ImageSet(EncodedImages(encoded, "train.parquet"), np.zeros(6))
    batches = EpochBatches(6, 6, seed=1, shuffle=True)
    ((at_once, _),) = SmallImageLoader(images, SCALED, views, batches, seed=1)
    transform = SCALED.train_transform(views) if views else SCALED.eval_transform()
    ((one_by_one, _),) = make_loader(images, transform, seed=1, batch_sampler=batches)
    assert torch.equal(at_once, one_by_one)
    ((whole, _),) = SmallImageLoader(images, WHOLE, views, batches, seed=1)
    assert not torch.equal(at_once, whole)


def test_heads_that_were_trained_on_each_answer_as_alone(photos: Path) -> None:
    model = tiny_model()
    for name in ("old", "new"):
        add_random_head(model, name, 3, 2)
    images = named_images([photos])
    together = list(predict(model, images, {WHOLE: ["old"], SCALED: ["new"]}, batch_size=2))
    for name, preprocessing in (("old", WHOLE), ("new", SCALED)):
        alone = list(predict(model, images, {preprocessing: [name]}, batch_size=2))
        assert [found.answers[name] for found in together] == [found.answers[name] for found in alone]
        other = list(predict(model, images, {SCALED if preprocessing is WHOLE else WHOLE: [name]}, batch_size=2))
        assert [found.answers[name] for found in other] != [found.answers[name] for found in alone]


# ----------------------------------------------------------------------------------------------------------- end to end
@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from command_lines import save_base

    return save_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(("flags", "scale"), [([], 2), (["--decoding", "full"], None)])
def test_a_head_is_evaluated_as_it_was_trained(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture, flags: list[str], scale: int | None
) -> None:
    for seed, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            content = jpeg(photograph(160, 120, seed=10 * seed + number))
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(content)
    quick = ["--workers", "0", "--device", "cpu", "--no_download", "--batch_size", "8"]
    argv = [*quick, "--base_model", str(base), "-d", f"folder:{tmp_path / 'photos'}", "--output", str(tmp_path), *flags]
    assert vit_train.main([*argv, "--epochs", "1", "--lr", "0.3"]) == 0
    file = tmp_path / "photos_model.safetensors"
    found = heads.load(file)
    assert found.metadata["preprocessing"].get("scaled_decoding") == scale
    assert found.metadata["training"]["decoding"] == ("scaled" if scale else "full")

    def loss() -> float:
        output = tmp_path / "results.json"
        capsys.readouterr()
        assert (
            vit_validation.main([*quick, "--models_folder", str(tmp_path), "-m", "photos", "--output", str(output)])
            == 0
        )
        return json.loads(output.read_text())["heads"][0]["loss"]

    assert loss() == pytest.approx(found.metadata["metrics"]["eval"]["loss"], abs=1e-6)
    other = Preprocessing.from_dict(found.metadata["preprocessing"])
    other = replace(other, scaled_decoding=0 if scale else 2)
    heads.save(file, found.tensors, {**found.metadata, "preprocessing": other.to_dict()})
    assert loss() != pytest.approx(found.metadata["metrics"]["eval"]["loss"], abs=1e-6)
