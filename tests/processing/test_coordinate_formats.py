"""What models are asked for coordinates, and numbers that come back to the pixels they were made of."""

import hashlib
import pickle
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from reasonseg.processing.coordinate_answers import NOTHING, ONLY_OBJECTS, CoordinateObject
from reasonseg.processing.coordinate_formats import COORDINATE_FORMATS, CoordinateReader, format_of_vlm
from reasonseg.processing.published_answers import PUBLISHED_READERS, ImageSizes


QUESTION = "the cup on the left"
# sha256 of the messages as the published code of each writes them.
MESSAGES = {
    "seg_zero": "b261295ae14511d6261218b92183b4932c8ed9f537ff67ed2b760b9146b9ff6e",
    "vision_reasoner": "8015d0398ea1ae058f4b9c2af3f3490967625ce5be0878b53847375724299db8",
    "star": "d7a6b4d6abf6b08a91e7f7cecf24ff73ecd6b23267e9f061219846f1b2b46bdb",
    "star_qwen3": "d7a6b4d6abf6b08a91e7f7cecf24ff73ecd6b23267e9f061219846f1b2b46bdb",
}


class TestWording:
    @pytest.mark.parametrize("name", MESSAGES)
    def test_of_trained_models(self, name):
        message = COORDINATE_FORMATS[name].ask(f" {QUESTION.capitalize()}. ")
        assert hashlib.sha256(message.encode()).hexdigest() == MESSAGES[name]

    def test_of_stock_models(self):
        asked = {name: COORDINATE_FORMATS[name].ask("Where is it?") for name in ("qwen2_5_vl", "internvl", "molmo")}
        assert asked == {
            "qwen2_5_vl": 'Locate "Where is it?", report the bboxes coordinates in JSON format.',
            "internvl": (
                "Please provide the bounding box coordinate of the region this sentence describes: "
                "<ref>Where is it?</ref>"
            ),
            "molmo": "Point to the where is it.",
        }

    @pytest.mark.parametrize("name", COORDINATE_FORMATS)
    @given(question=st.text(string.printable))
    @settings(max_examples=30, deadline=None)
    def test_what_is_worded_stays(self, name, question):
        known = COORDINATE_FORMATS[name]
        assert known.ask(known.ask(question)) == known.ask(question)
        if known.phrases:
            worded = known.phrases.replace("{phrases}", question)
            assert known.ask(worded) == worded

    def test_every_published_reader_belongs_to_a_format(self):
        named = [reader for known in COORDINATE_FORMATS.values() for reader in known.published]
        assert sorted(named) == sorted(PUBLISHED_READERS)

    def test_formats_of_models(self):
        assert format_of_vlm("qwen3_vl") == "qwen3_vl"
        assert format_of_vlm("smolvlm") is None


def sizes_for(name: str, height: int, width: int) -> ImageSizes:
    known = COORDINATE_FORMATS[name]
    if known.image_size or known.unit != "pixels":
        return ImageSizes((height, width), known.image_size or (height, width))
    return ImageSizes((height, width), smart_resize(height, width, 28, 3136, 12845056))


SIDES = st.integers(30, 4000)


