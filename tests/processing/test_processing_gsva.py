"""GSVA's wording as recorded, its slip in it, and `[REJ]`."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from reasonseg.processing.processing_gsva import GsvaProcessor
from tests.support.parity_data import load_meta
from tests.support.recorded_processors import recorded_case, small_processor, tokenizer


IMAGE = Image.new("RGB", (40, 30))
REFERENCES = [[phrase for phrase, _ in image] for image in load_meta("gsva")["config"]["refs"]]


@pytest.fixture(scope="module")
def gsva():
    return small_processor("gsva")


@pytest.mark.parametrize("image", [0, 1])
def test_phrases_in_the_words_of_the_evaluation(gsva, image):
    case = recorded_case("gsva", f"infer/refer_img{image}")
    (row,) = gsva(images=IMAGE, phrases=[REFERENCES[image]]).rows
    # the recordings let the ground truth choose between [SEG] and [REJ]; the model decides alike at either
    assert row.conversation == case.conversations[0].replace("[REJ]", "[SEG]")
    assert row.phrases == tuple(REFERENCES[image])


def test_one_phrase_is_asked_for_in_the_same_words(gsva):
    (row,) = gsva(images=IMAGE, phrases=[[" .The Dog. "]]).rows
    assert row.conversation.endswith(
        "\n What are the dogin this image? Please output segmentation masks. ASSISTANT: Sure,the dog:[SEG].</s>"
    )


def test_the_missing_space_can_be_switched_off_and_stays_so(tmp_path):
    small_processor("gsva", wording={"omit_space_after_phrases": False}).save_pretrained(tmp_path)
    (row,) = GsvaProcessor.from_pretrained(tmp_path)(images=IMAGE, phrases=[["a dog", "a cat"]]).rows
    assert "\n What are a dog, a cat in this image? Please output segmentation masks. ASSISTANT:" in row.conversation


def test_a_phrase_of_full_stops_is_empty(gsva):
    with pytest.raises(ValueError, match=r"The phrase '\.\.\.' is empty"):
        gsva(images=IMAGE, phrases=[["a dog", "..."]])


def test_slots_are_both_tokens(gsva):
    ids = tokenizer("gsva").convert_tokens_to_ids(["[SEG]", "[REJ]"])
    assert gsva.slot_tokens == dict(zip(ids, ["[SEG]", "[REJ]"], strict=True))
    answer = "Sure, they are red cup:[SEG], blue plate:[REJ]."
    inputs = gsva(images=IMAGE, text="a", answer=answer, return_tensors="pt")
    output = {"pred_masks": [torch.ones(2, 16, 16)], "rejected": [torch.tensor([False, True])]}
    result = gsva.post_process_segmentation(output, inputs)[0]
    assert [answer[slice(*segment.span)] for segment in result.segments] == ["[SEG]", "[REJ]"]
    assert [segment.label for segment in result.segments] == ["red cup", "blue plate"]
    assert [segment.rejected for segment in result.segments] == [False, True]
    assert result.segments[1].mask is None


def test_a_rejected_slot_is_not_cut_off(gsva):
    arguments = {"images": IMAGE, "text": "a", "answer": "a:[SEG], b:[REJ]."}
    full = len(gsva(**arguments)["input_ids"][0])
    with pytest.raises(ValueError, match=r"\[SEG\]/\[REJ\] tokens: the rows have \[2\], \[1\] are left"):
        gsva(**arguments, truncation=True, max_length=full - 4)


def test_auto_processor_loads_it(gsva, tmp_path):
    gsva.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "GsvaProcessor"
    assert loaded.rej_token == "[REJ]"
    expected = gsva(images=IMAGE, phrases=REFERENCES[:1])["input_ids"]
    assert loaded(images=IMAGE, phrases=REFERENCES[:1])["input_ids"] == expected
