"""Read the recordings of ViP-LLaVA."""

import json
from functools import cache

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support.parity_data import PARITY, load_arrays


RECORDED = PARITY / "vip_llava"
META = json.loads((RECORDED / "meta.json").read_text(encoding="utf-8"))
PHI_3_META = json.loads((RECORDED / "phi3" / "meta.json").read_text(encoding="utf-8"))
TEMPLATES = json.loads((RECORDED / "templates.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in META["cases"]}
# Where the original puts the image, and how many tokens it takes there.
IMAGE_PLACE, IMAGE_TOKENS = -200, 64
CHECKPOINT = RECORDED / "checkpoint" / "vip-llava-7b"
PHI_3 = RECORDED / "phi3" / "vip-llava-phi-3"
TOWER = RECORDED / "checkpoint" / "clip-vit-large-patch14-336"
_MEAN, _STD = (
    torch.tensor(values)[:, None, None]
    for values in (META["image_processor"]["image_mean"], META["image_processor"]["image_std"])
)


@cache
def tensors() -> dict[str, torch.Tensor]:
    """Everything recorded on Vicuna, by name; `*_every4th` holds every fourth position."""
    return load_file(RECORDED / "tensors.safetensors") | load_arrays(RECORDED / "ids_and_pixels.npz")


@cache
def phi_3_tensors() -> dict[str, torch.Tensor]:
    """Everything recorded on Phi-3; `*_every3rd` holds every third position."""
    return load_file(RECORDED / "phi3" / "tensors.safetensors") | load_arrays(RECORDED / "phi3" / "ids.npz")


def recorded_image(index: int, blended: bool = True) -> Image.Image:
    """A recorded image, with its visual prompt on it or without."""
    return Image.open(RECORDED / f"image{index}{'_blended' if blended else ''}.png")


def recorded_pixels(index: int, aspect_ratio: str) -> tuple[np.ndarray, torch.Tensor]:
    """An image as the model sees it, as 8-bit values and normalised; of these the former were stored."""
    stored = tensors()[f"image{index}.pixel_values.{aspect_ratio}_uint8"]
    return stored.numpy(), normalised_pixels(stored)


def normalised_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """8-bit values as CLIP sees them."""
    return (pixels.float() / 255 - _MEAN) / _STD


def with_expanded_image(ids: torch.Tensor, image_token_id: int, filler: int | None = None) -> list[int]:
    """Ids with the image's position expanded; `filler` is there instead of the image token."""
    (index,) = torch.nonzero(ids == IMAGE_PLACE).flatten().tolist()
    token = image_token_id if filler is None else filler
    return [*ids[:index].tolist(), *[token] * IMAGE_TOKENS, *ids[index + 1 :].tolist()]
