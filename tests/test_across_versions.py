"""
A repository saved with one set of versions computes the same with another, where this package does not exist.

Every run saves one repository of each kind and what it computed, and reads what other runs have left in the folder
that `REASONSEG_EXCHANGE` names; `.ci/run` lets the oldest and the newest versions exchange theirs. Without that folder
a run reads its own.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.parity_data import PARITY
from tests.support.recorded_attention import converted_repo
from tests.test_published_code import run_without_the_package, save_composed


KINDS = ("lisa", "gsva", "ivm", "vip_llava", "difflmm", "attend_and_segment", "reasoning_segmentation")
IMAGES = [PARITY / "lisa" / "images" / name for name in ("img0.png", "img1.png")]
THIS = "-".join(
    [f"python{sys.version_info.major}.{sys.version_info.minor}"]
    + [f"{name}{version(name).partition('+')[0]}" for name in ("transformers", "torch")]
)
TOLERANCE = 1e-5

RUN = """
import json
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

arguments = json.loads(sys.argv[1])
images = [Image.open(path) for path in arguments["images"]]
trust = {"trust_remote_code": True}


def computed(model, processor, kind):
    # One forward pass and one short generation of every kind of model, all of it as tensors.
    questions = ["What is this?", "Where is the dog?"]
    if kind in ("vip_llava", "difflmm"):
        inputs = processor(images=images, text=questions, return_tensors="pt")
    else:
        inputs = processor(images=images, phrases=[["the dog", "a red cup"], ["the tree"]], return_tensors="pt")
        questions = processor(images=images, text=questions, return_tensors="pt")
    found = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    with torch.inference_mode():
        output = model(**inputs)
        for row, masks in enumerate(output.get("pred_masks") or []):
            found[f"pred_masks.{row}"] = masks
        for row, scores in enumerate(output.get("mask_scores") or []):
            found[f"mask_scores.{row}"] = scores
        if output.get("logits") is not None:
            # The placeholder's column holds the lowest number there is; it is compared as such.
            found["logits"] = output.logits
        if kind in ("vip_llava", "difflmm"):
            found["sequences"] = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        elif kind != "ivm":
            written = model.generate_with_masks(**questions, max_new_tokens=4, do_sample=False)
            found["sequences"] = written.sequences
    return {name: value.contiguous().clone() for name, value in found.items()}


differences = {}
for kind, repo in arguments["repos"].items():
    auto = AutoModelForImageTextToText if kind in ("vip_llava", "difflmm") else AutoModel
    model = auto.from_pretrained(repo, **trust).eval()
    processor = AutoProcessor.from_pretrained(repo, **trust)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    assert type(processor).__module__.startswith("transformers_modules."), type(processor).__module__
    if arguments["save_to"]:
        # As somebody would who loads a repository and saves it.
        folder = f"{arguments['save_to']}/{kind}"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        save_file(computed(model, processor, kind), f"{folder}/computed.safetensors")
        continue
    recorded, now = load_file(f"{repo}/computed.safetensors"), computed(model, processor, kind)
    assert recorded.keys() == now.keys(), (kind, recorded.keys() ^ now.keys())
    for name, value in recorded.items():
        assert value.shape == now[name].shape, (kind, name, value.shape, now[name].shape)
        difference = (value.double() - now[name].double()).abs()
        differences[f"{kind} {name}"] = difference.max().item() if value.numel() else 0.0
json.dump(differences, open("differences.json", "w"))
"""


def run_child(folder: Path, repos: dict[str, str], save_to: str) -> None:
    folder.mkdir(parents=True)
    images = [str(path) for path in IMAGES]
    run_without_the_package(RUN, folder, from_nothing=not save_to, repos=repos, images=images, save_to=save_to)


@pytest.fixture(scope="module")
def exchange(tmp_path_factory, lisa_repo, gsva_repo, ivm_repo, vip_llava_repo, difflmm_repo) -> Path:
    """The folder of all runs, with what this one saved in it."""
    folder = Path(os.environ.get("REASONSEG_EXCHANGE") or tmp_path_factory.mktemp("exchange"))
    if not (folder / THIS).is_dir():
        composed = tmp_path_factory.mktemp("composed")
        save_composed(lisa_repo, composed)
        repos = (lisa_repo, gsva_repo, ivm_repo, vip_llava_repo, difflmm_repo, converted_repo(), composed)
        staging = tmp_path_factory.mktemp("staging") / THIS
        staging.mkdir()
        run_child(
            tmp_path_factory.mktemp("saving") / "child",
            dict(zip(KINDS, map(str, repos), strict=True)),
            save_to=str(staging),
        )
        folder.mkdir(parents=True, exist_ok=True)
        staging.rename(folder / THIS)
    return folder


def test_every_saved_repository_computes_the_same_here(exchange, tmp_path):
    saved_with = sorted(entry.name for entry in exchange.iterdir())
    assert THIS in saved_with
    print(f"\nread with {THIS}:")
    for name in saved_with:
        repos = {kind: str(exchange / name / kind) for kind in KINDS}
        run_child(tmp_path / name, repos, save_to="")
        differences = json.loads((tmp_path / name / "differences.json").read_text(encoding="utf-8"))
        assert {key.split()[0] for key in differences} == set(KINDS)
        largest = max(differences, key=differences.get)
        print(f"  saved with {name}: at most {differences[largest]:.1e} ({largest})")
        wrong = {key: value for key, value in differences.items() if not value <= TOLERANCE}
        assert not wrong, f"saved with {name}, read with {THIS}: {wrong}"
