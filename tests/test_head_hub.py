"""Publishing and fetching heads: a folder that stands for a repository, a stand-in for the hub, and a stubbed HfApi."""

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import CommitOperationAdd, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from safetensors.torch import save_file

from hub_server import TOKEN, HubServer, Repository, point_library_at, serving_hub
from learnable_memory import heads, legacy
from learnable_memory.hub import from_hub, push_to_hub
from tiny import add_random_head, images, tiny_model
from vit import MemoryCapableViT

BASE = "someone/tiny-vit"
FILE = "Digits_model.safetensors"
SHIPPED = Path(__file__).resolve().parent.parent / "models" / "base-tiny"


@pytest.fixture
def model() -> MemoryCapableViT:
    """Animals, Dogs that extends it, and Digits."""
    found = tiny_model()
    found.base_id = BASE
    add_random_head(found, "Digits", 10, memory_tokens=2)
    add_random_head(found, "Animals", 3)
    add_random_head(found, "Dogs", 4, extends=("Animals",))
    return found


@pytest.fixture
def head(model: MemoryCapableViT, tmp_path: Path) -> Path:
    """A head file called otherwise than its head."""
    path = tmp_path / "made" / "best.safetensors"
    model.save_head("Digits", path, {"dataset": {"name": "Digits", "split_seed": 0}})
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving_hub(tmp_path / "cache", monkeypatch) as server:
        yield server


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing listens at the hub's address, and whoever waits to try again fails the test. The cache is returned."""
    huggingface_hub.close_session()
    point_library_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited to try again"))
    return tmp_path / "cache"


def merged(model: MemoryCapableViT, names: list[str], path: Path) -> Path:
    """A file with several heads of a model."""
    files = []
    for name in names:
        model.save_head(name, path.parent / "one.safetensors")
        files.append(heads.load(path.parent / "one.safetensors"))
    return heads.save_all(path, files)


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- a folder as repository
def test_there_and_back_the_head_answers_the_same(model, head, repository):
    url = push_to_hub(head, str(repository))
    assert url == repository.as_uri()
    assert written(repository).keys() == {FILE, "README.md"}
    assert (repository / FILE).read_bytes() == head.read_bytes()
    fetched = tiny_model()
    assert fetched.load_head(from_hub(str(repository))) == "Digits"
    pixel_values = images()
    assert torch.equal(fetched(pixel_values)["Digits"].logits, model(pixel_values, ["Digits"])["Digits"].logits)


def test_the_card_of_a_folder(head, repository):
    push_to_hub(head, str(repository), license="mit")
    card = ModelCard.load(repository / "README.md")
    assert card.data.base_model == BASE and card.data.license == "mit"
    assert f'from_hub("OWNER/REPOSITORY", filename="{FILE}")' in card.text


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["Animals", "Dogs"], "Dogs_model.safetensors"), (["Digits", "Animals", "Dogs"], "all_model.safetensors")],
)
def test_several_heads_in_one_file(model, tmp_path, repository, names, expected):
    """It is called after the head that is built on all others, or else as it was."""
    path = merged(model, names, tmp_path / "all.safetensors")
    push_to_hub(path, str(repository))
    assert written(repository) == {expected: path.read_bytes(), "README.md": (repository / "README.md").read_bytes()}
    fetched = tiny_model()
    assert fetched.load_heads(from_hub(str(repository))) == names
    there, here = fetched(images(), names), model(images(), names)
    assert all(torch.equal(there[name].logits, here[name].logits) for name in names)


def test_a_head_without_those_that_it_extends_is_refused(model, tmp_path, repository):
    model.save_head("Dogs", tmp_path / "Dogs.safetensors")
    with pytest.raises(ValueError, match="Dogs extends the head Animals, which is not in the file: put both") as caught:
        push_to_hub(tmp_path / "Dogs.safetensors", str(repository))
    assert "python -m learnable_memory heads merge" in one_line(caught)
    assert written(repository) == {}


