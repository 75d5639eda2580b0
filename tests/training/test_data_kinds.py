"""Kinds of data and first stages of one's own, and that nothing is imported before a recipe asks for it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from reasonseg.data.example import Example
from reasonseg.loading import import_object
from reasonseg.training.collator import SegmentationCollator
from reasonseg.training.data_kinds import DATA_KINDS, FIRST_STAGES, NEW_MODELS, DataKind, FirstStage
from reasonseg.training.recipe import RecipeError, describe_recipe, load_recipe
from reasonseg.training.run import run_recipe
from tests.support.forked_python import fork_server
from tests.support.tiny_training import write_tiny_recipe


class Squares(DataKind):
    """White squares on black; `data.options` may hold `side`."""

    def check(self, recipe):
        if recipe.data.options.get("side", 8) > 32:
            raise RecipeError("data.options.side must be 32 at most.")

    def dataset(self, recipe):
        mask = np.zeros((64, 64), dtype=bool)
        mask[: recipe.data.options.get("side", 8), :8] = True
        image = np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255
        return [Example(image, ["What is the box?"], ["the box [SEG]."], [[mask]])] * 4

    def collator(self, recipe, processor):
        return SegmentationCollator(processor, recipe.mask_size)

    def names(self, data):
        return "squares"


@dataclass
class Doubling(FirstStage):
    """Doubles one parameter before the training."""

    times: int = 1

    def check(self, recipe):
        if self.times < 1:
            raise RecipeError("doubling.times must be at least 1.")

    def run(self, recipe, model, processor, data, out, resumed):
        with torch.no_grad():
            model.seg_projector.linear_1.weight.mul_(2.0**self.times)
        return data[:2]


@pytest.fixture
def own_entries(monkeypatch):
    monkeypatch.setitem(DATA_KINDS, "squares", f"{__name__}:Squares")
    monkeypatch.setitem(FIRST_STAGES, "doubling", f"{__name__}:Doubling")


@pytest.mark.parametrize("entry", [*DATA_KINDS.values(), *FIRST_STAGES.values(), *NEW_MODELS.values()])
def test_entries_lead_somewhere(entry):
    found = import_object(entry)
    expected = {**dict.fromkeys(DATA_KINDS.values(), DataKind), **dict.fromkeys(FIRST_STAGES.values(), FirstStage)}
    assert callable(found) if entry in NEW_MODELS.values() else issubclass(found, expected[entry])


def test_a_kind_and_a_first_stage_of_ones_own(own_entries, tmp_path):
    path = write_tiny_recipe(tmp_path, learning_rate=0.0, save_strategy="no")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["data"] = {"kind": "squares", "options": {"side": 16}}
    values["doubling"] = {"times": 2}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    recipe = load_recipe(path, ["arguments.max_steps=1"])
    assert describe_recipe(recipe)["doubling"] == {"times": 2}
    assert describe_recipe(recipe)["data"] == values["data"]
    assert recipe.kind.names(recipe.data) == "squares"
    run_recipe(recipe, tmp_path / "out")
    name = "seg_projector.linear_1.weight"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (tmp_path / "repo", tmp_path / "out"))
    torch.testing.assert_close(after, 4 * before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.options.side=40", "must be 32 at most"),
        ("doubling.times=0", "must be at least 1"),
        ("doubling.size=1", r"doubling has unknown fields \['size'\]; there are \['times'\]"),
        ("doubling=1", "doubling must hold named fields"),
        ("first_stages={}", r"unknown fields \['first_stages'\]; there are .*'doubling', 'dtype', 'dwsl'"),
    ],
)
def test_they_check_what_they_are_given(own_entries, override, message):
    values = ["model=x", "data={kind: squares}", "lora=null", override]
    with pytest.raises(RecipeError, match=message):
        load_recipe("lisa_image_folder", values)


def test_a_recipe_imports_only_what_it_names():
    code = (
        "import sys; from reasonseg.training import run; from reasonseg.training.recipe import load_recipe; "
        "load_recipe('lisa_image_folder', ['model=x']).kind; "
        "unwanted = ('training.regions', '.ivm_mix'); "
        "print([name for name in sys.modules if 'tabletop' in name or name.endswith(unwanted)])"
    )
    run = fork_server().run("-c", code)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
