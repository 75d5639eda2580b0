"""The converted IVM checkpoint against what the original code computed from the same weights."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from reasonseg.conversion.rules_ivm import detect_ivm_layout, ivm_table
from reasonseg.modeling.modeling_ivm import IvmForVisualMasking
from reasonseg.processing.processing_ivm import IvmProcessor
from tests.support.parity_data import PARITY, load_meta, load_tensors, sampled_like
from tests.support.recorded_cases import recorded_image


META, RECORDED = load_meta("ivm"), load_tensors("ivm")
INSTRUCTIONS = META["config"]["instructions"]
ROWS = [(image, instruction) for image in (0, 1) for instruction in (0, 1)]
# The recorded logits span -53 to 8; those of one row computed alone differ from the batch's by up to 6e-5.
STATES, LOGITS, PROBABILITIES = {"atol": 1e-4, "rtol": 0}, {"atol": 5e-4, "rtol": 0}, {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def model(ivm_repo):
    return IvmForVisualMasking.from_pretrained(ivm_repo).eval()


@pytest.fixture(scope="module")
def processor(ivm_repo):
    return IvmProcessor.from_pretrained(ivm_repo)


@pytest.fixture(scope="module")
def images():
    return [recorded_image("ivm", name) for name in ("img0", "img1")]


@pytest.fixture(scope="module")
def inputs(processor, images):
    return processor(images=images, phrases=[INSTRUCTIONS, INSTRUCTIONS], return_tensors="pt")


@pytest.fixture(scope="module")
def cache(model, inputs):
    with torch.no_grad():
        return model.encode_image(**{name: value for name, value in inputs.items() if "input_ids" not in name})


@pytest.fixture(scope="module")
def output(model, inputs, cache):
    with torch.no_grad():
        return model(
            inputs["input_ids"], inputs["attention_mask"], image_index=inputs["image_index"], image_cache=cache
        )


def expanded(values: torch.Tensor, fill: int) -> torch.Tensor:
    """Recorded ids or masks with as many image tokens as the model sees."""
    rows = []
    for ids, row in zip(RECORDED["batch/input_ids"], values, strict=True):
        place = int((ids == META["ids"]["image_token"]).nonzero())
        rows.append(torch.cat([row[:place], row.new_full((576,), fill), row[place + 1 :]]))
    return torch.stack(rows)


def test_prompts_and_ids(inputs):
    assert [row.conversation for row in inputs.rows] == META["prompts"]
    assert torch.equal(inputs["input_ids"], expanded(RECORDED["batch/input_ids"], META["ids"]["image_token"]))
    assert torch.equal(inputs["attention_mask"], expanded(RECORDED["batch/attention_mask"], 1))


@pytest.mark.parametrize("image", [0, 1])
def test_both_views(inputs, image):
    clip, sam = inputs["pixel_values"][image], inputs["sam_pixel_values"][image]
    assert torch.equal(clip[:, ::12, ::12], RECORDED[f"img{image}/clip_pixel_values_stride12"])
    exact = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(sam[:, ::32, ::32], RECORDED[f"img{image}/sam_pixel_values_stride32"], **exact)
    torch.testing.assert_close(sam[:, :32, :32], RECORDED[f"img{image}/sam_pixel_values_crop_tl32"], **exact)


@pytest.mark.parametrize("image", [0, 1])
def test_image_encoders(model, output, cache, image):
    embeddings = cache.segmenter_features[image]["image_embeddings"]
    recorded = RECORDED[f"img{image}/sam_embeddings_stride8"]
    torch.testing.assert_close(embeddings[..., ::8, ::8], recorded, **STATES)
    statistics = torch.stack([embeddings.flatten(1).mean(1), embeddings.flatten(1).std(1)])
    torch.testing.assert_close(statistics, RECORDED[f"img{image}/sam_embeddings_chan_mean_std"], **STATES)
    if image == 0:
        features = cache.vlm_features.pooler_output[0][::16]
        torch.testing.assert_close(features, RECORDED["batch/projected_features_img0_every16"], **STATES)
    positions = model.segmenter.get_image_wide_positional_embeddings()
    torch.testing.assert_close(positions[..., ::8, ::8], RECORDED["image_pe_stride8"], atol=1e-6, rtol=0)


def test_states_prompts_and_masks(output):
    recorded = RECORDED["batch/llm_last_hidden_last4"][:, -2]
    torch.testing.assert_close(torch.cat(output.slot_states), recorded, **STATES)
    torch.testing.assert_close(
        torch.cat(output.prompt_embeddings), RECORDED["batch/language_embeddings"][:, 0], **STATES
    )
    torch.testing.assert_close(torch.stack(output.pred_masks), RECORDED["batch/low_res_masks"], **LOGITS)
    assert torch.cat(output.slot_positions).tolist() == [META["merged_length"] - 2] * len(ROWS)


def test_heatmaps(processor, output, inputs):
    heatmaps = processor.post_process_heatmaps(output, inputs)
    for heatmap, (image, instruction) in zip(heatmaps, ROWS, strict=True):
        name = f"img{image}_ins{instruction}"
        assert heatmap.dtype == np.float32
        recorded = RECORDED[f"prob/{name}_stride8"]
        torch.testing.assert_close(sampled_like(torch.from_numpy(heatmap), "_stride8"), recorded, **PROBABILITIES)
        assert [heatmap.min(), heatmap.max()] == pytest.approx(META[f"prob_range/{name}"], abs=1e-4)


def test_ratio_and_box_of_the_originals_own_resize(processor, output, inputs):
    heatmaps = processor.post_process_heatmaps(output, inputs, through_square=False)
    for heatmap, (image, instruction) in zip(heatmaps, ROWS, strict=True):
        name = f"img{image}_ins{instruction}"
        # one pixel may lie on the other side of the threshold
        assert abs((heatmap > 0.1).mean() - META["get_ratio_thr0.1"][name]) <= 2 / heatmap.size
        rows, columns = np.nonzero(heatmap > 0.6)
        box = [columns.min(), rows.min(), columns.max(), rows.max()]
        assert box == META["get_bounding_box_thr0.6"][name]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.99])
def test_masked_images_end_to_end(processor, output, inputs, images, threshold):
    masked = processor.post_process_masking(output, inputs, images, threshold=threshold)
    for result, (image, instruction) in zip(masked, ROWS, strict=True):
        name = f"forward_batch/thr{threshold}/crop0/img{image}_ins{instruction}"
        recorded = RECORDED[f"{name}_stride8"].numpy()
        assert np.abs(result.pixels[::8, ::8] - recorded).mean() < 1e-3
        assert result.found == (META[f"prob_range/img{image}_ins{instruction}"][1] > threshold)


def test_a_grey_image(model, processor):
    grey = recorded_image("ivm", "img1").convert("L")
    inputs = processor(images=grey, text=INSTRUCTIONS[1], return_tensors="pt")
    with torch.no_grad():
        (masked,) = processor.post_process_masking(model(**inputs), inputs, [grey], threshold=0.5)
    recorded = RECORDED["forward_batch/gray_L/thr0.5/img1_ins1_stride8"].numpy()
    assert np.abs(masked.pixels[::8, ::8] - recorded).mean() < 1e-3


@pytest.fixture(scope="module")
def in_float64(model, inputs):
    """The model, its images and its output in float64, but for norms and positions, which LLaMA rounds to float32:
    what is left of a difference between batch and row depends on no processor's way of adding."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        views = {name: value for name, value in inputs.items() if "input_ids" not in name}
        cache = exact.encode_image(**{name: _double(value) for name, value in views.items()})
        prompts = (inputs["input_ids"], inputs["attention_mask"])
        return exact, cache, exact(*prompts, image_index=inputs["image_index"], image_cache=cache)


