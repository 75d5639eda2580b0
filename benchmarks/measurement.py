"""What a benchmark finds: one row of the common table, and how rows are printed.

A benchmark is a module of this folder with a generator `measurements(**sizes)` of [`Measurement`]s, whose arguments
all have defaults, and with `SMALL`, the arguments of a run of seconds. `python -m benchmarks` finds it by these two
names.
"""

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """
    One number of this package beside that of another way, both from the same run.

    Args:
        what (`str`): What was measured, and against what.
        ours (`float`): Of this package.
        baseline (`float`, *optional*): Of the other way, where there is one.
        unit (`str`): Of both: `s`, `GB`, `images/s`, ...
        more_is_better (`bool`): As of images per second, and not of seconds.
    """

    what: str
    ours: float
    baseline: float | None = None
    unit: str = "s"
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better than the baseline: above 1 for less time, less memory, or more per second."""
        if self.baseline is None:
            return None
        better, worse = (self.ours, self.baseline) if self.more_is_better else (self.baseline, self.ours)
        return better / worse if worse else float("inf")


def print_table(rows: Iterable[Measurement]) -> None:
    """Print rows as a table that is also one of Markdown."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.MARKDOWN)
    table.add_column("what", no_wrap=True)
    for name in ("ours", "baseline", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        numbers = (_readable(row.ours, row.unit), _readable(row.baseline, row.unit), _readable(row.ratio, "x"))
        table.add_row(row.what, *numbers)
    Console(width=1000, markup=False, highlight=False).print(table)


def positive_number(most: float = math.inf) -> Callable[[str], float]:
    """For argparse: a number above 0 and not above `most`."""

    def read(word: str) -> float:
        value = float(word)
        if not 0 < value <= most:
            allowed = "above 0" if most == math.inf else f"above 0 and at most {most:g}"
            raise argparse.ArgumentTypeError(f"it is {word}; it must be {allowed}.")
        return value

    read.__name__ = "number"  # as argparse calls it where there is none
    return read


def _readable(value: Any, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


__all__ = ["Measurement", "positive_number", "print_table"]