def test_a_head_beside_another_version_of_its_parent_is_refused(model, tmp_path, repository):
    path = merged(model, ["Animals", "Dogs"], tmp_path / "all.safetensors")
    animals, dogs = heads.load_all(path)
    animals.tensors["class_token"] += 1
    heads.save_all(path, [animals, dogs])
    with pytest.raises(ValueError, match="Dogs extends the head Animals, another one of that name is in the file"):
        push_to_hub(path, str(repository))


@pytest.mark.parametrize(
    "options", [{"private": False}, {"revision": "dev"}, {"create_pr": True}, {"commit_message": "First"}]
)
def test_a_folder_has_no_history(head, repository, options):
    with pytest.raises(ValueError, match="is a folder: leave private, revision, commit message and pull request out"):
        push_to_hub(head, str(repository), **options)
    assert written(repository) == {}


def test_what_is_not_a_head_file_is_not_published(tmp_path, hub):
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        push_to_hub(tmp_path / "text.safetensors", "me/digits", token=TOKEN)
    with pytest.raises(FileNotFoundError, match="There is no head file"):
        push_to_hub(tmp_path / "none.safetensors", "me/digits", token=TOKEN)
    assert hub.requests == []


@pytest.mark.parametrize("version", [2, 3])
def test_paths_of_this_machine_are_not_published(model, tmp_path, repository, caplog, version):
    """Neither those that its maker put into a file, nor those that earlier versions did."""
    model.base_id = "/home/alice/vit"
    told = {
        "dataset": {"name": "folder:/home/alice/digits", "split_seed": 0},
        "training": {"dataset": "folder:~/digits", "base_model": "/home/alice/vit", "epochs": 3},
    }
    model.save_head("Digits", tmp_path / FILE, told)
    if version == 2:
        file = heads.load(tmp_path / FILE)
        metadata = {**file.metadata, "base": {**file.metadata["base"], "id": "/home/alice/vit"}, "format_version": 2}
        save_file(file.tensors, tmp_path / FILE, {"head": json.dumps(metadata)})
    push_to_hub(tmp_path / FILE, str(repository))
    assert caplog.messages[-1] == f"{tmp_path / FILE} names a base that others cannot fetch by that name, vit."
    assert not any(b"alice" in content or b"~/" in content for content in written(repository).values())
    (there,) = heads.load_all(from_hub(str(repository)))
    assert there.metadata["dataset"]["name"] == there.metadata["training"]["dataset"] == "folder:digits"
    assert there.metadata["base"]["id"] == there.metadata["training"]["base_model"] == "vit"
    assert there.metadata["format_version"] == 3
    caplog.clear()
    model.base_id = "models/base-tiny"  # everybody who has the library has it
    model.save_head("Digits", tmp_path / FILE, {"dataset": {"name": "hf:someone/digits:small", "split_seed": 0}})
    push_to_hub(tmp_path / FILE, str(repository))
    assert caplog.messages == []


# ---------------------------------------------------------------------------------------------------------- 2023 files
def old_file(model: MemoryCapableViT, names: list[str]) -> legacy.OldFile:
    found = [legacy.OldHead(name, model.heads[name].tensors(), model.heads[name].spec.extends) for name in names]
    layers = {f"layers.{layer}.query.weight": torch.zeros(1) for layer in range(3)}
    return legacy.OldFile(tuple(found), {"class_token": torch.zeros(32), **layers}, None, (16, 16))


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["Digits"], FILE), (["Animals", "Dogs"], "Dogs_model.safetensors"), (["Digits", "Animals"], FILE)],
)
def test_a_pickle_is_converted_and_never_uploaded(model, tmp_path, repository, monkeypatch, names, expected):
    monkeypatch.setattr(legacy, "read", lambda path, names_=None: old_file(model, names))
    (tmp_path / "Digits_model.pt").write_bytes(b"read by the stub")
    push_to_hub(tmp_path / "Digits_model.pt", str(repository))
    assert written(repository).keys() == {expected, "README.md"}
    found = heads.load_all(repository / expected)
    assert [file.metadata["name"] for file in found] == names
    for file in found:
        theirs = model.heads[file.metadata["name"]].tensors()
        assert file.tensors.keys() == theirs.keys()
        assert all(torch.equal(file.tensors[key], theirs[key]) for key in theirs)
    assert "split | unknown" in (repository / "README.md").read_text(encoding="utf-8")


