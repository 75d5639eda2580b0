"""`reasonseg publish` and `restore` as they are installed: every kind of repository reaches a Hub on this machine."""

import shutil
import socket

import pytest

from reasonseg.conversion.card import render_card
from reasonseg.conversion.manifest import update_manifest
from reasonseg.conversion.verify import add_manifest
from tests.support.hub_server import HubServer
from tests.support.installed import forked, installed
from tests.support.recorded_attention import converted_repo
from tests.support.trained_base import write_base
from tests.test_published_code import save_composed


pytestmark = pytest.mark.slow

CONVERTED = ("lisa", "gsva", "ivm", "vip_llava", "difflmm")


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(text):
    return " ".join(text.split())


@pytest.fixture(params=[*CONVERTED, "attend_and_segment", "reasoning_segmentation"])
def repo(request, tmp_path):
    """One repository of each kind."""
    if request.param in CONVERTED:
        return request.getfixturevalue(f"{request.param}_repo")
    if request.param == "attend_and_segment":
        return converted_repo()
    save_composed(request.getfixturevalue("lisa_repo"), tmp_path / "composed")
    add_manifest(tmp_path / "composed")
    return tmp_path / "composed"


def test_every_kind_of_repository_is_published(repo, hub):
    name = f"org/{repo.name}-{len(hub.repos)}"
    start = installed if repo.name == "lisa" else forked
    result = start("publish", repo, "--repo-id", name, "--private", **hub.environment)
    remote = hub.repos[name]
    assert remote.private
    revision = result.stdout.splitlines()[-1].removeprefix('revision="').removesuffix('"')
    pinned = remote.tree(revision)
    assert {name: data for name, data in pinned.items() if name != ".gitattributes"} == contents(repo)


@pytest.fixture(scope="module")
def llama_1(lisa_repo, tmp_path_factory):
    """A converted repository whose weights may not be public."""
    folder = shutil.copytree(lisa_repo, tmp_path_factory.mktemp("converted") / "lisa-7b-v1")
    (folder / "README.md").write_text(render_card("lisa", "lisa-7b-v1"), encoding="utf-8")
    update_manifest(folder, ["README.md"])
    return folder


def test_what_was_trained_is_published_and_restored(llama_1, hub, tmp_path):
    base = write_base(tmp_path)
    parts = ["--base", base.llava, "--vision-tower", base.vision_tower, "--sam", base.sam]
    options = ["--repo-id", "org/trained", "--trained-only"]
    forked("publish", llama_1, *options, *parts, **hub.environment)
    clone = hub.download("org/trained", tmp_path / "clone")
    assert "model.safetensors" not in contents(clone)
    assert "bit for bit" not in installed("restore", clone, *parts, "--out", tmp_path / "restored").stderr
    assert contents(tmp_path / "restored") == contents(llama_1)


def test_an_empty_folder_is_refused(tmp_path):
    said = forked("publish", tmp_path, "--repo-id", "me/x", "--private", code=1).stderr
    assert f"{tmp_path}: The folder is empty. Pass the folder that `reasonseg convert` or" in one_line(said)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_network_that_is_not_there(llama_1):
    arguments = ["publish", llama_1, "--repo-id", "me/x", "--private", "--dry-run"]
    nobody = f"http://127.0.0.1:{closed_port()}"
    said = one_line(installed(*arguments, code=1, HF_HUB_OFFLINE="0", HF_ENDPOINT=nobody).stderr)
    assert f"The Hub at {nobody} cannot be reached" in said
    assert "Nothing was uploaded. Check the network and the address (--hub, or HF_ENDPOINT)" in said
