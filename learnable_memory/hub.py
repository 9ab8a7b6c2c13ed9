"""Heads on the HuggingFace hub: a repository holds a head file and the card that was made from it (model_card.py).

A folder stands for a repository wherever one is named, so that what would be published can be looked at first.
"""

import contextlib
import errno
import logging
import os
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learnable_memory import heads
from learnable_memory.bases import NETWORK_TIMEOUT, SHIPPED_BASE
from learnable_memory.files import replacing
from learnable_memory.model_card import base_on_the_hub, is_generated, model_card
from learnable_memory.public_names import public_metadata
from learnable_memory.together import hash_of
from learnable_memory.wording import some

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

CARD = "README.md"
NEW, OLD = ".safetensors", ".pt"  # endings of head files
MOST_NAMES = 20  # of files, in an error
OUR_FAULTS = (AttributeError, NameError, TypeError)  # which are no answers of a network
OUR_DISK = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)
LOG_IN = "log in with `hf auth login`, or give a token"


# -------------------------------------------------------------------------------------------------------------- publish
def push_to_hub(
    path: str | os.PathLike, repo_id: str, *, private: bool | None = None, token: str | None = None,
    license: str | None = None, revision: str | None = None, commit_message: str | None = None,
    create_pr: bool = False, overwrite_card: bool = False,
) -> str:  # fmt: skip
    """Publish a head file and its card, in one commit.

    The head file is called `{name}_model.safetensors` there; of several heads in one file, none of which is built on
    the others, it keeps its name. A file of the 2023 implementation is converted, for a pickle is never uploaded, and
    so is one of an earlier format: what is published has a checksum, and no paths of the machine. `published` tells
    what it says.

    A README.md that is there already is replaced if it is, unchanged, what an earlier push made of this file; then a
    licence in it stays unless another is given. Any other is kept, with a warning.

    Args:
        path: the head file. Heads that it extends have to be in it.
        repo_id: OWNER/NAME on the hub, made if it is not there; or a folder that exists, for which only `license` and
            `overwrite_card` mean something.
        private: who may see it; None: the hub's default, or what it is.
        token: the one that `hf auth login` stored, if left out.
        license: for the card; an identifier of the hub, such as "apache-2.0".
        revision: a branch, made if it is not there; main if left out.
        commit_message: "Upload" and the file's name if left out.
        create_pr: propose it instead, as a pull request.
        overwrite_card: replace a README.md whatever it is.

    Returns:
        The URL of the commit, of the pull request, or of the folder.

    Raises:
        FileNotFoundError: no such head file.
        ValueError: it is not a head file or lacks a head that it extends, `repo_id` is no legal name, what was asked
            for does not go with the repository, or the hub refuses it.
        ConnectionError: the hub cannot be reached or is out of order.
    """
    upload = _Upload.read(Path(path))
    for base in _bases_of_others(upload.metadata):
        logger.warning("%s names a base that others cannot fetch by that name, %s.", path, base)
    folder = Path(repo_id).expanduser()
    if folder.is_dir():
        if private is not None or revision or commit_message or create_pr:
            raise ValueError(f"{repo_id} is a folder: leave private, revision, commit message and pull request out.")
        there = folder / CARD
        old = there.read_text(encoding="utf-8", errors="replace") if there.is_file() else None
        for name, content in upload.contents(old, repo_id, None, license, overwrite_card).items():
            with replacing(folder / name) as unfinished:
                unfinished.write_bytes(content)
        return folder.resolve().as_uri()

    from huggingface_hub import CommitOperationAdd, HfApi

    _check_repo_id(repo_id)
    api = HfApi(token=token)
    with _one_line_errors(repo_id):
        info = _open_repository(api, repo_id, private, revision)
        old = _card_there(api, repo_id, info)
    if private is not None and bool(info.private) != private:
        now = "private" if info.private else "public"
        raise ValueError(f"{repo_id} is there already, and {now}: change that in its settings, or leave private out.")
    fetched_as = f"{repo_id}@{revision}" if revision and not create_pr else repo_id
    contents = upload.contents(old, repo_id, fetched_as, license, overwrite_card)
    with _one_line_errors(repo_id):
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=commit_message or f"Upload {upload.name}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,  # the card that was looked at is the one that is replaced
        )
    return commit.pr_url or commit.commit_url


