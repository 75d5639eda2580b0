"""IVM: a heat-map of what an instruction needs, from LLaVA-1.5 and SAM ViT-H (arXiv 2405.19783)."""

from copy import deepcopy

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_reasoning_segmentation import LLAVA_15_DEFAULTS, SAM_VIT_H_DEFAULTS, ComposedConfig


def _conditioned_sam_defaults() -> SubConfigSpec:
    settings = deepcopy(SAM_VIT_H_DEFAULTS.init_kwargs)
    # One learned mask token; SAM's decoder has a token for each of three further masks.
    settings["mask_decoder_config"]["num_multimask_outputs"] = 0
    return SubConfigSpec(config_class=AutoConfig, model_type="sam", init_kwargs=settings)


@strict
class IvmConfig(ComposedConfig):
    r"""
    Configuration of [`IvmForVisualMasking`]; the default is the size of IVM-V1.0. Beside the fields of
    [`ComposedConfig`]:

    Args:
        projector_hidden_size (`int`, *optional*, defaults to 2048):
            Width of the hidden layer between language state and mask prompt.
        needs_adapter (`bool`, *optional*, defaults to `False`):
            Whether a LoRA adapter of the language model lies in `adapter/`; without it the weights are wrong.
        bce_loss_weight, dice_loss_weight (`float`, *optional*, defaults to 1.0):
            Weights of the per-pixel loss and the overlap loss.
    """

    model_type = "ivm"
    published_config = "configuration_ivm.IvmConfig"
    published_model = "modeling_ivm.IvmForVisualMasking"
    sub_configs_defaults = {"vlm_config": LLAVA_15_DEFAULTS, "segmenter_config": _conditioned_sam_defaults()}

    projector_hidden_size: int = 2048
    needs_adapter: bool = False
    bce_loss_weight: float = 1.0
    dice_loss_weight: float = 1.0


__all__ = ["IvmConfig"]
