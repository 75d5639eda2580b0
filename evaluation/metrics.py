"""gIoU, cIoU, N-acc, T-acc and Pr@X with exactly the sums of the original evaluations of LISA, GSVA and others.

The originals differ in small things that move the third digit of a published number, so each is a rule here:

| rule              | original                         | mask       | IoU of a mask  | target without foreground      |
|-------------------|----------------------------------|------------|----------------|--------------------------------|
| `reason`          | LISA `validate`, GSVA `validate` | logit > 0  | I / (U + 1e-5) | IoU 1 if nothing is drawn      |
| `grefcoco`        | GSVA `eval_gres` on gRefCOCO     | logit >= 0 | I / (U + 1e-8) | IoU 1 if rejected; if not, U   |
|                   |                                  |            |                | adds to the unions of cIoU     |
| `refzom`          | GSVA `eval_gres` on Ref-ZOM      | logit >= 0 | I / (U + 1e-8) | IoU 1 if rejected; not in cIoU |
| `vision_reasoner` | VisionReasoner, on ReasonSeg     | logit > 0  | I / U          | IoU 0                          |
| `star`            | StAR, on ReasonSeg               | logit > 0  | I / U          | IoU 1 if nothing is drawn      |

In all of them gIoU is the sum of the IoUs over (number of masks + 1e-5) and cIoU is the sum of the intersections over
(sum of the unions + 1e-10). Pixels whose target is 255 count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


IGNORED_PIXEL = 255
PRECISION_THRESHOLDS: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)

_COUNT_EPS = 1e-5
_UNION_EPS = 1e-10
SUMS = (
    *("masks", "targets", "iou", "intersection", "union"),
    *("absent_rejected", "absent_kept", "present_kept", "present_rejected"),
    *(f"pr@{threshold}" for threshold in PRECISION_THRESHOLDS),
)
"""What is summed, in the order of the columns of [`SegmentationMetrics.state_tensor`]."""


@dataclass(frozen=True)
class CountingRule:
    """How one original evaluation counts.

    Attributes:
        iou_eps: Added to the union when the IoU of one mask is computed.
        zero_is_foreground: Whether a logit of exactly 0 belongs to the mask.
        uses_rejection: Whether an absent target is judged by the rejection (else by the mask being empty).
        absent_union: Whether what is drawn for an absent target adds to the denominator of cIoU.
        empty_iou: IoU of an absent target for which nothing is drawn, where decisions are not used.
    """

    iou_eps: float
    zero_is_foreground: bool
    uses_rejection: bool
    absent_union: bool
    empty_iou: float = 1.0


COUNTING_RULES: dict[str, CountingRule] = {
    "reason": CountingRule(iou_eps=1e-5, zero_is_foreground=False, uses_rejection=False, absent_union=True),
    "grefcoco": CountingRule(iou_eps=1e-8, zero_is_foreground=True, uses_rejection=True, absent_union=True),
    "refzom": CountingRule(iou_eps=1e-8, zero_is_foreground=True, uses_rejection=True, absent_union=False),
    "vision_reasoner": CountingRule(
        0.0, zero_is_foreground=False, uses_rejection=False, absent_union=True, empty_iou=0.0
    ),
    "star": CountingRule(iou_eps=0.0, zero_is_foreground=False, uses_rejection=False, absent_union=True),
}


class SegmentationMetrics:
    """Running sums of an evaluation. Sums of several processes can be added, in any order.

    Args:
        rule: A key of `COUNTING_RULES`.
        types: Names of the groups that are reported on their own (e.g. request types). Without any there is no
            breakdown.
        zero_rejected: Score a rejected target as an empty mask. The originals score the mask that the model would have
            drawn (False); a user who reads the answer gets no mask, so evaluations of free generation set True.

    Raises:
        ValueError: If the rule does not exist or a type is named twice.

    Example:
        >>> metrics = SegmentationMetrics("grefcoco")
        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> target = torch.tensor([[[1, 0], [0, 0]]])
        >>> metrics.update(mask, target, rejected=[False])
        [0.4999999975]
        >>> round(metrics.compute()["ciou"], 6)
        0.5
    """

    def __init__(self, rule: str = "grefcoco", types: Sequence[str] = (), zero_rejected: bool = False):
        if rule not in COUNTING_RULES:
            raise ValueError(f"There is no rule {rule!r}; choose one of {', '.join(COUNTING_RULES)}.")
        if len(set(types)) != len(types):
            raise ValueError(f"A type is named twice in {list(types)}.")
        self.rule = COUNTING_RULES[rule]
        self.rule_name = rule
        self.types = tuple(types)
        self.zero_rejected = zero_rejected
        # one row for each type, and the last for masks without one
        self.sums = torch.zeros(len(self.types) + 1, len(SUMS), dtype=torch.float64)

    def binarise(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask logits of any shape to a bool mask, as the original does."""
        return logits >= 0 if self.rule.zero_is_foreground else logits > 0

    def update(
        self,
        masks: torch.Tensor | np.ndarray,
        targets: torch.Tensor | np.ndarray,
        rejected: Sequence[bool] | torch.Tensor | None = None,
        types: Sequence[str | None] | None = None,
    ) -> list[float]:
        """Add predicted masks and their targets.

        Args:
            masks: `(masks, height, width)` bool, see `binarise`.
            targets: `(masks, height, width)`; 0 or False is background, 255 is ignored, anything else is the target. A
                target without foreground is an absent one.
            rejected: `(masks,)`, whether the model answered with `[REJ]`. The rule `reason` can do without.
            types: `(masks,)` names from `types`, or None for a mask that counts in the total alone; needed when there
                is a breakdown.

        Returns:
            The IoU of every mask as it enters gIoU.

        Raises:
            ValueError: If the shapes differ, or rejections or types are missing or unknown.
        """
        masks = torch.as_tensor(masks)
        targets = torch.as_tensor(targets).to(masks.device)
        if masks.dtype != torch.bool:
            raise ValueError(f"masks must be bool, got {masks.dtype}; use `binarise` for logits.")
        if masks.ndim != 3 or masks.shape != targets.shape:
            raise ValueError(
                "masks and targets must both be (masks, height, width), "
                f"got {tuple(masks.shape)} and {tuple(targets.shape)}."
            )
        flags = self._check_rejected(rejected, len(masks))
        rows = self._check_types(types, len(masks))

        valid = (targets != IGNORED_PIXEL) if targets.dtype != torch.bool else torch.ones_like(targets)
        masks, foreground = masks & valid, (targets != 0) & valid
        intersections = (masks & foreground).sum((1, 2)).tolist()
        areas = masks.sum((1, 2)).tolist()
        target_areas = foreground.sum((1, 2)).tolist()
        columns = zip(rows, areas, target_areas, intersections, flags, strict=True)
        return [self._add(*values) for values in columns]

    def sum_of(self, name: str) -> float:
        """One of the sums over everything that was added; `name` is one of `SUMS`."""
        return float(self.sums[:, SUMS.index(name)].sum())

    def add_missing(self, count: int) -> None:
        """Count targets for which there is no mask at all: gIoU takes an IoU of 0, cIoU nothing."""
        self.sums[-1, SUMS.index("masks")] += count

    def _add(self, row: int, area: int, target_area: int, intersection: int, rejected: bool | None) -> float:
        if self.zero_rejected and rejected:
            area = intersection = 0
        union = area + target_area - intersection
        present = target_area > 0
        counts_in_ciou = present
        if present:
            iou = intersection / (union + self.rule.iou_eps)
        elif self.rule.uses_rejection:
            iou = 1.0 if rejected else 0.0
            # A kept absent target is a false alarm: all that is drawn is wrong.
            counts_in_ciou = self.rule.absent_union and not rejected
        else:
            iou = self.rule.empty_iou if union == 0 else 0.0
            counts_in_ciou = True
        added = {"masks": 1, "targets": int(present), "iou": iou}
        if counts_in_ciou:
            added |= {"intersection": intersection, "union": union}
        if rejected is not None:
            added[f"{'present' if present else 'absent'}_{'rejected' if rejected else 'kept'}"] = 1
        if present:
            # Without epsilon, so that an IoU of exactly X passes Pr@X.
            added |= {f"pr@{level}": 1 for level in PRECISION_THRESHOLDS if intersection / union >= level}
        for name, value in added.items():
            self.sums[row, SUMS.index(name)] += value
        return iou

    def _check_rejected(self, rejected: Any, count: int) -> list[bool | None]:
        if rejected is None:
            if self.rule.uses_rejection or self.zero_rejected:
                raise ValueError(f"The rule {self.rule_name!r} needs `rejected`, one flag per mask.")
            return [None] * count
        flags = [bool(flag) for flag in rejected]
        if len(flags) != count:
            raise ValueError(f"rejected must have one flag per mask, got {len(flags)} flags for {count} masks.")
        return flags

    def _check_types(self, types: Sequence[str | None] | None, count: int) -> list[int]:
        if not self.types:
            return [0] * count
        if types is None or len(types) != count:
            given = "none" if types is None else len(types)
            raise ValueError(f"types must have one name per mask, got {given} for {count} masks.")
        unknown = sorted(set(types) - {*self.types, None})
        if unknown:
            raise ValueError(f"There are no types {', '.join(unknown)}; choose from {', '.join(self.types)}.")
        return [len(self.types) if name is None else self.types.index(name) for name in types]

    def merge(self, other: SegmentationMetrics) -> None:
        """Add the sums of another part of the same evaluation.

        Raises:
            ValueError: If the other one counts by another rule or has other types.
        """
        own, others = ((metrics.rule_name, metrics.types, metrics.zero_rejected) for metrics in (self, other))
        if own != others:
            raise ValueError(f"Only like metrics can be merged, got (rule, types, zero_rejected) {own} and {others}.")
        self.sums += other.sums

    def state_tensor(self) -> torch.Tensor:
        """All sums, `(types + 1, sums)` float64. Sum it over processes, then call `load_state_tensor`."""
        return self.sums.clone()

    def load_state_tensor(self, sums: torch.Tensor) -> None:
        """Replace the sums.

        Raises:
            ValueError: If the shape is not that of `state_tensor`.
        """
        if sums.shape != self.sums.shape:
            raise ValueError(f"The sums must have shape {tuple(self.sums.shape)}, got {tuple(sums.shape)}.")
        self.sums = sums.detach().to("cpu", torch.float64).clone()

    def compute(self) -> dict[str, float | int | None]:
        """The numbers over everything that was added.

        Returns:
            `giou`, `ciou`, `n_acc`, `t_acc`, `pr@0.5` ... `pr@0.9`, all in [0, 1], and the counts `masks`, `targets`
            and `absent`. None stands for a number that is not defined: the originals divide by zero where no target is
            absent (`n_acc`) or none is present (`t_acc`).
        """
        return _numbers(self.sums.sum(0))

    def compute_by_type(self) -> dict[str, dict[str, float | int | None]]:
        """`compute` for every type on its own; empty without types."""
        return {name: _numbers(self.sums[row]) for row, name in enumerate(self.types)}