@dataclass(frozen=True)
class _Upload:
    """What is uploaded: `content` is a safetensors file called `name`, with one metadata for each head in it."""

    name: str
    content: bytes
    metadata: list[dict]

    @classmethod
    def read(cls, path: Path) -> "_Upload":
        found = heads.load_all(path)
        _check_parents(found, path)
        metadata = [file.metadata for file in found]
        extended = {parent["name"] for each in metadata for parent in each["extends"]}
        answering = [each["name"] for each in metadata if each["name"] not in extended]
        head = answering[0] if len(answering) == 1 else path.stem.removesuffix("_model")
        public = [heads.HeadFile(file.tensors, public_metadata(heads.current(file.metadata))) for file in found]
        if path.suffix == NEW and [file.metadata for file in public] == metadata:
            return cls(heads.file_name(head), path.read_bytes(), metadata)
        with tempfile.TemporaryDirectory() as folder:
            converted = Path(folder) / heads.file_name(head)
            if len(public) == 1:
                heads.save(converted, public[0].tensors, public[0].metadata)
            else:
                heads.save_all(converted, public)
            return cls(converted.name, converted.read_bytes(), [file.metadata for file in public])

    def contents(
        self, old: str | None, where: str, fetched_as: str | None, license: str | None, overwrite_card: bool
    ) -> dict[str, bytes]:
        """Name -> content of the files to write, where the card that is there already is `old`.

        `fetched_as` is what the usage lines of the card give to `from_hub`.
        """
        from huggingface_hub import ModelCard

        generated = old is not None and is_generated(old, self.name)
        if old is not None and not generated and not overwrite_card:
            logger.warning(
                "%s has a %s that was not made from %s, or was edited since: it is kept (overwrite_card replaces it).",
                where, CARD, self.name,
            )  # fmt: skip
            return {self.name: self.content}
        if old is not None and generated:
            license = license or ModelCard(old).data.get("license")
        card = model_card(*self.metadata, license=license, repo_id=fetched_as, filename=self.name)
        return {self.name: self.content, CARD: str(card).encode()}


def _check_parents(found: Sequence[heads.HeadFile], path: Path) -> None:
    """Raise ValueError unless each head that is extended is in the file too, as it was then."""
    there = {file.metadata["name"]: hash_of(file) for file in found}
    for file in found:
        for parent in file.metadata["extends"]:
            if there.get(parent["name"]) != parent["hash"]:
                what = "another one of that name is" if parent["name"] in there else "which is not"
                raise ValueError(
                    f"{path}: {file.metadata['name']} extends the head {parent['name']}, {what} in the file: put both "
                    "into one with `python -m learnable_memory heads merge`, and publish that."
                )


def published(path: str | os.PathLike) -> list[dict]:
    """What the header of each head says in the file that `push_to_hub` would publish. Raises as that does."""
    return _Upload.read(Path(path)).metadata


def _bases_of_others(metadata: Sequence[dict]) -> list[str]:
    """The bases by whose names nobody else finds them."""
    bases = dict.fromkeys(head["base"]["id"] for head in metadata)
    return [base for base in bases if base and base != SHIPPED_BASE and not base_on_the_hub(base)]


