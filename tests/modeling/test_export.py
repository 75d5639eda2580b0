"""`torch.export` of `forward`: one graph for any slots and images of the exported shapes, equal to the model."""

import importlib.util

import pytest
import torch

from tests.support import tiny


ANSWERS = [[10, tiny.SEG, 11, tiny.SEG], [12, tiny.SEG, 13, 14]]
OTHER_ANSWERS = [[10, 11, 12, 13], [tiny.SEG, tiny.SEG, 13, tiny.SEG]]


def batch(answers: list[list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    rows = tiny.prompts([6, 9], seed=seed)
    return {**tiny.with_answers(rows, answers), **tiny.images(2, seed=seed)}


def exported(model: torch.nn.Module, inputs: dict) -> torch.nn.Module:
    with torch.no_grad():
        return torch.export.export(model, (), kwargs=inputs).module()


def assert_same_slots(graph: torch.nn.Module, model: torch.nn.Module, inputs: dict) -> None:
    with torch.no_grad():
        drawn, expected = graph(**inputs), model(**inputs)
    for name in ("pred_masks", "mask_scores", "slot_probs", "rejected", "slot_positions"):
        if expected.get(name) is None:  # IVM rates no masks
            continue
        assert len(drawn[name]) == len(expected[name])
        for own, theirs in zip(drawn[name], expected[name], strict=True):
            torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5, msg=name)
    assert sum(len(masks) for masks in expected.pred_masks) > 1


# SAM-HQ's decoder in transformers asks how many slots there are, which no graph can answer.
MODELS = {
    "lisa": lambda: tiny.gsva_model(rej_token_id=None),
    "sam2": lambda: tiny.gsva_model(segmenter_config=tiny.sam2_config()),
    "ivm": tiny.ivm_model,
}


@pytest.mark.parametrize(
    "make_model",
    # SAM 2's graph takes longest to make.
    [pytest.param(make, id=name, marks=[pytest.mark.slow] * (name == "sam2")) for name, make in MODELS.items()],
)
def test_the_graph_draws_what_the_model_draws(make_model):
    model = make_model()
    graph = exported(model, batch(ANSWERS))
    assert_same_slots(graph, model, batch(ANSWERS))
    assert_same_slots(graph, model, batch(OTHER_ANSWERS, seed=1))


@pytest.mark.slow
def test_rows_that_share_images():
    model = MODELS["lisa"]()
    inputs = {**batch(ANSWERS), "image_index": torch.tensor([1, 0])}
    graph = exported(model, inputs)
    for index in ([1, 0], [0, 0], [1, 1]):
        assert_same_slots(graph, model, {**inputs, "image_index": torch.tensor(index)})


@pytest.mark.slow
def test_a_single_row():
    model = tiny.gsva_model()
    inputs = {**tiny.with_answers(tiny.prompts([6]), ANSWERS[:1]), **tiny.images(1)}
    assert_same_slots(exported(model, inputs), model, inputs)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="DiffLMM needs diffusers; `pip install .[dev]` has it."
)
def test_difflmm():
    model = tiny.difflmm_model()
    generator = torch.Generator().manual_seed(1)
    noise_shape = (2 * model.config.ensemble_size, *model.config.latent_shape)
    inputs = {
        **tiny.prompts([4, 6], image_tokens=16),
        "pixel_values": torch.randn(2, 3, 16, 16, generator=generator),
        "vae_noise": torch.randn(noise_shape, generator=generator),
        "latent_noise": torch.randn(noise_shape, generator=generator),
        "use_cache": False,
    }
    with torch.no_grad():
        torch.testing.assert_close(exported(model, inputs)(**inputs)["logits"], model(**inputs).logits)