class TestRoundTrip:
    @pytest.mark.parametrize("name", COORDINATE_FORMATS)
    @settings(max_examples=40, deadline=None)
    @given(height=SIDES, width=SIDES, parts=st.lists(st.floats(0.01, 0.99), min_size=6, max_size=6))
    def test_through_every_resize(self, name, height, width, parts):
        """Half a pixel where numbers are not rounded, as if the model wrote them exactly; half a unit more where
        they are whole."""
        sizes = sizes_for(name, height, width)
        x, y = parts[4] * (width - 1), parts[5] * (height - 1)
        corners = sorted(part * width for part in parts[:2]), sorted(part * height for part in parts[2:4])
        box = (corners[0][0], corners[1][0], corners[0][1], corners[1][1])
        for decimals in (9, COORDINATE_FORMATS[name].decimals):
            known = replace(COORDINATE_FORMATS[name], decimals=decimals)
            text = known.write([CoordinateObject(box, ((x, y),), (1,), "cup")], sizes)
            read = known.read(text, sizes)
            half_unit = [0.5 * scale * 10**-decimals for scale in known.scale(sizes)]
            written = "{x1}" in known.example
            if not read.objects:  # rounding may leave a box without extent
                assert min(box[2] - box[0], box[3] - box[1]) <= 2 * max(half_unit)
                continue
            (found,) = read.objects
            assert (found.box_xyxy is not None) <= written
            for axis, (value, expected) in enumerate(zip(found.box_xyxy or (), box, strict=False)):
                assert abs(value - expected) <= 0.5 + half_unit[axis % 2]
            for point in found.points_xy:
                for axis, (value, expected) in enumerate(zip(point, (x, y), strict=True)):
                    assert abs(value - expected) <= 0.5 + half_unit[axis]

    @pytest.mark.parametrize("name", COORDINATE_FORMATS)
    def test_published_code_reads_what_is_written(self, name):
        """Its own rounding moves a corner by one pixel and by half of what a number stands for."""
        known, sizes = COORDINATE_FORMATS[name], sizes_for(name, 600, 1000)
        objects = [
            CoordinateObject((100.0, 60.0, 400.0, 300.0), ((200.0, 120.0),), (1,), "cup"),
            CoordinateObject((500.0, 300.0, 900.0, 570.0), ((700.0, 420.0),), (1,), "dog"),
        ]
        objects = objects[:1] if name in ("seg_zero", "internvl") else objects
        if known.syntaxes[0] == "json":
            objects[0] = replace(objects[0], label='a \\ and a "cup"')
        fixed, paper = (known.read(known.write(objects, sizes), sizes, reading) for reading in ("fixed", "paper"))
        assert fixed.problems == paper.problems == ()
        assert len(fixed.objects) == len(paper.objects) == len(objects)
        for one, other, given_object in zip(fixed.objects, paper.objects, objects, strict=True):
            assert one.span == other.span
            assert one.repairs == ()
            assert one.label == (given_object.label if "{label}" in known.example else None)
            for value, expected in zip(
                one.box_xyxy or one.points_xy[0], other.box_xyxy or other.points_xy[0], strict=True
            ):
                assert abs(value - expected) <= 1.7