def test_a_real_pickle_of_2023(legacy, repository):
    path = next(path for path in sorted(legacy.glob("*_model.pt")))
    push_to_hub(path, str(repository))
    (there,) = heads.load_all(from_hub(str(repository)))
    (here,) = heads.load_all(path)
    assert there.metadata == here.metadata
    assert all(torch.equal(there.tensors[key], here.tensors[key]) for key in here.tensors)
    assert from_hub(str(repository)).suffix == ".safetensors"


# ------------------------------------------------------------------------------------------------- a card that is there
def test_a_generated_card_is_renewed_and_keeps_its_licence(model, head, repository, caplog):
    push_to_hub(head, str(repository), license="mit")
    before = (repository / "README.md").read_text(encoding="utf-8")
    model.save_head("Digits", head, {"dataset": {"name": "MNIST", "split_seed": 0}})
    push_to_hub(head, str(repository))
    card = ModelCard.load(repository / "README.md")
    assert str(card) != before
    assert card.data.datasets == ["ylecun/mnist"] and card.data.license == "mit"
    push_to_hub(head, str(repository), license="apache-2.0")
    assert ModelCard.load(repository / "README.md").data.license == "apache-2.0"
    assert caplog.messages == []


@pytest.mark.parametrize("edit", [lambda card: card + "\nMine.\n", lambda card: "# By hand\n", lambda card: ""])
def test_an_edited_card_is_kept_unless_told(head, repository, caplog, edit):
    push_to_hub(head, str(repository))
    card = repository / "README.md"
    generated = card.read_text(encoding="utf-8")
    edited = edit(generated)
    card.write_text(edited, encoding="utf-8")
    (repository / FILE).unlink()
    push_to_hub(head, str(repository))
    assert card.read_text(encoding="utf-8") == edited
    assert (repository / FILE).read_bytes() == head.read_bytes()
    assert caplog.messages == [
        f"{repository} has a README.md that was not made from {FILE}, or was edited since: it is kept (overwrite_card "
        "replaces it)."
    ]
    push_to_hub(head, str(repository), overwrite_card=True)
    assert card.read_text(encoding="utf-8") == generated


def test_the_card_of_another_head_is_kept(model, head, tmp_path, repository, caplog):
    push_to_hub(head, str(repository))
    card = (repository / "README.md").read_bytes()
    model.save_head("Animals", tmp_path / "Animals.safetensors")
    push_to_hub(tmp_path / "Animals.safetensors", str(repository))
    assert written(repository).keys() == {FILE, "Animals_model.safetensors", "README.md"}
    assert (repository / "README.md").read_bytes() == card
    assert "was not made from Animals_model.safetensors" in caplog.text


# ------------------------------------------------------------------------------------------------------ push to the hub
def test_a_new_repository_gets_both_files_in_one_commit(hub, model, head, tmp_path):
    url = push_to_hub(head, "me/digits", token=TOKEN, private=True, license="mit")
    repository = hub.repositories["me/digits"]
    assert repository.private
    assert url == f"{hub.url}/me/digits/commit/{repository.commit('main')}"
    (commit,) = hub.commits
    assert commit["header"]["summary"] == f"Upload {FILE}"
    assert commit["header"]["parentCommit"] == Repository().commit("main")
    assert commit["files"].keys() == {FILE, "README.md"}
    (tmp_path / "uploaded.safetensors").write_bytes(commit["files"][FILE])
    uploaded = heads.load(tmp_path / "uploaded.safetensors")
    assert all(torch.equal(uploaded.tensors[key], value) for key, value in model.heads["Digits"].tensors().items())
    card = ModelCard(commit["files"]["README.md"].decode())
    assert card.data.license == "mit" and card.data.base_model == BASE
    assert f'from_hub("me/digits", filename="{FILE}")' in card.text
    assert hub.validated == [str(card)]


