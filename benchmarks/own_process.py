"""A function in a process of its own, so that its largest memory and its CPU time are its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
# Seconds that a process has to end.
_PATIENCE = 10


class FunctionFailedError(Exception):
    """
    The process ended before the function did.

    Args:
        message (`str`): What the process said last.
        rows (`list`): What the function had yielded by then.
        missing (`str`, *optional*): The package that it needs and that is not installed.
    """

    def __init__(self, message: str, rows: list | None = None, missing: str | None = None):
        super().__init__(message)
        self.rows, self.missing = rows or [], missing


@dataclass(frozen=True)
class Finished:
    """
    What a function returned, and what its process took.

    Args:
        result: As JSON types.
        wall_s, cpu_s (`float`): Of the whole process, in seconds.
        peak_rss (`int`): Largest resident memory in bytes, mapped files included.
    """

    result: Any
    wall_s: float
    cpu_s: float
    peak_rss: int


def run_alone(reference: str, timeout: float | None = None, **arguments: Any) -> Finished:
    """Call a function in a new Python process.

    Args:
        reference (`str`): As `"benchmarks.full_size_inference:ours"`.
        timeout (`float`, *optional*): Seconds after which the process is ended.
        arguments: JSON types, and what the function takes.

    Raises:
        FunctionFailedError: The function raised an error, took too long, or the process died.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, told = Path(folder) / "answer.json", Path(folder) / "told"
        command = [sys.executable, "-m", "benchmarks.own_process", reference, json.dumps(arguments), str(answer)]
        start = time.perf_counter()
        with told.open("wb") as said:
            child = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=_environment())
            try:
                usage = _wait(child, timeout)
            except BaseException:
                _end(child)
                raise
        wall = time.perf_counter() - start
        outcome = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
        if "result" not in outcome:
            words = told.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = words[-1] if words else "it said nothing"
            raise FunctionFailedError(f"{reference} ended with {child.returncode}: {last}", **outcome)
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(outcome["result"], wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def _end(child: subprocess.Popen) -> None:
    """A process may have started others and folders, which it has some seconds for to take with it."""
    child.terminate()
    try:
        child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _environment() -> dict[str, str]:
    """With this checkout's packages first, wherever Python was started."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def _wait(child: subprocess.Popen, timeout: float | None) -> Any:
    """The resources that the process used, which `Popen.wait` does not tell."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        process, status, usage = os.wait4(child.pid, 0 if end is None else os.WNOHANG)
        if process:
            child.returncode = os.waitstatus_to_exitcode(status)
            return usage
        if time.monotonic() > end:
            raise FunctionFailedError(f"it took more than {timeout:.0f} s")
        time.sleep(0.05)


def resident_gb() -> dict[str, float]:
    """Memory of this process in GB, as Linux counts it: the largest so far, that of now, and now without files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kilobytes = {name: value.removesuffix("kB") for name, _, value in (line.partition(":") for line in lines)}
    names = {"peak": "VmHWM", "now": "VmRSS", "own": "RssAnon"}
    return {name: int(kilobytes[field]) * 1024 / 1e9 for name, field in names.items()}


def _main(reference: str, arguments: str, answer: str) -> None:
    from reasonseg.loading import import_object

    outcome: dict[str, Any] = {"rows": []}
    try:
        result = import_object(reference)(**json.loads(arguments))
        if isinstance(result, Iterator):
            for row in result:
                outcome["rows"].append(asdict(row))
            result = outcome["rows"]
        outcome = {"result": result}
    except ModuleNotFoundError as error:
        outcome["missing"] = error.name
        raise
    finally:
        Path(answer).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])


__all__ = ["Finished", "FunctionFailedError", "resident_gb", "run_alone"]
