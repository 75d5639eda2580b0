"""The evaluations of LISA and GSVA on referring expressions: what they count on which data set.

| data set                | LISA       | GSVA        |
|-------------------------|------------|-------------|
| RefCOCO, +, g, RefCLEF  | `validate` | `validate`  |
| gRefCOCO, Ref-ZOM       | -          | `eval_gres` |

`eval_gres` is the rules `grefcoco` and `refzom` of [`SegmentationMetrics`]. `validate` is its rule `reason` with two
peculiarities, which are followed on demand: LISA's targets count overlapping parts, and a pixel of value 2 is then
neither foreground nor background; and GSVA, which gives no mask for an absent target, pairs the masks it has with the
first targets of the image.
"""

from collections.abc import Sequence

import numpy as np

from .metrics import IGNORE_LABEL, SegmentationMetrics


_GRES_SETS = ("grefcoco", "refzom")
# Added to the union of a mask, to the number of masks, and to the sum of the unions.
_IOU_EPS, _COUNT_EPS, _UNION_EPS = 1e-5, 1e-5, 1e-10


class ReferringScores:
    """Running sums of an evaluation on one data set.

    Args:
        data_set (`str`): Its name in `REFERRING_SETS`.
        as_original (`bool`): Follow `validate` in the two peculiarities above. False counts every pixel above 0 of a
            target as foreground, and asks for a mask for every target.
    """

    def __init__(self, data_set: str, as_original: bool = True):
        self.uses_rejection = data_set in _GRES_SETS
        self._as_original = as_original
        self._gres = SegmentationMetrics(data_set) if self.uses_rejection else None
        # masks, their IoU, intersections, unions
        self._sums = np.zeros(4)

    def binarise(self, logits: np.ndarray) -> np.ndarray:
        """Mask logits of any shape to a bool mask, as the original does."""
        return logits >= 0 if self.uses_rejection else logits > 0

    def update(self, masks: np.ndarray, targets: np.ndarray, rejected: Sequence[bool] | None = None) -> None:
        """Add the expressions of an image.

        Args:
            masks (`np.ndarray`): `(masks, height, width)` bool, in the order of the expressions.
            targets (`np.ndarray`): `(expressions, height, width)` of 0, 1 or more; 255 is ignored.
            rejected (`Sequence[bool]`, *optional*): Which expressions were answered by `[REJ]`; for `eval_gres`.

        Raises:
            ValueError: If there are fewer masks than targets and that is not followed, sizes differ, or rejections are
                missing.
        """
        if masks.dtype != bool or masks.ndim != 3 or masks.shape[1:] != targets.shape[1:] or len(masks) > len(targets):
            raise ValueError(
                f"masks must be bool (masks, height, width) for targets of {targets.shape}, not {masks.dtype} of "
                f"{masks.shape}."
            )
        if len(masks) < len(targets) and (self.uses_rejection or not self._as_original):
            raise ValueError(
                f"{len(masks)} masks were given for {len(targets)} expressions; give an empty one for what is absent."
            )
        if self._gres is not None:
            self._gres.update(masks, targets, rejected)
            return
        self._sums[0] += len(targets)
        for mask, target in zip(masks, targets, strict=False):
            self._add(mask, target)

    def _add(self, mask: np.ndarray, target: np.ndarray) -> None:
        counted = target != IGNORE_LABEL
        foreground = target == 1 if self._as_original else counted & (target > 0)
        drawn = mask & counted
        intersection = np.count_nonzero(drawn & foreground)
        union = np.count_nonzero(drawn) + np.count_nonzero(foreground) - intersection
        self._sums[1:] += np.array([intersection / (union + _IOU_EPS) if union else 1.0, intersection, union])

    def merge(self, other: "ReferringScores") -> None:
        """Add the sums of another part of the same evaluation."""
        self._sums += other._sums
        if self._gres is not None and other._gres is not None:
            self._gres.merge(other._gres)

    def compute(self) -> dict[str, float | None]:
        """`giou` and `ciou`, and for `eval_gres` `n_acc` and `t_acc`; `None` for what the original divides by 0."""
        if self._gres is not None:
            numbers = self._gres.compute()
            return {name: numbers[name] for name in ("giou", "ciou", "n_acc", "t_acc")}
        count, iou, intersection, union = self._sums.tolist()
        if not count:
            return {"giou": None, "ciou": None}
        return {"giou": iou / (count + _COUNT_EPS), "ciou": intersection / (union + _UNION_EPS)}


__all__ = ["ReferringScores"]
