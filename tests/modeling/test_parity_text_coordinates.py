"""Against SAM 2's own predictor on a tiny SAM 2, and VisionReasoner's own way from an answer to the union of masks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, Sam2Model

from reasonseg.conversion.compose import compose
from reasonseg.modeling.segmenters import SegmenterPrompt, best_candidates, segmenter_adapter
from reasonseg.processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from reasonseg.processing.segments import post_process_masks, read_mask_sizes
from tests.support import tiny
from tests.support.parity_data import PARITY
from tests.support.parts import write_llava_next


RECORDED = PARITY / "text_coordinates"
CASES = json.loads((RECORDED / "sam2_prompts.json").read_text(encoding="utf-8"))
SIDE = {"height": 128, "width": 128}
# Of 195,004 pixels. With two threads all are equal; a sum in another order moves a border over one of them.
ROUNDED = 2
# Of scores up to 0.78; the largest difference is 2.9e-4, as transformers has a prompt's points in another order.
SCORES = 5e-4


@pytest.fixture(scope="module")
def arrays():
    with np.load(RECORDED / "sam2_prompts.npz", allow_pickle=False) as stored:
        return dict(stored)


def picture(name: str) -> Image.Image:
    return Image.open(RECORDED / "pictures" / name)


def recorded_mask(arrays: dict, name: str, size: tuple[int, int]) -> np.ndarray:
    return np.unpackbits(arrays[name], count=size[0] * size[1]).reshape(size).astype(bool)


def test_the_view_is_the_predictors(arrays):
    view, rounded = SegmenterImageProcessor(size=SIDE, resize_in_float=True), SegmenterImageProcessor(size=SIDE)
    for number in range(4):
        image, expected = picture(f"picture_{number}.png"), arrays[f"pixel_values_{number}"].reshape(3, 128, 128)
        np.testing.assert_allclose(view(image)["sam_pixel_values"][0], expected, atol=1e-6)
        # To 8 bits it comes within one of 255 values.
        assert np.abs(rounded(image)["sam_pixel_values"][0] - expected).max() < 1 / 255 / 0.224 + 1e-6
    with pytest.raises(ValueError, match="resize_in_float=True allows BILINEAR"):
        SegmenterImageProcessor(size=SIDE, resize_in_float=True, resample=Image.Resampling.LANCZOS)(image)


@torch.no_grad()
def test_every_prompt_gives_the_predictors_mask(arrays):
    model = Sam2Model.from_pretrained(RECORDED / "tiny_sam2", dtype=torch.float32).eval()
    segmenter, view = segmenter_adapter(model), SegmenterImageProcessor(size=SIDE, resize_in_float=True)
    straight = SegmenterImageProcessor(size=SIDE, mask_resizing="straight")
    differing = through_view = 0
    for name in sorted({case["picture"] for case in CASES["prompts"]}):
        views = view(picture(name), return_tensors="pt")
        features = segmenter.encode(views["sam_pixel_values"])
        size = tuple(views["original_sizes"][0].tolist())
        scale = (128 / size[1], 128 / size[0])
        for case in (case for case in CASES["prompts"] if case["picture"] == name):
            prompt = SegmenterPrompt(
                points=[(x * scale[0], y * scale[1]) for x, y in case["points"] or ()],
                point_labels=case["labels"] or (),
                box=case["box"] and [edge * scale[axis % 2] for axis, edge in enumerate(case["box"])],
            )
            low_res, scores = segmenter.draw(features, [prompt])
            np.testing.assert_allclose(scores[0], arrays[f"{case['id']}_scores"], atol=SCORES, rtol=0)
            chosen = int(best_candidates(scores)[0])
            assert chosen == case["chosen"]
            expected = recorded_mask(arrays, f"{case['id']}_mask", size)
            for processor, count in ((straight, 0), (view, 1)):
                (sizes,) = read_mask_sizes(views, None, [0], processor)
                mask = post_process_masks(low_res[0, chosen : chosen + 1], *sizes)[0].numpy()
                different = int((mask != expected).sum())
                differing, through_view = (differing + different * (not count), through_view + different * count)
    assert differing <= ROUNDED
    assert through_view > 500, "the two ways give the same, so that nothing was compared"


def test_equal_scores_take_the_last_candidate():
    scores = torch.tensor([[0.5, 0.9, 0.9], [0.7, 0.7, 0.7], [0.9, 0.1, 0.2]])
    assert best_candidates(scores).tolist() == [2, 2, 0]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision_reasoner")
    vlm = write_llava_next(folder / "VisionReasoner-tiny")
    parts = {"system": "coordinates", "vlm": vlm, "segmenter": RECORDED / "tiny_sam2"}
    return compose(parts, folder / "repo").out


def test_answers_give_the_originals_union(repository, arrays):
    """The model writes the recorded answers; all objects of each are one mask."""
    model = AutoModel.from_pretrained(repository).eval()
    processor = AutoProcessor.from_pretrained(repository, reading="paper")
    assert processor.coordinate_format == model.config.coordinate_format == "vision_reasoner"
    cases, drawn, moved = CASES["end_to_end"], 0, 0
    pictures = [picture(case["picture"]) for case in cases]
    inputs = processor(images=pictures, text=["the cup"] * len(cases), return_tensors="pt")
    answers = [processor.tokenizer(case["answer"], add_special_tokens=False)["input_ids"] for case in cases]
    output = model.generate_with_masks(**inputs, logits_processor=[tiny.Dictation(answers, 2)])
    results = processor.post_process_segmentation(output, inputs, union=True)
    for case, result in zip(cases, results, strict=True):
        assert result.text == case["answer"]
        expected = recorded_mask(arrays, f"{case['id']}_union", tuple(case["mask_shape"]))
        mask = result.segments[0].mask if result.segments else np.zeros_like(expected)
        different = int((mask != expected).sum())
        assert different <= ROUNDED, case["id"]
        drawn, moved = drawn + bool(expected.any()), moved + different
    assert (drawn, moved <= ROUNDED) == (8, True)
