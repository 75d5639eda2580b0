"""Polygons painted as OpenCV 4.10 painted them."""

import numpy as np
import pytest

from reasonseg.data.polygon_painting import paint_polygon
from tests.support.recorded_data_sets import recorded, recorded_arrays


def painted(corners, size):
    mask = np.zeros(size, dtype=bool)
    part, inside = paint_polygon(np.array(corners), size)
    mask[part] = inside
    return mask


@pytest.mark.parametrize("index", range(len(recorded("polygons"))))
def test_recorded_polygons_are_painted_pixel_for_pixel(index):
    polygon = recorded("polygons")[index]
    height, width = polygon["size"]
    expected = np.unpackbits(recorded_arrays("polygons")[str(index)], count=height * width).reshape(height, width)
    mask = painted(np.trunc(polygon["points"]).astype(int), (height, width))
    assert mask.sum() == polygon["pixels"]
    np.testing.assert_array_equal(mask, expected.astype(bool))


def test_one_corner_is_a_dot_and_two_are_a_line():
    assert np.argwhere(painted([[2, 1]], (3, 4))).tolist() == [[1, 2]]
    assert np.argwhere(painted([[0, 0], [3, 1]], (3, 4))).tolist() == [[0, 0], [0, 1], [1, 2], [1, 3]]
    assert np.argwhere(painted([[1, 0], [1, 9]], (3, 4))).tolist() == [[0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize("corners", [[[-5, -5]], [[-9, 2], [-3, 7]], [[10, 0], [20, 5], [12, 9]], [[0, -9], [3, -2]]])
def test_nothing_is_painted_outside(corners):
    assert not painted(corners, (5, 6)).any()


def test_a_polygon_around_the_image_covers_it():
    assert painted([[-100, -100], [100, -100], [100, 100], [-100, 100]], (5, 6)).all()


def test_far_corners_do_not_overflow():
    far = 2**31 - 1
    assert painted([[-far, -far], [far, -far], [far, far], [-far, far]], (5, 6)).all()


def test_crossings_leave_holes():
    """The outline of a square run twice, the second time smaller, is filled by the even-odd rule."""
    ring = [[0, 0], [20, 0], [20, 20], [0, 20], [0, 0], [6, 6], [14, 6], [14, 14], [6, 14], [6, 6]]
    mask = painted(ring, (21, 21))
    assert mask[3, 10]
    assert not mask[10, 10]


def test_where_a_polygon_lies_does_not_matter_inside_the_image():
    generator = np.random.default_rng(0)
    for _ in range(50):
        corners = generator.integers(0, 40, (generator.integers(1, 9), 2))
        near, far = painted(corners, (40, 40)), painted(corners + np.array([11, 7]), (60, 60))
        np.testing.assert_array_equal(far[7:47, 11:51], near)
        assert far.sum() == near.sum()
