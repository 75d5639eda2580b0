"""The loss that shows attention where to look."""

import pytest
import torch

from reasonseg.tabletop.model import (
    SEGMENTER_SIDE,
    VLM_PATCH,
    VLM_SIDE,
    tabletop_config,
    tabletop_model,
)
from reasonseg.tabletop.processor import build_processor, token_ids
from reasonseg.tabletop.scenes import draw_scene
from reasonseg.training.attention_guidance import AttentionGuidance
from reasonseg.training.collator import Example, SegmentationCollator


@pytest.fixture(scope="module")
def processor():
    return build_processor(VLM_SIDE, VLM_PATCH, SEGMENTER_SIDE)


@pytest.fixture
def model(processor):
    return tabletop_model(tabletop_config(token_ids(processor)), seed=0, attn_implementation="eager")


@pytest.fixture(scope="module")
def batch(processor):
    """Two conversations; the target of the first lies in the upper left quarter of the image."""
    scene = draw_scene("train", 0)
    mask = torch.zeros(scene.size, scene.size, dtype=torch.bool)
    mask[: scene.size // 2, : scene.size // 2] = True
    example = Example(
        scene.image,
        ["What are the cup, a dog?", "Find a dog."],
        ["the cup [SEG], a dog [REJ].", "a dog [REJ]."],
        [[mask.numpy(), None], [None]],
    )
    return SegmentationCollator(processor, mask_size=64)([example])


def guided(model, batch, layer=1, heads=2):
    guidance = AttentionGuidance(model, layer, heads)
    output = model(**batch, output_attentions=True)
    loss = guidance.loss(batch["input_ids"], output.slot_positions, batch["mask_labels"])
    return loss, output


def test_loss_is_the_attention_to_targets_and_to_the_first_token(model, batch):
    seen = []
    layer = model.vlm.base_model.language_model.layers[1].self_attn
    layer.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    loss, output = guided(model, batch)
    (attention,) = seen
    first_patch = int((batch["input_ids"][0] == model.config.vlm_config.image_token_id).nonzero()[0])
    quarter = [first_patch + 8 * row + column for row in range(4) for column in range(4)]
    right = []
    for row, slot, target in ((0, 0, quarter), (0, 1, [0]), (1, 0, [0])):
        position = int(output.slot_positions[row][slot]) - 1
        right.append(attention[row, :2, position][:, target].sum(-1))
    torch.testing.assert_close(loss, -(torch.stack(right) + 1e-6).log().mean())


def test_following_the_loss_moves_attention_to_the_target(model, batch):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    guidance = AttentionGuidance(model, layer=1, heads=2)
    losses = []
    for _ in range(12):
        output = model(**batch)
        loss = guidance.loss(batch["input_ids"], output.slot_positions, batch["mask_labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_landmarks_are_looked_at_like_masks(model, batch):
    """As an auxiliary loss: the masks of the batch or, for what has to be found before, those of the landmarks."""
    output = model(**batch)
    half = [torch.cat([mask.flip(-1)[:1], mask[1:]]) for mask in batch["mask_labels"]]
    losses = {}
    for name, landmarks, masks in (("targets", False, batch["mask_labels"]), ("landmarks", True, half)):
        guidance = AttentionGuidance(model, layer=1, heads=2, weight=3.0, landmarks=landmarks)
        output = model(**batch)
        losses[name] = guidance(batch, output, {"landmark_labels": half})
        guidance = AttentionGuidance(model, layer=1, heads=2)
        output = model(**batch)
        expected = 3 * guidance.loss(batch["input_ids"], output.slot_positions, masks)
        torch.testing.assert_close(losses[name], expected)
    assert losses["targets"] != losses["landmarks"]


def test_a_batch_without_slots_costs_nothing(model, processor):
    scene = draw_scene("train", 1)
    batch = SegmentationCollator(processor, 64)([Example(scene.image, ["Find a dog."], ["it is a dog."], [[]])])
    guidance = AttentionGuidance(model, layer=0, heads=1)
    output = model(**batch)
    assert guidance.loss(batch["input_ids"], output.slot_positions, batch["mask_labels"]) == 0


def test_what_cannot_be_guided_is_refused(model):
    with pytest.raises(ValueError, match="no layer 4; the language model has 4"):
        AttentionGuidance(model, layer=4, heads=1)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="needs attn_implementation: eager, not 'sdpa'"):
        AttentionGuidance(model, layer=1, heads=1)
