"""IVM's processor: prompts, squashed views, rows for phrases, and the way back."""

import copy

import numpy as np
import pytest
import torch

from reasonseg.modeling.outputs import ReasoningSegmentationOutput
from reasonseg.processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from reasonseg.processing.processing_ivm import IvmProcessor
from tests.support.recorded_processors import tokenizer


SIDE = 64


def make_processor(**fields) -> IvmProcessor:
    image_processor = ReasoningSegmentationImageProcessor(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        squash_first=True,
        segmenter_size={"height": SIDE, "width": SIDE},
        segmenter_resample=3,
    )
    return IvmProcessor(image_processor, tokenizer("lisa"), **fields)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def image(height=20, width=30, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def output_of(*rows: torch.Tensor) -> ReasoningSegmentationOutput:
    return ReasoningSegmentationOutput(pred_masks=list(rows))


def logits(value: float = -4.0, box=None) -> torch.Tensor:
    mask = torch.full((1, 16, 16), value)
    if box is not None:
        x1, y1, x2, y2 = box
        mask[:, y1:y2, x1:x2] = 4.0
    return mask


def test_the_prompt_is_the_originals(processor):
    inputs = processor(images=image(), text="pick up the cup", return_tensors="pt")
    assert inputs.rows[0].conversation == "USER: <image>\npick up the cup \n ASSISTANT:"
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "pick up the cup"}]}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == inputs.rows[0].conversation
    whole = processor(images=image(), text="USER: <image>\npick up the cup \n ASSISTANT:", return_tensors="pt")
    assert torch.equal(whole["input_ids"], inputs["input_ids"])
    tokenized = processor.apply_chat_template(
        [messages[0] | {"content": [{"type": "image", "image": image()}, messages[0]["content"][1]]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert torch.equal(tokenized["input_ids"], inputs["input_ids"])
    assert torch.equal(tokenized["sam_pixel_values"], inputs["sam_pixel_values"])


def test_both_views_are_made_of_the_squashed_image(processor):
    from PIL import Image

    wide = Image.fromarray(image(20, 50))
    inputs = processor(images=[wide], return_tensors="pt")
    assert inputs["original_sizes"].tolist() == [[20, 50]]
    assert inputs["reshaped_input_sizes"].tolist() == [[SIDE, SIDE]]
    squashed = processor(images=[wide.resize((SIDE, SIDE))], return_tensors="pt")
    for view in ("pixel_values", "sam_pixel_values"):
        assert torch.equal(inputs[view], squashed[view])


def test_several_phrases_become_rows_that_share_the_image(processor):
    images = [image(seed=0), image(24, 18, seed=1)]
    inputs = processor(images=images, phrases=[["cup", "dog"], ["tree"]], return_tensors="pt")
    assert inputs["image_index"].tolist() == [0, 0, 1]
    assert len(inputs["sam_pixel_values"]) == 2
    texts = processor(images=images, text=["cup", "dog", "tree"], image_index=[0, 0, 1], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], texts["input_ids"])

    output = output_of(logits(box=(0, 0, 8, 8)), logits(), logits(box=(8, 8, 16, 16)))
    results = processor.post_process_segmentation(output, inputs)
    assert [[segment.label for segment in result.segments] for result in results] == [["cup", "dog"], ["tree"]]
    assert [result.image_size for result in results] == [(20, 30), (24, 18)]
    assert results[0].segments[0].box_xyxy == (0, 0, 15, 10)
    assert results[0].segments[1].box_xyxy is None
    assert results[0].segments[1].area == 0
    assert not results[0].segments[1].rejected
    assert results[1].text == ""
    assert [len(result.segments) for result in processor.post_process_segmentation(output, texts)] == [1, 1, 1]


def test_one_image_for_all_rows_and_rows_of_one_phrase(processor):
    inputs = processor(images=image(), phrases=[["cup", "dog"], ["tree", "cat"]], return_tensors="pt")
    assert inputs["image_index"].tolist() == [0, 0, 0, 0]
    inputs = processor(images=[image(), image()], phrases=[["cup"], ["dog"]], return_tensors="pt")
    assert "image_index" not in inputs
    inputs = processor(images=image(), phrases=["cup", "dog"], return_tensors="pt")
    assert len(processor.post_process_segmentation(output_of(logits(), logits()), inputs)) == 1


def test_segments_carry_the_heatmap(processor):
    inputs = processor(images=image(), text="cup", return_tensors="pt")
    (result,) = processor.post_process_segmentation(output_of(logits(box=(0, 0, 8, 8))), inputs)
    (segment,) = result.segments
    assert result.heatmap is segment.heatmap
    assert segment.heatmap.dtype == np.float32
    assert segment.heatmap.shape == segment.mask.shape == (20, 30)
    assert np.array_equal(segment.mask, segment.heatmap > 0.5)
    assert segment.score == pytest.approx(segment.heatmap.max())
    (heatmap,) = processor.post_process_heatmaps(output_of(logits(box=(0, 0, 8, 8))), inputs)
    assert np.array_equal(heatmap, segment.heatmap)
    (stricter,) = processor.post_process_segmentation(
        output_of(logits(box=(0, 0, 8, 8))), inputs, heatmap_threshold=0.9
    )
    assert np.array_equal(stricter.segments[0].mask, segment.heatmap > 0.9)
    assert 0 < stricter.segments[0].area < segment.area


def test_results_know_their_image(processor):
    images = [image(seed=0), image(24, 18, seed=1)]
    inputs = processor(images=images, phrases=[["cup", "dog"], ["tree"]], return_tensors="pt")
    results = processor.post_process_segmentation(output_of(logits(), logits(), logits()), inputs)
    assert all(result.image is given for result, given in zip(results, images, strict=True))
    assert results[1]._repr_png_()


def test_plain_dicts_and_other_sizes(processor):
    inputs = processor(images=image(), text=["cup", "dog"], return_tensors="pt")
    results = processor.post_process_segmentation(output_of(logits(), logits()), dict(inputs), target_sizes=[(7, 9)])
    assert [result.image_size for result in results] == [(7, 9), (7, 9)]
    assert [result.segments[0].label for result in results] == [None, None]
    again = copy.deepcopy(inputs)
    labels = [r.segments[0].label for r in processor.post_process_segmentation(output_of(logits(), logits()), again)]
    assert labels == ["cup", "dog"]


def test_masked_images_for_every_row(processor):
    images = [image(seed=0), image(24, 18, seed=1)]
    inputs = processor(images=images, phrases=[["cup", "dog"], ["tree"]], return_tensors="pt")
    output = output_of(logits(box=(0, 0, 8, 8)), logits(), logits(box=(8, 8, 16, 16)))
    masked = processor.post_process_masking(output, inputs, images, threshold=0.5, overlay_color="blue")
    first, nothing, _ = masked
    assert [one.found for one in masked] == [True, False, True]
    assert [one.masked_image.size for one in masked] == [(30, 20), (30, 20), (18, 24)]
    assert np.array_equal(np.asarray(nothing.masked_image), images[0])
    assert first.masked_image.getpixel((29, 19)) == (0, 0, 255)
    assert nothing.box_xyxy is None
    assert 0 < first.kept_ratio < 1


def test_it_is_saved_and_loaded(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = IvmProcessor.from_pretrained(tmp_path)
    assert again.chat_template == processor.chat_template
    assert again.image_processor.squash_first
    before, after = (p(images=image(), text="cup", return_tensors="pt") for p in (processor, again))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "cup", "answer": "here"}, "IVM writes no answer"),
        ({"text": "cup", "return_labels": True}, "IVM writes no answer"),
        ({"text": "cup", "phrases": [["dog"]]}, "Give either of them"),
        ({"phrases": [["cup", " "]]}, "is empty"),
        ({"text": ["", "cup"], "images": [image(), image()]}, "Entry 0 of text is empty"),
        ({"phrases": [["<image>"]]}, "holds <image>"),
        ({"phrases": [["cup"]], "apply_template": False}, "needs the chat template"),
        ({"text": ["cup", "dog", "cat"], "images": [image(), image()]}, "3 texts and 2 images"),
        ({"phrases": [["cup", "dog"], ["cat"]], "images": [image()] * 3}, "2 texts and 3 images"),
        ({"text": "cup", "images": None}, "comes without an image"),
        ({"images": None}, "nothing was given"),
    ],
)
def test_bad_requests(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**{"images": image(), **arguments}, return_tensors="pt")


