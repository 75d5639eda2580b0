"""Visual prompts on images: the recorded ones to the pixel, and what holds for every box, mask and size."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from reasonseg.processing.colors import read_color
from reasonseg.processing.regions import read_region
from reasonseg.processing.segments import mask_to_rle
from reasonseg.processing.visual_prompt_sampling import PromptRandom, sample_visual_prompt
from reasonseg.processing.visual_prompts import (
    COLOR_POOL,
    SHAPE_WORDS,
    SHAPES,
    VisualPrompt,
    assign_colors,
    complete_prompt,
    describe,
    draw_visual_prompts,
    fill_placeholders,
)
from tests.support.parity_data import PARITY


RECORDED = PARITY / "vip_llava" / "visual_prompts"
RECORDING = json.loads((RECORDED / "cases.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in RECORDING["cases"]}
SHAPE_CASES = [name for name in CASES if not name.startswith("x_")]
FAILED_CASES = [name for name, case in CASES.items() if "error" in case and "string" not in name]
with np.load(RECORDED / "outputs.npz") as arrays:
    OUTPUTS = {name: arrays[name] for name in arrays.files}
ODD_CASES = [name for name in CASES if name.startswith("x_") and f"{name}.pixels" in OUTPUTS]
BOX = (20, 12, 60, 44)
POLYGON = [[20, 12, 60, 20, 48, 44, 24, 40]]


def make_image(width=90, height=64, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def disc(width=90, height=64):
    rows, columns = np.mgrid[:height, :width]
    return (columns - 40) ** 2 + (rows - 28) ** 2 < 15**2


def changed(before, after):
    return (np.asarray(before) != np.asarray(after)).any(-1)


def input_of(case):
    return Image.open(RECORDED / case["input"]).convert("RGB")


def recorded_output(case):
    pixels = np.array(input_of(case))
    mask = np.unpackbits(OUTPUTS[f"{case['name']}.changed_packed"], axis=-1, count=pixels.shape[1]).astype(bool)
    assert mask.sum() == case["changed_pixels"]
    pixels[mask] = OUTPUTS[f"{case['name']}.pixels"]
    return pixels


def sampled(case, rng):
    image = input_of(case)
    return sample_visual_prompt(
        rng,
        read_region(case["bbox_coord"], case["segmentation"]),
        (image.height, image.width),
        shape=case["shape"],
        color=tuple(case["rgb_value"]),
        style=case["visual_prompt_style"],
        alpha=case["alpha"],
        base_width=case["width"],
        anchor=case["image_size_anchor"],
    )


def replay(case):
    """The generators after the original's own draws, each of which must give the recorded value."""
    rng = PromptRandom.from_seed(case["seed_for_random_and_numpy"])
    calls = {
        "random.randint": rng.python.randint,
        "random.uniform": rng.python.uniform,
        "random.random": rng.python.random,
        "random.choice": lambda length: rng.python.choice(range(int(length[5:-1]))),
        "numpy.random.uniform": rng.numpy.uniform,
        "scipy.multivariate_normal.rvs": lambda mean, cov: rng.numpy.multivariate_normal(mean, cov).tolist(),
    }
    for entry in case["log"]:
        value = calls[entry["call"]](*entry["args"], **entry["kwargs"])
        if entry["call"] != "random.choice":  # of objects that the recording names only
            assert value == entry["value"], entry
    return rng


def states(rng):
    name, keys, *rest = rng.numpy.get_state()
    return rng.python.getstate(), name, keys.tolist(), rest


