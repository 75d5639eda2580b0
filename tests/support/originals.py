"""Variations of the recorded original checkpoints, written as their authors' tools would write them."""

import copy
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.parity_data import PARITY, unmerged_lisa


LISA = PARITY / "lisa"
GSVA = PARITY / "gsva"
SAM_PREFIX = "model.visual_model."
State = dict[str, torch.Tensor]


def read(path: Path) -> State:
    return torch.load(path, weights_only=True)


_read_once = functools.cache(read)


def lisa_state() -> State:
    return copy.deepcopy(_read_once(LISA / "checkpoint" / "pytorch_model.bin"))


def unmerged_lisa_state(folder: Path) -> State:
    return read(unmerged_lisa(folder))


def gsva_state() -> State:
    return copy.deepcopy(_read_once(GSVA / "gsva-tiny.bin"))


def write_lisa(folder: Path, state: State | None, **config) -> Path:
    """A published LISA folder with these weights (none if `None`) and changes to its config."""
    folder.mkdir(parents=True)
    for file in (LISA / "checkpoint").iterdir():
        if file.suffix != ".bin":
            shutil.copy(file, folder)
    if state is not None:
        torch.save(state, folder / "pytorch_model.bin")
    change_json(folder / "config.json", lambda stored: stored | config)
    return folder


def write_tower(folder: Path, change: Callable[[State, dict], None] | None = None, weights: bool = True) -> Path:
    """The recorded CLIP folder with a change to its weights and config."""
    shutil.copytree(LISA / "vision_tower", folder)
    state = read(folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    if change is not None:
        change(state, config)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    if not weights:
        (folder / "pytorch_model.bin").unlink()
    return folder


def change_json(path: Path, change: Callable[[dict], dict]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def weights(folder: Path) -> State:
    """All tensors of a converted repository."""
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
