"""Answers of conversations: what earlier answers hold is not drawn again."""

import numpy as np
import pytest
from transformers import AutoModel, AutoProcessor

from reasonseg import Conversation
from reasonseg.processing.answer_stream import AnswerEnd, SegmentDrawn
from tests.support.recorded_sa2va import converted_repo, recorded_image


@pytest.fixture(scope="module")
def sa2va():
    repo = converted_repo("qwen3_vl")
    return AutoModel.from_pretrained(repo).eval(), AutoProcessor.from_pretrained(repo)


def test_a_model_that_draws_slots_of_its_prompt_draws_each_answer_once(sa2va):
    model, processor = sa2va
    assert model.config.prompt_slots
    often = {"max_new_tokens": 5, "sequence_bias": {(model.config.seg_token_id,): 30.0}}
    conversation = Conversation(model, processor, recorded_image("qwen3_vl", "img0_single"), **often)
    first = conversation.ask("Where can I sit?")
    # The last [SEG] ends the answer, and has no state.
    assert [first.text.count("[SEG]"), len(first.segments)] == [5, 4]
    events = list(conversation.stream("And where does the dog?"))
    result = events[-1].result
    assert isinstance(events[-1], AnswerEnd)
    assert [result.text.count("[SEG]"), len(result.segments)] == [5, 4]
    drawn = [event.segment for event in events if isinstance(event, SegmentDrawn)]
    assert [segment.span for segment in drawn] == [segment.span for segment in result.segments]
    assert all(result.text[slice(*segment.span)] == "[SEG]" for segment in drawn)
    assert all(
        np.array_equal(*pair)
        for pair in zip((one.mask for one in drawn), (one.mask for one in result.segments), strict=True)
    )
    conversation.undo()
    again = conversation.ask("And where does the dog?", share_prefixes=False)
    for one, other in zip(again.segments, result.segments, strict=True):
        assert (one.mask != other.mask).mean() < 1e-4
