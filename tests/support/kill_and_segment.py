"""Starts `reasonseg segment` again and again and kills it: `python kill_and_segment.py IMAGES OUT KILLS`.

Prints one JSON object per killed run; the last run ends by itself. OUT-alone is what a run writes that nobody kills.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch  # noqa: F401 - before the forks
import transformers  # noqa: F401

import reasonseg  # noqa: F401
from reasonseg.cli.app import app
from tests.support import forked_runs


BATCH = 2


def lines(out: Path) -> list[str]:
    """The complete lines of the results file."""
    path = out / "results.jsonl"
    return path.read_bytes().decode("utf-8").split("\n")[:-1] if path.exists() else []


def die_while_writing(command: list[str]) -> None:
    """Run the command and kill it where its first file has been written and is not yet renamed."""
    Path.replace = lambda draft, target: os.kill(os.getpid(), signal.SIGKILL)
    app(command, prog_name="reasonseg")


def main() -> None:
    images, out, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    asked = ["segment", images, "--phrase", "the red cup", "--model", "embedded", "--batch-size", str(BATCH), "--out"]
    command = [*asked, str(out)]
    for number in range(kills):
        if number == 0:  # so that one kill meets a file that is being written, however fast the machine is
            child = forked_runs.start(lambda: die_while_writing(command))
            assert forked_runs.end(child) == -signal.SIGKILL, "nothing was written"
        else:
            known = len(lines(out))
            child = forked_runs.start(lambda: app(command, prog_name="reasonseg"))
            forked_runs.wait_until(lambda known=known: len(lines(out)) > known, child)
            # Not beyond the next batch, so that a fast machine has images left for all kills.
            latest, most = time.monotonic() + 0.1 * number / kills, known + BATCH
            forked_runs.wait_until(
                lambda latest=latest, most=most: time.monotonic() >= latest or len(lines(out)) > most, child
            )
            forked_runs.kill(child)
        names = [json.loads(line)["image"] for line in lines(out)]
        drafts = [path.name for path in out.iterdir() if ".partial" in path.name]
        print(json.dumps({"images": names, "drafts": drafts}), flush=True)
    for folder in (str(out), f"{out}-alone"):
        whole = [*asked, folder]
        assert forked_runs.end(forked_runs.start(lambda whole=whole: app(whole, prog_name="reasonseg"))) == 0


if __name__ == "__main__":
    main()
