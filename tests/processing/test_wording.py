"""Wordings are checked when they are given, and filled in one pass."""

import pytest

from reasonseg.processing.wording import (
    GENERIC_WORDING,
    GSVA_WORDING,
    LISA_WORDING,
    ask_and_answer,
    clean_phrase,
    complete_wording,
)


@pytest.mark.parametrize("wording", [LISA_WORDING, GSVA_WORDING, GENERIC_WORDING], ids=["lisa", "gsva", "generic"])
@pytest.mark.parametrize("phrases", [["a dog"], ["a dog", "a cat"], ["{seg}", "{phrases} {items}"]], ids=len)
def test_one_slot_per_phrase_and_phrases_stay_what_they_are(wording, phrases):
    question, answer = ask_and_answer(complete_wording(None, wording), phrases, "[SEG]")
    assert ", ".join(phrases) in question
    assert answer.count("[SEG]") == len(phrases)
    if len(phrases) > 1:
        assert all(phrase in answer for phrase in phrases)


def test_phrases_are_cleaned_as_the_checkpoint_saw_them():
    assert clean_phrase(LISA_WORDING, " .The Dog. ") == ".The Dog."
    assert clean_phrase(GSVA_WORDING, " .The Dog. ") == "the dog"


@pytest.mark.parametrize(
    ("wording", "message"),
    [
        ({"greeting": "Hi"}, r"Unknown wording fields \['greeting'\]; there are \['answer'"),
        ({"question": "{item}?"}, r"question '\{item\}\?' may use \['phrases'\]"),
        ({"item": "{phrase}"}, r"item '\{phrase\}' must hold \{seg\}"),
        ({"answers": "Sure."}, r"answers 'Sure.' must hold \{items\}"),
    ],
)
def test_errors(wording, message):
    with pytest.raises(ValueError, match=message):
        complete_wording(wording, LISA_WORDING)
