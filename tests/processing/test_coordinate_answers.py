"""Whatever can be read of an answer: inside the image, with a word on what was put right, and never an exception."""

import json
import string
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reasonseg.processing.coordinate_answers import (
    BARE_NUMBERS,
    BEFORE_THE_END,
    CLIPPED,
    CUT_OFF,
    FRACTIONS,
    MAX_CHARACTERS,
    MORE_NUMBERS,
    NO_LIST,
    NO_TAGS,
    NOT_EVEN,
    NOT_JSON,
    NOT_WHOLE,
    NOTHING,
    NUMBERS_AS_TEXT,
    SWAPPED,
)
from reasonseg.processing.coordinate_formats import BOX_ALONE, COORDINATE_FORMATS, POINTS_ALONE
from reasonseg.processing.published_answers import ImageSizes
from tests.processing.test_published_answers import CASES


SIZES = ImageSizes((420, 1680), (840, 840))  # x doubles, y halves


def read(text: str, name: str = "vision_reasoner", sizes: ImageSizes = SIZES, **options):
    return COORDINATE_FORMATS[name].read(text, sizes, **options)


def only(answer):
    assert len(answer.objects) == 1, answer
    return answer.objects[0]


class TestObjects:
    def test_box_point_label_and_place(self):
        written = '{"bbox_2d": [10, 20, 30, 40], "point_2d": [15, 30], "label": "cup"}'
        text = f"<think>It is < 3 cm.</think> <answer>[{written}]</answer>"
        answer = read(f"\n{text}\n")
        found = only(answer)
        assert found.box_xyxy == (20, 10, 60, 20)
        assert found.points_xy == ((30, 15),)
        assert found.point_labels == (1,)
        assert found.label == "cup"
        assert found.repairs == ()
        assert answer.problems == ()
        assert text[slice(*found.span)] == written
        assert answer.text == text
        assert answer.thinking == "It is < 3 cm."
        assert text[slice(*answer.span)] == f"[{written}]"

    @pytest.mark.parametrize("answer", ["[]", "", "[{}]", "null", "There is no such object."])
    def test_nothing_is_said(self, answer):
        found = read(f"<think>x</think><answer>{answer}</answer>")
        assert found.objects == ()
        assert found.problems == (NOTHING,)

    def test_a_box_alone_and_points_alone(self):
        answer = read('<answer>[{"bbox_2d": [0, 0, 4, 4]}, {"points": [[1, 2], [3, 4]]}]</answer>')
        assert [one.box_xyxy for one in answer.objects] == [(0, 0, 8, 2), None]
        assert [one.points_xy for one in answer.objects] == [(), ((2, 1), (6, 2))]
        assert [one.repairs for one in answer.objects] == [(BOX_ALONE,), (POINTS_ALONE,)]

    def test_lists_of_boxes_and_points(self):
        """Each box of a list is an object, with its own point and label where there are as many."""
        boxes, corners = "[[0, 0, 4, 4], [2, 4, 6, 8]]", [(0, 0, 8, 2), (4, 2, 12, 4)]
        for inside, points, labels in (
            (f'{{"bounding_boxes": {boxes}, "label": "cups"}}', [(), ()], ["cups", "cups"]),
            (f"{{'boxes': {boxes}, 'label': 'cups',}}", [(), ()], ["cups", "cups"]),
            (
                f'{{"boxes": {boxes}, "points": [[1, 2], [3, 4]], "label": ["a", "b"]}}',
                [((2, 1),), ((6, 2),)],
                ["a", "b"],
            ),
            (f'{{"boxes": {boxes}, "points": [[1, 2]], "box_format": "xyxy"}}', [(), ()], [None, None]),
            (
                '{"boxes": [{"bbox_2d": [0, 0, 4, 4], "label": "a"}, {"bbox_2d": [2, 4, 6, 8]}], "num_points": 0}',
                [(), ()],
                ["a", None],
            ),
        ):
            found = read(f"<answer>[{inside}]</answer>").objects
            assert [one.box_xyxy for one in found] == corners, inside
            assert [one.points_xy for one in found] == points
            assert [one.label for one in found] == labels
            assert all((NOT_EVEN in one.repairs) == ("[[1, 2]]" in inside) for one in found)
        corners = only(read('<answer>[{"bbox_2d": [[0, 0], [4, 4]], "points": [[1, 2], [3, 4]]}]</answer>'))
        assert (corners.box_xyxy, corners.points_xy) == ((0, 0, 8, 2), ((2, 1), (6, 2)))
        cut = read('<answer>[{"boxes": [[0, 0, 4, 4], [2, 4, 6, 8')
        assert only(cut).box_xyxy == (0, 0, 8, 2)

    @pytest.mark.parametrize(
        ("inside", "repair"),
        [
            ('[{"bbox_2d": [30, 40, 10, 20]}]', SWAPPED),
            ('[{"bbox_2d": [10, 20, 9000, 40]}]', CLIPPED),
            ('[{"bbox_2d": [10, 20, 30, 40, 50]}]', MORE_NUMBERS),
            ('[{"bbox_2d": ["10", 20, "30", 40]}]', NUMBERS_AS_TEXT),
            ("[{'bbox_2d': [10, 20, 30, 40]}]", NOT_JSON),
            ('[{"bbox_2d": [10, 20, 30, 40}]', NOT_JSON),
            ('[{"bbox_2d": [10, 20, 30, 40], "point_2d": [5', CUT_OFF),
            ("[10, 20, 30, 40]", BARE_NUMBERS),
            ('[{"bbox_2d": "10, 20, 30, 40"}]', NUMBERS_AS_TEXT),
            ('[{"bbox_2d": ["(10, 20)", "(30, 40)"], "box_format": "xyxy"}]', NUMBERS_AS_TEXT),
            ("[{'bbox_2d': ((10, .2e2), (30, 40))}]", NOT_JSON),
            ("[{bbox_2d: [10, .2e2, 30, 40]}]", NOT_JSON),
        ],
    )
    def test_repairs_are_said(self, inside, repair):
        found = only(read(f"<answer>{inside}</answer>"))
        assert found.repairs == (repair, BOX_ALONE)
        assert found.box_xyxy == (20, 10, 1680 if repair == CLIPPED else 60, 20)

    @pytest.mark.parametrize(
        "inside",
        [
            """{'label': 'it\\'s {a} "cup"', 'bbox_2d': [10, 20, 30, 40,], 'point_2d': [7, 8]}""",
            """{"label": "it's {a} \\"cup\\"", "bbox_2d": [10, 20, 30, 40], "point_2d": (7, 8), "sure": None}""",
            """{"label": "it's {a} \\"cup\\"", "x1": 10, "y1": 20, "x2": 30, "y2": 40, "point": {"x": 7, "y": 8}}""",
            """{"box": {"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 40}, "points": "7 8",
            "label": "it's {a} \\"cup\\""}""",
        ],
    )
    def test_other_spellings_of_an_object(self, inside):
        found = only(read(f"<answer>[{inside}]</answer>"))
        assert (found.box_xyxy, found.points_xy) == ((20, 10, 60, 20), ((14, 4),))
        assert found.label == """it's {a} "cup\""""
        cut = only(read("""<answer>[{"label": "a \\"cup\\"", "bbox_2d": [10, 20, 30, 40], "point_2d": [7, 8"""))
        assert (cut.label, cut.box_xyxy) == ('a "cup"', (20, 10, 60, 20))

    def test_labels_of_points_and_of_boxes_are_no_coordinates(self):
        points = '"points": [[1, 2], [9000, 9000], [3, 4]]'
        for written, labels in (("[1, 1, 0]", (1, 0)), ("[0, 1]", (1, 1)), ("[2, 1, 0]", (1, 1)), ("null", (1, 1))):
            found = only(read(f'<answer>[{{{points}, "point_labels": {written}, "bbox_label": "cup"}}]</answer>'))
            assert (found.points_xy, found.point_labels, found.label) == (((2, 1), (6, 2)), labels, "cup")
        apart = '"positive_points": [[1, 2]], "negative_points": [[3, 4]]'
        for written in (apart, '"points": [[1, 2], [3, 4]], "labels": [1, 0]'):
            found = only(read(f'<answer>[{{{written}, "label": "cup"}}]</answer>'))
            assert (found.points_xy, found.point_labels) == (((2, 1), (6, 2)), (1, 0))
        assert "nothing says where it is" in read('<answer>[{"negative_points": [[3, 4]]}]</answer>').problems[0]
        for key in ("box_labels", "labels"):
            both = read(f'<answer>[{{"boxes": [[0, 0, 4, 4], [2, 4, 6, 8]], "{key}": ["a", "b"]}}]</answer>').objects
            assert [one.label for one in both] == ["a", "b"]
        assert read('<answer>[{"x": 1, "y": 2, "w": 3, "h": 4}]</answer>').objects == ()

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('<think>x</think>[{"bbox_2d": [10, 20, 30, 40]}]', NO_TAGS),
            ('<answer>{"bbox_2d": [10, 20, 30, 40]}</answer>', NO_LIST),
            ('<answer>Here: [{"bbox_2d": [10, 20, 30, 40]},]</answer>', NOT_WHOLE),
            ('<answer>[{"bbox_2d": [10, 20, 30, 40]}]', "the answer does not end"),
            ('<answer>[{"bbox_2d": [10, 20, 30, 40]}]</answer><answer>[]</answer>', "a second answer was left out"),
            ('<think>x<answer>[{"bbox_2d": [10, 20, 30, 40]}]</answer></think>\n', BEFORE_THE_END),
            ('<answer>[{"bbox_2d": [10, 20, 30, 40]}]</answer> So <think>x</think> it is.', BEFORE_THE_END),
            ('x<answer>[{"bbox_2d": [10, 20, 30, 40]}]</answer></think>', BEFORE_THE_END),
        ],
    )
    def test_problems_are_said(self, text, problem):
        answer = read(text)
        assert only(answer).box_xyxy == (20, 10, 60, 20)
        assert answer.problems == (problem,)
        assert answer.thinking == "x" * ("think>" in text)

    def test_a_last_number_that_was_cut_is_not_taken(self):
        answer = read('<answer>[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [50, 60, 70, 8')
        assert only(answer).box_xyxy == (20, 10, 60, 20)
        assert answer.problems[-1] == """'{"bbox_2d": [50, 60, 70, 8' could not be read: it does not end"""
        quoted = read("<answer>[{“bbox_2d”: [10, 20, 30, 40]}]</answer>")
        assert (only(quoted).box_xyxy, quoted.problems[0][-21:]) == ((20, 10, 60, 20), ": it is no valid JSON")
        complete = read('<answer>[{"bbox_2d": [10, 20, 30, 40], "poi')
        assert only(complete).box_xyxy == (20, 10, 60, 20)

    def test_a_chain_of_thought_without_an_answer_is_not_read(self):
        answer = read('<think>perhaps [{"bbox_2d": [10, 20, 30, 40]}] but')
        assert answer.objects == ()
        assert answer.thinking.startswith("perhaps")
        assert answer.problems == ("the model did not come to an end of its thinking", NOTHING)
        for thought in ('in <answer> tags, not {"point_2d": [1, 2]}', '<answer>[{"point_2d": [1, 2]}]</answer>? No.'):
            assert read(f"<think>{thought}</think>There is none.").objects == ()

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e300", "1e999", "true", "null", "1" * 5000])
    def test_what_is_no_number_of_a_coordinate(self, number):
        answer = read(f'<answer>[{{"bbox_2d": [{number}, 1, 2, 3], "point_2d": [1, 2]}}]</answer>')
        found = only(answer)
        assert found.box_xyxy is None
        assert found.points_xy == ((2, 1),)
        assert found.repairs

    def test_a_point_far_outside_is_left_out_and_said(self):
        answer = read('<answer>[{"point_2d": [2000, 10]}, {"point_2d": [850, 10]}]</answer>')
        assert only(answer).points_xy == ((1679, 5),)
        assert "outside" in answer.problems[0]

    def test_objects_are_limited(self):
        objects = ", ".join(['{"bbox_2d": [1, 2, 3, 4]}'] * 9)
        answer = read(f"<answer>[{objects}]</answer>", max_objects=4)
        assert len(answer.objects) == 4
        assert answer.problems == ("only the first 4 objects were read",)

    def test_length_is_limited(self):
        answer = read("<answer>" + "[" * MAX_CHARACTERS + '[{"bbox_2d": [1, 2, 3, 4]}]</answer>')
        assert answer.objects == ()
        assert f"{MAX_CHARACTERS}" in answer.problems[0]

    def test_fractions(self):
        found = only(
            read('```json\n[{"bbox_2d": [0.1, 0.2, 0.5, 1.0]}]\n```', "qwen3_vl", ImageSizes((50, 200), (1, 1)))
        )
        assert found.box_xyxy == (20, 10, 100, 50)
        assert found.repairs == (FRACTIONS,)

    def test_internvl_labels_and_molmo_spellings(self):
        sizes = ImageSizes((100, 200), (100, 200))
        answer = read("<ref>cup</ref><box>[[0, 0, 500, 500], [1, 1, 9", "internvl", sizes)
        assert only(answer).label == "cup"
        assert only(answer).box_xyxy == (0, 0, 100, 50)
        assert answer.problems == ("'[1, 1, 9' could not be read: box left out: it does not end",)
        for name in ("internvl", "qwen3_vl"):
            assert only(read("the cup(0, 0),(500,500)", name, sizes)).box_xyxy == (0, 0, 100, 50)
        for text in ("<point y='20.0' x='10.0' alt=\"cup\">cup</point>", "Click(10.0, 20.0)", "p=100,200"):
            assert only(read(text, "molmo", sizes)).points_xy == ((20, 20),)
        many = read('<points x1="10" y1="20" x2="30" y2="40" alt="cups">cups</points>', "molmo", sizes)
        assert [one.points_xy for one in many.objects] == [((20, 20),), ((60, 40),)]
        assert {one.label for one in many.objects} == {"cups"}
        cut = read('<points x1="10" y1="20" x2="30" y2="4', "molmo", sizes)
        assert only(cut).points_xy == ((20, 20),)
        assert "one of its two numbers is missing" in cut.problems[0]


