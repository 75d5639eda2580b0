"""Putting a trained model into the package: what is kept, and a card whose numbers come from its files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from reasonseg.tabletop import build_embedded


NUMBERS = {"masks": 3, "giou": 0.5, "ciou": 0.25, "n_acc": None, "t_acc": 1.0, "pr@0.5": 2 / 3}


@pytest.fixture
def trained(tmp_path):
    """The files of a training run, with a checkpoint, a finished first stage and code beside the weights."""
    folder = tmp_path / "trained"
    checkpoint = folder / "checkpoint-40"
    checkpoint.mkdir(parents=True)
    (folder / "towers").mkdir()
    (folder / "towers" / "notes.json").write_text("{}", encoding="utf-8")
    save_file({"weight": torch.zeros(1000, 2, dtype=torch.float16)}, folder / "model.safetensors")
    config = {"model_type": "gsva", "auto_map": {"AutoConfig": "x"}, "vlm": {"auto_map": {}, "width": 1}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    vocabulary = {"model": {"vocab": {"red": 0, "cup": 1}}}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "modeling_gsva.py").write_text("code", encoding="utf-8")
    logs = [{"step": 2 * n, "loss": 1.0, "decision_loss": 1 / n, "mask_dice_loss": 2 / n} for n in range(1, 21)]
    state = {"log_history": [*logs, {"step": 40, "train_runtime": 9.0}]}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"
    by_type = {"relation": NUMBERS}
    content = {"split": "test", "questions": 2, "protocol": "free", "by_type": by_type, "overall": NUMBERS}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_model_replaces_the_one_before(trained, results, tmp_path, monkeypatch):
    target = tmp_path / "embedded"
    target.mkdir()
    (target / "old.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(build_embedded, "EMBEDDED_MODEL", target)
    assert build_embedded.embed(trained, [results], minutes=71.4) == target
    kept = {path.name for path in target.rglob("*")}
    assert kept == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert json.loads((target / "config.json").read_text()) == {"model_type": "gsva", "vlm": {"width": 1}}
    assert {path.name for path in tmp_path.iterdir()} == {"trained", "results.json", "embedded"}, "nothing half-done"

    card = (target / "README.md").read_text(encoding="utf-8")
    assert "of 0.0 million parameters" in card
    assert "71 minutes" in card
    assert "(2 words)" in card
    assert "| relation | 3 | 0.500 | 0.250 | - | 1.000 | 0.667 |" in card
    assert "| **all** | 3 |" in card
    assert "| step | decision | mask dice |\n|---:|---:|---:|\n| 4 | 0.75 | 1.50 |" in card
    assert "| 40 | 0.05 | 0.10 |" in card


def test_without_a_checkpoint_there_is_no_curve(trained, results, tmp_path, monkeypatch):
    monkeypatch.setattr(build_embedded, "EMBEDDED_MODEL", tmp_path / "embedded")
    (trained / "checkpoint-40" / "trainer_state.json").unlink()
    card = (build_embedded.embed(trained, [results]) / "README.md").read_text(encoding="utf-8")
    assert "| step |" not in card
    assert "minutes" not in card


def test_no_weights_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(build_embedded, "EMBEDDED_MODEL", tmp_path / "embedded")
    with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors; train with"):
        build_embedded.embed(tmp_path, [])
    assert not (tmp_path / "embedded").exists()
