"""Configurations of a vision-language model that points and a segmenter that draws."""

from typing import ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


PIPELINE_TASK = "reasoning-segmentation"
_ENCODER_DTYPES = ("float32", "bfloat16", "float16")

# SAM's original two-way transformer uses 1e-5 where transformers' SamMaskDecoderConfig defaults to 1e-6; the published
# LISA and GSVA mask decoders were trained with 1e-5 (mask logits move by 2e-5 otherwise).
ORIGINAL_SAM_DECODER_EPS = 1e-5

# LLaVA-1.5 as published for transformers: Vicuna 7B v1.5 (LLaMA-2's epsilon), CLIP ViT-L/14 at 336 px. The rest is
# what transformers' own LlavaConfig says. Rows of the vocabulary after `<image>` and `<pad>` are padding.
LLAVA_15_DEFAULTS = SubConfigSpec(
    config_class=AutoConfig,
    model_type="llava",
    init_kwargs={
        "text_config": {
            "model_type": "llama",
            "vocab_size": 32064,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "pad_token_id": 32001,
        },
        "image_token_index": 32000,
    },
)
SAM_VIT_H_DEFAULTS = SubConfigSpec(
    config_class=AutoConfig,
    model_type="sam",
    init_kwargs={
        "vision_config": {
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "global_attn_indexes": [7, 15, 23, 31],
        },
        "mask_decoder_config": {"layer_norm_eps": ORIGINAL_SAM_DECODER_EPS},
    },
)


@strict
class ComposedConfig(PreTrainedConfig):
    r"""
    What the configurations of all systems share: any image-text-to-text model of transformers together with any
    segmenter of the SAM family.

    Args:
        vlm_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the vision-language model; a LLaVA-1.5-7B by default. A dict needs `model_type`.
        segmenter_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the segmenter (`sam`, `sam_hq`, `sam2`, `sam3_tracker`); SAM ViT-H by default.
        segmenter_dtype (`str` or `torch.dtype`, *optional*):
            What the segmenter's image encoder computes in: `float32`, `float16`, or `bfloat16`, which takes its
            feed-forward blocks alone, since attention rounded to bfloat16 moves masks. By default what the model is
            loaded in. All else of the segmenter computes in float32.
        segmenter_batch_size (`int`, *optional*):
            Images that the segmenter's encoder takes at once outside of training, which bounds its memory. By default
            as many as have the pixels of four views of SAM (4 of 1024 x 1024), as for the vision-language model's own
            encoder. What is kept of every image grows with their number (SAM: 4 MB).
    """

    # Files and class names that a published checkpoint names in its auto_map.
    published_config: ClassVar[str]
    published_model: ClassVar[str]
    sub_configs_defaults = {"vlm_config": LLAVA_15_DEFAULTS, "segmenter_config": SAM_VIT_H_DEFAULTS}
    keys_to_ignore_at_inference = ["cache", "past_key_values", "hidden_states", "attentions", "losses"]

    # A type that does not fit has the whole config written out for a message that nobody reads: what is set most often
    # comes first.
    vlm_config: PreTrainedConfig | dict | None = None
    segmenter_config: PreTrainedConfig | dict | None = None
    segmenter_dtype: str | torch.dtype | None = None
    segmenter_batch_size: int | None = None

    def __post_init__(self, **kwargs):
        # Outside a remotely loaded module these entries would make `pipeline()` ask for trust_remote_code although
        # the classes are already registered; `to_dict` writes them again.
        if not type(self).__module__.startswith("transformers_modules."):
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        self.check_encoder()

    def check_encoder(self) -> None:
        """Raises a ValueError where the segmenter's encoder cannot be as it is to be."""
        _ = self.encoder_dtype, self.encoder_batch_size

    @property
    def encoder_dtype(self) -> torch.dtype | None:
        """`segmenter_dtype` as torch knows it."""
        if self.segmenter_dtype is None:
            return None
        name = str(self.segmenter_dtype).removeprefix("torch.")
        if name not in _ENCODER_DTYPES:
            raise ValueError(f"segmenter_dtype is {name!r}; allowed are {', '.join(_ENCODER_DTYPES)}.")
        return getattr(torch, name)

    @property
    def encoder_batch_size(self) -> int | None:
        """`segmenter_batch_size`, which is at least 1."""
        if self.segmenter_batch_size is not None and self.segmenter_batch_size < 1:
            raise ValueError(
                f"segmenter_batch_size is {self.segmenter_batch_size}; it must be 1 or more, or None for what fits."
            )
        return self.segmenter_batch_size

    @property
    def image_token_id(self) -> int | None:
        """Id of the image placeholder in `input_ids`, as the vision-language model names it."""
        return getattr(self.vlm_config, "image_token_id", None)

    @image_token_id.setter
    def image_token_id(self, value: int):
        self.vlm_config.image_token_id = value

    @property
    def tie_word_embeddings(self) -> bool:
        return self.vlm_config.tie_word_embeddings if isinstance(self.vlm_config, PreTrainedConfig) else False

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool):
        if isinstance(self.vlm_config, PreTrainedConfig):
            self.vlm_config.tie_word_embeddings = value

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        return self.vlm_config.get_text_config(*args, **kwargs)

    def to_dict(self) -> dict:
        """Adds what lets a saved checkpoint load and run in an environment without this package."""
        output = super().to_dict()
        if self.segmenter_dtype is not None:
            output["segmenter_dtype"] = str(self.segmenter_dtype).removeprefix("torch.")
        output["auto_map"] = {
            "AutoConfig": self.published_config,
            "AutoModel": self.published_model,
            "AutoModelForImageTextToText": self.published_model,
        }
        output["custom_pipelines"] = {
            PIPELINE_TASK: {
                "impl": "pipeline_reasoning_segmentation.ReasoningSegmentationPipeline",
                "pt": ["AutoModel"],
                "type": "multimodal",
            }
        }
        return output