def test_pull_requests_and_branches(hub, head):
    hub.repositories["me/digits"] = Repository()
    url = push_to_hub(head, "me/digits", token=TOKEN, create_pr=True, commit_message="Digits, please")
    assert url == f"{hub.url}/me/digits/discussions/1"
    assert hub.commits[0]["pull_request"] and hub.commits[0]["header"]["summary"] == "Digits, please"
    assert hub.repositories["me/digits"].branches == {"main": {}}
    push_to_hub(head, "me/digits", token=TOKEN, revision="v2")
    assert hub.repositories["me/digits"].branches["v2"].keys() == {FILE, "README.md"}
    assert hub.repositories["me/digits"].branches["main"] == {}
    assert 'from_hub("me/digits@v2"' in hub.repositories["me/digits"].branches["v2"]["README.md"].decode()
    push_to_hub(head, "me/new", token=TOKEN, revision="v2")  # neither the repository nor the branch is there
    assert hub.repositories["me/new"].branches.keys() == {"main", "v2"}
    assert hub.repositories["me/new"].branches["main"] == {}


def test_an_edited_card_on_the_hub_is_kept(hub, head, caplog):
    push_to_hub(head, "me/digits", token=TOKEN)
    main = hub.repositories["me/digits"].branches["main"]
    generated = main["README.md"]
    main["README.md"] = generated + b"Mine.\n"
    push_to_hub(head, "me/digits", token=TOKEN)
    assert hub.commits[-1]["files"].keys() == {FILE}
    assert "me/digits has a README.md that was not made from Digits_model.safetensors" in caplog.text
    push_to_hub(head, "me/digits", token=TOKEN, overwrite_card=True)
    assert main["README.md"] == generated


def test_who_may_see_a_repository_is_not_changed_by_the_way(hub, head):
    hub.repositories["me/digits"] = Repository(private=False)
    with pytest.raises(ValueError, match="me/digits is there already, and public: change that in its settings"):
        push_to_hub(head, "me/digits", token=TOKEN, private=True)
    assert hub.commits == []
    push_to_hub(head, "me/digits", token=TOKEN, private=False)
    assert len(hub.commits) == 1


def test_without_a_token_nothing_is_uploaded(hub, head):
    with pytest.raises(ValueError) as caught:
        push_to_hub(head, "me/digits")
    assert one_line(caught) == (
        "the hub does not let you do this in me/digits (HfHubHTTPError: Client error '401 Unauthorized', no): log in "
        "with `hf auth login`, or give a token that may."
    )
    assert hub.commits == [] and hub.repositories == {}


def test_a_card_that_the_hub_does_not_take(hub, head):
    hub.invalid = '"license" must be one of [mit, ...]'
    with pytest.raises(ValueError, match=r"the hub does not take this for me/digits: .*\"license\" must be") as caught:
        push_to_hub(head, "me/digits", token=TOKEN, license="mine")
    assert one_line(caught)
    assert hub.commits == []


@pytest.mark.usefixtures("no_network")
def test_no_network_is_noticed_at_once(head):
    with pytest.raises(
        ConnectionError, match=r"hub does not answer for me/digits \(ConnectError: .*try again"
    ) as caught:
        push_to_hub(head, "me/digits", token=TOKEN)
    assert one_line(caught)


class StubbedApi:
    """`HfApi` without a hub: records what it is asked, and knows no repository until one is made."""

    calls: list[tuple[str, dict]]

    def __init__(self, token: str | None = None) -> None:
        type(self).calls = [("HfApi", {"token": token})]

    def model_info(self, repo_id: str, **options: object) -> SimpleNamespace:
        made = any(name == "create_repo" for name, _ in self.calls)
        self.calls.append(("model_info", {"repo_id": repo_id, **options}))
        if not made:
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
        return SimpleNamespace(sha="0" * 40, private=True, siblings=None)

    def create_repo(self, repo_id: str, **options: object) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def create_commit(self, repo_id: str, operations: list, **options: object) -> SimpleNamespace:
        self.calls.append(("create_commit", {"repo_id": repo_id, "operations": operations, **options}))
        return SimpleNamespace(pr_url=None, commit_url="https://hub/commit")


