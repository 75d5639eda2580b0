"""Sa2VA's way of pointing and drawing on tiny models: the state at the slot, padded prompts, the best candidate."""

import pytest
import torch

from reasonseg.modeling.configuration_sa2va import Sa2VaConfig
from reasonseg.modeling.segmenters import (
    NO_OBJECT,
    bce_per_mask,
    naive_dice_per_mask,
    sample_points,
    segmenter_adapter,
    values_at,
)
from tests.modeling.test_families import qwen_inputs, single
from tests.support import tiny


CLOSE = {"atol": 1e-4, "rtol": 1e-4}
ANSWERS = [[10, tiny.SEG, 12, tiny.EOS], [12, tiny.EOS], [tiny.SEG, tiny.SEG, 7, tiny.EOS]]
IMAGE_TOKENS = 6
# About every third token is a slot.
SAMPLED = {"do_sample": True, "sequence_bias": {(tiny.SEG,): 2.5}, "pad_token_id": tiny.PAD}


@pytest.fixture(scope="module")
def model():
    return tiny.sa2va_model(seed=2)


@pytest.fixture(scope="module")
def images():
    vlm_inputs, _ = qwen_inputs(3)
    return {**vlm_inputs, **{name: value for name, value in tiny.images(3).items() if name != "pixel_values"}}


def with_types(batch: dict) -> dict:
    return {**batch, "mm_token_type_ids": (batch["input_ids"] == tiny.IMAGE).long()}


def prompts() -> dict:
    return with_types(tiny.prompts([6, 9, 5], image_tokens=IMAGE_TOKENS))


def answered() -> dict:
    return with_types(tiny.with_answers(tiny.prompts([6, 9, 5], image_tokens=IMAGE_TOKENS), ANSWERS))


@torch.no_grad()
def test_the_state_is_read_at_the_slot_before_the_last_norm(model, images):
    seen = []
    norm = model.vlm.model.language_model.norm
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = answered()
    output = model(**batch, **images, share_prefixes=False)
    handle.remove()
    for row, answer in enumerate(ANSWERS):
        positions = output.slot_positions[row]
        assert (batch["input_ids"][row, positions] == tiny.SEG).all()
        assert len(positions) == answer.count(tiny.SEG)
        assert torch.equal(output.slot_states[row], seen[0][row, positions])
    after = tiny.sa2va_model(seed=2, slot_state_normalized=True)(**batch, **images)
    torch.testing.assert_close(after.slot_states[0], norm(output.slot_states[0]), **CLOSE)


