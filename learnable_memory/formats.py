"""Which files are images, by their ending: what Pillow reads, and what its plug-ins do where they are installed."""

import functools
import importlib
import importlib.util
import os

# What Pillow reads itself.
ENDINGS = {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"}
ENDINGS |= {".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Module of a plug-in -> what to install for it (the extra `formats` does), and what it reads.
PLUGINS = {
    "pillow_heif": ("pillow-heif", {".heic", ".heif", ".hif"}),
    "pillow_jxl": ("pillow-jxl-plugin", {".jxl"}),
}


@functools.cache
def image_endings() -> frozenset[str]:
    """In lower case, with the dot. The plug-ins that are installed are made known to Pillow."""
    found = set(ENDINGS)
    for module, (_, endings) in PLUGINS.items():
        if importlib.util.find_spec(module) is None:
            continue
        plugin = importlib.import_module(module)  # one of them is known by being imported
        if hasattr(plugin, "register_heif_opener"):
            plugin.register_heif_opener()
        found.update(endings)
    return frozenset(found)


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, with the dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def listed_endings() -> str:
    """The endings of images in words, for an error."""
    return ", ".join(sorted(image_endings()))


def advice(endings: set[str]) -> str:
    """How to read those of these endings that a plug-in reads: "; .heic: pip install .."; empty if there are none."""
    missing = {package: sorted(endings & known - image_endings()) for package, known in PLUGINS.values()}
    return "".join(f"; {', '.join(found)}: pip install {package}" for package, found in missing.items() if found)