def test_what_the_hub_is_asked(monkeypatch, head, tmp_path):
    monkeypatch.setattr(huggingface_hub, "HfApi", StubbedApi)
    assert push_to_hub(head, "me/digits", token="secret", private=True, license="mit") == "https://hub/commit"
    commit = StubbedApi.calls.pop()[1]
    info = ("model_info", {"repo_id": "me/digits", "revision": None, "timeout": 5.0})
    create = ("create_repo", {"repo_id": "me/digits", "private": True, "exist_ok": True})
    assert StubbedApi.calls == [("HfApi", {"token": "secret"}), info, create, info]
    file, card = commit.pop("operations")
    assert commit == {
        "repo_id": "me/digits", "commit_message": f"Upload {FILE}", "revision": None, "create_pr": False,
        "parent_commit": "0" * 40,
    }  # fmt: skip
    assert isinstance(file, CommitOperationAdd) and file.path_in_repo == FILE
    (tmp_path / "uploaded.safetensors").write_bytes(file.path_or_fileobj)
    assert heads.load(tmp_path / "uploaded.safetensors").metadata["name"] == "Digits"
    assert card.path_in_repo == "README.md"
    assert ModelCard(card.path_or_fileobj.decode()).data.license == "mit"


# --------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize("name", ["digits", "a b/c", "./no-folder", "/no/folder", "me/digits/more", "me/digits.git"])
def test_names_that_are_neither_a_folder_nor_a_repository(hub, head, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = re.escape(f"{name!r} is neither a folder that exists nor a repository of the hub, OWNER/NAME.")
    with pytest.raises(ValueError, match=message):
        push_to_hub(head, name)
    with pytest.raises(ValueError, match=message):
        from_hub(name)
    assert hub.requests == []


# ------------------------------------------------------------------------------------------------- fetch from a folder
@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        (["A_model.safetensors", "README.md"], None, "A_model.safetensors"),
        (["A_model.pt", "config.json"], None, "A_model.pt"),
        (["A_model.pt", "A_model.safetensors"], None, "A_model.safetensors"),
        (["A_model.pt", "A_model.safetensors"], "A_model.pt", "A_model.pt"),
        (["A_model.safetensors", "B_model.safetensors"], "B_model.safetensors", "B_model.safetensors"),
        (["heads/A.safetensors"], None, "heads/A.safetensors"),
        (["heads/A.safetensors", "A.safetensors"], "heads/A.safetensors", "heads/A.safetensors"),
    ],
)
def test_the_head_file_of_a_folder(repository, there, asked, expected):
    for name in there:
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).touch()
    assert from_hub(str(repository), filename=asked) == repository / expected


@pytest.mark.parametrize(
    ("there", "asked", "kind", "message"),
    [
        (["B.safetensors", "A.pt"], None, ValueError, "has 2 head files: say which, by filename: A.pt, B.safetensors."),
        (["A.safetensors"], "B.pt", FileNotFoundError, "has no file B.pt; its head files: A.safetensors."),
        ([], "B.pt", FileNotFoundError, "has no file B.pt; its head files: none."),
        (["A.safetensors"], "../secret", FileNotFoundError, "has no file ../secret; its head files: A.safetensors."),
        (
            ["README.md"],
            None,
            FileNotFoundError,
            "no head file, which ends in .safetensors or .pt: check the name.",
        ),
        ([f"{number:02}.pt" for number in range(22)], None, ValueError, ", 19.pt and 2 more."),
    ],
)
def test_a_folder_without_one_head_file(repository, there, asked, kind, message):
    (repository.parent / "secret").touch()
    for name in there:
        (repository / name).touch()
    with pytest.raises(kind) as caught:
        from_hub(str(repository), filename=asked)
    assert one_line(caught).startswith(str(repository)) and one_line(caught).endswith(message)


