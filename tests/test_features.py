"""The cache of the base's tokens: the same heads from it, and never numbers of something else."""

import contextlib
import dataclasses
import functools
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from command_lines import train as train_command
from feature_caches import COUNT, a_cache, batches_of, built
from learnable_memory import features
from learnable_memory.features import CachedLoader, Contents, FeatureCache, contents_of, describe, expected_gain
from learnable_memory.images import ArrayImages, ImageFiles, ImageSet
from learnable_memory.loading import EpochBatches, make_loader
from learnable_memory.optim import Recipe
from learnable_memory.train import train
from tiny import tiny_model
from toy_training import PREPROCESSING
from toy_training import colours as picture_set
from vit import BaseTokens

FORM_DTYPES = [(form, dtype) for form in features.FORMS for dtype in ("float32", "bfloat16", "float16")]


def small_shards(monkeypatch, cache, images=4):
    """Later caches like this one have shards of so many images."""
    monkeypatch.setattr(features, "SHARD_BYTES", images * cache.record_bytes + 1)


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.bin")}


EXAMPLE = Contents("f" * 64, "float32", "i" * 16, "p" * 16, "crop_flip", 0, "keys_values", "float32", 3, 4, 17, 32, 32)
VIT_B32 = {"layers": 12, "heads": 12, "tokens": 50, "width": 768}


# ------------------------------------------------------------------------------------------------------------ training
def heads_after_training(source, views=1, folder=None, form="keys_values", dtype="float32"):
    """The tensors of two heads with memory and a linear probe after three epochs; `source`: none, memory or disk."""
    model, pictures, select = tiny_model(), picture_set(COUNT), picture_set(9, seed=1)
    for name, memory_tokens, class_token in (("A", 2, True), ("B", 3, True), ("probe", 0, False)):
        generator = torch.Generator().manual_seed(memory_tokens)
        model.add_head(name, 3, memory_tokens, class_token=class_token, generator=generator)
    loaders = []
    for image_set, kind, count in ((pictures, "crop_flip", views), (select, None, 1)):
        batches = EpochBatches(len(image_set), 5, 0, shuffle=kind is not None, views=count)
        if source == "none":
            transform = PREPROCESSING.train_transform(kind) if kind else PREPROCESSING.eval_transform()
            loaders.append(make_loader(image_set, transform, batch_sampler=batches))
        else:
            cache = built(model, image_set, count, folder, kind, form=form, dtype=dtype)
            loaders.append(CachedLoader(cache, image_set, batches, BaseTokens, torch.float32))
    train(model, ["A", "B", "probe"], *loaders, Recipe(3, 0.05), progress=False)
    return dict(model.heads.state_dict())


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max((found[name] - value).abs().max().item() for name, value in expected.items())


@functools.cache
def heads_from_pixels(views=1):
    return heads_after_training("none", views)


@pytest.mark.parametrize(("source", "views"), [("memory", 1), ("disk", 2)])
def test_a_head_trained_from_the_cache_is_bit_for_bit_the_one_trained_from_pixels(source, views, tmp_path):
    folder = tmp_path if source == "disk" else None
    found, expected = heads_after_training(source, views, folder), heads_from_pixels(views)
    assert len(expected) == 2 * (1 + 3 + 2) + 2
    assert {name for name, value in expected.items() if not torch.equal(found[name], value)} == set()
    if views == 2:  # and the second view is another one
        assert largest_difference(expected, heads_from_pixels()) > 1e-4


@pytest.mark.parametrize(
    ("form", "dtype", "bound"),
    [
        ("tokens", "float32", 1e-5),
        ("keys_values", "bfloat16", 2e-3),
        # Measured 2.6e-8 for float32, 3.2e-4 for bfloat16 and 4.6e-5 for float16, in both forms; the bounds leave a
        # factor of six for other processors. bfloat16 keeps 8 bits of a number and float16 11: eight times as exact.
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("tokens", "bfloat16", 2e-3), ("tokens", "float16", 3e-4), ("keys_values", "float16", 3e-4))
        ),
    ],
)
def test_a_head_trained_from_fewer_bits_is_close(form, dtype, bound):
    found = heads_after_training("memory", form=form, dtype=dtype)
    error = largest_difference(found, heads_from_pixels())
    assert error < bound, error
    assert error > 0 or dtype == "float32"  # fewer bits leave a trace, another order of the sums need not


