"""Generated slots equal one teacher-forced pass over the same ids, whatever way they were generated."""

from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer

from tests.support import tiny


TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model():
    model = tiny.gsva_model(seed=2)
    tiny.favour_slots(model)
    return model


def assert_equals_teacher_forcing(model, batch, images, output, copies: int = 1):
    """One uncached pass over each generated row, alone and without padding."""
    slots = 0
    for row, sequence in enumerate(output.sequences):
        source = row // copies
        keep = torch.cat(
            [batch["attention_mask"][source].bool(), torch.ones(len(sequence) - batch["input_ids"].shape[1]).bool()]
        )
        image = {name: value[source : source + 1] for name, value in images.items()}
        with torch.no_grad():
            forced = model(input_ids=sequence[keep][None], **image)
        count = len(output.pred_masks[row])
        assert len(forced.pred_masks[0]) == count
        slots += count
        for name in ("pred_masks", "mask_scores", "slot_probs", "slot_states", "prompt_embeddings"):
            torch.testing.assert_close(output[name][row], forced[name][0], atol=TOLERANCE, rtol=TOLERANCE)
    assert slots > 0, "the case generated no slot and shows nothing"


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "several beams returned": {"num_beams": 4, "num_return_sequences": 3},
    "beams stopping early": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.2},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "chunked prefill": {"prefill_chunk_size": 4},
    "generation config": {"generation_config": GenerationConfig(max_new_tokens=24, num_beams=2, pad_token_id=0)},
}


@pytest.mark.parametrize("way", WAYS)
def test_left_padded_batch_with_unequal_counts(model, way):
    torch.manual_seed(1)
    batch, images = tiny.prompts([6, 9, 5]), tiny.images(3)
    kwargs = {"pad_token_id": tiny.PAD, "max_new_tokens": 32, **WAYS[way]}
    if "generation_config" in kwargs:
        kwargs = {"generation_config": kwargs["generation_config"]}
    output = model.generate_with_masks(**batch, **images, **kwargs)
    counts = [len(masks) for masks in output.pred_masks]
    assert len(set(counts)) > 1 or way not in ("greedy", "sampling")
    assert_equals_teacher_forcing(model, batch, images, output, copies=len(output.sequences) // 3)


def test_last_token_is_a_slot(model):
    batch, images = tiny.prompts([6]), tiny.images(1)
    long = model.generate_with_masks(**batch, **images, max_new_tokens=32)
    first = int(long.slot_positions[0][0]) - batch["input_ids"].shape[1]
    output = model.generate_with_masks(**batch, **images, max_new_tokens=first + 1)
    assert output.sequences[0, -1] in (tiny.SEG, tiny.REJ)
    assert_equals_teacher_forcing(model, batch, images, output)


def test_assisted_decoding_reads_only_the_main_model(model):
    assistant = tiny.gsva_model(seed=3).vlm
    batch, images = tiny.prompts([6]), tiny.images(1)
    plain = model.generate_with_masks(**batch, **images, max_new_tokens=24)
    # The assistant is a text model here: it sees the ids and proposes tokens, good or bad.
    assisted = model.generate_with_masks(
        **batch, **images, max_new_tokens=24, assistant_model=assistant, tokenizer=None
    )
    assert torch.equal(plain.sequences, assisted.sequences)
    assert_equals_teacher_forcing(model, batch, images, assisted)


def test_four_threads_at_once(model):
    batches = [(tiny.prompts([5 + i, 8], seed=i), tiny.images(2, seed=i)) for i in range(4)]

    def run(case):
        return model.generate_with_masks(**case[0], **case[1], max_new_tokens=24)

    alone = [run(case) for case in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, batches))
    assert sum(len(masks) for output in alone for masks in output.pred_masks) > 4
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.sequences, other.sequences)
        for left, right in zip(one.pred_masks, other.pred_masks, strict=True):
            torch.testing.assert_close(left, right, atol=TOLERANCE, rtol=TOLERANCE)


