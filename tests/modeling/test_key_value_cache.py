"""What prompts about one image begin with is read once, and every answer is that of prompts which are read whole."""

import copy
import pickle
import weakref
from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LlamaConfig, MistralConfig, SmolVLMConfig

from reasonseg.modeling.key_value_cache import cache_of, can_continue
from tests.modeling.test_families import llava_inputs, llava_next_inputs, qwen_inputs
from tests.modeling.test_modeling_attend_and_segment import build, internvl_inputs
from tests.support import tiny


def smolvlm_config() -> SmolVLMConfig:
    vision = {name: value for name, value in tiny.CLIP.items() if name != "num_hidden_layers"}
    return SmolVLMConfig(
        text_config=LlamaConfig(**tiny.TEXT),
        vision_config={**vision, "num_hidden_layers": 2},
        image_token_id=tiny.IMAGE,
        scale_factor=2,
    )


def smolvlm_inputs(count: int) -> tuple[dict, int]:
    pixels, _ = llava_inputs(count)
    return {"pixel_values": pixels["pixel_values"][:, None]}, 1


def tiled_inputs(count: int) -> tuple[dict, int]:
    pixels, image_tokens, grids = internvl_inputs(count)
    return {**pixels, "tile_counts": grids["tile_counts"]}, image_tokens


FAMILIES = {
    "llava": (tiny.llava_config, llava_inputs),
    "llava_next": (tiny.llava_next_config, llava_next_inputs),
    "qwen2_5_vl": (tiny.qwen2_5_vl_config, qwen_inputs),
    "qwen3_vl": (tiny.qwen3_vl_config, qwen_inputs),
    "smolvlm": (smolvlm_config, smolvlm_inputs),
    "internvl": (tiny.internvl_config, tiled_inputs),
}
LENGTHS, IMAGE_INDEX = [12, 9, 14, 10], torch.tensor([0, 1, 0, 1])
# What the rows of image 0 begin with, and those of image 1, in words beside the image.
SHARED = [7, 4]
ANSWERS = [[10, tiny.SEG, tiny.REJ], [12], [tiny.REJ, tiny.SEG, 7], [tiny.SEG]]


def questions(image_tokens: int, lengths=LENGTHS, image_index=IMAGE_INDEX) -> dict[str, torch.Tensor]:
    """Left-padded prompts; those about one image have their first words in common, and the image among them."""
    batch = tiny.prompts(lengths, image_tokens=image_tokens)
    words = torch.randint(3, 58, (2, 8), generator=torch.Generator().manual_seed(7))
    for row, (ids, length, image) in enumerate(zip(batch["input_ids"], lengths, image_index.tolist(), strict=True)):
        start, shared = len(ids) - length - image_tokens, SHARED[image]
        ids[start + 1] = words[image, 0]
        ids[start + 2 + image_tokens : start + image_tokens + shared] = words[image, 1 : shared - 1]
        ids[start + image_tokens + shared] = 30 + row  # where rows begin to differ
    return batch


def typed(batch: dict, model) -> dict:
    batch = {name: value for name, value in batch.items() if name != "mm_token_type_ids"}
    if "qwen" in model.vlm.config.model_type:
        batch["mm_token_type_ids"] = (batch["input_ids"] == tiny.IMAGE).long()
    return batch


def row_of(batch: dict, row: int, image_index=IMAGE_INDEX) -> dict:
    keep = batch["attention_mask"][row].bool()
    alone = {name: value[row : row + 1, keep] for name, value in batch.items()}
    return {**alone, "image_index": image_index[row : row + 1]}


@contextmanager
def counted_tokens(model):
    """Tokens, padding included, that the language model reads."""
    counts = []
    hook = model.vlm.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    yield counts
    hook.remove()


