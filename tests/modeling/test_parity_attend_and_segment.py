"""The converted LLaVA-1.5 and SAM against what the original attend-and-segment code computed with the same weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from reasonseg.modeling.phrase_drawing import box_above, group_maps, mask_prompt, upsample_map
from reasonseg.processing.attention_grids import unpadded_grid
from reasonseg.processing.phrase_segments import non_maximum_suppression
from tests.support.recorded_attention import IMAGES, RECORDED, converted_repo, recorded_chunks


META = json.loads((RECORDED / "meta.json").read_text(encoding="utf-8"))
TENSORS = load_file(RECORDED / "tensors.safetensors")
CASES = {case["image"]: case for case in META["cases"]}
MASK_OPTIONS = {"prompt": "mask_and_box", "attention_temperature": 0.05326, "box_threshold": 0.5}
DEFAULT_MASK_OPTIONS = {"prompt": "mask_and_box"}


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(converted_repo(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(converted_repo())


def prepared(processor, name: str):
    """Inputs of one recorded image, with the recorded noun chunks as phrases."""
    processor.phrase_extractor = lambda text: recorded_chunks(CASES[name]["noun_chunks"])
    image = Image.open(RECORDED / CASES[name]["file"])
    return processor(images=image, text=META["config"]["question"], return_tensors="pt")


@pytest.fixture(scope="module")
def runs(model, processor):
    """(inputs, output, what the prompt encoder got) of the default settings, by image."""
    results = {}
    for name in IMAGES:
        inputs = prepared(processor, name)
        seen = []
        hook = model.segmenter.prompt_encoder.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs), with_kwargs=True
        )
        output = model.generate_with_masks(**inputs, max_new_tokens=12, do_sample=False)
        hook.remove()
        results[name] = inputs, output, seen
    return results


@pytest.fixture(scope="module")
def encoded(model, runs):
    """The images, each encoded once for all that is drawn on it."""
    return {name: model.encode_image(**inputs) for name, (inputs, _, _) in runs.items()}


def redrawn(model, name, encoded, output, **options):
    """The recorded maps with other settings, and what the prompt encoder got."""
    seen = []
    hook = model.segmenter.prompt_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    groups = [[phrase.tokens for phrase in row] for row in output.phrases]
    drawn = model.segment_maps([TENSORS[f"{name}.attentions"]], groups, encoded[name], **options)
    hook.remove()
    return drawn, seen


def assert_masks(segments, recorded: list[dict]) -> None:
    assert len(segments) == len(recorded)
    for mask, expected in zip(segments, recorded, strict=True):
        theirs = coco_mask.decode(expected).astype(bool)
        assert mask.shape == theirs.shape
        union = np.logical_or(mask, theirs).sum()
        assert union == 0 or np.logical_and(mask, theirs).sum() / union >= 0.99


@pytest.mark.parametrize("name", IMAGES)
def test_inputs(processor, name):
    inputs = prepared(processor, name)
    torch.testing.assert_close(inputs["pixel_values"][0], TENSORS[f"{name}.pixel_values"], atol=1e-6, rtol=0)
    ids, recorded = inputs["input_ids"][0], TENSORS[f"{name}.input_ids"]
    image = (ids == processor.image_token_id).nonzero()[:, 0]
    assert (int(image[0]), len(image)) == (CASES[name]["image_token_start_index"], CASES[name]["n_image_tokens"])
    assert torch.equal(ids[ids != processor.image_token_id], recorded[recorded >= 0])
    assert inputs["grid_sizes"].tolist() == [[8, 8]]


@pytest.mark.parametrize("name", IMAGES)
def test_answers_and_maps(runs, name):
    inputs, output, _ = runs[name]
    # The original's transformers put a token in front that nobody generated.
    assert output.sequences[0, inputs["input_ids"].shape[1] :].tolist() == TENSORS[f"{name}.sequences"][1:].tolist()
    torch.testing.assert_close(output.attention_maps[0], TENSORS[f"{name}.attentions"], atol=1e-6, rtol=1e-5)
    flat = output.attention_maps[0].flatten(1).argmax(dim=1)
    assert flat.tolist() == CASES[name]["attention_argmax_per_step"]
    torch.testing.assert_close(output.phrase_maps[0], TENSORS[f"group_scores.{name}.gcg_pad"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("heads", "chosen"), [("mean", [0, 1, 2, 3]), ([1], [1]), ([0, -1], [0, 3])])
def test_other_heads(model, runs, heads, chosen):
    name = IMAGES[0]
    inputs, _, _ = runs[name]
    wanted = {key: value for key, value in inputs.items() if key != "phrase_finder"}
    output = model.generate_with_masks(**wanted, max_new_tokens=12, do_sample=False, heads=heads)
    every = TENSORS[f"{name}.attention_last_query_to_image_tokens_step_layer_head"]
    expected = every[:, :, chosen].mean(dim=(1, 2)).reshape(-1, 8, 8)
    torch.testing.assert_close(output.attention_maps[0], expected, atol=1e-6, rtol=1e-5)
    assert output.pred_masks is None


@pytest.mark.parametrize("name", IMAGES)
def test_points_and_masks(processor, runs, name):
    inputs, output, seen = runs[name]
    recorded = META["gcg_pad"][name]
    assert output.points[0].tolist() == recorded["points"]
    points = seen[-1]["input_points"][:, 0].double()
    torch.testing.assert_close(points, TENSORS[f"sam.{name}.gcg_pad.point_coords"], atol=1e-4, rtol=1e-5)
    scores = TENSORS[f"sam.{name}.gcg_pad.iou_predictions"]
    torch.testing.assert_close(output.candidate_scores[0], scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(output.mask_scores[0], output.candidate_scores[0][:, 2])
    sampled = output.candidate_masks[0][..., ::8, ::8]
    expected = TENSORS[f"sam.{name}.gcg_pad.low_res_masks_all_every8th"]
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=1e-4)

    processor.phrase_extractor = lambda text: recorded_chunks(CASES[name]["noun_chunks"])
    result = processor.post_process_segmentation(output, inputs)[0]
    assert result.text == recorded["caption"]
    assert [segment.label for segment in result.segments] == recorded["phrases"]
    assert [segment.point_xy for segment in result.segments] == [tuple(point) for point in recorded["points"]]
    assert_masks([segment.mask for segment in result.segments], recorded["pred_masks"])


@pytest.mark.parametrize("name", IMAGES)
def test_image_embedding(model, encoded, name):
    with torch.no_grad():
        found = model._segmenter_features(encoded[name], torch.tensor([0]))["image_embeddings"][0, ::64]
    torch.testing.assert_close(found, TENSORS[f"sam.{name}.image_embedding_every64th_channel"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_without_corners_and_without_padding(model, runs, encoded, name):
    inputs, output, _ = runs[name]
    silenced, _ = redrawn(model, name, encoded, output, remove_corners=True)
    expected = TENSORS[f"group_scores.{name}.gcg_pad_remove_corner"]
    torch.testing.assert_close(silenced.phrase_maps[0], expected, atol=1e-6, rtol=1e-5)
    assert silenced.points[0].tolist() == META["gcg_pad_remove_corner"][name]["points"]

    height, width = inputs["original_sizes"][0].tolist()
    whole = torch.tensor([[0.0, 0.0, width, height]])
    stretched, _ = redrawn(model, name, encoded, output, grid_boxes=whole)
    assert stretched.points[0].tolist() == META["gcg_original"][name]["points"]
    scores = TENSORS[f"sam.{name}.gcg_original.iou_predictions"]
    torch.testing.assert_close(stretched.candidate_scores[0], scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_upsampled_maps(name):
    scores = TENSORS[f"group_scores.{name}.gcg_pad"]
    width, height = CASES[name]["size"]
    side = max(width, height)
    padded = upsample_map(scores, (0, 0, side, side), (side, side))[:, ::4]
    # recorded in half precision
    expected = TENSORS[f"upsample.{name}.gcg_pad_every4th"].float()
    torch.testing.assert_close(padded, expected, atol=1e-4, rtol=1e-3)
    plain = upsample_map(scores, (0, 0, width, height), (height, width))[:, ::4]
    torch.testing.assert_close(plain, TENSORS[f"upsample.{name}.gcg_original_every4th"], atol=1e-6, rtol=1e-5)


def assert_scores(segments, recorded, tolerance):
    """The segmenter's own estimates, and the part of them within 0..1 that users see."""
    assert [segment.mask_score for segment in segments] == pytest.approx(recorded, abs=tolerance)
    assert [segment.score for segment in segments] == pytest.approx(np.clip(recorded, 0, 1).tolist(), abs=tolerance)


