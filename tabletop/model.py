"""The architecture of the embedded model: a GSVA of about three million parameters for tabletop scenes."""

import math

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from ..modeling.configuration_gsva import GsvaConfig
from ..modeling.modeling_gsva import GsvaForReasoningSegmentation


VLM_SIDE, VLM_PATCH = 128, 16
SEGMENTER_SIDE, SEGMENTER_PATCH = 128, 8
LOOK_ALIKE_LAYERS, LIKENESS = 2, 1.2


def tabletop_config(token_ids: dict[str, int]) -> GsvaConfig:
    """
    Args:
        token_ids (`dict[str, int]`): Ids of `[SEG]`, `[REJ]`, `<image>`, `<s>`, `</s>`, `<pad>` and, under
            `vocab_size`, the number of rows.
    """
    text = LlamaConfig(
        vocab_size=token_ids["vocab_size"],
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=512,
        # Slow rotations: what a word is counts over the 64 patches between it and the image's first.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=token_ids["<s>"],
        eos_token_id=token_ids["</s>"],
        pad_token_id=token_ids["<pad>"],
    )
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        image_size=VLM_SIDE,
        patch_size=VLM_PATCH,
    )
    vlm = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=token_ids["<image>"],
        image_seq_length=(VLM_SIDE // VLM_PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    channels = 96
    segmenter = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            output_channels=channels,
            image_size=SEGMENTER_SIDE,
            patch_size=SEGMENTER_PATCH,
            window_size=8,
            global_attn_indexes=[1, 3],
            num_pos_feats=channels // 2,
            mlp_dim=384,
            use_rel_pos=False,
            # SAM's default of 1e-10 is meant for loading weights; nothing learns from there.
            initializer_range=0.02,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=channels, image_size=SEGMENTER_SIDE, patch_size=SEGMENTER_PATCH, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=channels,
            mlp_dim=192,
            num_attention_heads=4,
            iou_head_hidden_dim=32,
            num_multimask_outputs=1,
            layer_norm_eps=1e-5,
        ),
    )
    return GsvaConfig(
        vlm_config=vlm,
        segmenter_config=segmenter,
        seg_token_id=token_ids["[SEG]"],
        rej_token_id=token_ids["[REJ]"],
        # Small things on a large table: overlap counts more than with the originals' 2.0 and 0.5.
        bce_loss_weight=4.0,
        dice_loss_weight=2.0,
        count_rejected_masks=False,
        tie_word_embeddings=True,
    )


def tabletop_model(
    config: GsvaConfig, seed: int, attn_implementation: str | None = None
) -> GsvaForReasoningSegmentation:
    """Random weights from which a composed model can be trained from scratch."""
    torch.manual_seed(seed)
    # At construction: SAM's vision layers cannot be switched afterwards.
    model = GsvaForReasoningSegmentation._from_config(config, attn_implementation=attn_implementation)
    # SAM draws its positional features with a spread made for 1024 pixels; at this size they would be noise.
    positions = model.segmenter.shared_image_embedding.positional_embedding
    with torch.no_grad():
        positions.normal_(0.0, 1.0)
        vision = model.segmenter.vision_encoder
        vision.pos_embed.normal_(0.0, 1 / math.sqrt(vision.config.hidden_size))
        for layer in model.vlm.base_model.language_model.layers[:LOOK_ALIKE_LAYERS]:
            look_for_likeness(layer.self_attn)
    return model


def look_for_likeness(attention: nn.Module) -> None:
    """
    Queries and keys begin as the same projection, so that tokens look at tokens like themselves: a word at the patches
    that the first stage has made resemble it. After "Mimetic Initialization of Self-Attention Layers" (Trockman and
    Kolter, 2023).
    """
    shared = LIKENESS * nn.init.orthogonal_(torch.empty_like(attention.q_proj.weight))
    attention.q_proj.weight += shared
    attention.k_proj.weight += shared


__all__ = ["SEGMENTER_PATCH", "SEGMENTER_SIDE", "VLM_PATCH", "VLM_SIDE", "tabletop_config", "tabletop_model"]
