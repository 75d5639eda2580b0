"""Publishing, through huggingface_hub's own client, to a Hub on this machine."""

import json
import re
import shutil
import socket
from functools import partial

import pytest
from huggingface_hub import ModelCard, constants
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.conversion import publish as publish_module
from reasonseg.conversion.card import pin_card, render_card
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import read_manifest, update_manifest
from reasonseg.conversion.publish import publish, publish_trained
from reasonseg.conversion.trained import restore
from tests.support.hub_server import Repo, pinned_revision
from tests.support.trained_base import write_base


pytestmark = pytest.mark.usefixtures("only_this_machine")


def with_card(repo, folder, name):
    """A copy of a converted repository that says which checkpoint it is."""
    shutil.copytree(repo, folder)
    (folder / "README.md").write_text(render_card(name.split("-")[0], name), encoding="utf-8")
    update_manifest(folder, ["README.md"])
    return folder


@pytest.fixture
def llama_2(lisa_repo, tmp_path):
    return with_card(lisa_repo, tmp_path / "llama-2", "lisa-13b-llama2-v1")


@pytest.fixture
def llama_1(lisa_repo, tmp_path):
    return with_card(lisa_repo, tmp_path / "llama-1", "lisa-7b-v1")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_arrives_and_the_card_names_its_commit(llama_2, hub, tmp_path):
    before = contents(llama_2)
    report = publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    remote = hub.repos["org/lisa"]
    assert not remote.private
    # the pinned commit holds the folder as it is
    pinned = remote.tree(report.revision)
    assert {name: data for name, data in pinned.items() if name != ".gitattributes"} == before
    assert report.url == f"{hub.endpoint}/org/lisa/tree/{report.revision}"
    # the branch's card names that commit, and its manifest fits the card
    head = remote.tree()
    card = head["README.md"].decode()
    assert pinned_revision(card) == report.revision
    assert 'repo = "org/lisa"' in card
    ModelCard(card, ignore_metadata_errors=False)
    assert card == pin_card(before["README.md"].decode(), "org/lisa", report.revision)
    clone = tmp_path / "clone"
    for name, data in head.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(data)
    assert read_manifest(clone)["files"]["README.md"]["size"] == len(head["README.md"])
    assert {name for name in head if head[name] != pinned[name]} == {"README.md", "manifest.json"}
    assert len(hub.commits()) == 2
    assert contents(llama_2) == before  # the folder itself is not touched
    assert {change.kind for change in report.changes if change.path != ".gitattributes"} == {"new"}


def test_publishing_again_uploads_nothing(llama_2, hub):
    first = publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    commits, puts = len(hub.commits()), len(hub.puts())
    second = publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    assert second.revision == first.revision
    assert second.uploads == []
    assert (len(hub.commits()), len(hub.puts())) == (commits, puts)


