"""The converted GSVA checkpoint against what the original code computed from the same weights."""

import numpy as np
import pytest
import torch

from reasonseg.conversion.rules_lisa_gsva import detect_layout, lisa_gsva_table
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.processing.processing_gsva import GsvaProcessor
from tests.support.parity_data import PARITY
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


META = load_meta("gsva")
ONE_IMAGE = ["refer_img0", "refer_img0_reeval", "refer_img1", "refer_img1_reeval"]
# The two reasoning cases do not carry the image in their name.
IMAGE_OF = {"reason_sentence": "img1", "reason_short_batch2": "img0"}
INFER = [f"infer/{case}" for case in (*ONE_IMAGE, *IMAGE_OF)]
TRAIN = {"train/refer_multi": [0, 1], "train/mixed_list_and_vqa": [0, 0, 1]}


@pytest.fixture(scope="module")
def model(gsva_repo):
    return GsvaForReasoningSegmentation.from_pretrained(gsva_repo).eval()


@pytest.fixture(scope="module")
def processor(gsva_repo):
    return GsvaProcessor.from_pretrained(gsva_repo)


@pytest.fixture(scope="module")
def caches(model, processor):
    """Each image encoded once for all cases."""
    with torch.no_grad():
        return {name: model.encode_image(**both_views(processor, "gsva", [name])) for name in IMAGES}


def shown_image(case: str) -> str:
    return IMAGE_OF.get(case.removeprefix("infer/")) or image_of(case)


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_both_encoders(model, caches, name):
    recorded, cache = load_case("gsva", name), caches[name]
    if "projected_features" in recorded:
        assert_recorded(torch.stack(list(cache.vlm_features.pooler_output)), recorded, "projected_features")
    embeddings = model._segmenter_features(cache, torch.tensor([0]))["image_embeddings"]
    statistics = torch.stack([embeddings[0].flatten(1).mean(1), embeddings[0].flatten(1).std(1)])
    torch.testing.assert_close(statistics, recorded["sam_embeddings_chan_mean_std"], **STATE_TOLERANCE)


@pytest.mark.parametrize("case", INFER)
@torch.no_grad()
def test_given_answers(model, processor, caches, case):
    recorded, name = load_case("gsva", case), shown_image(case)
    inputs, views = recorded_inputs("gsva", case, model.config), both_views(processor, "gsva", [name])
    inputs.pop("labels")
    reeval = META[f"{case}/reeval"]
    output = model(**inputs, image_cache=caches[name], reeval=reeval, output_hidden_states=True)

    if any(key.startswith("last_hidden_state_first_pass") for key in recorded):
        assert_recorded(output.hidden_states[-1], recorded, "last_hidden_state_first_pass")
    vocabulary = META["tokens"]["vocab"]
    for logits_name in (key for key in recorded if key.startswith("logits_first_pass")):
        start, step = int(logits_name.split("_")[4]), 4 if logits_name.endswith("every4th") else 1
        torch.testing.assert_close(
            output.logits[:, start::step, :vocabulary], recorded[logits_name], **STATE_TOLERANCE
        )

    seg, rej = model.config.seg_token_id, model.config.rej_token_id
    for row, decisions in enumerate(META[f"{case}/decisions"]):
        assert output.slot_positions[row].tolist() == decisions["expanded_pos"]
        assert ["REJ" if rejected else "SEG" for rejected in output.rejected[row]] == decisions["out"]
        predictors = output.logits[row, output.slot_positions[row] - 1]
        assert predictors.argmax(-1).tolist() == decisions["argmax"]
        # The original writes its decisions into the ids, the image as zeros.
        decided = inputs["input_ids"][row].masked_fill(inputs["input_ids"][row] == model.config.image_token_id, 0)
        decided[output.slot_positions[row]] = torch.where(output.rejected[row], rej, seg)
        assert torch.equal(decided, recorded[f"output_ids_row{row}"])

    # Without the second pass the original draws only where the answer says [SEG]; here [REJ] slots keep their place.
    drawn = [
        torch.ones(len(positions), dtype=torch.bool) if reeval else inputs["input_ids"][row, positions] == seg
        for row, positions in enumerate(output.slot_positions)
    ]
    keep = torch.cat(drawn)
    torch.testing.assert_close(
        torch.cat(output.prompt_embeddings)[keep], recorded["seg_embeddings"], **STATE_TOLERANCE
    )
    torch.testing.assert_close(
        torch.cat(output.mask_scores)[keep][:, None], recorded["iou_predictions"], **STATE_TOLERANCE
    )
    assert_recorded(torch.cat(output.pred_masks)[keep][:, None], recorded, "low_res_masks")

    accepted = processor.post_process_segmentation(
        type(output)(**{**output, "rejected": [torch.zeros_like(flags) for flags in output.rejected]}),
        {**inputs, **views},
    )
    for row, (result, flags) in enumerate(zip(accepted, drawn, strict=True)):
        masks = [segment.mask for segment, flag in zip(result.segments, flags.tolist(), strict=True) if flag]
        assert_masks(np.stack(masks), recorded[f"pred_masks{row}_packed"])


def mask_targets(case: str, image_of_row: list[int], sizes: torch.Tensor) -> list[torch.Tensor]:
    """Per row one mask per slot, in the order of the ground-truth files; an absent target has an empty mask."""
    used, targets = {0: 0, 1: 0}, []
    slots = {"train/refer_multi": [4, 2], "train/mixed_list_and_vqa": [1, 1, 0]}[case]
    pixels = META[f"{case}/gt_pixels"]
    for image, count in zip(image_of_row, slots, strict=True):
        masks = [torch.zeros(0, *sizes[image].tolist())]
        for _ in range(count):
            mask = ground_truth("gsva", f"img{image}_r{used[image]}")
            expected = pixels[image][used[image]]
            masks.append((mask if expected else torch.zeros_like(mask))[None])
            assert masks[-1].sum() == expected
            used[image] += 1
        targets.append(torch.cat(masks))
    return targets


@pytest.mark.parametrize("case", TRAIN)
def test_losses_and_gradients(model, processor, case):
    inputs = recorded_inputs("gsva", case, model.config)
    views = both_views(processor, "gsva", ["img0", "img1"])
    targets = mask_targets(case, TRAIN[case], views["original_sizes"])
    model.zero_grad()
    output = model(**inputs, **views, image_index=torch.tensor(TRAIN[case]), mask_labels=targets)
    output.loss.backward()

    expected = META[f"{case}/losses"]
    assert output.loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    for name in ("ce_loss", "mask_bce_loss", "mask_dice_loss"):
        assert output.losses[name].item() == pytest.approx(expected[name], rel=1e-5)

    original = torch.load(PARITY / "gsva" / "gsva-tiny.bin", weights_only=True)
    table = lisa_gsva_table(detect_layout(list(original)))
    scaling = META["lora"]["scaling"]

    def gradient_of(name: str) -> torch.Tensor | None:
        gradient = model.get_parameter(table.rename(name)).grad
        # W + s B A: the gradients of the factors follow from that of the merged weight.
        if "lora_A" in name:
            return scaling * original[name.replace("lora_A", "lora_B")].T @ gradient
        if "lora_B" in name:
            return scaling * gradient @ original[name.replace("lora_B", "lora_A")].T
        return gradient

    assert_gradient_norms(META[f"{case}/grad_norms"], gradient_of)
    model.zero_grad()
