"""Any vision-language model with any segmenter: forward, losses, gradients, generation, saving."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from tests.support import tiny


def llava_next_inputs(count: int) -> tuple[dict, int]:
    """28 x 56 pixels: the whole image and two tiles, 2 x 2 patches each, a newline after each row of patches."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, 3, 28, 28, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[28, 56]] * count)}, 4 + 2 * 4 + 2


def qwen_inputs(count: int) -> tuple[dict, int]:
    """56 x 84 pixels: 4 x 6 patches, merged 2 x 2 to 6 tokens."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.tensor([[1, 4, 6]] * count)
    pixels = torch.randn(count * 24, 3 * 2 * 14 * 14, generator=generator)
    return {"pixel_values": pixels, "image_grid_thw": grid}, 6


def llava_inputs(count: int) -> tuple[dict, int]:
    return {"pixel_values": tiny.images(count)["pixel_values"]}, 4


PAIRS = {
    "llava and sam": (tiny.llava_config, tiny.sam_config, llava_inputs),
    "llava and sam2": (tiny.llava_config, tiny.sam2_config, llava_inputs),
    "llava and sam3_tracker": (tiny.llava_config, tiny.sam3_tracker_config, llava_inputs),
    "llava_next and sam_hq": (tiny.llava_next_config, tiny.sam_hq_config, llava_next_inputs),
    "qwen2_5_vl and sam2": (tiny.qwen2_5_vl_config, tiny.sam2_config, qwen_inputs),
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    vlm_config, segmenter_config, make_inputs = PAIRS[request.param]
    model = tiny.gsva_model(vlm_config(), segmenter_config(), seed=2)
    tiny.favour_slots(model)
    vlm_inputs, image_tokens = make_inputs(3)
    shared = tiny.images(3)
    images = {**vlm_inputs, **{name: value for name, value in shared.items() if name != "pixel_values"}}
    batch = tiny.prompts([6, 9, 5], image_tokens=image_tokens)
    return model, with_token_types(batch, model), images


def with_token_types(batch: dict, model) -> dict:
    if model.vlm.config.model_type == "qwen2_5_vl":
        batch["mm_token_type_ids"] = (batch["input_ids"] == tiny.IMAGE).long()
    return batch


def single(batch: dict, images: dict, row: int) -> tuple[dict, dict]:
    """One row without its padding, with its own image only."""
    keep = batch["attention_mask"][row].bool()
    alone = {name: value[row : row + 1, keep] for name, value in batch.items()}
    per_image = {}
    for name, value in images.items():
        size = len(value) // 3
        per_image[name] = value[row * size : (row + 1) * size]
    return alone, per_image


def answered(batch: dict, answers: list[list[int]], model) -> dict:
    return with_token_types(tiny.with_answers(batch, answers), model)


ANSWERS = [[10, tiny.SEG, tiny.REJ], [12], [tiny.SEG, tiny.SEG, 7]]


def test_batch_equals_single(pair):
    model, batch, images = pair
    batch = answered(batch, ANSWERS, model)
    with torch.no_grad():
        together = model(**batch, **images)
        for row in range(3):
            alone, image = single(batch, images, row)
            apart = model(**alone, **image)
            assert len(together.pred_masks[row]) == sum(token in (tiny.SEG, tiny.REJ) for token in ANSWERS[row])
            torch.testing.assert_close(together.pred_masks[row], apart.pred_masks[0], atol=1e-4, rtol=1e-4)
            keep = batch["attention_mask"][row].bool()
            torch.testing.assert_close(together.logits[row, keep], apart.logits[0], atol=1e-4, rtol=1e-4)


def test_generation_equals_teacher_forcing(pair):
    model, batch, images = pair
    output = model.generate_with_masks(**batch, **images, max_new_tokens=24, pad_token_id=tiny.PAD)
    assert sum(map(len, output.pred_masks)) > 0
    for row in range(3):
        alone, image = single(batch, images, row)
        sequence = torch.cat([alone["input_ids"], output.sequences[row : row + 1, batch["input_ids"].shape[1] :]], 1)
        with torch.no_grad():
            forced = model(**with_token_types({"input_ids": sequence}, model), **image)
        torch.testing.assert_close(output.pred_masks[row], forced.pred_masks[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.slot_probs[row], forced.slot_probs[0], atol=1e-4, rtol=1e-4)


def test_one_image_for_all_rows(pair):
    model, batch, images = pair
    _, image = single(batch, images, 0)
    shared = model.generate_with_masks(**batch, **image, max_new_tokens=12)
    repeated = {name: value.repeat(3, *[1] * (value.dim() - 1)) for name, value in image.items()}
    apart = model.generate_with_masks(**batch, **repeated, max_new_tokens=12)
    assert torch.equal(shared.sequences, apart.sequences)


def test_losses_and_gradients(pair):
    model, batch, images = pair
    batch = answered(batch, ANSWERS, model)
    mask_labels = [
        torch.randint(0, 2, (sum(t in (tiny.SEG, tiny.REJ) for t in answer), *size.tolist())).float()
        for answer, size in zip(ANSWERS, images["original_sizes"], strict=True)
    ]
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model.zero_grad()
    output = model.train()(**batch, **images, labels=labels, mask_labels=mask_labels)
    output.loss.backward()
    model.eval()
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    assert set(output.losses) == {"ce_loss", "mask_bce_loss", "mask_dice_loss"}
    for part in ("seg_projector.linear_1.weight", "segmenter.mask_decoder.mask_tokens.weight", "vlm.lm_head.weight"):
        gradient = model.get_parameter(part).grad
        assert gradient is not None, part
        assert gradient.isfinite().all(), part
        assert gradient.abs().sum() > 0, part
    encoder = [p.grad for p in model.segmenter.vision_encoder.parameters() if p.grad is not None]
    assert sum(float(gradient.abs().sum()) for gradient in encoder) > 0, "an unfrozen segmenter encoder must train"
    model.zero_grad()


def test_save_and_reload(pair, tmp_path):
    model, batch, images = pair
    model.save_pretrained(tmp_path)
    reloaded = GsvaForReasoningSegmentation.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, reloaded.state_dict()[name]), name
    batch = answered(batch, ANSWERS, model)
    with torch.no_grad():
        assert torch.equal(model(**batch, **images).logits, reloaded(**batch, **images).logits)


def test_vlm_stays_a_stock_checkpoint(pair, tmp_path):
    model, _, _ = pair
    model.vlm.save_pretrained(tmp_path)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(stock) is type(model.vlm)
    for name, value in model.vlm.state_dict().items():
        assert torch.equal(value, stock.state_dict()[name]), name
