"""LISA: reasoning segmentation with one LLaVA-v1, SAM ViT-H and the token `[SEG]` (arXiv 2308.00692)."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_reasoning_segmentation import SAM_VIT_H_DEFAULTS, ReasoningSegmentationConfig


# LLaVA v1: CLIP ViT-L/14 at 224 px (256 patches) and a projector that is one Linear. transformers' projector has two;
# with the identity as activation and as frozen second layer it is the same function. LISA-7B-v1's 32004 words, and
# `<image>` after them.
LLAVA_V1_DEFAULTS = SubConfigSpec(
    config_class=AutoConfig,
    model_type="llava",
    init_kwargs={
        "text_config": {"model_type": "llama", "vocab_size": 32005},
        "image_token_index": 32004,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": 224,
            "projection_dim": 768,
        },
        "image_seq_length": 256,
        "projector_hidden_act": "linear",
    },
)


@strict
class LisaConfig(ReasoningSegmentationConfig):
    r"""
    Configuration of [`LisaForReasoningSegmentation`]. The fields are those of [`ReasoningSegmentationConfig`]; the
    default is the size of LISA-7B (LLaVA v1 with CLIP ViT-L/14 at 224 px, SAM ViT-H).
    """

    model_type = "lisa"
    published_config = "configuration_lisa.LisaConfig"
    published_model = "modeling_lisa.LisaForReasoningSegmentation"
    sub_configs_defaults = {"vlm_config": LLAVA_V1_DEFAULTS, "segmenter_config": SAM_VIT_H_DEFAULTS}


__all__ = ["LisaConfig"]
