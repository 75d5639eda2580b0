"""Mask first, ask then, with a pipeline of transformers."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    pipeline,
)

from reasonseg import MaskedInput, Masker, MaskingOptions
from reasonseg.processing.masked_images import mask_image
from tests.support.tabletop_masking import masking_model, masking_processor


CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} ASSISTANT:"
)


@pytest.fixture(scope="module")
def asker():
    """A LLaVA that reads images and answers with whatever its random weights say."""
    ours = masking_processor()
    model = masking_model(ours, 3, width=16).vlm
    assert isinstance(model, LlavaForConditionalGeneration)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        ours.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    return pipeline("image-text-to-text", model=model.eval(), processor=processor, device="cpu")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in ((40, 60), (64, 30))]


def masked_by_hand(small_ivm, image, instruction, **options):
    model, processor = (
        AutoModel.from_pretrained(small_ivm).eval(),
        AutoProcessor.from_pretrained(small_ivm),
    )
    inputs = processor(images=[image], text=[instruction], return_tensors="pt")
    with torch.inference_mode():
        (heatmap,) = processor.post_process_heatmaps(model(**inputs), inputs)
    return mask_image(image, heatmap, **options)


def test_the_masked_image_is_asked_about(asker, small_ivm, images):
    question = "What is the red cup?"
    ask = MaskedInput(asker, small_ivm, threshold=0.5)
    answer = ask(images[0], question, max_new_tokens=8, do_sample=False)
    expected = masked_by_hand(small_ivm, images[0], question, threshold=0.5)
    assert 0.02 < expected.kept_ratio < 0.98, "the comparison below would say nothing"
    assert np.array_equal(np.asarray(answer.image), np.asarray(expected.masked_image))
    assert answer.masked.kept_ratio == expected.kept_ratio
    assert answer.original_text is None
    chat = [
        {"role": "user", "content": [{"type": "image", "image": answer.image}, {"type": "text", "text": question}]}
    ]
    (direct,) = asker(text=chat, max_new_tokens=8, do_sample=False, return_full_text=False)
    assert answer.text == direct["generated_text"].strip()
    assert "<img" in answer._repr_html_()
    assert "\n" not in repr(answer)


def test_both_answers_in_batches(asker, small_ivm, images):
    questions = ["What is the red cup?", "Where is the plate?"]
    ask = MaskedInput(asker, small_ivm, threshold=0.5)
    together = ask(images, questions, compare=True, batch_size=2, max_new_tokens=6, do_sample=False)
    apart = [
        ask(image, question, compare=True, max_new_tokens=6, do_sample=False)
        for image, question in zip(images, questions, strict=True)
    ]
    for one, other, image in zip(together, apart, images, strict=True):
        assert one.text == other.text
        assert one.original_text == other.original_text
        assert isinstance(one.original_text, str)
        assert one.original_image.size == image.size
        assert np.abs(np.asarray(one.image, dtype=int) - np.asarray(other.image, dtype=int)).mean() < 0.5
    assert ask([], []) == []


def test_options_and_another_instruction(asker, small_ivm, images):
    masker = Masker(
        small_ivm, options=MaskingOptions(threshold=0.6, crop=True, overlay_color="black", dilate=0, blur=0)
    )
    ask = MaskedInput(asker, masker)
    answer = ask(images[0], "Answer in one word.", instruction="the red cup", max_new_tokens=2)
    expected = masked_by_hand(
        small_ivm, images[0], "the red cup", threshold=0.6, overlay_color="black", dilate=0, blur=0
    )
    assert np.array_equal(np.asarray(answer.image), np.asarray(expected.crop))
    assert answer.image.size[0] * answer.image.size[1] <= images[0].size[0] * images[0].size[1]


def test_nothing_found_keeps_the_image(asker, small_ivm, images):
    answer = MaskedInput(asker, small_ivm, threshold=1.0)(images[0], "What is it?", max_new_tokens=2)
    assert not answer.masked.found
    assert np.array_equal(np.asarray(answer.image), np.asarray(images[0]))


def test_a_processor_without_chat_template(asker, small_ivm, images):
    template, asker.processor.chat_template = asker.processor.chat_template, None
    try:
        ask = MaskedInput(asker, small_ivm)
        answer = ask(images, "USER: <image> What is it? ASSISTANT:", instruction="it", max_new_tokens=3)
    finally:
        asker.processor.chat_template = template
    assert [len(one.text) > 0 for one in answer] == [True, True]
    assert "USER" not in answer[0].text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ask, images: ask(images, ["one"]), "2 images and 1 texts"),
        (lambda ask, images: ask(images, "x", instruction=["a", "b", "c"]), "2 images and 3 instructions"),
        (lambda ask, images: ask(images, "x", batch_size=0), "batch_size is 0"),
        (lambda ask, images: ask("nowhere.png", "x"), "not an existing local image file"),
        (lambda ask, images: ask(images, ["x", " "], instruction="cup"), "The question is empty"),
    ],
)
def test_wrong_calls(asker, small_ivm, images, call, message):
    with pytest.raises(ValueError, match=message):
        call(MaskedInput(asker, small_ivm), images)


def test_files_larger_than_the_processor_allows(asker, small_ivm, images, tmp_path):
    images[0].save(tmp_path / "large.png")
    ask = MaskedInput(asker, small_ivm)
    ask.masker.processor.image_processor.max_image_pixels = 2399
    with pytest.raises(ValueError, match=r"large.png' is 60 x 40 = 2400 pixels, more than the 2399 allowed"):
        ask(tmp_path / "large.png", "x")
    ask.masker.processor.image_processor.max_image_pixels = 2400
    assert ask(tmp_path / "large.png", "x", max_new_tokens=1).original_image.size == (60, 40)


def test_wrong_parts(asker, small_ivm, lisa_repo):
    with pytest.raises(ValueError, match="draws no heat-map"):
        MaskedInput(asker, lisa_repo)
    with pytest.raises(ValueError, match="needs its processor"):
        Masker(AutoModel.from_pretrained(small_ivm))
    with pytest.raises(TypeError, match="colour"):
        MaskedInput(asker, small_ivm, colour="white")
    with pytest.raises(ValueError, match="brings its own options"):
        MaskedInput(asker, Masker(small_ivm), threshold=0.3)
    asker_task, asker.task = asker.task, "text-generation"
    try:
        with pytest.raises(ValueError, match="task is 'text-generation'"):
            MaskedInput(asker, small_ivm)
    finally:
        asker.task = asker_task
