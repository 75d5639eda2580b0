"""Random numbers for weights that have learned nothing yet: the same for the same seed, on every machine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch


Distribution = Literal["normal", "uniform"]
_PIECE = 1 << 22  # numbers that are drawn at once


@dataclass(frozen=True)
class Drawing:
    """Independent numbers around 0.

    They are drawn by NumPy's PCG64, whose numbers, unlike those of torch, do not depend on the processor.

    Args:
        distribution (`str`): `"normal"` or `"uniform"`.
        scale (`float`): The standard deviation of a normal distribution; the largest absolute value of a uniform one.
        seed (`int`): From 0 to 2 ** 64 - 1.
    """

    distribution: Distribution
    scale: float
    seed: int

    def draw(self, shape: tuple[int, ...]) -> torch.FloatTensor:
        """A tensor of that shape."""
        generator, count = np.random.Generator(np.random.PCG64(self.seed)), math.prod(shape)
        drawn = np.empty(count, dtype=np.float32)
        for start in range(0, count, _PIECE):
            piece = drawn[start : start + _PIECE]
            if self.distribution == "normal":
                generator.standard_normal(out=piece, dtype=np.float32)
            else:
                generator.random(out=piece, dtype=np.float32)
                piece *= 2
                piece -= 1
        drawn *= np.float32(self.scale)
        return torch.from_numpy(drawn).reshape(shape)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"distribution": self.distribution, "scale": self.scale, "seed": self.seed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Drawing:
        """The inverse of `to_json`.

        Raises:
            ValueError: It describes no drawing.
        """
        if not isinstance(data, Mapping) or set(data) != {"distribution", "scale", "seed"}:
            raise ValueError(f"{data!r} is no drawing")
        scale, seed = data["scale"], data["seed"]
        if data["distribution"] not in get_args(Distribution) or not isinstance(scale, int | float):
            raise ValueError(f"{data!r} is no drawing")
        if type(seed) is not int or not 0 <= seed < 1 << 64:
            raise ValueError(f"the seed is {seed!r}")
        return cls(data["distribution"], float(scale), seed)


def seed_of(seed: int, name: str) -> int:
    """The seed of one tensor: those of a model have nothing in common, and none depends on the order of the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")
