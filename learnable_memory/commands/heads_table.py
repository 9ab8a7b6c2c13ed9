"""`python -m learnable_memory heads show`: what head files are, and whether they can be put together.

Networks that cannot be put together with heads lie in the same folders: they are rows too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from learnable_memory import heads, tuned_files
from learnable_memory.commands.heads import ShowOptions
from learnable_memory.heads import HeadFile
from learnable_memory.method_spec import MethodSpec
from learnable_memory.projections import ranks_in_short
from learnable_memory.together import hash_of, reasons_against
from learnable_memory.transforms import Preprocessing
from learnable_memory.tuned_files import TunedFile
from learnable_memory.wording import printable, some

TITLES = ("file", "head", "base", "cells", "classes", "extends", "data", "split", "top-1", "pixels", "kB")
FLUSH_RIGHT = ("cells", "classes", "top-1", "kB")
LINE = 120  # characters; of a wider table these columns are cut: paths at their start, for their end tells more
CUT_AT_THE_START = ("file", "data")
CUT_AT_THE_END = ("head", "extends")
GAP = "  "
UNKNOWN = "—"
MOST_FILES = 6  # in a note
SHORT = 8  # digits of a fingerprint that are shown


def show(options: ShowOptions) -> int:
    """Print the table, or JSON; 1 if a file cannot be read."""
    files: list[HeadFile] = []
    rows: list[dict] = []
    for path in found(options.files, options.models_folder):
        try:
            here = [] if tuned_files.is_tuned(path) else heads.load_all(path)
            new = [row_of(path, file) for file in here] or [network_row(path, tuned_files.load(path))]
            described(new)  # here, since what cannot be shown is the fault of this file
        except (ValueError, OSError) as error:
            new, here = [unreadable(path, str(error))], []
        except (AttributeError, KeyError, TypeError) as error:  # JSON that others wrote can hold anything
            reason = f"{path} has metadata of other types than a head file's: {error}"
            new, here = [unreadable(path, reason)], []
        rows += new
        files += here
    damaged = [row["file"] for row in rows if "error" in row]
    files = without_copies(files)
    networks = [f"{row['head']} is a `{row['spec']['method']}` model: {row['reason']}" for row in rows if "spec" in row]
    reasons = [f"{file} cannot be read" for file in damaged] + networks + reasons_against(files)
    together = {"possible": not reasons, "reasons": reasons, "passes": passes(files)}
    if options.json:
        print(json.dumps({"heads": rows, "together": together}, indent=2))
    else:
        print("\n".join(map(printable, [*described(rows), *verdict(together, alone=len(rows) == 1)])))
    return 1 if damaged else 0


def found(names: Sequence[str], models_folder: Path) -> list[Path]:
    """The head files that are meant, each once.

    Raises FileNotFoundError for a name without a file, or a folder without head files.
    """
    paths: dict[Path, Path] = {}
    for name in names:
        if Path(name).is_dir():
            here = sorted(path for path in Path(name).iterdir() if _may_hold_heads(path))
            if not here:
                raise FileNotFoundError(f"The folder {name} has no head files: name the files themselves.")
        else:
            here = heads.find([name], models_folder)
        for path in here:
            paths.setdefault(path.resolve(), path)
    return list(paths.values())


def _may_hold_heads(path: Path) -> bool:
    """Whether a file in a folder is called as head files are, or is one; bases may lie beside them."""
    if path.name.endswith((heads.SUFFIX, heads.OLD_SUFFIX)):
        return True
    try:
        is_one = path.suffix == ".safetensors"
        return is_one and (tuned_files.is_tuned(path) or bool(heads.read_all_metadata(path)))
    except (ValueError, OSError):
        return False


def row_of(path: Path, file: HeadFile) -> dict:
    """A head as JSON has it and the table shows it; None for what its file does not say."""
    metadata = file.metadata
    return _common(path, metadata, heads.has_checksum(path, metadata)) | {
        "hash": hash_of(file),
        "memory_tokens": metadata["memory_tokens"],
        "memory_norm": metadata["memory_norm"],
        "class_token": metadata["class_token"],
        "low_rank": metadata.get("low_rank", {}),
        "extends": [parent["name"] for parent in metadata["extends"]],
    }


def network_row(path: Path, file: TunedFile) -> dict:
    """The same for a network that cannot be put together with heads, and why it cannot."""
    checked = tuned_files.has_checksum(file.metadata)
    return _common(path, file.metadata, checked) | {what: file.metadata[what] for what in ("kind", "spec", "reason")}


def _common(path: Path, metadata: Mapping, checksum: bool) -> dict:
    """What a row says of heads and networks alike."""
    score = (metadata.get("metrics") or {}).get("eval") or {}
    settings = Preprocessing.of_head(metadata)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "checksum": checksum,
        "head": metadata["name"],
        "base": metadata["base"],
        "classes": metadata["num_labels"],
        "data": (metadata.get("dataset") or {}).get("name"),
        "split": split_of(metadata),
        "top1": score.get("top1"),
        "preprocessing": settings
        and {"size": f"{settings.height}x{settings.width}", "name": settings.name, "words": settings.words},
    }


def unreadable(path: Path, error: str) -> dict:
    """What there is to say of a file that gives no heads."""
    return {"file": str(path), "bytes": path.stat().st_size, "error": error}


def split_of(metadata: Mapping) -> str | None:
    """How its images were divided: "seeded 0", "official", "unknown"; None if its data are not known either."""
    data = metadata.get("dataset")
    if not data:
        return None
    if "splits" not in data:  # of the 2023 implementation, which drew them anew in each run
        return "unknown"
    split = data.get("split", "seeded")
    return f"seeded {data['split_seed']}" if split == "seeded" else split


def without_copies(files: Sequence[HeadFile]) -> list[HeadFile]:
    """Each head once, though it may lie in several files: alone, and merged with others."""
    same = {(file.metadata["name"], file.metadata["base"]["fingerprint"], hash_of(file)): file for file in files}
    return list(same.values())


def passes(files: Sequence[HeadFile]) -> list[dict]:
    """The heads that can share a pass over an image, for their pixels are made alike."""
    groups: dict[Preprocessing | None, list[str]] = {}
    for file in files:
        groups.setdefault(Preprocessing.of_head(file.metadata), []).append(file.metadata["name"])
    return [
        {"preprocessing": settings.words if settings else "that of the base", "heads": names}
        for settings, names in groups.items()
    ]


def described(rows: Sequence[Mapping]) -> list[str]:
    """The table and what stands below it, as lines."""
    return [*table(rows), "", *notes(rows)]


def table(rows: Sequence[Mapping]) -> list[str]:
    """The rows as lines of at most `LINE` characters, under a line of titles."""
    cells = [_cells(row) for row in rows]
    for previous, row, texts in zip(rows, rows[1:], cells[1:], strict=False):
        if row["file"] == previous["file"]:
            texts["file"] = texts["kB"] = ""  # said once for all heads in it
    widths = {title: max(len(title), *(len(texts[title]) for texts in cells)) for title in TITLES}
    while sum(widths.values()) + len(GAP) * (len(TITLES) - 1) > LINE:
        widths[max(CUT_AT_THE_START + CUT_AT_THE_END, key=widths.__getitem__)] -= 1
    lines = [dict(zip(TITLES, TITLES, strict=True)), *cells]
    return [GAP.join(_fitted(title, line[title], widths[title]) for title in TITLES).rstrip() for line in lines]


def _cells(row: Mapping) -> dict[str, str]:
    """Column title -> text."""
    known = {"file": row["file"], "kB": f"{row['bytes'] / 1000:,.0f}"}
    if "error" in row:
        return dict.fromkeys(TITLES, "") | known | {"head": "unreadable"}
    settings = row["preprocessing"]
    return known | {
        "head": row["head"],
        "base": row["base"]["fingerprint"][:SHORT],
        "cells": _learned(row),
        "classes": f"{row['classes']:,}",
        "extends": ", ".join(row.get("extends", ())),
        "data": row["data"] or UNKNOWN,
        "split": row["split"] or UNKNOWN,
        "top-1": UNKNOWN if row["top1"] is None else f"{100 * row['top1']:.2f}",
        "pixels": (settings["name"] or settings["size"]) if settings else UNKNOWN,
    }


def _learned(row: Mapping) -> str:
    """What the column of cells says: their number, and the ranks if there are any; or what is learned instead."""
    if "spec" in row:
        return MethodSpec(**row["spec"]).name
    cells = str(row["memory_tokens"]) if row["class_token"] else "probe"
    return f"{cells}, rank {ranks_in_short(row['low_rank'])}" if row["low_rank"] else cells


def _fitted(title: str, text: str, width: int) -> str:
    if len(text) > width:
        text = "…" + text[1 - width :] if title in CUT_AT_THE_START else text[: width - 1] + "…"
    return text.rjust(width) if title in FLUSH_RIGHT else text.ljust(width)


def notes(rows: Sequence[Mapping]) -> list[str]:
    """Lines under the table: which bases its short fingerprints mean, which files carry no checksum, and what is wrong
    with damaged ones."""
    bases: dict[str, set[str]] = {}
    for row in rows:
        if "error" not in row:
            bases.setdefault(row["base"]["fingerprint"], set()).update(filter(None, [row["base"]["id"]]))
    lines = [
        f"base {fingerprint[:SHORT]}: {' or '.join(sorted(ids)) or 'unnamed'}" for fingerprint, ids in bases.items()
    ]
    unchecked = dict.fromkeys(row["file"] for row in rows if not row.get("checksum", True))
    if unchecked:
        lines.append(f"without a checksum, as all files of earlier formats: {some(list(unchecked), MOST_FILES)}")
    return [*lines, *(f"unreadable: {row['error']}" for row in rows if "error" in row)]


def verdict(together: Mapping, alone: bool) -> list[str]:
    """Whether the heads can be put together, and in how many passes they answer an image, in lines.

    Args:
        alone: whether nothing else was looked at, so that "they" is one.
    """
    if not together["possible"]:
        subject = "It cannot be put together with others:" if alone else "They cannot be put together:"
        return [subject, *(f"  {reason}" for reason in together["reasons"])]
    passes = together["passes"]
    if sum(len(each["heads"]) for each in passes) == 1:
        return []  # nothing to put it together with
    if len(passes) == 1:
        return ["They can be put together: one pass over an image answers all."]
    lines = [f"  {', '.join(each['heads'])}: {each['preprocessing']}" for each in passes]
    return [f"They can be put together, with {len(passes)} passes over an image, for their pixels differ:", *lines]
