"""SAM's sizes come off its tensors."""

import pytest
import torch
from transformers import SamConfig, SamModel

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.sam_config import read_sam_config


def sam_config(**vision) -> SamConfig:
    vision = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 96,
        "patch_size": 8,
        "window_size": 5,
        "global_attn_indexes": [1],
        "mlp_dim": 40,
        "output_channels": 16,
        "num_pos_feats": 8,
        **vision,
    }
    return SamConfig(
        vision_config=vision,
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "mask_input_channels": 8,
        },
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 20,
            "num_hidden_layers": 1,
            "attention_downsample_rate": 2,
            "num_multimask_outputs": 2,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": 12,
        },
    )


def shapes_of(config: SamConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = SamModel(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"patch_size": 16},
        {"patch_size": 4, "image_size": 64, "window_size": 7, "global_attn_indexes": [0, 2]},
        {"num_attention_heads": 6, "global_attn_indexes": [2]},
        {"use_abs_pos": False},
        {"qkv_bias": False},
        {"num_pos_feats": 10},
        {"global_attn_indexes": [0, 1, 2], "window_size": 0},
    ],
    ids=str,
)
def test_sizes_round_trip(vision):
    wanted = sam_config(**vision)
    found = read_sam_config(shapes_of(wanted))
    for name in (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "window_size",
        "global_attn_indexes", "mlp_dim", "output_channels", "num_pos_feats", "use_abs_pos", "use_rel_pos", "qkv_bias",
        "num_channels",
    ):  # fmt: skip
        assert getattr(found.vision_config, name) == getattr(wanted.vision_config, name), name
    for name in ("hidden_size", "image_size", "patch_size", "mask_input_channels", "image_embedding_size"):
        assert getattr(found.prompt_encoder_config, name) == getattr(wanted.prompt_encoder_config, name), name
    for name in (
        "hidden_size", "mlp_dim", "num_hidden_layers", "attention_downsample_rate", "num_multimask_outputs",
        "iou_head_depth", "iou_head_hidden_dim", "num_attention_heads",
    ):  # fmt: skip
        assert getattr(found.mask_decoder_config, name) == getattr(wanted.mask_decoder_config, name), name
    assert found.mask_decoder_config.layer_norm_eps == 1e-5
    assert shapes_of(found) == shapes_of(wanted)


def test_windows_as_large_as_the_grid_compute_the_same():
    torch.manual_seed(0)
    windowed = sam_config(image_size=40, window_size=5, global_attn_indexes=[1])
    model = SamModel(windowed).eval()
    for name, value in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(value)
    again = SamModel(read_sam_config(shapes_of(windowed))).eval()
    again.load_state_dict(model.state_dict())
    pixels = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(again.vision_encoder(pixels)[0], model.vision_encoder(pixels)[0])


def test_without_relative_positions_the_open_sizes_must_be_given():
    shapes = shapes_of(sam_config(use_rel_pos=False))
    with pytest.raises(ConversionError, match="num_attention_heads, window_size, global_attn_indexes must be given"):
        read_sam_config(shapes)
    options = {"num_attention_heads": 3, "window_size": 5, "global_attn_indexes": [1]}
    found = read_sam_config(shapes, options).vision_config
    assert not found.use_rel_pos
    assert {name: getattr(found, name) for name in options} == options
    with pytest.raises(ConversionError, match="Unknown SAM options"):
        read_sam_config(shapes, {"heads": 3})


def _changed(**changes):
    shapes = shapes_of(sam_config())
    for name, shape in changes.items():
        if shape is None:
            del shapes[name.replace("__", ".")]
        else:
            shapes[name.replace("__", ".")] = shape
    return shapes


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (_changed(vision_encoder__layers__2__attn__rel_pos_w=(7, 8)), r"layer 2 .* \(9, 8\) and \(7, 8\)"),
        (_changed(vision_encoder__layers__2__attn__rel_pos_w=None), "layer 2"),
        (
            _changed(
                vision_encoder__layers__2__attn__rel_pos_w=(7, 8), vision_encoder__layers__2__attn__rel_pos_h=(7, 8)
            ),
            r"windows of \[4, 5\]",
        ),
        (_changed(mask_decoder__iou_token__weight=None), "mask_decoder.iou_token.weight' is missing"),
    ],
)
def test_contradictions_are_named(shapes, message):
    with pytest.raises(ConversionError, match=message):
        read_sam_config(shapes)


def test_no_positions_at_all():
    with pytest.raises(ConversionError, match="neither absolute nor relative positions"):
        read_sam_config(shapes_of(sam_config(use_abs_pos=False, use_rel_pos=False)))
