"""Starts a command again and again and kills it at random moments: `python kill_at_random.py KILLS COMMAND...`.

Each is killed a moment after it has written a few more files into the folder that follows `--out`. Prints one JSON
object per killed run; the last run ends by itself.
"""

import contextlib
import json
import random
import sys
import time
from pathlib import Path

import torch  # noqa: F401 - before the forks
import transformers  # noqa: F401

import reasonseg  # noqa: F401
from reasonseg.cli.app import app
from tests.support import forked_runs


with contextlib.suppress(ImportError):
    import datasets  # noqa: F401


def start(command: list[str]) -> int:
    return forked_runs.start(lambda: app(command, prog_name="reasonseg"))


def main() -> None:
    kills, command = int(sys.argv[1]), sys.argv[2:]
    out = Path(command[command.index("--out") + 1])
    moments = random.Random(0)

    def written() -> int:
        return sum(path.is_file() for path in out.rglob("*"))

    for _ in range(kills):
        known, more = written(), moments.randint(1, 5)
        child = start(command)
        forked_runs.wait_until(lambda: written() >= known + more, child)  # noqa: B023
        # A few files later at most, so that a fast machine has rows left for all kills.
        latest = time.monotonic() + 0.1 * moments.random()
        forked_runs.wait_until(lambda: time.monotonic() >= latest or written() >= known + more + 3, child)  # noqa: B023
        forked_runs.kill(child)
        print(json.dumps({"files": written()}), flush=True)
    assert forked_runs.end(start(command)) == 0


if __name__ == "__main__":
    main()
