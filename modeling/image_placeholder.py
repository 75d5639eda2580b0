"""
The token that stands for an image in `input_ids`. The original models have no such token: with its column out of the
way, losses and decisions are theirs.
"""

import torch
from transformers import SuppressTokensLogitsProcessor


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


__all__ = ["PlaceholderSuppressor", "ignore_placeholder", "without_placeholder"]
