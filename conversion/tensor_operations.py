"""How one published tensor is computed from tensors of the sources, as data that a manifest can hold.

Low-rank adapters are merged, types cast, vocabulary rows appended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .errors import ConversionError
from .rules import LORA_A, LORA_B, WEIGHT


MERGE_LORA, CAST = "merge_lora", "cast"
APPEND_ZERO_ROW, APPEND_FIRST_ROW = "append_zero_row", "append_first_row"
IDENTITY, ZEROS = "identity", "zeros"
_MOST_OPERATIONS = 64  # a few appended rows, and one of the others each


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
    """Stands for alpha where a conversion merges no adapters: a made-up alpha would give wrong weights.

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


# The originals mark the image's position with the id -200, which is never embedded. A stock LLaVA embeds its
# placeholder before it scatters the image features over it, so it needs a row of its own.
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


_APPEND = {APPEND_ZERO_ROW: append_embedding_row, APPEND_FIRST_ROW: append_head_row}
_OPERATIONS = (MERGE_LORA, CAST, *_APPEND, IDENTITY, ZEROS)


@dataclass(frozen=True)
class TensorOperations:
    """What is done, in this order: merge the adapter, cast, append a vocabulary row.

    Args:
        names (`tuple[str, ...]`): Of the operations; none for a plain copy. `"identity"` and `"zeros"` make
            the tensor from nothing.
        alpha (`float`, *optional*): LoRA's alpha where an adapter is merged.
    """

    names: tuple[str, ...] = ()
    alpha: float | None = None

    def compute(self, load: Callable[[str], torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Compute the tensor.

        Args:
            load (`Callable[[str], torch.Tensor]`): Reads a part: `"weight"`, `"lora_A"` or `"lora_B"`.
            shape (`tuple[int, ...]`): What the result must have.
            dtype (`torch.dtype`): Its type.

        Raises:
            ConversionError: The result has another shape.
        """
        if IDENTITY in self.names:
            if len(shape) != 2 or shape[0] != shape[1]:
                raise ConversionError(f"An identity was planned with shape {shape}.")
            return torch.eye(shape[0], dtype=dtype)
        if ZEROS in self.names:
            return torch.zeros(shape, dtype=dtype)
        value = load(WEIGHT)
        if MERGE_LORA in self.names:
            value = merge_lora(value, load(LORA_A), load(LORA_B), self.alpha)
        value = value.to(dtype)
        for operation in self.names:
            if operation in _APPEND:
                value = _APPEND[operation](value)
        if tuple(value.shape) != shape:
            raise ConversionError(f"A tensor was planned with shape {shape} and has {tuple(value.shape)}.")
        return value.contiguous()

    @property
    def appended_rows(self) -> int:
        """How many vocabulary rows the result has beyond its source."""
        return sum(operation in _APPEND for operation in self.names)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        alpha = {} if self.alpha is None else {"alpha": self.alpha}
        return {"operations": list(self.names), **alpha}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorOperations:
        """The inverse of `to_json`.

        Raises:
            ValueError: An operation is unknown, or alpha is not a number.
        """
        operations, alpha = data["operations"], data.get("alpha")
        if not isinstance(operations, list) or (unknown := [name for name in operations if name not in _OPERATIONS]):
            raise ValueError(f"unknown operations {unknown if isinstance(operations, list) else operations!r}")
        if len(operations) > _MOST_OPERATIONS:
            raise ValueError(f"{len(operations)} operations, of which at most {_MOST_OPERATIONS} are known")
        if (MERGE_LORA in operations) != isinstance(alpha, int | float):
            raise ValueError(f"alpha is {alpha!r} with the operations {operations}")
        return cls(tuple(operations), alpha)