class TestPublishedReading:
    """What published code draws: nothing where boxes and points do not come out even."""

    @pytest.mark.parametrize("inside", ['[{"bbox_2d": [1, 2, 30, 40]}]', "[]", "no JSON"])
    def test_vision_reasoner_draws_nothing(self, inside):
        answer = COORDINATE_FORMATS["vision_reasoner"].read(
            f"<answer>{inside}</answer>", ImageSizes((840, 840), (840, 840)), "paper"
        )
        assert answer.objects == ()
        assert answer.error is None

    @pytest.mark.parametrize(
        ("name", "reading", "answer", "drawn"),
        [
            (
                "qwen2_5_vl",
                "qwen2_5_baseline",
                '```json[{"bbox": [1, 2, 3, 4], "point": [5, 6]}]```',
                [((1, 2, 3, 4), ())],
            ),
            ("qwen2_5_vl", "qwen2_5_baseline", '```json[{"point": [5, 6]}]```', []),
            (
                "star_qwen3",
                "star_inference_qwen3",
                '<answer>[{"bbox_2d": [0, 0, 999, 999], "point_2d": [7]}, {"point_2d": [0, 999]}, '
                '{"point_2d": [1, 1]}]</answer>',
                [((0, 0, 839, 839), ((0, 839),))],
            ),
            ("star_qwen3", "star_inference_qwen3", '<answer>[{"point_2d": [5, 6]}]</answer>', []),
        ],
    )
    def test_what_is_drawn_of_boxes_and_points(self, name, reading, answer, drawn):
        """The baseline by boxes alone, StAR by as many of both as there are."""
        read = COORDINATE_FORMATS[name].read(answer, ImageSizes((840, 840), (840, 840)), reading)
        assert [(one.box_xyxy, one.points_xy) for one in read.objects] == drawn
        assert bool(read.problems) == (len(drawn) == 0 or "point_2d" in answer)

    def test_boxes_of_zeros_are_nothing_to_internvls_evaluation_alone(self):
        sizes = ImageSizes((840, 840), (840, 840))
        text = '<answer>[{"bbox_2d": [0, 0, 0, 0], "point_2d": [30, 40]}]</answer>'
        (found,) = COORDINATE_FORMATS["vision_reasoner"].read(text, sizes, "paper").objects
        assert (found.box_xyxy, found.points_xy) == ((0, 0, 0, 0), ((30, 40),))
        nothing = COORDINATE_FORMATS["internvl"].read("<box>[[0, 0, 0, 0]]</box>", sizes, "paper")
        assert (nothing.objects, nothing.problems) == ((), (NOTHING,))

    @pytest.mark.parametrize(
        ("name", "reading", "text"),
        [
            ("qwen3_vl", "qwen3_odinw", '[{"bbox_2d": [1, 2, 3, 1e999], "label": "a"}]'),
            ("qwen3_vl", "qwen2_baseline", '```json[{"bbox_2d": [1, 2, 3, 1e40]}]```'),
            ("qwen2_5_vl", "qwen2_5_baseline", '```json[{"bbox": [1, 2, 3, 1e40], "point_2d": [1, 2]}]```'),
            ("internvl", "paper", "[inf, 1, 2, 3]"),
            ("vision_reasoner", "paper", '<answer>[{"bbox_2d": [1e40, 1, 2, 3], "point_2d": [1, 2]}]</answer>'),
        ],
    )
    def test_what_no_segmenter_takes_is_an_error(self, name, reading, text):
        answer = COORDINATE_FORMATS[name].read(text, ImageSizes((840, 840), (840, 840)), reading)
        assert answer.objects == ()
        assert answer.error.startswith("ValueError: a "), answer.error

    def test_thinking_and_limits(self):
        """Seg-Zero's and VisionReasoner's code lose a chain of thought that holds a `<`, Qwen's looks for none."""
        sizes, inside = ImageSizes((840, 840), (840, 840)), '[{"bbox_2d": [1, 2, 3, 4], "point_2d": [1, 2]}]'
        for said, kept in (("x > 3", "x > 3"), ("x < 3", "")):
            text = f"<think>{said}</think><answer>{inside}</answer>"
            assert COORDINATE_FORMATS["vision_reasoner"].read(text, sizes, "paper").thinking == kept
            assert COORDINATE_FORMATS["vision_reasoner"].read(text, sizes).thinking == said
            assert COORDINATE_FORMATS["star"].read(text, sizes, "star_inference").thinking == said
            assert COORDINATE_FORMATS["qwen3_vl"].read(text, sizes, "qwen2_baseline").thinking == said
        several = f"<answer>[{inside[1:-1]}, {inside[1:-1]}]</answer>"
        answer = COORDINATE_FORMATS["vision_reasoner"].read(several, sizes, "paper", max_objects=1)
        assert (len(answer.objects), answer.problems) == (1, (ONLY_OBJECTS.format(1),))

    def test_errors_are_kept_as_a_word(self):
        known, sizes = COORDINATE_FORMATS["vision_reasoner"], ImageSizes((840, 840), (840, 840))
        answer = known.read("<answer>no JSON</answer>", sizes, "vision_reasoner_script")
        assert answer.objects == ()
        assert answer.error.startswith("JSONDecodeError: ")

    def test_coordinates_may_leave_the_image(self):
        text = '<answer>[{"bbox_2d": [900, 2, 30, 1000], "point_2d": [-9, 40]}]</answer>'
        answer = COORDINATE_FORMATS["vision_reasoner"].read(text, ImageSizes((84, 84), (840, 840)), "paper")
        (found,) = answer.objects
        assert found.box_xyxy == (90, 0, 3, 100)
        assert found.points_xy == ((0, 4),)


def test_readers_travel_with_the_inputs():
    known = COORDINATE_FORMATS["qwen3_vl"]
    reader = CoordinateReader(bytes.decode, known, (ImageSizes((50, 100), (1, 1)), ImageSizes((100, 200), (1, 1))))
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301  # our own bytes
    answer = copy(b'[{"bbox_2d": [100, 100, 500, 500]}]', 1)
    assert answer.objects[0].box_xyxy == (20, 10, 100, 50)
