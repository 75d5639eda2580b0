"""How one published tensor is computed from tensors of the sources, as data that a manifest can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .errors import ConversionError
from .lora import merge_lora
from .rules import LORA_A, LORA_B, WEIGHT
from .vocabulary import append_embedding_row, append_head_row


MERGE_LORA, CAST = "merge_lora", "cast"
APPEND_ZERO_ROW, APPEND_FIRST_ROW = "append_zero_row", "append_first_row"
IDENTITY, ZEROS = "identity", "zeros"
_APPEND = {APPEND_ZERO_ROW: append_embedding_row, APPEND_FIRST_ROW: append_head_row}
_MOST_OPERATIONS = 64  # a few appended rows, and one of the others each
_OPERATIONS = (MERGE_LORA, CAST, *_APPEND, IDENTITY, ZEROS)


@dataclass(frozen=True)
class Recipe:
    """What is done, in this order: merge the adapter, cast, append a vocabulary row.

    Args:
        operations (`tuple[str, ...]`): Names of the operations; none for a plain copy. `"identity"` and `"zeros"` make
            the tensor from nothing.
        alpha (`float`, *optional*): LoRA's alpha where an adapter is merged.
    """

    operations: tuple[str, ...] = ()
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
        if IDENTITY in self.operations:
            if len(shape) != 2 or shape[0] != shape[1]:
                raise ConversionError(f"An identity was planned with shape {shape}.")
            return torch.eye(shape[0], dtype=dtype)
        if ZEROS in self.operations:
            return torch.zeros(shape, dtype=dtype)
        value = load(WEIGHT)
        if MERGE_LORA in self.operations:
            value = merge_lora(value, load(LORA_A), load(LORA_B), self.alpha)
        value = value.to(dtype)
        for operation in self.operations:
            if operation in _APPEND:
                value = _APPEND[operation](value)
        if tuple(value.shape) != shape:
            raise ConversionError(f"A tensor was planned with shape {shape} and has {tuple(value.shape)}.")
        return value.contiguous()

    @property
    def appended_rows(self) -> int:
        """How many vocabulary rows the result has beyond its source."""
        return sum(operation in _APPEND for operation in self.operations)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        alpha = {} if self.alpha is None else {"alpha": self.alpha}
        return {"operations": list(self.operations), **alpha}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_json`.

        Raises:
            ValueError: An operation is unknown, or alpha is no number.
        """
        operations, alpha = data["operations"], data.get("alpha")
        if not isinstance(operations, list) or (unknown := [name for name in operations if name not in _OPERATIONS]):
            raise ValueError(f"unknown operations {unknown if isinstance(operations, list) else operations!r}")
        if len(operations) > _MOST_OPERATIONS:
            raise ValueError(f"{len(operations)} operations, of which at most {_MOST_OPERATIONS} are known")
        if (MERGE_LORA in operations) != isinstance(alpha, int | float):
            raise ValueError(f"alpha is {alpha!r} with the operations {operations}")
        return cls(tuple(operations), alpha)
