"""Sa2VA's prompts on all of its kinds of models, its phrases, and the way back."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from reasonseg.processing.processing_sa2va import Sa2VaProcessor
from reasonseg.processing.slot_processor import slot_labels
from tests.support.recorded_sa2va import FAMILIES, converted_repo, meta, recorded_case, recorded_image


@pytest.fixture(scope="module")
def processors():
    return {family: Sa2VaProcessor.from_pretrained(converted_repo(family)) for family in FAMILIES}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def processor(processors, family):
    return processors[family]


def cases(family: str) -> list[str]:
    return [name for name, case in meta(family).items() if isinstance(case, dict) and "text" in case]


def test_recorded_prompts(processor, family):
    for case in cases(family):
        inputs = processor(images=[recorded_image(family, case)], text=meta(family)[case]["text"], return_tensors="pt")
        recorded, answer = recorded_case(family, case), meta(family)[case]["answer_ids"]
        # Of some only what was read and written together is recorded.
        prompt = recorded["input_ids"][0] if "input_ids" in recorded else recorded["sequences"][: -len(answer)]
        assert torch.equal(inputs["input_ids"], prompt[None]), case


def test_a_whole_prompt_stays_as_it_is(processor):
    image = Image.new("RGB", (60, 40))
    whole = processor(images=[image], text="Where is it?").rows[0].conversation
    assert processor(images=[image], text=whole).rows[0].conversation == whole
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Where?"}]}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    templated = processor.apply_chat_template(messages, **options)
    called = processor(images=[image], text="Where?", return_tensors="pt")
    assert torch.equal(templated["input_ids"], called["input_ids"])


def test_phrases_are_worded_as_in_the_authors_evaluation(processor, family):
    inputs = processor(images=[Image.new("RGB", (60, 40))] * 2, phrases=[["the dog"], ["a cup", "the man"]])
    one, two = (row.conversation for row in inputs.rows)
    image = {"llava": "<image>", "internvl": "<IMG_CONTEXT>"}.get(family, "<|vision_end|>")
    assert f"{image}\n Please segment the dog in this image." in one
    assert "Sure, [SEG]." in one
    assert "Please segment a cup, the man in this image." in two
    assert "Sure, a cup [SEG], the man [SEG]." in two
    ids = processor.tokenizer.convert_tokens_to_ids("[SEG]")
    assert [row.count(ids) for row in inputs["input_ids"]] == [1, 2]


def test_as_many_image_tokens_as_features(processor, family):
    sizes = [(375, 500), (40, 900), (1300, 260)]
    counted = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    images = [Image.new("RGB", size[::-1]) for size in sizes]
    inputs = processor(images=images, text=["Where?"] * 3, return_tensors="pt")
    found = (inputs["input_ids"] == processor.image_token_id).sum(1).tolist()
    assert found == counted
    if family == "internvl":
        assert found == [4 * tiles for tiles in inputs["tile_counts"].tolist()] == [4 * 13, 4 * 13, 4 * 6]
        whole = processor(images=images[:1], text="Where?", crop_to_patches=False, return_tensors="pt")
        assert whole["tile_counts"].tolist() == [1] == [len(whole["pixel_values"])]
    if family == "qwen3_vl":
        assert found == (inputs["image_grid_thw"].prod(1) // 4).tolist()
        assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == processor.image_token_id).long())
        assert len(inputs["pixel_values"]) == inputs["image_grid_thw"].prod(1).sum()


def test_labels_are_the_answer_and_its_end(processor, family):
    inputs = processor(images=[Image.new("RGB", (60, 40))], text="Where?", answer="It is [SEG].", return_labels=True)
    labelled = [token for token in inputs["labels"][0] if token != -100]
    text = processor.tokenizer.decode(labelled)
    assert text.strip() == f"It is [SEG].{'</s>' if family == 'llava' else '<|im_end|>'}"


def test_phrases_between_marks_name_their_masks(processor):
    answer = "<p> A man </p> [SEG] is riding <p> a horse </p> [SEG] near the water [SEG]."
    ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert processor.decode_answer(ids).replace(" ", "") == answer.replace(" ", "")
    spans = [(start, start + 5) for start in range(len(answer)) if answer.startswith("[SEG]", start)]
    assert slot_labels(answer, spans) == ["A man", "a horse", "near the water"]


def test_it_is_saved_and_loaded_whole(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is Sa2VaProcessor
    assert type(again.image_processor) is type(processor.image_processor)
    image = Image.new("RGB", (90, 40), "red")
    for name, value in processor(images=[image], phrases=["it"], return_tensors="pt").items():
        assert torch.equal(again(images=[image], phrases=["it"], return_tensors="pt")[name], value), name
