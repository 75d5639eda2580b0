"""Overlaps of masks, and COCO's AP and AR, by pycocotools."""

import contextlib
import copy
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.coco import run_lengths


# In the order of `COCOeval.stats`.
COCO_SCORES: tuple[str, ...] = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def coco_scores(
    annotations: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[Any] | None = None,
    category_ids: Sequence[int] | None = None,
) -> dict[str, float | None]:
    """
    Args:
        annotations (`dict`): A COCO annotation file: `images`, `annotations`, `categories`.
        detections (`Sequence[dict]`): Each with `image_id`, `category_id`, `segmentation` (RLE) and `score`.
        image_ids (`Sequence`, *optional*): Only these images count; all by default.
        category_ids (`Sequence[int]`, *optional*): Only these categories count; all by default.

    Returns:
        `dict`: The names in `COCO_SCORES` with values in [0, 1]; None where no target has that size. `ap` and the
        `ar` are means over the IoU thresholds 0.5, 0.55 ... 0.95; areas are split at 32² and 96² pixels.

    Raises:
        ValueError: If a detection belongs to an image that is not annotated, or has no mask of its size or no score.
    """
    known = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    foreign = sorted({str(detection["image_id"]) for detection in detections if detection["image_id"] not in known})
    if foreign:
        raise ValueError(
            f"{len(foreign)} images have detections and no annotations, such as {', '.join(foreign[:3])}. "
            "Take the annotation file of the same split."
        )
    found_masks = [_detection(detection, number, known) for number, detection in enumerate(detections, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        targets = COCO()
        # evaluation marks annotations as ignored in place
        targets.dataset = {**annotations, "annotations": copy.deepcopy(annotations["annotations"])}
        targets.createIndex()
        if detections:
            found = targets.loadRes(found_masks)
        else:  # loadRes needs at least one
            found = COCO()
            found.dataset = {**annotations, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(targets, found, "segm")
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        if category_ids is not None:
            evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools says -1 where there is nothing to measure
    return {
        name: None if value == -1 else float(value) for name, value in zip(COCO_SCORES, evaluation.stats, strict=True)
    }


def _detection(detection: dict[str, Any], number: int, sizes: dict[Any, tuple[int, int]]) -> dict[str, Any]:
    """What pycocotools needs of a detection; with a box beside the mask, it would take the box's area."""
    what = f"Detection number {number}, of image {detection['image_id']!r}"
    score = detection["score"]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"{what}, has the score {score!r}; it must be a finite number.")
    return {
        **{name: detection[name] for name in ("image_id", "category_id", "score")},
        "segmentation": run_lengths(
            detection["segmentation"], sizes[detection["image_id"]], f"{what}: its segmentation"
        ),
    }


def iou_matrix(targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]) -> np.ndarray:
    """
    Args:
        targets, predictions: Masks of one image, compressed run lengths of its size.

    Returns:
        `np.ndarray`: `(targets, predictions)` float64. Two empty masks have the IoU 0 (the original divides by zero).
    """
    if not targets or not predictions:
        return np.zeros((len(targets), len(predictions)))
    # pycocotools returns detections x truths and can treat truths as crowds, which these are not.
    ious = coco_mask.iou(list(predictions), list(targets), [0] * len(targets))
    return np.nan_to_num(np.asarray(ious, dtype=np.float64).T, nan=0.0)


__all__ = ["COCO_SCORES", "coco_scores", "iou_matrix"]
