"""Progress of long steps, as a callback that any front end can supply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


# Called with the step's name, the bytes done and the bytes in total.
ProgressCallback = Callable[[str, int, int], None]


def no_progress(step: str, done: int, total: int) -> None:
    """Report nothing."""


@contextmanager
def rich_progress(console: Console | None = None) -> Iterator[ProgressCallback]:
    """A bar per step with bytes, speed and time left on stderr; silent where stderr is not a terminal.

    Args:
        console (`Console`, *optional*): Where to draw.

    Example:
        >>> with rich_progress() as progress:
        ...     progress("Writing weights", 10, 10)
    """
    console = console or Console(stderr=True)
    measures = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *measures)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield report
