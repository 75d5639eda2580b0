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
import torch

from .metrics import COUNTING_RULES, IGNORED_PIXEL, SegmentationMetrics


class ReferringMetrics(SegmentationMetrics):
    """[`SegmentationMetrics`] by the rule of a data set of referring expressions.

    Args:
        data_set: Its name in `REFERRING_SETS`.
        as_original: Follow `validate` in the two peculiarities above. False counts every pixel above 0 of a target as
            foreground, and asks for a mask for every target.
        rule: Another rule than that of the data set, see `COUNTING_RULES`.
    """

    def __init__(self, data_set: str, as_original: bool = True, rule: str | None = None):
        super().__init__(rule or (data_set if data_set in COUNTING_RULES else "reason"))
        self.follows_validate = as_original and not self.rule.uses_rejection

    def update(
        self,
        masks: torch.Tensor | np.ndarray,
        targets: torch.Tensor | np.ndarray,
        rejected: Sequence[bool] | torch.Tensor | None = None,
        types: Sequence[str | None] | None = None,
    ) -> list[float]:
        """Add the expressions of an image, see [`SegmentationMetrics.update`].

        Where `validate` is followed there may be fewer masks than targets: what is left counts as missed, and its
        pixels for nothing.

        Raises:
            ValueError: If there are more masks than targets, or fewer and that is not followed.
        """
        if len(masks) > len(targets) or (len(masks) < len(targets) and not self.follows_validate):
            raise ValueError(
                f"{len(masks)} masks were given for {len(targets)} expressions; give one each, empty for what is "
                "absent."
            )
        missing = len(targets) - len(masks)
        if self.follows_validate:
            targets = torch.as_tensor(targets)[: len(masks)]
            targets = torch.where(targets == IGNORED_PIXEL, targets, (targets == 1).to(targets.dtype))
        ious = super().update(masks, targets, rejected, types)
        self.add_missing(missing)
        return ious


__all__ = ["ReferringMetrics"]