def assert_same(ours, theirs, keep=None) -> None:
    for name in ("pred_masks", "mask_scores", "slot_probs", "slot_states", "prompt_embeddings"):
        for one, other in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    for name in ("rejected", "slot_positions"):
        assert all(torch.equal(one, other) for one, other in zip(ours[name], theirs[name], strict=True))
    if keep is not None:
        torch.testing.assert_close(ours.logits[keep], theirs.logits[keep], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    config, make_inputs = FAMILIES[request.param]
    model = tiny.gsva_model(config(), seed=2)
    tiny.favour_slots(model)
    views, image_tokens = make_inputs(2)
    others = {name: value for name, value in tiny.images(2).items() if name != "pixel_values"}
    return model, image_tokens, {**views, **others}


@pytest.fixture(scope="module")
def llava():
    model = tiny.gsva_model(seed=2)
    tiny.favour_slots(model)
    return model


@pytest.mark.parametrize("reeval", [False, True])
@torch.no_grad()
def test_given_answers(family, reeval):
    model, image_tokens, images = family
    batch = typed(tiny.with_answers(questions(image_tokens), ANSWERS), model)
    with counted_tokens(model) as whole:
        expected = model(**batch, **images, image_index=IMAGE_INDEX, share_prefixes=False, reeval=reeval)
    with counted_tokens(model) as shared:
        output = model(**batch, **images, image_index=IMAGE_INDEX, reeval=reeval)
    assert output.logits.shape == expected.logits.shape
    assert_same(output, expected, batch["attention_mask"].bool())
    width = batch["input_ids"].shape[1]
    assert whole == [4 * width] * (1 + reeval)
    longest = max(
        length + len(answer) - SHARED[image]
        for length, answer, image in zip(LENGTHS, ANSWERS, IMAGE_INDEX.tolist(), strict=True)
    )
    # The two prefixes, the four rests, and from the first [REJ] on: 1 token and 3.
    assert shared == [2 * (max(SHARED) + image_tokens), 4 * longest, 4 * 3][: 2 + reeval]


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_written_answers(family, way):
    model, image_tokens, images = family
    batch = typed(questions(image_tokens), model)
    options = {"image_index": IMAGE_INDEX, "max_new_tokens": 12, "pad_token_id": tiny.PAD, **WAYS[way]}
    with counted_tokens(model) as whole:
        torch.manual_seed(0)
        expected = model.generate_with_masks(**batch, **images, **options, share_prefixes=False)
    with counted_tokens(model) as shared:
        torch.manual_seed(0)
        output = model.generate_with_masks(**batch, **images, **options)
    assert torch.equal(output.sequences, expected.sequences)
    assert sum(map(len, output.pred_masks)) > 0
    assert_same(output, expected)
    assert sum(shared) < sum(whole)
    copies = max(WAYS[way].get(name, 1) for name in ("num_beams", "num_return_sequences"))
    longest = max(length - SHARED[image] for length, image in zip(LENGTHS, IMAGE_INDEX.tolist(), strict=True)) - 1
    assert shared[:3] == [2 * (max(SHARED) + image_tokens), 4 * longest, 4 * copies]


@torch.no_grad()
def test_calls_that_are_handed_the_images_go_on_from_one_another(family):
    model, image_tokens, images = family
    batch = typed(tiny.with_answers(questions(image_tokens), ANSWERS), model)
    cache = model.encode_image(**images)
    for row in range(4):
        alone = row_of(batch, row)
        expected = model(**alone, **images, share_prefixes=False)
        with counted_tokens(model) as read:
            output = model(**alone, image_cache=cache)
        assert_same(output, expected, torch.ones_like(alone["input_ids"]).bool())
        known = SHARED[IMAGE_INDEX[row]] + image_tokens if row > 1 else 0
        assert read == [alone["input_ids"].shape[1] - known]
    with counted_tokens(model) as read:
        output = model(**alone, image_cache=cache)
    assert read == [], "the same prompt again"
    assert_same(output, expected, torch.ones_like(alone["input_ids"]).bool())


def conversation(model, cache, images, turns: int, words: int = 4, new: int = 5):
    """Outputs and tokens read of a conversation whose prompts grow by `words` and an answer of `new` tokens a turn."""
    ids, outputs, counts = row_of(questions(4), 0)["input_ids"], [], []
    generator = torch.Generator().manual_seed(3)
    for _ in range(turns):
        prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_index": torch.tensor([0])}
        options = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": tiny.PAD}
        with counted_tokens(model) as read:
            given = {"image_cache": cache} if cache is not None else {**images, "share_prefixes": False}
            outputs.append(model.generate_with_masks(**prompt, **given, **options))
        counts.append(sum(read))
        ids = torch.cat([outputs[-1].sequences, torch.randint(3, 58, (1, words), generator=generator)], 1)
    return outputs, counts


def test_ten_turns_read_each_token_once(llava):
    images = tiny.images(2)
    outputs, counts = conversation(llava, llava.encode_image(**images), images, 10)
    expected, all_counts = conversation(llava, None, images, 10)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert torch.equal(ours.sequences, theirs.sequences)
        assert_same(ours, theirs)
    # A turn: the last token of the answer before, which nothing followed, four words, five new tokens but the last.
    assert counts[1:] == [9] * 9
    assert all_counts == [counts[0] + 9 * turn for turn in range(10)]


def test_what_was_read_goes_with_the_images(llava):
    images = llava.encode_image(**tiny.images(2))
    conversation(llava, images, None, 2)
    keys = weakref.ref(images.prefixes[0].layers[0][0])
    assert images.prefixes[1] is None
    assert keys() is not None
    del images
    assert keys() is None
    images = llava.encode_image(**tiny.images(2))
    batch = questions(4)
    llava.generate_with_masks(
        **batch, image_cache=images, image_index=IMAGE_INDEX, max_new_tokens=2, share_prefixes=False
    )
    assert images.prefixes is None
    llava.generate(**batch, image_cache=images, image_index=IMAGE_INDEX, max_new_tokens=2)
    lengths = [int(prefix.lengths) for prefix in images.prefixes]
    assert lengths == [shared + 4 for shared in SHARED], "of several rows, what they share"


@torch.no_grad()
def test_padding_on_the_right_and_images_of_one_row(llava):
    index = torch.tensor([0, 1, 0, 2])
    batch, images = questions(4, image_index=torch.tensor([0, 1, 0, 1])), tiny.images(3)
    batch = tiny.with_answers(batch, ANSWERS)
    for name, value in batch.items():
        rows = [value[row, batch["attention_mask"][row].bool()] for row in range(4)]
        batch = (
            {**batch, name: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)} if name == "input_ids" else batch
        )
    batch["attention_mask"] = (batch["input_ids"] != tiny.PAD).long()
    expected = llava(**batch, **images, image_index=index, share_prefixes=False)
    with counted_tokens(llava) as read:
        output = llava(**batch, **images, image_index=index)
    assert len(read) == 2
    assert_same(output, expected, batch["attention_mask"].bool())