@pytest.mark.parametrize(
    ("run", "options"), [("iseg_mask", MASK_OPTIONS), ("iseg_mask_default_temp", DEFAULT_MASK_OPTIONS)]
)
@pytest.mark.parametrize("name", IMAGES)
def test_mask_and_box_prompts(model, processor, runs, encoded, name, run, options):
    inputs, output, _ = runs[name]
    drawn, seen = redrawn(model, name, encoded, output, **options)
    boxes = seen[-1]["input_boxes"].double()
    torch.testing.assert_close(boxes, TENSORS[f"sam.{name}.{run}.boxes"], atol=1e-4, rtol=1e-5)
    logits = seen[-1]["input_masks"][..., ::4, ::4]
    # the default temperature of 2e-4 makes the last bit of a map 1e-4 of a probability
    tolerance = 1e-5 if run == "iseg_mask" else 1e-2
    torch.testing.assert_close(logits, TENSORS[f"sam.{name}.{run}.mask_input_every4th"], atol=tolerance, rtol=1e-5)
    scores = TENSORS[f"sam.{name}.{run}.iou_predictions"]
    torch.testing.assert_close(drawn.candidate_scores[0], scores, atol=1e-3, rtol=1e-3)

    drawn.phrases, drawn.sequences = output.phrases, output.sequences
    result = processor.post_process_segmentation(drawn, inputs)[0]
    recorded = [entry for entry in META[run] if f"{entry['image_id']:012d}" == name]
    segments = [segment for segment in result.segments if segment.area]
    assert [segment.label for segment in segments] == [entry["noun_phrase"] for entry in recorded]
    assert [list(segment.prompt_box_xyxy) for segment in segments] == [entry["box"] for entry in recorded]
    assert_scores(segments, [entry["score"] for entry in recorded], 1e-3)
    assert_masks([segment.mask for segment in segments], [entry["segmentation"] for entry in recorded])


