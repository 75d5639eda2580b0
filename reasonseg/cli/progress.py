"""How far a long command is, and how long it will still take: a bar on a terminal, now and then a line in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any


# Called with a step's name, the number of finished items and of all; `None` where nobody knows how many there are.
StepReport = Callable[[str, int, int | None], None]

# Seconds between two lines of a log.
_LINE_EVERY = 30.0
# Speed is the mean over this many seconds: a large model may need minutes for one item.
_SPEED_OVER = 24 * 3600.0


@contextmanager
def step_progress(console: Any, is_shown: bool = True) -> Iterator[StepReport]:
    """Give a function to report progress with, which shows count and time left of each step on `console`."""
    if not is_shown:
        yield lambda step, done, total: None
    elif console.is_terminal:
        with _bars(console) as report:
            yield report
    else:
        yield _Lines(console)


def with_progress(items: Iterator, total: int | None, console: Any, step: str) -> Iterator:
    """Pass `items` on and show how many of them are done; `total` may be unknown until they are."""
    done = 0
    with step_progress(console) as report:
        report(step, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            report(step, done, total)
        if total is None:
            report(step, done, done)


@contextmanager
def _bars(console: Any) -> Iterator[StepReport]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=_SPEED_OVER,
        # What goes to a file or a pipe must not be drawn above the bar instead.
        redirect_stdout=sys.stdout.isatty(),
    ) as bars:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, completed=done)
                bars.advance(tasks[step], 0)  # speed is measured from here
            bars.update(tasks[step], completed=done, total=total)

        yield report


class _Lines:
    """Writes a line every half a minute, and one when a step ends."""

    def __init__(self, console: Any):
        self.console = console
        self._begun: dict[str, tuple[float, int]] = {}
        self._told = time.monotonic()

    def __call__(self, step: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        start, done_before = self._begun.setdefault(step, (now, done))
        if done == done_before or ((total is None or done < total) and now - self._told < _LINE_EVERY):
            return
        self._told = now
        if total is None:
            self.console.print(
                f"{step}: {done}, {(done - done_before) / (now - start):.3g} per second", soft_wrap=True
            )
            return
        if done < total:
            seconds, what = (now - start) / (done - done_before) * (total - done), "left"
        else:
            seconds, what = now - start, "in all"
        line = f"{step}: {done}/{total}, {timedelta(seconds=round(seconds))} {what}"
        self.console.print(line, soft_wrap=True)


__all__ = ["StepReport", "step_progress", "with_progress"]
