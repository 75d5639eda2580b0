"""Answers read as published code reads them: every recorded result of every original parser, errors included."""

import gzip
import json
from pathlib import Path

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
