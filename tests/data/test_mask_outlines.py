"""Outlines of masks: painted again they give the mask, with its holes and parts; simplified ones say how nearly."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from reasonseg.data.mask_outlines import trace_outlines
from tests.support.labelled import BOX, CORNERS, RING


MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def painted(rings: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """By pycocotools, parts united."""
    if not rings:
        return np.zeros(size, dtype=bool)
    runs = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *size)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def even_odd(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By the crossings to the left of each pixel's centre."""
    rows, columns = np.indices(size) + 0.5
    inside = np.zeros(size, dtype=bool)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y1 != y2:
            crossing = x1 + (rows - y1) / (y2 - y1) * (x2 - x1)
            inside ^= ((y1 > rows) != (y2 > rows)) & (crossing < columns)
    return inside


@settings(max_examples=150, deadline=None)
@example(RING)
@example(CORNERS)
@given(MASKS)
def test_an_outline_per_part_gives_the_mask(mask):
    outlines = trace_outlines(mask)
    assert outlines.iou == 1.0
    np.testing.assert_array_equal(painted(outlines.rings, mask.shape), mask)
    covered = sum((even_odd(ring, mask.shape).astype(int) for ring in outlines.rings), np.zeros(mask.shape, int))
    assert covered.max() == mask.any(), "no part lies in another's outline"


@pytest.mark.timeout(20)
def test_many_parts_with_holes_take_no_time_that_grows_with_their_square():
    tile = np.pad(np.ones((3, 3), dtype=bool), 1)
    tile[2, 2] = False
    mask = np.tile(tile, (50, 50))
    outlines = trace_outlines(mask)
    assert len(outlines.rings) == 2500
    np.testing.assert_array_equal(painted(outlines.rings, mask.shape), mask)


@pytest.mark.timeout(10)
def test_many_parts_in_one_outline_take_no_time_that_grows_with_their_square():
    mask = np.random.default_rng(0).random((300, 300)) < 0.5
    (ring,) = trace_outlines(mask, joined=True).rings
    np.testing.assert_array_equal(painted([ring], mask.shape), mask)


@settings(max_examples=150, deadline=None)
@example(RING)
@example(CORNERS)
@given(MASKS)
def test_one_outline_gives_the_mask(mask):
    outlines = trace_outlines(mask, joined=True)
    assert len(outlines.rings) == mask.any()
    for ring in outlines.rings:
        np.testing.assert_array_equal(even_odd(ring, mask.shape), mask)
        np.testing.assert_array_equal(painted([ring], mask.shape), mask)


def test_parts_and_their_holes():
    rings = trace_outlines(RING).rings
    assert len(rings) == 3, "the ring with its hole, the island in it, and the other part"
    areas = sorted(int(even_odd(ring, RING.shape).sum()) for ring in rings)
    assert areas == [4, 25, 14 * 12 - 7 * 8]


@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_simplified_outlines_stay_near_and_say_how_near(tolerance):
    rows, columns = np.indices((120, 160))
    disc = (rows - 60) ** 2 / 50**2 + (columns - 80) ** 2 / 70**2 < 1
    disc &= (rows - 60) ** 2 + (columns - 80) ** 2 > 20**2
    exact = trace_outlines(disc).rings
    outlines = trace_outlines(disc, tolerance)
    assert sum(map(len, outlines.rings)) < sum(map(len, exact)) / 3
    found = painted(outlines.rings, disc.shape)
    assert outlines.iou == (found & disc).sum() / (found | disc).sum()
    assert 1 - 0.03 * tolerance < outlines.iou < 1
    corners = np.concatenate(exact)
    for corner in np.concatenate(outlines.rings):
        assert np.hypot(*(corners - corner).T).min() == 0, "corners are chosen, not moved"


def test_what_would_lose_its_area_is_not_simplified():
    outlines = trace_outlines(CORNERS, tolerance=5.0)
    np.testing.assert_array_equal(painted(outlines.rings, CORNERS.shape), CORNERS)
    assert trace_outlines(np.zeros_like(BOX), tolerance=5.0).rings == []
