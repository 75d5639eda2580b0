"""Answers of conversations, also of those that a server is sent: what earlier answers hold is not drawn again."""

import numpy as np
import pytest
from transformers import AutoModel, AutoProcessor

from reasonseg import Conversation
from reasonseg.processing.answer_stream import AnswerEnd, SegmentDrawn
from reasonseg.serving.batching import Job, ModelWorker
from reasonseg.serving.chat_completions import ChatRequest, read_chat
from reasonseg.serving.limits import Limits
from reasonseg.serving.metrics import Metrics
from tests.support.http_requests import data_url
from tests.support.recorded_sa2va import converted_repo, recorded_image


@pytest.fixture(scope="module")
def sa2va():
    repo = converted_repo("qwen3_vl")
    return AutoModel.from_pretrained(repo).eval(), AutoProcessor.from_pretrained(repo)


def test_a_model_that_draws_slots_of_its_prompt_draws_each_answer_once(sa2va, monkeypatch):
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
    # A server puts the same conversation into a batch.
    image = {"type": "image_url", "image_url": {"url": data_url(conversation.images[0])}}
    asked = {"role": "user", "content": [image, {"type": "text", "text": "Where can I sit?"}]}
    said = [asked, {"role": "assistant", "content": first.text}]
    said.append({"role": "user", "content": "And where does the dog?"})
    monkeypatch.setattr(model.generation_config, "sequence_bias", often["sequence_bias"])
    worker = ModelWorker("m", model, processor, Limits(), Metrics(), max_wait=0.0)
    job = Job(read_chat(ChatRequest(model="m", messages=said, max_tokens=5), processor, Limits()))
    worker.submit(job)
    served = job.answer.result(60).result
    worker.close()
    assert served.text == result.text
    assert [segment.span for segment in served.segments] == [segment.span for segment in result.segments]
    conversation.undo()
    again = conversation.ask("And where does the dog?", share_prefixes=False)
    for one, other in zip(again.segments, result.segments, strict=True):
        assert (one.mask != other.mask).mean() < 1e-4
