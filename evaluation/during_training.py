"""A benchmark in the middle of a training: the model that learns is measured as it is in memory."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from .registry import EvaluationOptions, Outcome, UnknownBenchmarkError, find_benchmark


# What the training says itself.
_OWN = {"out", "model", "loaded", "given", "progress", "locate", "settings", "benchmark"}
_PATHS = {"data", "images", "annotations"}


def check_benchmark(dataset: str, out: Path, **options: Any) -> None:
    """
    Read a benchmark's data, and check everything that [`measure`] would need, before hours of training.

    Raises:
        UnknownBenchmarkError: There is no such benchmark, or it lacks what was asked of it.
        DataFileError: Its data cannot be used.
    """
    benchmark, given = find_benchmark(dataset), _options(dataset, out, (None, None), options)
    replace(benchmark, run=f"{__name__}:read_only").evaluate(given)


def read_only(options: EvaluationOptions, data: Any) -> Outcome:
    """A run that measures nothing."""
    return Outcome()


def measure(dataset: str, out: Path, model: Any, processor: Any, **options: Any) -> dict[str, float]:
    """
    The numbers of a benchmark. With several processes each takes its part, and all get the same numbers.

    Args:
        dataset (`str`): Name of the benchmark, or the folder of one split.
        out (`Path`): Folder for what a benchmark keeps while it runs.
        model, processor: As they are; the model is in evaluation mode afterwards.
        options: Of [`EvaluationOptions`]; `settings` holds the benchmark's own.

    Returns:
        `dict[str, float]`: By name, parts of the data after a stroke: `giou`, `by_type/colour/giou`.
    """
    outcome = find_benchmark(dataset).evaluate(_options(dataset, out, (model, processor), options))
    numbers = [None if outcome.result is None else _numbers(outcome.result.to_dict())]
    broadcast_object_list(numbers)
    return numbers[0] or {}


def _options(dataset: str, out: Path, loaded: tuple[Any, Any], options: Mapping[str, Any]) -> EvaluationOptions:
    options = dict(options)
    given = {name: _as_typed(value) for name, value in (options.pop("settings", None) or {}).items()}
    known = {own.name for own in fields(EvaluationOptions)} - _OWN
    if unknown := sorted(set(options) - known):
        raise UnknownBenchmarkError(f"A benchmark has no option {', '.join(unknown)}; there are {sorted(known)}.")
    options = {name: Path(value) if name in _PATHS else value for name, value in options.items()}
    return EvaluationOptions(dataset, out, model="the model that is trained", loaded=loaded, given=given, **options)


def _as_typed(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """All numbers of a result; those over everything come without a prefix."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, prefix if name == "overall" else f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found


__all__ = ["check_benchmark", "measure", "read_only"]
