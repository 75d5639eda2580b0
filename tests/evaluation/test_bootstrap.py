"""Intervals over images against a plain loop, and what they mean."""

import numpy as np
import pytest

from reasonseg.evaluation.bootstrap import bootstrap_intervals, resampled_counts
from reasonseg.evaluation.metrics import SUMS, SegmentationMetrics, numbers_of


def sums_of_images(images: int, seed: int = 0) -> np.ndarray:
    """What images with one to four random masks add, some targets absent."""
    generator, sums = np.random.default_rng(seed), []
    for _ in range(images):
        metrics, count = SegmentationMetrics("grefcoco"), int(generator.integers(1, 5))
        masks, targets = generator.random((2, count, 6, 6)) < generator.random((2, count, 1, 1))
        targets[generator.random(count) < 0.3] = False
        metrics.update(masks, targets, generator.random(count) < 0.4)
        sums.append(metrics.state_tensor()[0].numpy())
    return np.stack(sums)


def test_intervals_are_those_of_a_plain_loop():
    sums, resamples = sums_of_images(12), 150
    drawn = []
    for counts in np.concatenate(list(resampled_counts(12, resamples, seed=3))):
        total = np.zeros(len(SUMS))
        for image, count in enumerate(counts):
            for _ in range(int(count)):
                total += sums[image]
        drawn.append(numbers_of(total))
    for name, interval in bootstrap_intervals(sums, resamples, seed=3).items():
        values = [numbers[name] for numbers in drawn if numbers[name] is not None]
        assert interval == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-12), name


def test_the_seed_decides_and_every_draw_has_as_many_images():
    sums = sums_of_images(30)
    assert bootstrap_intervals(sums, 200, seed=1) == bootstrap_intervals(sums, 200, seed=1)
    assert bootstrap_intervals(sums, 200, seed=1) != bootstrap_intervals(sums, 200, seed=2)
    counts = np.concatenate(list(resampled_counts(30, 130, 0)))
    assert counts.shape == (130, 30)
    assert (counts.sum(1) == 30).all()


def test_intervals_have_the_width_of_the_standard_error():
    sums = np.zeros((400, len(SUMS)))
    ious = np.random.default_rng(0).random(400)
    sums[:, SUMS.index("masks")], sums[:, SUMS.index("iou")] = 1, ious
    low, high = bootstrap_intervals(sums, 2000)["giou"]
    assert (high - low) / 2 == pytest.approx(1.96 * ious.std() / 20, rel=0.08)
    # expressions of one image rise and fall together: ten of them tell no more than one
    assert bootstrap_intervals(10 * sums, 2000)["giou"] == pytest.approx((low, high), abs=1e-6)


def test_what_is_not_defined_has_no_interval():
    sums = sums_of_images(5)
    sums[:, [SUMS.index("absent_rejected"), SUMS.index("absent_kept")]] = 0
    assert bootstrap_intervals(sums, 50)["n_acc"] is None
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap_intervals(np.zeros((0, len(SUMS))))
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_intervals(sums, 0)