def test_streamer_sees_every_token(model):
    class Words:
        def decode(self, ids, **kwargs):
            return "".join(f"<{int(i)}> " for i in ids)

    batch, images = tiny.prompts([6]), tiny.images(1)
    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
    results = []
    thread = Thread(
        target=lambda: results.append(
            model.generate_with_masks(**batch, **images, max_new_tokens=20, streamer=streamer)
        )
    )
    thread.start()
    streamed = "".join(streamer).split()
    thread.join()
    new = results[0].sequences[0, batch["input_ids"].shape[1] :]
    assert streamed == [f"<{int(i)}>" for i in new]


def test_return_dict_false_gives_a_tuple(model):
    batch, images = tiny.prompts([6]), tiny.images(1)
    output = model.generate_with_masks(**batch, **images, max_new_tokens=8)
    fields = model.generate_with_masks(**batch, **images, max_new_tokens=8, return_dict=False)
    assert isinstance(fields, tuple)
    assert torch.equal(fields[0], output.sequences)


def test_guidance_is_refused(model):
    with pytest.raises(ValueError, match="guidance_scale"):
        model.generate_with_masks(**tiny.prompts([6]), **tiny.images(1), guidance_scale=1.5)


@pytest.mark.parametrize("config", [None, {"max_new_tokens": 2}])
def test_guidance_of_the_models_own_settings_is_refused(model, config, monkeypatch):
    """Transformers fills up what a given configuration leaves open from the model's own."""
    monkeypatch.setattr(model.generation_config, "guidance_scale", 1.5)
    settings = {} if config is None else {"generation_config": GenerationConfig(**config)}
    with pytest.raises(ValueError, match="guidance_scale"):
        model.generate_with_masks(**tiny.prompts([6]), **tiny.images(1), **settings)


def test_a_given_configuration_is_left_as_it_was(model):
    config = GenerationConfig(max_new_tokens=2, do_sample=False)
    inputs = tiny.prompts([6]) | tiny.images(1)
    output = model.generate_with_masks(**inputs, generation_config=config, return_dict_in_generate=False)
    assert output.sequences.shape[1] > inputs["input_ids"].shape[1]
    assert not config.return_dict_in_generate


def test_image_placeholder_is_never_generated():
    model = tiny.gsva_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[tiny.IMAGE] *= 50
    output = model.generate_with_masks(**tiny.prompts([6, 7]), **tiny.images(2), max_new_tokens=20)
    assert not (output.sequences[:, -20:] == tiny.IMAGE).any()
    assert not (
        model.generate(**tiny.prompts([6, 7]), **tiny.images(2), max_new_tokens=20)[:, -20:] == tiny.IMAGE
    ).any()


def test_generate_equals_generate_with_masks(model):
    batch, images = tiny.prompts([6, 9]), tiny.images(2)
    ids = model.generate(**batch, **images, max_new_tokens=16)
    assert torch.equal(ids, model.generate_with_masks(**batch, **images, max_new_tokens=16).sequences)


def test_threshold_overrides_the_generated_decision(model):
    batch, images = tiny.prompts([6, 9, 5]), tiny.images(3)
    plain = model.generate_with_masks(**batch, **images, max_new_tokens=32)
    all_rejected = model.generate_with_masks(**batch, **images, max_new_tokens=32, reject_threshold=1.1)
    none_rejected = model.generate_with_masks(**batch, **images, max_new_tokens=32, reject_threshold=0.0)
    for row in range(3):
        tokens = plain.sequences[row, plain.slot_positions[row]]
        assert torch.equal(plain.rejected[row], tokens == tiny.REJ)
        assert all_rejected.rejected[row].all()
        assert not none_rejected.rejected[row].any()
        assert torch.equal(none_rejected.pred_masks[row], plain.pred_masks[row])