def test_a_folder_has_no_revisions(repository):
    with pytest.raises(ValueError, match="is a folder, which has no revision v2: leave it out"):
        from_hub(str(repository), revision="v2")


# ------------------------------------------------------------------------------------------------ fetch from the hub
@pytest.fixture
def digits(hub: HubServer) -> Repository:
    """A repository with a head on main, and an older one on v1."""
    found = Repository({"main": {FILE: b"new", "README.md": b"#"}, "v1": {FILE: b"old"}})
    hub.repositories["me/digits"] = found
    return found


def test_a_head_is_fetched_once(hub, digits):
    path = from_hub("me/digits")
    assert path.read_bytes() == b"new" and path.name == FILE
    hub.requests.clear()
    assert from_hub("me/digits") == path
    assert [method for method, what in hub.requests if what.endswith(FILE)] == ["HEAD"]
    digits.branches["main"][FILE] = b"newer"
    assert from_hub("me/digits").read_bytes() == b"newer"


def test_a_file_with_another_checksum_does_not_stay(hub, digits):
    digits.sha256 = "0" * 64
    for _ in range(2):
        with pytest.raises(OSError, match=f"{FILE} of me/digits came with the SHA-256 .*, expected 0+: fetch it"):
            from_hub("me/digits")
    digits.sha256 = None
    assert from_hub("me/digits").read_bytes() == b"new"


def test_revisions(hub, digits):
    assert from_hub("me/digits@v1").read_bytes() == b"old"
    assert from_hub("me/digits", revision="v1").read_bytes() == b"old"
    assert from_hub("me/digits@v1", revision="v1").read_bytes() == b"old"
    assert from_hub("me/digits", revision=digits.commit("v1")).read_bytes() == b"old"
    with pytest.raises(ValueError, match="me/digits@v1 names the revision v1, and revision says main: leave one out"):
        from_hub("me/digits@v1", revision="main")
    with pytest.raises(FileNotFoundError, match="me/digits has no such revision: give a branch, a tag or a commit"):
        from_hub("me/digits@v3")


def test_which_file_of_a_repository(hub, digits):
    digits.branches["main"]["Pets_model.pt"] = b"pets"
    with pytest.raises(ValueError, match="me/digits has 2 head files: say which, by filename: Digits_model"):
        from_hub("me/digits")
    assert from_hub("me/digits", filename="Pets_model.pt").read_bytes() == b"pets"
    with pytest.raises(FileNotFoundError, match=r"me/digits has no file CUB_model.pt; its head files: Digits"):
        from_hub("me/digits", filename="CUB_model.pt")


def test_a_cache_of_ones_own(hub, digits, tmp_path):
    assert from_hub("me/digits", cache_dir=tmp_path / "mine").is_relative_to(tmp_path / "mine")


def test_repositories_that_are_not_for_everybody(hub, digits):
    with pytest.raises(FileNotFoundError) as caught:
        from_hub("me/other")
    assert one_line(caught) == (
        "there is no repository me/other on the hub, or it is private: check the name; if private, log in with "
        "`hf auth login`, or give a token."
    )
    digits.private = True
    with pytest.raises(FileNotFoundError, match="there is no repository me/digits on the hub, or it is private"):
        from_hub("me/digits")
    assert from_hub("me/digits", token=TOKEN).read_bytes() == b"new"
    digits.gated = True
    hub.repositories["me/gated"] = digits
    with pytest.raises(FileNotFoundError) as caught:
        from_hub("me/gated", token=TOKEN)
    assert one_line(caught) == (
        "me/gated is gated: ask for access on its page, then log in with `hf auth login`, or give a token."
    )


