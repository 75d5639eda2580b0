"""ViP-LLaVA: transformers' model, with the original's loss (arXiv 2312.00784)."""

from functools import wraps

import torch
from transformers import VipLlavaConfig
from transformers import VipLlavaForConditionalGeneration as TransformersVipLlava
from transformers.utils import ModelOutput

from .outputs import judge_without_placeholder, output_or_tuple


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

    # Whatever looks up what `forward` takes, as `generate` and the Trainer do, finds transformers' own arguments.
    @wraps(TransformersVipLlava.forward, assigned=())
    def forward(
        self, *args, labels: torch.LongTensor | None = None, return_dict: bool | None = None, **kwargs
    ) -> ModelOutput | tuple:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Ids in which every image has `image_seq_length` placeholders.
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`, *optional*):
                Images as [`VipLlavaProcessor`] makes them.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Ids to predict, -100 where nothing is to be learned; placeholders are never learned.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are set.
            args, kwargs: As all other arguments, see transformers' class.

        Returns:
            Transformers' output of this model.
        """
        output = super().forward(*args, **kwargs, return_dict=True)
        judge_without_placeholder(self, output, labels, **kwargs)
        return output_or_tuple(output, return_dict, self.config)


__all__ = ["VipLlavaForConditionalGeneration"]
