"""Where a vision-language model's image tokens lie in the image, per family of processors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import LlavaNextProcessor, LlavaProcessor, ProcessorMixin
from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas


Box = tuple[float, float, float, float]
LEVELS = ("fine", "base")


@dataclass(frozen=True)
class AttentionGrid:
    """
    The grid of one image.

    Args:
        rows, columns (`int`): Its size.
        box (`tuple[float, float, float, float]`):
            What part of the image it covers, `(x1, y1, x2, y2)` in pixels of the upright image. It reaches beyond the
            image where that was padded and is smaller where it was cropped.
        tokens (`np.ndarray` of shape `(rows * columns,)`): Which of the image's tokens are its cells, row by row.
        tiles (`int`): Entries of `pixel_values` that show the image.
    """

    rows: int
    columns: int
    box: Box
    tokens: np.ndarray
    tiles: int = 1


def attention_grids(
    processor: ProcessorMixin, views: Mapping[str, Any], sizes: Sequence[tuple[int, int]], level: str = "fine"
) -> list[AttentionGrid]:
    """
    The grids of a batch of images.

    Args:
        processor (`ProcessorMixin`): The vision-language model's processor.
        views (`Mapping[str, Any]`): What it returned for the images.
        sizes (`Sequence[tuple[int, int]]`): (height, width) of each image.
        level (`str`): `"fine"`, or `"base"` for the overview that models with tiles have besides (LLaVA-NeXT's base
            image, InternVL's thumbnail).

    Raises:
        ValueError: If `level` does not exist or the processor is of no known family.
    """
    if level not in LEVELS:
        raise ValueError(f"The grid {level!r} does not exist; there are {', '.join(LEVELS)}.")
    image_processor = processor.image_processor
    if "image_grid_thw" in views:
        grids = [[int(value) for value in row] for row in views["image_grid_thw"]]
        merge_size = image_processor.merge_size
        return [_merged_patches(*grid, merge_size, size) for grid, size in zip(grids, sizes, strict=True)]
    if isinstance(processor, LlavaNextProcessor) and "image_sizes" in views:
        return [_any_resolution(processor, views, size, level) for size in sizes]
    if hasattr(image_processor, "crop_to_patches") and hasattr(processor, "image_seq_length"):
        is_tiled = len(views["pixel_values"]) != len(sizes)
        return [_tiles(processor, size, level, is_tiled) for size in sizes]
    # By class: others have a `patch_size` too, and lay their tokens out differently (Pixtral, LLaVA-OneVision). By its
    # name where it is ours: a processor that brings its own code along is of a second class of that name.
    is_ours = any(base.__name__ == "LlavaChatProcessor" for base in type(processor).__mro__)
    if (is_ours or isinstance(processor, LlavaProcessor)) and "pixel_values" in views:
        return [_single_view(processor, views, size) for size in sizes]
    raise ValueError(
        f"It is not known where the image tokens of {type(processor).__name__} lie in the image. Known are the "
        "processors of LLaVA, LLaVA-NeXT, ViP-LLaVA, DiffLMM, Qwen2-VL and later, and InternVL."
    )


def _whole(size: tuple[int, int]) -> Box:
    return 0.0, 0.0, float(size[1]), float(size[0])


def _merged_patches(frames: int, height: int, width: int, merge_size: int, size: tuple[int, int]) -> AttentionGrid:
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL: the image at its own proportions, `merge_size` squared patches per token."""
    if frames != 1:
        raise ValueError(f"An image with {frames} frames was given; attention is read off single images.")
    rows, columns = height // merge_size, width // merge_size
    return AttentionGrid(rows, columns, _whole(size), np.arange(rows * columns))


def _any_resolution(
    processor: ProcessorMixin, views: Mapping[str, Any], size: tuple[int, int], level: str
) -> AttentionGrid:
    """
    LLaVA-NeXT: the tokens of the base image, then those of the tiles without their padding, row by row, each row with
    a newline token at its end.
    """
    side_height, side_width = np.shape(views["pixel_values"][0][0])[-2:]
    patches_high, patches_wide = side_height // processor.patch_size, side_width // processor.patch_size
    class_token = processor.num_additional_image_tokens - (processor.vision_feature_select_strategy == "default")
    base = patches_high * patches_wide + class_token
    if level == "base":
        tokens = class_token + np.arange(patches_high * patches_wide)
        return AttentionGrid(patches_high, patches_wide, _whole(size), tokens)
    best_height, best_width = select_best_resolution(list(size), processor.image_processor.image_grid_pinpoints)
    rows, columns = unpadded_grid(
        patches_high * (best_height // side_height), patches_wide * (best_width // side_width), size
    )
    tokens = base + np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)
    # The halves of a patch that the padding reaches into are kept; the released code stretches the grid over the
    # whole image all the same.
    return AttentionGrid(rows, columns, _whole(size), tokens.reshape(-1))


def unpadded_grid(rows: int, columns: int, size: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns that LLaVA-NeXT leaves of a grid when it takes the padding off an image of this (height,
    width)."""
    height, width = size
    if width / height > columns / rows:
        kept = int(round(height * (columns / width), 7))
        return rows - 2 * ((rows - kept) // 2), columns
    kept = int(round(width * (rows / height), 7))
    return rows, columns - 2 * ((columns - kept) // 2)


def _tiles(processor: ProcessorMixin, size: tuple[int, int], level: str, is_tiled: bool) -> AttentionGrid:
    """InternVL: tiles one after the other, each row by row, then the thumbnail where there are several."""
    image_processor = processor.image_processor
    side = round(processor.image_seq_length**0.5)
    if side * side != processor.image_seq_length:
        raise ValueError(f"{processor.image_seq_length} tokens per tile form no square.")
    tiles_wide = tiles_high = 1
    if is_tiled:
        tile = dict(image_processor.size)
        tiles_wide, tiles_high = get_optimal_tiled_canvas(
            size, (tile["height"], tile["width"]), image_processor.min_patches, image_processor.max_patches
        )
    count = tiles_wide * tiles_high
    if level == "base" or count == 1:
        first = count * side * side if count > 1 else 0
        tokens = first + np.arange(side * side)
        return AttentionGrid(side, side, _whole(size), tokens, tiles=count + (count > 1))
    cells = np.arange(count * side * side).reshape(tiles_high, tiles_wide, side, side)
    tokens = cells.transpose(0, 2, 1, 3).reshape(-1)
    return AttentionGrid(tiles_high * side, tiles_wide * side, _whole(size), tokens, tiles=count + 1)


def _single_view(processor: ProcessorMixin, views: Mapping[str, Any], size: tuple[int, int]) -> AttentionGrid:
    """LLaVA, ViP-LLaVA and models like them: one view, one token per patch."""
    height, width = np.shape(views["pixel_values"][0])[-2:]
    rows, columns = height // processor.patch_size, width // processor.patch_size
    kept = getattr(processor, "num_additional_image_tokens", 0)
    kept -= getattr(processor, "vision_feature_select_strategy", None) == "default"
    return AttentionGrid(
        rows, columns, view_box(processor.image_processor, size), max(0, kept) + np.arange(rows * columns)
    )


def view_box(image_processor: Any, size: tuple[int, int]) -> Box:
    """What part of an image of this (height, width) an image processor of the CLIP kind shows, `(x1, y1, x2, y2)` in
    its pixels: a square around it where it is padded to one, the middle where it is cropped, all of it where it is
    squashed."""
    height, width = size
    if getattr(image_processor, "do_pad", False):
        side = max(size)
        left, top = -((side - width) // 2), -((side - height) // 2)
        return float(left), float(top), float(left + side), float(top + side)
    target = dict(image_processor.size) if image_processor.size is not None else {}
    shortest = target.get("shortest_edge")
    crop = getattr(image_processor, "do_center_crop", False)
    if not (crop and shortest and getattr(image_processor, "do_resize", True)):
        return _whole(size)
    cropped = dict(image_processor.crop_size)
    scale = min(size) / shortest
    seen_height, seen_width = cropped["height"] * scale, cropped["width"] * scale
    left, top = (width - seen_width) / 2, (height - seen_height) / 2
    return left, top, left + seen_width, top + seen_height


def grid_inputs(grids: Sequence[AttentionGrid]) -> dict[str, list]:
    """
    Grids as model inputs.

    Returns:
        `dict[str, list]`: `grid_sizes` (rows, columns), `grid_boxes` in whole pixels and `grid_tokens`, which -1 fills
        to equal lengths; and `tile_counts` where images have several entries of `pixel_values`.
    """
    longest = max(len(grid.tokens) for grid in grids)
    tiles = [grid.tiles for grid in grids]
    return {
        **({"tile_counts": tiles} if set(tiles) != {1} else {}),
        "grid_sizes": [[grid.rows, grid.columns] for grid in grids],
        # Maps are brought to whole pixels anyway, and integers stay what they are when inputs are cast to bfloat16.
        "grid_boxes": [[round(edge) for edge in grid.box] for grid in grids],
        "grid_tokens": [[*grid.tokens.tolist(), *[-1] * (longest - len(grid.tokens))] for grid in grids],
    }


__all__ = ["LEVELS", "AttentionGrid", "attention_grids", "grid_inputs", "unpadded_grid", "view_box"]
