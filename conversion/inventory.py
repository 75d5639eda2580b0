"""Which source provides which part of which parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .errors import ConversionError
from .rules import LORA_A, LORA_B, ROWS, WEIGHT, RuleTable
from .sources import TensorInfo, TensorSource


@dataclass(frozen=True)
class Piece:
    """One tensor of one source.

    Args:
        source (`TensorSource`): Where it is read from.
        key (`str`): Its name there.
        origin (`str`): The source's role, such as `"checkpoint"` or `"vision tower"`.
        split (`tuple[int, int]`, *optional*): Which of how many equal parts of its rows is meant; all of them by
            default.
        skip_first (`bool`): Whether the first entry of its second dimension is left out.
    """

    source: TensorSource
    key: str
    origin: str
    split: tuple[int, int] | None = None
    skip_first: bool = False

    @property
    def info(self) -> TensorInfo:
        """Shape and type of what is meant."""
        info = self.source.info(self.key)
        if self.split is not None:
            return TensorInfo((info.shape[0] // self.split[1], *info.shape[1:]), info.dtype)
        if self.skip_first:
            return TensorInfo((info.shape[0], info.shape[1] - 1, *info.shape[2:]), info.dtype)
        return info

    def load(self) -> torch.Tensor:
        """All of it."""
        return self.source.load(self.key)


@dataclass(frozen=True)
class Dropped:
    """A tensor that is not converted, and why."""

    origin: str
    key: str
    reason: str


class Inventory:
    """The parameters found so far. Sources are added from the most to the least trusted one.

    Attributes:
        pieces (`dict[str, dict[str, Piece]]`): Parameter name -> part (`"weight"`, `"lora_A"`, `"lora_B"`) -> tensor.
        dropped (`list[Dropped]`): Everything the sources hold beyond that.
    """

    def __init__(self):
        self.pieces: dict[str, dict[str, Piece]] = {}
        self.dropped: list[Dropped] = []
        self._sources: list[TensorSource] = []

    def add(
        self, source: TensorSource, table: RuleTable, origin: str, accept: Callable[[str], bool] | None = None
    ) -> None:
        """Add what a source holds and no source before it did.

        Args:
            source (`TensorSource`): The weights.
            table (`RuleTable`): How to rename them.
            origin (`str`): The source's role.
            accept (`Callable[[str], bool]`, *optional*): Which parameters may be taken from this source; all of them
                by default.

        Raises:
            ConversionError: The source holds tensors that the table does not know, or whole numbers for weights.
        """
        try:
            keys = table.apply(source.names())
        except ConversionError as error:
            raise error.at(source.path) from None
        if keys.unmatched:
            shown = ", ".join(map(repr, keys.unmatched[:3]))
            raise ConversionError(
                f"{len(keys.unmatched)} tensors do not belong to the {table.name} layout, the first are {shown}.",
                path=source.path,
                next_step=f"Pass a file in the original {table.name} layout.",
            )
        self._sources.append(source)
        self.dropped += [Dropped(origin, key, reason) for key, reason in keys.dropped.items()]
        for target, parts in keys.targets.items():
            accepted = accept is None or accept(target)
            for part, key in parts.items():
                held = self.pieces.setdefault(target, {}) if accepted else {}
                if accepted and part not in held:
                    held[part] = _weights(Piece(source, key, origin))
                    continue
                reason = f"taken from the {held[part].origin}" if accepted else f"not taken from the {origin}"
                self.dropped.append(Dropped(origin, key, reason))

    def leave_out(self, unwanted: Callable[[str], bool], reason: str) -> None:
        """Take parameters out again that the model has no use for.

        Args:
            unwanted (`Callable[[str], bool]`): Which ones, by name.
            reason (`str`): Why.
        """
        for target in [target for target in self.pieces if unwanted(target)]:
            self.dropped += [Dropped(piece.origin, piece.key, reason) for piece in self.pieces.pop(target).values()]

    def share(self, name: str, other: str) -> None:
        """Fill a parameter with the same tensor as another, where the model has two for one of the source.

        Args:
            name (`str`): The parameter that was found.
            other (`str`): The one that is to be the same.
        """
        if name in self.pieces:
            self.pieces[other] = self.pieces[name]

    def split(self, name: str, others: Sequence[str]) -> None:
        """Fill several parameters with equal parts of the rows of a tensor, where the source has one for all of them.

        Args:
            name (`str`): The parameter that was found, which gets the first part.
            others (`Sequence[str]`): Those that get the further ones, in order.

        Raises:
            ConversionError: The rows are not as many times as many as there are parameters.
        """
        whole, names = self.pieces[name][WEIGHT], (name, *others)
        rows = whole.info.shape[0]
        if rows % len(names):
            raise ConversionError(
                f"{whole.key!r} of the {whole.origin} has {rows} rows, which are not {len(names)} equal parts.",
                path=whole.source.file(whole.key),
                next_step="Pass a file in the original layout.",
            )
        for index, target in enumerate(names):
            self.pieces[target] = {WEIGHT: replace(whole, split=(index, len(names)))}

    def split_attention(self, queries: re.Pattern[str]) -> None:
        """Give keys and values a parameter each beside the queries, where the source has one for all three.

        Args:
            queries (`re.Pattern[str]`): The names of queries, with `.q_proj.`.

        Raises:
            ConversionError: The rows of one are not three times as many as others.
        """
        for name in [name for name in self.pieces if queries.fullmatch(name)]:
            self.split(name, [name.replace(".q_proj.", f".{other}_proj.") for other in "kv"])

    def skip_first(self, name: str) -> None:
        """Leave the first entry of a parameter's second dimension out, which nothing reads.

        Args:
            name (`str`): The parameter that was found.

        Raises:
            ConversionError: It has no second dimension, or nothing beside that entry.
        """
        piece = self.pieces[name][WEIGHT]
        if len(piece.info.shape) < 2 or piece.info.shape[1] < 2:
            raise ConversionError(
                f"{piece.key!r} of the {piece.origin} has the shape {piece.info.shape}, and no entry to leave out.",
                path=piece.source.file(piece.key),
                next_step="Pass a file in the original layout.",
            )
        self.pieces[name] = {WEIGHT: replace(piece, skip_first=True)}

    def keep(self, source: TensorSource) -> None:
        """Take a source whose tensors were added by hand, so that it is released with the others."""
        self._sources.append(source)

    def shapes(self, prefix: str = "") -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters whose name starts with `prefix`, by the rest of their name."""
        return {
            target.removeprefix(prefix): _joined_shape(parts)
            for target, parts in self.pieces.items()
            if target.startswith(prefix) and WEIGHT in parts
        }

    def has(self, prefix: str) -> bool:
        """Whether any parameter with this prefix was found."""
        return any(target.startswith(prefix) and WEIGHT in parts for target, parts in self.pieces.items())

    def adapted(self) -> dict[str, dict[str, Piece]]:
        """The parameters that an unmerged adapter changes.

        Raises:
            ConversionError: An adapter is incomplete.
        """
        adapted = {target: parts for target, parts in self.pieces.items() if LORA_A in parts or LORA_B in parts}
        for target, parts in adapted.items():
            if missing := {WEIGHT, LORA_A, LORA_B} - set(parts):
                raise ConversionError(
                    f"The adapter of {target!r} lacks its {' and '.join(sorted(missing))}.",
                    next_step="Pass the complete file, or a base folder with the language model's weights.",
                )
        return adapted

    def release(self) -> None:
        """Let all sources give back what they have mapped."""
        for source in self._sources:
            source.release()


def _joined_shape(parts: dict[str, Piece]) -> tuple[int, ...]:
    """The shape of a parameter whose rows may be tensors of their own."""
    rows, *others = parts[WEIGHT].info.shape or (1,)
    further = sum(parts[part].info.shape[0] for part in ROWS if part in parts)
    return (rows + further, *others) if further else parts[WEIGHT].info.shape


def _weights(piece: Piece) -> Piece:
    """A piece that holds real numbers; whole ones would become weights by a cast that nobody asked for.

    Raises:
        ConversionError: It holds whole numbers or truth values.
    """
    dtype = piece.info.dtype
    if not dtype.is_floating_point:
        raise ConversionError(
            f"{piece.key!r} of the {piece.origin} is stored as {str(dtype).removeprefix('torch.')}; weights are "
            "floating-point numbers.",
            path=piece.source.file(piece.key),
            next_step="Pass the weights in full, half or bfloat16 precision, not quantized ones.",
        )
    return piece
