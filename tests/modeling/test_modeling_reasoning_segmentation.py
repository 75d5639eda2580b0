"""The composed model as a citizen of transformers: precision, attention, devices, adapters, quantization, training."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig

from reasonseg.modeling.configuration_lisa import LisaConfig
from reasonseg.modeling.configuration_reasoning_segmentation import ReasoningSegmentationConfig
from reasonseg.modeling.modeling_gsva import GsvaForReasoningSegmentation
from reasonseg.modeling.modeling_lisa import LisaForReasoningSegmentation
from reasonseg.modeling.modeling_reasoning_segmentation import ComposedForReasoningSegmentation
from reasonseg.modeling.segmenters import upsample_masks
from tests.support import tiny


ANSWERS = [[10, tiny.SEG, 11, tiny.REJ], [12, tiny.SEG]]


@pytest.fixture
def model():
    return tiny.gsva_model(seed=2)


@pytest.fixture(scope="module")
def inputs():
    return {**tiny.with_answers(tiny.prompts([6, 9]), ANSWERS), **tiny.images(2)}


@pytest.fixture(scope="module")
def targets(inputs):
    generator = torch.Generator().manual_seed(0)
    masks = [
        torch.randint(0, 2, (count, *size.tolist()), generator=generator).float()
        for count, size in zip([2, 1], inputs["original_sizes"], strict=True)
    ]
    return {"labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100), "mask_labels": masks}


def test_order_of_children(model):
    assert [name for name, _ in model.named_children()] == ["segmenter", "seg_projector", "vlm"]


def test_base_class_and_lisa_compute_the_same(model, inputs):
    config = model.config.to_dict()
    for config_class, model_class in (
        (ReasoningSegmentationConfig, ComposedForReasoningSegmentation),
        (LisaConfig, LisaForReasoningSegmentation),
    ):
        twin = model_class(config_class.from_dict({**config, "model_type": config_class.model_type})).eval()
        twin.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(twin(**inputs).pred_masks[0], model(**inputs).pred_masks[0])


def test_without_rej_token_nothing_is_rejected(inputs):
    model = tiny.gsva_model(seed=2, rej_token_id=None)
    with torch.no_grad():
        output = model(**inputs)
    assert [len(masks) for masks in output.pred_masks] == [1, 1]
    assert all((probability == 1).all() for probability in output.slot_probs)
    assert not any(rejected.any() for rejected in output.rejected)


@pytest.mark.parametrize("count_rejected_masks", [True, False])
def test_mask_losses_without_rej_token(inputs, targets, count_rejected_masks):
    """Every slot is a [SEG] then: the losses are means over exactly the drawn masks, none left out or painted over."""
    model = tiny.gsva_model(seed=2, rej_token_id=None, count_rejected_masks=count_rejected_masks)
    masks = [torch.ones_like(row_targets[:1]) for row_targets in targets["mask_labels"]]
    output = model(**inputs, labels=targets["labels"], mask_labels=masks)
    bce, dice = [], []
    for row, target in enumerate(masks):
        drawn = upsample_masks(
            output.pred_masks[row],
            side=inputs["sam_pixel_values"].shape[-1],
            resized_size=inputs["reshaped_input_sizes"][row].tolist(),
            output_size=target.shape[-2:],
        )
        p = drawn.sigmoid()
        bce.append(-(target * p.log() + (1 - target) * (1 - p).log()).mean())
        assert abs(bce[-1] - math.log(2)) > 1e-3, "an empty drawing, as of a rejected slot, must not pass for this one"
        overlap, total = 2 * (p * target).sum() / 1000, (p.sum() + target.sum()) / 1000
        dice.append(1 - (overlap + 1e-6) / (total + 1e-6))
    weights = model.config.bce_loss_weight, model.config.dice_loss_weight
    for name, weight, values in zip(("mask_bce_loss", "mask_dice_loss"), weights, (bce, dice), strict=True):
        torch.testing.assert_close(output.losses[name], weight * sum(values) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("best", "expected"), [(tiny.SEG, [False, False]), (tiny.REJ, [True, True]), (20, [True, False])]
)
def test_rule_at_seg_and_at_rej(best, expected):
    from reasonseg.modeling.modeling_reasoning_segmentation import rejected_by_argmax

    logits = torch.zeros(2, tiny.VOCAB_SIZE)
    logits[:, best] = 1
    tokens = torch.tensor([tiny.SEG, tiny.REJ])
    assert rejected_by_argmax(logits, tokens, tiny.SEG, tiny.REJ).tolist() == expected


def test_reeval_draws_from_the_second_pass(model, inputs):
    swapped = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.REJ, tiny.SEG)
    given = inputs["input_ids"].clone()
    with torch.no_grad():
        first = model(**inputs)
        second = model(**{**inputs, "input_ids": swapped})
        both = model(**inputs, reeval=True, share_prefixes=False)
    assert torch.equal(inputs["input_ids"], given), "the caller's ids must stay as they are"
    for row in range(2):
        assert torch.equal(both.pred_masks[row], second.pred_masks[row])
        assert torch.equal(both.rejected[row], first.rejected[row])
        assert torch.equal(both.slot_probs[row], first.slot_probs[row])
    with pytest.raises(ValueError, match="without it to get losses"):
        model(**inputs, reeval=True, labels=inputs["input_ids"])
    model.config.rej_token_id = None
    with pytest.raises(ValueError, match="needs a rej_token_id"):
        model(**inputs, reeval=True)


def test_placeholder_takes_no_part_in_the_language_loss(model, inputs, targets):
    """The loss equals one computed over the vocabulary without the placeholder's row."""
    with torch.no_grad():
        output = model(**inputs, labels=targets["labels"])
    logits = output.logits[:, :-1, : tiny.IMAGE]  # it is the last row
    labels = targets["labels"][:, 1:].masked_fill(targets["labels"][:, 1:] == tiny.IMAGE, -100)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(output.losses["ce_loss"], expected)


