"""Starts a training run again and again and kills it: `python kill_and_resume.py RECIPE OUT KILLS`.

The runs are killed at moments that are spread over the writing of a checkpoint. Prints one JSON object per killed run.
The last run takes two more steps and ends by itself; so does another one that takes as many steps without a stop, in
OUT-straight.
"""

import json
import sys
import time
from pathlib import Path

import reasonseg  # noqa: F401 - registers the model
from reasonseg.training.checkpoints import CHECKPOINT_DRAFT, list_checkpoints, why_incomplete
from reasonseg.training.recipe import load_recipe
from reasonseg.training.run import run_recipe
from tests.support import forked_runs


def start(recipe: str, out: Path, resume: bool, *overrides: str) -> int:
    return forked_runs.start(lambda: run_recipe(load_recipe(recipe, overrides), out, resume))


def main() -> None:
    recipe, out, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    draft = out / CHECKPOINT_DRAFT
    saving = 0.0
    for number in range(kills):
        child = start(recipe, out, number > 0)
        known = set(list_checkpoints(out))
        forked_runs.wait_until(lambda: not draft.exists(), child)  # the one that the last kill has left
        began = forked_runs.wait_until(draft.exists, child)
        if number == 0:
            saving = forked_runs.wait_until(lambda: set(list_checkpoints(out)) - known, child) - began  # noqa: B023
        else:
            time.sleep(1.5 * saving * number / kills)
        forked_runs.kill(child)
        checkpoints = list_checkpoints(out)
        record = {
            "was_writing": draft.exists(),
            "newest": checkpoints[0].name if checkpoints else None,
            "incomplete": [path.name for path in checkpoints if why_incomplete(path)],
        }
        print(json.dumps(record), flush=True)
    steps = f"arguments.max_steps={int(list_checkpoints(out)[0].name.rpartition('-')[2]) + 2}"
    straight = start(recipe, out.with_name(f"{out.name}-straight"), False, steps, "arguments.save_strategy='no'")
    for child in (start(recipe, out, True, steps), straight):
        assert forked_runs.end(child) == 0


if __name__ == "__main__":
    main()
