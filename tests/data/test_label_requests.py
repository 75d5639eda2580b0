"""Labels become questions and answers, one slot for each, and what was asked already stays as it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reasonseg.data.annotation_formats import ReadingOptions
from reasonseg.data.data_files import DataFileError
from reasonseg.data.label_requests import (
    AskingOptions,
    labels_of,
    read_labelled_requests,
    split_options,
    with_requests,
)
from reasonseg.data.labelled_images import LabelledImage, LabelledObject, LabelledRequest
from reasonseg.processing.segments import mask_to_rle
from tests.support.labelled import SIZE, box_mask


LEFT, RIGHT = box_mask((2, 2, 8, 8)), box_mask((20, 2, 30, 8))
CUPS = (LabelledObject("cup", mask_to_rle(LEFT)), LabelledObject("dog", mask_to_rle(RIGHT)))


def image(*objects: LabelledObject, **others) -> LabelledImage:
    return LabelledImage("a.png", SIZE, Path("a.png"), objects, **others)


def asked(given: LabelledImage, labels=(), **options) -> LabelledImage:
    (found,) = with_requests([given], AskingOptions(**options), labels)
    return found


def test_one_question_for_all_labels_of_an_image():
    found = asked(image(*CUPS, LabelledObject("cup", mask_to_rle(RIGHT))))
    assert found.requests == (
        LabelledRequest("Please segment cup, dog in this image.", "Sure, cup: [SEG], dog: [SEG]."),
    )
    # blanks around a label make no other question, and nothing absent of it
    assert asked(image(*CUPS, LabelledObject(" cup ", mask_to_rle(RIGHT)))).requests == found.requests
    spaced = asked(image(LabelledObject(" cup ", mask_to_rle(RIGHT))), labels=["cup"], absent=1)
    assert spaced.requests[0].answer == "Sure, cup: [SEG]."
    cup, dog = found.objects
    np.testing.assert_array_equal(cup.pixels(), LEFT | RIGHT)
    np.testing.assert_array_equal(dog.pixels(), RIGHT)


def test_words_of_ones_own():
    wording = {"question": "Where is {phrases}?", "answer": "{items}.", "item": "{phrase} {seg}"}
    assert asked(image(*CUPS), **wording).requests == (LabelledRequest("Where is cup, dog?", "cup [SEG], dog [SEG]."),)
    each = asked(image(*CUPS), per="label", **wording)
    assert [(one.question, one.answer) for one in each.requests] == [
        ("Where is cup?", "cup [SEG]."),
        ("Where is dog?", "dog [SEG]."),
    ]
    assert [found.request for found in each.objects] == [0, 1]
    objects = asked(image(CUPS[0], replace(CUPS[1], label="cup")), slot="object", **wording)
    assert objects.requests == (LabelledRequest("Where is cup?", "cup [SEG], cup [SEG]."),)
    # what is called alike is asked for once: two answers to one question would contradict each other
    both = asked(image(CUPS[0], CUPS[1], replace(CUPS[1], label="cup")), slot="object", per="label", **wording)
    assert [(one.question, one.answer) for one in both.requests] == [
        ("Where is cup?", "cup [SEG], cup [SEG]."),
        ("Where is dog?", "dog [SEG]."),
    ]
    assert [(found.label, found.request) for found in both.objects] == [("cup", 0), ("cup", 0), ("dog", 1)]
    unnamed = asked(image(replace(CUPS[0], label=""), replace(CUPS[1], label="object")), per="label")
    assert [one.question for one in unnamed.requests] == ["Please segment object in this image."]
    assert asked(image()).requests == ()
    for wrong in (
        *({"question": "{what}?"}, {"item": "{phrase}"}, {"per": "word"}, {"slot": "x"}),
        *({"absent": -1}, {"absent": "2"}, {"absent": True}, {"answer": 3}),
    ):
        with pytest.raises(ValueError, match=r"must|may use"):
            AskingOptions(**wrong)
    with pytest.raises(DataFileError, match=r"'a.png'.+ holds \[SEG\]"):
        asked(image(LabelledObject("a [SEG]", mask_to_rle(LEFT))))


def test_absent_labels_are_rejected_and_drawn_by_the_seed():
    labels = ["cup", "dog", "fork", "plate", "spoon"]
    found = asked(image(*CUPS), labels, absent=2)
    assert len(found.objects) == 4
    rejected = {one.label for one in found.rejected}
    assert len(rejected) == 2
    assert rejected <= {"fork", "plate", "spoon"}
    slots = [word for word in found.requests[0].answer.replace(".", ",").split() if word.startswith("[")]
    assert [slot == "[REJ]," for slot in slots] == [one.rejected for one in found.objects]
    assert asked(image(*CUPS), labels, absent=2) == found
    others = {asked(image(*CUPS), labels, absent=2, seed=seed).requests[0].question for seed in range(8)}
    assert len(others) > 2
    assert len(asked(image(*CUPS), labels, absent=9).objects) == 5
    assert labels_of([image(*CUPS), image(LabelledObject("", None), CUPS[0])]) == ["cup", "dog"]


def test_what_was_asked_stays():
    done = image(*CUPS, requests=(LabelledRequest("What is here?", "A [SEG] and a [SEG]."),))
    assert asked(done) == done
    question = image(*CUPS, requests=(LabelledRequest("What is here?"),))
    assert asked(question).requests == (LabelledRequest("What is here?", "Sure, cup: [SEG], dog: [SEG]."),)
    short = image(*CUPS, requests=(LabelledRequest("What is here?", "A [SEG]."),))
    assert asked(short).requests[0].answer == "Sure, cup: [SEG], dog: [SEG]."


def test_options_by_their_names(tmp_path):
    entry, reading, asking = split_options({"format": "coco", "images": "x", "skip_labels": ["a"], "absent": 3}, "y")
    assert (entry.name, reading.images, reading.skip_labels, asking.absent) == ("coco", Path("x"), ("a",), 3)
    with pytest.raises(ValueError, match=r"no option 'wrong'; there are format, absent, .*without_mask"):
        split_options({"format": "coco", "wrong": 1}, "y")
    assert split_options({"format": "coco", "skip_labels": "cup"}, "y")[1].skip_labels == ("cup",)
    for wrong, wanted in (
        ({"inner": "x"}, "one of refuse, hole, fill"),
        ({"inner": None}, "one of refuse, hole, fill"),
        ({"skip_labels": 3}, "a list of labels"),
        ({"skip_labels": ["cup", 3]}, "a list of labels"),
        ({"split": 2017}, "a text"),
        ({"images": 5}, "a folder"),
        ({"columns": "mask=x"}, "names of columns"),
        ({"max_image_pixels": "9"}, "a number of pixels"),
    ):
        with pytest.raises(ValueError, match=f"must be {wanted}"):
            split_options({"format": "coco", **wrong}, "y")
    with pytest.raises(ValueError, match="must be one of refuse, hole, fill"):
        ReadingOptions(inner="x")
    with pytest.raises(DataFileError, match="There is no file"):
        read_labelled_requests(tmp_path / "nothing")
