"""What the original loaders of LISA and GSVA returned on the small data root in `tests/parity/datasets`."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, features

from reasonseg.data.instruction_wording import SYSTEM_MESSAGE
from tests.support.parity_data import PARITY


DATA_ROOT = PARITY / "datasets" / "root"
RECORDINGS = PARITY / "datasets" / "recordings"
SYSTEMS = ("lisa", "gsva")


@cache
def recorded(name: str) -> Any:
    """A JSON file of recordings, such as `"lisa/mixture_draws"`."""
    return json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))


@cache
def recorded_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(RECORDINGS / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def prompts_of(item: dict[str, Any]) -> list[str]:
    """Recorded conversations in full; files hold a stand-in for the system message."""
    return [text.replace("{system}", SYSTEM_MESSAGE) for text in item["conversations"]]


def assert_same_image(image: Image.Image, item: dict[str, Any]) -> None:
    """Pixels are equal to what OpenCV decoded, if both decode JPEG by libjpeg-turbo."""

    assert [image.height, image.width] == item["size"]
    if features.check("libjpeg_turbo"):
        assert hashlib.sha256(np.asarray(image).tobytes()).hexdigest() == item["rgb_sha256"]


class ReplayedCalls:
    """Random calls out of a log; another call than the one that was recorded fails."""

    def __init__(self, log: Sequence[Sequence[Any]]):
        self._log = list(log)
        self._next = 0

    @property
    def is_used_up(self) -> bool:
        return self._next == len(self._log)

    def index(self, count: int) -> int:
        return self._call("random.randint", 0, count - 1)

    def fraction(self) -> float:
        return self._call("random.random")

    def choice(self, count: int) -> int:
        return self._call("random.choice", count)

    def subset(self, count: int, size: int) -> list[int]:
        return self._call("np.random.choice", count, size, None)

    def weighted(self, probabilities: Sequence[float]) -> int:
        return self._call("np.random.choice", len(probabilities), None, list(probabilities))

    def style(self, count: int) -> int:
        return self._call("np.random.randint", 0, count)

    def _call(self, *call: Any) -> Any:
        *expected, result = self._log[self._next]
        assert list(call) == expected, f"call {self._next}"
        self._next += 1
        return result


class FirstCalls:
    """Random calls that take the wording number `template` and the first of everything else."""

    def __init__(self, template: int, case: int = 0):
        self.template, self.case = template, case

    def index(self, count: int) -> int:
        assert count <= 2, "candidates leave nothing else to chance"
        return self.case if count == 2 else 0

    def fraction(self) -> float:
        return 0.0 if self.case == 2 else 0.4

    def choice(self, count: int) -> int:
        return self.template % count

    def style(self, count: int) -> int:
        return self.template % count

    def subset(self, count: int, size: int) -> list[int]:
        raise AssertionError("nothing is left out")

    weighted = subset
