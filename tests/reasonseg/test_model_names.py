"""What `--model` may name, on every command that has it."""

import json
from pathlib import Path

import pytest
from huggingface_hub import errors
from PIL import Image
from typer.testing import CliRunner

from reasonseg import EMBEDDED_MODEL
from reasonseg.cli.app import app
from reasonseg.model_names import UnknownModelError, resolve_model
from tests.support.installed import forked
from tests.support.tiny_training import write_tiny_recipe


# By the name of the command what it needs besides a model.
COMMANDS = {
    "segment": ("segment", "a.png", "Where is the cup?", "--out", "out", "--model"),
    "mask": ("mask", "a.png", "Where is the cup?", "--out", "out", "--model"),
    "ask": ("ask", "a.png", "Where is the cup?", "--model"),
    "demo": ("demo", "--model"),
    "evaluate": ("evaluate", "--dataset", "tabletop", "--scenes", "1", "--out", "out", "--model"),
    "train": ("train", "lisa", "--out", "out", "--set", "data.path=data", "--set"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with an image and folders that hold no model."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40)).save("a.png")
    for name, files in {
        "empty": {},
        "adapter": {"adapter_config.json": "{}"},
        "run": {"checkpoint-9/config.json": '{"model_type": "llava"}', "checkpoint-10/config.json": "{}"},
        "broken": {"config.json": "{"},
        "nameless": {"config.json": "{}"},
    }.items():
        Path(name).mkdir()
        for file, text in files.items():
            Path(name, file).parent.mkdir(exist_ok=True)
            Path(name, file).write_text(text, encoding="utf-8")
    return tmp_path


def given_as(command: str, name: str) -> list[str]:
    return [*COMMANDS[command], f"model={name}" if command == "train" else name]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nosuch", "'./nosuch': there is no such folder."),
        ("empty", "'empty' holds no model: it has no config.json."),
    ],
)
def test_every_command_says_what_is_wrong_with_a_name(command, name, message):
    result = CliRunner().invoke(app, given_as(command, name))
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "`reasonseg convert` or `reasonseg train`" in " ".join(result.stderr.split())
    assert not Path("out").exists()


@pytest.mark.slow
def test_the_installed_command_says_so_too():
    process = forked(*given_as("segment", "./nosuch"), code=1)
    assert process.stderr.startswith("error: --model './nosuch': there is no such folder.")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "'nosuch': there is no such folder"),
        ("a/b/c", "'a/b/c': there is no such folder"),
        ("/nosuch", "there is no such folder"),
        ("~/nosuch", "there is no such folder"),
        ("org/", "there is no such folder"),
        ("a.png", "'a.png' is a file"),
        ("adapter", "it is an adapter without its base"),
        ("run", "a training run that has not ended; checkpoint-10 in it is a model"),
        ("broken", "its config.json cannot be read"),
        ("nameless", "its config.json names no model_type"),
        ("org/name", "'org/name' is not a folder here, and the Hub cannot be reached"),
        ("org/na--me", "is not a folder here, nor a name that the Hub allows"),
    ],
)
def test_names_that_name_no_model(name, message):
    with pytest.raises(UnknownModelError, match=message):
        resolve_model(name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, "whose terms you have to accept there first"),
        (errors.RepositoryNotFoundError, "the Hub has no such repository that you may read"),
        (errors.RevisionNotFoundError, "without the revision 'v2'"),
        (errors.RemoteEntryNotFoundError, "without config.json"),
        (ConnectionError, "the Hub cannot be reached"),
    ],
)
def test_what_the_hub_answers(monkeypatch, error, message):
    def refuse(name, file, revision):
        assert (name, file, revision) == ("org/name", "config.json", "v2")
        raise error.__new__(error)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UnknownModelError, match=message):
        resolve_model("org/name", "v2")


def test_names_of_models(lisa_repo, monkeypatch):
    assert resolve_model("embedded") == str(EMBEDDED_MODEL)
    assert resolve_model(str(lisa_repo)) == str(lisa_repo)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, revision: Path(lisa_repo, file))
    assert resolve_model("org/name") == "org/name"


@pytest.mark.parametrize("command", ["segment", "demo", "evaluate"])
def test_the_embedded_model_has_a_short_name(command):
    result = CliRunner().invoke(app, given_as(command, "embedded"))
    assert result.exit_code == 0, result.output
    if command == "evaluate":
        assert json.loads(Path("out", "results.json").read_text(encoding="utf-8"))["model"] == "embedded"


def test_training_goes_on_from_the_embedded_model(tmp_path):
    recipe = write_tiny_recipe(tmp_path, max_steps=1, save_strategy="no")
    result = CliRunner().invoke(app, ["train", str(recipe), "--out", "out", "--set", "model=embedded"])
    assert result.exit_code == 0, result.output
    assert json.loads(Path("out", "config.json").read_text(encoding="utf-8"))["model_type"] == "gsva"


def test_a_recipe_that_leaves_its_model_open():
    result = CliRunner().invoke(app, ["train", "lisa_reasonseg", "--out", "out", "--set", "data.path=data"])
    assert result.exit_code == 1
    assert "Set it with --set model=..." in " ".join(result.stderr.split())
