"""The config of SAM 3's tracker, read off the shapes of its parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import Sam3TrackerConfig

from .errors import ConversionError
from .sam2_config import Shapes, count_layers, mask_decoder_sizes, prompt_encoder_sizes, shape_of


_OPTIONS = ("num_attention_heads", "window_size", "global_attention_blocks")
# What no weight shows of the published image encoder, by its width and blocks.
_PUBLISHED = {(1024, 32): (16, 24, (7, 15, 23, 31))}
_IMAGE_SIZE = 1008
# Of the original's image encoder; transformers' own checkpoints of SAM 3 have 1e-6.
_LAYER_NORM_EPS = 1e-5
_BACKBONE = "vision_encoder.backbone"


def read_sam3_config(shapes: Shapes, options: Mapping[str, Any] | None = None) -> Sam3TrackerConfig:
    """Build the config of a SAM 3 tracker for images of 1008 x 1008 pixels from the shapes of its parameters.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shapes by `Sam3TrackerModel` parameter name.
        options (`Mapping[str, Any]`, *optional*): `num_attention_heads`, `window_size` (positions along a side) and
            `global_attention_blocks` of an image encoder that is not the published one; no weight shows them.

    Raises:
        ConversionError: Parameters are missing, leave a size open, or do not fit the options.
    """
    width, _, patch, _ = shape_of(shapes, f"{_BACKBONE}.embeddings.patch_embeddings.projection.weight")
    blocks = count_layers(shapes, rf"{_BACKBONE}\.layers\.(\d+)\.attention\.q_proj\.weight")
    heads, window, global_blocks = _attention(width, blocks, dict(options or {}))
    positions = shape_of(shapes, f"{_BACKBONE}.embeddings.position_embeddings")[1]
    grid = _IMAGE_SIZE // patch
    return Sam3TrackerConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": width,
                "intermediate_size": shape_of(shapes, f"{_BACKBONE}.layers.0.mlp.fc1.weight")[0],
                "num_hidden_layers": blocks,
                "num_attention_heads": heads,
                "image_size": _IMAGE_SIZE,
                "patch_size": patch,
                "pretrain_image_size": patch * round(positions**0.5),
                "window_size": window,
                "global_attn_indexes": list(global_blocks),
                "layer_norm_eps": _LAYER_NORM_EPS,
            },
            "fpn_hidden_size": shape_of(shapes, "vision_encoder.neck.fpn_layers.0.proj1.weight")[0],
            "backbone_feature_sizes": [[scale * grid, scale * grid] for scale in (4, 2, 1)],
        },
        prompt_encoder_config={**prompt_encoder_sizes(shapes, _IMAGE_SIZE), "patch_size": patch},
        mask_decoder_config=mask_decoder_sizes(shapes),
    )


def _attention(width: int, blocks: int, options: dict[str, Any]) -> tuple[int, int, list[int]]:
    """Heads, positions along a window's side, blocks with global attention."""
    if unknown := set(options) - set(_OPTIONS):
        raise ConversionError(f"Unknown SAM 3 options {sorted(unknown)}; allowed are {', '.join(_OPTIONS)}.")
    known = _PUBLISHED.get((width, blocks))
    if known is None and (missing := [name for name in _OPTIONS if name not in options]):
        example = {"num_attention_heads": 2, "window_size": 24, "global_attention_blocks": [blocks - 1]}
        raise ConversionError(
            f"SAM 3's image encoder (width {width}, {blocks} blocks) is not the published one, and its weights do not "
            f"show {', '.join(missing)}.",
            next_step=f"Pass sam_options={json.dumps(example | options)}, with the values it was built with.",
        )
    values = [options.get(name, usual) for name, usual in zip(_OPTIONS, known or (None,) * 3, strict=True)]
    heads, window, global_blocks = values
    numbers = (heads, window, *global_blocks) if isinstance(global_blocks, list | tuple) else (None,)
    # a head's channels turn in pairs, half of them with the column and half with the row
    if (
        not all(type(number) is int for number in numbers)
        or min(heads, window) < 1
        or width % (4 * heads)
        or not all(0 <= block < blocks for block in global_blocks)
        or blocks - 1 not in global_blocks  # after the last of them the original computes nothing
    ):
        raise ConversionError(
            f"SAM 3's image encoder cannot have {heads!r} heads, windows of {window!r} and global blocks "
            f"{global_blocks!r}; give a number of heads of which each has a multiple of 4 of the {width} channels, a "
            f"whole number of at least 1, and a list of blocks, of which it has 0 to {blocks - 1}, with the last one."
        )
    return heads, window, list(global_blocks)
