"""Answers read as published code reads them: every recorded result of every original parser, errors included."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from reasonseg.processing.published_answers import PUBLISHED_READERS, READING_ERRORS, ImageSizes


RECORDINGS = Path(__file__).parents[1] / "parity" / "text_coordinates" / "answers.json.gz"
CASES = json.loads(gzip.decompress(RECORDINGS.read_bytes()))
# What the recordings call the readers whose names differ.
RECORDED_AS = {
    "star_inference": "star_inference_qwen2_5",
    "star_evaluation": "star_evaluation_qwen2_5",
    "qwen2_5_odinw": "qwen_odinw_absolute",
    "qwen3_odinw": "qwen_odinw_relative",
    "qwen2_5_baseline": "vision_reasoner_baseline_qwen2_5",
    "qwen2_baseline": "vision_reasoner_baseline_qwen2",
}
# These read pixels of Qwen2.5-VL's own view; the others that read pixels read those of 840 x 840.
OF_THE_VIEW = ("qwen2_5_cookbook", "qwen2_5_odinw")
COUNTS = {"star": 74, "seg_": 74, "visi": 92, "qwen": 92, "inte": 10, "molm": 13}


def recorded(name: str) -> list[tuple[dict, dict | str]]:
    original = RECORDED_AS.get(name, name)
    return [(case, one["result"]) for case in CASES for one in case["originals"] if original in one["by"].split()]


def sizes_of(case: dict, name: str) -> ImageSizes:
    width, height = case["image_size"]
    return ImageSizes((height, width), tuple(case["seen"]) if name in OF_THE_VIEW else (840, 840))


@pytest.mark.parametrize("name", PUBLISHED_READERS)
def test_all_recorded_answers(name):
    cases = recorded(name)
    assert len(cases) == COUNTS[name[:4]]
    for case, expected in cases:
        if isinstance(expected, str):
            with pytest.raises(READING_ERRORS):
                PUBLISHED_READERS[name](case["answer"], sizes_of(case, name))
            continue
        read = PUBLISHED_READERS[name](case["answer"], sizes_of(case, name))
        assert read.boxes == expected["boxes"], case["id"]
        for field, value in (("points", read.points), ("think", read.thinking), ("labels", read.labels)):
            # Without any box the originals still count the labels of what they left out, or have none.
            if field in expected and (field != "labels" or expected["boxes"]):
                assert value == expected[field], (case["id"], field)


AS_SEEN = ImageSizes((840, 840), (840, 840))
LABELLED = '"label": "c"'
# What the original functions return for an image of 840 x 840 that the model saw as it is, where recordings hold
# nothing of the kind: (reader, answer, boxes, points), without either where it raises.
MORE = [
    ("qwen3_odinw", f'[{{"bbox_2d": [1, 2, 3], {LABELLED}}}, {{"label": "x"}}]', [], []),
    ("qwen2_5_odinw", f'[{{"bbox_2d": [1, 2]}}, {{"bbox_2d": [1, 2, 3, 4], {LABELLED}}}]', [[1, 2, 3, 4]], []),
    ("qwen2_5_odinw", '[{"bbox_2d": ["1", 2, 3, 4], "label": "c"}]', None, None),
    (
        "qwen2_baseline",
        '```json[{"bbox_2d": [1, 2, 3, 4, 5]}, {"bbox": [500, 0, 1000, 500]}]```',
        [[420, 0, 840, 420]],
        [],
    ),
    (
        "qwen2_5_baseline",
        '```json[{"bbox_2d": [1, 2, 3, 4], "bbox": [5, 6, 7, 8], "point": [9, 9], "point_2d": [1]}]```',
        [[5, 6, 7, 8], [1, 2, 3, 4]],
        [[9, 9]],
    ),
    ("internvl_refcoco", "a [1,2,3\n,4] b\n[[10, 20, 30, 40], [5", [[8.4, 16.8, 25.2, 33.6]], []),
    ("internvl_refcoco", "[c] [1, 2, 3, 4]", [[0, 0, 0, 0]], []),
    ("internvl_refcoco", "[1, 2, 3, 4, 5] [1, 2, 3, 4]", [[0, 0, 0, 0]], []),
    ("internvl_demo", "<ref>a</ref> b <ref>c</ref><box>[[0, 500, 1000.9, '100', 7],]]]</box>", None, None),
    ("internvl_demo", "<ref>a</ref><box>0, 1]]</box> <ref>b</ref>\n<box> [[0, '500', 1000, 9], ] </box>", [], []),
    (
        "internvl_demo",
        "<ref>a</ref><box>1</box><ref>\nb</ref> <box>[[0, '500', 1000, 9]]\n</box>",
        [[0, 420, 840, 7]],
        [],
    ),
    ("molmo_points", "(1.5,2.\u0665) Click(50.0, 40.0)", [], [[420, 336], [420, 336]]),
    (
        "star_evaluation",
        f'<answer>[{{{LABELLED}, "bbox_2d": [1, 2, 3, 4], "point_2d": [5, 6}} ]</answer>',
        [[1, 2, 3, 4]],
        [[5, 6]],
    ),
    ("star_inference", '<answer>[{"bbox_2d": [1, 2, 3, 4], "point_2d": [5}]</answer>', None, None),
    ("star_inference_qwen3", '<answer>[{"bbox_2d": [1, 2, 3, 4], "other": [5}]</answer>', [], []),
    (
        "star_evaluation_qwen3",
        f'<answer>[{{{LABELLED}, "bbox_2d": [999, 0, 999, 1]}}, {{{LABELLED}, "point_2d": [7, 7]}}, '
        '{"label": 1}]</answer>',
        [[838, 0, 839, 1]],
        [[6, 6]],
    ),
    ("star_evaluation_qwen3", f'<answer>[{{{LABELLED}, "point_2d": [7, 7]}}]</answer>', [], []),
]


@pytest.mark.parametrize(("name", "answer", "boxes", "points"), MORE)
def test_what_no_recording_holds(name, answer, boxes, points):
    if boxes is None:
        with pytest.raises(READING_ERRORS):
            PUBLISHED_READERS[name](answer, AS_SEEN)
        return
    read = PUBLISHED_READERS[name](answer, AS_SEEN)
    assert (np.round(read.boxes, 4).tolist(), read.points) == (boxes, points)


def test_thinking_of_qwen3_stands_before_the_answer_where_its_tags_are_empty():
    text = "so <think> </think> <answer>[]</answer>"
    assert PUBLISHED_READERS["star_inference_qwen3"](text, AS_SEEN).thinking == "so <think> </think>"
    assert PUBLISHED_READERS["star_inference"](text, AS_SEEN).thinking == ""
