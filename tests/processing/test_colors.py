import numpy as np
import pytest

from reasonseg.processing.colors import read_color


@pytest.mark.parametrize(
    "color",
    ["#0a141e", "rgb(10, 20, 30)", (10, 20, 30), [10.0, 20, 30], np.array([10, 20, 30], dtype=np.uint8)],
    ids=str,
)
def test_every_form(color):
    assert read_color(color) == (10, 20, 30)
    assert all(type(value) is int for value in read_color(color))
    assert read_color(color, whole=False) == (10.0, 20.0, 30.0)


def test_names_are_those_of_css():
    assert read_color("Gold") == (255, 215, 0)


def test_fractions_only_where_pixels_are_mixed():
    assert read_color((0.5, 2, 255), whole=False) == (0.5, 2.0, 255.0)
    with pytest.raises(ValueError, match=r"The colour \(0.5, 2, 255\) was given. Give three whole numbers"):
        read_color((0.5, 2, 255))


@pytest.mark.parametrize(
    "color",
    ["greenish", "", (0, 0), (0, 0, 0, 0), (0, 0, 256), (-1, 0, 0), (0, 0, float("nan")), ("a", 0, 0), None, 7],
    ids=repr,
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_no_colour(color, whole):
    with pytest.raises(ValueError, match="red, green, blue"):
        read_color(color, whole)
