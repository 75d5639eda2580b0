"""A complete repository of parts that has learned nothing yet, of any system that says how.

`reasonseg compose` and training recipes name the system and its parts in the same words, the options of its
[`Composition`]; `compose` checks them before anything is read, and hands them to the system's own function.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args, get_origin

import torch

from ..loading import import_object
from .convert import ConversionReport
from .errors import ConversionError
from .progress import ProgressCallback
from .systems import SYSTEMS, Option, PublishedSystem


class CompositionOptions(TypedDict, total=False):
    """What every function of a [`Composition`] takes beside `seed` and its own arguments.

    Args:
        dtype (`torch.dtype` or `str`, *optional*): Type of the vision-language model, by default the one most of it is
            stored in.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): Largest weight file.
        card (`str`, *optional*): Path of a values file (`.yaml`) for the model card; by default it says what is known
            of the parts.
        progress (`ProgressCallback`, *optional*): Told about bytes written; `rich_progress` makes one.
    """

    dtype: torch.dtype | str | None
    max_shard_size: int | str
    card: str | None
    progress: ProgressCallback | None


def composable_systems() -> dict[str, PublishedSystem]:
    """The systems that can be made of parts, by what a command calls them."""
    return {system.command_name: system for system in SYSTEMS.values() if system.composition is not None}


def find_composable(name: object) -> PublishedSystem:
    """
    Args:
        name (`object`): Such as `"lisa"`; of several words with hyphens or underscores.

    Raises:
        ConversionError: No such system can be made of parts.
    """
    system = composable_systems().get(str(name).replace("_", "-"))
    if system is None:
        raise ConversionError(
            f"The system is {name!r}; made of parts can be {', '.join(composable_systems())}.",
            next_step="Name one of these.",
        )
    return system


def check_parts(parts: Mapping[str, Any]) -> PublishedSystem:
    """Refuse parts of which nothing can be made; nothing is read or downloaded.

    Args:
        parts (`Mapping[str, Any]`): `"system"`, and the options of its composition by name.

    Returns:
        `PublishedSystem`: The system.

    Raises:
        ConversionError: Names what is unknown, missing or too much, and what is allowed.
    """
    system = find_composable(parts.get("system"))
    known = {option.name: option for option in system.composition.all_options}
    given = {name: value for name, value in parts.items() if name != "system" and value is not None}
    allowed = f"{system.title} takes {', '.join(known)}."
    if unknown := sorted(str(name) for name in given.keys() - known.keys()):
        raise ConversionError(f"{system.title} is not made with {', '.join(unknown)}.", next_step=allowed)
    if missing := [name for name, option in known.items() if option.required and name not in given]:
        lacking = " and ".join(f"{name}=" for name in missing)
        raise ConversionError(f"{system.title} cannot be made without {lacking}.", next_step=_what(known[missing[0]]))
    _check_groups(system, given, known)
    for name, value in given.items():
        _check_value(known[name], value)
    return system


def _check_groups(system: PublishedSystem, given: Mapping[str, Any], known: Mapping[str, Option]) -> None:
    groups = system.composition.one_of
    if not groups:
        return
    begun = [group for group in groups if any(name in given for name in group)]
    ways = ", or ".join(" with ".join(f"{name}=" for name in group) for group in groups)
    if len(begun) != 1 or any(name not in given for name in begun[0]):
        what = "neither" if not begun else "more" if len(begun) > 1 else "not all"
        raise ConversionError(f"{system.title} needs {ways}; {what} of it was given.", next_step=_what(known["vlm"]))


def _what(option: Option) -> str:
    return f"Pass {option.name}= with it: {option.help}"


def _check_value(option: Option, value: Any) -> None:
    if get_origin(option.kind) is Literal:
        allowed = get_args(option.kind)
        if value not in allowed and not isinstance(value, torch.dtype):
            raise ConversionError(f"{option.name} is {value!r}; allowed are {', '.join(allowed)}.")
        return
    kinds = {str: (str, os.PathLike), float: (int, float)}.get(option.kind, (option.kind,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and option.kind is not bool):
        raise ConversionError(
            f"{option.name} is {value!r}; {_KINDS[option.kind]} is expected.", next_step=f"It says: {option.help}"
        )
    if option.name == "seed" and value < 0:
        raise ConversionError(f"seed is {value!r}; a whole number from 0 on is expected.")


_KINDS = {str: "text", float: "a number", int: "a whole number", bool: "true or false"}


def compose(
    parts: Mapping[str, Any], out: str | os.PathLike, *, progress: ProgressCallback | None = None
) -> ConversionReport:
    """Make a complete, verified repository of parts, or nothing.

    Args:
        parts (`Mapping[str, Any]`): `"system"`, and the options of its composition by name.
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        progress (`ProgressCallback`, *optional*): Told about bytes written.

    Returns:
        `ConversionReport`: Where the tensors came from; `"new"` are those that were drawn.

    Raises:
        ConversionError: See `check_parts`; or a part is missing, unreadable or does not fit. Nothing is left behind.
    """
    system = check_parts(parts)
    options = {name: value for name, value in parts.items() if name != "system" and value is not None}
    return import_object(system.composition.compose)(out=out, progress=progress, **options)


__all__ = ["CompositionOptions", "check_parts", "composable_systems", "compose", "find_composable"]
