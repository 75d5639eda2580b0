"""Starts a command again and again and kills it at random moments: `python kill_at_random.py KILLS COMMAND...`.

Moments are drawn over the time that a run takes which nobody kills. Prints one JSON object per killed run; the last
run ends by itself.
"""

import contextlib
import json
import random
import shutil
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
    begun = time.monotonic()
    assert forked_runs.end(start(command)) == 0
    seconds = time.monotonic() - begun
    shutil.rmtree(out)
    moments = random.Random(0)
    for number in range(kills):
        child = start(command)
        # Later kills meet what is left, which takes less.
        time.sleep(seconds * (0.2 + 0.3 * moments.random()))
        if number and forked_runs.has_ended(child):
            print(json.dumps({"files": -number}), flush=True)
            continue
        forked_runs.kill(child)
        print(json.dumps({"files": sum(path.is_file() for path in out.rglob("*"))}), flush=True)
    assert forked_runs.end(start(command)) == 0


if __name__ == "__main__":
    main()
