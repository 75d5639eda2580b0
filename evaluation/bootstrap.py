"""How far the numbers of an evaluation could be otherwise on other images: intervals by the bootstrap.

Images are drawn with replacement, each with all its expressions, because expressions of one image succeed and fail
together: drawing expressions one by one would make intervals too narrow. Sums of images are added up for all draws at
once, as one product of matrices.
"""

import numpy as np

from .metrics import ratios


# Draws of one step, so that the numbers of draws of large data sets fit into memory.
_STEP = 64

Interval = tuple[float, float]


def bootstrap_intervals(
    sums: np.ndarray, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval | None]:
    """
    Percentile intervals of every number.

    Args:
        sums (`np.ndarray`): `(images, sums)` float64, what each image adds to an evaluation, the columns by
            `reasonseg.evaluation.metrics.SUMS`.
        resamples (`int`): How often as many images as there are drawn.
        seed (`int`): Of the draws; the same seed gives the same intervals.
        level (`float`): The share of draws within an interval, in (0, 1).

    Returns:
        `dict[str, tuple[float, float] | None]`: (low, high) by the names of [`ratios`]. Draws in which a number is
        not defined are left out; None where it is in none.

    Raises:
        ValueError: If there is no image, `resamples` is less than 1 or `level` is no share.
    """
    sums = np.asarray(sums, dtype=np.float64)
    if sums.ndim != 2 or not len(sums):
        raise ValueError(f"The sums of at least one image are needed, got an array of shape {sums.shape}.")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"resamples is {resamples} and level {level}; at least 1 draw and a share in (0, 1) are needed."
        )
    draws = resampled_counts(len(sums), resamples, seed)
    totals = np.concatenate([counts @ sums for counts in draws])
    tails = [100 * (1 - level) / 2, 100 * (1 + level) / 2]
    intervals: dict[str, Interval | None] = {}
    for name, values in ratios(totals).items():
        defined = values[~np.isnan(values)]
        low, high = np.percentile(defined, tails).tolist() if len(defined) else (None, None)
        intervals[name] = None if low is None else (low, high)
    return intervals


def resampled_counts(images: int, resamples: int, seed: int):
    """Yields `(draws, images)`: how often each image is drawn, for some draws at a time."""
    generator = np.random.default_rng(seed)
    shares = np.full(images, 1 / images)
    for start in range(0, resamples, _STEP):
        yield generator.multinomial(images, shares, size=min(_STEP, resamples - start)).astype(np.float64)


__all__ = ["Interval", "bootstrap_intervals", "resampled_counts"]
