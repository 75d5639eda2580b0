"""A recipe that names parts: its model is made once, in the folder of the run, and by nobody else."""

import json

import pytest
from safetensors.torch import load_file
from transformers import AutoModel
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.conversion.card import card_trainings
from reasonseg.training.composed_start import composed_start
from reasonseg.training.recipe import RecipeError, load_recipe
from tests.support.originals import weights
from tests.support.parity_data import gsva_vision_tower
from tests.support.parts import write_llava, write_sam
from tests.training.test_image_folder import folder_with


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "parts: {system: lisa, vlm: A, segmenter: B}\nseed: 3\ndata: {kind: image_folder, path: nowhere}\n"
        "arguments: {use_cpu: true}\n"
    )
    return lambda *overrides: load_recipe(path, overrides)


class Composer:
    """Stands for the function that composes: writes a folder, and keeps what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, parts, repo):
        self.asked.append(dict(parts))
        repo.mkdir()


def test_it_is_made_once(recipe, tmp_path):
    compose, out = Composer(), tmp_path / "out"
    assert composed_start(recipe(), out, compose) == out / "composed"
    assert composed_start(recipe(), out, compose) == out / "composed"
    assert compose.asked == [{"seed": 3, "system": "lisa", "vlm": "A", "segmenter": "B"}]
    assert json.loads((out / "composed.json").read_text()) == compose.asked[0]


def test_one_of_other_parts_is_not_taken(recipe, tmp_path):
    compose, out = Composer(), tmp_path / "out"
    composed_start(recipe(), out, compose)
    with pytest.raises(RecipeError, match=r"was made of .*vlm A; the recipe names .*vlm C\. Choose another folder"):
        composed_start(recipe("parts.vlm=C"), out, compose)
    with pytest.raises(RecipeError, match="seed 4"):
        composed_start(recipe("seed=4"), out, compose)
    (out / "composed.json").unlink()
    with pytest.raises(RecipeError, match="parts that nobody has written down"):
        composed_start(recipe(), out, compose)
    assert len(compose.asked) == 1


def test_a_composition_that_fails_is_made_again(recipe, tmp_path):
    def fail(parts, repo):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        composed_start(recipe(), tmp_path / "out", fail)
    compose = Composer()
    composed_start(recipe("parts.vlm=C"), tmp_path / "out", compose)
    assert compose.asked[0]["vlm"] == "C"
    with pytest.raises(RecipeError, match="pass `compose`"):
        composed_start(recipe(), tmp_path / "out", None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=x", "parts.seed=1"), r"names a model \(x\) and `parts` of a new one; give one of them"),
        (("parts.system=null",), None),
        (("parts={vlm: A}",), "parts.system is missing"),
        (("parts=[a]",), "parts must hold named fields"),
    ],
)
def test_parts_and_a_model(recipe, overrides, message):
    if message is None:
        assert recipe(*overrides).parts["system"] is None  # refused by whoever knows the systems
        return
    with pytest.raises(RecipeError, match=message):
        recipe(*overrides)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("{system: sam}", "The system is 'sam'; made of parts can be"),
        ("{system: lisa, vlm: A}", "LISA cannot be made without --segmenter|without segmenter"),
        ("{system: lisa, vlm: A, segmenter: B, language_model: C}", "LISA is not made with language_model"),
    ],
)
def test_parts_are_checked_before_anything_is_read(tmp_path, parts, message, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it was looked up on the Hub"))
    result = run("train", "lisa", "--set", f"parts={parts}", "--set", "data.path=nowhere", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert any(text in " ".join(result.stderr.split()) for text in message.split("|"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_from_parts(tmp_path):
    """From LLaVA and SAM to a finished repository; what was composed lies beside it and does not belong to it."""
    (tmp_path / "data").mkdir()
    data = folder_with(tmp_path / "data", "It is [SEG].", "Sure, [SEG].")
    parts = {
        "system": "lisa",
        "vlm": str(write_llava(tmp_path / "llava-v1.5-7b")),
        "vision_tower": str(gsva_vision_tower()),
        "segmenter": str(write_sam(tmp_path / "sam_vit_h_4b8939.pth")),
    }
    settings = [
        f"parts={json.dumps(parts)}",
        f"data.path={data}",
        "mask_size=32",
        "arguments={max_steps: 1, per_device_train_batch_size: 1, use_cpu: true, save_strategy: 'no'}",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "out"
    result = run("train", "lisa", *options, "--out", out)
    assert result.exit_code == 0, result.output
    start, end = weights(out / "composed"), load_file(out / "model.safetensors")
    assert start.keys() == end.keys()
    changed = {name for name, value in start.items() if (value.float() != end[name].float()).any()}
    assert {"vlm.lm_head.weight", "seg_projector.linear_1.weight"} <= changed
    assert "vlm.model.multi_modal_projector.linear_1.weight" not in changed
    assert run("verify", out).exit_code == 0
    assert AutoModel.from_pretrained(out).config.model_type == "lisa"
    card = (out / "README.md").read_text(encoding="utf-8")
    (training,) = card_trainings(card)
    assert training["base"].startswith("new parts: llava-v1.5-7b (vision-language model), ")
    assert "| segmenter | sam_vit_h_4b8939.pth | Apache-2.0 |" in card
    assert "(untrained)" not in card
    assert str(tmp_path) not in card, "where something lies on this machine is nobody's business"
