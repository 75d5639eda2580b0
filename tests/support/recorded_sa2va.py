"""The recorded Sa2VA checkpoints, converted, and what the original made of them."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from reasonseg.conversion.convert_sa2va import convert_sa2va
from reasonseg.modeling.segmenters import NO_OBJECT
from tests.support.parity_data import PARITY


SA2VA = PARITY / "sa2va"
FAMILIES = ("qwen3_vl", "llava", "internvl", "sam3", "qwen2_5_vl")
# Whose SAM 2, and whose files that a recording does not have itself.
_SAM2_OF = {"internvl": "llava", "qwen2_5_vl": "qwen3_vl"}


@cache
def meta(family: str) -> dict:
    read = json.loads((SA2VA / family / "meta.json").read_text(encoding="utf-8"))
    return read if "dropped" in read else {**read, "dropped": meta(_SAM2_OF[family])["dropped"]}


@cache
def tensors(family: str) -> dict[str, torch.Tensor]:
    """By `case/name`; shared, so do not write to them."""
    return load_file(SA2VA / family / "tensors.safetensors")


def recorded_case(family: str, case: str) -> dict[str, torch.Tensor]:
    return {name[len(case) + 1 :]: value for name, value in tensors(family).items() if name.startswith(f"{case}/")}


def recorded_logits(family: str, case: str) -> torch.Tensor:
    """Every eighth logit of the chosen masks `(slots, height, width)`; SAM 3 empties those of a low object score."""
    recorded, best = recorded_case(family, case), torch.tensor(meta(family)[case]["best"])
    logits = recorded["low_res_s8"][torch.arange(len(best)), best]
    if family != "sam3":
        return logits
    return torch.where(recorded["object_score_logits"][:, None, None] > 0, logits, NO_OBJECT)


def recorded_image(family: str, case: str) -> Image.Image:
    if "image" in meta(family)[case]:
        return Image.open(SA2VA / family / f"{meta(family)[case]['image']}.png").convert("RGB")
    number = meta(family)[case].get("image_index", 0 if "img1" not in case else 1)
    return Image.open(SA2VA / "images" / f"img{number}.png").convert("RGB")


def recorded_masks(family: str, case: str, width: int) -> np.ndarray:
    """Bool masks `(slots, height, width)`."""
    packed = recorded_case(family, case)
    masks = [packed[f"mask{slot}_packed"].numpy() for slot in range(sum("_packed" in name for name in packed))]
    return np.stack([np.unpackbits(mask, axis=-1, count=width).astype(bool)[0] for mask in masks])


def sam_options(family: str) -> dict:
    """What the weights of a small SAM 2 or 3 do not show."""
    sizes = meta(family)["config"]
    if family == "sam3":
        return sizes
    return {
        "num_attention_heads": sizes["heads"],
        "window_size_per_stage": sizes["window"],
        "global_attention_blocks": sizes["glob"],
    }


def write_checkpoint(folder: Path, family: str, head: Path | None = None) -> Path:
    """The checkpoint with the memory for videos, which the recording leaves out, as zeros, and in float32 what it
    holds in float16, exactly. Some are completed by another recording, see `tests/parity/README.md`."""
    if family in ("sam3", "qwen2_5_vl"):  # their tokenizer is that of Qwen3-VL's
        shutil.copytree(SA2VA / "qwen3_vl" / "checkpoint", folder)
    if (SA2VA / family / "checkpoint").is_dir():
        shutil.copytree(SA2VA / family / "checkpoint", folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    if family == "sam3":
        weights = {name: value for name, value in weights.items() if not name.startswith("grounding_encoder.")}
        weights |= load_file(SA2VA / "sam3" / "grounding_encoder.safetensors")
    elif family in _SAM2_OF:
        others = load_file(SA2VA / _SAM2_OF[family] / "checkpoint" / "model.safetensors")
        weights |= {name: value for name, value in others.items() if name.startswith("grounding_encoder.")}
    weights = {name: value.float() if value.dtype == torch.float16 else value for name, value in weights.items()}
    weights |= {name: torch.zeros(shape) for name, shape in meta(family)["dropped"].items()}
    if head is not None:
        weights |= load_file(head)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@cache
def checkpoint(family: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"sa2va-{family}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_checkpoint(folder / "checkpoint", family)


@cache
def converted_repo(family: str) -> Path:
    """Shared: do not change it."""
    out = checkpoint(family).parent / "repo"
    convert_sa2va(checkpoint(family), out=out, sam_options=sam_options(family))
    return out
