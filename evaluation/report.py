"""An evaluation as files: numbers as JSON, a table, and a picture of the best, median and worst cases."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ..whole_files import write_whole
from .contact_sheet import save_contact_sheet
from .reasoning_segmentation import EvaluationResult


COLUMNS = ("giou", "ciou", "n_acc", "t_acc", "pr@0.5", "pr@0.7", "pr@0.9")


def write_report(result: Any, out: str | Path, about: dict[str, Any]) -> Path:
    """
    Args:
        result ([`EvaluationResult`] or like it): What was measured; has `to_dict()` and `cases`.
        out (`str` or `Path`): Folder for `results.json` and `cases.png`.
        about (`dict`): Model, data set and settings, written beside the numbers.

    Returns:
        `Path`: The JSON file.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if result.cases:
        save_contact_sheet(result.cases, out / "cases.png")
    path = out / "results.json"
    write_whole(path, json.dumps({**about, **result.to_dict()}, indent=2) + "\n")
    return path


def results_table(result: EvaluationResult) -> Table:
    """One row per type of phrase, where there are types, and one for all."""
    table = Table(title=f"protocol: {result.protocol}")
    for name in ("type", "phrases", *COLUMNS):
        table.add_column(name, justify="left" if name == "type" else "right")
    total = "all" if "all" not in result.by_type else "all types"
    for name, numbers in [*result.by_type.items(), (total, result.overall)]:
        values = ["-" if numbers[column] is None else f"{numbers[column]:.3f}" for column in COLUMNS]
        table.add_row(name, str(numbers["masks"]), *values)
    return table


def numbers_table(title: str, numbers: Mapping[str, float | int | None], notes: list[str]) -> Table:
    """
    One row per number.

    Args:
        title (`str`): Stands above.
        numbers (`Mapping`): Names and values; shares in percent, counts as they are.
        notes (`list[str]`): Stand below: what is not measured, and why.
    """
    table = Table(title=title, caption="\n".join(notes) or None, caption_justify="left", min_width=70)
    table.add_column("number", justify="left")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name, "-" if value is None else str(value) if isinstance(value, int) else f"{100 * value:.1f}")
    return table


__all__ = ["numbers_table", "results_table", "write_report"]