def dialect_of(case: dict) -> str:
    name = case["id"].partition("-")[0]
    if name == "star":
        return "star_qwen3" if "qwen3" in case["id"] else "star"
    return {"qwen2_5": "qwen2_5_vl", "qwen3": "qwen3_vl"}.get(name, name)


def test_more_is_read_than_published_code_reads_and_it_is_said():
    """Where both read an answer as it is written they agree up to the rounding of pixels."""
    more = 0
    for case in CASES:
        name = dialect_of(case)
        known = COORDINATE_FORMATS[name]
        width, height = case["image_size"]
        sizes = ImageSizes((height, width), known.image_size or tuple(case["seen"] or (height, width)))
        fixed, paper = (known.read(case["answer"], sizes, reading) for reading in ("fixed", "paper"))
        if len(fixed.objects) > len(paper.objects):
            more += 1
            # Of quotes, the order of attributes and names of keys nothing is said.
            if not case["id"].startswith(("molmo", "internvl", "seg_zero", "star-label-missing")):
                assert fixed.problems or any(one.repairs for one in fixed.objects), case["id"]
        # InternVL's evaluation takes whole numbers, too, for fractions where their sum is below 4.
        if len(fixed.objects) == len(paper.objects) and not fixed.problems and case["id"] != "internvl-tiny-sum":
            for one, other in zip(fixed.objects, paper.objects, strict=True):
                if set(one.repairs) - {BOX_ALONE}:
                    continue
                for value, expected in zip(one.box_xyxy or (), other.box_xyxy or (), strict=True):
                    assert abs(value - expected) <= 1.5, case["id"]
    assert more >= 25