# ------------------------------------------------------------------------------------------------------------- building
def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, monkeypatch):
    model, pictures = tiny_model(), picture_set(COUNT)
    small_shards(monkeypatch, a_cache(model, pictures))
    asked = []

    def counting(stop_after):
        def batches(keys):
            for number, (batch, made) in enumerate(zip(keys, batches_of(pictures)(keys), strict=True)):
                if number == stop_after:
                    raise KeyboardInterrupt
                asked.extend(batch)
                yield made

        return batches

    broken = a_cache(model, pictures, views=2, folder=tmp_path / "a")
    assert len(broken.missing()) == 2 * 6
    with pytest.raises(KeyboardInterrupt):
        broken.build(model, counting(5), 3)  # a shard of 4 images is 2 batches: two whole ones, and half of the third
    assert len(asked) == 4 + 4 + 3 and len(shards(tmp_path / "a")) == 2
    assert not list(tmp_path.rglob("*.unfinished"))

    asked.clear()
    again = a_cache(model, pictures, views=2, folder=tmp_path / "a")
    again.build(model, counting(None), 3)
    assert len(asked) == 2 * COUNT - 2 * 4 and len(set(asked)) == len(asked)
    built(model, pictures, views=2, folder=tmp_path / "b")
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    asked.clear()
    again.build(model, counting(0), 3)  # nothing is left
    assert asked == []


def test_the_parts_of_two_processes_make_one_cache(tmp_path, monkeypatch):
    """Each sees an empty cache, as after the barrier before a build; so each has a folder of its own here."""
    model, pictures = tiny_model(), picture_set(COUNT)
    small_shards(monkeypatch, a_cache(model, pictures))
    parts = []
    for process in range(2):
        cache = a_cache(model, pictures, views=2, folder=tmp_path / str(process))
        cache.build(model, batches_of(pictures), 5, process, 2)
        parts.append(shards(tmp_path / str(process)))
    built(model, pictures, views=2, folder=tmp_path / "one")
    assert not parts[0].keys() & parts[1].keys() and len(parts[0]) == len(parts[1]) == 6
    assert parts[0] | parts[1] == shards(tmp_path / "one")


def test_a_process_that_looks_late_still_builds_its_own_part(tmp_path, monkeypatch):
    """Its part must not depend on what the others have written since the barrier."""
    model, pictures = tiny_model(), picture_set(COUNT)
    small_shards(monkeypatch, a_cache(model, pictures))
    for process in range(2):
        cache = a_cache(model, pictures, folder=tmp_path)
        cache.build(model, batches_of(pictures), 5, process, 2)
    assert cache.missing() == []


def test_a_failed_write_is_an_error_and_leaves_no_shard(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def full(path):
        from learnable_memory.files import replacing

        with replacing(path) as unfinished:
            yield unfinished
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "replacing", full)
    model, pictures = tiny_model(), picture_set(6)
    cache = a_cache(model, pictures, folder=tmp_path)
    with pytest.raises(OSError, match="No space left"):
        cache.build(model, batches_of(pictures), 5)
    assert cache.missing() == [(0, 0)]
    assert [path.name for path in cache.folder.iterdir()] == ["manifest.json"]


# ------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Contents)] + ["count"])
def test_a_folder_of_something_else_is_refused_by_the_name_of_what_differs(field, tmp_path):
    model, pictures = tiny_model(), picture_set(6)
    path = built(model, pictures, folder=tmp_path).folder / "manifest.json"
    record = json.loads(path.read_text())
    assert field in record
    record[field] = record[field] + 1 if isinstance(record[field], int) else "other"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"is a cache of something else: it differs in {field}\\. Delete the folder"):
        a_cache(model, pictures, folder=tmp_path)


@pytest.mark.parametrize("text", ["", '{"form": "tok', "\x00"])
def test_a_damaged_manifest_is_refused(text, tmp_path):
    model, pictures = tiny_model(), picture_set(6)
    path = built(model, pictures, folder=tmp_path).folder / "manifest.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*: delete the folder"):
        a_cache(model, pictures, folder=tmp_path)


@pytest.mark.parametrize("change", [-4, 4])
def test_a_shard_of_another_size_is_refused(change, tmp_path):
    model, pictures = tiny_model(), picture_set(6)
    cache = built(model, pictures, folder=tmp_path)
    (path,) = cache.folder.glob("*.bin")
    size = path.stat().st_size
    os.truncate(path, size + change)
    with pytest.raises(ValueError, match=f"has {size + change} bytes instead of {size}: delete it"):
        a_cache(model, pictures, folder=tmp_path).missing()


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="The form of a cache is 'values'; legal: keys_values, tokens"):
        a_cache(tiny_model(), picture_set(6), form="values")


