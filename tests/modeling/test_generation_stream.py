"""A generation that is read while it goes on: the same output, each mask after its slot, nothing left running."""

import itertools
import threading

import pytest
import torch

from reasonseg.modeling.generation_stream import Beside, TorchModes
from tests.support import tiny


TOLERANCE = 1e-4
# About every third token is a slot, whatever is drawn.
OPTIONS = {"max_new_tokens": 24, "do_sample": True, "sequence_bias": {(tiny.SEG,): 2.0, (tiny.REJ,): 1.0}}


@pytest.fixture(scope="module")
def model():
    model = tiny.gsva_model()
    tiny.favour_slots(model)
    return model


def arguments(seed: int = 0) -> dict:
    return {**tiny.prompts([6], seed=seed), **tiny.images(1, seed=seed), **OPTIONS}


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "reasonseg"]


@pytest.mark.parametrize("cached", [False, True])
def test_steps_are_those_of_the_whole_generation(model, cached):
    given = arguments()
    cache = {"image_cache": model.encode_image(**given)} if cached else {}
    torch.manual_seed(3)
    whole = model.generate_with_masks(**given, reject_threshold=0.6)
    torch.manual_seed(3)
    steps = list(model.stream_with_masks(**given, **cache, reject_threshold=0.6))
    output, slots, written = steps[-1].output, [], []
    for before, step in zip([None, *steps], steps, strict=False):
        if step.token_ids is not None:
            written += step.token_ids
        elif step.slot is not None:
            assert before.token_ids[-1:] in ([tiny.SEG], [tiny.REJ])
            slots.append(step.slot)
    assert 2 <= len(slots) < len(written)
    assert torch.equal(output.sequences, whole.sequences)
    assert written == whole.sequences[0, given["input_ids"].shape[1] :].tolist()
    for name in slots[0]:
        streamed = torch.cat([slot[name][0] for slot in slots])
        assert torch.equal(streamed, output[name][0])
        torch.testing.assert_close(streamed, whole[name][0], atol=TOLERANCE, rtol=TOLERANCE)
    assert steps.index(next(step for step in steps if step.slot is not None)) < len(steps) - 3
    assert not own_threads()


def test_rows_of_a_batch_are_read_apart(model):
    given = {**tiny.prompts([6, 4, 5], seed=2), **tiny.images(3, seed=2), **OPTIONS}
    torch.manual_seed(3)
    whole = model.generate_with_masks(**given, reject_threshold=0.6)
    torch.manual_seed(3)
    *steps, last = model.stream_batch_with_masks(**given, reject_threshold=0.6)
    assert torch.equal(last.output.sequences, whole.sequences)
    for row, sequence in enumerate(whole.sequences[:, given["input_ids"].shape[1] :].tolist()):
        own = [step for step in steps if step.row == row]
        assert [step.token_ids for step in own if step.slot is None] == [[token] for token in sequence]
        slots = [(before.token_ids, step.slot) for before, step in itertools.pairwise(own) if step.slot]
        assert all(token in ([tiny.SEG], [tiny.REJ]) for token, _ in slots)
        for name in ("slot_positions", "pred_masks", "slot_probs"):
            found = torch.cat([slot[name][0] for _, slot in slots])
            torch.testing.assert_close(found, whole[name][row], atol=TOLERANCE, rtol=TOLERANCE)
            torch.testing.assert_close(last.output[name][row], whole[name][row], atol=TOLERANCE, rtol=TOLERANCE)
    with pytest.raises(ValueError, match="num_beams is 2"):
        model.stream_batch_with_masks(**given, num_beams=2)


def test_an_assistant_writes_several_tokens_at_once(model):
    given = {**arguments(seed=1), "do_sample": False}
    whole = model.generate_with_masks(**given)
    assistant = tiny.gsva_model(seed=1)
    steps = list(model.stream_with_masks(**given, assistant_model=assistant.vlm))
    assert torch.equal(steps[-1].output.sequences, whole.sequences)
    slots = [step.slot.pred_masks[0] for step in steps if step.slot is not None]
    torch.testing.assert_close(torch.cat(slots), whole.pred_masks[0], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**tiny.prompts([6, 6]), **tiny.images(2)}, "2 rows with 1 answers"),
        ({"num_return_sequences": 2}, "1 rows with 2 answers"),
        ({"num_beams": 2}, "num_beams is 2"),
    ],
)
def test_only_one_answer_is_streamed(model, changes, message):
    with pytest.raises(ValueError, match=message):
        model.stream_with_masks(**{**arguments(), **changes})


def test_closing_stops_it(model):
    passes = []
    handle = model.vlm.register_forward_hook(lambda *_: passes.append(1))
    try:
        steps = model.stream_with_masks(**{**arguments(), "max_new_tokens": 4000, "min_new_tokens": 4000})
        for _ in range(3):
            next(steps)
        steps.close()
    finally:
        handle.remove()
    assert len(passes) < 1000
    assert not own_threads()


def test_its_errors_are_raised_where_it_is_read(model, monkeypatch):
    always = {"sequence_bias": {(tiny.SEG,): 100.0}}
    given = {**arguments(), **always}
    del given["sam_pixel_values"]
    steps = model.stream_with_masks(**given)
    with pytest.raises(ValueError, match="need the segmenter's view"):
        list(steps)
    assert not own_threads()

    def broken(*args):
        raise RuntimeError("no memory for the encoder")

    monkeypatch.setattr(model, "_encode_views", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        list(model.stream_with_masks(**{**arguments(), **always}))
    without_slots = {**arguments(), "suppress_tokens": [tiny.SEG, tiny.REJ]}
    assert not len(list(model.stream_with_masks(**without_slots))[-1].output.pred_masks[0])


def test_the_encoder_begins_beside_the_decoding(model):
    """Decoding waits here for the encoder to begin; both would wait for ever if they came one after the other."""
    began, in_threads = threading.Event(), []

    def encoding(*_):
        in_threads.append(threading.current_thread())
        began.set()

    def decoding(*_):
        assert began.wait(20), "the encoder had not begun"
        in_threads.append(threading.current_thread())

    handles = [
        model.segmenter.vision_encoder.register_forward_pre_hook(encoding),
        model.vlm.register_forward_pre_hook(decoding),
    ]
    try:
        list(model.stream_with_masks(**arguments()))
    finally:
        for handle in handles:
            handle.remove()
    assert in_threads[0] not in in_threads[1:]


def test_threads_compute_as_their_caller():
    def seen() -> tuple:
        return (
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
        )

    def in_a_thread() -> tuple:
        return Beside(seen, TorchModes(torch.device("cpu"), beside=True)).result()

    assert in_a_thread() == seen()
    with torch.inference_mode():
        assert in_a_thread() == seen()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert in_a_thread() == seen()