class TestRecorded:
    def test_words_and_colours(self):
        assert {name: tuple(value) for name, value in RECORDING["color_pool"].items()} == COLOR_POOL
        assert {shape: list(words) for shape, words in SHAPE_WORDS.items()} == RECORDING["words_shape"]
        assert len(SHAPE_CASES) == 24
        assert {CASES[name]["shape"] for name in SHAPE_CASES} == set(SHAPES)

    @pytest.mark.parametrize("name", SHAPE_CASES)
    def test_every_pixel(self, name):
        case = CASES[name]
        prompt = sampled(case, PromptRandom.from_seed(case["seed_for_random_and_numpy"]))
        assert np.array_equal(np.asarray(draw_visual_prompts(input_of(case), [prompt])), recorded_output(case))

    @pytest.mark.parametrize("name", SHAPE_CASES)
    def test_the_same_draws_in_the_same_order(self, name):
        case = CASES[name]
        rng = PromptRandom.from_seed(case["seed_for_random_and_numpy"])
        sampled(case, rng)
        assert states(rng) == states(replay(case))

    @pytest.mark.parametrize("name", ODD_CASES)
    def test_polygons_of_two_corners_where_the_original_did_something(self, name):
        case = CASES[name]
        if isinstance(case["segmentation"], str):
            # the original's command line passed text on, which a rectangle never looked at
            with pytest.raises(ValueError, match="Polygons were given as the string"):
                read_region(case["bbox_coord"], case["segmentation"])
            case = case | {"segmentation": None}
        prompt = sampled(case, PromptRandom.from_seed(case["seed_for_random_and_numpy"]))
        assert np.array_equal(np.asarray(draw_visual_prompts(input_of(case), [prompt])), recorded_output(case))

    @pytest.mark.parametrize("name", FAILED_CASES)
    def test_what_made_the_original_fail_is_drawn_in_the_box(self, name):
        case = CASES[name]
        image = input_of(case)
        prompt = sampled(case, PromptRandom.from_seed(case["seed_for_random_and_numpy"]))
        rows, columns = np.nonzero(changed(image, draw_visual_prompts(image, [prompt])))
        x1, y1, x2, y2 = case["bbox_coord"]
        assert x1 - 20 <= columns.min()
        assert columns.max() <= x2 + 20
        assert y1 - 20 <= rows.min()
        assert rows.max() <= y2 + 20


SIZES = st.integers(1, 72)


@st.composite
def drawings(draw):
    """An image's size, and a prompt without or with everything drawn at random."""
    width, height = draw(SIZES), draw(SIZES)
    x = sorted(draw(st.tuples(st.floats(0, width, width=32), st.floats(0, width, width=32))))
    y = sorted(draw(st.tuples(st.floats(0, height, width=32), st.floats(0, height, width=32))))
    kind = draw(st.sampled_from(["box", "whole box", "polygons", "mask", "rle"]))
    if kind == "box":
        region = {"box_xyxy": (x[0], y[0], x[1], y[1])}
    elif kind == "whole box":
        region = {"box_xyxy": tuple(int(value) for value in (x[0], y[0], x[1], y[1]))}
    elif kind == "polygons":
        corner = st.tuples(st.floats(0, width, width=32), st.floats(0, height, width=32))
        region = {"polygons": draw(st.lists(st.lists(corner, min_size=3, max_size=6), min_size=1, max_size=3))}
    else:
        generator = np.random.default_rng(draw(st.integers(0, 2**16)))
        mask = generator.random((height, width)) < draw(st.sampled_from([0.05, 0.5, 0.95]))
        mask[int(y[0]) % height, int(x[0]) % width] = True
        region = {"mask": mask} if kind == "mask" else {"rle": mask_to_rle(mask)}
    shape = draw(st.sampled_from(SHAPES))
    color = draw(st.sampled_from([*COLOR_POOL, "#123456", (9, 8, 7)]))
    alpha = draw(st.integers(0, 255))
    if draw(st.booleans()):
        return (width, height), VisualPrompt(shape, color=color, alpha=alpha, **region)
    rng = PromptRandom.from_seed(draw(st.integers(0, 2**32 - 1)))
    style = draw(st.sampled_from(["", "constant"]))
    prompt = sample_visual_prompt(
        rng,
        read_region(**region),
        (height, width),
        shape,
        color,
        style,
        alpha,
        anchor=draw(st.sampled_from([56, 336])),
    )
    return (width, height), prompt


