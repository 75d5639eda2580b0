"""ViP-LLaVA: transformers' model, with the original's loss (arXiv 2312.00784)."""

import torch
from transformers import Cache, VipLlavaConfig
from transformers import VipLlavaForConditionalGeneration as TransformersVipLlava
from transformers.models.vipllava.modeling_vipllava import VipLlavaCausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .image_placeholder import judge_without_placeholder


class VipLlavaForConditionalGeneration(TransformersVipLlava):
    r"""
    Transformers' class of this name, which loads the same weights, with one difference: the logits of the image
    placeholder are the lowest finite value, so that no probability and no share of the loss is left to a token that
    the original does not have.

    Args:
        config ([`VipLlavaConfig`]): Transformers' own.
    """

    config: VipLlavaConfig
    config_class = VipLlavaConfig

    @classmethod
    def is_custom_code(cls) -> bool:
        """The parameters are transformers' own, and so are their older names, which other code would not be given."""
        return False

    # Written out, because `generate` and the Trainer look up here what they may pass.
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> VipLlavaCausalLMOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Ids in which every image has `image_seq_length` placeholders.
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`, *optional*):
                Pictures as [`VipLlavaProcessor`] makes them.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Ids to predict, -100 where nothing is to be learned; placeholders are never learned.
            kwargs: As all other arguments, see transformers' class.

        Returns:
            [`VipLlavaCausalLMOutputWithPast`]
        """
        output = super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            vision_feature_layer=vision_feature_layer,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
            return_dict=True,
        )
        judge_without_placeholder(self, output, labels, **kwargs)
        return output


__all__ = ["VipLlavaForConditionalGeneration"]