def test_everything_that_changes_the_numbers_changes_the_folder():
    def name(model=None, image_set=None, preprocessing="p", views="crop_flip", seed=0, form="tokens", dtype="float32"):
        model, image_set = model or tiny_model(), image_set or picture_set(6)
        return contents_of(model, image_set, preprocessing, views, seed, form, dtype).hash

    others = [
        name(), name(tiny_model(seed=1)), name(tiny_model().to(torch.bfloat16)), name(image_set=picture_set(7)),
        name(image_set=picture_set(6, seed=1)), name(preprocessing="q"), name(views="flip"), name(views=None),
        name(seed=1), name(form="keys_values"), name(dtype="bfloat16"),
    ]  # fmt: skip
    assert len(set(others)) == len(others) and name() == others[0]
    assert name(views=None, seed=1) == name(views=None)  # nothing is drawn for it: runs of all seeds share it


def test_another_image_changes_what_a_cache_is_of(tmp_path):
    pixels = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    changed = pixels.copy()
    changed[1, 2, 3, 0] = 1
    first, second = (ImageSet(ArrayImages(each, "x"), np.arange(3)) for each in (pixels, changed))
    assert first.hash == second.hash and first.content_hash != second.content_hash
    assert first.subset([0, 2]).content_hash == second.subset([0, 2]).content_hash  # not of this part

    path = tmp_path / "a.png"
    Image.fromarray(pixels[0]).save(path)
    files = ImageSet(ImageFiles(tmp_path, [path.name]), np.zeros(1))
    seen, status = [files.content_hash], path.stat()
    assert files.content_hash == seen[0]
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.append(files.content_hash)
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    seen.append(files.content_hash)
    assert len(set(seen)) == 3


# ------------------------------------------------------------------------------------------------------ size and gain
@pytest.mark.parametrize(("form", "dtype"), FORM_DTYPES)
def test_the_size_that_is_said_is_the_size_on_disk(form, dtype, tmp_path):
    cache = built(tiny_model(), picture_set(COUNT), views=2, folder=tmp_path, form=form, dtype=dtype)
    assert cache.bytes == sum(map(len, shards(tmp_path).values()))
    of_an_image = 3 * 17 * 32 * (1 if form == "tokens" else 2) + 32
    assert cache.bytes == 2 * COUNT * of_an_image * (4 if dtype == "float32" else 2)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_too_little_room_is_said_before_anything_is_computed(place, tmp_path, monkeypatch):
    cache = a_cache(tiny_model(), picture_set(COUNT), folder=tmp_path / "new" if place == "disk" else None)
    free = cache.bytes

    class Usage:
        @property
        def free(self):
            return free

    monkeypatch.setattr(features, "available_memory", lambda: free if place == "memory" else 0)
    monkeypatch.setattr(features.psutil, "disk_usage", lambda path: Usage() if path == tmp_path else None)
    needed = f"{cache.bytes / 1e6:.1f} MB"
    with pytest.raises(ValueError, match=re.escape(f"The cache needs {needed}, but ")) as caught:
        cache.check_room()  # the system needs some of the last 5 %
    assert f"has {needed} free: choose " in str(caught.value) and place in str(caught.value)
    assert ("--cache disk" in str(caught.value)) == (place == "memory")
    free = int(cache.bytes / 0.95) + 1
    cache.check_room()


