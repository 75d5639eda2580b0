"""Random visual prompts: seeded, in the original's ranges, told apart where several stand in one image."""

from collections import Counter

import pytest

from reasonseg.processing.regions import read_region
from reasonseg.processing.visual_prompt_sampling import (
    PromptRandom,
    PromptStyle,
    sample_color,
    sample_paired_styles,
    sample_styles,
    sample_visual_prompt,
)
from reasonseg.processing.visual_prompts import COLOR_POOL, SHAPES


REGION = read_region((100, 80, 220, 200))
SIZE = (336, 336)


def sample(seed, **options):
    return sample_visual_prompt(PromptRandom.from_seed(seed), REGION, SIZE, **options)


def test_the_seed_decides():
    assert sample(3) == sample(3)
    assert len({repr(sample(seed)) for seed in range(20)}) == 20


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [
        ("rectangle", 2, 8),
        ("ellipse", 2, 8),
        ("triangle", 2, 8),
        ("scribble", 2, 12),
        ("mask contour", 1, 2),
        ("arrow", 1, 6),
    ],
)
def test_widths(shape, low, high):
    widths = {sample(seed, shape=shape).width for seed in range(200)}
    assert widths == set(range(low, high + 1))
    assert sample(0, shape=shape, base_width=5).width == 5


def test_opacity():
    for shape, low, high in (("mask", 48, 128), ("point", 96, 255)):
        alphas = [sample(seed, shape=shape).alpha for seed in range(300)]
        assert low <= min(alphas) < low + 10
        assert high - 10 < max(alphas) <= high


def test_points():
    points = [sample(seed, shape="point") for seed in range(200)]
    assert {point.radius for point in points} == set(range(5, 21))
    assert 60 < sum(point.aspect_ratio == 1.0 for point in points) < 140
    assert all(0.5 <= point.aspect_ratio <= 2.0 for point in points)
    constant = sample(1, shape="point", style="constant")
    assert (constant.radius, constant.aspect_ratio) == (8, 1.0)
    assert sample(1, shape="rectangle", style="constant").width == 3


def test_a_mask_that_is_almost_nothing_still_gives_a_triangle():
    line = read_region(polygons=[[10, 10, 200, 10, 100, 10]])
    prompt = sample_visual_prompt(PromptRandom.from_seed(0), line, SIZE, "triangle")
    assert [y for _, y in prompt.points] == [10, 10, 10]


def test_styles_are_told_apart():
    for seed in range(100):
        styles = sample_styles(PromptRandom.from_seed(seed), 6)
        assert len(styles) == 6
        often = {shape for shape, times in Counter(style.shape for style in styles).items() if times > 1}
        named = [(style.shape, style.color_name) for style in styles if style.shape in often]
        assert len(set(named)) == len(named)
        assert all(name in COLOR_POOL for _, name in named)
    alone = [sample_styles(PromptRandom.from_seed(seed), 1)[0].color_name for seed in range(100)]
    assert 30 < alone.count(None) < 70


def test_more_regions_than_colours():
    styles = sample_styles(PromptRandom.from_seed(0), 11, ["point"])
    assert sum(style.color_name is not None for style in styles) == 9
    assert styles[-1].color_name is None


def test_pairs():
    for seed in range(50):
        shared = sample_paired_styles(PromptRandom.from_seed(seed), 2, SHAPES)
        assert shared[0].color == shared[1].color
        first, second = sample_paired_styles(PromptRandom.from_seed(seed), 2, ["rectangle"], tell_apart=True)
        assert first.color != second.color
        assert {first.color, second.color} <= set(COLOR_POOL)


def test_colours():
    colors = [sample_color(PromptRandom.from_seed(seed)) for seed in range(200)]
    assert 70 < sum(isinstance(color, str) for color in colors) < 130
    assert all(isinstance(sample_color(PromptRandom.from_seed(seed), unnamed=0.0), str) for seed in range(20))


def test_phrases_of_styles():
    assert PromptStyle("arrow", "gold").describe() == "pointed to by the gold arrow"
    assert PromptStyle("arrow", (1, 2, 3)).describe(article=False) == "pointed to by arrow"


def test_errors():
    with pytest.raises(ValueError, match="Unknown style 'thick'"):
        sample(0, style="thick")
    with pytest.raises(ValueError, match="lies outside the image"):
        sample_visual_prompt(PromptRandom.from_seed(0), read_region((400, 1, 410, 9)), SIZE)
