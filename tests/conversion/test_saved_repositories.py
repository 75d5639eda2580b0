"""Trained and saved models get a manifest, and with it everything a converted repository can do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import MANIFEST, read_manifest
from reasonseg.conversion.publish import publish
from reasonseg.conversion.to_original import write_original
from reasonseg.conversion.trained import export_trained, restore
from reasonseg.conversion.verify import add_manifest, verify_repository
from tests.support.hub_server import HubServer, allow_only_this_machine
from tests.support.trained_base import write_base


# What a training run with adapters leaves beside its repository.
STATE = ("checkpoint-4/optimizer.pt", "checkpoint-4/model.safetensors", "runs/x/events", "training_args.bin")


@pytest.fixture(scope="module")
def saved(lisa_repo, tmp_path_factory):
    """A model as `save_pretrained` leaves it, without a card."""
    out = tmp_path_factory.mktemp("saved") / "repo"
    AutoModel.from_pretrained(lisa_repo).save_pretrained(out, save_original_format=False)
    AutoProcessor.from_pretrained(lisa_repo).save_pretrained(out)
    return out


@pytest.fixture
def trained(saved, tmp_path):
    out = shutil.copytree(saved, tmp_path / "trained")
    for name in STATE:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"state")
    save_file({"lora_A": torch.ones(2)}, out / "trained_parts.safetensors")
    return out


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_trained_repository_gets_a_manifest_of_what_belongs_to_it(trained, saved):
    report = add_manifest(trained)
    manifest = read_manifest(trained)
    assert set(manifest["files"]) == set(contents(saved))
    assert manifest["system"] == "lisa"
    assert report.tensors == len(manifest["tensors"]) == len(load_file(trained / "model.safetensors"))
    assert verify_repository(trained).ok
    (trained / "checkpoint-4" / "optimizer.pt").write_bytes(b"trained further")
    assert verify_repository(trained).ok
    (trained / "evil.py").write_text("pass")
    (trained / "config.json").write_text((trained / "config.json").read_text() + " ")
    assert {problem.file for problem in verify_repository(trained).problems} == {"evil.py", "config.json"}


def test_a_converted_repository_may_not_hold_a_training_s_state(lisa_repo, tmp_path):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    (repo / "training_args.bin").write_bytes(b"a pickle")
    assert [problem.file for problem in verify_repository(repo).problems] == ["training_args.bin"]


def test_tensors_of_a_training_have_no_source_to_compare_with(trained, lisa_repo, tmp_path):
    add_manifest(trained)
    report = verify_repository(trained, against={"checkpoint": lisa_repo})
    assert report.ok
    assert report.not_compared == {"training": report.tensors}
    result = run("verify", trained, "--against", lisa_repo)
    assert f"{report.tensors} tensors not compared: their source (training) was not given" in result.stdout
    with pytest.raises(ConversionError, match="No tensor of this repository comes from a checkpoint"):
        write_original(trained, tmp_path / "original")


def test_the_command_and_a_second_manifest(trained):
    assert "are right" in run("verify", trained, "--write-manifest").stdout
    before = (trained / MANIFEST).read_bytes()
    assert "has a manifest already" in " ".join(run("verify", trained, "--write-manifest", code=1).stderr.split())
    assert (trained / MANIFEST).read_bytes() == before
    add_manifest(trained, replace=True)
    assert (trained / MANIFEST).read_bytes() == before
    assert "compares with no source" in run("verify", trained, "--write-manifest", "--sam", "x", code=1).stderr


def test_it_can_be_published_without_its_training_s_state(trained, saved, monkeypatch):
    allow_only_this_machine(monkeypatch)
    with HubServer() as hub:
        with pytest.raises(ConversionError, match="--write-manifest"):
            publish(trained, "org/own", private=True, endpoint=hub.endpoint)
        add_manifest(trained)
        publish(trained, "org/own", private=True, endpoint=hub.endpoint)
        assert set(hub.repos["org/own"].tree()) - {".gitattributes"} == {*contents(saved), MANIFEST}


def test_it_can_be_published_without_its_base(trained, tmp_path):
    add_manifest(trained)
    base = write_base(tmp_path)
    export = export_trained(trained, tmp_path / "export", base=base)
    assert not [name for name in contents(export) if "checkpoint-4" in name or name.endswith(".bin")]
    restore(export, tmp_path / "full", base=base)
    restored, whole = contents(tmp_path / "full"), contents(trained)
    assert restored == {name: whole[name] for name in restored}
    assert verify_repository(tmp_path / "full").ok


def not_finite(repo):
    tensors = load_file(repo / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, repo / "model.safetensors", metadata={"format": "pt"})


def integers(repo):
    tensors = load_file(repo / "model.safetensors") | {"count": torch.ones(1, dtype=torch.int64)}
    save_file(tensors, repo / "model.safetensors", metadata={"format": "pt"})


def of_another_system(repo):
    config = json.loads((repo / "config.json").read_text())
    (repo / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (not_finite, "NaN or infinite"),
        (integers, r"'count' is stored as torch\.int64"),
        (of_another_system, "model_type 'llava'; known are .*lisa"),
        (lambda repo: (repo / "model.safetensors").unlink(), "The weights lack"),
        (lambda repo: (repo / "model.safetensors").write_bytes(b"{}"), "Not a valid safetensors file"),
        (lambda repo: (repo / "processor_config.json").write_text("{"), "cannot be"),
        (lambda repo: (repo / "modeling_lisa.py").write_text("def"), "cannot be parsed"),
        (lambda repo: (repo / "config.json").unlink(), "no such file"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_what_is_not_right_gets_no_manifest(trained, damage, message):
    damage(trained)
    before = contents(trained)
    with pytest.raises(ConversionError, match=message):
        add_manifest(trained)
    assert contents(trained) == before
