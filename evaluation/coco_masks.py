"""Masks as COCO's files hold them: polygons, counts, or compressed counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..data.coco import run_lengths


def segmentation_rle(segmentation: Any, size: tuple[int, int], what: str = "A segmentation") -> dict[str, Any]:
    """
    Any segmentation of an annotation as compressed run lengths.

    Args:
        segmentation: Polygons (`[[x1, y1, x2, y2, ...], ...]`), run lengths with a list of counts, or compressed ones.
        size (`tuple[int, int]`): (height, width) of the picture.
        what (`str`): The segmentation, as the error message shall name it.

    Returns:
        `dict`: `{"size": [height, width], "counts": bytes}`, as pycocotools computes with it.

    Raises:
        ValueError: If it is none of these, has no area, does not cover the image, or belongs to one of another size.
    """
    return run_lengths(segmentation, size, what)


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """The same as a bool mask `(height, width)`; see `segmentation_rle`."""
    return coco_mask.decode(segmentation_rle(segmentation, size)).astype(bool)


def iou_matrix(targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]) -> np.ndarray:
    """
    Args:
        targets, predictions: Masks of one picture from `segmentation_rle`.

    Returns:
        `np.ndarray`: `(targets, predictions)` float64. Two empty masks have the IoU 0 (the original divides by zero).
    """
    if not targets or not predictions:
        return np.zeros((len(targets), len(predictions)))
    # pycocotools returns detections x truths and can treat truths as crowds, which these are not.
    ious = coco_mask.iou(list(predictions), list(targets), [0] * len(targets))
    return np.nan_to_num(np.asarray(ious, dtype=np.float64).T, nan=0.0)


__all__ = ["decode_segmentation", "iou_matrix", "segmentation_rle"]
