"""LLaVA as its difference to LLaMA, as LLaVA v1 was published: the base is added tensor by tensor.

What LLaVA's `apply_delta` asserts is checked before anything is written: names, shapes, and what only LLaVA has. That
the base is the right one follows from how floating-point numbers round; see `check_exactness`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import ConversionError
from .inventory import Inventory, Piece
from .plan import EMBEDDING, HEAD
from .rules import BASE, WEIGHT
from .rules_lisa_gsva import MM_PROJECTOR, VISION_TOWER, detect_layout, llava_table
from .sources import TensorSource, open_source, read_config


_OTHER_BASE = (
    "Pass the LLaMA that the delta was taken from, in the layout of transformers: the delta's name and README say "
    "which, and its size."
)
# What must be the same in both configs for the weights to mean the same.
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_SAMPLED_TENSORS, _SAMPLED_NUMBERS = 8, 1 << 16
# Below so many numbers nothing can be said.
_FEWEST_NUMBERS = 1 << 18
# A fine-tuning changes weights by a few per cent. Sums with its own base round in 0 to 2.5 % of them, with another
# base of the same sizes in 26 % and more.
_LARGEST_CHANGE, _MOST_ROUNDED = 0.1, 0.12


def add_delta_weights(inventory: Inventory, delta: Path, base: Path) -> None:
    """Add the base's part to every parameter of a delta.

    Args:
        inventory (`Inventory`): Holds the delta.
        delta (`Path`): Its folder.
        base (`Path`): LLaMA's folder.

    Raises:
        ConversionError: The base lacks tensors, has others or other shapes, or cannot be the one the delta belongs to.
    """
    _check_configs(read_config(delta / "config.json"), read_config(base / "config.json"), base)
    source = open_source(base)
    found = _base_names(source, base)
    wanted = {target for target in inventory.pieces if not target.startswith((MM_PROJECTOR, VISION_TOWER))}
    if missing := sorted(wanted - found.keys()):
        raise ConversionError(
            f"The base lacks {len(missing)} tensors of the delta, the first is {missing[0]!r}.",
            path=base,
            next_step=_OTHER_BASE,
        )
    if any(target.startswith(MM_PROJECTOR) for target in found):
        raise ConversionError("The base is a LLaVA itself, or the delta.", path=base, next_step=_OTHER_BASE)
    if extra := sorted(found.keys() - wanted):
        raise ConversionError(
            f"The base has {len(extra)} tensors that the delta lacks, the first is {found[extra[0]]!r}.",
            path=base,
            next_step=_OTHER_BASE,
        )
    for target in wanted:
        parts = inventory.pieces[target]
        parts[BASE] = Piece(source, found[target], "base")
        _check_shapes(target, parts, base)
    inventory.keep(source)
    check_exactness({target: inventory.pieces[target] for target in sorted(wanted)}, base)


def _base_names(source: TensorSource, base: Path) -> dict[str, str]:
    """The base's names by the parameters they are added to."""
    try:
        applied = llava_table(detect_layout(source.names())).apply(source.names())
    except ConversionError as error:
        raise ConversionError(
            f"The base is no LLaMA in the layout of transformers. {error.cause}", path=base, next_step=_OTHER_BASE
        ) from None
    if applied.unmatched:
        raise ConversionError(
            f"The base holds {applied.unmatched[0]!r}, which no LLaMA has.", path=base, next_step=_OTHER_BASE
        )
    return {target: parts[WEIGHT] for target, parts in applied.targets.items() if WEIGHT in parts}


def _check_configs(delta: Mapping[str, Any], base: Mapping[str, Any], folder: Path) -> None:
    for name in _SIZES:
        values = [config.get(name) for config in (delta, base)]
        if None not in values and values[0] != values[1]:
            raise ConversionError(
                f"The base has {name}={values[1]}, the delta {values[0]}.",
                path=folder / "config.json",
                next_step=_OTHER_BASE,
            )


def _check_shapes(target: str, parts: Mapping[str, Piece], base: Path) -> None:
    """The delta may have rows of tokens that the base does not know, and nothing else beyond it."""
    of_delta, of_base = parts[WEIGHT].info.shape, parts[BASE].info.shape
    has_more_rows = target in (EMBEDDING, HEAD) and of_delta[1:] == of_base[1:] and of_delta[0] >= of_base[0]
    if of_delta != of_base and not has_more_rows:
        raise ConversionError(
            f"{parts[BASE].key!r} of the base has the shape {of_base}, the delta's {of_delta}.",
            path=base,
            next_step=_OTHER_BASE,
        )


def check_exactness(pieces: Mapping[str, Mapping[str, Piece]], base: Path) -> None:
    """Refuse a base whose numbers cannot be those that the delta was taken from.

    A delta is `tuned - base` in 16 bits. Where both numbers are alike that difference is exact, so that `base + delta`
    is a 16-bit number again. With another base it hardly ever is: the sum has digits that no 16-bit number holds. What
    is looked at are some rows of some matrices; of few numbers, or of large changes, nothing can be said.

    Args:
        pieces (`Mapping[str, Mapping[str, Piece]]`): Delta and base by parameter.
        base (`Path`): The base, for the message.

    Raises:
        ConversionError: Delta and base are the same, the sum is not finite, or it was never a tuned model.
    """
    matrices = [parts for name, parts in pieces.items() if ".layers." in name and len(parts[WEIGHT].info.shape) == 2]
    chosen = matrices[:: max(1, len(matrices) // _SAMPLED_TENSORS)][:_SAMPLED_TENSORS]
    count = rounded = 0
    change = size = 0.0
    for parts in chosen:
        delta, own = parts[WEIGHT].load(), parts[BASE].load()
        rows = max(1, _SAMPLED_NUMBERS // delta.shape[1])
        delta, own = delta[:rows], own[:rows].to(delta.dtype)
        if torch.equal(delta, own):
            raise ConversionError(
                f"{parts[BASE].key!r} is the same in base and delta.",
                path=base,
                next_step="Pass the delta as delta= and LLaMA itself as base=.",
            )
        total = own.double() + delta.double()
        if not torch.isfinite(total.to(delta.dtype)).all():
            raise ConversionError(
                f"The sum of base and delta in {parts[BASE].key!r} is not finite.", path=base, next_step=_OTHER_BASE
            )
        rounded += (total != total.to(delta.dtype).double()).sum().item()
        count += total.numel()
        change, size = change + delta.double().square().sum().item(), size + own.double().square().sum().item()
    can_tell = count >= _FEWEST_NUMBERS and change <= _LARGEST_CHANGE**2 * size
    if can_tell and rounded > _MOST_ROUNDED * count:
        raise ConversionError(
            f"{rounded / count:.0%} of the sums of base and delta are no numbers that a tuned model could have had; "
            "with the right base hardly any is rounded.",
            path=base,
            next_step=_OTHER_BASE,
        )


__all__ = ["add_delta_weights", "check_exactness"]
