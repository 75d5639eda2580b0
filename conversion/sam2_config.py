"""The config of a SAM 2, read off the shapes of its parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from transformers import Sam2Config

from .errors import ConversionError


Shapes = Mapping[str, tuple[int, ...]]

_OPTIONS = ("num_attention_heads", "window_size_per_stage", "global_attention_blocks")
# What no weight shows of the published Hieras, by the width and the blocks of their stages: heads of the first stage,
# windows, blocks that attend to everything.
_PUBLISHED = {
    (96, (1, 2, 7, 2)): (1, (8, 4, 14, 7), (5, 7, 9)),
    (96, (1, 2, 11, 2)): (1, (8, 4, 14, 7), (7, 10, 13)),
    (112, (2, 3, 16, 3)): (2, (8, 4, 14, 7), (12, 16, 20)),
    (144, (2, 6, 36, 4)): (2, (8, 4, 16, 8), (23, 33, 43)),
}
_IMAGE_SIZE = 1024
_PATCH_STRIDE, _STAGES = 4, 4
_DECODER_HEADS = 8
_BACKBONE, _DECODER = "vision_encoder.backbone", "mask_decoder"


def read_sam2_config(shapes: Shapes, options: Mapping[str, Any] | None = None) -> Sam2Config:
    """Build the config of a SAM 2 for images of 1024 x 1024 pixels from the shapes of its parameters.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shapes by `Sam2Model` parameter name.
        options (`Mapping[str, Any]`, *optional*): `num_attention_heads` of the first stage (each has twice those
            of the one before), `window_size_per_stage` and `global_attention_blocks` of an image encoder of none of
            the published sizes, whose weights do not show them.

    Raises:
        ConversionError: Parameters are missing, leave a size open, or do not fit the options.
    """
    widths = _widths(shapes)
    stages = list(dict.fromkeys(widths))
    if len(stages) != _STAGES:
        raise ConversionError(
            f"SAM 2's image encoder has blocks of the widths {stages}; it has four stages of different widths.",
            next_step="Pass a checkpoint that holds the whole SAM 2.",
        )
    blocks = tuple(widths.count(width) for width in stages)
    first_window = shape_of(shapes, f"{_BACKBONE}.pos_embed_window")[-1]
    heads, windows, global_blocks = _attention(stages[0], blocks, first_window, dict(options or {}))
    grids = [_IMAGE_SIZE // (_PATCH_STRIDE * 2**level) for level in range(_STAGES - 1)]
    return Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": stages[0],
                "num_attention_heads": heads,
                "image_size": [_IMAGE_SIZE, _IMAGE_SIZE],
                "blocks_per_stage": list(blocks),
                "embed_dim_per_stage": stages,
                "num_attention_heads_per_stage": [heads * 2**stage for stage in range(_STAGES)],
                "window_size_per_stage": list(windows),
                "window_positional_embedding_background_size": list(shape_of(shapes, f"{_BACKBONE}.pos_embed")[-2:]),
                "global_attention_blocks": list(global_blocks),
            },
            "backbone_channel_list": stages[::-1],
            "backbone_feature_sizes": [[grid, grid] for grid in grids],
            "fpn_hidden_size": shape_of(shapes, "vision_encoder.neck.convs.0.weight")[0],
        },
        prompt_encoder_config=prompt_encoder_sizes(shapes, _IMAGE_SIZE),
        mask_decoder_config=mask_decoder_sizes(shapes),
    )


def prompt_encoder_sizes(shapes: Shapes, image_size: int) -> dict[str, int]:
    """Fields of the prompt encoder's config of a SAM 2 or SAM 3 for images of `image_size` pixels.

    Raises:
        ConversionError: Parameters are missing.
    """
    return {
        "hidden_size": shape_of(shapes, f"{_DECODER}.iou_token.weight")[1],
        "image_size": image_size,
        "mask_input_channels": shape_of(shapes, "prompt_encoder.mask_embed.conv2.weight")[0],
        "num_point_embeddings": shape_of(shapes, "prompt_encoder.point_embed.weight")[0],
    }


def mask_decoder_sizes(shapes: Shapes) -> dict[str, int]:
    """Fields of the mask decoder's config of a SAM 2 or SAM 3.

    Raises:
        ConversionError: Parameters are missing.
    """
    hidden_size, transformer = shape_of(shapes, f"{_DECODER}.iou_token.weight")[1], f"{_DECODER}.transformer"
    inner_size = shape_of(shapes, f"{transformer}.final_attn_token_to_image.q_proj.weight")[0]
    return {
        "hidden_size": hidden_size,
        "mlp_dim": shape_of(shapes, f"{transformer}.layers.0.mlp.proj_in.weight")[0],
        "num_hidden_layers": count_layers(shapes, rf"{transformer}\.layers\.(\d+)\.mlp\.proj_in\.weight"),
        "num_attention_heads": _DECODER_HEADS,
        "attention_downsample_rate": hidden_size // inner_size,
        "num_multimask_outputs": shape_of(shapes, f"{_DECODER}.mask_tokens.weight")[0] - 1,
        "iou_head_depth": 2 + count_layers(shapes, rf"{_DECODER}\.iou_prediction_head\.layers\.(\d+)\.weight"),
        "iou_head_hidden_dim": shape_of(shapes, f"{_DECODER}.iou_prediction_head.proj_in.weight")[0],
    }


def _attention(
    width: int, blocks: tuple[int, ...], first_window: int, options: dict[str, Any]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Heads of the first stage, windows by stage, blocks with global attention."""
    if unknown := set(options) - set(_OPTIONS):
        raise ConversionError(f"Unknown SAM 2 options {sorted(unknown)}; allowed are {', '.join(_OPTIONS)}.")
    known = _PUBLISHED.get((width, blocks))
    if known is None and (missing := [name for name in _OPTIONS if name not in options]):
        example = {
            "num_attention_heads": 2,
            "window_size_per_stage": [first_window, 4, 16, 8],
            "global_attention_blocks": [sum(blocks) - 2],
        }
        raise ConversionError(
            f"SAM 2's image encoder (width {width}, {list(blocks)} blocks) is none of the published ones, and its "
            f"weights do not show {', '.join(missing)}.",
            next_step=f"Pass sam_options={json.dumps(example | options)}, with the values it was built with.",
        )
    values = [options.get(name, usual) for name, usual in zip(_OPTIONS, known or (None,) * 3, strict=True)]
    heads, windows, global_blocks = values
    numbers = (heads, *windows, *global_blocks) if all(isinstance(v, list | tuple) for v in values[1:]) else (None,)
    if (
        not all(type(number) is int for number in numbers)
        or heads < 1
        or width % heads
        or len(windows) != _STAGES
        or min(windows) < 1
        or not all(0 <= block < sum(blocks) for block in global_blocks)
    ):
        raise ConversionError(
            f"SAM 2's image encoder cannot have {heads!r} heads, windows {windows!r} and global blocks "
            f"{global_blocks!r}; give a whole number that divides {width}, {_STAGES} whole numbers of at least 1, and "
            f"a list of blocks, of which it has 0 to {sum(blocks) - 1}."
        )
    if windows[0] != first_window:
        raise ConversionError(
            f"The windows of SAM 2's first stage are {first_window} positions wide, as its `pos_embed_window` shows; "
            f"window_size_per_stage is {list(windows)}.",
            next_step="Give the values it was built with.",
        )
    return heads, tuple(windows), tuple(global_blocks)


