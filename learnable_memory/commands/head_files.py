"""The subcommands of `heads` that write files or exchange them: merge, split, convert, push, fetch."""

import json
import shutil
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from learnable_memory import heads, hub
from learnable_memory.commands.chosen_heads import choose_heads
from learnable_memory.commands.heads import ConvertOptions, FetchOptions, MergeOptions, PushOptions, SplitOptions
from learnable_memory.commands.model import open_base, start_logging
from learnable_memory.files import replacing
from learnable_memory.heads import HeadFile
from learnable_memory.wording import counted, printable, some

MOST_SHOWN = 8  # entries of a list, before a push
LINE = 160  # characters of a value, then


def merge(options: MergeOptions) -> None:
    """Write the heads of several files as one file, those that are extended first; no base is needed for it."""
    _check_free([options.output], options.overwrite)
    chosen = choose_heads(options.files, options.models_folder)
    unnamed = {name: str(chosen.paths[name]) for name in chosen.files if name not in chosen.names}
    if unnamed:  # found where they usually lie, but what goes into a file is for its maker to say
        places = ", ".join(dict.fromkeys(unnamed.values()))
        raise ValueError(f"These heads extend {', '.join(unnamed)}, which was not asked for: name {places} too.")
    heads.save_all(options.output, list(chosen.files.values()))
    print(f"{options.output}: {_listed(chosen.files)}, {_kilobytes(options.output)}")


def split(options: SplitOptions) -> None:
    """Write each head of a file, or some of them, as it is into a file of its own."""
    (path,) = heads.find([options.file], options.models_folder)
    files = {file.metadata["name"]: file for file in heads.load_all(path)}
    unknown = [name for name in options.heads or () if name not in files]
    if unknown:
        raise ValueError(f"{path} has no head {', '.join(unknown)}. It has: {', '.join(files)}.")
    kept = {name: file for name, file in files.items() if options.heads is None or name in options.heads}
    folder = options.output or path.parent
    targets = {name: folder / heads.file_name(name) for name in kept}
    _check_free(targets.values(), options.overwrite)
    for name, file in kept.items():
        heads.save(targets[name], file.tensors, file.metadata)
        print(f"{targets[name]}: {name}, {_kilobytes(targets[name])}")
    _say_what_is_needed(list(kept.values()), folder)


def convert(options: ConvertOptions) -> None:
    """Write the heads of a file of the 2023 implementation as a head file."""
    start_logging()
    _check_free([options.new], options.overwrite)
    files = heads.read_old(options.old, options.names)
    if options.base_model:
        files = _on_base(files, options.base_model, options)
    if len(files) == 1:
        heads.save(options.new, files[0].tensors, files[0].metadata)
    else:
        heads.save_all(options.new, files)
    for file in files:
        print(_description(file.metadata))
    base = files[0].metadata["base"]
    compared = "the same in the file" if options.base_model else "not compared: name it with --base_model"
    print(f"base: {base['id'] or 'unnamed'} ({base['fingerprint'][:8]}), {compared}")
    print(f"written to {options.new}, {_kilobytes(options.new)}")


def push(options: PushOptions) -> None:
    """Show what a head file says of itself, publish it with a model card, and print where."""
    start_logging()
    (path,) = heads.find([options.file], options.models_folder)
    for metadata in hub.published(path):
        print("\n".join(map(printable, said_by(metadata))), flush=True)
    url = hub.push_to_hub(
        path, options.repo,
        private=True if options.private else None,  # else as the owner's account has it
        license=options.license, revision=options.revision, commit_message=options.commit_message,
        create_pr=options.create_pr, overwrite_card=options.overwrite_card,
    )  # fmt: skip
    print(url)


def said_by(metadata: Mapping) -> list[str]:
    """All that the metadata of a head says, a line for each key; of long lists the first entries."""
    lines = [f"{metadata['name']}, to be published with its metadata:"]
    for key, value in metadata.items():
        pairs = value.items() if isinstance(value, dict) and value else [("", value)]
        lines += [f"  {key}{'.' if inner else ''}{inner}: {_shortened(each)}" for inner, each in pairs]
    return lines


def _shortened(value: object) -> str:
    listed = some(value, MOST_SHOWN) if isinstance(value, list) else json.dumps(value, ensure_ascii=False)
    return textwrap.shorten(listed, LINE, placeholder=" ...") or "-"


def fetch(options: FetchOptions) -> None:
    """Copy a published head file to where heads are found by name."""
    start_logging()
    source = hub.from_hub(options.repo, filename=options.filename, revision=options.revision)
    files = heads.load_all(source)
    # A file of several heads goes by its own name; so does an old one, whose name says what its head is called.
    single = len(files) == 1 and source.suffix == ".safetensors"
    target = options.output / (heads.file_name(files[0].metadata["name"]) if single else source.name)
    _check_free([target], options.overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as unfinished:
        shutil.copyfile(source, unfinished)
    print(f"{target}: {_listed([file.metadata['name'] for file in files])}, {_kilobytes(target)}")
    _say_what_is_needed(files, options.output)


def _on_base(files: Sequence[HeadFile], base_model: str, options: ConvertOptions) -> list[HeadFile]:
    """The heads as heads of this base. Raises ValueError if it is not the one whose tensors the old file holds."""
    model, _ = open_base(base_model, options.base_cache, not options.no_download, sized=False, own_pixels=False)
    size = model.base_width, model.base_layers, model.base_mlp_width
    for file in files:
        heads.check_base(file.metadata, model.fingerprint, *size, where=str(options.old))
    base = {"id": model.base_id, "fingerprint": model.fingerprint}
    return [HeadFile(file.tensors, {**file.metadata, "base": base}) for file in files]


def _description(metadata: Mapping) -> str:
    """A head in a line, with what its file does not say."""
    extends = ", ".join(parent["name"] for parent in metadata["extends"])
    known = {"labels": "labels" in metadata, "split": "splits" in metadata.get("dataset", {})}
    known["accuracy"] = "metrics" in metadata
    unknown = ", ".join(what for what, is_known in known.items() if not is_known)
    parts = [
        counted(metadata["num_labels"], "class", "classes"),
        counted(metadata["memory_tokens"], "cell"),
        f"extends {extends}" if extends else "",
        f"unknown: {unknown}" if unknown else "",
    ]
    return f"{metadata['name']}: {', '.join(filter(None, parts))}"


def _say_what_is_needed(files: Sequence[HeadFile], folder: Path) -> None:
    """A line for each head that another one among these extends, and that is neither among them nor in the folder."""
    present = {file.metadata["name"] for file in files}
    for file in files:
        for parent in file.metadata["extends"]:
            name = parent["name"]
            places = [folder / heads.file_name(name, suffix) for suffix in (heads.SUFFIX, heads.OLD_SUFFIX)]
            if name not in present and not any(place.is_file() for place in places):
                print(f"{file.metadata['name']} extends {name}: it needs {heads.file_name(name)}, which is not here")


def _check_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise FileExistsError, before anything is read or written, if a file would be replaced."""
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        verb = "exists" if len(existing) == 1 else "exist"
        raise FileExistsError(f"{', '.join(existing)} {verb}: choose another place, or replace with --overwrite.")


def _listed(names: Collection[str]) -> str:
    return f"{counted(len(names), 'head')} ({', '.join(names)})"


def _kilobytes(path: Path) -> str:
    return f"{path.stat().st_size / 1000:,.0f} kB"
