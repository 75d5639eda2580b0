"""JSON values with one value changed to something else, as damaged and hand-written files have them."""

import copy
import random
from typing import Any


JUNK = [
    *(None, True, 0, -1, 3, 2**70, 1e308, float("nan"), float("inf"), "", " ", "x", "\0", "../x", "a" * 5000),
    *([], [[]], [None], [1, 2], [1, 2, 3, 4], [[1, 2, 3, 4]], [[1e9] * 6], ["a"], {}, {"size": [1, 1]}),
    *({"size": [2, 2], "counts": [1]}, {"size": [2, 2], "counts": "\u00e9"}, {"size": "ab", "counts": {}}, [[[[]]]]),
]


def mutations(value: Any, count: int, seed: int) -> list[Any]:
    """`count` copies of a value, each with something inside it replaced, left out, or added."""
    rng, changed = random.Random(seed), []
    for _ in range(count):
        mutant = copy.deepcopy(value)
        holders = [(holder, key) for holder, key in _places(mutant)]
        holder, key = rng.choice(holders)
        if rng.random() < 0.2:
            del holder[key]
        elif rng.random() < 0.1 and isinstance(holder, list):
            holder.append(copy.deepcopy(rng.choice(JUNK)))
        else:
            holder[key] = copy.deepcopy(rng.choice(JUNK))
        changed.append(mutant)
    return changed


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]