def test_what_is_there_already_needs_no_room(tmp_path, monkeypatch):
    cache = built(tiny_model(), picture_set(6), folder=tmp_path)
    monkeypatch.setattr(features.psutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    cache.check_room()


@pytest.mark.parametrize(("form", "dtype", "gigabytes"), [("keys_values", "float32", 184), ("tokens", "bfloat16", 46)])
def test_cifar100_on_vit_b32_is_as_large_as_said(form, dtype, gigabytes):
    contents = dataclasses.replace(EXAMPLE, **VIT_B32, form=form, dtype=dtype)
    cache = FeatureCache(contents, 50_000)
    assert cache.bytes == pytest.approx(gigabytes * 1e9, rel=0.01)
    said = describe(cache, 1, 10)
    assert f"{gigabytes}." in said or f"{gigabytes - 1}." in said
    for word in ("50,000 images", "GB", form, dtype, "in memory", f"{expected_gain(contents, 1):.1f} times faster"):
        assert word in said


@pytest.mark.parametrize("form", features.FORMS)
def test_there_is_less_to_gain_with_more_heads(form):
    contents = dataclasses.replace(EXAMPLE, **VIT_B32, form=form)
    gains = [expected_gain(contents, heads) for heads in (1, 2, 5, 10, 100)]
    assert gains == sorted(gains, reverse=True) and len(set(gains)) == 5 and gains[0] > 10
    if form == "keys_values":  # a class token asks the same of them however they were made
        assert gains[-1] > 1


# -------------------------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("form", features.FORMS)
def test_batches_are_those_of_the_pixels_in_their_order(form):
    model, pictures = tiny_model(), picture_set(COUNT)
    cache = built(model, pictures, views=2, form=form)

    def loaders():
        for kind in (make_loader, CachedLoader):
            batches = EpochBatches(COUNT, 5, 3, shuffle=True, views=2)
            if kind is make_loader:
                yield make_loader(pictures, PREPROCESSING.train_transform("crop_flip"), batch_sampler=batches)
            else:
                yield CachedLoader(cache, pictures, batches, BaseTokens)

    pixels, cached = loaders()
    assert len(cached) == len(pixels) == 5
    for epoch, start in ((0, 0), (1, 0), (2, 3)):
        for loader in (pixels, cached):
            loader.batch_sampler.set_epoch(epoch, start)
        sizes = []
        for (images, labels), (tokens, ours) in zip(pixels, cached, strict=True):
            expected = model.base_tokens(images, form == "keys_values")
            assert torch.equal(labels, ours) and ours.dtype == torch.int64
            # Not equal: a batch of other images was computed together.
            torch.testing.assert_close(tokens.layers, expected.layers, rtol=0, atol=1e-4)
            torch.testing.assert_close(tokens.output, expected.output, rtol=0, atol=1e-4)
            assert tokens.layers.is_contiguous()
            sizes.append(len(ours))
        assert sizes == [5, 5, 5, 5, 2][start:]


def test_a_batch_is_overwritten_once_the_next_has_been_asked_for():
    pictures = picture_set(20)
    loader = CachedLoader(built(tiny_model(), pictures), pictures, EpochBatches(20, 5), BaseTokens)
    passing = iter(loader)
    first = next(passing)[0].layers
    kept = first.clone()
    second = next(passing)[0].layers
    assert second.data_ptr() != first.data_ptr()
    third = next(passing)[0].layers
    assert third.data_ptr() == first.data_ptr() and not torch.equal(first, kept)
    assert [len(labels) for _, labels in passing] == [5]


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_a_loader_gives_the_dtype_that_it_is_asked_for(stored):
    pictures = picture_set(6)
    cache = built(tiny_model(), pictures, dtype=stored)
    ((short, _),) = CachedLoader(cache, pictures, EpochBatches(6, 6), BaseTokens)
    ((long, _),) = CachedLoader(cache, pictures, EpochBatches(6, 6), BaseTokens, torch.float32)
    assert short.layers.dtype == short.output.dtype == getattr(torch, stored)
    assert long.layers.dtype == long.output.dtype == torch.float32
    assert torch.equal(short.layers.float(), long.layers) and torch.equal(short.output.float(), long.output)


# --------------------------------------------------------------------------------------------------------- command line
def tensors_of(folder):
    from learnable_memory import heads

    return heads.load(folder / "A_model.safetensors").tensors


@pytest.mark.slow
def test_a_command_with_a_cache_leaves_the_same_head(base, colours, tmp_path):
    flags = ["-d", f"folder:{colours}", "--name", "A", "--epochs", "2", "-m", "2", "--lr", "0.1"]
    disk = ["--cache", "disk", "--cache_folder", str(tmp_path / "cache")]
    train_command(base, tmp_path / "none", *flags, "--views", "1")
    train_command(base, tmp_path / "memory", *flags, "--cache", "memory")
    train_command(base, tmp_path / "disk", *flags, *disk)
    expected = tensors_of(tmp_path / "none")
    for place in ("memory", "disk"):
        found = tensors_of(tmp_path / place)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())

    files = sorted((tmp_path / "cache").rglob("*.bin"))
    before = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 2  # train and select
    train_command(base, tmp_path / "disk", *flags, *disk, "--max_steps", "1", "--overwrite")
    assert sorted((tmp_path / "cache").rglob("*.bin")) == files
    assert [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.slow
def test_no_views_is_the_evaluation_view(base, colours, tmp_path):
    flags = ["-d", f"folder:{colours}", "--name", "A", "--max_steps", "2", "--lr", "0.1", "--cache", "disk"]
    cache = ["--cache_folder", str(tmp_path / "cache")]
    train_command(base, tmp_path / "0", *flags, *cache, "--views", "0")
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("manifest.json")]
    assert [manifest["views"] for manifest in manifests] == [None, None]
    train_command(base, tmp_path / "1", *flags, *cache, "--views", "1")
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("manifest.json")]
    assert sum(manifest["views"] is not None for manifest in manifests) == 1 and len(manifests) == 3
    first, second = tensors_of(tmp_path / "0"), tensors_of(tmp_path / "1")
    assert any(not torch.equal(first[name], value) for name, value in second.items())
