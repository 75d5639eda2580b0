"""How one published tensor is computed from tensors of the sources, as data that a manifest can hold.

Rows are split and joined, the first column left out, low-rank adapters merged, deltas added, types cast, vocabulary
rows set and appended; what is new is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .drawing import Drawing
from .errors import ConversionError
from .rules import BASE, LORA_A, LORA_B, ROWS, WEIGHT


MERGE_LORA, ADD_DELTA, CAST = "merge_lora", "add_delta", "cast"
APPEND_ZERO_ROW, APPEND_FIRST_ROW = "append_zero_row", "append_first_row"
IDENTITY, ZEROS, ONES, DRAW = "identity", "zeros", "ones", "draw"
DRAW_ROWS, MEAN_ROWS = "draw_rows", "mean_rows"
JOIN_ROWS, SPLIT_ROWS, SKIP_FIRST = "join_rows", "split_rows", "skip_first"
_MOST_OPERATIONS = 64  # a few appended rows, and one of the others each
_MOST_ROWS = 1 << 24  # far above every vocabulary
_MOST_PARTS = 16  # queries, keys and values are three


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


def add_delta(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Add a delta to the weight it was taken from, as LLaVA's `apply_delta` does: rows that the delta has beyond the
    base's, of tokens that the base does not know, are the delta's own.

    Args:
        base (`torch.Tensor` of shape `(rows, ...)`): LLaMA's weight.
        delta (`torch.Tensor` of shape `(rows + further, ...)`): What was published.

    Returns:
        `torch.Tensor` of the delta's shape and type.
    """
    total = delta.clone()
    total[: base.shape[0]] += base.to(delta.dtype)
    return total


def set_rows(matrix: torch.Tensor, first: int, rows: torch.Tensor) -> torch.Tensor:
    """A matrix whose rows from `first` on are others; it grows where it has not as many.

    Args:
        matrix (`torch.Tensor` of shape `(known, hidden_size)`): An embedding.
        first (`int`): At most `known`.
        rows (`torch.Tensor` of shape `(count, hidden_size)`): The others.

    Returns:
        `torch.Tensor` of shape `(max(known, first + count), hidden_size)`.
    """
    return torch.cat([matrix[:first], rows.to(matrix.dtype), matrix[first + rows.shape[0] :]])


_APPEND = {APPEND_ZERO_ROW: append_embedding_row, APPEND_FIRST_ROW: append_head_row}
_FROM_NOTHING = (IDENTITY, ZEROS, ONES, DRAW)
_NEW_ROWS = (DRAW_ROWS, MEAN_ROWS)
_OPERATIONS = (SPLIT_ROWS, SKIP_FIRST, JOIN_ROWS, MERGE_LORA, ADD_DELTA, CAST, *_NEW_ROWS, *_APPEND, *_FROM_NOTHING)


@dataclass(frozen=True)
class TensorOperations:
    """What is done, in this order: take some of the rows or all but the first column, join others, merge the adapter
    or add the delta, cast, set rows of new tokens, append others.

    Args:
        names (`tuple[str, ...]`): Of the operations; none for a plain copy. `"identity"`, `"zeros"`, `"ones"` and
            `"draw"` make the tensor from nothing.
        alpha (`float`, *optional*): LoRA's alpha where an adapter is merged.
        drawing ([`Drawing`], *optional*): Where the tensor or rows of it are drawn.
        rows (`tuple[int, int]`, *optional*): Where rows of new tokens are set: the first one, and how many. They are
            drawn (`"draw_rows"`), or the mean of the source's rows before them (`"mean_rows"`).
        split (`tuple[int, int]`, *optional*): Where a source's rows become several tensors (`"split_rows"`): which
            part this is, from 0 on, and how many of the same size there are.
    """

    names: tuple[str, ...] = ()
    alpha: float | None = None
    drawing: Drawing | None = None
    rows: tuple[int, int] | None = None
    split: tuple[int, int] | None = None

    def compute(self, load: Callable[[str], torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Compute the tensor.

        Args:
            load (`Callable[[str], torch.Tensor]`): Reads a part: `"weight"`, `"lora_A"`, `"lora_B"`, `"base"`, or one
                of `ROWS`, of which as many are read as the shape asks for.
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
        if ONES in self.names:
            return torch.ones(shape, dtype=dtype)
        if DRAW in self.names:
            return self.drawing.draw(shape).to(dtype)
        value = load(WEIGHT)
        if SPLIT_ROWS in self.names:
            index, count = self.split
            value = value.tensor_split(count)[index]
        if SKIP_FIRST in self.names:
            if value.ndim < 2:
                raise ConversionError(f"A tensor of shape {tuple(value.shape)} has no first column to leave out.")
            value = value[:, 1:]
        if JOIN_ROWS in self.names:
            parts = iter(ROWS)
            while value.shape[0] < shape[0] and (part := next(parts, None)) is not None:
                value = torch.cat([value, load(part)])
        if MERGE_LORA in self.names:
            value = merge_lora(value, load(LORA_A), load(LORA_B), self.alpha)
        if ADD_DELTA in self.names:
            value = add_delta(load(BASE), value)
        value = value.to(dtype)
        if DRAW_ROWS in self.names:
            first, count = self.rows
            value = set_rows(value, first, self.drawing.draw((count, *value.shape[1:])))
        if MEAN_ROWS in self.names:
            first, count = self.rows
            mean = value[:first].mean(dim=0, dtype=torch.float32)
            value = set_rows(value, first, mean.expand(count, *mean.shape))
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
        fields = {
            "alpha": self.alpha,
            "drawing": None if self.drawing is None else self.drawing.to_json(),
            "rows": None if self.rows is None else list(self.rows),
            "split": None if self.split is None else list(self.split),
        }
        return {"operations": list(self.names), **{name: value for name, value in fields.items() if value is not None}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorOperations:
        """The inverse of `to_json`.

        Raises:
            ValueError: An operation is unknown, or lacks what it needs.
        """
        operations, alpha = data["operations"], data.get("alpha")
        if not isinstance(operations, list) or (unknown := [name for name in operations if name not in _OPERATIONS]):
            raise ValueError(f"unknown operations {unknown if isinstance(operations, list) else operations!r}")
        if len(operations) > _MOST_OPERATIONS:
            raise ValueError(f"{len(operations)} operations, of which at most {_MOST_OPERATIONS} are known")
        if (MERGE_LORA in operations) != isinstance(alpha, int | float):
            raise ValueError(f"alpha is {alpha!r} with the operations {operations}")
        drawing, rows, split = data.get("drawing"), data.get("rows"), data.get("split")
        if (DRAW in operations or DRAW_ROWS in operations) != (drawing is not None):
            raise ValueError(f"drawing is {drawing!r} with the operations {operations}")
        if any(name in operations for name in _NEW_ROWS) != _is_range(rows):
            raise ValueError(f"rows are {rows!r} with the operations {operations}")
        is_part = _is_range(split) and split[0] < split[1] <= _MOST_PARTS
        if (SPLIT_ROWS in operations) != is_part:
            raise ValueError(f"split is {split!r} with the operations {operations}")
        return cls(
            tuple(operations),
            alpha,
            None if drawing is None else Drawing.from_json(drawing),
            None if rows is None else tuple(rows),
            None if split is None else tuple(split),
        )


def _is_range(rows: Any) -> bool:
    if not isinstance(rows, list) or len(rows) != 2:
        return False
    return all(type(number) is int and 0 <= number < _MOST_ROWS for number in rows)
