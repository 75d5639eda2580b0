"""What to say when a checkpoint does not convert because it is another system's."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from .errors import ConversionError
from .inspection import inspect_checkpoint
from .locations import Location, locate
from .recognition import LISA_OR_GSVA
from .systems import ATTEND_AND_SEGMENT, DIFFLMM, GSVA, IVM, LISA, SYSTEMS, VIP_LLAVA, PublishedSystem


_Arguments = ParamSpec("_Arguments")
_Report = TypeVar("_Report")

_TITLES = {
    LISA.name: "LISA",
    GSVA.name: "GSVA",
    IVM.name: "IVM",
    VIP_LLAVA.name: "ViP-LLaVA",
    DIFFLMM.name: "DiffLMM",
}
# What is no system of its own, and where it belongs.
_PARTS = {
    "sam": "This is a SAM: it is passed as sam=.",
    "clip": "This is a CLIP model: it is passed as vision_tower=.",
    "llava": "This is a LLaVA, the base of other checkpoints, which is passed as base=.",
}


def names_other_systems(
    system: PublishedSystem,
) -> Callable[[Callable[_Arguments, _Report]], Callable[_Arguments, _Report]]:
    """Decorate a conversion: where it fails on tensors of another system, its error says which.

    Args:
        system (`PublishedSystem`): What it converts. Its arguments are called `source` and `out`.
    """

    def decorate(convert: Callable[_Arguments, _Report]) -> Callable[_Arguments, _Report]:
        @functools.wraps(convert)
        def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Report:
            try:
                return convert(*args, **kwargs)
            except ConversionError as error:
                given = inspect.signature(convert).bind(*args, **kwargs).arguments
                hint = "" if error.path == os.fspath(given["out"]) else _hint(system, given["source"], error)
                if not hint:
                    raise
                next_step = " ".join(filter(None, [error.next_step, hint]))
                raise ConversionError(error.cause, path=error.path, next_step=next_step) from error.__cause__

        return wrapped

    return decorate


def _hint(system: PublishedSystem, source: Location, error: ConversionError) -> str:
    """What the tensors seem to be, in a sentence; empty where that is no news."""
    if not Path(source).exists() and error.path is None:
        return ""  # it may not have been downloaded at all
    try:
        found = inspect_checkpoint(locate(source)).recognised
    except (ConversionError, OSError):
        return ""
    is_repository = found.converted or found.loads_as_it_is
    if system == ATTEND_AND_SEGMENT and (is_repository or found.system == "llava"):
        return ""  # what it is made of
    if found.system in _PARTS:
        return _PARTS[found.system]
    if is_repository:
        return f"This is {_title(found.system)} as a repository that loads as it is; `reasonseg verify` checks it."
    if found.system == system.name:
        return ""
    if found.system == LISA_OR_GSVA and system in (LISA, GSVA):
        other = GSVA if system == LISA else LISA
        return f"The tensors may also be {_title(other.name)}'s: then use `reasonseg convert {other.name}`."
    if found.system == LISA_OR_GSVA:
        return "The tensors are LISA's or GSVA's: use `reasonseg convert lisa` or `reasonseg convert gsva`."
    if found.system not in _TITLES:
        return ""
    command = found.system.replace("_", "-")
    return f"The tensors are {_title(found.system)}'s ({found.variant}): use `reasonseg convert {command}`."


def _title(name: str) -> str:
    return _TITLES.get(name, "a model of this package" if name not in SYSTEMS else name)


__all__ = ["names_other_systems"]
