"""Which phrase each slot of an answer belongs to."""

import pytest

from reasonseg.processing.slot_spans import (
    asked_phrase,
    decode_with_spans,
    find_tokens,
    replace_tokens,
    slot_labels,
)


SLOTS = ("[SEG]", "[REJ]")
ANSWERS = {
    # LISA
    "It is [SEG].": [None],
    "Sure, [SEG].": [None],
    "Sure, it is [SEG].": [None],
    "Sure, the segmentation result is [SEG].": [None],
    "[SEG].": [None],
    "Sure, the man in blue shirt [SEG], the small dog [SEG].": ["the man in blue shirt", "the small dog"],
    # GSVA: evaluation, then the five forms of its training answers
    "Sure,man in blue shirt:[SEG], a purple elephant:[REJ], left umbrella:[SEG].": [
        "man in blue shirt",
        "a purple elephant",
        "left umbrella",
    ],
    "The segmentation results are red cup [SEG], The small dog [REJ].": ["red cup", "The small dog"],
    "Sure, they are red cup:[SEG], blue plate on the moon:[REJ].": ["red cup", "blue plate on the moon"],
    "Sure, the mask of red cup is [SEG], the mask of a dog is [REJ].": ["red cup", "a dog"],
    "Sure, the segmentation of red cup is [SEG], the segmentation of a dog is [SEG].": ["red cup", "a dog"],
    "Sure, the referred red cup is [SEG], the referred dog is [REJ].": ["red cup", "dog"],
    # free text
    "the cup [SEG] and the plate [SEG]": ["the cup", "the plate"],
    "In the image, the man [SEG] sits. The cup on the table: [SEG]": ["the man", "The cup on the table"],
    "There is a cat on the mat. It is [SEG].": [None],
    "- a dog [SEG]\n- a cat [SEG]": ["a dog", "a cat"],
    "The kitchen [SEG].": ["The kitchen"],
    "Sure, it is the left umbrella [SEG].": ["the left umbrella"],
    "an island: [SEG]": ["an island"],
    "No such thing.": [],
}
QUESTIONS = {
    "Can you segment the dog in this image?": "dog",
    "Please segment the red car in this image.": "red car",
    "What is the red cup in this image? Please respond with segmentation mask.": "the red cup",
    " What are red cupin this image? Please output segmentation masks.": "red cup",
    "Where can I sit? Please output segmentation mask.": None,
}


@pytest.mark.parametrize(("answer", "labels"), ANSWERS.items(), ids=ANSWERS)
def test_labels_are_the_phrases_before_the_slots(answer, labels):
    assert slot_labels(answer, find_tokens(answer, SLOTS)) == labels


@pytest.mark.parametrize(("question", "phrase"), QUESTIONS.items())
def test_phrases_asked_for(question, phrase):
    assert asked_phrase(question) == phrase


def test_only_a_single_nameless_slot_takes_the_phrase_asked_for():
    question = "What is a dog in this image?"
    for answer, labels in {
        "It is [SEG].": ["a dog"],
        "A cat [SEG].": ["A cat"],
        "[SEG], [SEG].": [None, None],
    }.items():
        assert slot_labels(answer, find_tokens(answer, SLOTS), question) == labels


def test_spans_survive_an_unfinished_letter():
    # a byte of a longer letter decodes to a replacement character until the rest arrives
    pieces = {1: b"\xc3", 2: b"\xa9", 3: b"[SEG]", 4: b" a", 5: b"  "}

    def decode(ids):
        return b"".join(pieces[token_id] for token_id in ids).decode("utf-8", errors="replace")

    text, spans = decode_with_spans(decode, [5, 1, 2, 3, 4, 1, 3, 5], {3: "[SEG]"})
    assert text == "é[SEG] a\ufffd[SEG]"
    assert [text[slice(*span)] for span in spans] == ["[SEG]", "[SEG]"]


def test_tokens_of_other_lengths_move_the_spans_behind_them():
    text, spans = replace_tokens("a [SEG] b [SEG].", [(2, 7), None, (10, 15)], ["<none>", "x", "[SEG]"])
    assert (text, spans) == ("a <none> b [SEG].", [(2, 8), None, (11, 16)])
    assert replace_tokens("nothing", [], []) == ("nothing", [])