def allowed_area(prompt, height, width):
    """Where a complete prompt may change pixels; one pixel more than the geometry says, for rounding."""
    rows, columns = np.mgrid[:height, :width]
    x1, y1, x2, y2 = prompt.region.bounds() if prompt.shape != "rectangle" else prompt.region.box_xyxy
    margin = 1.0
    if prompt.shape == "ellipse":
        ratio = (prompt.size_ratio - 1) / 2
        x1, x2, y1, y2 = x1 - ratio * (x2 - x1), x2 + ratio * (x2 - x1), y1 - ratio * (y2 - y1), y2 + ratio * (y2 - y1)
    if prompt.shape in ("rectangle", "ellipse") and min(x2 - x1, y2 - y1) < 2 * prompt.width:
        margin += prompt.width  # Pillow keeps lines as thick as they are where the shape is thinner
    elif prompt.shape in ("triangle", "scribble"):
        x1, y1 = np.min(prompt.points, axis=0)
        x2, y2 = np.max(prompt.points, axis=0)
        margin = prompt.width + 1.0
    elif prompt.shape == "point":
        ((x, y),) = prompt.points
        x_radius, y_radius = prompt.radius * prompt.aspect_ratio, prompt.radius / prompt.aspect_ratio
        x1, x2, y1, y2 = x - x_radius, x + x_radius, y - y_radius, y + y_radius
    elif prompt.shape == "mask contour":
        margin = prompt.width + 1.0
    elif prompt.shape == "arrow":
        ((x1, y1),) = ((x2, y2),) = prompt.points
        bend = np.abs(prompt.bend).max() if prompt.bend is not None else 0.0
        margin = abs(prompt.length - prompt.head_length) + prompt.head_length + bend + prompt.width + 1.0
    inside_x = (columns >= np.floor(x1 - margin)) & (columns <= np.ceil(x2 + margin))
    return inside_x & (rows >= np.floor(y1 - margin)) & (rows <= np.ceil(y2 + margin))


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawings())
def test_any_region_of_any_image(drawing):
    (width, height), prompt = drawing
    image = make_image(width, height)
    untouched = image.copy()
    result = draw_visual_prompts(image, [prompt])
    assert np.array_equal(np.asarray(image), np.asarray(untouched))
    assert (result.mode, result.size) == ("RGB", image.size)

    solid = Image.new("RGBA", image.size, (*read_color(prompt.color), prompt.alpha))
    covered = np.asarray(Image.alpha_composite(image.convert("RGBA"), solid).convert("RGB"))
    before, after = np.asarray(image), np.asarray(result)
    kept, painted = (after == before).all(-1), (after == covered).all(-1)
    assert (kept | painted).all(), "a pixel is neither the image's nor the colour laid over it once"

    complete = complete_prompt(prompt, (height, width))
    assert kept[~allowed_area(complete, height, width)].all()
    if prompt.shape == "mask" and complete.region.mask is not None:
        assert np.array_equal(after, np.where(complete.region.mask[..., None], covered, before))


class TestRegions:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(
        "region",
        [{"box_xyxy": BOX}, {"polygons": POLYGON}, {"mask": disc()}, {"rle": mask_to_rle(disc())}],
        ids=["box", "polygon", "mask", "rle"],
    )
    def test_every_shape_of_every_region(self, shape, region):
        image = make_image()
        result = draw_visual_prompts(image, [VisualPrompt(shape, color="red", **region)])
        rows, columns = np.nonzero(changed(image, result))
        assert len(rows) > 10
        # the middle of what was changed lies near the region, which is about (40, 28)
        assert abs((columns.min() + columns.max()) / 2 - 40) < 20
        assert abs((rows.min() + rows.max()) / 2 - 28) < 20

    def test_mask_and_rle_are_the_same(self):
        image = make_image()
        for shape in SHAPES:
            drawn = [
                draw_visual_prompts(image, [VisualPrompt(shape, **region)])
                for region in ({"mask": disc()}, {"rle": mask_to_rle(disc())}, {"mask": disc().astype(np.uint8) * 255})
            ]
            assert np.array_equal(np.asarray(drawn[0]), np.asarray(drawn[1]))
            assert np.array_equal(np.asarray(drawn[0]), np.asarray(drawn[2]))

    def test_the_contour_of_a_mask_surrounds_its_hole_too(self):
        mask = np.zeros((64, 90), dtype=bool)
        mask[10:50, 10:60] = True
        mask[25:35, 30:40] = False
        image = Image.new("RGB", (90, 64))
        drawn = changed(image, draw_visual_prompts(image, [VisualPrompt("mask contour", mask=mask, width=1)]))
        assert drawn[25, 29]
        assert drawn[10, 10]
        assert not drawn[30, 35]
        assert not drawn[18, 18]
        filled = changed(image, draw_visual_prompts(image, [VisualPrompt("mask", mask=mask)]))
        assert np.array_equal(filled, mask)

    def test_later_prompts_lie_above(self):
        image = Image.new("RGB", (90, 64))
        prompts = [VisualPrompt("mask", box_xyxy=BOX, color=color, alpha=255) for color in ("red", "blue")]
        assert draw_visual_prompts(image, prompts).getpixel((40, 30)) == (0, 0, 255)
        assert draw_visual_prompts(image, prompts[::-1]).getpixel((40, 30)) == (255, 0, 0)

    def test_lines_scale_with_the_image(self):
        small = complete_prompt(VisualPrompt("rectangle", box_xyxy=BOX), (64, 90))
        large = complete_prompt(VisualPrompt("rectangle", box_xyxy=BOX), (672, 336))
        assert (small.width, large.width) == (1, 6)
        assert complete_prompt(VisualPrompt("point", box_xyxy=BOX), (672, 672)).radius == 16

    def test_an_arrow_starts_where_there_is_room(self):
        for box, side in (((0, 0, 10, 10), 1), ((80, 54, 89, 63), -1)):
            image = Image.new("RGB", (90, 64))
            rows, columns = np.nonzero(
                changed(image, draw_visual_prompts(image, [VisualPrompt("arrow", box_xyxy=box)]))
            )
            center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            assert np.sign(columns.mean() - center[0]) == side
            assert np.sign(rows.mean() - center[1]) == side