def test_only_what_changed_is_uploaded_and_stale_weights_go(llama_2, hub):
    first = publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    remote = hub.repos["org/lisa"]
    extra = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "teaser.png": b"png"}
    remote.commit("main", remote.tree() | extra, "by hand")
    (llama_2 / "generation_config.json").write_text('{"max_new_tokens": 7}\n')
    update_manifest(llama_2, ["generation_config.json"])
    puts = len(hub.puts())
    report = publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    kinds = {change.path: change.kind for change in report.changes}
    assert {name for name, kind in kinds.items() if kind == "changed"} == {"generation_config.json", "manifest.json"}
    assert {name for name, kind in kinds.items() if kind == "removed"} == extra.keys() - {"teaser.png"}
    assert kinds["teaser.png"] == kinds[".gitattributes"] == "only there"
    assert len(hub.puts()) == puts
    assert report.revision != first.revision
    head = remote.tree()
    assert "teaser.png" in head
    assert not head.keys() & {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    assert pinned_revision(head["README.md"].decode()) == report.revision
    assert head["generation_config.json"] == b'{"max_new_tokens": 7}\n'


def test_an_interrupted_upload_goes_on(llama_2, hub, monkeypatch):
    """Two large files, the second is refused once: nothing is visible, and the next run sends only the second."""
    (llama_2 / "more.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}" + bytes(1000))
    hub.refuse = lambda method, path: 403 if method == "PUT" and len(hub.puts()) > 1 else None
    options = {"endpoint": hub.endpoint, "verify": lambda folder: None}
    with pytest.raises(ConversionError, match=r"broke off.*What has arrived stays there; the same command resumes"):
        publish(llama_2, "org/lisa", **options)
    assert hub.commits() == []
    assert hub.repos["org/lisa"].tree().keys() == {".gitattributes"}
    arrived = set(hub.stored)
    assert len(arrived) == 1
    hub.refuse = lambda method, path: None
    hub.requests.clear()
    report = publish(llama_2, "org/lisa", **options)
    assert len(hub.puts()) == 1
    assert arrived.isdisjoint({path.removeprefix("/lfs/") for path in hub.puts()})
    pinned = hub.repos["org/lisa"].tree(report.revision)
    assert {name: data for name, data in pinned.items() if name != ".gitattributes"} == contents(llama_2)


@pytest.mark.parametrize("refused", [1, 2])
def test_an_interruption_around_the_commits_is_made_good(llama_2, hub, refused):
    hub.refuse = lambda method, path: 403 if "/commit/" in path and len(hub.commits()) == refused else None
    with pytest.raises(ConversionError, match=r"The Hub refused a request.*hf auth login"):
        publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    hub.refuse = lambda method, path: None
    remote = hub.repos["org/lisa"]
    before = len(remote.commits)
    report = publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    assert len(remote.commits) - before == 3 - refused
    assert pinned_revision(remote.tree()["README.md"].decode()) == report.revision
    assert len(hub.puts()) == 1


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(llama_2, hub):
    def meanwhile(method, path):
        if method == "PUT":
            remote = hub.repos["org/lisa"]
            remote.commit("main", remote.tree() | {"theirs.txt": b"x"}, "theirs")

    hub.refuse = meanwhile
    with pytest.raises(ConversionError, match="A commit has happened since"):
        publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    assert "theirs.txt" in hub.repos["org/lisa"].tree()


def test_branches(llama_2, hub):
    report = publish(llama_2, "org/lisa", revision="v2", endpoint=hub.endpoint)
    remote = hub.repos["org/lisa"]
    assert remote.tree("main").keys() == {".gitattributes"}
    assert "config.json" in remote.tree("v2")
    assert pinned_revision(remote.tree("v2")["README.md"].decode()) == report.revision


def test_llama_1_weights_do_not_go_public(llama_1, hub):
    with pytest.raises(
        ConversionError, match=r"lisa-7b-v1 may not be published.*LLaMA 1's licence.*--private.*trained"
    ):
        publish(llama_1, "org/lisa", endpoint=hub.endpoint)
    assert hub.requests == []
    publish(llama_1, "org/lisa", private=True, endpoint=hub.endpoint)
    assert hub.repos["org/lisa"].private


def test_llama_1_weights_do_not_go_into_a_repository_that_is_already_public(llama_1, hub):
    hub.repos["org/lisa"] = Repo(private=False)
    with pytest.raises(ConversionError, match="exists and is public"):
        publish(llama_1, "org/lisa", private=True, endpoint=hub.endpoint)
    assert hub.commits() == hub.puts() == []


def test_weights_of_unknown_origin_do_not_go_public(lisa_repo, tmp_path, hub):
    for folder in (lisa_repo, tmp_path / "no-card"):
        if not folder.exists():
            shutil.copytree(lisa_repo, folder)
            (folder / "README.md").unlink()
            update_manifest(folder, ["README.md"])
        with pytest.raises(ConversionError, match=r"may not be published.*unknown.*--card"):
            publish(folder, "org/lisa", endpoint=hub.endpoint)
    assert hub.requests == []
    own = tmp_path / "own.yaml"
    own.write_text("system: lisa\nbase: llama-2\n")
    report = publish(tmp_path / "no-card", "org/lisa", card=str(own), endpoint=hub.endpoint)
    assert len(hub.commits()) == 1  # there is no card to enter the commit into
    assert report.revision == hub.repos["org/lisa"].resolve("main")


def test_a_damaged_repository_is_not_uploaded(llama_2, hub):
    weights = bytearray((llama_2 / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (llama_2 / "model.safetensors").write_bytes(weights)
    with pytest.raises(ConversionError, match=r"does not verify, nothing was uploaded.*model\.safetensors"):
        publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    assert hub.requests == []


def test_a_dry_run_changes_nothing(llama_2, hub):
    report = publish(llama_2, "org/lisa", dry_run=True, endpoint=hub.endpoint)
    assert (report.revision, report.url) == (None, "")
    assert {change.kind for change in report.changes} == {"new"}
    assert hub.repos == {}
    done = publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    hub.requests.clear()
    assert publish(llama_2, "org/lisa", dry_run=True, endpoint=hub.endpoint).revision == done.revision
    assert {method for method, _ in hub.requests} == {"GET"}


@pytest.mark.parametrize(
    ("repo_id", "status", "message"),
    [
        ("org/lisa", 401, "hf auth login"),
        ("org/lisa", 403, "hf auth login"),
        ("org/lisa", 400, "The Hub refused a request"),
    ],
)
def test_refusals_are_worded(llama_2, hub, repo_id, status, message):
    hub.refuse = lambda method, path: status
    with pytest.raises(ConversionError, match=message):
        publish(llama_2, repo_id, endpoint=hub.endpoint)
    assert hub.repos == {}


def test_a_hub_that_is_not_there(llama_2):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    for dry_run in (False, True):
        with pytest.raises(ConversionError, match=rf"{endpoint} cannot be reached.*Nothing was uploaded.*endpoint="):
            publish(llama_2, "org/lisa", dry_run=dry_run, endpoint=endpoint)
    with pytest.raises(ConversionError, match="no such folder"):
        publish("nowhere", "org/lisa", endpoint=endpoint)


def test_a_client_that_may_not_go_online(llama_2, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConversionError, match=r"HF_HUB_OFFLINE is set.*Nothing was uploaded\. Unset it"):
        publish(llama_2, "org/lisa", dry_run=True)


@pytest.mark.parametrize("repo_id", ["a/b/c", "my model", "lisa", "org/", "org/x.git", "org/a--b", "", "/x"])
def test_a_name_that_the_hub_does_not_allow(llama_2, hub, repo_id, monkeypatch):
    monkeypatch.setattr(publish_module, "_verify", lambda *_: pytest.fail("gigabytes were read first"))
    for run in (publish, partial(publish_trained, base=None)):
        with pytest.raises(ConversionError, match=rf"^{re.escape(repr(repo_id))} cannot be.*Write ORGANISATION/NAME"):
            run(llama_2, repo_id, endpoint=hub.endpoint)
    assert hub.requests == []


def test_a_folder_that_is_no_repository(tmp_path, hub):
    for run in (publish, partial(publish_trained, base=None)):
        with pytest.raises(ConversionError, match=r"The folder is empty.*`reasonseg train`"):
            run(tmp_path, "org/lisa", endpoint=hub.endpoint)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"holds no config\.json"):
        publish(tmp_path, "org/lisa", endpoint=hub.endpoint)
    assert hub.requests == []


def test_what_to_write_for_an_unknown_base_is_said_and_works(lisa_repo, tmp_path, hub):
    """Followed to the letter, the message leads to a public repository with a card that states the licences."""
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    with pytest.raises(ConversionError, match=r"unknown.*my-model\.yaml") as refused:
        publish(repo, "org/lisa", endpoint=hub.endpoint)
    lines = re.findall(r"`((?:system|base): [\w-]+)`", str(refused.value))
    assert lines == ["system: lisa", "base: llama-2"]
    own = tmp_path / "my-model.yaml"
    own.write_text("\n".join(lines))
    run("card", own, "--repo", repo, "--out", repo / "README.md")
    card = (repo / "README.md").read_text()
    assert ModelCard(card).data.license == "llama2"
    report = publish(repo, "org/lisa", endpoint=hub.endpoint)  # the card remembers the values, the manifest the card
    assert pinned_revision(hub.repos["org/lisa"].tree()["README.md"].decode()) == report.revision


def test_llama_1_weights_go_public_without_their_base(llama_1, hub, tmp_path):
    base = write_base(tmp_path)
    hub.refuse = lambda method, path: 403 if "/commit/" in path else None
    with pytest.raises(ConversionError, match="The Hub refused a request"):
        publish_trained(llama_1, "org/lisa", base=base, endpoint=hub.endpoint)
    hub.refuse = lambda method, path: None
    report = publish_trained(llama_1, "org/lisa", base=base, endpoint=hub.endpoint)
    remote = hub.repos["org/lisa"]
    assert not remote.private
    assert len(hub.puts()) == 1  # the second export is the same file, which had arrived
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".trained-")]
    pinned = remote.tree(report.revision)
    assert "trained/trained.safetensors" in pinned
    assert "model.safetensors" not in pinned
    clone = tmp_path / "clone"
    for name, data in remote.tree().items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(data)
    assert f"hf download org/lisa --revision {report.revision}" in (clone / "README.md").read_text()
    restore(clone, tmp_path / "restored", base=base)
    assert contents(tmp_path / "restored") == contents(llama_1)


