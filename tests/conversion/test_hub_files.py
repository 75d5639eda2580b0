"""What publishing adds for Inference Endpoints and Spaces: which files, for whom, and what becomes of them."""

import json
import re
import shutil
import tomllib
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.conversion.card import render_card
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.hub_files import OPTIONAL_PACKAGES, PACKAGES, requirements, space_files
from reasonseg.conversion.manifest import read_manifest, update_manifest
from reasonseg.conversion.publish import publish as publish_verified
from reasonseg.conversion.repository_code import stray_files
from reasonseg.conversion.verify import verify_repository
from tests.support.hub_server import Repo


ROOT = Path(__file__).parents[2]
# That only what verifies is uploaded is tested beside this.
publish = partial(publish_verified, verify=lambda folder: None)


pytestmark = pytest.mark.usefixtures("only_this_machine")


@pytest.fixture
def llama_2(lisa_repo, tmp_path):
    """A converted repository that may be public."""
    folder = shutil.copytree(lisa_repo, tmp_path / "llama-2")
    (folder / "README.md").write_text(render_card("lisa", "lisa-13b-llama2-v1"), encoding="utf-8")
    update_manifest(folder, ["README.md"])
    return folder


def test_packages_are_those_of_this_package(difflmm_repo, lisa_repo, tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [package for listed in project["optional-dependencies"].values() for package in listed]
    assert set(PACKAGES) <= set(project["dependencies"])
    assert set(OPTIONAL_PACKAGES.values()) <= {*project["dependencies"], *extras}
    assert requirements(lisa_repo) == [*PACKAGES]
    assert requirements(difflmm_repo)[-1].startswith("diffusers")
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    (repo / "adapter_config.json").write_text("{}")
    described = json.loads((repo / "processor_config.json").read_text())
    (repo / "processor_config.json").write_text(json.dumps({**described, "phrase_extractor": "spacy:en_core_web_sm"}))
    assert requirements(repo)[len(PACKAGES) :] == [OPTIONAL_PACKAGES["peft"], OPTIONAL_PACKAGES["spacy"]]


def test_a_handler_comes_and_goes_with_its_manifest(llama_2, hub, tmp_path):
    before = {path.name for path in llama_2.iterdir()}
    dry = publish(llama_2, "org/lisa", handler=True, dry_run=True, endpoint=hub.endpoint)
    assert {"handler.py", "requirements.txt"} <= {change.path for change in dry.changes if change.kind == "new"}
    first = publish(llama_2, "org/lisa", handler=True, endpoint=hub.endpoint)
    assert {path.name for path in llama_2.iterdir()} == before  # the folder itself is not touched
    for revision in (first.revision, "main"):
        clone = hub.download("org/lisa", tmp_path / revision, revision)
        assert {"handler.py", "requirements.txt"} <= read_manifest(clone)["files"].keys()
    assert verify_repository(clone).problems == []
    again = publish(llama_2, "org/lisa", handler=True, endpoint=hub.endpoint)
    assert (again.revision, again.uploads) == (first.revision, [])
    # a clone is published as it is
    assert not publish(tmp_path / "main", "org/lisa", endpoint=hub.endpoint, dry_run=True).uploads
    without = publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    assert {change.path for change in without.changes if change.kind == "removed"} == {
        "handler.py",
        "requirements.txt",
    }
    clone = hub.download("org/lisa", tmp_path / "without")
    assert list(stray_files(clone, {"manifest.json": {}, **read_manifest(clone)["files"]}, trained=False)) == []


def test_a_handler_of_somebody_else_is_not_replaced(llama_2, hub):
    (llama_2 / "handler.py").write_text('"""Mine."""\n')
    update_manifest(llama_2, ["handler.py"])
    with pytest.raises(ConversionError, match=r"has a handler\.py of its own"):
        publish(llama_2, "org/lisa", handler=True, endpoint=hub.endpoint)
    assert hub.requests == []
    publish(llama_2, "org/lisa", endpoint=hub.endpoint)
    assert hub.repos["org/lisa"].tree()["handler.py"] == b'"""Mine."""\n'


def test_a_space_runs_what_was_published_last(llama_2, hub):
    options = {"space": "org/page", "endpoint": hub.endpoint}
    dry = publish(llama_2, "org/lisa", dry_run=True, **options)
    assert hub.repos == {}
    assert [(change.path, change.kind) for change in dry.space.changes] == [
        ("app.py", "new"),
        ("requirements.txt", "new"),
        ("README.md", "new"),
    ]
    report = publish(llama_2, "org/lisa", **options)
    page = hub.repos["spaces/org/page"]
    assert (report.space.url, report.space.private, page.private) == (f"{hub.endpoint}/spaces/org/page", False, False)
    app_file = page.tree()["app.py"].decode()
    assert f'\nREVISION = "{report.revision}"\n' in app_file
    assert '\nTITLE = "LISA-13B-llama2-v1"\n' in app_file
    assert "HF_TOKEN" not in page.tree()["README.md"].decode()
    page.commit("main", page.tree() | {"example.png": b"png"}, "by hand")
    commits = len(page.commits)
    again = publish(llama_2, "org/lisa", **options)
    assert {change.path: change.kind for change in again.space.changes}["example.png"] == "only there"
    assert len(page.commits) == commits
    (llama_2 / "generation_config.json").write_text('{"max_new_tokens": 7}\n')
    update_manifest(llama_2, ["generation_config.json"])
    renewed = publish(llama_2, "org/lisa", **options)
    assert renewed.revision != report.revision
    assert f'\nREVISION = "{renewed.revision}"\n' in page.tree()["app.py"].decode()
    assert "example.png" in page.tree()


def test_a_space_is_private_where_its_checkpoint_is(llama_2, hub):
    hub.repos["org/lisa"] = Repo(private=True)  # made so on the Hub
    hub.repos["spaces/org/page"] = Repo(private=False)
    with pytest.raises(ConversionError, match=r"The Space org/page exists and is public.*--space-id"):
        publish(llama_2, "org/lisa", space="org/page", endpoint=hub.endpoint)
    assert hub.commits() == hub.puts() == []
    report = publish(llama_2, "org/lisa", space="org/other", endpoint=hub.endpoint)
    assert report.space.private
    assert hub.repos["spaces/org/other"].private
    assert "HF_TOKEN" in hub.repos["spaces/org/other"].tree()["README.md"].decode()


def test_the_card_of_a_space_is_what_spaces_read(lisa_repo):
    files = space_files(lisa_repo, "org/lisa", "0" * 40, private=False)
    card = SpaceCard(files["README.md"].decode())
    data = card.data.to_dict()
    assert {name: data[name] for name in ("sdk", "app_file", "license", "models", "suggested_hardware")} == {
        "sdk": "gradio",
        "app_file": "app.py",
        "license": "apache-2.0",
        "models": ["org/lisa"],
        "suggested_hardware": "cpu-basic",
    }
    gradio = re.search(r"^gradio>=(\S+),<7$", files["requirements.txt"].decode(), re.MULTILINE)
    assert gradio[1] == data["sdk_version"]
    compile(files["app.py"], "app.py", "exec")


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_command(llama_2, hub):
    options, both = ["--repo-id", "org/lisa", "--hub", hub.endpoint], ["--endpoint", "--space"]
    result = run(
        "publish", llama_2, *options, "--endpoint", "--space", "--space-id", "org/page", "--dry-run", "--json"
    )
    assert "+ handler.py" in result.stderr
    assert "+ app.py" in result.stderr
    assert json.loads(result.stdout)["space"]["repo_id"] == "org/page"
    result = run("publish", llama_2, *options, *both)
    assert f"{hub.endpoint}/spaces/org/lisa\n" in result.stdout
    assert "handler.py" in hub.repos["org/lisa"].tree()
    said = run("publish", llama_2, *options, "--trained-only", "--base", "x", "--space", code=1).stderr
    assert "run full weights" in said
    assert "--space-id names the Space" in run("publish", llama_2, *options, "--space-id", "org/page", code=1).stderr
    said = run("publish", llama_2, *options, "--space", "--space-id", "page", code=1).stderr
    assert "cannot be a repository's name" in " ".join(said.split())
