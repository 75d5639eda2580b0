"""IVM's model: one heat-map per row whatever the padding, losses, weights, caches, and clear errors."""

import pytest
import torch
from transformers import AutoModel, GenerationConfig

from reasonseg.modeling.configuration_ivm import IvmConfig
from reasonseg.modeling.modeling_ivm import IvmForVisualMasking, state_positions
from tests.support import tiny


CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def model():
    return tiny.ivm_model()


@pytest.fixture(scope="module")
def batch():
    return {**tiny.prompts([5, 9, 7]), **tiny.images(3)}


def right_padded(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ids, mask = torch.full_like(batch["input_ids"], tiny.PAD), torch.zeros_like(batch["attention_mask"])
    for row, (own_ids, own_mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        kept = own_ids[own_mask.bool()]
        ids[row, : len(kept)], mask[row, : len(kept)] = kept, 1
    return {**batch, "input_ids": ids, "attention_mask": mask}


def test_the_default_is_the_size_of_the_published_model():
    config = IvmConfig()
    text, tower, sam = config.vlm_config.text_config, config.vlm_config.vision_config, config.segmenter_config
    assert (text.hidden_size, text.vocab_size, text.rms_norm_eps) == (4096, 32064, 1e-5)
    assert (tower.image_size, config.vlm_config.image_seq_length, config.image_token_id) == (336, 576, 32000)
    assert (sam.vision_config.hidden_size, sam.vision_config.num_hidden_layers) == (1280, 32)
    assert sam.mask_decoder_config.layer_norm_eps == 1e-5
    with torch.device("meta"):
        model = IvmForVisualMasking(config)
    encoder = sum(value.numel() for value in model.segmenter.vision_encoder.parameters())
    decoder = sum(value.numel() for value in model.segmenter.mask_decoder.parameters())
    projector = sum(value.numel() for value in model.seg_projector.parameters())
    language = sum(value.numel() for value in model.vlm.parameters())
    # LLaVA with its LoRA (r = 8) has 7,067,621,376 parameters, 4,194,304 of them the adapters
    assert language == 7_067_621_376 - 4_194_304
    # the released file holds 16,614,784 trained ones
    assert decoder + projector + 4_194_304 == 16_614_784
    assert encoder == 637_026_048


@torch.no_grad()
def test_rows_alone_in_a_batch_and_padded_on_either_side_are_equal(model, batch):
    together, other_side = model(**batch), model(**right_padded(batch))
    assert [masks.shape for masks in together.pred_masks] == [(1, 16, 16)] * 3
    for row in range(3):
        kept = batch["attention_mask"][row].bool()
        images = {name: value[row : row + 1] for name, value in batch.items() if not name.startswith(("input", "att"))}
        alone = model(batch["input_ids"][row][kept][None], **images)
        assert alone.slot_positions[0].item() == int(kept.sum()) - 2
        for output in (together, other_side):
            torch.testing.assert_close(output.slot_states[row][0], alone.slot_states[0][0], **CLOSE)
            torch.testing.assert_close(output.pred_masks[row], alone.pred_masks[0], **CLOSE)
    assert not torch.allclose(together.pred_masks[0], together.pred_masks[1], **CLOSE)


@torch.no_grad()
def test_the_state_before_the_last_token_decides(model, batch):
    output = model(**batch, output_hidden_states=True)
    states = torch.cat(output.slot_states)
    assert torch.equal(output.hidden_states[-1][:, -2], states)
    torch.testing.assert_close(model.seg_projector(states), torch.cat(output.prompt_embeddings), **CLOSE)
    changed = dict(batch, input_ids=batch["input_ids"].clone())
    changed["input_ids"][:, -1] = 7  # after the state, which sees only what stands before it
    assert torch.equal(torch.cat(model(**changed).slot_states), states)
    changed["input_ids"][:, -2] = 7
    assert not torch.allclose(torch.cat(model(**changed).slot_states), states, **CLOSE)


def test_a_reject_threshold_is_refused(model, batch):
    for call in (model, model.generate_with_masks):
        with pytest.raises(ValueError, match=r"reject_threshold is 0\.5, but IVM rejects nothing"):
            call(**batch, reject_threshold=0.5)


@torch.no_grad()
def test_rows_share_an_encoded_image(model, batch):
    index = torch.tensor([0, 1, 0])
    images = {name: value[:2] for name, value in batch.items() if not name.startswith(("input", "att"))}
    calls = []
    encoder = model.segmenter.vision_encoder
    hook = encoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    cache = model.encode_image(**images)
    assert calls == []
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    first = model(**text, image_index=index, image_cache=cache)
    second = model(**text, image_index=index, image_cache=cache)
    hook.remove()
    assert calls == [2], "each image once, for all rows and calls"
    repeated = {name: value[index] for name, value in images.items()}
    separate = model(**text, **repeated)
    for row in range(3):
        assert torch.equal(first.pred_masks[row], second.pred_masks[row])
        torch.testing.assert_close(first.pred_masks[row], separate.pred_masks[row], **CLOSE)


@torch.no_grad()
def test_generate_with_masks_is_the_forward_pass(model, batch):
    class Streamer:
        ended = False

        def end(self):
            self.ended = True

    streamer = Streamer()
    output = model.generate_with_masks(**batch, max_new_tokens=5, num_beams=2, streamer=streamer)
    expected = model(**batch)
    assert torch.equal(output.sequences, batch["input_ids"])
    assert all(map(torch.equal, output.pred_masks, expected.pred_masks))
    assert streamer.ended
    assert isinstance(model.generate_with_masks(**batch, return_dict=False), tuple)
    assert not torch.cat(output.rejected).any()
    assert torch.cat(output.slot_probs).tolist() == [1.0] * 3


def test_misspelt_options_are_refused(model, batch):
    with pytest.raises(ValueError, match="does not know max_new_token, pixel_value"):
        model.generate_with_masks(**batch, max_new_token=5, pixel_value=batch["pixel_values"])
    options = {"generation_config": GenerationConfig(max_new_tokens=2), "use_cache": True, "tokenizer": None}
    assert len(model.generate_with_masks(**batch, **options).pred_masks) == 3


def test_losses_are_means_of_rows_and_weights_weigh_rows(model, batch):
    targets = [torch.rand(30, 40), torch.rand(1, 64, 64), torch.rand(9, 9)]
    plain = model(**batch, mask_labels=targets)
    assert torch.equal(plain.loss, plain.losses["mask_bce_loss"] + plain.losses["mask_dice_loss"])
    rows = []
    for row in range(3):
        own = {name: value[row : row + 1] for name, value in batch.items()}
        rows.append(model(**own, mask_labels=targets[row : row + 1]).loss)
    torch.testing.assert_close(plain.loss, torch.stack(rows).mean(), atol=1e-5, rtol=1e-5)
    weights = torch.tensor([0.0, 2.0, 0.5])
    weighted = model(**batch, mask_labels=targets, sample_weights=weights)
    torch.testing.assert_close(weighted.loss, (weights * torch.stack(rows)).mean(), atol=1e-5, rtol=1e-5)
    stacked = model(**batch, mask_labels=torch.rand(3, 20, 20))
    assert stacked.loss.isfinite()


def test_every_trained_part_gets_a_gradient(batch):
    model = tiny.ivm_model(seed=1)
    model(**batch, mask_labels=torch.rand(3, 20, 20)).loss.backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    # CLIP's last layer and the head come after what is read
    assert all("vision_tower." in name or "lm_head" in name for name in without)
    moved = [name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0]
    for part in ("segmenter.mask_decoder.", "seg_projector.", "vlm.model.language_model."):
        assert any(name.startswith(part) for name in moved), part


@torch.no_grad()
def test_it_is_saved_and_loaded(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is IvmForVisualMasking
    assert all(map(torch.equal, again(**batch).pred_masks, model(**batch).pred_masks))
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.segmenter.vision_encoder.layers[0].mlp.lin1.weight.dtype == torch.bfloat16
    drawer = [*half.segmenter.mask_decoder.parameters(), *half.seg_projector.parameters()]
    assert {value.dtype for value in drawer} == {torch.float32}
    masks = half(**{name: value.bfloat16() if name == "pixel_values" else value for name, value in batch.items()})
    torch.testing.assert_close(masks.pred_masks[0], model(**batch).pred_masks[0], atol=0.02, rtol=0.1)


def test_state_positions():
    ids = torch.ones(3, 5, dtype=torch.long)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert state_positions(ids, mask).tolist() == [3, 1, 3]
    assert state_positions(ids, None).tolist() == [3, 3, 3]
    with pytest.raises(ValueError, match=r"The rows \[1\] have fewer than 2 tokens"):
        state_positions(ids[:2], torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "pass `input_ids`"),
        ({"pixel_values": None}, "IVM masks an image"),
        ({"sam_pixel_values": None}, "pass `sam_pixel_values`"),
        ({"image_index": torch.tensor([0, 1, 3])}, "each naming an image"),
        ({"mask_labels": [torch.rand(4, 4)] * 2}, "3 rows and 2 mask_labels"),
        ({"mask_labels": [torch.rand(2, 4, 4)] * 3}, r"The target of row 0 has the shape \(2, 4, 4\)"),
        ({"mask_labels": [torch.ones(4, 4) * 255] * 3}, "row 0 have values from 255 to 255"),
        ({"mask_labels": [torch.rand(1, 50)] * 3}, r"row 0 are \(1, 50\) pixels"),
        ({"mask_labels": [torch.rand(50, 40)] * 3}, r"row 0 are \(50, 40\) pixels"),
        ({"sample_weights": torch.ones(3)}, "need `mask_labels`"),
        ({"mask_labels": [torch.rand(4, 4)] * 3, "sample_weights": torch.ones(2)}, r"give one weight per row \(3,\)"),
    ],
)
def test_bad_inputs(model, batch, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**batch, **change})


def test_another_segmenter_is_refused():
    with pytest.raises(ValueError, match="segmenter_config has the type 'sam2'"):
        IvmForVisualMasking(tiny.ivm_config(segmenter_config=tiny.sam2_config()))
