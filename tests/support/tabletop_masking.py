"""A small IVM for drawn tabletops, to be trained from scratch within seconds to minutes."""

import copy
import math

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from reasonseg.modeling.configuration_ivm import IvmConfig
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.modeling.modeling_ivm import IvmForVisualMasking
from reasonseg.processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from reasonseg.processing.processing_ivm import IvmProcessor
from reasonseg.tabletop.processor import BOS, EOS, IMAGE, PAD, build_tokenizer


SIDE, PATCH, SEGMENTER_PATCH = 32, 8, 4


def masking_processor(side: int = SIDE, patch: int = PATCH) -> IvmProcessor:
    """
    Args:
        side (`int`): Side of both square views in pixels.
        patch (`int`): Side of a patch of the vision-language model's view in pixels.
    """
    image_processor = ReasoningSegmentationImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        segmenter_size={"height": side, "width": side},
        squash_first=True,
    )
    return IvmProcessor(image_processor, build_tokenizer(), patch_size=patch)


def masking_model(
    processor: IvmProcessor,
    seed: int,
    side: int = SIDE,
    patch: int = PATCH,
    segmenter_patch: int = SEGMENTER_PATCH,
    width: int = 32,
    layers: int = 1,
) -> IvmForVisualMasking:
    """
    Random weights from which the model can be trained.

    Args:
        processor ([`IvmProcessor`]): Knows the vocabulary.
        seed (`int`): Of the weights.
        side, patch (`int`): As for `masking_processor`.
        segmenter_patch (`int`): Side of a patch of the segmenter's view; masks have four pixels along it.
        width, layers (`int`): Of each of the three transformers.
    """
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in (BOS, EOS, PAD, IMAGE)}
    common = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        # The usual 0.02 is meant for wide layers (and SAM's 1e-10 for loading weights); narrow ones hardly start.
        "initializer_range": width**-0.5,
    }
    config = IvmConfig(
        vlm_config=LlavaConfig(
            text_config=LlamaConfig(
                vocab_size=len(processor.tokenizer),
                intermediate_size=2 * width,
                num_key_value_heads=4,
                max_position_embeddings=256,
                bos_token_id=ids[BOS],
                eos_token_id=ids[EOS],
                pad_token_id=ids[PAD],
                **common,
            ),
            vision_config=CLIPVisionConfig(intermediate_size=2 * width, image_size=side, patch_size=patch, **common),
            image_token_index=ids[IMAGE],
            image_seq_length=(side // patch) ** 2,
            vision_feature_layer=-1,
        ),
        segmenter_config=SamConfig(
            vision_config=SamVisionConfig(
                output_channels=width,
                image_size=side,
                patch_size=segmenter_patch,
                window_size=side // segmenter_patch,
                global_attn_indexes=[layers - 1],
                num_pos_feats=width // 2,
                mlp_dim=2 * width,
                use_rel_pos=False,
                **common,
            ),
            prompt_encoder_config=SamPromptEncoderConfig(
                hidden_size=width, image_size=side, patch_size=segmenter_patch
            ),
            mask_decoder_config=SamMaskDecoderConfig(
                hidden_size=width,
                mlp_dim=2 * width,
                num_attention_heads=4,
                num_multimask_outputs=0,
                layer_norm_eps=1e-5,
            ),
            initializer_range=width**-0.5,
        ),
        projector_hidden_size=width,
        initializer_range=width**-0.5,
    )
    torch.manual_seed(seed)
    model = IvmForVisualMasking(config)
    with torch.no_grad():
        # SAM draws its positional features with a spread made for 1024 pixels; at this size they would be noise.
        model.segmenter.shared_image_embedding.positional_embedding.normal_(0.0, 1.0)
        vision = model.segmenter.vision_encoder
        vision.pos_embed.normal_(0.0, 1 / math.sqrt(width))
    return model


def masking_model_from(base: GsvaForReasoningSegmentation, seed: int) -> IvmForVisualMasking:
    """
    An IVM with the vision-language model and SAM's image encoder of another model; its decoder is new.

    Args:
        base ([`GsvaForReasoningSegmentation`]): Of LLaVA and SAM, like the embedded model.
        seed (`int`): Of the new weights.
    """
    segmenter = copy.deepcopy(base.config.segmenter_config)
    segmenter.mask_decoder_config.num_multimask_outputs = 0
    width = base.config.get_text_config().hidden_size
    segmenter.initializer_range = segmenter.mask_decoder_config.hidden_size**-0.5
    config = IvmConfig(
        vlm_config=copy.deepcopy(base.config.vlm_config),
        segmenter_config=segmenter,
        projector_hidden_size=width,
        initializer_range=width**-0.5,
    )
    torch.manual_seed(seed)
    model = IvmForVisualMasking._from_config(config, attn_implementation=base.config._attn_implementation)
    model.vlm.load_state_dict(base.vlm.state_dict())
    for part in ("vision_encoder", "shared_image_embedding"):
        getattr(model.segmenter, part).load_state_dict(getattr(base.segmenter, part).state_dict())
    return model


__all__ = ["PATCH", "SEGMENTER_PATCH", "SIDE", "masking_model", "masking_model_from", "masking_processor"]