# Pieces of which answers are made, in any order.
PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "<answer>", "</answer>", "```json", "```", "[", "]", "{", "}", ",", ":", '"', "'"),
        *('"bbox_2d"', '"point_2d"', '"label"', "bbox", "[1, 2, 3, 4]", "[5,6]", "<ref>a</ref>", "<box>", "</box>"),
        *('<point x="1" y="2">', '<points x1="101" y1="-3"', "(1.5, 2.5)", "NaN", "1e999", "-7", "0.5", "\\", "\n"),
    ]
)
CHARACTERS = string.printable + "é—ß\u2028\ufffd\U0001f600"
TEXTS = st.one_of(st.text(CHARACTERS), st.lists(PIECES, max_size=40).map("".join))
SIDES = st.integers(1, 5000)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", COORDINATE_FORMATS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS, height=SIDES, width=SIDES, seen=st.tuples(SIDES, SIDES))
@example(text='[{"bbox_2d": [1, 2, 3, 4], "label": "\\ud83d"}]', height=5, width=5, seen=(5, 5))
@example(text="{" * 3000, height=5, width=5, seen=(5, 5))
@example(text='{"point_2d": [1, 2]}', height=5, width=5, seen=(5, 5))
@example(text='<answer>[{"bbox_2d": [0, 0, 0, 0], "point_2d": [1, 2]}]</answer>', height=5, width=5, seen=(5, 5))
@example(text="[{'bbox_2d': [1, 2, 3], 'label': []}, {'bbox_2d': [1e999] * 4}]", height=5, width=5, seen=(5, 5))
@example(text='[{"bbox_2d": [1, 2, 3, 4, 5], "point_2d": [1]}]', height=5, width=5, seen=(5, 5))
@example(text="[{'label': '\\d', 'bbox_2d': [1, 2, 3, 1or 2]}]", height=5, width=5, seen=(5, 5))
@example(text="[1e999, 1, 1, 1]", height=5, width=5, seen=(5, 5))
@example(text="[" * 30000, height=5, width=5, seen=(5, 5))
@example(text='{"a":' * 3000, height=5, width=5, seen=(5, 5))
def test_any_text_is_read(name, text, height, width, seen):
    known, sizes = COORDINATE_FORMATS[name], ImageSizes((height, width), seen)
    answer = known.read(text, sizes)
    assert answer.text == text.strip()
    assert answer.error is None
    assert answer.objects or answer.problems
    for found in answer.objects:
        assert found.label is None or found.label.encode()
        assert found.box_xyxy is not None or found.points_xy
        if found.box_xyxy is not None:
            left, top, right, bottom = found.box_xyxy
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
        assert len(found.points_xy) == len(found.point_labels)
        assert all(0 <= x <= width - 1 and 0 <= y <= height - 1 for x, y in found.points_xy)
        assert 0 <= found.span[0] < found.span[1] <= len(answer.text)
    for reading in ("paper", *known.published):
        published = known.read(text, sizes, reading)
        assert published.objects if published.error is None and not published.problems else published.problems
        assert published.error is None or not published.objects
        for found in published.objects:
            assert found.label is None or found.label.encode()
            assert len(found.points_xy) == len(found.point_labels)
            numbers = [*(found.box_xyxy or ()), *(value for point in found.points_xy for value in point)]
            assert len(numbers) == 4 * (found.box_xyxy is not None) + 2 * len(found.points_xy) > 0
            assert torch.tensor(numbers).float().mul(1024).isfinite().all()


