"""`reasonseg train`, `evaluate` and `demo`, one after the other on a model that has hardly been trained."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli.app import app


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
    result = run("train", "tabletop", "--out", out, *settings, "--set", "arguments.disable_tqdm=true")
    assert result.exit_code == 0, result.output
    return out


def test_what_was_trained_can_be_verified(trained):
    assert json.loads((trained / "manifest.json").read_text())["made_by"] == "training"
    result = run("verify", trained)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("protocol", ["free", "paper"])
def test_evaluate(trained, tmp_path, protocol):
    result = run(
        *("evaluate", "--model", trained, "--dataset", "tabletop", "--split", "test_unseen", "--scenes", 2),
        *("--protocol", protocol, "--max-new-tokens", 4, "--out", tmp_path, "--json"),
    )
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.splitlines()[-1])
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert printed == written
    assert written["protocol"] == protocol
    assert written["overall"]["masks"] >= 8
    assert sum(numbers["masks"] for numbers in written["by_type"].values()) == written["overall"]["masks"]
    assert Image.open(tmp_path / "cases.png").size[0] > 100


def test_evaluate_on_what_does_not_exist(trained, tmp_path):
    result = run("evaluate", "--model", trained, "--dataset", "nowhere", "--out", tmp_path)
    assert result.exit_code == 1
    assert "There is no data set 'nowhere'" in result.stderr


def test_demo(trained, tmp_path):
    picture = tmp_path / "out" / "demo.png"
    result = run("demo", "--model", trained, "--seed", 5, "--text", "Where is the red cup?", "--out", picture)
    assert result.exit_code == 0, result.output
    assert "Where is the red cup?" in result.stdout
    assert Image.open(picture).size == (480, 480 + 32)  # one line of text above it
    again = run("demo", "--model", trained, "--seed", 5, "--out", picture, "--json")
    assert again.exit_code == 0, again.output
    assert len(json.loads(again.stdout)) == 3
    assert not list(picture.parent.glob("*.partial"))


def test_train_refuses_an_unknown_recipe(tmp_path):
    result = run("train", "nothing", "--out", tmp_path / "x")
    assert result.exit_code == 1
    assert "recipes: gsva, ivm, lisa, tabletop" in result.stderr
    assert not (tmp_path / "x").exists()