def _widths(shapes: Shapes) -> list[int]:
    """The width of each block's output."""
    count = count_layers(shapes, rf"{_BACKBONE}\.blocks\.(\d+)\.attn\.qkv\.weight")
    return [shape_of(shapes, f"{_BACKBONE}.blocks.{block}.attn.qkv.weight")[0] // 3 for block in range(count)]


def shape_of(shapes: Shapes, name: str) -> tuple[int, ...]:
    """The shape of a parameter.

    Raises:
        ConversionError: There is none of that name.
    """
    if name not in shapes:
        raise ConversionError(
            f"The segmenter's parameter {name!r} is missing.",
            next_step="Pass a checkpoint that holds the whole segmenter.",
        )
    return shapes[name]


def count_layers(shapes: Shapes, pattern: str) -> int:
    """How many layers there are, whose numbers `pattern` captures.

    Raises:
        ConversionError: A number is left out.
    """
    numbers = {int(match[1]) for name in shapes if (match := re.fullmatch(pattern, name))}
    if len(numbers) != max(numbers, default=-1) + 1:
        raise ConversionError(
            f"The segmenter's layers are numbered up to {max(numbers)}, but there are {len(numbers)} ({pattern}).",
            next_step="Pass a checkpoint that holds the whole segmenter.",
        )
    return len(numbers)
