"""The values of a mask that somebody gives: which are background, which are the mask, and which are refused."""

from typing import Any

import numpy as np
import torch

from .image_loading import tensor_to_numpy


# What stands for "belongs to the mask" beside 0: a flag, white in 8 bits, white in 16 bits.
_FULL_VALUES = (1, 255, 65535)
# How far outside 0..1 soft edges may lie: resizing rounds.
_ROUNDING = 1e-4


def binary_mask(values: Any, what: str = "The mask") -> np.ndarray:
    """Read an array of any layout and number format as a mask.

    Args:
        values (`np.ndarray` or `torch.Tensor`):
            Of shape `(height, width)`: bool, or numbers that are 0 and 1, or 0 and 255 (in 16 bits 0 and 65535).
        what (`str`, *optional*): The mask, as the error message shall name it.

    Returns:
        `np.ndarray`: bool, of the same shape; contiguous.

    Raises:
        ValueError: The shape or the values are not those of a mask.
    """
    values = mask_array(values, what)
    if values.dtype == np.bool_:
        return np.ascontiguousarray(values)
    high = values.max()
    full = high if high in _FULL_VALUES else 1
    mask = values == full
    if not (mask | (values == 0)).all():  # written so that NaN fails too
        raise ValueError(f"{what} {_describe(values)}. {_ALLOWED} {_ADVICE}")
    return np.ascontiguousarray(mask)


def soft_mask(values: Any, what: str = "The mask") -> np.ndarray:
    """Read a mask whose edges may be soft: what `binary_mask` takes, and floating-point values in 0..1.

    Args:
        values, what: As in `binary_mask`.

    Returns:
        `np.ndarray`: float32 in 0..1, of the same shape; contiguous.

    Raises:
        ValueError: The shape or the values are not those of a mask.
    """
    values = mask_array(values, what)
    if values.dtype.kind == "f" and values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING:
        return np.clip(values, 0.0, 1.0).astype(np.float32, order="C")
    return binary_mask(values, what).astype(np.float32)


def mask_array(values: Any, what: str) -> np.ndarray:
    """Bring an array or tensor to NumPy and check that it has the shape and the kind of values of a mask."""
    values = tensor_to_numpy(values) if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{what} has the shape {values.shape}. Give (height, width), each at least 1 pixel.")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{what} has values of dtype {values.dtype}. {_ALLOWED}")
    return values


_ALLOWED = "Allowed are bool, 0 and 1, or 0 and 255."
_ADVICE = "Make it binary first: `mask > 0` for logits, `mask == n` for a label map, `mask > 127` for grey edges."


def _describe(values: np.ndarray) -> str:
    """Say what an array holds that is no mask."""
    if not np.isfinite(values).all():
        return "has values that are not finite"
    different = np.unique(values)
    listed = ", ".join(f"{value:g}" for value in different[:4].tolist())
    if len(different) > 4:
        listed += f", ... {different[-1]:g}"
    return f"has {len(different)} different values ({listed})"


__all__ = ["binary_mask", "mask_array", "soft_mask"]