PLAIN = {
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 4},
    "hidden states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "a configuration": {"generation_config": GenerationConfig(use_cache=False, max_new_tokens=4, pad_token_id=0)},
}


@pytest.mark.parametrize("way", PLAIN)
def test_generations_that_read_their_prompts_whole(llava, way):
    batch = questions(4)
    options = {"max_new_tokens": 4, "pad_token_id": tiny.PAD} if "generation_config" not in PLAIN[way] else {}
    with counted_tokens(llava) as read:
        llava.generate(**batch, **tiny.images(2), image_index=IMAGE_INDEX, **options, **PLAIN[way])
    assert read[0] == 4 * (batch["input_ids"].shape[1] if way != "chunked prefill" else 4)


def test_passes_that_read_their_rows_whole(llava):
    batch = tiny.with_answers(questions(4), ANSWERS)
    inputs = {**batch, **tiny.images(2), "image_index": IMAGE_INDEX}
    whole = [batch["input_ids"].numel()]
    for options in ({"labels": batch["input_ids"]}, {"use_cache": True}, {"output_hidden_states": True}):
        with torch.no_grad(), counted_tokens(llava) as read:
            output = llava(**inputs, **options)
        assert read == whole, options
        assert (output.cache is not None) or "use_cache" not in options
    with counted_tokens(llava) as read:
        assert llava(**inputs).logits.requires_grad
    assert read == whole
    holed = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    holed["attention_mask"][:, -5] = 0
    with torch.no_grad(), counted_tokens(llava) as read:
        llava(**holed)
    assert read == whole, "padding between tokens"


def test_models_whose_rows_cannot_go_on_from_one_another():
    window = tiny.gsva_model(tiny.llava_config()).vlm
    assert can_continue(window)
    sliding = MistralConfig(**tiny.TEXT, sliding_window=4)
    config = tiny.llava_config()
    config.text_config = sliding
    model = tiny.gsva_model(config, seed=2)
    assert not can_continue(model.vlm)
    with torch.no_grad(), counted_tokens(model) as read:
        model(**questions(4), **tiny.images(2), image_index=IMAGE_INDEX)
    assert len(read) == 1


def test_a_prompt_that_ends_with_its_image_is_read_whole(llava):
    prompt = torch.tensor([[tiny.BOS, 12] + [tiny.IMAGE] * 4] * 2)
    batch, images = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}, tiny.images(1)
    options = {"max_new_tokens": 4, "pad_token_id": tiny.PAD}
    expected = llava.generate(**batch, **images, **options, share_prefixes=False)
    assert torch.equal(llava.generate(**batch, **images, **options), expected)
    cache = llava.encode_image(**images)
    with torch.no_grad():
        llava(**batch, image_cache=cache)  # leaves the whole image in it
    assert torch.equal(llava.generate(**batch, image_cache=cache, **options), expected)