class TestWords:
    def test_phrases(self):
        phrases = [describe(VisualPrompt(shape, box_xyxy=BOX, color="red")) for shape in SHAPES]
        assert phrases == [
            "within the red rectangle",
            "within the red ellipse",
            "with the red triangle",
            "at the red point",
            "with the red scribble",
            "with the red mask contour",
            "with the red mask",
            "pointed to by the red arrow",
        ]
        point = VisualPrompt("point", box_xyxy=BOX, color=(1, 2, 3))
        assert describe(point) == "at the point"
        assert describe(replace(point, color="#00ff00"), article=False) == "at point"
        assert describe(replace(point, color="Lime"), article=False) == "at lime point"

    def test_colours_tell_prompts_of_a_shape_apart(self):
        shapes = ["rectangle", "point", "rectangle", "rectangle"]
        prompts = [VisualPrompt(shape, box_xyxy=BOX) for shape in shapes]
        prompts[2] = replace(prompts[2], color="#ff0000")
        colors = [prompt.color for prompt in assign_colors(prompts)]
        assert colors == ["lime", "red", "#ff0000", "blue"]
        assert assign_colors(assign_colors(prompts)) == assign_colors(prompts)

    def test_more_prompts_than_colours(self):
        prompts = [VisualPrompt("point", box_xyxy=BOX)] * 10
        with pytest.raises(ValueError, match="more than 9 visual prompts of the shape 'point'"):
            assign_colors(prompts)

    def test_placeholders(self):
        prompts = [VisualPrompt("rectangle", box_xyxy=BOX), VisualPrompt("rectangle", box_xyxy=BOX, color="red")]
        text = fill_placeholders("Is the one <bbox0> left of the one <region 1>, <region0>?", prompts)
        assert text == (
            "Is the one within the lime rectangle left of the one within the red rectangle, within the lime rectangle?"
        )
        assert fill_placeholders("What is <bbox>, <region>?", prompts[1:]) == (
            "What is within the red rectangle, within the red rectangle?"
        )
        assert fill_placeholders("Nothing here", []) == "Nothing here"

    @pytest.mark.parametrize(
        ("text", "count", "message"),
        [("<bbox2>", 2, "2 visual prompts were given"), ("<bbox>", 2, "say which one"), ("<region 0>", 0, "0 visual")],
    )
    def test_a_placeholder_for_nothing(self, text, count, message):
        prompts = [VisualPrompt("point", box_xyxy=BOX)] * count
        with pytest.raises(ValueError, match=message):
            fill_placeholders(text, prompts)


