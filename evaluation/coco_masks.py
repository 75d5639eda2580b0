"""Masks as COCO's files hold them: polygons, counts, or compressed counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def segmentation_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """
    Any segmentation of an annotation as compressed run lengths.

    Args:
        segmentation: Polygons (`[[x1, y1, x2, y2, ...], ...]`), run lengths with a list of counts, or compressed ones.
        size (`tuple[int, int]`): (height, width) of the picture.

    Returns:
        `dict`: `{"size": [height, width], "counts": bytes}`, as pycocotools computes with it.

    Raises:
        ValueError: If it is none of these, or belongs to a picture of another size.
    """
    height, width = size
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError("A segmentation must be a list of polygons or have `size` and `counts`.")
    if tuple(segmentation["size"]) != (height, width):
        raise ValueError(
            f"A segmentation of {tuple(segmentation['size'])} (height, width) was given for a picture of {size}."
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return coco_mask.frPyObjects(segmentation, height, width)
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    return {"size": [height, width], "counts": counts}


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
