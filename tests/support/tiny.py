"""Tiny random models of the families that are composed, small enough to build and run in a fraction of a second."""

import torch
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LogitsProcessor,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    Sam3TrackerConfig,
    SamConfig,
    SamHQConfig,
    SamHQMaskDecoderConfig,
    SamHQPromptEncoderConfig,
    SamHQVisionConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SmolVLMConfig,
)

from reasonseg.modeling.configuration_difflmm import DiffLmmConfig
from reasonseg.modeling.configuration_gsva import GsvaConfig
from reasonseg.modeling.configuration_ivm import IvmConfig
from reasonseg.modeling.configuration_sa2va import Sa2VaConfig
from reasonseg.modeling.modeling_difflmm import DiffLmmForConditionalGeneration
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.modeling.modeling_ivm import IvmForVisualMasking
from reasonseg.modeling.modeling_sa2va import Sa2VaForReasoningSegmentation


VOCAB_SIZE = 64
SEG, REJ, IMAGE = 60, 61, 63
BOS, EOS, PAD = 1, 2, 0
TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
CLIP = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
QWEN_TOKENS = {"video_token_id": 62, "vision_start_token_id": 58, "vision_end_token_id": 59}
SAM_SIDE = 64


def llava_config(**text) -> LlavaConfig:
    return LlavaConfig(
        text_config=LlamaConfig(**{**TEXT, **text}),
        vision_config=CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE,
        image_seq_length=4,
        projector_hidden_act="linear",
    )


def llava_next_config() -> LlavaNextConfig:
    return LlavaNextConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE,
        image_seq_length=4,
        image_grid_pinpoints=[[28, 56], [56, 28]],
    )


def qwen2_5_vl_config() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        },
        vision_config={**QWEN_VISION, "window_size": 56, "fullatt_block_indexes": [1]},
        image_token_id=IMAGE,
        **QWEN_TOKENS,
    )


def qwen3_vl_config() -> Qwen3VLConfig:
    return Qwen3VLConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        vision_config={**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        image_token_id=IMAGE,
        **QWEN_TOKENS,
    )


def internvl_config() -> InternVLConfig:
    return InternVLConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=4,
    )


def smolvlm_config() -> SmolVLMConfig:
    return SmolVLMConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
        text_config={"model_type": "llama", **TEXT},
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )


def sam_parts(vision_class, prompt_class, decoder_class) -> dict[str, PreTrainedConfig]:
    return {
        "vision_config": vision_class(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            output_channels=16,
            image_size=SAM_SIDE,
            patch_size=16,
            window_size=2,
            global_attn_indexes=[1],
            num_pos_feats=8,
            mlp_dim=32,
            initializer_range=0.02,
        ),
        "prompt_encoder_config": prompt_class(
            hidden_size=16, image_size=SAM_SIDE, patch_size=16, mask_input_channels=4
        ),
        "mask_decoder_config": decoder_class(
            hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, layer_norm_eps=1e-5
        ),
    }


def sam_config() -> SamConfig:
    return SamConfig(**sam_parts(SamVisionConfig, SamPromptEncoderConfig, SamMaskDecoderConfig))


def sam_hq_config() -> SamHQConfig:
    parts = sam_parts(SamHQVisionConfig, SamHQPromptEncoderConfig, SamHQMaskDecoderConfig)
    parts["mask_decoder_config"].vit_dim = 24
    return SamHQConfig(**parts)


def sam3_tracker_config() -> Sam3TrackerConfig:
    """With the pyramid of four levels that is SAM 3's own."""
    config = Sam3TrackerConfig()
    vision, backbone = config.vision_config, config.vision_config.backbone_config
    backbone.hidden_size, backbone.intermediate_size = 24, 32
    backbone.num_hidden_layers, backbone.num_attention_heads = 2, 2
    backbone.image_size, backbone.pretrain_image_size, backbone.patch_size = SAM_SIDE, SAM_SIDE // 2, 16
    backbone.window_size, backbone.global_attn_indexes = 2, [1]
    vision.fpn_hidden_size, vision.backbone_feature_sizes = 16, [[16, 16], [8, 8], [4, 4]]
    prompts, decoder = config.prompt_encoder_config, config.mask_decoder_config
    prompts.hidden_size, prompts.image_size, prompts.patch_size, prompts.mask_input_channels = 16, SAM_SIDE, 16, 4
    decoder.hidden_size, decoder.mlp_dim, decoder.num_attention_heads, decoder.iou_head_hidden_dim = 16, 32, 2, 16
    return config


def sam2_config() -> Sam2Config:
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[SAM_SIDE, SAM_SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 4],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[3],
    )
    return Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=16,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(
            hidden_size=16, image_size=SAM_SIDE, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )


def gsva_config(vlm_config=None, segmenter_config=None, **fields) -> GsvaConfig:
    return GsvaConfig(
        **{
            "vlm_config": vlm_config or llava_config(),
            "segmenter_config": segmenter_config or sam_config(),
            "seg_token_id": SEG,
            "rej_token_id": REJ,
            **fields,
        }
    )