@torch.no_grad()
def test_prompts_are_padded_and_the_best_candidate_is_kept(model, images):
    output = model(**answered(), **images)
    segmenter = segmenter_adapter(model.segmenter)
    features = segmenter.encode(images["sam_pixel_values"][[0, 2, 2]])
    prompts = torch.cat(output.prompt_embeddings)
    no_point = model.segmenter.prompt_encoder.not_a_point_embed.weight[0]
    sparse = torch.stack([torch.stack([no_point, no_point, prompt]) for prompt in prompts])
    _, dense = model.segmenter.prompt_encoder(None, None, None, None)
    masks, scores = segmenter.decode_encoded(features, sparse[:, None], dense, multimask_output=True)
    assert masks.shape[1] == 3
    best = scores.argmax(1)
    assert not torch.equal(masks[:, 0], masks[torch.arange(3), best]), "or this test says nothing"
    torch.testing.assert_close(torch.cat(output.mask_scores), scores.max(1).values, **CLOSE)
    torch.testing.assert_close(torch.cat(output.pred_masks), masks[torch.arange(3), best], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(("side", "segmenter"), [("left", "sam2"), ("right", "sam2"), ("left", "sam3")])
def test_a_batch_is_its_rows_whatever_the_padding(model, images, side, segmenter):
    batch = answered()
    if segmenter == "sam3":
        model = tiny.sa2va_model(seed=2, segmenter_config=tiny.sam3_tracker_config())
        drawn = model(**batch, **images).pred_masks
        model.config.empty_without_object = True
        bias = model.segmenter.mask_decoder.pred_obj_score_head.proj_out.bias
        for shift, is_there in ((50, True), (-100, False)):
            bias += shift
            for masks, known in zip(model(**batch, **images).pred_masks, drawn, strict=True):
                torch.testing.assert_close(masks, known if is_there else torch.full_like(known, NO_OBJECT))
        assert model.train()(**batch, **images).pred_masks[0].max() > NO_OBJECT  # learns to draw what is not there yet
        model.eval()
        bias += 50
    if side == "left":  # the padding in one piece before each row
        order = batch["attention_mask"].argsort(dim=1, stable=True)
        batch = {name: value.gather(1, order) for name, value in batch.items()}
    together = model(**batch, **images)
    shared = model(**batch, image_cache=model.encode_image(**images))
    for row in range(3):
        alone, image = single(batch, images, row)
        apart = model(**alone, **image)
        for name in ("pred_masks", "mask_scores", "slot_states"):
            torch.testing.assert_close(together[name][row], apart[name][0], **CLOSE)
            torch.testing.assert_close(shared[name][row], apart[name][0], **CLOSE)


@torch.no_grad()
def test_questions_about_one_image_share_what_they_begin_with(model, images):
    ids = torch.cat([prompts()["input_ids"][:1]] * 2)
    ids = torch.cat([ids, torch.tensor([[20, tiny.SEG, 8], [21, 22, tiny.SEG]])], 1)
    batch = with_types({"input_ids": ids, "attention_mask": (ids != tiny.PAD).long()})
    _, image = single(batch, images, 0)
    image = {name: value[:24] if name == "pixel_values" else value[:1] for name, value in images.items()}
    index = torch.tensor([0, 0])
    shared = model(**batch, **image, image_index=index)
    whole = model(**batch, **image, image_index=index, share_prefixes=False)
    torch.testing.assert_close(shared.logits[:, 8:], whole.logits[:, 8:], **CLOSE)
    torch.testing.assert_close(torch.cat(shared.pred_masks), torch.cat(whole.pred_masks), **CLOSE)


@pytest.mark.parametrize("way", ["sampled", "beams", "several"])
def test_written_answers_equal_given_ones(model, images, way):
    options = {
        "sampled": SAMPLED,
        "beams": {"num_beams": 3, "num_return_sequences": 2, **SAMPLED},
        "several": {"num_return_sequences": 2, **SAMPLED},
    }[way]
    torch.manual_seed(1)
    batch = prompts()
    output = model.generate_with_masks(**batch, **images, max_new_tokens=16, **options)
    copies, drawn = len(output.sequences) // 3, 0
    for row, sequence in enumerate(output.sequences):
        keep = torch.cat([batch["attention_mask"][row // copies].bool(), torch.ones(16).bool()])[: len(sequence)]
        first = int(keep.long().argmax())
        written = sequence[first:]
        if tiny.EOS in written:
            written = written[: int((written == tiny.EOS).nonzero()[0]) + 1]
        _, image = single(batch, images, row // copies)
        with torch.no_grad():
            given = model(**with_types({"input_ids": written[None]}), **image)
        # A slot at the very end has no state yet while it is written.
        count = int((written[:-1] == tiny.SEG).sum())
        assert len(output.pred_masks[row]) == count
        torch.testing.assert_close(output.pred_masks[row], given.pred_masks[0][:count], **CLOSE)
        assert (output.slot_positions[row] - first).tolist() == given.slot_positions[0][:count].tolist()
        drawn += count
    assert drawn > 5


def test_a_stream_draws_each_slot_before_the_next_token(model, images):
    batch, image = single(prompts(), images, 0)
    torch.manual_seed(3)
    whole = model.generate_with_masks(**batch, **image, max_new_tokens=24, **SAMPLED)
    torch.manual_seed(3)
    steps = list(model.stream_with_masks(**batch, **image, max_new_tokens=24, **SAMPLED))
    slots = [step.slot for step in steps if step.slot is not None]
    for before, step in zip([None, *steps], steps, strict=False):
        assert step.slot is None or before.token_ids == [tiny.SEG]
    assert len(slots) == len(whole.pred_masks[0]) > 2
    assert torch.equal(steps[-1].output.sequences, whole.sequences)
    streamed = torch.cat([slot.pred_masks[0] for slot in slots])
    assert torch.equal(streamed, steps[-1].output.pred_masks[0])
    torch.testing.assert_close(streamed, whole.pred_masks[0], **CLOSE)


def test_an_assistant_writes_several_tokens_at_once(model, images):
    batch, image = single(prompts(), images, 0)
    options = {"max_new_tokens": 12, "sequence_bias": {(tiny.SEG,): 4.0}, "pad_token_id": tiny.PAD}
    whole = model.generate_with_masks(**batch, **image, **options)
    assistant = tiny.sa2va_model(seed=2)
    steps = list(model.stream_with_masks(**batch, **image, assistant_model=assistant.vlm, **options))
    assert torch.equal(steps[-1].output.sequences, whole.sequences)
    slots = [step.slot.pred_masks[0] for step in steps if step.slot is not None]
    assert len(slots) == len(whole.pred_masks[0]) > 0
    torch.testing.assert_close(torch.cat(slots), whole.pred_masks[0], **CLOSE)


def test_slots_of_prompts_come_first_where_they_are_wanted(model, images, monkeypatch):
    batch = prompts()
    batch["input_ids"][:2, -2] = tiny.SEG
    torch.manual_seed(1)
    output = model.generate_with_masks(**batch, **images, max_new_tokens=12, num_return_sequences=2, **SAMPLED)
    torch.manual_seed(1)
    without = model.generate_with_masks(
        **batch, **images, max_new_tokens=12, num_return_sequences=2, prompt_slots=False, **SAMPLED
    )
    with torch.no_grad():
        asked = model(**batch, **images)
    for row in range(6):
        count = len(asked.pred_masks[row // 2])
        assert count == (row < 4)
        torch.testing.assert_close(output.pred_masks[row][:count], asked.pred_masks[row // 2], **CLOSE)
        torch.testing.assert_close(output.pred_masks[row][count:], without.pred_masks[row], **CLOSE)
    # The second pass reads the two prompts that hold a slot, and in a stream their slots come first.
    read, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda ids, *args, **kwargs: read.append(ids) or forward(ids, *args, **kwargs)
    )
    model.generate_with_masks(**batch, **images, max_new_tokens=1, pad_token_id=tiny.PAD)
    assert torch.equal(read[0], batch["input_ids"][:2])
    alone, image = single(batch, images, 0)
    torch.manual_seed(1)
    *steps, last = model.stream_with_masks(**alone, **image, max_new_tokens=12, **SAMPLED)
    slots = [step.slot for step in steps if step.slot is not None]
    assert steps[0].slot is slots[0]
    assert len(slots) == len(last.output.pred_masks[0]) > 1
    assert torch.equal(torch.cat([slot.pred_masks[0] for slot in slots]), last.output.pred_masks[0])
    assert slots[0].slot_positions[0].tolist() == [alone["input_ids"].shape[1] - 2]


def test_losses_are_taken_at_points_of_the_low_resolution_masks(model, images):
    batch = answered()
    images = {**images, "reshaped_input_sizes": torch.full((3, 2), tiny.SAM_SIDE)}  # squeezed, as Sa2VA's views are
    targets = [
        torch.zeros(answer.count(tiny.SEG), *size).index_fill_(1, torch.arange(12), 1.0)
        for answer, size in zip(ANSWERS, images["original_sizes"].tolist(), strict=True)
    ]
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model.zero_grad()
    torch.manual_seed(0)
    output = model(**batch, **images, labels=labels, mask_labels=targets)
    torch.manual_seed(0)
    bce, dice = [], []
    for masks, target in zip(output.pred_masks, targets, strict=True):
        if not len(masks):
            continue
        small = torch.nn.functional.interpolate(target[:, None], masks.shape[-2:], mode="nearest")[:, 0]
        points = sample_points(masks, model.config.mask_loss_points)
        bce.append(bce_per_mask(values_at(masks, points), values_at(small, points)))
        dice.append(naive_dice_per_mask(values_at(masks, points), values_at(small, points)))
    torch.testing.assert_close(output.losses["mask_bce_loss"], 2.0 * torch.cat(bce).mean(), **CLOSE)
    torch.testing.assert_close(output.losses["mask_dice_loss"], 0.5 * torch.cat(dice).mean(), **CLOSE)
    output.loss.backward()
    assert model.seg_projector.linear_1.weight.grad.abs().sum() > 0
    assert model.vlm.lm_head.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_targets_of_padded_views_stay_where_the_image_is(model, images, monkeypatch):
    """The left half of each image is the target, and is drawn at the left of that part of the view that it fills."""
    images = {**images, "reshaped_input_sizes": torch.tensor([[64, 64], [64, 64], [48, 32]])}
    drawn = torch.full((3, 16, 16), -3.0)
    for masks, width in zip(drawn, (16, 8, 8), strict=True):
        masks[:, : width // 2] = 3.0
    monkeypatch.setattr(model, "_draw", lambda *_: (drawn[:, 0], drawn, drawn[:, 0, 0]))
    targets = []
    for answer, (height, width) in zip(ANSWERS, images["original_sizes"].tolist(), strict=True):
        targets.append(torch.zeros(answer.count(tiny.SEG), height, width))
        targets[-1][..., : width // 2] = 1.0
    torch.manual_seed(0)
    losses = model(**answered(), **images, mask_labels=targets).losses
    # Elsewhere than at the border of both halves, where most points lie, the cross entropy is 0.05.
    assert losses["mask_bce_loss"] / model.config.bce_loss_weight < 0.4
    assert losses["mask_dice_loss"] / model.config.dice_loss_weight < 0.22


def test_points_lie_where_a_mask_is_uncertain():
    logits = torch.linspace(-8, 8, 64).expand(2, 64, 64).contiguous()  # 0 in the middle column
    torch.manual_seed(0)
    points = sample_points(logits, 2000)
    assert points.shape == (2, 2000, 2)
    near = ((points[..., 0] - 0.5).abs() < 0.17).float().mean()
    assert near > 0.75 + 0.25 * 0.3  # all of the uncertain ones and some of the others
    assert values_at(logits, points).shape == (2, 2000)
    corner = values_at(logits, torch.tensor([[[0.0, 0.0], [0.5, 0.5]]] * 2))
    torch.testing.assert_close(corner[:, 1], torch.zeros(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"rej_token_id": 5}, "leave rej_token_id out"), ({"prompt_padding_points": -1}, "must be 0 or more")],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Sa2VaConfig(vlm_config=tiny.qwen3_vl_config(), segmenter_config=tiny.sam2_config(), **fields)


def test_only_a_segmenter_that_scores_objects_can_empty_masks():
    with torch.device("meta"), pytest.raises(ValueError, match="needs a segmenter that scores objects"):
        tiny.sa2va_model(segmenter_config=tiny.sam_config(), empty_without_object=True)