# What expressions that begin anywhere would read on from again and again.
LONG = {
    "molmo": ["1" * 50_000, "(1" + " " * 50_000, "p=" * 25_000],
    "seg_zero": ["{" * 50_000, "{}" * 25_000],
    "star": [
        *('<answer>"point_2d":[' + '"point_2d":[' * 4000 + ending + "</answer>" for ending in ("", "]", "}")),
        "<answer>" + '"bbox_2d":["' * 4000 + "</answer>",
        "<answer>" + '"point_2d":[} ' * 3000 + "} ]</answer>",
    ],
    "internvl": [
        "<ref>" * 10_000,
        "<ref></ref><box>[[" * 2500 + "]]</box>",
        "<ref>\n</ref><box>[[" * 2500 + "]]</box>",
    ],
}


@pytest.mark.parametrize("name", LONG)
def test_long_texts_take_no_long_time(name):
    """Quadratic ones take 1.5 s and more each, on a processor that takes 0.02 s for these."""
    known, began = COORDINATE_FORMATS[name], time.process_time()
    for text in LONG[name]:
        for reading in ("fixed", *known.published):
            known.read(text, SIZES, reading)
    assert time.process_time() - began < 1.0


@settings(max_examples=60, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARACTERS, max_size=5),
        lambda inner: (
            st.lists(inner, max_size=6)
            | st.dictionaries(
                st.sampled_from(["bbox_2d", "point_2d", "points", "label", "point_labels", "x", "y"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_is_read(value):
    answer = read(f"<answer>{json.dumps(value)}</answer>")
    assert all(0 <= one.span[0] < one.span[1] for one in answer.objects)