def sa2va_model(vlm_config=None, seed: int = 0, **fields) -> Sa2VaForReasoningSegmentation:
    config = Sa2VaConfig(
        **{
            "vlm_config": vlm_config or qwen3_vl_config(),
            "segmenter_config": sam2_config(),
            "seg_token_id": SEG,
            "mask_loss_points": 128,
            **fields,
        }
    )
    return randomize(Sa2VaForReasoningSegmentation(config), seed=seed)


def difflmm_config(**fields) -> DiffLmmConfig:
    """16 pixels -> 8 x 8 latents -> 2 x 2 at the bottom of the UNet -> 4 x 4 after its first up block; CLIP 4 x 4."""
    unet = {
        "sample_size": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [8, 16, 16],
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    defaults = {
        "text_config": LlamaConfig(**TEXT),
        "vision_config": CLIPVisionConfig(**CLIP | {"image_size": 8, "patch_size": 2}),
        "unet_config": unet,
        "vae_config": vae,
        "image_size": 16,
        "diffusion_block": 0,
        "image_token_index": IMAGE,
    }
    return DiffLmmConfig(**defaults | fields)


def difflmm_model(seed: int = 0, **fields) -> DiffLmmForConditionalGeneration:
    return randomize(DiffLmmForConditionalGeneration(difflmm_config(**fields)), seed=seed)


def randomize(model: torch.nn.Module, std: float = 0.15, seed: int = 0) -> torch.nn.Module:
    """Weights large enough that tokens, images and slots visibly change the result (SAM starts at 1e-10)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "bias" in name:
            parameter.data.normal_(0.0, std, generator=generator)
    return model.eval()


def gsva_model(vlm_config=None, segmenter_config=None, seed: int = 0, **fields) -> GsvaForReasoningSegmentation:
    return randomize(GsvaForReasoningSegmentation(gsva_config(vlm_config, segmenter_config, **fields)), seed=seed)


def ivm_config(vlm_config=None, **fields) -> IvmConfig:
    segmenter = sam_config()
    segmenter.mask_decoder_config.num_multimask_outputs = 0
    return IvmConfig(
        **{
            "vlm_config": vlm_config or llava_config(),
            "segmenter_config": segmenter,
            "projector_hidden_size": 24,
            **fields,
        }
    )


def ivm_model(vlm_config=None, seed: int = 0, **fields) -> IvmForVisualMasking:
    return randomize(IvmForVisualMasking(ivm_config(vlm_config, **fields)), seed=seed)


def favour_slots(model, seg: float = 2.0, rej: float = 3.0) -> None:
    """Makes free generation emit `[SEG]` and `[REJ]` now and then: their output rows point along frequent states."""
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[SEG] *= 1 + seg
        head.weight[REJ] *= 1 + rej


def images(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Both views of `count` random images of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([[40, 50], [64, 64], [30, 20]])[torch.arange(count) % 3]
    resized = torch.tensor([[51, 64], [64, 64], [64, 43]])[torch.arange(count) % 3]
    return {
        "pixel_values": torch.randn(count, 3, 28, 28, generator=generator),
        "sam_pixel_values": torch.randn(count, 3, SAM_SIDE, SAM_SIDE, generator=generator),
        "original_sizes": sizes,
        "reshaped_input_sizes": resized,
    }


def prompts(lengths: list[int], seed: int = 0, image_tokens: int = 4) -> dict[str, torch.Tensor]:
    """Left-padded random prompts with one image each; `lengths` counts the text tokens."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) + image_tokens
    ids = torch.full((len(lengths), width), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        text = torch.randint(3, 58, (length,), generator=generator)
        text[0] = BOS
        prompt = torch.cat([text[:2], torch.full((image_tokens,), IMAGE), text[2:]])
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def with_answers(batch: dict[str, torch.Tensor], answers: list[list[int]]) -> dict[str, torch.Tensor]:
    """Appends one answer per row, right-padded."""
    width = max(map(len, answers))
    ids = torch.tensor([answer + [PAD] * (width - len(answer)) for answer in answers])
    return {
        "input_ids": torch.cat([batch["input_ids"], ids], dim=1),
        "attention_mask": torch.cat([batch["attention_mask"], (ids != PAD).long()], dim=1),
    }


class Dictation(LogitsProcessor):
    """Has a model write these ids, one answer per row, and end each."""

    def __init__(self, answers: list[list[int]], eos_token_id: int):
        self.answers, self.eos_token_id, self.start = answers, eos_token_id, None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.start = input_ids.shape[1] if self.start is None else self.start
        step, dictated = input_ids.shape[1] - self.start, torch.full_like(scores, float("-inf"))
        for row, answer in enumerate(self.answers):
            dictated[row, answer[step] if step < len(answer) else self.eos_token_id] = 0.0
        return dictated