def ratios(sums: np.ndarray) -> dict[str, np.ndarray]:
    """
    The numbers of any number of evaluations at once.

    Args:
        sums (`np.ndarray`): `(..., sums)` float64, the columns by `SUMS`.

    Returns:
        `dict[str, np.ndarray]`: `giou`, `ciou`, `n_acc`, `t_acc` and `pr@0.5` ..., each `(...)` float64 in [0, 1], NaN
        where it is not defined.
    """
    total = dict(zip(SUMS, np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0), strict=True))
    masks = total["masks"]

    def share(part: np.ndarray, whole: np.ndarray, eps: float = 0.0, defined: np.ndarray | None = None) -> np.ndarray:
        defined = whole > 0 if defined is None else defined
        return np.where(defined, part / np.where(defined, whole + eps, 1.0), np.nan)

    return {
        "giou": share(total["iou"], masks, _COUNT_EPS),
        "ciou": share(total["intersection"], total["union"], _UNION_EPS, masks > 0),
        "n_acc": share(total["absent_rejected"], total["absent_rejected"] + total["absent_kept"]),
        "t_acc": share(total["present_kept"], total["present_kept"] + total["present_rejected"]),
        **{f"pr@{x}": share(total[f"pr@{x}"], total["targets"]) for x in PRECISION_THRESHOLDS},
    }


def numbers_of(sums: np.ndarray) -> dict[str, float | int | None]:
    """The numbers of one evaluation, see [`SegmentationMetrics.compute`], from its sums `(sums,)`."""
    masks, targets = (int(sums[SUMS.index(name)]) for name in ("masks", "targets"))
    numbers = {name: None if np.isnan(value) else float(value) for name, value in ratios(sums).items()}
    return {**numbers, "masks": masks, "targets": targets, "absent": masks - targets}


def _numbers(sums: torch.Tensor) -> dict[str, float | int | None]:
    return numbers_of(sums.numpy())
