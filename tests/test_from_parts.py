"""From LLaVA, CLIP and SAM to a published model: composed, trained on the mixture, scored, loaded."""

import json

import pytest
import torch
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.data.lisa_mixture import LisaMixture
from reasonseg.evaluation.referring_benchmarks import DATA_SETS
from reasonseg.training.instruction_mixture import InstructionCollator
from tests.support import tiny
from tests.support.hub_server import HubServer, allow_only_this_machine
from tests.support.parity_data import gsva_vision_tower
from tests.support.parts import write_llava
from tests.support.recorded_data_sets import DATA_ROOT


STEPS = 30
SPLITS = {"refzom": "test"}
QUICK = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 2,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "bf16": False,
    "activation_checkpointing": False,
    "use_cpu": True,
    "dataloader_num_workers": 0,
    "disable_tqdm": True,
}


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """LLaVA v1 as its authors saved it, its CLIP, and a SAM of transformers that draws on small images."""
    folder = tmp_path_factory.mktemp("parts")
    tiny.randomize(AutoModel.from_config(tiny.sam_config())).save_pretrained(folder / "sam")
    llava = write_llava(folder / "llava")
    return {"vlm": str(llava), "vision_tower": str(gsva_vision_tower()), "segmenter": str(folder / "sam")}


def loss_on(repo, system):
    """Of a repository on 8 images of the mixture that its training does not draw in this order."""
    model, processor = AutoModel.from_pretrained(repo, dtype="float32").eval(), AutoProcessor.from_pretrained(repo)
    mixture = LisaMixture(DATA_ROOT, system, samples_per_epoch=8, seed=5)
    with torch.no_grad():
        return float(model(**InstructionCollator(processor)([mixture[index] for index in range(8)])).loss)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["lisa", "gsva"])
def test_parts_learn_are_scored_and_published(system, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = [word for name, path in parts.items() for word in (f"--{name.replace('_', '-')}", path)]
    run("compose", "--system", system, *named, "--out", "composed")

    # The recipe's own LLaVA is a delta to LLaMA; this one is whole.
    fields = {"parts.base": None, "parts.delta": None, **{f"parts.{name}": path for name, path in parts.items()}}
    fields |= {f"arguments.{name}": value for name, value in QUICK.items()}
    fields |= {"data.path": str(DATA_ROOT), "mask_size": 32, "validation.data": str(DATA_ROOT)}
    fields |= {"validation.every": 15, "validation.limit": 2, "data.options.classes_per_sample": 2}
    changed = [word for name, value in fields.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    run("train", system, "--out", "trained", *changed)
    # A recipe starts from the very repository that the command makes of its parts.
    starts = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("composed", "trained/composed")]
    assert starts[0] == starts[1]
    assert loss_on("trained", system) < loss_on("composed", system) - 0.5
    history = json.loads((tmp_path / "trained" / "validation.json").read_text(encoding="utf-8"))["history"]
    assert [entry["step"] for entry in history] == [15, STEPS]

    for data_set in DATA_SETS:
        protocol = "fixed" if system == "lisa" and data_set in ("grefcoco", "refzom") else "paper"
        options = ("--data", DATA_ROOT, "--split", SPLITS.get(data_set, "val"), "--protocol", protocol, "--limit", 2)
        run("evaluate", "--model", "trained", "--dataset", data_set, *options, "--out", f"scores/{data_set}")
        numbers = json.loads((tmp_path / "scores" / data_set / "results.json").read_text(encoding="utf-8"))["overall"]
        low, high = numbers["giou_interval"]
        assert 0 <= low <= numbers["giou"] <= high <= 1

    allow_only_this_machine(monkeypatch)
    with HubServer() as hub:
        run("publish", "trained", "--repo-id", "org/new", "--private", "--hub", hub.endpoint)
        downloaded = hub.download("org/new", tmp_path / "downloaded")
    outputs = []
    for repo in ("trained", downloaded):
        model, processor = AutoModel.from_pretrained(repo).eval(), AutoProcessor.from_pretrained(repo)
        image = DATA_ROOT / "refer_seg" / "images" / "mscoco" / "images" / "train2014"
        inputs = processor(
            images=[str(sorted(image.glob("*.jpg"))[0])], phrases=[["the cup", "a dog"]], return_tensors="pt"
        )
        with torch.no_grad():
            outputs.append(model(**inputs).pred_masks[0])
    assert torch.equal(*outputs)
