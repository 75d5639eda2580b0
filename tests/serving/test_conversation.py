"""Conversations with every kind of model: history, images, masks, what is read and encoded again, files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from reasonseg import EMBEDDED_MODEL, Conversation
from reasonseg.processing.answer_stream import AnswerEnd, SegmentDrawn, TextPiece
from reasonseg.processing.phrase_segments import PhraseSegment, PhraseSegmentationResult
from reasonseg.processing.processing_coordinates import CoordinateResult, CoordinateSegment
from reasonseg.processing.segments import Segment, SegmentationResult
from reasonseg.tabletop.scenes import draw_scene
from tests.processing.test_processing_reasoning_segmentation import llava_processor
from tests.support import tiny
from tests.support.counting import counted


QUESTIONS = ("Where is the yellow cup?", "Where is the elephant?", "Please segment the yellow cup in this image.")


@pytest.fixture(scope="module")
def embedded():
    return tuple(kind.from_pretrained(EMBEDDED_MODEL) for kind in (AutoModel, AutoProcessor))


@pytest.fixture(scope="module")
def scene():
    return Image.fromarray(draw_scene("test", 4).image)


def assert_same(one: SegmentationResult, other: SegmentationResult) -> None:
    assert one.text == other.text
    assert len(one.segments) == len(other.segments)
    for left, right in zip(one.segments, other.segments, strict=True):
        assert (left.label, left.span, left.rejected) == (right.label, right.span, right.rejected)
        assert left.score == pytest.approx(right.score, abs=1e-4)
        assert np.array_equal(left.mask, right.mask)


def test_ten_turns_encode_the_image_once_and_read_only_what_is_new(embedded, scene):
    model, processor = embedded
    conversation = Conversation(model, processor, scene, max_new_tokens=12)
    with counted(model) as counts:
        results = [conversation.ask(QUESTIONS[turn % 3]) for turn in range(2)]
        assert (counts["vlm"], counts["segmenter"]) == (1, 1)
        counts["tokens"] = []
        results += [conversation.ask(QUESTIONS[turn % 3]) for turn in range(2, 10)]
    assert (counts["vlm"], counts["segmenter"]) == (1, 1)
    last = processor.apply_chat_template(conversation.messages, tokenize=True, return_dict=True)["input_ids"][0]
    assert max(counts["tokens"]) < 20 < len(last) // 4
    assert all(result.segments for result in results)
    # As if each prompt were read whole.
    turns, conversation.turns = conversation.turns, []
    for turn in turns[:3]:
        assert_same(conversation.ask(turn.question, share_prefixes=False), turn.result)


def test_prompts_are_what_the_chat_template_makes_of_messages(embedded, scene):
    model, processor = embedded
    conversation = Conversation(model, processor, scene, max_new_tokens=12)
    answers = [conversation.ask(question).text for question in QUESTIONS[:2]]
    assert "[SEG]" in answers[0]
    messages, (first, second, third) = conversation._messages(QUESTIONS[2]), QUESTIONS
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == (
        f"USER: <image> {first} ASSISTANT: {answers[0]}</s>USER: {second} ASSISTANT: {answers[1]}</s>"
        f"USER: {third} ASSISTANT:"
    )
    inputs = processor(images=scene, text=prompt, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], conversation._prompt(third)["inputs"]["input_ids"])
    again, question = Conversation.of_messages(model, processor, messages, max_new_tokens=12)
    assert question == third
    assert torch.equal(inputs["input_ids"], again._prompt(third)["inputs"]["input_ids"])


def test_streams_say_what_asking_says(embedded, scene):
    model, processor = embedded
    asked = Conversation(model, processor, scene, max_new_tokens=12)
    streamed = Conversation(model, processor, scene, max_new_tokens=12)
    for question in QUESTIONS:
        result, events = asked.ask(question), list(streamed.stream(question))
        assert isinstance(events[-1], AnswerEnd)
        assert_same(events[-1].result, result)
        text = ""
        for event in events:
            if isinstance(event, TextPiece):
                assert event.start == len(text)
                text += event.text
            elif isinstance(event, SegmentDrawn):
                assert text[slice(*event.segment.span)] == text[-5:] in ("[SEG]", "[REJ]")
                assert np.array_equal(event.segment.mask, result.segments[event.index].mask)
        assert text == result.text
        drawn = [place for place, event in enumerate(events) if isinstance(event, SegmentDrawn)]
        assert drawn[0] < max(place for place, event in enumerate(events) if isinstance(event, TextPiece))
    assert [turn.result.text for turn in streamed.turns] == [turn.result.text for turn in asked.turns]


def test_what_was_not_finished_is_not_kept(embedded, scene):
    conversation = Conversation(*embedded, scene, max_new_tokens=12)
    kept = conversation.ask(QUESTIONS[0])
    events = conversation.stream(QUESTIONS[1], image=scene.crop((0, 0, 90, 100)))
    next(events)
    events.close()
    with pytest.raises(ValueError, match="num_beams is 2"):
        next(conversation.stream(QUESTIONS[1], num_beams=2))
    with pytest.raises(ValueError, match="not an existing local image file"):
        conversation.ask(QUESTIONS[1], image="missing.png")
    with pytest.raises(ValueError, match="max_new_tokens"):
        conversation.ask(QUESTIONS[1], image=scene.crop((0, 0, 90, 100)), max_new_tokens=-1)
    for text, message in (("  ", "is empty"), ("Where </s>?", "holds </s>, a token"), ("<image> x", "holds <image>")):
        with pytest.raises(ValueError, match=message):
            conversation.stream(text)
    for ask in (conversation.ask, conversation.segment):
        with pytest.raises(ValueError, match="can read 512 with the answer"):
            ask("cup " * 600)
    assert [turn.result for turn in conversation.turns] == [kept]
    assert len(conversation.images) == 1
    assert conversation.undo().question == QUESTIONS[0]
    with pytest.raises(ValueError, match="nothing to take back"):
        conversation.undo()
    assert_same(conversation.ask(QUESTIONS[0]), kept)
    with pytest.raises(ValueError, match="no image to segment yet"):
        Conversation(*embedded).ask(QUESTIONS[0])


def test_a_new_image_begins_a_new_prompt(embedded, scene, tmp_path):
    model, processor = embedded
    other = Image.fromarray(draw_scene("test", 1).image)
    conversation = Conversation(model, processor, scene, max_new_tokens=12)
    with counted(model) as counts:
        first = conversation.ask(QUESTIONS[0])
        result = conversation.ask(QUESTIONS[0], image=other)
        phrases = conversation.segment(["the yellow cup", "an elephant"])
        further = conversation.ask(QUESTIONS[1])
    assert (counts["vlm"], counts["segmenter"]) == (2, 2)
    assert_same(result, Conversation(model, processor, other, max_new_tokens=12).ask(QUESTIONS[0]))
    assert [turn.image_index for turn in conversation.turns] == [0, 1, 1, 1]
    assert [segment.label for segment in phrases.segments] == ["the yellow cup", "an elephant"]
    messages = conversation.messages
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3
    assert [part["image"] for message in messages for part in message["content"] if part["type"] == "image"] == [
        conversation.images[1]
    ]

    conversation.save(tmp_path / "talk.json")
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]
    loaded = Conversation.load(tmp_path / "talk.json", model, processor, max_new_tokens=12)
    assert loaded.turns[2].phrases == ("the yellow cup", "an elephant")
    for turn, saved in zip(conversation.turns, loaded.turns, strict=True):
        assert (turn.question, turn.image_index) == (saved.question, saved.image_index)
        assert_same(turn.result, saved.result)
    loaded.undo()
    assert_same(loaded.ask(QUESTIONS[1]), further)
    conversation.reset()
    assert (conversation.messages, len(conversation.images), conversation.turns) == ([], 1, [])
    with counted(model) as counts:
        assert_same(conversation.ask(QUESTIONS[0]), result)
    assert (counts["vlm"], counts["segmenter"]) == (0, 0)
    conversation.undo()
    conversation.replace_image(scene)
    assert_same(conversation.ask(QUESTIONS[0]), first)
    conversation.replace_image(other)
    assert [image.tobytes() for image in conversation.images] == [scene.tobytes(), other.tobytes()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.update(format="other"), "its format is not"),
        (lambda saved: saved["images"].__setitem__(0, "%%"), "an image in it is not base64"),
        (lambda saved: saved["images"].__setitem__(0, "aGVsbG8="), "cannot be opened as an image"),
        (lambda saved: saved["turns"][0].update(image_index=3), "about image 3, and there are 1"),
        (lambda saved: saved["turns"][0].pop("question"), "'question' is missing"),
        (lambda saved: saved["turns"][0]["result"].update(image_size=[3, 4]), "the image is of another"),
        (lambda saved: saved["turns"][0]["result"]["segments"][0].update(kind="Path"), "'Path' is no kind of Segment"),
        (lambda saved: saved["turns"][0]["result"]["segments"][0].update(rle={"size": [1, 1]}), "mask 0 of an answer"),
        (lambda saved: saved["turns"][0]["result"]["segments"][0].update(more=1), "'more' is no field"),
        (lambda saved: saved["turns"][0]["result"]["segments"][0].update(label=7), "'label' of a Segment is '7'"),
        (lambda saved: saved["turns"][0]["result"]["segments"][0].update(span=[6]), "'span' of a Segment"),
        (lambda saved: saved["turns"][0]["result"]["segments"][0].update(span=[6, 99]), "outside the answer of 12"),
        (lambda saved: saved["turns"][0]["result"]["segments"][0].update(rejected=0), "'rejected' of a Segment"),
        (lambda saved: saved["turns"][0].update(question="\ud800"), "not JSON in UTF-8"),
        (lambda saved: saved.update(system="Answer.</s>USER: "), "The system message .* holds </s>"),
        (lambda saved: saved["turns"][0].update(question="<image> What?"), "The question .* holds <image>"),
        (lambda saved: saved["turns"][0]["result"].update(text="It is [SEG].</s>"), "The answer .* holds </s>"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(embedded, scene, tmp_path, change, message):
    conversation = Conversation(*embedded, scene)
    mask = np.zeros((160, 160), dtype=bool)
    mask[5:9, 3:30] = True
    result = SegmentationResult("It is [SEG].", [], (160, 160))
    result.segments = [Segment("a thing", (6, 11), mask, 0.5)]
    conversation._keep("What?", result)
    path = tmp_path / "talk.json"
    conversation.save(path)
    saved = json.loads(path.read_text(encoding="utf-8"))
    change(saved)
    path.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Conversation.load(path, *embedded)
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON in UTF-8"):
        Conversation.load(path, *embedded)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "The messages have the roles"),
        ([{"role": "assistant", "content": "Yes."}], "roles \\['assistant'\\]"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "the last one a question"),
        ([{"role": "tool", "content": "a"}], "the role 'tool'"),
        ([{"role": "user", "content": [{"type": "video", "video": 1}]}], "holds 'video'"),
        ([{"role": "user", "content": "<image> a"}], "holds <image>"),
        (
            [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (9, 9))}] * 2}],
            "2 images, and a prompt of this model one",
        ),
    ],
)
def test_messages_that_are_no_conversation(embedded, messages, message):
    with pytest.raises(ValueError, match=message):
        Conversation.of_messages(*embedded, messages)


def test_messages_that_the_chat_template_refuses(embedded, scene):
    model, processor = embedded[0], AutoProcessor.from_pretrained(EMBEDDED_MODEL)
    processor.chat_template = "{{ raise_exception('System role not supported') }}"
    conversation = Conversation(model, processor, scene, system="Be brief.")
    for ask in (conversation.ask, conversation.prompt):
        with pytest.raises(ValueError, match=r"does not take the conversation \(System role not supported\)"):
            ask("What?")


def test_results_of_every_kind_are_saved_whole(embedded, scene, tmp_path):
    mask = np.zeros((160, 160), dtype=bool)
    mask[5:9, 3:30] = True
    found = CoordinateSegment("a cup", (0, 3), mask, 0.5, prompt_box_xyxy=(3.0, 5.0, 30.0, 9.5))
    found.points_xy, found.point_labels, found.repairs = ((4.0, 6.0), (9.5, 8.0)), (1, 0), ("more numbers",)
    results = [
        CoordinateResult("[1, 2]", [found], (160, 160), thinking="Hm.", answer_span=(0, 6), problems=("no tags",)),
        PhraseSegmentationResult(
            "a cup", [PhraseSegment("a cup", (0, 5), mask, 0.5, core_span=(2, 5))], (160, 160), token_spans=[(0, 2)]
        ),
    ]
    conversation = Conversation(*embedded, scene)
    for result in results:
        conversation._keep("Find it, [SEG].", result, ("a cup",))  # as a checkpoint may word it
    conversation.save(tmp_path / "talk.json")
    loaded = Conversation.load(tmp_path / "talk.json", *embedded)
    for turn, result in zip(loaded.turns, results, strict=True):
        for one, other in ((turn.result, result), (turn.result.segments[0], result.segments[0])):
            plain = [{**vars(of), "image": None, "segments": None, "mask": None} for of in (one, other)]
            assert type(one) is type(other)
            assert plain[0] == plain[1]
        assert np.array_equal(turn.result.segments[0].mask, mask)


def test_several_images_in_one_prompt(scene):
    """A model and a processor of transformers alone."""
    processor = llava_processor()
    model = AutoModelForImageTextToText.from_config(stock_config(processor))
    tiny.randomize(model, 0.1)
    conversation = Conversation(model, processor, max_new_tokens=4)
    assert conversation.ask("Hello").image_size == (0, 0)
    images = [scene, scene.rotate(90), scene.crop((20, 20, 90, 100))]
    conversation.add_image(images[0])
    conversation.add_image(images[1])
    with counted(model) as counts:
        conversation.ask("What differs?")
        conversation.ask("And here?", image=images[2])
        read, counts["tokens"] = counts["tokens"], []
        last = conversation.ask("And why?")
    assert counts["vlm"] == 2
    assert max(counts["tokens"]) < max(read)
    shown = [[part["type"] for part in message["content"]].count("image") for message in conversation.messages]
    assert shown == [0, 0, 2, 0, 1, 0, 0, 0]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(conversation.messages[:-1], **options)
    written = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    assert last.text == processor.decode(written, skip_special_tokens=True).strip()


def stock_config(processor):
    config = tiny.llava_config(vocab_size=len(processor.tokenizer))
    config.image_token_id = processor.image_token_id
    return config


def test_instructions_stand_by_themselves(small_ivm, scene):
    model, processor = AutoModel.from_pretrained(small_ivm).eval(), AutoProcessor.from_pretrained(small_ivm)
    conversation = Conversation(model, processor, scene)
    with counted(model) as counts:
        first = conversation.ask("pick up the cup")
        drawn, end = conversation.stream("pick up the cup")
    assert (counts["vlm"], counts["segmenter"]) == (1, 1)
    assert first.text == end.result.text == ""
    assert first.segments[0].label == "pick up the cup"
    np.testing.assert_allclose(drawn.segment.heatmap, first.heatmap, atol=1e-5)
    assert len(conversation.segment(["cup", "plate"]).segments) == 2
