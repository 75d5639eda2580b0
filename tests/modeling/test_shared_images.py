"""Encoders run once per image, the segmenter only for images whose rows have a slot, and neither for cached images."""

from contextlib import contextmanager

import pytest
import torch

from tests import tiny


@pytest.fixture(scope="module")
def model():
    model = tiny.gsva_model(seed=2)
    tiny.favour_slots(model)
    return model


@contextmanager
def counted_images(model):
    """Number of images that each encoder has seen."""
    counts = {"clip": 0, "sam": 0}
    clip, sam = model.vlm.base_model.vision_tower, model.segmenter.vision_encoder

    def counter(name):
        def count(module, args, kwargs):
            counts[name] += len(kwargs.get("pixel_values", args[0] if args else None))

        return count

    hooks = [
        clip.register_forward_pre_hook(counter("clip"), with_kwargs=True),
        sam.register_forward_pre_hook(counter("sam"), with_kwargs=True),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


ANSWERS = [[10, tiny.SEG, 11, tiny.REJ], [12, 13], [tiny.SEG, tiny.SEG, tiny.SEG], [14, tiny.SEG]]


def test_many_rows_one_image(model):
    batch, image = tiny.with_answers(tiny.prompts([6, 9, 5, 7]), ANSWERS), tiny.images(1)
    with counted_images(model) as counts, torch.no_grad():
        shared = model(**batch, **image)
    assert counts == {"clip": 1, "sam": 1}
    for row in range(4):
        with torch.no_grad():
            single = model(
                input_ids=batch["input_ids"][row : row + 1],
                attention_mask=batch["attention_mask"][row : row + 1],
                **image,
            )
        torch.testing.assert_close(shared.pred_masks[row], single.pred_masks[0], atol=1e-5, rtol=1e-5)
        keep = batch["attention_mask"][row].bool()
        torch.testing.assert_close(shared.logits[row, keep], single.logits[0, keep], atol=1e-5, rtol=1e-5)


def test_rows_point_at_images(model):
    batch, images = tiny.with_answers(tiny.prompts([6, 9, 5, 7]), ANSWERS), tiny.images(3)
    index = torch.tensor([2, 0, 0, 2])
    with counted_images(model) as counts, torch.no_grad():
        shared = model(**batch, **images, image_index=index)
    assert counts["clip"] == 3
    assert counts["sam"] == 2, "image 1 has no row, so it needs no segmenter"
    with torch.no_grad():
        repeated = model(**batch, **{name: value[index] for name, value in images.items()})
    for left, right in zip(shared.pred_masks, repeated.pred_masks, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared.logits, repeated.logits, atol=1e-5, rtol=1e-5)


def test_rows_without_slots_do_not_reach_the_segmenter(model):
    batch = tiny.with_answers(tiny.prompts([6, 9]), [[10, 11], [12, tiny.SEG]])
    with counted_images(model) as counts, torch.no_grad():
        output = model(**batch, **tiny.images(2))
    assert counts == {"clip": 2, "sam": 1}
    assert output.pred_masks[0].shape == (0, 16, 16)
    assert output.pred_masks[1].shape == (1, 16, 16)
    with counted_images(model) as counts, torch.no_grad():
        model(**tiny.prompts([6, 9]), **tiny.images(2))
    assert counts["sam"] == 0


def test_generation_shares_images(model):
    batch, image = tiny.prompts([6, 9, 5]), tiny.images(1)
    with counted_images(model) as counts:
        shared = model.generate_with_masks(**batch, **image, max_new_tokens=24, num_beams=2)
    assert counts["clip"] == 1
    assert counts["sam"] <= 1
    repeated = {name: value.expand(3, *value.shape[1:]) for name, value in image.items()}
    apart = model.generate_with_masks(**batch, **repeated, max_new_tokens=24, num_beams=2)
    assert torch.equal(shared.sequences, apart.sequences)
    for left, right in zip(shared.pred_masks, apart.pred_masks, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_second_question_skips_both_encoders(model):
    images = tiny.images(1)
    first, second = tiny.prompts([6]), tiny.prompts([9], seed=5)
    with counted_images(model) as counts, torch.no_grad():
        cache = model.encode_image(**images)
        assert counts == {"clip": 1, "sam": 0}, "no slot has asked for the segmenter yet"
        model(**tiny.with_answers(first, [[tiny.SEG]]), image_cache=cache)
        assert counts == {"clip": 1, "sam": 1}
        cached = model.generate_with_masks(**second, image_cache=cache, max_new_tokens=24, num_return_sequences=1)
        forced = model(**tiny.with_answers(second, [[tiny.REJ, tiny.SEG]]), **images, image_cache=cache)
        assert counts == {"clip": 1, "sam": 1}
    fresh = model.generate_with_masks(**second, **images, max_new_tokens=24)
    assert torch.equal(cached.sequences, fresh.sequences)
    torch.testing.assert_close(cached.pred_masks[0], fresh.pred_masks[0])
    assert len(forced.pred_masks[0]) == 2


def test_cache_is_not_used_up_by_beams(model):
    cache = model.encode_image(**tiny.images(1))
    before = [features.clone() for features in cache.vlm_features.pooler_output]
    model.generate_with_masks(**tiny.prompts([6, 8]), image_cache=cache, max_new_tokens=8, num_beams=3)
    assert len(cache.vlm_features.pooler_output) == 1
    assert torch.equal(before[0], cache.vlm_features.pooler_output[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rows": 3, "images": 2}, "3 rows of input_ids and 2 images"),
        ({"rows": 2, "images": 2, "image_index": torch.tensor([0, 2])}, r"image_index \[0, 2\]"),
        ({"rows": 2, "images": 2, "image_index": torch.tensor([0])}, r"one entry per row \(2\)"),
    ],
)
def test_rows_and_images_that_do_not_match(model, kwargs, message):
    batch, images = tiny.prompts([6] * kwargs["rows"]), tiny.images(kwargs["images"])
    with pytest.raises(ValueError, match=message):
        model(**batch, **images, image_index=kwargs.get("image_index"))


def test_slots_without_a_segmenter_view(model):
    images = tiny.images(1)
    del images["sam_pixel_values"]
    with pytest.raises(ValueError, match=r"1 .* slots need the segmenter's view"):
        model(**tiny.with_answers(tiny.prompts([6]), [[tiny.SEG]]), **images)


def test_different_numbers_of_views(model):
    images = {**tiny.images(2), "sam_pixel_values": tiny.images(3)["sam_pixel_values"]}
    with pytest.raises(ValueError, match="2 images for the vision-language model and 3 for the segmenter"):
        model(**tiny.prompts([6, 7]), **images)
