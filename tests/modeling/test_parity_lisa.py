"""The converted LISA checkpoint against what the original code computed from the same weights."""

import numpy as np
import pytest
import torch

from reasonseg.conversion.rules_lisa_gsva import detect_layout, lisa_gsva_table
from reasonseg.modeling.modeling_lisa import LisaForReasoningSegmentation
from reasonseg.processing.processing_lisa import LisaProcessor
from tests.support.recorded_cases import (
    IMAGES,
    STATE_TOLERANCE,
    assert_gradient_norms,
    assert_masks,
    assert_recorded,
    both_views,
    ground_truth,
    image_of,
    load_case,
    load_meta,
    recorded_inputs,
)


META = load_meta("lisa")
INFER = ["infer/img0", "infer/img1", "infer/multi_seg_img0", "infer/llama2_img1"]
TRAIN = {"train/two_images": [0, 0, 0, 1, 1, 1], "train/with_vqa": [0, 1]}
EVALUATE = [name for name in META if name.startswith("evaluate/")]


@pytest.fixture(scope="module")
def model(lisa_repo):
    # Eager attention is what the original ran on; sdpa agrees within the same bounds.
    return LisaForReasoningSegmentation.from_pretrained(lisa_repo, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def processor(lisa_repo):
    return LisaProcessor.from_pretrained(lisa_repo)


@pytest.fixture(scope="module")
def talkative(talking_lisa_repo):
    """The model whose output rows were changed so that it says [SEG] by itself."""
    return LisaForReasoningSegmentation.from_pretrained(talking_lisa_repo, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def caches(model, processor):
    """Each image encoded once for all cases; both models share the encoders' weights."""
    with torch.no_grad():
        return {name: model.encode_image(**both_views(processor, "lisa", [name])) for name in IMAGES}


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_both_encoders(model, processor, caches, name):
    recorded, views = load_case("lisa", name), both_views(processor, "lisa", [name])
    if "clip_features" in recorded:
        features = model.vlm.model.vision_tower(views["pixel_values"], output_hidden_states=True).hidden_states[-2]
        assert_recorded(features[:, 1:], recorded, "clip_features")
    cache = caches[name]
    if "projected_features" in recorded:
        assert_recorded(torch.stack(list(cache.vlm_features.pooler_output)), recorded, "projected_features")
    embeddings = model._segmenter_features(cache, torch.tensor([0]))["image_embeddings"]
    if "sam_embeddings_stride4" in recorded:
        assert_recorded(embeddings, recorded, "sam_embeddings")
    statistics = torch.stack([embeddings[0].flatten(1).mean(1), embeddings[0].flatten(1).std(1)])
    torch.testing.assert_close(statistics, recorded["sam_embeddings_chan_mean_std"], **STATE_TOLERANCE)


@pytest.mark.parametrize("case", INFER)
@torch.no_grad()
def test_given_answers(model, processor, caches, case):
    recorded, name = load_case("lisa", case), image_of(case)
    inputs, views = recorded_inputs("lisa", case, model.config), both_views(processor, "lisa", [name])
    inputs.pop("labels")
    output = model(**inputs, image_cache=caches[name], output_hidden_states=True)

    assert_recorded(output.hidden_states[-1], recorded, "last_hidden_state")
    vocabulary = META["tokens"]["vocab"]
    logits_name = next(key for key in recorded if key.startswith("logits_from_"))
    start = int(logits_name.split("_")[2])
    step = 4 if logits_name.endswith("every4th") else 1
    torch.testing.assert_close(output.logits[:, start::step, :vocabulary], recorded[logits_name], **STATE_TOLERANCE)
    torch.testing.assert_close(torch.cat(output.prompt_embeddings), recorded["seg_embeddings"], **STATE_TOLERANCE)
    assert_recorded(torch.cat(output.pred_masks)[:, None], recorded, "low_res_masks")
    torch.testing.assert_close(torch.cat(output.mask_scores)[:, None], recorded["iou_predictions"], **STATE_TOLERANCE)
    assert not torch.cat(output.rejected).any()
    results = processor.post_process_segmentation(output, {**inputs, **views})
    stacked = [segment.mask for result in results for segment in result.segments]
    assert_masks(np.stack(stacked), recorded["pred_masks0_packed"])


@pytest.mark.parametrize("case", TRAIN)
def test_losses_and_gradients(model, processor, case):
    inputs = recorded_inputs("lisa", case, model.config)
    views = both_views(processor, "lisa", ["img0", "img1"])
    seg = model.config.seg_token_id
    targets, used = [], {0: 0, 1: 0}
    for ids, image in zip(inputs["input_ids"], TRAIN[case], strict=True):
        height, width = views["original_sizes"][image].tolist()
        masks = [torch.zeros(0, height, width)]
        for _ in range(int((ids == seg).sum())):
            masks.append(ground_truth("lisa", f"img{image}_p{used[image]}")[None])
            used[image] += 1
        targets.append(torch.cat(masks))
    model.zero_grad()
    output = model(**inputs, **views, image_index=torch.tensor(TRAIN[case]), mask_labels=targets)
    output.loss.backward()

    expected = META[f"{case}/losses"]
    assert output.loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    for name in ("ce_loss", "mask_bce_loss", "mask_dice_loss"):
        assert output.losses[name].item() == pytest.approx(expected[name], rel=1e-5)
    table = lisa_gsva_table(detect_layout(META["merged_keys"]))
    assert_gradient_norms(
        META[f"{case}/grad_norms"], lambda original: model.get_parameter(table.rename(original)).grad
    )
    model.zero_grad()


@pytest.mark.parametrize("case", EVALUATE)
def test_generation(model, talkative, processor, caches, case):
    model = talkative if "segbias" in case else model
    meta, recorded = META[case], load_case("lisa", case)
    name = f"img{meta['image']}"
    inputs, views = recorded_inputs("lisa", case, model.config), both_views(processor, "lisa", [name])
    output = model.generate_with_masks(**inputs, image_cache=caches[name], max_new_tokens=meta["max_new_tokens"])

    new_ids = output.sequences[0, inputs["input_ids"].shape[1] :]
    assert new_ids.tolist() == meta["new_ids"]
    assert len(output.pred_masks[0]) == meta["n_seg"]
    torch.testing.assert_close(output.prompt_embeddings[0], recorded["seg_embeddings"], **STATE_TOLERANCE)
    torch.testing.assert_close(output.mask_scores[0][:, None], recorded["iou_predictions"], **STATE_TOLERANCE)
    assert_recorded(output.pred_masks[0][:, None], recorded, "low_res_masks")
    result = processor.post_process_segmentation(output, {**inputs, **views})[0]
    if meta["n_seg"]:
        masks = np.stack([segment.mask for segment in result.segments])
        assert_masks(masks, recorded["pred_masks_packed"])
