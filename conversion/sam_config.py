"""SAM's sizes, read off its tensors: no config of LISA, GSVA or IVM states them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import SamConfig

from .errors import ConversionError


Shapes = Mapping[str, tuple[int, ...]]

# Published SAM code sets these in the decoder whatever the encoder's size; the weights do not show them.
_DECODER_HEADS = 8
_DECODER_LAYER_NORM_EPS = 1e-5  # transformers defaults to 1e-6, which moves the mask logits by 2e-5
# What the constructor of IVM's decoder states.
_NEW_DECODER = {
    "mlp_dim": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": _DECODER_HEADS,
    "attention_downsample_rate": 2,
    "layer_norm_eps": _DECODER_LAYER_NORM_EPS,
}
_OPTIONS = ("num_attention_heads", "window_size", "global_attn_indexes")


def read_sam_config(shapes: Shapes, options: Mapping[str, Any] | None = None) -> SamConfig:
    """Build the config of a SAM from the shapes of its parameters.

    The number of heads, the window and the layers with global attention follow from the relative position tables:
    their columns are the width of one head, their rows `2 * side - 1` of what a layer attends to.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shapes by `SamModel` parameter name.
        options (`Mapping[str, Any]`, *optional*): `num_attention_heads`, `window_size` and `global_attn_indexes` of an
            encoder without relative positions, whose weights do not show them.

    Returns:
        `SamConfig`: With the original's decoder epsilon.

    Raises:
        ConversionError: Parameters are missing, contradict each other, or leave a size open.
    """
    options = _known_options(options)
    vision = _vision_config(shapes, options)
    hidden_size = _shape(shapes, "mask_decoder.iou_token.weight")[1]
    iou_head = "mask_decoder.iou_prediction_head"
    return SamConfig(
        vision_config=vision,
        prompt_encoder_config={
            "hidden_size": hidden_size,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "mask_input_channels": _shape(shapes, "prompt_encoder.mask_embed.conv2.weight")[0],
            "num_point_embeddings": _count(shapes, r"prompt_encoder\.point_embed\.(\d+)\.weight"),
        },
        mask_decoder_config={
            **_decoder_config(shapes, hidden_size),
            "iou_head_depth": 2 + _count(shapes, re.escape(iou_head) + r"\.layers\.(\d+)\.weight"),
            "iou_head_hidden_dim": _shape(shapes, f"{iou_head}.proj_in.weight")[0],
        },
    )


def read_conditioned_sam_config(shapes: Shapes, options: Mapping[str, Any] | None = None) -> SamConfig:
    """Build the config of IVM's SAM: the same image encoder, a decoder without IoU head, no prompt encoder.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shapes by `ConditionedSam` parameter name.
        options (`Mapping[str, Any]`, *optional*): See `read_sam_config`.

    Raises:
        ConversionError: Parameters are missing, contradict each other, or leave a size open.
    """
    options = _known_options(options)
    vision = _vision_config(shapes, options)
    hidden_size = _shape(shapes, "mask_decoder.mask_tokens.weight")[1]
    return SamConfig(
        vision_config=vision,
        prompt_encoder_config={
            "hidden_size": hidden_size,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        mask_decoder_config=_decoder_config(shapes, hidden_size),
    )


def new_conditioned_sam_config(shapes: Shapes) -> SamConfig:
    """Build the config of an IVM's SAM whose decoder is new: SAM's sizes, where the file holds its decoder, or those
    that the original's constructor states, for the width of the image embedding.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shapes by `SamModel` parameter name; at least the image encoder's.

    Raises:
        ConversionError: Parameters are missing, contradict each other, or leave a size open.
    """
    width = _shape(shapes, "vision_encoder.neck.conv1.weight")[0]
    vision = _vision_config({"shared_image_embedding.positional_embedding": (2, width // 2), **shapes}, {})
    has_decoder = "mask_decoder.mask_tokens.weight" in shapes
    decoder = _decoder_config(shapes, width) if has_decoder else {**_NEW_DECODER, "hidden_size": width}
    return SamConfig(
        vision_config=vision,
        prompt_encoder_config={
            "hidden_size": width,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        mask_decoder_config={**decoder, "num_multimask_outputs": 0},
    )


def _known_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    options = dict(options or {})
    if unknown := set(options) - set(_OPTIONS):
        raise ConversionError(f"Unknown SAM options {sorted(unknown)}; allowed are {', '.join(_OPTIONS)}.")
    return options


def _decoder_config(shapes: Shapes, hidden_size: int) -> dict[str, Any]:
    inner_size = _shape(shapes, "mask_decoder.transformer.final_attn_token_to_image.q_proj.weight")[0]
    return {
        "hidden_size": hidden_size,
        "mlp_dim": _shape(shapes, "mask_decoder.transformer.layers.0.mlp.lin1.weight")[0],
        "num_hidden_layers": _count(shapes, r"mask_decoder\.transformer\.layers\.(\d+)\.mlp\.lin1\.weight"),
        "num_attention_heads": _DECODER_HEADS,
        "attention_downsample_rate": hidden_size // inner_size,
        "num_multimask_outputs": _shape(shapes, "mask_decoder.mask_tokens.weight")[0] - 1,
        "layer_norm_eps": _DECODER_LAYER_NORM_EPS,
    }


def _vision_config(shapes: Shapes, options: dict[str, Any]) -> dict[str, Any]:
    hidden_size, channels, patch_size, _ = _shape(shapes, "vision_encoder.patch_embed.projection.weight")
    mlp_dim = _shape(shapes, "vision_encoder.layers.0.mlp.lin1.weight")[0]
    layers = _count(shapes, r"vision_encoder\.layers\.(\d+)\.mlp\.lin1\.weight")
    tables = _relative_positions(shapes, layers)
    position = shapes.get("vision_encoder.pos_embed")
    if position is None and not tables:
        raise ConversionError(
            "SAM's image encoder has neither absolute nor relative positions, so its image size is unknown.",
            next_step="Check that the checkpoint holds the whole image encoder.",
        )
    grid = position[1] if position is not None else max((rows + 1) // 2 for rows, _ in tables)
    attention = _attention_from_tables(tables, grid, hidden_size) if tables else _attention_from_options(options)
    return {
        "hidden_size": hidden_size,
        "output_channels": _shape(shapes, "vision_encoder.neck.conv1.weight")[0],
        "num_hidden_layers": layers,
        "num_channels": channels,
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "qkv_bias": "vision_encoder.layers.0.attn.qkv.bias" in shapes,
        "mlp_ratio": mlp_dim / hidden_size,
        "mlp_dim": mlp_dim,
        "use_abs_pos": position is not None,
        "use_rel_pos": bool(tables),
        "num_pos_feats": _shape(shapes, "shared_image_embedding.positional_embedding")[1],
        **attention,
    }


def _relative_positions(shapes: Shapes, layers: int) -> list[tuple[int, int]]:
    """(rows, columns) of every layer's table; empty where the encoder has none."""
    tables = []
    for layer in range(layers):
        pair = [shapes.get(f"vision_encoder.layers.{layer}.attn.rel_pos_{axis}") for axis in "hw"]
        if pair[0] != pair[1] or (tables and pair[0] is None) or (layer and not tables and pair[0] is not None):
            raise ConversionError(
                f"SAM layer {layer} has the relative position tables {pair[0]} and {pair[1]}; all layers must have "
                "two of the same shape, or none.",
                next_step="Only SAM encoders with square windows can be expressed.",
            )
        if pair[0] is not None:
            tables.append(pair[0])
    return tables


