"""The vocabulary row of the image placeholder.

The originals mark the image's place with the id -200, which is never embedded. A stock LLaVA embeds its placeholder
before it scatters the image features over it, so it needs a row of its own.
"""

from __future__ import annotations

import torch


def append_embedding_row(embedding: torch.Tensor) -> torch.Tensor:
    """Append a row of zeros; image features always take its place.

    Args:
        embedding (`torch.Tensor` of shape `(rows, hidden_size)`): The original input embedding.

    Returns:
        `torch.Tensor` of shape `(rows + 1, hidden_size)`.
    """
    return torch.cat([embedding, torch.zeros_like(embedding[:1])])


def append_head_row(head: torch.Tensor) -> torch.Tensor:
    """Append a copy of row 0 (`<unk>`), so that even an unmasked argmax, which takes the lower id, never names it.

    Args:
        head (`torch.Tensor` of shape `(rows, hidden_size)`): The original output embedding.

    Returns:
        `torch.Tensor` of shape `(rows + 1, hidden_size)`.
    """
    return torch.cat([head, head[:1]])
