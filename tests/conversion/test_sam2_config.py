"""SAM 2's sizes come off its tensors."""

import pytest
import torch
from transformers import Sam2Config, Sam2Model

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.sam2_config import read_sam2_config


OPTIONS = {
    "num_attention_heads": 2,
    "window_size_per_stage": [4, 2, 8, 4],
    "global_attention_blocks": [2, 4],
}
STAGES = [24, 48, 96, 192]


def sam2_config() -> Sam2Config:
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": STAGES[0],
        "blocks_per_stage": [1, 2, 3, 1],
        "embed_dim_per_stage": STAGES,
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "window_positional_embedding_background_size": [5, 5],
        **OPTIONS,
    }
    return Sam2Config(
        vision_config={
            "backbone_config": backbone,
            "backbone_channel_list": STAGES[::-1],
            "fpn_hidden_size": 64,
        },
        prompt_encoder_config={"hidden_size": 64, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 64,
            "mlp_dim": 40,
            "num_hidden_layers": 3,
            "attention_downsample_rate": 4,
            "num_multimask_outputs": 2,
            "iou_head_hidden_dim": 24,
        },
    )


def shapes_of(config: Sam2Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = Sam2Model(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_the_config_is_that_of_the_model():
    config = sam2_config()
    read = read_sam2_config(shapes_of(config), OPTIONS)
    for part in ("prompt_encoder_config", "mask_decoder_config"):
        assert getattr(read, part).to_dict() == getattr(config, part).to_dict()
    assert read.vision_config.backbone_config.to_dict() == config.vision_config.backbone_config.to_dict()
    assert read.vision_config.to_dict() == config.vision_config.to_dict()


@pytest.mark.parametrize("missing", OPTIONS)
def test_what_is_missing_is_named(missing):
    given = {name: value for name, value in OPTIONS.items() if name != missing}
    with pytest.raises(ConversionError, match=f"do not show {missing}\\.") as error:
        read_sam2_config(shapes_of(sam2_config()), given)
    assert '"window_size_per_stage": [4, ' in error.value.next_step  # the first shows


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_attention_heads": 0}, "cannot have 0 heads"),
        ({"num_attention_heads": -2}, "cannot have -2 heads"),
        ({"window_size_per_stage": [4, 0, 8, 4]}, "cannot have"),
        ({"global_attention_blocks": [7]}, "it has 0 to 6"),
        ({"window_size_per_stage": [8, 4, 14, 7]}, "4 positions wide"),
    ],
)
def test_options_that_no_such_model_has_are_refused(wrong, message):
    with pytest.raises(ConversionError, match=message):
        read_sam2_config(shapes_of(sam2_config()), OPTIONS | wrong)