def test_bad_outputs(processor):
    inputs = processor(images=image(), text=["cup", "dog"], return_tensors="pt")
    with pytest.raises(ValueError, match="The output has 1 rows and the inputs 2"):
        processor.post_process_segmentation(output_of(logits()), inputs)
    with pytest.raises(ValueError, match="IVM draws one per row"):
        processor.post_process_heatmaps(output_of(logits().repeat(2, 1, 1), logits()), inputs)
    with pytest.raises(ValueError, match="no pred_masks"):
        processor.post_process_heatmaps(ReasoningSegmentationOutput(), inputs)
    with pytest.raises(ValueError, match="size of the images is unknown"):
        processor.post_process_heatmaps(output_of(logits()))
    with pytest.raises(ValueError, match=r"heatmap_threshold is 3. It must lie in 0\.\.1"):
        processor.post_process_segmentation(output_of(logits(), logits()), inputs, heatmap_threshold=3)
    with pytest.raises(ValueError, match=r"reject_threshold is 0\.5, but IVM rejects nothing"):
        processor.post_process_segmentation(output_of(logits(), logits()), inputs, reject_threshold=0.5)
    with pytest.raises(ValueError, match="3 images were given and the inputs were made of 1"):
        processor.post_process_masking(output_of(logits(), logits()), inputs, [image()] * 3)


def test_squashing_needs_a_size_that_squashes():
    image_processor = ReasoningSegmentationImageProcessor(squash_first=True)
    with pytest.raises(ValueError, match="squash_first=True needs segmenter_size"):
        image_processor(image())