# ---- caches that grow in steps --------------------------------------------------------------------------------------


def grown(cache, steps: list[int], seed: int = 0, grad: bool = False) -> list[torch.Tensor]:
    """Keys and values that a cache shows after each step of so many tokens."""
    generator, shown = torch.Generator().manual_seed(seed), []
    for columns in steps:
        for index, layer in enumerate(cache.layers):
            states = torch.randn(2, len(layer.keys), 2, columns, 3, generator=generator).requires_grad_(grad)
            shown += cache.update(*states, index)
    return shown


def both_caches() -> tuple[DynamicCache, DynamicCache]:
    """One that grows in steps, and transformers' own."""
    layers = torch.randn(2, 2, 3, 2, 5, 3, generator=torch.Generator().manual_seed(1))
    return cache_of((layer[0], layer[1]) for layer in layers), DynamicCache([tuple(layer) for layer in layers])


def crop(cache) -> None:
    try:
        cache.crop(-2)
    except ValueError:
        cache.crop(cache.get_seq_length() - 2)


CHANGES = {
    "nothing": lambda cache: cache,
    "crop": crop,
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([-1])),
    "copy": copy.deepcopy,
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),  # noqa: S301
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_cache_that_grows_in_steps_is_transformers_own(change):
    caches = both_caches()
    for steps in ([1] * 3, [1] * 20 + [4] + [1] * 2, [2, 1, 1]):
        ours, theirs = (grown(cache, steps, seed=len(steps)) for cache in caches)
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        caches = tuple(CHANGES[change](cache) or cache for cache in caches)
        assert caches[0].get_seq_length() == caches[1].get_seq_length()


@torch.no_grad()
def test_tokens_one_by_one_are_written_behind_the_others_and_not_into_other_answers():
    cache, _ = both_caches()
    grown(cache, [1])
    memory = cache.layers[0].keys.data_ptr()
    first = grown(cache, [1] * 8)
    assert cache.layers[0].keys.data_ptr() == memory
    kept = [one.clone() for one in first]
    others = [copy.copy(cache) for _ in range(2)]
    for other in others:
        other.layers = [copy.copy(layer) for layer in cache.layers]
    answers = [grown(other, [1, 1], seed=seed) for seed, other in enumerate((cache, *others))]
    answers_kept = [grown(other, [1, 1], seed=seed) for seed, other in enumerate(both_caches())]  # others begin so
    assert all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))
    ends = [[one[..., -1, :] for one in answer] for answer in (*answers[:2], *answers_kept)]
    assert all(map(torch.equal, ends[0], ends[2]))
    assert all(map(torch.equal, ends[1], ends[3]))


def test_a_cache_of_a_generation_is_read_on_with_gradients_and_outside_of_inference_mode():
    for mode in (torch.inference_mode, torch.no_grad):
        ours, theirs = both_caches()
        with mode():
            grown(ours, [1, 1])
        with torch.no_grad():
            grown(theirs, [1, 1])
            assert all(map(torch.equal, grown(ours, [1, 1], seed=1), grown(theirs, [1, 1], seed=1)))
    # No later token is written to what an earlier one's gradient needs.
    sum(one.square().sum() for one in grown(ours, [1, 1, 1], grad=True)).backward()


@torch.no_grad()
def test_a_cache_goes_on_in_another_number_format_and_after_a_reset():
    ours, theirs = both_caches()
    for cache in (ours, theirs):
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.bfloat16(), layer.values.bfloat16()
    assert all(map(torch.equal, grown(ours, [1, 1]), grown(theirs, [1, 1])))
    assert ours.layers[0].keys.dtype == torch.float32
    if (layer := theirs.layers[0]).reset() is None and not layer.is_initialized:  # of transformers 5.24
        ours.layers[0].reset()
        states = torch.randn(2, 3, 2, 1, 3)
        assert torch.equal(ours.layers[0].update(*states)[0], states[0])


def test_attention_maps_see_the_whole_prompt():
    model = build()
    images = {**tiny.images(2), "image_index": IMAGE_INDEX}
    output = model.generate_with_masks(**questions(4), **images, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    for row in range(4):
        alone = row_of(questions(4), row)
        one = model.generate_with_masks(**alone, **tiny.images(2), max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
        torch.testing.assert_close(output.attention_maps[row], one.attention_maps[0], atol=1e-4, rtol=1e-4)