class TestErrors:
    def test_images_beyond_the_limit(self):
        prompts = [VisualPrompt("rectangle", box_xyxy=BOX)]
        with pytest.raises(ValueError, match=f"more than the {64 * 90 - 1} allowed"):
            draw_visual_prompts(Image.new("RGB", (90, 64)), prompts, max_image_pixels=64 * 90 - 1)
        assert draw_visual_prompts(Image.new("RGB", (90, 64)), prompts, max_image_pixels=64 * 90).size == (90, 64)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"shape": "circle", "box_xyxy": BOX}, "Unknown shape 'circle'"),
            ({"shape": "point"}, "needs a box, polygons, a mask or RLE"),
            ({"shape": "point", "box_xyxy": BOX, "color": "redd"}, "The colour 'redd' was given"),
            ({"shape": "point", "box_xyxy": BOX, "color": (1, 2, 256)}, "three whole numbers in 0..255"),
            ({"shape": "point", "box_xyxy": BOX, "alpha": 256}, "alpha is 256"),
            ({"shape": "ellipse", "box_xyxy": BOX, "width": 0}, "width of a ellipse is 0"),
            ({"shape": "ellipse", "box_xyxy": BOX, "width": 2.5}, "width of a visual prompt is 2.5"),
            ({"shape": "arrow", "box_xyxy": BOX, "angle": float("inf")}, "angle of a visual prompt is inf"),
            ({"shape": "point", "box_xyxy": BOX, "points": [(1, float("nan"))]}, "must hold finite numbers"),
            ({"shape": "point", "box_xyxy": BOX, "radius": 0}, "radius of a visual prompt is 0"),
            ({"shape": "triangle", "box_xyxy": BOX, "points": [(1, 1)]}, "A triangle takes 3 points"),
            ({"shape": "point", "box_xyxy": BOX, "anchor": 0}, "anchor is 0"),
            ({"shape": "mask", "mask": np.zeros((4, 4))}, "is empty"),
            ({"shape": "mask", "mask": np.ones((1, 4, 4))}, "has the shape"),
            ({"shape": "mask", "mask": disc(), "polygons": POLYGON}, "polygons and mask"),
            ({"shape": "mask", "polygons": []}, "list of polygons of a region is empty"),
            ({"shape": "mask", "polygons": [[1, 2, 3]]}, "A polygon of shape"),
            ({"shape": "mask", "polygons": [[1, 2]]}, "has 1 corners"),
            ({"shape": "mask", "rle": {"counts": "abc"}}, "dict with size and counts"),
            ({"shape": "mask", "rle": {"size": [2, 2], "counts": [1, 2]}}, "sum up to 3"),
            ({"shape": "mask", "box_xyxy": (5, 5, 1, 9)}, "ends before it begins"),
            ({"shape": "mask", "box_xyxy": (1, 2, 3)}, "four finite numbers"),
            ({"shape": "mask", "box_xyxy": (1, 2, 3, float("nan"))}, "four finite numbers"),
        ],
    )
    def test_refused_at_once(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            VisualPrompt(**arguments)

    def test_regions_of_another_image(self):
        with pytest.raises(ValueError, match="lies outside the image of 90 x 64"):
            draw_visual_prompts(make_image(), [VisualPrompt("point", box_xyxy=(91, 3, 99, 9))])
        with pytest.raises(ValueError, match="The mask of a visual prompt is 90 x 64 pixels, the image 64 x 90"):
            draw_visual_prompts(make_image(64, 90), [VisualPrompt("mask", mask=disc())])

    def test_shapes_are_read_as_people_write_them(self):
        assert VisualPrompt("Mask-Contour", box_xyxy=BOX).shape == "mask contour"


def test_equal_prompts():
    first, second = (VisualPrompt("mask", mask=disc(), color=(1, 2, 3)) for _ in range(2))
    assert first == second
    assert first != replace(second, mask=~disc())
    assert first != replace(second, alpha=3)
    assert first != "mask"
    polygons = [VisualPrompt("mask", polygons=kind) for kind in (POLYGON, [np.reshape(POLYGON[0], (-1, 2))])]
    assert polygons[0].region.polygons[0].tolist() == polygons[1].region.polygons[0].tolist()