def _open_repository(api: "HfApi", repo_id: str, private: bool | None, revision: str | None) -> "ModelInfo":
    """What the hub says of a repository; it, and the branch, are made if they are not there."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return api.model_info(repo_id, revision=revision, timeout=NETWORK_TIMEOUT)
    except RevisionNotFoundError:
        pass
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.model_info(repo_id, revision=revision, timeout=NETWORK_TIMEOUT)


def _card_there(api: "HfApi", repo_id: str, info: "ModelInfo") -> str | None:
    if CARD not in _files_of(info):
        return None
    place = api.hf_hub_download(repo_id, CARD, revision=info.sha)
    return Path(place).read_text(encoding="utf-8", errors="replace")


# ---------------------------------------------------------------------------------------------------------------- fetch
def from_hub(
    repo_id: str, *, filename: str | None = None, revision: str | None = None,
    cache_dir: str | os.PathLike | None = None, token: str | None = None, download: bool = True,
) -> Path:  # fmt: skip
    """The head file of a repository, for `load_head` and `load_heads`; it stays in the cache and is not to be changed.

    One request asks which files there are now; a file that is in the cache as it is there is not fetched again. Where
    the hub does not answer, the cache does, which is said.

    Args:
        repo_id: OWNER/NAME or OWNER/NAME@REVISION on the hub; or a folder.
        filename: which head file, if there are several.
        revision: a branch, a tag or a commit; main if left out.
        cache_dir: a HuggingFace cache; HuggingFace's own if left out.
        token: for a private or gated repository; the one that `hf auth login` stored, if left out.
        download: False: take what is in the cache, and ask nobody.

    Returns:
        A safetensors file, or a `.pt` of the 2023 implementation where there is no safetensors file of that name.

    Raises:
        FileNotFoundError: no such repository, revision or file; it is private or gated; or the hub cannot be reached
            and it is not in the cache.
        ValueError: several head files and none named, two revisions, or `repo_id` is no legal name.
        ConnectionError: the hub stops answering while the file is fetched.
        OSError: what came is another file than the hub says.
    """
    folder = Path(repo_id).expanduser()
    if folder.is_dir():
        if revision:
            raise ValueError(f"{repo_id} is a folder, which has no revision {revision}: leave it out.")
        return folder / _chosen(_files_in(folder), filename, repo_id)

    from huggingface_hub import HfApi

    repo_id, revision = _split_revision(repo_id, revision)
    _check_repo_id(repo_id)
    api, silence = HfApi(token=token), "downloading is off"
    cache = None if cache_dir is None else Path(cache_dir)
    if download:
        try:
            info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=NETWORK_TIMEOUT)
        except Exception as error:  # the hub's network library, and its errors, differ from version to version
            refusal = _refusal(error, repo_id)
            if refusal:
                raise refusal from error
            silence = f"the hub does not answer ({_said(error)})"
        else:
            name = _chosen(_files_of(info), filename, repo_id)
            with _one_line_errors(repo_id):
                path = Path(api.hf_hub_download(repo_id, name, revision=revision, cache_dir=cache))
            _check_sum(path, name, info)
            return path
    found = _cached(api, repo_id, filename, revision, cache, silence)
    if download:
        logger.warning("%s: %s; %s is taken from the cache.", repo_id, silence, found.name)
    return found


def _check_sum(path: Path, name: str, info: "ModelInfo") -> None:
    """Take a file out of the cache and raise OSError if it has another SHA-256 than the hub says, where it says one."""
    from huggingface_hub.utils.sha import sha_fileobj

    expected = next((file.lfs.sha256 for file in info.siblings or () if file.rfilename == name and file.lfs), None)
    if expected is None:
        return
    with path.open("rb") as content:
        found = sha_fileobj(content).hex()
    if found != expected:
        path.resolve().unlink()
        raise OSError(f"{name} of {info.id} came with the SHA-256 {found}, expected {expected}: fetch it again.")


def _cached(
    api: "HfApi", repo_id: str, filename: str | None, revision: str | None, cache_dir: Path | None, silence: str
) -> Path:  # fmt: skip
    """What the cache has of a repository that is not asked, or does not answer."""
    shown = f"{repo_id}@{revision}" if revision else repo_id
    lost = FileNotFoundError(f"{filename or 'a head'} of {shown} is not in the cache, and {silence}: fetch it once.")
    wanted = [filename] if filename else [f"*{NEW}", f"*{OLD}"]
    try:
        folder = api.snapshot_download(
            repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True, allow_patterns=wanted
        )
    except FileNotFoundError:  # none of it, or some of what is wanted is known to be missing
        raise lost from None
    files = _files_in(Path(folder))
    if filename not in files if filename else not _head_files(files):
        raise lost
    return Path(folder) / _chosen(files, filename, shown)


def _chosen(files: Sequence[str], filename: str | None, where: str) -> str:
    """The head file among the files of a repository.

    Raises FileNotFoundError if there is none, or not the named one, ValueError if there are several and none is named.
    """
    found = _head_files(files)
    listing = some(found, MOST_NAMES) or "none"
    if filename is not None and filename not in files:
        raise FileNotFoundError(f"{where} has no file {filename}; its head files: {listing}.")
    if filename is not None or len(found) == 1:
        return filename or found[0]
    if not found:
        raise FileNotFoundError(f"{where} has no head file, which ends in {NEW} or {OLD}: check the name.")
    raise ValueError(f"{where} has {len(found)} head files: say which, by filename: {listing}.")


def _head_files(files: Sequence[str]) -> list[str]:
    """Those in safetensors, and those of the 2023 implementation that are not there in safetensors too."""
    return sorted(
        file
        for file in files
        if file.endswith(NEW) or (file.endswith(OLD) and file.removesuffix(OLD) + NEW not in files)
    )


def _files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _files_of(info: "ModelInfo") -> list[str]:
    return [file.rfilename for file in info.siblings or ()]


# --------------------------------------------------------------------------------------------------------------- errors
def _split_revision(repo_id: str, revision: str | None) -> tuple[str, str | None]:
    name, at, written = repo_id.partition("@")
    if at and revision and written != revision:
        raise ValueError(f"{repo_id} names the revision {written}, and revision says {revision}: leave one out.")
    return name, revision or written or None


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        legal = repo_id.count("/") == 1
    except HFValidationError:
        legal = False
    if not legal:
        raise ValueError(f"{repo_id!r} is neither a folder that exists nor a repository of the hub, OWNER/NAME.")


@contextlib.contextmanager
def _one_line_errors(repo_id: str) -> Iterator[None]:
    """Errors of the hub's library, which are many and long, as one line that says what to do."""
    try:
        yield
    except Exception as error:
        refusal = _refusal(error, repo_id)
        if refusal is None and (isinstance(error, OUR_FAULTS) or getattr(error, "errno", None) in OUR_DISK):
            raise
        if refusal is None and isinstance(error, ValueError):  # of the card, mostly: a licence that it does not know
            refusal = ValueError(f"the hub does not take this for {repo_id}: {_said(error)}")
        silence = ConnectionError(f"the hub does not answer for {repo_id} ({_said(error)}): try again later.")
        raise refusal or silence from error


def _refusal(error: Exception, repo_id: str) -> Exception | None:
    """What to raise where the hub has answered, and the answer is no; None where it has not answered."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return FileNotFoundError(f"{repo_id} is gated: ask for access on its page, then {LOG_IN}.")
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"there is no repository {repo_id} on the hub, or it is private: check the name; if private, {LOG_IN}."
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} has no such revision: give a branch, a tag or a commit of it.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return ValueError(f"the hub does not let you do this in {repo_id} ({_said(error)}): {LOG_IN} that may.")
    return None


def _said(error: Exception) -> str:
    words = f"{type(error).__name__}: {error}".partition(" for url ")[0]
    answer = getattr(error, "server_message", None) or ""
    return textwrap.shorten(words if answer in words else f"{words}, {answer}", 200, placeholder=" ...")