@strict
class ReasoningSegmentationConfig(ComposedConfig):
    r"""
    Configuration of [`ComposedForReasoningSegmentation`]. Beside the fields of [`ComposedConfig`], whose segmenter is
    a SAM ViT-B by default:

    Args:
        seg_token_id (`int`, *optional*):
            Id of the token that asks for a mask. A model without it generates text only.
        rej_token_id (`int`, *optional*):
            Id of the token that says "not in the image". `None` for models that never reject.
        ce_loss_weight, bce_loss_weight, dice_loss_weight (`float`):
            Weights of the language loss, the per-pixel loss and the overlap loss (LISA, section 3.2).
        count_rejected_masks (`bool`, *optional*, defaults to `True`):
            Whether a `[REJ]` slot counts as an all-zero mask prediction in the mask losses. GSVA's training code does
            so: each adds a constant (bce ln 2, dice about 1) without a gradient. `False` leaves them out of the mean.
        mask_loss_points (`int`, *optional*, defaults to 0):
            Points of each low-resolution mask at which the mask losses are taken, most of them where it is uncertain
            (Sa2VA: 12544), and dice without LISA's scale. 0 takes every pixel at the size of the target.
        slot_state (`str`, *optional*, defaults to `"before"`):
            Where the state is read that becomes a prompt: `"before"` the slot, where it is predicted (LISA, GSVA), or
            `"at"` the slot, where it is the input (Sa2VA).
        slot_state_normalized (`bool`, *optional*, defaults to `True`):
            Whether that state has gone through the language model's last norm. `False` reads it before (Sa2VA on
            Qwen3-VL).
        prompt_padding_points (`int`, *optional*, defaults to 0):
            Points labelled "none" that the segmenter is given before each prompt, as SAM 2 pads prompts (Sa2VA: 2).
        multimask_output (`bool`, *optional*, defaults to `False`):
            Draw SAM's three candidates and keep the one with the highest estimate of its IoU (Sa2VA), instead of its
            single mask.
        empty_without_object (`bool`, *optional*, defaults to `False`):
            Whether a mask is empty (all logits -1024) where the segmenter, a SAM 2 or SAM 3, says by its own score
            that nothing is there (Sa2VA with SAM 3). Not while the model is trained.
        prompt_slots (`bool`, *optional*, defaults to `False`):
            Whether a generation draws slots of the prompt, too: see `generate_with_masks`. A given answer always has
            all of them.
    """

    model_type = "reasoning_segmentation"
    published_config = "configuration_reasoning_segmentation.ReasoningSegmentationConfig"
    published_model = "modeling_reasoning_segmentation.ComposedForReasoningSegmentation"
    sub_configs_defaults = {
        "vlm_config": LLAVA_15_DEFAULTS,
        "segmenter_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="sam",
            init_kwargs={"mask_decoder_config": {"layer_norm_eps": ORIGINAL_SAM_DECODER_EPS}},
        ),
    }

    seg_token_id: int | None = None
    rej_token_id: int | None = None
    ce_loss_weight: float = 1.0
    bce_loss_weight: float = 2.0
    dice_loss_weight: float = 0.5
    count_rejected_masks: bool = True
    mask_loss_points: int = 0
    slot_state: Literal["before", "at"] = "before"
    slot_state_normalized: bool = True
    prompt_padding_points: int = 0
    multimask_output: bool = False
    empty_without_object: bool = False
    prompt_slots: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.slot_state == "at" and self.rej_token_id is not None:
            raise ValueError(
                'slot_state="at" reads states that do not predict their slots, so that nothing can be rejected by '
                "them; leave rej_token_id out."
            )
        for name in ("prompt_padding_points", "mask_loss_points"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.seg_token_id is not None and self.seg_token_id == self.rej_token_id:
            raise ValueError(
                f"seg_token_id and rej_token_id are both {self.seg_token_id}; they must be two different tokens."
            )

    @property
    def slot_token_ids(self) -> list[int]:
        """Ids of the tokens that open a slot: `[SEG]` and, where the model has it, `[REJ]`."""
        return [token_id for token_id in (self.seg_token_id, self.rej_token_id) if token_id is not None]


__all__ = ["ComposedConfig", "ReasoningSegmentationConfig"]
