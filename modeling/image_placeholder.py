"""
The token that stands for an image in `input_ids`. The original models have no such token: with its column out of the
way, losses and decisions are theirs.
"""

import torch
from transformers import PreTrainedModel, SuppressTokensLogitsProcessor
from transformers.utils import ModelOutput


IGNORED_LABEL = -100


class PlaceholderSuppressor(SuppressTokensLogitsProcessor):
    """A type of its own, so that it works beside the `suppress_tokens` of a generation config instead of for it."""


def without_placeholder(logits: torch.FloatTensor, image_token_id: int | None) -> torch.FloatTensor:
    """
    Args:
        logits (`torch.FloatTensor` of shape `(..., vocab_size)`): What a language head says.
        image_token_id (`int`, *optional*): The placeholder, which is never an answer.

    Returns:
        `torch.FloatTensor`: The same with the lowest finite value in the placeholder's column, if there is one.
    """
    if image_token_id is None or image_token_id >= logits.shape[-1]:
        return logits
    column = torch.arange(logits.shape[-1], device=logits.device) == image_token_id
    return logits.masked_fill(column, torch.finfo(logits.dtype).min)


def ignore_placeholder(labels: torch.LongTensor, image_token_id: int | None) -> torch.LongTensor:
    """Labels with -100 where the placeholder stands: image positions are never predicted, whatever the labels say."""
    return labels if image_token_id is None else labels.masked_fill(labels == image_token_id, IGNORED_LABEL)


def judge_without_placeholder(
    model: PreTrainedModel, output: ModelOutput, labels: torch.LongTensor | None, **kwargs
) -> None:
    """
    Takes the placeholder out of an output's logits, and computes its loss with what is left.

    Args:
        model (`PreTrainedModel`): Whose `loss_function` and placeholder count.
        output (`ModelOutput`): Of a forward pass without labels; its `logits` and `loss` are set.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Ids to predict, or -100.
        kwargs: For the loss function, `num_items_in_batch` for one.
    """
    image_token_id = model.config.image_token_id
    output.logits = without_placeholder(output.logits, image_token_id)
    if labels is not None:
        output.loss = model.loss_function(
            logits=output.logits,
            labels=ignore_placeholder(labels, image_token_id),
            vocab_size=output.logits.shape[-1],
            **kwargs,
        )


__all__ = ["PlaceholderSuppressor", "ignore_placeholder", "judge_without_placeholder", "without_placeholder"]
