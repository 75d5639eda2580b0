"""Starts `reasonseg segment` again and again and kills it: `python kill_and_segment.py IMAGES OUT KILLS`.

Prints one JSON object per killed run; the last run ends by itself.
"""

import json
import sys
import time
from pathlib import Path

import torch  # noqa: F401 - before the forks
import transformers  # noqa: F401

import reasonseg  # noqa: F401
from reasonseg.cli.app import app
from tests import forked_runs


def lines(out: Path) -> list[str]:
    """The complete lines of the results file."""
    path = out / "results.jsonl"
    return path.read_bytes().decode("utf-8").split("\n")[:-1] if path.exists() else []


def main() -> None:
    images, out, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    command = ["segment", images, "--phrase", "the red cup", "--model", "embedded", "--out", str(out)]
    for number in range(kills):
        known = len(lines(out))
        child = forked_runs.start(lambda: app(command, prog_name="reasonseg"))
        while len(lines(out)) == known:
            assert not forked_runs.has_ended(child), "the run ended by itself"
            time.sleep(0.001)
        time.sleep(0.1 * number / kills)
        forked_runs.kill(child)
        names = [json.loads(line)["image"] for line in lines(out)]
        drafts = [path.name for path in out.iterdir() if ".partial" in path.name]
        print(json.dumps({"images": names, "drafts": drafts}), flush=True)
    assert forked_runs.end(forked_runs.start(lambda: app(command, prog_name="reasonseg"))) == 0


if __name__ == "__main__":
    main()
