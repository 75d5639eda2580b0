"""DiffLMM's processor: prompts, the square view, answers and labels, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from reasonseg.conversion.tokenizers import build_tokenizer
from reasonseg.processing.chat import build_chat_template
from reasonseg.processing.image_processing_vip_llava import DiffLmmImageProcessor
from reasonseg.processing.processing_difflmm import DiffLmmProcessor
from tests.support.parity_data import PARITY, difflmm_sources, load_meta


CASE = load_meta("difflmm")["cases"][0]
QUESTION = "Describe the image in detail."


@pytest.fixture(scope="module")
def processor():
    tokenizer = build_tokenizer(difflmm_sources()["base"], "difflmm", use_im_start_end=False, model_max_length=4096)
    image_processor = DiffLmmImageProcessor(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})
    return DiffLmmProcessor(image_processor, tokenizer)


@pytest.fixture(scope="module")
def image():
    return Image.open(PARITY / "difflmm" / "image0.png")


def test_a_message_becomes_the_prompt_of_the_authors(processor, image):
    inputs = processor(images=image, text=QUESTION, return_tensors="pt")
    assert inputs.rows[0].conversation == CASE["prompt"]
    whole = processor(images=image, text=CASE["prompt"], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], whole["input_ids"])
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 64
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert torch.equal(chat["input_ids"], inputs["input_ids"])
    assert torch.equal(chat["pixel_values"], inputs["pixel_values"])


def test_images_are_padded_to_a_square_in_the_mean_colour(processor):
    wide = Image.fromarray(np.full((20, 80, 3), 255, dtype=np.uint8))
    view = processor(images=wide, return_tensors="pt")["pixel_values"][0]
    assert view.shape == (3, 128, 128)
    assert view[:, 0].abs().max() < 0.02  # the mean colour, up to rounding to 8 bits
    assert view[:, 64].min() > 1.5


def test_several_rows(processor, image):
    inputs = processor(images=image, text=[QUESTION, "What?"], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 128, 128)  # one image for both
    assert inputs["attention_mask"][1, 0] == 0  # generation goes on at the right end
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}


def test_answers_and_their_labels(processor, image):
    inputs = processor(images=image, text=QUESTION, answer="A brown dog.", return_labels=True, return_tensors="pt")
    labels = inputs["labels"][0]
    answer = labels[labels >= 0]
    assert processor.decode(answer).strip() == "A brown dog.</s>"
    assert torch.equal(inputs["input_ids"][0, -len(answer) :], answer)


def test_rows_that_share_images_or_have_none(processor, image, monkeypatch):
    other, looked_at = image.rotate(90), []
    look = type(processor.image_processor)._preprocess
    monkeypatch.setattr(
        type(processor.image_processor),
        "_preprocess",
        lambda *args, **kwargs: looked_at.append(1) or look(*args, **kwargs),
    )
    inputs = processor(
        [image, other, None], [QUESTION, "What?", "Why?", "Who?"], image_index=[1, 0, 2, 1], return_tensors="pt"
    )
    assert len(looked_at) == 2, "an image that rows share is looked at once"
    views = [processor(images=shown, return_tensors="pt")["pixel_values"][0] for shown in (other, image, other)]
    assert torch.equal(inputs["pixel_values"], torch.stack(views))
    counts = (inputs["input_ids"] == processor.image_token_id).sum(dim=1)
    assert counts.tolist() == [64, 64, 0, 64]
    alone = processor(text="Why?", return_tensors="pt")
    assert torch.equal(inputs["input_ids"][2][inputs["attention_mask"][2].bool()], alone["input_ids"][0])
    assert "image_index" not in inputs, "the model takes one image per row"


def test_a_question_without_a_image(processor):
    inputs = processor(text="Who are you?", return_tensors="pt")
    assert "pixel_values" not in inputs
    assert processor.image_token_id not in inputs["input_ids"]


def test_saved_and_loaded_it_is_the_same(processor, image, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(loaded) is DiffLmmProcessor
    for name, value in processor(images=image, text=QUESTION, return_tensors="pt").items():
        assert torch.equal(loaded(images=image, text=QUESTION, return_tensors="pt")[name], value)


def test_another_template_by_name(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    other = DiffLmmProcessor.from_pretrained(tmp_path, template="llava_llama_2")
    assert other.chat_template == build_chat_template("llava_llama_2", "<image>") != processor.chat_template
    own = DiffLmmProcessor.from_pretrained(tmp_path, chat_template="{{ messages[0]['content'] }}")
    assert own.chat_template == "{{ messages[0]['content'] }}"


def test_counted_tokens(processor):
    assert processor._get_num_multimodal_tokens([[300, 200], [50, 50]])["num_image_tokens"] == [64, 64]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs `text`, `images` or both"),
        ({"images": 2, "answer": "A dog."}, "`answer` was given without `text`"),
        ({"images": 2, "text": ["a", "b", "c"]}, "3 texts and 2 images"),
        ({"images": 1, "text": "a", "phrases": "a cup"}, "DiffLmmProcessor takes no `phrases`"),
        ({"images": 1, "text": "a", "answer": ["b", "c"]}, "1 texts and 2 answers"),
        ({"images": 1, "text": "<image><image> What?"}, "Row 0 holds 2 <image> tokens and has one image"),
        ({"text": "<image> What?"}, "Row 0 holds 1 <image> tokens and has no image"),
        ({"text": "a", "image_index": [0]}, "`image_index` was given without `images`"),
        ({"images": 2, "text": "a", "image_index": [2]}, "each naming an image"),
        ({"images": 1, "text": "a", "truncation": True, "max_length": 20}, "cut off <image> tokens"),
        ({"images": 1, "text": 3}, "not iterable|must be a string"),
        ({"images": 1, "text": ""}, "Entry 0 of text is empty"),
    ],
)
def test_what_does_not_fit_is_refused(processor, image, arguments, message):
    if "images" in arguments:
        arguments = arguments | {"images": [image] * arguments["images"]}
    with pytest.raises((ValueError, TypeError), match=message):
        processor(**arguments, return_tensors="pt")
