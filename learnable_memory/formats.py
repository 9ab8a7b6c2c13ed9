"""Which files are images, by their ending: what Pillow reads, and what its plug-ins do where they are installed."""

import functools
import importlib
import importlib.util
import os

# What Pillow reads itself.
ENDINGS = {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"}
ENDINGS |= {".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
PLUGINS = {"pillow_heif": (".heic", ".heif", ".hif"), "pillow_jxl": (".jxl",)}
INSTALL = "pip install 'learnable-memory-vit[formats]'"


@functools.cache
def image_endings() -> frozenset[str]:
    """In lower case, with the dot. The plug-ins that are installed are made known to Pillow."""
    found = set(ENDINGS)
    for module, endings in PLUGINS.items():
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
    missing = sorted(endings & {ending for known in PLUGINS.values() for ending in known} - image_endings())
    return f"; {', '.join(missing)}: {INSTALL}" if missing else ""
