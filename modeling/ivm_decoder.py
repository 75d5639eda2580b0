"""SAM's image encoder with IVM's mask decoder: one learned mask token, one language token, no IoU head."""

import torch
from torch import nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPreTrainedModel
from transformers.models.sam.modeling_sam import (
    SamFeedForward,
    SamLayerNorm,
    SamPositionalEmbedding,
    SamTwoWayTransformer,
    SamVisionEncoder,
)


_HYPERNETWORK_LAYERS = 3


class ConditionedMaskDecoder(nn.Module):
    r"""
    Draws one mask from one language token (IVM, section 4.1; model/decoder.py).

    Unlike SAM's decoder it has no IoU token, adds no "no mask" embedding to the image, and answers with one mask.

    Args:
        config (`SamMaskDecoderConfig`): Sizes; `layer_norm_eps` is 1e-5 in the published weights.
    """

    def __init__(self, config: SamMaskDecoderConfig):
        super().__init__()
        width = config.hidden_size
        self.mask_tokens = nn.Embedding(1, width)
        self.transformer = SamTwoWayTransformer(config)
        self.upscale_conv1 = nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2)
        self.upscale_layer_norm = SamLayerNorm(width // 4, data_format="channels_first")
        self.upscale_conv2 = nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2)
        self.activation = nn.GELU()
        self.output_hypernetworks_mlps = SamFeedForward(width, width, width // 8, _HYPERNETWORK_LAYERS)

    def forward(
        self,
        image_embeddings: torch.FloatTensor,
        image_positional_embeddings: torch.FloatTensor,
        language_embeddings: torch.FloatTensor,
    ) -> torch.FloatTensor:
        """
        Args:
            image_embeddings (`torch.FloatTensor` of shape `(masks, channels, height, width)`): SAM's, one per mask.
            image_positional_embeddings (`torch.FloatTensor` of shape `(1, channels, height, width)`): Where each is.
            language_embeddings (`torch.FloatTensor` of shape `(masks, channels)`): What each mask is about.

        Returns:
            `torch.FloatTensor` of shape `(masks, 4 * height, 4 * width)`: Mask logits.
        """
        num_masks, channels, height, width = image_embeddings.shape
        mask_token = self.mask_tokens.weight.expand(num_masks, -1, -1)
        tokens = torch.cat([mask_token, language_embeddings[:, None].to(mask_token.dtype)], dim=1)
        tokens, pixels = self.transformer(
            point_embeddings=tokens[:, None],  # image, prompt of the image, token, channel
            image_embeddings=image_embeddings,
            image_positional_embeddings=image_positional_embeddings.expand(num_masks, -1, -1, -1),
            attention_similarity=None,
        )
        pixels = pixels[:, 0].transpose(1, 2).reshape(num_masks, channels, height, width)
        pixels = self.activation(self.upscale_layer_norm(self.upscale_conv1(pixels)))
        pixels = self.activation(self.upscale_conv2(pixels))
        filters = self.output_hypernetworks_mlps(tokens[:, 0, 0])
        return (filters[:, None] @ pixels.flatten(2)).reshape(num_masks, *pixels.shape[-2:])


class ConditionedSam(SamPreTrainedModel):
    r"""
    What IVM has of SAM: the image encoder, and a decoder of its own with its own positional matrix.

    Args:
        config (`SamConfig`): SAM's sizes.
    """

    def __init__(self, config: SamConfig):
        super().__init__(config)
        self.shared_image_embedding = SamPositionalEmbedding(config.vision_config)
        self.vision_encoder = SamVisionEncoder(config.vision_config)
        # The decoder is no model of its own, so nothing else tells it how to attend.
        config.mask_decoder_config._attn_implementation = config._attn_implementation
        self.mask_decoder = ConditionedMaskDecoder(config.mask_decoder_config)
        self.post_init()

    get_image_wide_positional_embeddings = SamModel.get_image_wide_positional_embeddings

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_encoder.get_input_embeddings()


__all__ = ["ConditionedMaskDecoder", "ConditionedSam"]
