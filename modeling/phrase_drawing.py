"""From the attention maps of an answer to a mask for every phrase of it (arXiv 2410.08209, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .composed_model import ComposedModel, ImageCache
from .segmenters import SegmenterPrompt, segmenter_adapter


# What the segmenter gets for each value of `prompt`.
_NEEDS = {"point": ("points",), "box": ("boxes",), "mask": ("masks",), "mask_and_box": ("masks", "boxes")}
# Logit of every pixel of a phrase that is nowhere: certain background, finite in every floating type.
_NOTHING = -100.0
# What a soft mask is clipped to before its logit is taken (1e-3 from 0 and 1).
_MASK_EPS = 1e-3


@dataclass(frozen=True)
class Grids:
    """
    Where the image tokens of each row lie in its image.

    Args:
        sizes (`list[tuple[int, int]]`): Rows and columns of each grid.
        boxes (`torch.FloatTensor` of shape `(rows, 4)`): What each covers, `(x1, y1, x2, y2)` in the image's pixels.
        tokens (`list[torch.LongTensor]`): Which of a row's image tokens form its grid, row by row.
    """

    sizes: list[tuple[int, int]]
    boxes: torch.FloatTensor
    tokens: list[torch.LongTensor] = field(default_factory=list)

    def of_rows(self, rows: list[int]) -> "Grids":
        """The grids of these rows, which may repeat."""
        return Grids([self.sizes[row] for row in rows], self.boxes[rows], [self.tokens[row] for row in rows])


@dataclass(frozen=True)
class TokenGroup:
    """Indices of a phrase's tokens in its answer."""

    tokens: tuple[int, ...]


def draw_phrases(
    model: ComposedModel,
    options: dict,
    maps: list[torch.FloatTensor],
    phrases: list[list] | None,
    grids: Grids,
    images: ImageCache,
    image_index: torch.LongTensor,
    reject_threshold: float | None = None,
) -> dict:
    """
    Turns the maps of each phrase's tokens into a prompt, and lets the segmenter draw.

    Args:
        model ([`ComposedModel`]): Whose segmenter draws.
        options (`dict`):
            `subtract_mean`, `remove_corners`, `prompt`, `attention_temperature`, `box_threshold` and `mask_choice` of
            [`AttendAndSegmentConfig`].
        maps (`list[torch.FloatTensor]` of shapes `(tokens, grid_rows, grid_columns)`): One entry per row.
        phrases (`list[list]`, *optional*):
            Phrases of each row, whose `tokens` are indices in its answer. Without them nothing is drawn.
        grids ([`Grids`]): Where the maps lie in the images.
        images, image_index: The images, and that of each row.
        reject_threshold (`float`, *optional*): Reject phrases for whose mask the segmenter's score is lower.

    Returns:
        `dict`: Everything that [`AttendAndSegmentOutput`] says about maps and phrases.

    Raises:
        ValueError: If a phrase names no token of its answer, or the sizes of the images are not known.
    """
    output = {"attention_maps": maps, "grid_boxes": grids.boxes}
    if phrases is None:
        return output
    shares = (options["subtract_mean"], options["remove_corners"])
    scores = [
        group_maps(row_maps, [phrase.tokens for phrase in row], *shares)
        for row_maps, row in zip(maps, phrases, strict=True)
    ]
    mask_size, pointers = segmenter_adapter(model.segmenter).mask_size, []
    for row_scores, box, image in zip(scores, grids.boxes.tolist(), image_index.tolist(), strict=True):
        if len(row_scores):
            pointers += _point(row_scores, box, images, image, options, mask_size)
    # Without a prompt a phrase was found nowhere.
    found = torch.tensor([prompt is not None for _, prompt in pointers], dtype=torch.bool)
    counts = [len(row) for row in phrases]
    slot_images = torch.repeat_interleave(image_index.cpu(), torch.tensor(counts))[found]
    prompts = [prompt for _, prompt in pointers if prompt is not None]
    masks, iou_scores = model._draw_prompts(prompts, images, slot_images)
    found = found.to(masks.device)
    masks, iou_scores = _spread(masks, found, _NOTHING), _spread(iou_scores, found, 0.0)
    chosen = torch.full((len(iou_scores),), iou_scores.shape[1] - 1, device=iou_scores.device)
    if options["mask_choice"] == "best":
        chosen = iou_scores.argmax(dim=1)
    every = torch.arange(len(chosen), device=chosen.device)
    mask_scores, rejected = iou_scores[every, chosen], ~found
    if reject_threshold is not None:
        rejected = rejected | (mask_scores < reject_threshold)
    of_phrases = {
        "pred_masks": masks[every, chosen],
        "mask_scores": mask_scores,
        "candidate_masks": masks,
        "candidate_scores": iou_scores,
        "slot_probs": found.float(),
        "rejected": rejected,
    }
    for name, width in (("points", 2), ("boxes", 4)):
        if name in _NEEDS[options["prompt"]]:
            of_phrases[name] = torch.tensor([shown[name] for shown, _ in pointers], dtype=torch.long).reshape(
                -1, width
            )
    split = {name: list(values.split(counts)) for name, values in of_phrases.items()}
    return {**output, "phrases": phrases, "phrase_maps": scores, **split}


