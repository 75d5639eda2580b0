"""Dense labels of patches, and the likeness of patches and words."""

import pytest
import torch
import torch.nn.functional as F

from reasonseg.tabletop.collator import TabletopCollator
from reasonseg.tabletop.dataset import TabletopDataset
from reasonseg.tabletop.recipe import build_tabletop, word_ids
from reasonseg.tabletop.scenes import COLOURS, KINDS, draw_scene
from reasonseg.tabletop.towers import WORDS, PatchGuidance, WordAlignment, patch_labels
from reasonseg.training.recipe import load_recipe


@pytest.fixture(scope="module")
def built():
    return build_tabletop(load_recipe("tabletop"))


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene("train", index) for index in range(3)]


@pytest.mark.parametrize("side", [8, 16])
def test_patch_labels_are_the_parts_of_a_patch(scenes, side):
    labels = patch_labels(scenes, side)
    for name, words in WORDS.items():
        classes = torch.stack([torch.from_numpy(scene.dense_labels()[name]) for scene in scenes])
        parts = F.one_hot(classes, 1 + len(words)).permute(0, 3, 1, 2).float()
        expected = F.adaptive_avg_pool2d(parts, side).flatten(2).transpose(1, 2)
        torch.testing.assert_close(labels[name], expected)


def test_centres_are_those_of_the_thing_that_fills_a_patch(scenes):
    side = 16
    labels = patch_labels(scenes, side)
    pixels = scenes[0].size // side
    checked = 0
    for number, scene in enumerate(scenes):
        for patch in range(side * side):
            row, column = divmod(patch, side)
            ids = set(scene.id_map[row * pixels : (row + 1) * pixels, column * pixels : (column + 1) * pixels].flat)
            if len(ids) == 1 and (position := ids.pop()) > 0:
                centre = torch.tensor(scene.objects[position - 1].centre_xy) / scene.size
                torch.testing.assert_close(labels["centre_xy"][number, patch], centre.float(), atol=1e-3, rtol=0)
                checked += 1
    assert checked > 20


def test_images_must_divide_into_patches(scenes):
    with pytest.raises(ValueError, match="160 pixels do not divide into 7 patches"):
        patch_labels(scenes, 7)


def test_patches_that_are_their_words_cost_least(built):
    model, processor = built
    ids = word_ids(processor)
    alignment = WordAlignment(model, ids)
    embeddings = model.get_input_embeddings().weight
    labels = {name: F.one_hot(torch.tensor([[2]]), 1 + len(words)).float() for name, words in WORDS.items()}
    right = sum(embeddings[ids[name][1]] for name in WORDS)[None, None]
    wrong = sum(embeddings[ids[name][2]] for name in WORDS)[None, None]
    assert processor.tokenizer.convert_ids_to_tokens(ids["kind"][1]) == KINDS[1]
    assert processor.tokenizer.convert_ids_to_tokens(ids["colour"][1]) == tuple(COLOURS)[1]
    with torch.no_grad():
        assert alignment.loss(right, labels) < 0.7 * alignment.loss(wrong, labels)


def test_alignment_of_the_pass_just_made(built):
    """As an auxiliary loss it sees the patches of the model's own forward pass, and teaches the encoder."""
    model, processor = built
    examples = TabletopDataset("train", 2, requests_per_scene=1)
    batch = TabletopCollator(processor, mask_size=32, patches=8)([examples[0], examples[1]])
    labels = batch.pop("auxiliary_labels")
    guidance = PatchGuidance(model, word_ids(processor), weight=2.0)
    loss = guidance(batch, model(**batch), labels)
    patches = model.vlm.base_model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
    expected = 2 * guidance.alignment.loss(torch.stack(list(patches)), patch_labels([e.scene for e in examples], 8))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert model.vlm.base_model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_landmark_labels_are_masks_of_landmarks(built):
    _, processor = built
    examples = list(TabletopDataset("train", 6, requests_per_scene=3))
    batch = TabletopCollator(processor, mask_size=None, patches=8)(examples)
    landmarks = iter(batch["auxiliary_labels"]["landmark_labels"])
    compared = 0
    for example in examples:
        for row, masks in zip(example.landmarks, example.masks, strict=True):
            for label, landmark, mask in zip(next(landmarks), row, masks, strict=True):
                expected = torch.zeros_like(label) if landmark is None else torch.from_numpy(landmark).float()
                assert torch.equal(label, expected)
                compared += landmark is not None and (mask is None or (landmark != mask).any())
    assert next(landmarks, None) is None
    assert compared > 0
