"""Puts the recorded attend-and-segment checkpoint together."""

import atexit
import hashlib
import json
import math
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch

from reasonseg.conversion.convert_attend_and_segment import convert_attend_and_segment
from tests.support.parity_data import PARITY


RECORDED = PARITY / "attend_and_segment"
LLAVA = RECORDED / "checkpoint" / "llava-v1.5-7b"
TOWER = RECORDED / "checkpoint" / "clip-vit-large-patch14-336"
IMAGES = ("000000000001", "000000000002")


@cache
def recorded_sam() -> Path:
    """
    Write the recorded SAM in its original layout and return the file's path.

    Its random weights were drawn name by name with one seed, so only what deviates from that is stored.

    Raises:
        AssertionError: This version of torch draws other numbers.
    """
    folder = Path(tempfile.mkdtemp(prefix="recorded-sam-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    about = json.loads((RECORDED / "checkpoint" / "sam_tiny.json").read_text(encoding="utf-8"))
    with np.load(RECORDED / "checkpoint" / "sam_tiny.npz", allow_pickle=False) as arrays:
        stored = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    generator = torch.Generator().manual_seed(about["seed"])
    state, digest = {}, hashlib.sha256()
    for name in sorted(about["shapes"]):
        shape = about["shapes"][name]
        if "gaussian_matrix" in name:
            state[name] = stored[name]
        else:
            drawn = torch.randn(shape, generator=generator)
            if len(shape) > 1:
                drawn = drawn * 1.15 / math.sqrt(math.prod(shape[1:]))
            elif ".norm" in name and name.endswith("weight"):
                drawn = 1 + 0.2 * drawn
            else:
                drawn = 0.15 * drawn
            state[name] = stored.get(name, drawn.half())
            if f"{name}@places" in stored:
                state[name].view(-1)[stored[f"{name}@places"].long()] = stored[f"{name}@values"]
        digest.update(state[name].contiguous().numpy().tobytes())
    assert digest.hexdigest() == about["sha256"], "these are not the recorded weights"
    torch.save({name: state[name] for name in about["shapes"]}, folder / "sam_tiny.pth")
    return folder / "sam_tiny.pth"


@cache
def converted_repo() -> Path:
    """Convert the recorded LLaVA-1.5, CLIP and SAM into one repository and return its path; do not change it."""
    folder = Path(tempfile.mkdtemp(prefix="attend-and-segment-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    convert_attend_and_segment(LLAVA, sam=recorded_sam(), vision_tower=TOWER, out=folder / "repo")
    return folder / "repo"


def recorded_chunks(chunks: list[dict]) -> list[tuple[int, int, int, int]]:
    """Recorded noun chunks in the form that a phrase extractor returns."""
    return [
        (
            chunk["start"],
            chunk["start"] + len(chunk["text"]),
            chunk["root_idx"],
            chunk["root_idx"] + len(chunk["root"]),
        )
        for chunk in chunks
    ]


__all__ = ["IMAGES", "LLAVA", "RECORDED", "TOWER", "converted_repo", "recorded_chunks", "recorded_sam"]
