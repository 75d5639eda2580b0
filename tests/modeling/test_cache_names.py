"""The key-value cache goes in and comes out under both of its names, whatever the installed transformers calls it."""

import inspect
import warnings

import pytest
import torch
from transformers import Cache, DynamicCache

from reasonseg.modeling.composed_model import CACHE_NAMES, with_cache_named_for
from reasonseg.modeling.modeling_attend_and_segment import AttendAndSegmentOutput
from reasonseg.modeling.modeling_reasoning_segmentation import ReasoningSegmentationModel
from reasonseg.modeling.outputs import ReasoningSegmentationOutput, find_cache
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.gsva_model().eval()


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
    own = set(inspect.signature(ReasoningSegmentationModel.forward).parameters)
    assert not own & set(CACHE_NAMES)
    # what transformers looks up for ViP-LLaVA is transformers' own
    from reasonseg.modeling.modeling_vip_llava import TransformersVipLlava, VipLlavaForConditionalGeneration

    ours, theirs = (inspect.signature(one.forward) for one in (VipLlavaForConditionalGeneration, TransformersVipLlava))
    assert ours == theirs
