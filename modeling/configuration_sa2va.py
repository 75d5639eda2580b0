"""Sa2VA: a Qwen3-VL, Qwen2.5-VL or LLaVA whose `[SEG]` tokens prompt SAM 2 or 3 (arXiv 2501.04001)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_reasoning_segmentation import ReasoningSegmentationConfig


# Qwen3-VL-4B with the five tokens that training adds; what is not here is what transformers' own config says.
QWEN3_VL_4B_DEFAULTS = SubConfigSpec(
    config_class=AutoConfig,
    model_type="qwen3_vl",
    init_kwargs={
        "text_config": {
            "vocab_size": 151674,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
)
# Hiera-L of SAM 2.0. Heads, windows and global blocks show in no weight.
SAM2_HIERA_L = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 144,
            "num_attention_heads": 2,
            "blocks_per_stage": [2, 6, 36, 4],
            "embed_dim_per_stage": [144, 288, 576, 1152],
            "num_attention_heads_per_stage": [2, 4, 8, 16],
            "window_size_per_stage": [8, 4, 16, 8],
            "global_attention_blocks": [23, 33, 43],
        },
        "backbone_channel_list": [1152, 576, 288, 144],
    },
}
SAM2_HIERA_L_DEFAULTS = SubConfigSpec(config_class=AutoConfig, model_type="sam2", init_kwargs=SAM2_HIERA_L)


@strict
class Sa2VaConfig(ReasoningSegmentationConfig):
    r"""
    Configuration of [`Sa2VaForReasoningSegmentation`]. The fields are those of [`ReasoningSegmentationConfig`] with
    other defaults: those of Sa2VA-Qwen3-VL-4B, the state at the `[SEG]` token before the last norm, and the best of
    SAM 2's candidates. Its other checkpoints read the state after the norm; the one with SAM 3 draws an empty mask
    where SAM 3 sees nothing.
    """

    model_type = "sa2va"
    published_config = "configuration_sa2va.Sa2VaConfig"
    published_model = "modeling_sa2va.Sa2VaForReasoningSegmentation"
    sub_configs_defaults = {"vlm_config": QWEN3_VL_4B_DEFAULTS, "segmenter_config": SAM2_HIERA_L_DEFAULTS}

    mask_loss_points: int = 12544
    slot_state: Literal["before", "at"] = "at"
    slot_state_normalized: bool = False
    prompt_padding_points: int = 2
    multimask_output: bool = True
    prompt_slots: bool = True


__all__ = ["Sa2VaConfig"]
