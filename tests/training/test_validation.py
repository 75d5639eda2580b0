"""Validation while a model learns: numbers in the logs, the best checkpoint kept, and a run that resumes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from reasonseg.evaluation.registry import BENCHMARKS, Benchmark, Models, Outcome
from reasonseg.training.checkpoints import list_checkpoints
from reasonseg.training.recipe import RecipeError, load_recipe
from reasonseg.training.run import run_recipe
from tests.support.tiny_mixture import write_mixture_recipe, write_tiny_repo


# The numbers that are measured one after the other, and what was measured with.
SCORES = [0.9, 0.2, 0.5]
CALLS = []


class Numbers:
    """A result as benchmarks give it."""

    def __init__(self, giou: float):
        self.giou = giou

    def to_dict(self):
        return {"protocol": "paper", "overall": {"giou": self.giou, "masks": 3}, "by_type": {"colour": {"giou": 0.1}}}


def measured(options, data):
    """A run that looks at the model in memory and takes its number from the list."""
    model, processor = options.load_model(), options.load_processor()
    assert (options.repository, options.protocol, data) == ("the model that is trained", "paper", ("val", 7))
    assert not model.training
    assert processor.seg_token == "[SEG]"
    assert any(".lora_" in name for name, _ in model.named_parameters()), "it is measured as it learns"
    (options.out / "answers").mkdir(parents=True)  # fails if those of earlier weights are there
    CALLS.append(options)
    return Outcome(Numbers(SCORES[(len(CALLS) - 1) % len(SCORES)]))


def read(split, limit):
    return split, limit


@pytest.fixture
def preset(monkeypatch):
    CALLS.clear()
    benchmark = Benchmark(
        "preset",
        "numbers of a list",
        Models("segment"),
        reader=f"{__name__}:read",
        reads={"split": "split", "limit": "limit"},
        run=f"{__name__}:measured",
        protocols={"free": "as it comes", "paper": "as published"},
        metrics=("gIoU",),
        needs=("model",),
        splits=("test", "val"),
    )
    monkeypatch.setitem(BENCHMARKS, "preset", benchmark)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return write_tiny_repo("gsva", tmp_path_factory.mktemp("tiny") / "gsva")


def recipe_of(repo, folder, every=2, steps=6, metric="gIoU", **validation):
    section = {"dataset": "preset", "split": "val", "protocol": "paper", "limit": 7, "every": every, "metric": metric}
    arguments = {
        "max_steps": steps,
        "per_device_train_batch_size": 1,
        "save_total_limit": 2,
        "activation_checkpointing": True,
    }
    options = {"groups": "refer_seg||vqa||reason_seg", "rates": [1, 1, 1], "samples_per_epoch": 4}
    sections = {"validation": {**section, **validation}, "arguments": arguments}
    return load_recipe(write_mixture_recipe(repo, folder / "recipe.yaml", options, **sections))


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_a_run_resumes_bit_for_bit(preset, repo, tmp_path, caplog):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run_recipe(recipe_of(repo, tmp_path), straight)
    assert len(CALLS) == 3
    assert not any(options.out.exists() for options in CALLS)
    # of two that are kept, the best is one
    assert [path.name for path in list_checkpoints(straight)] == ["checkpoint-6", "checkpoint-2"]
    found = json.loads((straight / "validation.json").read_text(encoding="utf-8"))
    assert found["best"] == {"step": 2, "gIoU": 0.9}
    measured_at = [(entry["step"], entry["gIoU"], entry["masks"]) for entry in found["history"]]
    assert measured_at == [(2, 0.9, 3), (4, 0.2, 3), (6, 0.5, 3)]
    assert_equal(weights_of(straight), weights_of(straight / "checkpoint-2"))
    assert "The finished repository has the weights of checkpoint-2: eval_gIoU was 0.9000." in caplog.text

    # Stopped after its second step, and moved: what is learnt afterwards is the same, and so is what is best.
    shutil.copytree(straight / "checkpoint-2", resumed / "checkpoint-2")
    run_recipe(recipe_of(repo, tmp_path), resumed, resume=True)
    assert_equal(weights_of(resumed / "checkpoint-6"), weights_of(straight / "checkpoint-6"))
    assert_equal(weights_of(resumed), weights_of(straight))
    assert json.loads((resumed / "validation.json").read_text(encoding="utf-8"))["best"] == found["best"]


def test_what_cannot_be_measured_is_refused_before_anything_is_learnt(preset, repo, tmp_path):
    for changed, message in (
        ({"dataset": "nothing"}, "validation: There is no data set 'nothing'"),
        ({"protocol": "loose"}, "validation: --dataset preset has no protocol 'loose'; choose one of free, paper"),
        ({"settings": {"speed": 3}}, "validation: --dataset preset has no setting 'speed'"),
    ):
        with pytest.raises(RecipeError, match=message):
            run_recipe(recipe_of(repo, tmp_path, **changed), tmp_path / "out")
    assert not CALLS
    with pytest.raises(RecipeError, match=r"validation.metric is 'AP'; preset gives giou, masks, by_type/colour/giou"):
        run_recipe(recipe_of(repo, tmp_path, every=1, steps=1, metric="AP"), tmp_path / "out")
