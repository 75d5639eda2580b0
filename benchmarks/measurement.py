"""What a benchmark finds: one row of the common table, and how rows are printed.

A benchmark is a module of this folder with a generator `measurements(**sizes)` of [`Measurement`]s, whose arguments
all have defaults, and with `SMALL`, the arguments of a run of seconds. `python -m benchmarks` finds it by these two
names.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
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


def positive_count(word: str) -> int:
    """For argparse: a whole number from 1."""
    if (value := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"it is {word}; it must be at least 1.")
    return value


def work_folder(word: str) -> str:
    """For argparse: a folder to write in, which is made where it is missing."""
    try:
        Path(word).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=word).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{word} is no folder to write in ({error.strerror}); name another."
        ) from error
    return word


def new_file(word: str) -> Path:
    """For argparse: a file that can be written, in a folder which is made where it is missing."""
    if Path(word).is_dir():
        raise argparse.ArgumentTypeError(f"{word} is a folder; name a file.")
    return Path(work_folder(str(Path(word).parent))) / Path(word).name


def _readable(value: Any, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


__all__ = ["Measurement", "new_file", "positive_count", "positive_number", "print_table", "work_folder"]
