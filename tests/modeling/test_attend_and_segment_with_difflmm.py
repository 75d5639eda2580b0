"""DiffLMM as the vision-language model of attend-and-segment."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from reasonseg.modeling.configuration_attend_and_segment import AttendAndSegmentConfig
from reasonseg.modeling.modeling_attend_and_segment import AttendAndSegmentForReasoningSegmentation
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from reasonseg.processing.processing_attend_and_segment import AttendAndSegmentProcessor
from tests.support import tiny
from tests.support.parity_data import PARITY, load_meta


CASE = load_meta("difflmm")["cases"][0]


@pytest.fixture(scope="module")
def composed(difflmm_repo):
    vlm = AutoModelForImageTextToText.from_pretrained(difflmm_repo)
    config = AttendAndSegmentConfig(vlm_config=vlm.config, segmenter_config=tiny.sam_config(), subtract_mean=False)
    model = AttendAndSegmentForReasoningSegmentation(config).eval()
    model.vlm.load_state_dict(vlm.state_dict())
    tiny.randomize(model.segmenter)
    processor = AttendAndSegmentProcessor(
        AutoProcessor.from_pretrained(difflmm_repo),
        SegmenterImageProcessor(size={"longest_edge": tiny.SAM_SIDE}),
        phrase_extractor="rules",
    )
    return model, processor


@torch.inference_mode()
def test_maps_are_the_recorded_ones_and_masks_are_drawn(composed):
    model, processor = composed
    recorded = load_file(PARITY / "difflmm" / "tensors.safetensors")
    image = Image.open(PARITY / "difflmm" / "image0.png")
    inputs = processor(images=image, text=CASE["prompt"], return_tensors="pt")
    noise = {name: recorded[f"image0.{name}"] for name in ("vae_noise", "latent_noise")}
    expected = recorded["llm_00.attn_head_minus2_layermean"]
    output = model.generate_with_masks(**inputs, **noise, max_new_tokens=len(expected), do_sample=False)
    answer = output.sequences[0, inputs["input_ids"].shape[1] :]
    assert answer.tolist() == recorded["llm_00.generated_ids"][1:].tolist()
    found = output.attention_maps[0]
    assert (found.reshape(len(found), -1) - expected).abs().max() < 1e-5
    # The grid covers the square that the image was padded to: 150 x 110 pixels became 150 x 150.
    (box,) = inputs["grid_boxes"].tolist()
    width, height = image.size
    assert box == pytest.approx([0, (height - width) / 2, width, (height + width) / 2], abs=1)

    inputs = processor(images=image, text="What is there?", answer="A brown dog and a tree.", return_tensors="pt")
    (result,) = processor.post_process_segmentation(model(**inputs, **noise), inputs)
    assert [segment.label for segment in result.segments] == ["A brown dog", "a tree"]
    assert all(segment.mask.shape == (height, width) for segment in result.segments)
