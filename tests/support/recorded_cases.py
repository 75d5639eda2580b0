"""Feeds the recorded cases of the original LISA and GSVA code through converted models."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from tests.support.parity_data import PARITY, load_case, load_meta, load_tensors, sampled_like, unpack_mask


STATE_TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
ORIGINAL_PLACEHOLDER = -200
IMAGES = ("img0", "img1")


def recorded_image(system: str, name: str) -> Image.Image:
    return Image.open(PARITY / system / "images" / f"{name}.png").convert("RGB")


def image_of(case: str) -> str:
    return next(name for name in IMAGES if name in case)


def expand_placeholder(values: torch.Tensor, ids: torch.Tensor, count: int, fill: int) -> torch.Tensor:
    """Replaces the one placeholder position of each row of `values` by `count` times `fill`."""
    rows = []
    for row, row_ids in zip(values, ids, strict=True):
        position = int((row_ids == ORIGINAL_PLACEHOLDER).nonzero())
        rows.append(torch.cat([row[:position], row.new_full((count,), fill), row[position + 1 :]]))
    return torch.stack(rows)


def recorded_inputs(system: str, case: str, config) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels` exactly as the original saw them, the placeholder expanded."""
    recorded = load_case(system, case)
    ids, patches = recorded["input_ids"], config.vlm_config.image_seq_length
    mask = recorded.get("attention_mask", torch.ones_like(ids)).long()
    inputs = {
        "input_ids": expand_placeholder(ids, ids, patches, config.image_token_id),
        "attention_mask": expand_placeholder(mask, ids, patches, 1),
    }
    if "labels" in recorded:
        inputs["labels"] = expand_placeholder(recorded["labels"], ids, patches, -100)
    return inputs


def both_views(processor, system: str, names: list[str]) -> dict[str, torch.Tensor]:
    return dict(processor.image_processor([recorded_image(system, name) for name in names], return_tensors="pt"))


def assert_recorded(computed: torch.Tensor, recorded: dict[str, torch.Tensor], name: str) -> None:
    """`computed` against the full or sampled recording of `name`."""
    found = [key for key in recorded if key == name or key.startswith((f"{name}_stride", f"{name}_every"))]
    assert found, f"{name} is not recorded"
    for key in found:
        torch.testing.assert_close(sampled_like(computed, key), recorded[key], **STATE_TOLERANCE)


def assert_masks(masks: np.ndarray, packed: torch.Tensor) -> None:
    """Binary masks `(slots, height, width)` agree: IoU at least 0.999 each."""
    expected = unpack_mask(packed, masks.shape[-1])
    assert masks.shape == expected.shape
    for ours, theirs in zip(masks, expected, strict=True):
        union = np.logical_or(ours, theirs).sum()
        assert union == 0 or np.logical_and(ours, theirs).sum() / union >= 0.999


def assert_gradient_norms(recorded: dict[str, float], gradient_of: Callable[[str], torch.Tensor | None]) -> None:
    """
    Norms of all gradients, by original name, to 1e-3 relative.

    A key's bias shifts all scores of a query alike, so its gradient is 0 and both sides hold rounding; there both must
    be nothing beside the gradient of the key's weight.
    """
    for name, norm in recorded.items():
        gradient = gradient_of(name)
        computed = 0.0 if gradient is None else float(gradient.norm())
        if name.endswith("k_proj.bias"):
            negligible = 1e-5 * recorded[name.replace("bias", "weight")]
            assert norm < negligible, name
            assert computed < negligible, name
        else:
            assert abs(computed - norm) <= 1e-3 * norm, (name, computed, norm)


def ground_truth(system: str, name: str) -> torch.Tensor:
    mask = np.asarray(Image.open(PARITY / system / "gt_masks" / f"{name}.png").convert("L"))
    return torch.from_numpy((mask == 255).astype(np.float32))


__all__ = [
    "assert_gradient_norms",
    "assert_masks",
    "assert_recorded",
    "both_views",
    "ground_truth",
    "image_of",
    "load_case",
    "load_meta",
    "load_tensors",
    "recorded_image",
    "recorded_inputs",
]
