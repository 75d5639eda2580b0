"""Warn when the embedded model is shown anything but the drawn tabletops it knows."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..model_names import EMBEDDED_MODEL


MESSAGE = (
    "The embedded model's world is drawn tabletops, and an image does not look like one: what the model says and "
    "draws there means nothing. For photographs take a converted checkpoint; `reasonseg convert --help` shows how to "
    "make one."
)

# An image is looked at as so many cells a side, in which the grain of a scene is averaged out.
_CELLS = 32
# Scenes have a wall in this upper part at most.
_TABLE_FROM = 0.3
_SAME_HUE, _SAME_LIGHT = 0.02, 0.12
# What `measure` finds in scenes of all splits, also enlarged, made smaller and as JPEG of quality 60 (5,000 images in
# all), with some room on both sides.
_BOUNDS = {
    "table": (0.45, 1.0),
    "even": (0.33, 0.998),
    "texture": (0.009, 0.08),
    "red": (0.26, 0.51),
    "green": (0.28, 0.40),
    "blue": (0.18, 0.40),
    "light": (65.0, 230.0),
    "slope across": (0.0, 0.3),
    "slope along": (0.0, 0.4),
    "grain": (0.4, 7.0),
    "colour": (6.0, 255.0),
}


class ForeignImageWarning(UserWarning):
    """The embedded model was shown an image that is not a drawn tabletop."""


def looks_like_a_tabletop(pixels: np.ndarray) -> bool:
    """
    Args:
        pixels (`np.ndarray` of shape `(height, width, 3)`): RGB, 0 to 255, at the size in which the model sees it: its
            longest side 128.

    Returns:
        `bool`: Whether everything that `measure` finds is as in the scenes of `reasonseg.tabletop.scenes`:
        most of the image is a table of one muted colour, lit evenly, with a little texture and things on it.
    """
    found = measure(pixels)
    return all(low <= found[name] <= high for name, (low, high) in _BOUNDS.items())


def measure(pixels: np.ndarray) -> dict[str, float]:
    """
    What tells a drawn tabletop: light, shadows and textures change how bright the table is, but never its hue.

    Args:
        pixels (`np.ndarray` of shape `(height, width, 3)`): RGB, 0 to 255.

    Returns:
        `dict[str, float]`: Of the part below the wall, `table`: the share that has the most frequent hue; `even`: the
        share of it all that is also as bright as a plane of light says, `texture`: how far it departs from that plane
        (deviation of the logarithm). `red`, `green` and `blue` are the hue's shares of the channels, `light` is the
        brightness of the plane in its middle and the two slopes how much it changes over the image (logarithm).
        `grain` is the mean difference of neighbouring pixels, `colour` the largest difference between the channels of
        a pixel.
    """
    pixels = np.asarray(pixels, dtype=np.float64)
    grain = np.abs(np.diff(pixels.mean(axis=-1), axis=1))
    cells = _cell_means(pixels)[round(_CELLS * _TABLE_FROM) :] + 1
    hues = cells / cells.sum(axis=-1, keepdims=True)
    hue = np.median(hues, axis=(0, 1))
    for _ in range(3):  # from the middle to the most frequent
        is_table = (np.abs(hues - hue) < _SAME_HUE).all(axis=-1)
        hue = hues[is_table].mean(axis=0) if is_table.any() else hue
    plane, residuals = _light(np.log(cells.mean(axis=-1)), is_table)
    is_even = is_table & (np.abs(residuals) < _SAME_LIGHT)
    return {
        "table": float(is_table.mean()),
        "even": float(is_even.mean()),
        "texture": float(residuals[is_even].std()) if is_even.any() else 0.0,
        "red": float(hue[0]),
        "green": float(hue[1]),
        "blue": float(hue[2]),
        "light": float(np.exp(plane[0])),
        "slope across": abs(float(plane[1])),
        "slope along": abs(float(plane[2])),
        "grain": float(grain.mean()) if grain.size else 0.0,
        "colour": float(np.ptp(pixels, axis=-1).max()),
    }


def warn_about_foreign_images(processor: Any, inputs: Any) -> None:
    """Warn once for a call of the embedded model's processor with an image that is not a drawn tabletop.

    Args:
        processor: Any processor; only the one that was loaded from `EMBEDDED_MODEL` is watched.
        inputs: What it made of the images.
    """
    name = getattr(processor.tokenizer, "name_or_path", "")
    if "sam_pixel_values" not in inputs or not name or Path(name).resolve() != EMBEDDED_MODEL.resolve():
        return
    view = processor.image_processor
    for pixels, (height, width) in zip(inputs["sam_pixel_values"], inputs["reshaped_input_sizes"], strict=True):
        seen = np.moveaxis(np.asarray(pixels, dtype=np.float64), 0, -1)[: int(height), : int(width)]
        seen = (seen * view.segmenter_image_std + view.segmenter_image_mean) / view.rescale_factor
        if not looks_like_a_tabletop(np.clip(seen, 0, 255)):
            warnings.warn(MESSAGE, ForeignImageWarning, stacklevel=2)
            return


def _cell_means(pixels: np.ndarray) -> np.ndarray:
    """Means `(cells, cells, 3)` over a grid of cells; an image that is smaller repeats its pixels."""
    height, width = pixels.shape[:2]
    pixels = pixels.repeat(-(-_CELLS // height), axis=0).repeat(-(-_CELLS // width), axis=1)
    for axis in (0, 1):
        edges = np.arange(_CELLS + 1) * pixels.shape[axis] // _CELLS
        counts = np.diff(edges).reshape(-1, *[1] * (2 - axis))
        pixels = np.add.reduceat(pixels, edges[:-1], axis=axis) / counts
    return pixels


def _light(brightness: np.ndarray, is_table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plane of light over the table, (middle, slope across, slope along), and what departs from it everywhere."""
    rows, columns = np.mgrid[: brightness.shape[0], : brightness.shape[1]] / _CELLS - 0.5
    terms = np.stack([np.ones_like(rows), columns, rows + _TABLE_FROM], axis=-1)
    plane = np.array([np.median(brightness), 0.0, 0.0])
    residuals = brightness - terms @ plane
    for _ in range(4):  # shadows and things of the table's own hue are left out one after the other
        if not is_table.any():
            break
        fitting = is_table & (np.abs(residuals) < max(0.1, 2 * np.median(np.abs(residuals[is_table]))))
        if fitting.sum() < len(plane):
            break
        plane = np.linalg.lstsq(terms[fitting], brightness[fitting], rcond=None)[0]
        residuals = brightness - terms @ plane
    return plane, residuals


__all__ = ["ForeignImageWarning", "looks_like_a_tabletop", "measure", "warn_about_foreign_images"]
