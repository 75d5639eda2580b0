"""
Encoders run once per image, the segmenter only for images whose rows have a slot, and neither for cached images; the
key-value cache goes in and comes out under both of its names, whatever the installed transformers calls it.
"""

import inspect
import warnings
from contextlib import contextmanager

import pytest
import torch
from transformers import Cache, DynamicCache

from reasonseg.modeling.key_value_cache import CACHE_NAMES, with_cache_named_for
from reasonseg.modeling.modeling_attend_and_segment import AttendAndSegmentOutput
from reasonseg.modeling.modeling_reasoning_segmentation import ComposedForReasoningSegmentation
from reasonseg.modeling.outputs import ReasoningSegmentationOutput, find_cache
from tests.support import tiny


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


# ---- the key-value cache --------------------------------------------------------------------------------------------


@pytest.fixture
def inputs():
    return {**tiny.prompts([9, 9]), **tiny.images(2)}


@pytest.mark.parametrize("given_as", CACHE_NAMES)
def test_a_sequence_in_two_parts_equals_the_whole(model, inputs, given_as, recwarn):
    ids = inputs["input_ids"]
    with torch.inference_mode():
        whole = model(**inputs)
        start = {**inputs, "input_ids": ids[:, :-2], "attention_mask": inputs["attention_mask"][:, :-2]}
        first = model(**start, use_cache=True)
        assert isinstance(first.cache, Cache)
        rest = model(
            input_ids=ids[:, -2:], attention_mask=inputs["attention_mask"], **{given_as: first.past_key_values}
        )
    torch.testing.assert_close(rest.logits, whole.logits[:, -2:], atol=1e-5, rtol=1e-5)
    assert not [one for one in recwarn if issubclass(one.category, FutureWarning)]


@pytest.mark.parametrize("given_as", CACHE_NAMES)
def test_generation_takes_and_returns_it(model, inputs, given_as):
    cache = DynamicCache(config=model.vlm.config.get_text_config())
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        output = model.generate_with_masks(**inputs, max_new_tokens=2, **{given_as: cache})
    assert output.cache is cache
    assert cache.get_seq_length() == output.sequences.shape[1] - 1


def test_two_caches_are_one_too_many(model, inputs):
    with pytest.raises(ValueError, match="two names of one argument"):
        model(**inputs, cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("output_class", [ReasoningSegmentationOutput, AttendAndSegmentOutput])
def test_an_output_answers_to_both_names(output_class):
    cache = DynamicCache()
    output = output_class(logits=torch.zeros(1), cache=cache)
    assert output.past_key_values is output["past_key_values"] is output.get("past_key_values") is cache
    assert output.cache is output["cache"] is output.get("cache") is cache
    assert "past_key_values" in output
    assert "cache" in output
    empty = output_class(logits=torch.zeros(1))
    assert empty.past_key_values is None
    assert empty.get("past_key_values", 3) == 3
    assert "past_key_values" not in empty


def test_the_cache_of_any_output_is_found_by_its_type(model, inputs):
    language = model.vlm(**{name: inputs[name] for name in ("input_ids", "pixel_values")}, use_cache=True)
    assert isinstance(find_cache(language), Cache)
    language = model.vlm(**{name: inputs[name] for name in ("input_ids", "pixel_values")}, use_cache=False)
    assert find_cache(language) is None


def test_the_name_is_the_models_own():
    """A model of another release of transformers, or one with code of its own."""

    class Newer(torch.nn.Module):
        def prepare_inputs_for_generation(self, input_ids, cache=None): ...

    class Older(torch.nn.Module):
        def prepare_inputs_for_generation(self, input_ids, past_key_values=None): ...

    for given_as in CACHE_NAMES:
        assert with_cache_named_for(Newer(), {given_as: 1, "use_cache": True}) == {"cache": 1, "use_cache": True}
        assert with_cache_named_for(Older(), {given_as: 1}) == {"past_key_values": 1}
    assert with_cache_named_for(Newer(), {"past_key_values": None, "labels": 2}) == {"labels": 2}


def test_no_signature_of_ours_spells_it():
    own = set(inspect.signature(ComposedForReasoningSegmentation.forward).parameters)
    assert not own & set(CACHE_NAMES)
    # what transformers looks up for ViP-LLaVA is transformers' own
    from reasonseg.modeling.modeling_vip_llava import TransformersVipLlava, VipLlavaForConditionalGeneration

    ours, theirs = (inspect.signature(one.forward) for one in (VipLlavaForConditionalGeneration, TransformersVipLlava))
    assert ours == theirs
