"""Training runs that are killed: what is on disk is whole, and the next run resumes from it, bit for bit."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from reasonseg.training import checkpoints
from reasonseg.training.checkpoints import newest_complete, why_incomplete
from reasonseg.training.recipe import RecipeError, load_recipe
from reasonseg.training.run import run_recipe
from tests.support.forked_python import fork_server
from tests.support.installed import EXECUTABLE
from tests.support.tiny_training import write_tiny_recipe


ROOT = Path(__file__).parents[2]
KILLS = 20


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_tiny_recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """A finished run with three checkpoints."""
    out = tmp_path_factory.mktemp("trained") / "out"
    run_recipe(load_recipe(str(recipe), ["arguments.max_steps=3"]), out)
    return out


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Without fork every run would import torch again.")
@pytest.mark.timeout(300)
def test_twenty_kills_and_twenty_resumes(recipe, tmp_path):
    out = tmp_path / "out"
    script = Path(__file__).parents[1] / "support" / "kill_and_resume.py"
    run = subprocess.run(
        [sys.executable, str(script), str(recipe), str(out), str(KILLS)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    killed = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"was_writing"')]
    assert len(killed) == KILLS
    assert any(record["was_writing"] for record in killed), "every kill came too late to test anything"
    assert all(record["incomplete"] == [] for record in killed)
    assert run.stderr.count(f"Resuming from {out}/checkpoint-") == KILLS
    names = {path.name for path in out.iterdir()}
    assert not {name for name in names if name.startswith(".")}, "drafts were left"
    assert {file.name for file in out.iterdir() if file.is_file()} == {
        file.name for file in out.with_name("out-straight").iterdir() if file.is_file()
    }
    straight = load_file(out.with_name("out-straight") / "model.safetensors")
    for name, value in load_file(out / "model.safetensors").items():
        assert torch.equal(value, straight[name]), name


@pytest.mark.slow
def test_a_run_that_resumes_within_a_later_epoch_takes_the_examples_in_the_same_order(recipe, tmp_path):
    """Four examples an epoch: the sixth step is the second of the second epoch."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run_recipe(load_recipe(str(recipe), ["arguments.max_steps=7"]), straight)
    run_recipe(load_recipe(str(recipe), ["arguments.max_steps=5"]), resumed)
    run_recipe(load_recipe(str(recipe), ["arguments.max_steps=7"]), resumed, resume=True)
    weights = load_file(resumed / "model.safetensors")
    for name, value in load_file(straight / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_resumes_from_the_newest_complete_checkpoint_and_says_so(recipe, tmp_path):
    out = tmp_path / "out"
    command = [EXECUTABLE, "train", recipe, "--out", out]
    run = fork_server().start(*command)
    while not (out / "checkpoint-2").is_dir():
        assert run.poll() is None
        time.sleep(0.01)
    refused = fork_server().run(*command, "--resume")
    assert refused.returncode == 1
    assert "Another process writes to" in refused.stderr
    run.kill()
    run.wait()
    newest = checkpoints.list_checkpoints(out)[0]
    # As runs left it that gave a checkpoint its name first and filled it then.
    (newest / "trainer_state.json").unlink()
    before = checkpoints.list_checkpoints(out)[1]
    steps = int(newest.name.rpartition("-")[2])
    resumed = fork_server().run(*command, "--resume", "--set", f"arguments.max_steps={steps}")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert f"{newest} is not complete (it has no trainer_state.json)" in resumed.stderr
    assert f"Resuming from {before}." in resumed.stderr
    assert why_incomplete(newest) is None, "the run has come to this step again"
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    AutoModel.from_pretrained(out)


def cut(name: str, size: int | None = None):
    """Leaves only the first bytes of a file of the newest checkpoint, or removes it."""

    def damage(checkpoint: Path) -> None:
        path = checkpoint / name
        content = path.read_bytes()
        path.unlink()
        if size is not None:
            path.write_bytes(content[:size])

    return damage


def empty(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut("trainer_state.json"), "it has no trainer_state.json"),
        (cut("trainer_state.json", 20), "its trainer_state.json is damaged"),
        (cut("model.safetensors"), "it has no weights"),
        (cut("model.safetensors", 5000), "its model.safetensors is damaged"),
        (cut("model.safetensors", 0), "its model.safetensors is damaged"),
        (cut("optimizer.pt"), "it has no state of the optimizer"),
        (cut("optimizer.pt", 5000), "its optimizer.pt is damaged"),
        (cut("scheduler.pt"), "it has no state of the learning rate"),
        (cut("rng_state.pth"), "it has no state of the random numbers"),
        (cut("rng_state.pth", 100), "its rng_state.pth is damaged"),
        (empty, "it has no trainer_state.json"),
    ],
)
def test_a_checkpoint_that_is_not_complete_is_passed_over(trained, tmp_path, damage, reason, caplog):
    out = tmp_path / "out"
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-3"):
        (out / name).mkdir(parents=True)
        for path in (trained / name).iterdir():
            if path.suffix != ".py":
                (out / name / path.name).write_bytes(path.read_bytes())
    assert newest_complete(out) == out / "checkpoint-3"
    assert not caplog.records
    damage(out / "checkpoint-3")
    assert newest_complete(out) == out / "checkpoint-2"
    assert f"{out / 'checkpoint-3'} is not complete ({reason}); looking for an older one." in caplog.messages


def test_a_lost_shard_is_noticed(trained):
    index = trained / "checkpoint-3" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}))
    assert why_incomplete(trained / "checkpoint-3") == "it has no other.safetensors"
    index.write_text("{")
    assert why_incomplete(trained / "checkpoint-3") == "its model.safetensors.index.json is damaged"
    index.unlink()
    (trained / "checkpoint-3" / "optimizer.pt").unlink()
    assert why_incomplete(trained / "checkpoint-3", with_optimizer=False) is None


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_again(recipe, tmp_path, monkeypatch, caplog):
    out = tmp_path / "out"
    settings = load_recipe(str(recipe), ["arguments.max_steps=1"])

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("reasonseg.training.trainer.put_in_place", stop)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(settings, out)
    assert (out / checkpoints.CHECKPOINT_DRAFT / "checkpoint-1").is_dir()
    monkeypatch.undo()
    run_recipe(settings, out, resume=True)
    assert "has no complete checkpoint; starting from the beginning" in caplog.text
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"checkpoint-1"}
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    with pytest.raises(RecipeError, match="no checkpoint in"):
        run_recipe(settings, tmp_path / "nothing", resume=True)


@pytest.mark.slow
def test_a_stop_while_the_finished_repository_is_written_leaves_the_old_one(recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_recipe(load_recipe(str(recipe), ["arguments.max_steps=1"]), out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    def stop(draft, target):
        assert (draft / "model.safetensors").stat().st_size < (target / "model.safetensors").stat().st_size
        raise KeyboardInterrupt

    longer = load_recipe(str(recipe), ["arguments.max_steps=2", "storage_dtype=float16"])
    monkeypatch.setattr("reasonseg.training.run.move_files_in_place", stop)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(longer, out, resume=True)
    assert {
        path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != ".unfinished"
    } == before
    monkeypatch.undo()
    (out / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier, larger model")
    run_recipe(longer, out, resume=True)
    assert {path.name for path in out.iterdir() if path.is_file()} == before.keys()
    assert (out / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_only_the_newest_checkpoints_are_kept(recipe, tmp_path):
    settings = load_recipe(str(recipe), ["arguments.max_steps=3", "arguments.save_total_limit=2"])
    run_recipe(settings, tmp_path / "out")
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "out")] == ["checkpoint-3", "checkpoint-2"]
