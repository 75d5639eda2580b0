"""The mask losses of LISA and GSVA, sum by sum as their training code computes them."""

import torch
import torch.nn.functional as F


# LISA/model/LISA.py: dice sums are divided by this scale before the smoothing term is added, and the mean over masks
# divides by their number plus the same small term.
DICE_SCALE = 1000.0
SMOOTHING = 1e-6
COUNT_EPS = 1e-8
# How far outside [0, 1] targets may lie: resizing rounds.
ROUNDING = 1e-4


def check_targets(
    targets: torch.Tensor, row: int, image_size: tuple[int, int] | None, any_size: bool = False
) -> torch.Tensor:
    """
    Checks the mask labels of a row: a loss of masks of 0 and 255, or of another image, is a number like any other.

    Args:
        targets (`torch.Tensor` of shape `(masks, height, width)`): bool, or numbers in [0, 1].
        row (`int`): Number of the row, for the message.
        image_size (`tuple[int, int]`, *optional*): (height, width) of its upright image, where it is known.
        any_size (`bool`): Accept other sizes, too, to which the whole image is squeezed; not one row or column, and
            not the image's with its sides swapped.

    Raises:
        ValueError: If there is another number of dimensions, a value outside [0, 1], or a size that is neither the
            image's nor a square, to which the whole image is squeezed.
    """
    if targets.ndim != 3 or 0 in targets.shape[1:]:
        raise ValueError(
            f"mask_labels of row {row} have the shape {tuple(targets.shape)}; give (masks, height, width), one mask "
            "per slot."
        )
    size = tuple(targets.shape[1:])
    known = image_size is not None and size[0] != size[1] and size != image_size
    if known and (not any_size or 1 in size or size == image_size[::-1]):
        raise ValueError(
            f"mask_labels of row {row} are {size} pixels (height, width), its upright image {image_size}; give them "
            "at the size of the image, or squeezed to a square."
        )
    # written so that NaN fails too
    if targets.dtype != torch.bool and not bool(((targets >= -ROUNDING) & (targets <= 1 + ROUNDING)).all()):
        raise ValueError(
            f"mask_labels of row {row} have values from {targets.min().item():g} to {targets.max().item():g}; they "
            "must lie in [0, 1]. Divide masks of 0 and 255 by 255."
        )
    return targets


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


__all__ = ["bce_per_mask", "check_targets", "dice_per_mask", "mean_over_masks"]