def test_rejected_slots_count_as_constants(model, inputs, targets):
    """GSVA's quirk: logit 0 everywhere, so bce is ln 2 and there is nothing to learn; the switch leaves them out."""
    with torch.no_grad():
        counted = model(**inputs, **targets).losses
        model.config.count_rejected_masks = False
        left_out = model(**inputs, **targets).losses
    ln2 = 2.0 * torch.tensor(2.0).log()
    torch.testing.assert_close(counted["mask_bce_loss"] * 3, left_out["mask_bce_loss"] * 2 + ln2)


def test_row_without_slot_in_training(model, inputs, targets):
    """Every parameter of the mask path takes part, so that many processes wait for the same gradients."""
    batch = {**tiny.with_answers(tiny.prompts([6, 9]), [[10, 11], [12, 13]]), **tiny.images(2)}
    empty = [torch.zeros(0, *size.tolist()) for size in batch["original_sizes"]]
    output = model.train()(**batch, labels=batch["input_ids"], mask_labels=empty)
    assert output.losses["mask_bce_loss"] == 0
    output.loss.backward()
    assert model.seg_projector.linear_1.weight.grad is not None
    assert model.seg_projector.linear_1.weight.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask * 255, "row 0 have values from 0 to 255"),
        (lambda mask: (mask * 255).to(torch.uint8), "row 0 have values from 0 to 255"),
        (lambda mask: mask[:, :1], r"row 0 are \(1, 50\) pixels .* upright image \(40, 50\)"),
        (lambda mask: mask.transpose(1, 2), r"row 0 are \(50, 40\) pixels"),
        (lambda mask: mask[..., ::2], r"row 0 are \(40, 25\) pixels"),
    ],
)
def test_mask_labels_that_would_train_something_else(model, inputs, targets, change, message):
    masks = targets["mask_labels"]
    with pytest.raises(ValueError, match=message):
        model(**inputs, mask_labels=[change(masks[0]), masks[1]])


def test_mask_labels_of_other_number_formats_give_the_same_loss(model, inputs, targets):
    expected = model(**inputs, mask_labels=targets["mask_labels"]).loss
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float64):
        masks = [mask.to(dtype) for mask in targets["mask_labels"]]
        assert torch.equal(model(**inputs, mask_labels=masks).loss, expected)


def test_wrong_number_of_mask_labels(model, inputs, targets):
    with pytest.raises(ValueError, match=r"\[2, 1\] .* slots but mask_labels holds \[1, 1\]"):
        model(**inputs, mask_labels=[targets["mask_labels"][0][:1], targets["mask_labels"][1]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_drawer_in_float32(model, inputs, tmp_path, dtype):
    model.save_pretrained(tmp_path)
    half = GsvaForReasoningSegmentation.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype
    assert {p.dtype for p in half.vlm.parameters()} == {dtype}
    drawer = {n: p for n, p in half.segmenter.named_parameters() if not n.startswith("vision_encoder.")}
    assert {p.dtype for p in [*drawer.values(), *half.seg_projector.parameters()]} == {torch.float32}
    with torch.no_grad():
        output = half(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)})
        exact = model(**inputs)
    assert output.pred_masks[0].dtype == torch.float32
    agreement = ((output.pred_masks[0] > 0) == (exact.pred_masks[0] > 0)).float().mean()
    assert agreement > 0.95
    generated = half.generate_with_masks(
        **tiny.prompts([6]),
        **{k: v.to(dtype) if k == "pixel_values" else v for k, v in tiny.images(1).items()},
        max_new_tokens=4,
    )
    assert generated.sequences.shape[1] > 10
    half.save_pretrained(tmp_path / "again")
    assert GsvaForReasoningSegmentation.from_pretrained(tmp_path / "again", dtype="auto").dtype == dtype


@pytest.mark.parametrize("implementation", ["eager", "sdpa", {"vlm_config": "eager", "segmenter_config": "sdpa"}])
def test_attention_implementations_agree(model, inputs, tmp_path, implementation):
    model.save_pretrained(tmp_path)
    other = GsvaForReasoningSegmentation.from_pretrained(tmp_path, attn_implementation=implementation)
    expected = implementation if isinstance(implementation, str) else implementation["vlm_config"]
    assert other.vlm.config.get_text_config()._attn_implementation == expected
    with torch.no_grad():
        torch.testing.assert_close(other(**inputs).pred_masks[0], model(**inputs).pred_masks[0], atol=1e-4, rtol=1e-4)