def _point(
    scores: torch.FloatTensor,
    grid_box: Sequence[float],
    images: ImageCache,
    image: int,
    options: dict,
    mask_size: tuple[int, int],
) -> list[tuple[dict, SegmenterPrompt | None]]:
    """Of each phrase its prompts in pixels of the image, as the output shows them, and in those of the segmenter."""
    scale = images.scale_of(image)
    height, width = images.size_of(image)
    side = images.sam_pixel_values.shape[-2:] if images.sam_pixel_values is not None else (0, 0)
    squashed = tuple(images.reshaped_input_sizes[image].tolist()) == tuple(side) and height != width
    needs, pointers = _NEEDS[options["prompt"]], []
    for score in scores:  # one at a time: at full size they may be large
        full = upsample_map(score, grid_box, (height, width))
        shown, prompts = {}, {}
        if "points" in needs:
            x, y = shown["points"] = peak(full)
            prompts |= {"points": [(x * scale[0], y * scale[1])], "point_labels": [1]}
        if "boxes" in needs or "masks" in needs:
            full = full / options["attention_temperature"]
        if "boxes" in needs:
            box = shown["boxes"] = box_above(full, options["box_threshold"])
            # Beside a soft mask the released code gives SAM the empty box, too. As the only prompt it would ask for
            # whatever is in the corner of the image.
            if any(box) or "masks" in needs:
                prompts["box"] = tuple(edge * scale[axis % 2] for axis, edge in enumerate(box))
        if "masks" in needs:
            prompts["mask"] = mask_prompt(full, mask_size, keeps_aspect=not squashed)
        pointers.append((shown, SegmenterPrompt(**prompts) if prompts else None))
    return pointers


def _spread(values: torch.Tensor, found: torch.BoolTensor, elsewhere: float) -> torch.Tensor:
    """The values at the indices that are found, in order, and `elsewhere` at the others."""
    spread = values.new_full((len(found), *values.shape[1:]), elsewhere)
    spread[found] = values
    return spread


# ---- from a map to a prompt -----------------------------------------------------------------------------------------


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
    score: torch.FloatTensor, grid_box: Sequence[float], image_size: tuple[int, int]
) -> torch.FloatTensor:
    """
    Brings a map to the size of the image, bicubic without anti-aliasing.

    Args:
        score (`torch.FloatTensor` of shape `(rows, columns)` or `(groups, rows, columns)`): The map.
        grid_box (`Sequence[float]`):
            What part of the image the grid covers, `(x1, y1, x2, y2)` in its pixels; it reaches beyond the image
            where that was padded, and is smaller where it was cropped.
        image_size (`tuple[int, int]`): (height, width).

    Returns:
        `torch.FloatTensor` of shape `(..., height, width)`. What the model did not see has the map's smallest value.
    """
    maps = score.float()[None] if score.ndim == 2 else score.float()
    height, width = image_size
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
    Box `(x1, y1, x2, y2)` of the pixels above a threshold, x2 and y2 after the last one; zeros without any.

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
            Whether the segmenter sees the image with its aspect ratio, padded on the right and bottom (SAM), or
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


__all__ = ["Grids", "TokenGroup", "box_above", "draw_phrases", "group_maps", "mask_prompt", "peak", "upsample_map"]
