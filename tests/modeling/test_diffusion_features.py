"""The UNet's features: cut off where they are taken, repeatable, and the same beside other images."""

import importlib.util
import sys

import pytest
import torch

from reasonseg.modeling.diffusion_features import check_noise, diffusers_classes, draw_noise
from reasonseg.modeling.modeling_difflmm import DiffLmmForConditionalGeneration
from tests.tiny import difflmm_config, difflmm_model, randomize


needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="DiffLMM needs diffusers; `pip install .[dev]` has it."
)


def pictures(count: int, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    config = difflmm_config()  # reading a config must still work
    with pytest.raises(ImportError, match=r"pip install diffusers\.$"):
        DiffLmmForConditionalGeneration(config)


@needs_diffusers
@torch.inference_mode()
@pytest.mark.parametrize("block", [0, 1, 2])
def test_the_cut_unet_gives_what_a_hook_reads_off_the_whole_one(block):
    config = difflmm_config(diffusion_block=block, concat_clip=False)
    cut = DiffLmmForConditionalGeneration(config).model.diffusion.eval()
    whole = randomize(diffusers_classes()[0].from_config(config.unet_config))
    cut.unet.load_state_dict(whole.state_dict(), strict=False)
    caught = []
    hook = whole.up_blocks[block].register_forward_hook(lambda module, args, output: caught.append(output))
    latents, prompt = torch.randn(2, *config.latent_shape), torch.randn(2, 5, 12)
    whole(latents, config.timestep, encoder_hidden_states=prompt)
    hook.remove()
    found = cut.unet(latents, config.timestep, encoder_hidden_states=prompt, return_dict=False)[0]
    assert torch.equal(found, caught[0])
    assert found.shape[1:] == (config.diffusion_channels, *config.image_token_grid)
    names = cut.state_dict()
    assert not any(name.startswith(("vae.decoder", "unet.conv_out", f"unet.up_blocks.{block + 1}")) for name in names)


@needs_diffusers
@torch.inference_mode()
def test_results_repeat_and_do_not_depend_on_the_batch():
    model, images = difflmm_model(), pictures(3)
    batch = model.get_image_features(images)
    again = model.get_image_features(images)
    for place in range(3):
        assert torch.equal(batch.pooler_output[place], again.pooler_output[place])
        single = model.get_image_features(images[place : place + 1])
        assert (single.pooler_output[0] - batch.pooler_output[place]).abs().max() < 1e-5
    other = model.get_image_features(images, noise_seed=1)
    assert (other.pooler_output[0] - batch.pooler_output[0]).abs().max() > 1e-3
    same = model.get_image_features(images, noise_seed=model.config.noise_seed)
    assert torch.equal(same.pooler_output[0], batch.pooler_output[0])


@needs_diffusers
@torch.inference_mode()
def test_a_generator_draws_on():
    model, image = difflmm_model(), pictures(1)
    generator = torch.Generator().manual_seed(5)
    first, second = (model.get_image_features(image, generator=generator).pooler_output[0] for _ in range(2))
    assert not torch.allclose(first, second)
    fresh = model.get_image_features(image, generator=torch.Generator().manual_seed(5)).pooler_output[0]
    assert torch.equal(fresh, first)
    # One image's noise of a seed is what a generator of that seed draws first.
    assert torch.equal(model.get_image_features(image, noise_seed=5).pooler_output[0], first)


@needs_diffusers
@torch.inference_mode()
def test_an_ensemble_is_the_mean_of_its_members():
    members, images = 3, pictures(2)
    model = difflmm_model(ensemble_size=members)
    alone = difflmm_model(ensemble_size=1)
    alone.load_state_dict(model.state_dict())
    vae_noise, latent_noise = draw_noise(model.config, 2, generator=torch.Generator().manual_seed(0))
    assert vae_noise.shape == (6, *model.config.latent_shape)
    together = model.get_image_features(images, vae_noise=vae_noise, latent_noise=latent_noise).diffusion_features
    each = [
        alone.get_image_features(images, vae_noise=first, latent_noise=second).diffusion_features
        for first, second in zip(vae_noise.split(2), latent_noise.split(2), strict=True)
    ]
    assert (together - torch.stack(each).mean(0)).abs().max() < 1e-4
    assert (each[0] - each[1]).abs().max() > 1e-2


def test_noise_of_a_seed_is_the_same_for_every_image():
    config = difflmm_config(ensemble_size=2)
    vae_noise, latent_noise = draw_noise(config, 3)
    assert vae_noise.shape == latent_noise.shape == (6, *config.latent_shape)
    assert not torch.equal(vae_noise, latent_noise)
    assert torch.equal(vae_noise[0], vae_noise[2])
    assert not torch.equal(vae_noise[0], vae_noise[3])
    with pytest.raises(ValueError, match="Both `noise_seed` and `generator`"):
        draw_noise(config, 1, seed=0, generator=torch.Generator())


def test_noise_that_does_not_fit_is_refused():
    config = difflmm_config(ensemble_size=2)
    noise = torch.zeros(2, *config.latent_shape)
    check_noise(config, 1, vae_noise=noise, latent_noise=noise)
    with pytest.raises(ValueError, match=r"vae_noise was given without latent_noise"):
        check_noise(config, 1, vae_noise=noise, latent_noise=None)
    with pytest.raises(
        ValueError, match=r"latent_noise has the shape \(1, 4, 8, 8\); 1 images .* need \(2, 4, 8, 8\)"
    ):
        check_noise(config, 1, vae_noise=noise, latent_noise=noise[:1])
