"""Sa2VA with the prompt template of its 4B, whose answers end with a word that is no token of the language model."""

import json

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from reasonseg.conversion.convert_sa2va import convert_sa2va
from reasonseg.processing.answer_stream import AnswerEnd, TextPiece, read_answer
from reasonseg.processing.chat import check_words
from reasonseg.processing.processing_sa2va import StopWords
from reasonseg.serving.conversation import Conversation
from tests.support import tiny
from tests.support.originals import change_json
from tests.support.recorded_sa2va import recorded_image, sam_options, write_checkpoint


IMAGES = [recorded_image("internvl", "tiles_first"), recorded_image("internvl", "single_first")]
TEXTS = ["Where?", "Where is the cup?"]
# What comes after the end is not written; a word that only begins like it is a part of the answer.
WRITTEN = ["Sure, [SEG].<|end|>[SEG] and more", "It <|enters: <p> a cup </p> [SEG], [SEG].\n<|end|>\n[SEG]"]
ANSWERS = ["Sure, [SEG].", "It <|enters: <p> a cup </p> [SEG], [SEG]."]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sa2va-4b")
    source = write_checkpoint(folder / "checkpoint", "internvl")
    change_json(source / "config.json", lambda stored: stored | {"template": "phi3_chat"})
    convert_sa2va(source, out=folder / "repo", sam_options=sam_options("internvl"))
    return folder / "repo"


@pytest.fixture(scope="module")
def loaded(repository):
    return AutoModel.from_pretrained(repository).eval(), AutoProcessor.from_pretrained(repository)


def dictation(processor, *answers: str) -> tiny.Dictation:
    ids = [processor.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    return tiny.Dictation(ids, processor.tokenizer.eos_token_id)


def test_prompts_are_the_originals(loaded, repository):
    _, processor = loaded
    inputs = processor(images=IMAGES[1], text="<image>\nWhere is it?", return_tensors="pt")
    # `INSTRUCTION` of the original's phi3_chat, around its image
    image = f"<img>{'<IMG_CONTEXT>' * 4}</img>"
    expected = f"<|user|>\n{image}\nWhere is it?<|end|>\n<|assistant|>\n"
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(expected)["input_ids"]
    assert processor.tokenizer.convert_tokens_to_ids("<|end|>") in (None, processor.tokenizer.unk_token_id)
    assert isinstance(inputs["stop_criterion"], StopWords)
    generation = json.loads((repository / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [processor.tokenizer.eos_token_id]
    # Trained are the ids of the answer with its end.
    inputs = processor(images=IMAGES[1], text="Where?", answer=ANSWERS[0], return_labels=True)
    labels = [label for label in inputs["labels"][0] if label != -100]
    assert labels == processor.tokenizer("Sure, [SEG].<|end|>")["input_ids"] == inputs["input_ids"][0][-len(labels) :]
    assert "stop_criterion" not in inputs
    with pytest.raises(ValueError, match=r"holds <\|end\|>, a token"):
        check_words(processor, "A cup<|END|>")


def test_answers_end_in_a_batch_as_alone(loaded):
    """And are drawn as given ones."""
    model, processor = loaded
    batch = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    cache, options = model.encode_image(**batch), {"max_new_tokens": 80}
    written = dictation(processor, *WRITTEN)  # no token is needed that ends an answer
    output = model.generate_with_masks(
        **batch, image_cache=cache, logits_processor=[written], eos_token_id=None, **options
    )
    results = processor.post_process_segmentation(output, batch)
    assert [result.text for result in results] == ANSWERS
    assert [len(masks) for masks in output.pred_masks] == [1, 2]
    for row, (text, answer) in enumerate(zip(TEXTS, ANSWERS, strict=True)):
        encoded = {"image_cache": cache, "image_index": torch.tensor([row])}
        inputs = processor(images=IMAGES[row], text=text, return_tensors="pt")
        alone = model.generate_with_masks(
            **inputs, **encoded, logits_processor=[dictation(processor, WRITTEN[row])], **options
        )
        given = processor(images=IMAGES[row], text=text, answer=answer, return_tensors="pt")
        with torch.no_grad():
            forced = model(**given, **encoded)
        for other in (alone.pred_masks[0], forced.pred_masks[0]):
            torch.testing.assert_close(output.pred_masks[row], other, atol=2e-4, rtol=1e-4)
        (result,) = processor.post_process_segmentation(alone, inputs)
        assert result.text == answer
        assert [result.text[slice(*one.span)] for one in result.segments] == ["[SEG]"] * len(result.segments)
    # Prompts that await their answer are read, too, and text alone is written.
    assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape
    options["logits_processor"] = [dictation(processor, WRITTEN[0])]
    written = model.generate(**inputs.to("cpu"), **options)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(written) == "Sure, [SEG].<|end|>"
    assert processor.decode_answer(written.tolist()) == ANSWERS[0]


def test_streams_and_conversations_do_not_show_the_end(loaded):
    model, processor = loaded
    inputs = processor(images=IMAGES[1], text="Where?", return_tensors="pt")
    steps = model.stream_with_masks(**inputs, logits_processor=[dictation(processor, WRITTEN[1])], max_new_tokens=80)

    def finish(output):
        return processor.post_process_segmentation(output, inputs)[0]

    events = list(read_answer(steps, processor, inputs, finish))
    pieces = [event.text for event in events if isinstance(event, TextPiece)]
    assert "".join(pieces) == ANSWERS[1]
    assert len(pieces) > 10
    (end,) = (event for event in events if isinstance(event, AnswerEnd))
    assert (end.result.text, len(end.result.segments)) == (ANSWERS[1], 2)

    conversation = Conversation(model, processor, IMAGES[1])
    conversation.ask("Where?", logits_processor=[dictation(processor, WRITTEN[0])], max_new_tokens=80)
    second = conversation.ask("And else?", logits_processor=[dictation(processor, WRITTEN[1])], max_new_tokens=80)
    assert [turn.result.text for turn in conversation.turns] == ANSWERS
    assert len(second.segments) == 2
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    turn = "<|user|>\na<|end|>\n<|assistant|>\nb<|end|>"
    assert processor.apply_chat_template(history) == f"{turn}\n{turn}"
