"""Sharded parameters: what is saved is the whole repository, with adapters merged and its own code."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

from reasonseg.training.checkpoints import why_incomplete
from reasonseg.training.trainer import TRAINED_PARTS_FILE
from tests.support.tiny_mixture import write_mixture_recipe, write_tiny_repo


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "accelerate"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def trained_by(command: list, folder: Path) -> tuple[Path, Path]:
    """A tiny LISA and what two processes make of it in two steps."""
    repo = write_tiny_repo("lisa", folder / "repo")
    arguments = {"max_steps": 2, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 2}
    options = {"groups": "reason_seg", "rates": [1]}
    recipe = write_mixture_recipe(repo, folder / "recipe.yaml", options, arguments=arguments)
    run = subprocess.run(
        [str(part).format(recipe=recipe, out=folder / "out") for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return repo, folder / "out"


def assert_whole(repo: Path, out: Path) -> None:
    """The checkpoint and the finished repository have all weights: frozen ones as they were, others trained."""
    assert why_incomplete(out / "checkpoint-2") is None
    after = load_file(out / "checkpoint-2" / "model.safetensors")
    finished, parts = load_file(out / "model.safetensors"), load_file(out / TRAINED_PARTS_FILE)
    assert finished.keys() == after.keys()
    assert all(torch.equal(value, finished[name]) for name, value in after.items())
    model = AutoModel.from_pretrained(out)
    assert type(model).__name__ == "LisaForReasoningSegmentation"
    original = AutoModel.from_pretrained(repo).state_dict()
    for name, value in model.state_dict().items():
        adapter = name.removesuffix(".weight") + ".lora_{}.default.weight"
        if adapter.format("A") in parts:
            # alpha is 16 and r is 4
            change = 4 * parts[adapter.format("B")] @ parts[adapter.format("A")]
            torch.testing.assert_close(value, original[name] + change)
        else:
            assert torch.equal(value, parts.get(name, original[name])), name
    changed = [name for name, value in parts.items() if name in original and not torch.equal(value, original[name])]
    assert any("mask_decoder" in name for name in changed)
    assert any("lm_head" in name for name in changed)
    code = {path.name for path in out.glob("*.py")}
    assert {"modeling_lisa.py", "segmenters.py"} <= code
    assert not [path for path in out.rglob("*.py") if path.name.startswith(("_fsdp", "zero_to"))]


@pytest.mark.rare
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Without fork both processes would import everything.")
def test_fsdp(tmp_path):
    script = ROOT / "tests" / "support" / "fsdp_on_cpu.py"
    assert_whole(*trained_by([sys.executable, script, "{recipe}", "{out}", free_port()], tmp_path))


@pytest.mark.rare
def test_zero(tmp_path):
    pytest.importorskip("deepspeed", reason="ZeRO needs deepspeed, which nothing here asks for.")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", 2]
    config = ["--config_file", CONFIGS / "deepspeed_zero2.yaml", "--mixed_precision", "no"]
    port = ["--main_process_port", free_port()]
    command = [*launch, *config, *port, "-m", "reasonseg", "train", "{recipe}", "--out", "{out}"]
    assert_whole(*trained_by(command, tmp_path))


def test_the_files_say_what_the_originals_trained_with():
    zero = yaml.safe_load((CONFIGS / "deepspeed_zero2.yaml").read_text(encoding="utf-8"))
    assert zero["deepspeed_config"]["zero_stage"] == 2
    gsva = yaml.safe_load((CONFIGS / "deepspeed_zero2_gsva.json").read_text(encoding="utf-8"))["zero_optimization"]
    assert (gsva["stage"], float(gsva["reduce_bucket_size"]), float(gsva["allgather_bucket_size"])) == (2, 1e9, 1e9)