def _double(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("row", range(len(ROWS)))
@torch.no_grad()
def test_one_row_alone_on_either_side_of_padding(processor, in_float64, row, side):
    exact, cache, output = in_float64
    image, instruction = ROWS[row]
    alone = processor(
        images=recorded_image("ivm", f"img{image}"),
        text=INSTRUCTIONS[instruction],
        padding="max_length",
        max_length=META["merged_length"] + 7,
        padding_side=side,
        return_tensors="pt",
    )
    index = torch.tensor([image])
    single = exact(alone["input_ids"], alone["attention_mask"], image_index=index, image_cache=cache)
    assert single.pred_masks[0].dtype == torch.float64
    torch.testing.assert_close(single.slot_states[0], output.slot_states[row], atol=1e-5, rtol=0)
    torch.testing.assert_close(single.pred_masks[0], output.pred_masks[row], atol=1e-4, rtol=0)


def targets(factor: float) -> list[torch.Tensor]:
    masks = [Image.open(PARITY / "ivm" / "gt_masks" / f"gt{row}.png").convert("L") for row in range(len(ROWS))]
    masks = [torch.from_numpy((np.asarray(mask) == 255).astype(np.float32)) for mask in masks]
    return [masks[0] * factor, *masks[1:]]


@pytest.mark.parametrize(("case", "factor"), [("binary", 1.0), ("soft_first_mask_times_0.37", 0.37)])
@torch.no_grad()
def test_losses(model, inputs, cache, case, factor):
    output = model(
        inputs["input_ids"],
        inputs["attention_mask"],
        image_index=inputs["image_index"],
        image_cache=cache,
        mask_labels=targets(factor),
    )
    expected = META[f"losses/{case}"]
    assert output.loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert output.losses["mask_bce_loss"].item() == pytest.approx(expected["generator_ce_loss"], rel=1e-5)
    assert output.losses["mask_dice_loss"].item() == pytest.approx(expected["generator_dice_loss"], rel=1e-5)


def test_gradients(model, inputs, cache):
    model.requires_grad_(True)
    model.segmenter.vision_encoder.requires_grad_(False)
    output = model(
        inputs["input_ids"],
        inputs["attention_mask"],
        image_index=inputs["image_index"],
        image_cache=cache,
        mask_labels=targets(0.37),
    )
    output.loss.backward()
    checkpoint = torch.load(PARITY / "ivm" / "IVM-V1.0.bin", weights_only=True)
    table = ivm_table(detect_ivm_layout(list(checkpoint)))
    scaling, compared = META["lora"]["scaling"], 0
    for original, norm in META["losses/grad_norms_soft"].items():
        gradient = model.get_parameter(table.rename(original)).grad
        if ".lora_" in original:
            # The merged weight's gradient G gives those of its factors: s Bt G and s G At.
            other = checkpoint[original.replace("lora_A", "lora_B")]
            down = checkpoint[original.replace("lora_B", "lora_A")]
            gradient = scaling * (other.T @ gradient if ".lora_A." in original else gradient @ down.T)
        if original.endswith("k_proj.bias"):
            # A key's bias shifts all scores of a query alike: both sides hold rounding only.
            weight = META["losses/grad_norms_soft"][original.replace("bias", "weight")]
            assert max(float(gradient.norm()), norm) < 1e-4 * weight, original
            continue
        compared += 1
        assert float(gradient.norm()) == pytest.approx(norm, rel=2e-3), original
    assert compared > 90
    model.zero_grad()
    model.requires_grad_(False)


def test_a_half_precision_language_model_stays_as_close_as_the_original_s(ivm_repo, inputs):
    """The original runs LLaVA in float16 and the rest in float32; its results move by the recorded differences."""
    model = IvmForVisualMasking.from_pretrained(ivm_repo, dtype=torch.float16, segmenter_dtype="float32").eval()
    assert model.vlm.dtype == torch.float16
    assert {parameter.dtype for parameter in [*model.segmenter.parameters(), *model.seg_projector.parameters()]} == {
        torch.float32
    }
    with torch.no_grad():
        output = model(**{name: value.half() if name == "pixel_values" else value for name, value in inputs.items()})
    states = torch.cat(output.prompt_embeddings)
    moved = META["fp16_llava"]["lang_maxdiff"]
    assert (states - RECORDED["fp16_llava/language_embeddings"][:, 0]).abs().max() <= 2 * moved
    assert (states - RECORDED["batch/language_embeddings"][:, 0]).abs().max() <= 2 * moved
