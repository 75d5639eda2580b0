"""One phrase, a list of them or lists for every row: the same in the processors of all systems."""

import numpy as np
import pytest
from PIL import Image

from reasonseg.processing.chat import read_phrases
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from reasonseg.processing.processing_attend_and_segment import AttendAndSegmentProcessor
from reasonseg.processing.processing_reasoning_segmentation import ReasoningSegmentationProcessor
from tests.processing.test_processing_ivm import make_processor
from tests.processing.test_processing_reasoning_segmentation import llava_processor
from tests.support.recorded_processors import small_processor


IMAGE = Image.new("RGB", (40, 30))
PROCESSORS = {
    "lisa": lambda: small_processor("lisa"),
    "gsva": lambda: small_processor("gsva"),
    "ivm": make_processor,
    "composed": lambda: ReasoningSegmentationProcessor(llava_processor(), SegmenterImageProcessor()),
    "attend-and-segment": lambda: AttendAndSegmentProcessor(llava_processor(), phrase_extractor="rules"),
}


@pytest.fixture(scope="module", params=PROCESSORS.values(), ids=PROCESSORS)
def processor(request):
    return request.param()


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ("a cup", [["a cup"]]),
        (["a cup"], [["a cup"]]),
        (("a cup", "a dog"), [["a cup", "a dog"]]),
        (np.array(["a cup", "a dog"]), [["a cup", "a dog"]]),
        ([("a cup",), ["a dog", "a cat"]], [["a cup"], ["a dog", "a cat"]]),
        (np.array([["a cup"], ["a dog"]]), [["a cup"], ["a dog"]]),
        ((phrase for phrase in ("a cup", "a dog")), [["a cup", "a dog"]]),
    ],
)
def test_what_phrases_may_be(given, rows):
    assert read_phrases(given) == rows


@pytest.mark.parametrize("phrases", ["a cup", ("a cup",), ["a cup"], [("a cup",)]])
def test_a_string_is_one_phrase(processor, phrases):
    inputs = processor(images=IMAGE, phrases=phrases, return_tensors="pt")
    assert [row.phrases for row in inputs.rows] == [("a cup",)]
    assert inputs["input_ids"].tolist() == processor(images=IMAGE, phrases=[["a cup"]])["input_ids"]


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ("", "The phrase '' is empty"),
        ([""], "The phrase '' is empty"),
        ([["a cup", " "]], "The phrase ' ' is empty"),
        ([], "phrases is empty"),
        ((), "phrases is empty"),
        ([[]], r"Row 0 of phrases is \[\]"),
        ([["a cup"], "a dog"], "Row 1 of phrases is 'a dog'"),
        ([["a cup"], None], "Row 1 of phrases is None"),
        (7, "phrases is of type int"),
        ({"a cup": 1}, "phrases is of type dict"),
    ],
)
def test_what_phrases_may_not_be(processor, phrases, message):
    with pytest.raises(ValueError, match=message):
        processor(images=[IMAGE, IMAGE], phrases=phrases, image_index=[0])


@pytest.mark.parametrize("phrases", [["a cup", "a dog"], [["a cup"], ["a dog"], ["a cat"]]])
def test_phrases_and_images_of_other_numbers(processor, phrases):
    with pytest.raises(ValueError, match=r'texts and 2 images.* one phrase for each of two images is \[\["a cup"\]'):
        processor(images=[IMAGE, IMAGE], phrases=phrases)
