"""Conversations with a model of every system, and with any vision-language model x SAM; these can reject, as GSVA."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from reasonseg import Conversation
from reasonseg.processing.answer_stream import AnswerEnd, TextPiece
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from reasonseg.processing.processing_coordinates import CoordinatesProcessor
from reasonseg.processing.processing_reasoning_segmentation import ReasoningSegmentationProcessor
from reasonseg.serving.batching import Job, ModelWorker
from reasonseg.serving.limits import Limits
from reasonseg.serving.metrics import Metrics
from reasonseg.serving.questions import Question, ReadImage
from reasonseg.tabletop.scenes import draw_scene
from tests.modeling.test_modeling_coordinates import build
from tests.processing.test_processing_reasoning_segmentation import qwen_processor
from tests.support import tiny
from tests.support.counting import counted
from tests.support.recorded_attention import converted_repo
from tests.support.recorded_sa2va import converted_repo as converted_sa2va


REPOS = {
    "lisa": "talking_lisa_repo",
    "vip_llava": "vip_llava_repo",
    "difflmm": "difflmm_repo",
    "attend_and_segment": None,
    "sa2va": None,
    "sa2va on internvl": None,
    "ivm": "small_ivm",
}
COMPOSED = {"qwen2_5_vl": tiny.qwen2_5_vl_config, "qwen3_vl": tiny.qwen3_vl_config}
QUESTIONS = ("What is this?", "And where is the cup?", "Why?")


def composed(vlm_config):
    """A tiny model of a Qwen-VL and SAM, with its processor."""
    tokens = qwen_processor()
    tokens.tokenizer.add_tokens(["[REJ]"])
    views = SegmenterImageProcessor(size={"longest_edge": tiny.SAM_SIDE})
    processor = ReasoningSegmentationProcessor(tokens, views, rej_token="[REJ]")
    config = vlm_config()
    config.text_config.vocab_size = len(processor.tokenizer)
    config.text_config.max_position_embeddings = 4096
    config.image_token_id = processor.image_token_id
    seg, rej = processor.tokenizer.convert_tokens_to_ids(["[SEG]", "[REJ]"])
    return tiny.gsva_model(config, tiny.sam_config(), seg_token_id=seg, rej_token_id=rej), processor


def coordinates():
    """A tiny model of Qwen3-VL and SAM that is to write coordinates, with its processor."""
    views = SegmenterImageProcessor(size={"longest_edge": tiny.SAM_SIDE})
    processor = CoordinatesProcessor(qwen_processor(), views, coordinate_format="qwen3_vl")
    vlm = tiny.qwen3_vl_config()
    vlm.text_config.vocab_size, vlm.text_config.max_position_embeddings = len(processor.tokenizer), 4096
    vlm.image_token_id = processor.image_token_id
    return build(vlm, tiny.sam_config()), processor


@pytest.fixture(scope="module", params=[*REPOS, *COMPOSED, "coordinates"])
def system(request):
    if request.param in COMPOSED:
        return composed(COMPOSED[request.param])
    if request.param == "coordinates":
        return coordinates()
    own = {
        "attend_and_segment": converted_repo,
        "sa2va": lambda: converted_sa2va("qwen3_vl"),
        "sa2va on internvl": lambda: converted_sa2va("internvl"),
    }
    folder = own[request.param]() if request.param in own else request.getfixturevalue(REPOS[request.param])
    writes = request.param in ("vip_llava", "difflmm")
    kind = AutoModelForImageTextToText if writes else AutoModel
    return kind.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def scenes():
    return [Image.fromarray(draw_scene("test", number).image) for number in (4, 1)]


def same(one, other) -> None:
    assert one.text == other.text
    assert len(one.segments) == len(other.segments)
    for left, right in zip(one.segments, other.segments, strict=True):
        assert (left.label, left.span, left.rejected) == (right.label, right.span, right.rejected)
        assert np.array_equal(left.mask, right.mask)


def test_ten_turns_encode_the_image_in_the_first_only(system, scenes):
    model, processor = system
    conversation = Conversation(model, processor, scenes[0], max_new_tokens=3)
    if hasattr(processor, "post_process_segmentation"):
        found = conversation.segment("a cup")  # so that the segmenter has had to look
        assert len(found.segments) == 1
        inputs = processor(images=[scenes[0]], phrases=[["a cup"]], return_tensors="pt")
        if inputs.awaits_answers:
            output = model.generate_with_masks(**inputs, max_new_tokens=3, do_sample=False)
            same(found, processor.post_process_segmentation(output, inputs)[0])
    else:
        conversation.ask(QUESTIONS[0])
    with counted(model) as counts:
        for turn in range(9):
            conversation.ask(QUESTIONS[turn % 3])
    assert (counts["vlm"], counts["segmenter"]) == (0, 0)
    # What is new, not the history.
    wording = processor._format.ask("") if isinstance(processor, CoordinatesProcessor) else ""
    new = 64 + len(processor.tokenizer(wording, add_special_tokens=False)["input_ids"])
    assert max(counts["tokens"][len(counts["tokens"]) // 3 :]) < new
    assert len(conversation.turns) == 10
    # As if the last prompt were read whole, in one answer of its own.
    last = conversation.undo()
    options = {"share_prefixes": False} if hasattr(model, "encode_image") else {}
    again, question = Conversation.of_messages(model, processor, conversation._messages(last.question))
    same(again.ask(question, max_new_tokens=3, **options), last.result)


def test_prompts_are_those_of_the_chat_template_and_streams_say_the_same(system, scenes):
    model, processor = system
    conversation = Conversation(model, processor, scenes[0], max_new_tokens=6)
    for question in QUESTIONS[:2]:
        conversation.ask(question)
    messages = conversation._messages(QUESTIONS[2])
    reads_history = getattr(processor, "reads_history", True)
    assert [message["role"] for message in messages] == ["user", "assistant"] * (2 * reads_history) + ["user"]
    prompt = QUESTIONS[2]
    if reads_history:
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    whole = processor(images=[scenes[0]], text=[prompt], return_tensors="pt")
    assert torch.equal(whole["input_ids"], conversation._prompt(QUESTIONS[2])["inputs"]["input_ids"])
    again, question = Conversation.of_messages(model, processor, messages, max_new_tokens=6)
    *events, end = again.stream(question)
    asked = conversation.ask(QUESTIONS[2])
    same(end.result, asked)
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == asked.text


def test_a_server_streams_answers_side_by_side_as_each_would_be_alone(system, scenes):
    model, processor = system
    lengths, worker = (6, 2), ModelWorker("m", *system, Limits(), Metrics(), max_batch_size=2, max_wait=60)
    events = [[], []]
    jobs = [
        Job(
            Question((ReadImage(scene, str(row)),), text=QUESTIONS[row], max_new_tokens=lengths[row], stream=True),
            events[row].append,
        )
        for row, scene in enumerate(scenes)
    ]
    for job in jobs:
        worker.submit(job)
    for row, job in enumerate(jobs):
        result = job.answer.result(60).result
        if "\ufffd" not in result.text:  # a byte that fits to none before it makes a decoder take these back
            assert "".join(event.text for event in events[row] if isinstance(event, TextPiece)) == result.text
        assert events[row][-1] == AnswerEnd(result)
        alone = Conversation(model, processor, scenes[row], max_new_tokens=lengths[row]).ask(QUESTIONS[row])
        assert [segment.label for segment in result.segments] == [segment.label for segment in alone.segments]
        assert result.text == alone.text
        for found, other in zip(result.segments, alone.segments, strict=True):
            assert np.mean(found.mask != other.mask) < 1e-3
    worker.close()


def test_a_second_image_and_a_saved_conversation(system, scenes, tmp_path):
    model, processor = system
    conversation = Conversation(model, processor, scenes[0], max_new_tokens=4)
    conversation.ask(QUESTIONS[0])
    other = conversation.ask(QUESTIONS[1], image=scenes[1])
    same(other, Conversation(model, processor, scenes[1], max_new_tokens=4).ask(QUESTIONS[1]))
    conversation.save(tmp_path / "talk.json")
    further = conversation.ask(QUESTIONS[2])
    same(Conversation.load(tmp_path / "talk.json", model, processor, max_new_tokens=4).ask(QUESTIONS[2]), further)


def test_tokens_of_the_prompt_are_no_words_of_a_user(system, scenes):
    model, processor = system
    conversation = Conversation(model, processor, scenes[0], max_new_tokens=2)
    slots = [token.lower() for token in getattr(processor, "slot_tokens", {}).values()]
    for token in [processor.image_token, processor.tokenizer.eos_token, *slots]:
        with pytest.raises(ValueError, match="a token with which prompts are written"):
            conversation.ask(f"Where is the {token} cup?")
    assert conversation.turns == []
