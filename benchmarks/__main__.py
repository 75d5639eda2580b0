"""All benchmarks of this folder at a small size, each in a process of its own: one table of all that they measured.

    python -m benchmarks [NAME ...] [--timeout 180]

A benchmark that fails is named below the table and the others run; the exit code is then 1. One that needs a package
which is not installed is named, too.
"""

import argparse
import ast
import datetime
import os
import platform
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measurement import Measurement, positive_number, print_table
from benchmarks.own_process import FunctionFailedError, run_alone


@dataclass
class Outcome:
    """What was measured, and what was not and why: by the name of the module."""

    rows: list[Measurement] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


def benchmark_modules(folder: str | Path) -> list[str]:
    """Names of the modules that define `measurements` and `SMALL`."""
    files = sorted(Path(folder).glob("*.py"))
    return [file.stem for file in files if {"measurements", "SMALL"} <= _top_level_names(file)]


def _top_level_names(file: Path) -> set[str]:
    """Of functions and variables, without running the file: that may need packages that are not installed."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _leave(*_: Any) -> None:
    sys.exit(143)


def small_run(module: str) -> Iterator[Measurement]:
    """A benchmark at its small size, in this process, which ends the processes of its parts where it is ended."""
    signal.signal(signal.SIGTERM, _leave)
    benchmark = import_module(module)
    yield from benchmark.measurements(**benchmark.SMALL)


def run_benchmarks(modules: list[str], timeout: float, console: Console, outcome: Outcome) -> None:
    """Run the small size of each module, add what it finds to `outcome` and tell on `console` how far it is."""
    for number, module in enumerate(modules, start=1):
        name = module.rpartition(".")[2]
        with console.status(f"{number} of {len(modules)}: {name}"):
            try:
                finished = run_alone("benchmarks.__main__:small_run", timeout=timeout, module=module)
                rows, told = finished.result, f"{finished.wall_s:.0f} s"
            except FunctionFailedError as error:
                rows, told = error.rows, str(error) if error.missing is None else f"needs {error.missing}"
                (outcome.failed if error.missing is None else outcome.not_run)[name] = told
        outcome.rows += [Measurement(**row) for row in rows]
        console.print(f"{number} of {len(modules)}: {name}: {told}", markup=False, highlight=False, soft_wrap=True)


def machine() -> str:
    """Processor, accelerator, versions and date."""
    import torch

    name = platform.processor() or platform.machine()
    if (told := Path("/proc/cpuinfo")).exists():
        lines = (line.partition(":") for line in told.read_text(encoding="utf-8").splitlines())
        told = {key.strip(): value.strip() for key, _, value in lines}
        name = told.get("model name", name) + (" with AMX" if "amx_tile" in told.get("flags", "").split() else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{name}, {cores} cores", *(f"{name} {version(name)}" for name in ("torch", "transformers"))]
    if torch.accelerator.is_available():
        parts.insert(1, f"accelerator {torch.accelerator.current_accelerator()}")
    return "; ".join([*parts, datetime.date.today().isoformat()])


def main(words: list[str] | None = None) -> int:
    available = benchmark_modules(Path(__file__).parent)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"By default all: {', '.join(available)}.")
    seconds = "Seconds that one benchmark may take."
    parser.add_argument("--timeout", type=positive_number(), default=180.0, help=seconds)
    arguments = parser.parse_args(words)
    if unknown := sorted(set(arguments.names) - set(available)):
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(available)}.")
    names = arguments.names or available
    signal.signal(signal.SIGTERM, _leave)  # so that the benchmark that runs is ended, too
    outcome = Outcome()
    try:
        run_benchmarks([f"benchmarks.{name}" for name in names], arguments.timeout, Console(stderr=True), outcome)
    finally:  # also what was measured before somebody ended it
        show(outcome)
    return 1 if outcome.failed else 0


def show(outcome: Outcome) -> None:
    """The table, and below it what is not in it."""
    print(machine())
    print_table(outcome.rows)
    for title, named in (("not run", outcome.not_run), ("failed", outcome.failed)):
        for name, why in named.items():
            print(f"{title}: {name}: {why}")


if __name__ == "__main__":
    sys.exit(main())
