"""Merging unmerged low-rank adapters into the weights they adapt."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .errors import ConversionError


def lora_rank(weight: tuple[int, ...], lora_a: tuple[int, ...], lora_b: tuple[int, ...], name: str) -> int:
    """Read an adapter's rank off its shapes and check that it fits its weight.

    Args:
        weight (`tuple[int, ...]`): `(out_features, in_features)`.
        lora_a (`tuple[int, ...]`): `(rank, in_features)`.
        lora_b (`tuple[int, ...]`): `(out_features, rank)`.
        name (`str`): The weight's name, for the message.

    Returns:
        `int`: The rank.

    Raises:
        ConversionError: The three shapes do not belong together.
    """
    if len(weight) != 2 or lora_a != (lora_a[0], weight[1]) or lora_b != (weight[0], lora_a[0]):
        raise ConversionError(
            f"The adapter of {name!r} does not fit: weight {weight}, lora_A {lora_a}, lora_B {lora_b}; expected "
            "(out, in), (rank, in), (out, rank).",
            next_step="Pass weights and adapters from the same checkpoint.",
        )
    return lora_a[0]


def common_rank(ranks: Iterable[int]) -> int:
    """The one rank all adapters of a checkpoint share.

    Raises:
        ConversionError: The adapters have different ranks, so that one alpha cannot scale them all.
    """
    found = sorted(set(ranks))
    if len(found) != 1:
        raise ConversionError(
            f"The adapters have different ranks ({', '.join(map(str, found))}); the originals train one rank.",
            next_step="Pass weights and adapters from the same checkpoint.",
        )
    return found[0]


def no_adapters(rank: int) -> float:
    """In place of alpha where a conversion merges none: a made-up alpha would give wrong weights.

    Raises:
        ConversionError: Always; it is asked for only where there are adapters.
    """
    raise ConversionError(
        f"The checkpoint holds unmerged adapters of rank {rank}.",
        next_step="Merge them first with merge_lora_weights.py of the original.",
    )


def merge_lora(weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, alpha: float) -> torch.FloatTensor:
    """Add an adapter to its weight: `W + alpha / r * B @ A`, in float32 so that only the final cast rounds.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): The frozen weight.
        lora_a (`torch.Tensor` of shape `(rank, in_features)`): The down projection.
        lora_b (`torch.Tensor` of shape `(out_features, rank)`): The up projection.
        alpha (`float`): LoRA's alpha; it is stored in no checkpoint.

    Returns:
        `torch.FloatTensor` of shape `(out_features, in_features)`.
    """
    update = lora_b.float() @ lora_a.float()
    return weight.float() + (alpha / lora_a.shape[0]) * update