def test_full_weights_do_not_slip_into_an_export(llama_1, hub, tmp_path):
    base, export = write_base(tmp_path), tmp_path / "export"
    publish_trained(llama_1, "org/lisa", base=base, export=export, dry_run=True, endpoint=hub.endpoint)
    assert hub.repos == {}
    hub.requests.clear()
    shutil.copy(llama_1 / "model.safetensors", export)
    with pytest.raises(ConversionError, match=r"model\.safetensors.*Remove it"):
        publish(export, "org/lisa", endpoint=hub.endpoint)
    assert hub.requests == []
    (export / "model.safetensors").unlink()
    publish(export, "org/lisa", endpoint=hub.endpoint)
    assert "trained/trained.json" in hub.repos["org/lisa"].tree()


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.mark.slow
def test_the_command(llama_2, llama_1, hub, tmp_path):
    options = ["--repo-id", "org/lisa", "--hub", hub.endpoint]
    result = run("publish", llama_2, *options, "--dry-run")
    assert "nothing was uploaded (dry run)" in result.stdout
    assert "+ model.safetensors" in result.stderr
    result = run("publish", llama_2, *options)
    revision = hub.repos["org/lisa"].branches["main"][-2]
    assert result.stdout.splitlines()[-1] == f'revision="{revision}"'
    result = run("publish", llama_2, *options, "--json")
    assert json.loads(result.stdout)["revision"] == revision
    assert " files unchanged" in result.stderr
    result = run("publish", llama_1, *options, code=1)
    assert "may not be published" in " ".join(result.stderr.split())
    assert "--trained-only needs --base" in run("publish", llama_1, *options, "--trained-only", code=1).stderr
    assert "belong to --trained-only" in run("publish", llama_1, *options, "--sam", "x", code=1).stderr
    base = write_base(tmp_path)
    paths = ["--base", base.llava, "--vision-tower", base.vision_tower, "--sam", base.sam]
    run("publish", llama_1, "--repo-id", "org/other", *options[2:], "--trained-only", *paths)
    assert "trained/trained.safetensors" in hub.repos["org/other"].tree()
