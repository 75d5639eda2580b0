"""The mask losses of LISA and GSVA, sum by sum as their training code computes them."""

import torch
import torch.nn.functional as F


# LISA/model/LISA.py: dice sums are divided by this scale before the smoothing term is added, and the mean over masks
# divides by their number plus the same small term.
DICE_SCALE = 1000.0
SMOOTHING = 1e-6
COUNT_EPS = 1e-8


def bce_per_mask(logits: torch.FloatTensor, targets: torch.FloatTensor) -> torch.FloatTensor:
    """
    Binary cross entropy of each mask, averaged over its pixels.

    Args:
        logits, targets (`torch.FloatTensor` of shape `(masks, height, width)`): Targets in [0, 1].

    Returns:
        `torch.FloatTensor` of shape `(masks,)`.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).mean(1)


def dice_per_mask(logits: torch.FloatTensor, targets: torch.FloatTensor) -> torch.FloatTensor:
    """
    Dice loss of each mask: 1 - (2 |p t| / s + e) / (|p| / s + |t| / s + e) with s = 1000 and e = 1e-6.

    Args:
        logits, targets (`torch.FloatTensor` of shape `(masks, height, width)`): Targets in [0, 1].

    Returns:
        `torch.FloatTensor` of shape `(masks,)`, values in [0, 1].
    """
    probabilities = logits.sigmoid().flatten(1)
    targets = targets.flatten(1)
    overlap = 2 * (probabilities / DICE_SCALE * targets).sum(-1)
    total = (probabilities / DICE_SCALE).sum(-1) + (targets / DICE_SCALE).sum(-1)
    return 1 - (overlap + SMOOTHING) / (total + SMOOTHING)


def mean_over_masks(per_mask: list[torch.FloatTensor]) -> torch.FloatTensor:
    """Sum over all masks of the batch divided by their number plus 1e-8; 0 where there is none."""
    values = torch.cat(per_mask)
    return values.sum() / (len(values) + COUNT_EPS)


__all__ = ["bce_per_mask", "dice_per_mask", "mean_over_masks"]