@pytest.mark.parametrize("name", IMAGES)
def test_all_candidates(processor, runs, name):
    """The original's --more-masks with a threshold: the phrases it keeps have three masks each."""
    inputs, output, _ = runs[name]
    recorded = [entry for entry in META["iseg_point_more"] if f"{entry['image_id']:012d}" == name]
    result = processor.post_process_segmentation(output, inputs, candidates="all")[0]
    kept = {entry["noun_phrase"] for entry in recorded}
    segments = [segment for segment in result.segments if segment.label in kept and segment.area]
    assert [segment.candidate for segment in result.segments] == [0, 1, 2] * len(output.phrases[0])
    assert_masks([segment.mask for segment in segments], [entry["segmentation"] for entry in recorded])
    assert_scores(segments, [entry["score"] for entry in recorded], 1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_token_groups_of_the_answers(processor, name):
    recorded = META["token_groups"][name]
    processor.phrase_extractor = lambda text: recorded_chunks(CASES[name]["noun_chunks"])
    found = processor.find_phrases(recorded["tokens"])
    for kind in ("fast_tokenizer", "slow_tokenizer"):
        assert [list(phrase.tokens) for phrase in found] == [group["tokens"] for group in recorded[kind]]
        assert [phrase.core_word for phrase in found] == [group["core_word"] for group in recorded[kind]]


@pytest.mark.parametrize("place", range(len(META["token_groups_sentences"])))
def test_token_groups_of_sentences(processor, place):
    """Words of several pieces, characters of several bytes, line breaks, a space in front."""
    recorded = META["token_groups_sentences"][place]
    processor.phrase_extractor = lambda text: recorded_chunks(recorded["noun_chunks"])
    assert processor.decode_answer(recorded["tokens"]) == recorded["decoded_fast"]
    found = processor.find_phrases(recorded["tokens"])
    assert [list(phrase.tokens) for phrase in found] == [group["tokens"] for group in recorded["groups_fast"]]


@pytest.mark.parametrize("shape", ["square", "tall", "wide"])
def test_mask_prompts_and_boxes(shape):
    masks, recorded = TENSORS[f"helpers.soft_masks_{shape}"], TENSORS[f"helpers.convert_mask_SAM_{shape}_every4th_row"]
    found = torch.stack([mask_prompt(mask, (256, 256)) for mask in masks])[:, ::4]
    torch.testing.assert_close(found, recorded, atol=1e-5, rtol=1e-5)
    assert [list(box_above(mask, 0.75)) for mask in masks] == META["helpers"][f"convert_box_SAM_{shape}"]
    assert [list(box_above(mask, 1.55)) for mask in masks] == META["helpers"][f"convert_box_SAM_{shape}_t155"]


def test_unpadded_grids():
    for entry in META["helpers"]["get_unpad_feature_size"]:
        columns, rows, *_ = entry["result"]
        found = unpadded_grid(
            entry["feature_height"], entry["feature_width"], (entry["image_height"], entry["image_width"])
        )
        assert found == (rows, columns), entry


@pytest.mark.parametrize(("name", "threshold"), [("075", 0.75), ("03", 0.3)])
def test_non_maximum_suppression(name, threshold):
    masks, scores = TENSORS["helpers.masks"].bool().numpy(), TENSORS["helpers.scores"].tolist()
    kept = non_maximum_suppression(list(masks), scores, threshold)
    assert kept == sorted(META["helpers"][f"nms_with_scores_{name}"])


@pytest.mark.parametrize("place", range(len(IMAGES)))
def test_the_released_demo(model, runs, encoded, place):
    """example.py counts the token in front that nobody generated, so each token gets the map of the one behind it."""
    name, call = IMAGES[place], META["example_py"]["sam_calls"][place]
    _, output, _ = runs[name]
    shifted = [[[token + 1 for token in phrase.tokens] for phrase in output.phrases[0]]]
    seen = []
    hook = model.segmenter.prompt_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    drawn = model.segment_maps(output.attention_maps, shifted, encoded[name])
    hook.remove()
    assert seen[-1]["input_points"][:, 0, 0].tolist() == [pytest.approx(point) for point in call["point_coords"]]
    torch.testing.assert_close(drawn.candidate_scores[0], torch.tensor(call["iou"]), atol=1e-4, rtol=1e-4)


def test_groups_are_checked():
    with pytest.raises(ValueError, match=r"groups \[\[\], \[5\]\] must name tokens of an answer of 2 tokens"):
        group_maps(torch.rand(2, 3, 3), [[0], [], [5]])