def test_without_an_answer_the_cache_answers(hub, digits, tmp_path, monkeypatch, caplog):
    path = from_hub("me/digits")
    assert from_hub("me/digits", download=False) == path
    assert caplog.messages == []
    hub.requests.clear()
    point_library_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited to try again"))
    assert from_hub("me/digits") == path
    assert from_hub("me/digits", filename=FILE) == path
    assert [message.partition(" (")[0] for message in caplog.messages] == ["me/digits: the hub does not answer"] * 2
    assert caplog.messages[0].endswith(f"; {FILE} is taken from the cache.")
    for other in ("me/digits@v1", "me/pets"):
        with pytest.raises(FileNotFoundError, match=f"a head of {other} is not in the cache, and the hub does"):
            from_hub(other)
    with pytest.raises(FileNotFoundError, match=r"Pets_model.pt of me/digits is not in the cache"):
        from_hub("me/digits", filename="Pets_model.pt")
    assert hub.requests == []


def test_downloading_off(no_network):
    with pytest.raises(FileNotFoundError) as caught:
        from_hub("me/digits", download=False)
    assert one_line(caught) == "a head of me/digits is not in the cache, and downloading is off: fetch it once."


def test_a_cache_with_a_card_only_has_no_head(no_network):
    snapshot = no_network / "models--me--digits" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").touch()
    (no_network / "models--me--digits" / "refs").mkdir()
    (no_network / "models--me--digits" / "refs" / "main").write_text("0" * 40)
    with pytest.raises(FileNotFoundError, match="a head of me/digits is not in the cache, and downloading is off"):
        from_hub("me/digits", download=False)
    (snapshot / FILE).touch()
    assert from_hub("me/digits", download=False) == snapshot / FILE


def test_a_hub_that_stops_in_the_middle(digits, monkeypatch):
    def stop(self: object, *args: object, **kwargs: object) -> None:
        raise OSError("connection reset\nby peer")

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", stop)
    with pytest.raises(ConnectionError) as caught:
        from_hub("me/digits")
    assert one_line(caught) == (
        "the hub does not answer for me/digits (OSError: connection reset by peer): try again later."
    )


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), PermissionError(errno.EACCES, "denied"), AttributeError()]
)
def test_what_is_not_the_hubs_fault_is_not_blamed_on_it(digits, monkeypatch, error):
    def fail(self: object, *args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", fail)
    with pytest.raises(type(error)) as caught:
        from_hub("me/digits")
    assert caught.value is error


def test_what_is_no_hub_at_all_counts_as_silence(digits, monkeypatch):
    """A wireless network that asks for its password first answers everything, with a page."""
    path, limits = from_hub("me/digits"), []

    def a_page(self: object, name: str, timeout: float, **options: object) -> None:
        limits.append(timeout)
        raise json.JSONDecodeError("Expecting value", "<html>", 0)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", a_page)
    assert from_hub("me/digits") == path
    assert limits == [5.0]  # seconds, where no answer comes at all


# ------------------------------------------------------------------------------------------- the card tells the truth
def test_the_usage_lines_of_the_card_run(hub, tmp_path, monkeypatch, capsys):
    """As they are printed, with a base and a repository that are there."""
    model = MemoryCapableViT.from_pretrained(SHIPPED)
    model.base_id = "models/base-tiny"
    add_random_head(model, "Colours", 3, memory_tokens=2)
    side = model.config.image_size
    pixels = {
        "height": side, "width": side, "resample": "bilinear", "rescale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3,
        "resize": [side, side],
    }  # fmt: skip
    labels = ["red", "green", "blue"]
    model.save_head("Colours", tmp_path / "Colours.safetensors", {"labels": labels, "preprocessing": pixels})
    push_to_hub(tmp_path / "Colours.safetensors", "me/colours", token=TOKEN)
    card = hub.commits[0]["files"]["README.md"].decode()
    Image.new("RGB", (side, side), (255, 0, 51)).save(tmp_path / "photo.jpg", format="PNG")
    monkeypatch.chdir(tmp_path)

    code = card.partition("```python\n")[2].partition("```")[0]
    exec(code, {})

    # (value / 255 - 0.5) / 0.5 by hand: 255 -> 1, 0 -> -1, 51 -> -0.6
    seen = torch.tensor([1.0, -1.0, -0.6])[None, :, None, None].expand(1, 3, side, side)
    expected = labels[int(model(seen)["Colours"].logits.argmax())]
    assert capsys.readouterr().out == f"{expected}\n"