def _attention_from_tables(tables: list[tuple[int, int]], grid: int, hidden_size: int) -> dict[str, Any]:
    head_sizes = {columns for _, columns in tables}
    sides = [(rows + 1) // 2 for rows, _ in tables]
    windows = sorted({side for side in sides if side != grid})
    head_size = next(iter(head_sizes))
    if len(head_sizes) != 1 or hidden_size % head_size or len(windows) > 1 or (windows and windows[0] > grid):
        raise ConversionError(
            f"SAM's relative position tables ask for heads of width {sorted(head_sizes)} and windows of {windows} on "
            f"a {grid} x {grid} grid with {hidden_size} channels.",
            next_step="One head width that divides the channels and one window below the grid can be expressed.",
        )
    return {
        "num_attention_heads": hidden_size // head_size,
        "window_size": windows[0] if windows else 0,
        "global_attn_indexes": [layer for layer, side in enumerate(sides) if side == grid],
    }


def _attention_from_options(options: dict[str, Any]) -> dict[str, Any]:
    if missing := [name for name in _OPTIONS if name not in options]:
        raise ConversionError(
            "SAM's image encoder has no relative position tables, so its heads and windows cannot be read off the "
            f"weights; {', '.join(missing)} must be given.",
            next_step="Pass them as sam_options={'num_attention_heads': 16, 'window_size': 14, 'global_attn_indexes': "
            "[7, 15, 23, 31]}, with the values the original was built with.",
        )
    return {name: options[name] for name in _OPTIONS}


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ConversionError(
            f"SAM's parameter {name!r} is missing.",
            next_step="Pass a checkpoint that holds the whole SAM, or sam= with SAM's own file for its frozen parts.",
        )
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    numbers = {int(match[1]) for name in shapes if (match := re.fullmatch(pattern, name))}
    if len(numbers) != max(numbers, default=-1) + 1:
        raise ConversionError(
            f"SAM's layers are numbered up to {max(numbers)}, but there are {len(numbers)} ({pattern}).",
            next_step="Pass a checkpoint that holds the whole SAM, or sam= with SAM's own file for its frozen parts.",
        )
    return len(numbers)
