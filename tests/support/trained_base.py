"""A LLaVA and a SAM that the recorded LISA could have been trained from."""

from pathlib import Path

import torch

from reasonseg.conversion.trained import Base
from tests.support.originals import LISA, SAM_PREFIX, lisa_state, write_lisa


TOWER = LISA / "vision_tower"
_ADDED_ROWS = 3
_TRAINED = ("q_proj", "v_proj", "embed_tokens", "lm_head")


def moved(value: torch.Tensor) -> torch.Tensor:
    """Other values of the same shape."""
    return value + torch.linspace(-0.1, 0.1, value.numel(), dtype=value.dtype).view_as(value)


def write_base(folder: Path) -> Base:
    """What LISA trains differs, and the vocabulary lacks its last rows; the rest is the recorded checkpoint's."""
    llava, sam = {}, {}
    for name, value in lisa_state().items():
        if name.startswith(SAM_PREFIX):
            sam[name.removeprefix(SAM_PREFIX)] = moved(value) if "mask_decoder" in name else value.clone()
        elif "text_hidden_fcs" not in name:
            llava[name] = moved(value) if any(part in name for part in _TRAINED) else value.clone()
            if "embed_tokens" in name or "lm_head" in name:
                llava[name] = llava[name][:-_ADDED_ROWS].clone()
    write_lisa(folder / "llava", llava)
    torch.save(sam, folder / "sam.pth")
    return Base(folder / "llava", TOWER, folder / "sam.pth")
