"""`reasonseg train`, `evaluate`, `publish` and `demo`, one after the other on a model that has hardly been trained."""

import json

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.conversion.card import card_trainings
from reasonseg.conversion.publish import publish
from reasonseg.model_names import EMBEDDED_MODEL
from tests.support.hub_server import HubServer, allow_only_this_machine, pinned_revision
from tests.support.installed import installed


SMALL = (
    "towers.steps=1",
    "towers.batch_size=2",
    "arguments.per_device_train_batch_size=2",
    "arguments.max_steps=1",
    "score_steps=1",
)


def run(*arguments: str):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "model"
    settings = [part for override in SMALL for part in ("--set", override)]
    installed("train", "tabletop", "--out", out, *settings, "--set", "arguments.disable_tqdm=true")
    return out


@pytest.mark.slow
def test_what_was_trained_can_be_verified(trained):
    assert json.loads((trained / "manifest.json").read_text())["made_by"] == "training"
    result = run("verify", trained)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_what_was_trained_is_published(trained, tmp_path):
    """Its card says what was done, follows the base's licences, and is pinned to the commit that holds the weights."""
    text = (trained / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text, ignore_metadata_errors=False)
    assert card.data.license == "apache-2.0"
    assert "Trained with reasonseg from random weights" in text
    (training,) = card_trainings(text)
    assert (training["base"], training["data"]) == (None, "tabletops drawn by reasonseg")
    assert training["recipe"]["arguments"]["max_steps"] == 1
    with HubServer() as hub:
        result = installed("publish", trained, "--repo-id", "me/tabletop", "--json", **hub.environment)
        remote = hub.repos["me/tabletop"]
        clone = hub.download("me/tabletop", tmp_path / "clone")
    assert not remote.private
    assert json.loads(result.stdout)["revision"] == pinned_revision((clone / "README.md").read_text())
    assert not {name for name in remote.tree() if name.startswith(("checkpoint-", "towers")) or name.endswith(".bin")}
    assert run("verify", clone).exit_code == 0


@pytest.mark.slow
def test_a_fine_tune_of_the_embedded_model(tmp_path, monkeypatch):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"model: {EMBEDDED_MODEL}\ndata: {{kind: tabletop, length: 2}}\nmask_size: 64\n"
        "arguments: {max_steps: 1, per_device_train_batch_size: 2, disable_tqdm: true, use_cpu: true}\n"
    )
    out = tmp_path / "mine"
    result = run("train", recipe, "--out", out)
    assert result.exit_code == 0, result.output
    text = (out / "README.md").read_text(encoding="utf-8")
    assert str(EMBEDDED_MODEL.parent) not in text, "where something lies on this machine is nobody's business"
    assert [training["base"] for training in card_trainings(text)] == ["the model that comes with reasonseg"]
    assert ModelCard(text).data.license == "apache-2.0"
    again = run("train", recipe, "--out", tmp_path / "again", "--set", f"model={out}")
    assert again.exit_code == 0, again.output
    text = (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    assert [training["base"] for training in card_trainings(text)] == ["the model that comes with reasonseg", "mine"]
    allow_only_this_machine(monkeypatch)
    with HubServer() as hub:
        publish(tmp_path / "again", "me/again", endpoint=hub.endpoint)
        assert "me/again" in hub.repos


@pytest.mark.parametrize(
    "recipe",
    [
        "lisa_image_folder",
        "gsva_image_folder",
        "lisa_reasonseg",
        "ivm",
        "vip_llava_stage2",
        "vip_llava_stage3",
        "vip_llava_lora",
    ],
)
def test_train_asks_for_the_model_that_a_recipe_leaves_open(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it was looked up on the Hub"))
    result = run("train", recipe, "--out", tmp_path / "x")
    assert result.exit_code == 1
    assert "does not name the model to start from. Set it with --set model=" in " ".join(result.stderr.split())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{tmp}/nowhere", "The recipe's model '{tmp}/nowhere': there is no such folder"),
        ("{tmp}", "The recipe's model '{tmp}' holds no model: it has no config.json"),
        ("{tmp}/llava", "has the model_type 'llava'; attend_and_segment, "),
    ],
)
def test_train_refuses_another_model(tmp_path, model, message):
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").write_text('{"model_type": "llava"}')
    settings = ["--set", f"model={model.format(tmp=tmp_path)}", "--set", "data.path=nowhere"]
    result = run("train", "lisa_image_folder", "--out", tmp_path / "x", *settings)
    assert result.exit_code == 1
    assert message.format(tmp=tmp_path) in " ".join(result.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["free", "paper"])
def test_evaluate(trained, tmp_path, protocol):
    arguments = (
        *("evaluate", "--model", trained, "--dataset", "tabletop", "--split", "test_unseen", "--scenes", 2),
        *("--protocol", protocol, "--max-new-tokens", 4, "--out", tmp_path, "--json"),
    )
    if protocol == "free":
        result = installed(*arguments)
    else:
        result = run(*arguments)
        assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.splitlines()[-1])
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert printed == written
    assert written["protocol"] == protocol
    assert written["overall"]["masks"] >= 8
    assert sum(numbers["masks"] for numbers in written["by_type"].values()) == written["overall"]["masks"]
    assert Image.open(tmp_path / "cases.png").size[0] > 100


@pytest.mark.slow
def test_evaluate_on_what_does_not_exist(trained, tmp_path):
    result = run("evaluate", "--model", trained, "--dataset", "nowhere", "--out", tmp_path)
    assert result.exit_code == 1
    assert "There is no data set 'nowhere'" in result.stderr


@pytest.mark.slow
def test_demo(trained, tmp_path):
    image = tmp_path / "out" / "demo.png"
    result = run("demo", "--model", trained, "--seed", 5, "--text", "Where is the red cup?", "--out", image)
    assert result.exit_code == 0, result.output
    assert "Where is the red cup?" in result.stdout
    assert Image.open(image).size == (480, 480 + 32)  # one line of text above it
    again = run("demo", "--model", trained, "--seed", 5, "--out", image, "--json")
    assert again.exit_code == 0, again.output
    assert len(json.loads(again.stdout)) == 3
    assert not list(image.parent.glob("*.partial"))


def test_train_refuses_an_unknown_recipe(tmp_path):
    result = run("train", "nothing", "--out", tmp_path / "x")
    assert result.exit_code == 1
    assert "recipes: difflmm_finetune, difflmm_pretrain, gsva, gsva_image_folder, ivm, lisa" in result.stderr
    assert not (tmp_path / "x").exists()
