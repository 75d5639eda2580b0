"""From attention maps to prompts of a segmenter: points, boxes and soft masks (arXiv 2410.08209, section 3.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


# What a soft mask is clipped to before its logit is taken (1e-3 from 0 and 1).
_MASK_EPS = 1e-3


def group_maps(
    maps: torch.FloatTensor,
    groups: Sequence[Sequence[int]],
    subtract_mean: bool = True,
    remove_corners: bool = False,
) -> torch.FloatTensor:
    """
    One map per group of tokens.

    Args:
        maps (`torch.FloatTensor` of shape `(tokens, rows, columns)`): Attention of each token of an answer.
        groups (`Sequence[Sequence[int]]`): Tokens of each group; none may be empty.
        subtract_mean (`bool`): Whether to take off the mean of all tokens' maps, which is where every token looks.
        remove_corners (`bool`):
            Whether the corners, where models leave attention that is about nothing, get the smallest value of all.

    Returns:
        `torch.FloatTensor` of shape `(groups, rows, columns)`.

    Raises:
        ValueError: If a group is empty or names a token that the answer has not.
    """
    maps = maps.float()
    if bad := [list(group) for group in groups if not group or not 0 <= min(group) <= max(group) < len(maps)]:
        raise ValueError(f"The groups {bad} must name tokens of an answer of {len(maps)} tokens, at least one each.")
    if subtract_mean and len(maps):
        maps = maps - maps.mean(dim=0)
    if not len(groups):
        return maps.new_zeros((0, *maps.shape[1:]))
    scores = torch.stack([maps[list(group)].mean(dim=0) for group in groups])
    if remove_corners:
        for row in (0, -1):
            for column in (0, -1):
                scores[:, row, column] = scores.min()
    return scores


def upsample_map(
    score: torch.FloatTensor, grid_box: Sequence[float], picture_size: tuple[int, int]
) -> torch.FloatTensor:
    """
    Brings a map to the size of the picture, bicubic without anti-aliasing.

    Args:
        score (`torch.FloatTensor` of shape `(rows, columns)` or `(groups, rows, columns)`): The map.
        grid_box (`Sequence[float]`):
            What part of the picture the grid covers, `(x1, y1, x2, y2)` in its pixels; it reaches beyond the picture
            where that was padded, and is smaller where it was cropped.
        picture_size (`tuple[int, int]`): (height, width).

    Returns:
        `torch.FloatTensor` of shape `(..., height, width)`. What the model did not see has the map's smallest value.
    """
    maps = score.float()[None] if score.ndim == 2 else score.float()
    height, width = picture_size
    left, top, right, bottom = (round(float(edge)) for edge in grid_box)
    size = (max(1, bottom - top), max(1, right - left))
    maps = F.interpolate(maps[None], size=size, mode="bicubic", align_corners=False)[0]
    seen = maps[:, max(0, -top) : height - top, max(0, -left) : width - left]
    missing = (max(0, left), width - max(0, left) - seen.shape[2], max(0, top), height - max(0, top) - seen.shape[1])
    if any(missing):
        filled = maps.flatten(1).min(dim=1).values[:, None, None].expand(-1, height, width).clone()
        filled[:, missing[2] : height - missing[3], missing[0] : width - missing[1]] = seen
        seen = filled
    return seen[0] if score.ndim == 2 else seen


def peak(score: torch.FloatTensor) -> tuple[int, int]:
    """(x, y) of the first largest value, row by row, of a map `(height, width)`."""
    index = int(score.argmax())
    return index % score.shape[1], index // score.shape[1]


def box_above(score: torch.FloatTensor, threshold: float) -> tuple[int, int, int, int]:
    """
    Box `(x1, y1, x2, y2)` of the pixels above a threshold, x2 and y2 behind the last one; zeros without any.

    The released code prompts the segmenter with these zeros too, beside the soft mask (aas/utils.py,
    convert_box_SAM), and its numbers are made so.
    """
    above = score > threshold
    columns, rows = above.any(dim=0).nonzero()[:, 0], above.any(dim=1).nonzero()[:, 0]
    if not len(columns):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_prompt(score: torch.FloatTensor, edge: tuple[int, int], keeps_aspect: bool = True) -> torch.FloatTensor:
    """
    A soft mask as the logits that a segmenter takes.

    Args:
        score (`torch.FloatTensor` of shape `(height, width)`): Probabilities; clipped to 0.001 .. 0.999.
        edge (`tuple[int, int]`): (height, width) of the segmenter's mask input (SAM: 256 x 256).
        keeps_aspect (`bool`):
            Whether the segmenter sees the picture with its aspect ratio, padded on the right and bottom (SAM), or
            squashed (SAM 2).

    Returns:
        `torch.FloatTensor` of shape `edge`. Padding is 0, the logit of 0.5, as in the released code.
    """
    height, width = score.shape
    soft = score.float().clamp(_MASK_EPS, 1 - _MASK_EPS)
    logits = torch.log(soft / (1 - soft))
    size = edge
    if keeps_aspect and height > width:
        size = (edge[0], max(1, int(width / height * edge[1])))
    elif keeps_aspect and width > height:
        size = (max(1, int(height / width * edge[0])), edge[1])
    resized = F.interpolate(logits[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]
    return F.pad(resized, (0, edge[1] - size[1], 0, edge[0] - size[0]))


__all__ = [
    "box_above",
    "group_maps",
    "mask_prompt",
    "peak",
    "upsample_map",
]
