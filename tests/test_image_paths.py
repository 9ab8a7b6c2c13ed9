"""What names on a command line stand for: files, folders, and patterns."""

import re

import pytest

from image_trees import write_images
from learnable_memory.image_paths import named_images


def paths(*names) -> list[str]:
    images = named_images(names)
    return [images.describe(index) for index in range(len(images))]


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """Images and other files below the working directory."""
    write_images(tmp_path, ["b.JPG", "a.jpg", "deep/er/c.png", "deep/d.jpg", ".hidden.jpg", "deep/.trash/e.jpg"])
    (tmp_path / "deep" / "notes.txt").write_text("no image\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "album.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_keep_their_order_and_folders_are_searched_in_theirs():
    assert paths("b.JPG", "a.jpg") == ["b.JPG", "a.jpg"]
    assert paths("deep") == paths("deep/") == ["deep/d.jpg", "deep/er/c.png"]
    assert paths(".") == ["a.jpg", "b.JPG", "deep/d.jpg", "deep/er/c.png"]
    assert paths("b.JPG", "deep", "a.jpg") == ["b.JPG", "deep/d.jpg", "deep/er/c.png", "a.jpg"]


def test_paths_stay_as_they_were_given(photos, monkeypatch):
    assert paths(photos / "a.jpg") == [str(photos / "a.jpg")]
    monkeypatch.setenv("HOME", str(photos))
    assert paths("~/a.jpg", "~/d*/d.*") == [str(photos / "a.jpg"), str(photos / "deep/d.jpg")]


def test_patterns_stand_for_image_files():
    assert paths("*.jpg") == ["a.jpg"]
    assert paths("*") == ["a.jpg", "b.JPG"]
    assert paths("deep/*") == ["deep/d.jpg"]
    assert paths("**/*.[jp]*g") == ["a.jpg", "deep/d.jpg", "deep/er/c.png"]


def test_an_image_that_is_meant_twice_comes_once():
    assert paths("deep/d.jpg", "./deep", "*.jpg", "a.jpg") == ["deep/d.jpg", "deep/er/c.png", "a.jpg"]


def test_what_exists_is_no_pattern(photos):
    write_images(photos, ["x[1].jpg", "x1.jpg"])
    assert paths("x[1].jpg") == ["x[1].jpg"]


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("none.jpg", FileNotFoundError, "there is no image file or folder none.jpg"),
        ("none/*.jpg", FileNotFoundError, "no image matches the pattern 'none/*.jpg' (looked for .avif, .bmp,"),
        ("deep/*.txt", FileNotFoundError, "no image matches the pattern 'deep/*.txt'"),
        ("deep/e*", FileNotFoundError, "no image matches the pattern 'deep/e*'"),
        ("deep/notes.txt", ValueError, "deep/notes.txt is no image file: it has to end in one of .avif, .bmp,"),
        ("empty", ValueError, "the folder empty has no images in or below it (looked for .avif, .bmp,"),
    ],
)
def test_names_that_stand_for_nothing(name, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        named_images(["a.jpg", name])


def test_what_is_passed_over_is_counted_and_named(photos, caplog):
    write_images(photos, ["deep/@eaDir/a.jpg/thumb.jpg", "deep/b.heic"])
    with caplog.at_level("INFO"):
        assert paths("deep") == ["deep/d.jpg", "deep/er/c.png"]
        assert paths("deep/**/*") == ["deep/d.jpg", "deep/er/c.png"]
        assert paths("deep/@eaDir/**/*.jpg") == ["deep/@eaDir/a.jpg/thumb.jpg"]  # what is asked for by name
    counts = "2 files not looked at (.heic 1, .txt 1; .heic: pip install pillow-heif)"
    assert caplog.messages == [
        f"deep: {counts}",
        "skipped what is the system's: @eaDir 1, hidden 1",
        f"deep/**/*: {counts}",
        "skipped what is the system's: @eaDir 1",
    ]
    with pytest.raises(ValueError, match=r"^deep/b.heic is no image file: .*; .heic: pip install pillow-heif$"):
        paths("deep/b.heic")