def test_device_map(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    placed = GsvaForReasoningSegmentation.from_pretrained(tmp_path, device_map={"": "cpu"})
    with torch.no_grad():
        assert torch.equal(placed(**inputs).pred_masks[0], model(**inputs).pred_masks[0])


def test_offloaded_language_model(model, inputs, tmp_path):
    """Segmenter and projector stay, the language model's layers come from disk one by one."""
    model.save_pretrained(tmp_path / "repo")
    placed = GsvaForReasoningSegmentation.from_pretrained(
        tmp_path / "repo",
        device_map={"segmenter": "cpu", "seg_projector": "cpu", "vlm": "disk"},
        offload_folder=tmp_path / "offload",
    )
    with torch.no_grad():
        torch.testing.assert_close(placed(**inputs).pred_masks[0], model(**inputs).pred_masks[0])
    batch, image = tiny.prompts([6]), tiny.images(1)
    assert torch.equal(
        placed.generate_with_masks(**batch, **image, max_new_tokens=6).sequences,
        model.generate_with_masks(**batch, **image, max_new_tokens=6).sequences,
    )


def test_quantization_leaves_the_drawer_alone(model, tmp_path):
    pytest.importorskip("bitsandbytes", reason="an optional dependency")
    model.save_pretrained(tmp_path)
    quantized = GsvaForReasoningSegmentation.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    kinds = {type(m).__name__ for m in quantized.segmenter.modules()} | {
        type(m).__name__ for m in quantized.seg_projector.modules()
    }
    assert "Linear4bit" not in kinds
    assert "Linear4bit" in {type(m).__name__ for m in quantized.vlm.modules()}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model, inputs, targets, reentrant):
    def gradients(model):
        model.train()
        model.zero_grad()
        model(**inputs, **targets, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    checkpointed = gradients(model)
    assert model.is_activation_checkpointing
    for name in ("vlm.model.language_model.layers.0.self_attn.q_proj.weight", "seg_projector.linear_1.weight"):
        torch.testing.assert_close(checkpointed[name], plain[name], atol=1e-6, rtol=1e-4)


def test_reentrant_checkpointing_with_sam2_is_refused():
    model = tiny.gsva_model(segmenter_config=tiny.sam2_config())
    with pytest.raises(ValueError, match="use_reentrant"):
        model.activation_checkpointing_enable({"use_reentrant": True})


LORA_TARGETS = r"vlm\..*language_model\..*\.(q_proj|v_proj)"


def test_peft_trains_saves_reloads_and_merges(model, inputs, targets, tmp_path):
    base = copy.deepcopy(model)
    torch.manual_seed(0)
    adapted = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS, modules_to_save=["lm_head", "seg_projector"]),
    )
    names = [name for name, p in adapted.named_parameters() if "lora_" in name]
    assert names
    assert all("language_model" in name for name in names), "CLIP and SAM also have q_proj and must stay untouched"
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        loss = adapted(**inputs, **targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()
    with torch.no_grad():
        trained = adapted(**inputs)
        untrained = base(**inputs)
    assert (trained.logits - untrained.logits)[..., : tiny.IMAGE].abs().max() > 1e-3
    generated = adapted.generate_with_masks(**tiny.prompts([6]), **tiny.images(1), max_new_tokens=6)

    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    merged = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).merge_and_unload().eval()
    with torch.no_grad():
        for other in (reloaded, merged):
            torch.testing.assert_close(other(**inputs).pred_masks[0], trained.pred_masks[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(other(**inputs).logits, trained.logits, atol=1e-4, rtol=1e-4)
    again = merged.generate_with_masks(**tiny.prompts([6]), **tiny.images(1), max_new_tokens=6)
    assert torch.equal(again.sequences, generated.sequences)


def test_return_dict_false(model, inputs):
    with torch.no_grad():
        output = model(**inputs)
        fields = model(**inputs, return_dict=False)
    assert isinstance(fields, tuple)
    assert torch.equal(fields[0], output.logits)


def test_config_round_trip(tmp_path):
    config = tiny.gsva_config(dice_loss_weight=0.25, count_rejected_masks=False)
    config.save_pretrained(tmp_path)
    reloaded = type(config).from_pretrained(tmp_path)
    assert reloaded.to_dict() == config.to_dict()
    assert not hasattr(reloaded, "auto_map")
    assert config.to_dict()["auto_map"]["AutoModel"] == "modeling_gsva.GsvaForReasoningSegmentation"


def test_same_token_for_seg_and_rej():
    with pytest.raises(ValueError, match="must be two different tokens"):
        tiny.gsva_config(rej_token_id=tiny.SEG)


def test_unknown_segmenter_family():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from reasonseg.modeling.segmenters import segmenter_adapter

    with pytest.raises(ValueError, match="No adapter for a segmenter of type 'clip_vision_model'"):
        segmenter_adapter(CLIPVisionModel(CLIPVisionConfig(**tiny.CLIP)))
