"""Features of Stable Diffusion's UNet for an image: one denoising step, cut off behind the block that is needed."""

from typing import Any

import torch
from torch import nn

from .configuration_difflmm import DiffLmmConfig


def diffusers_classes() -> tuple[Any, Any, Any]:
    """
    Returns:
        diffusers' `UNet2DConditionModel`, `AutoencoderKL` and `DDIMScheduler`.

    Raises:
        ImportError: diffusers is not installed; says how to install it.
    """
    try:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    except ImportError as error:
        raise ImportError(
            "DiffLMM looks through Stable Diffusion and needs the package diffusers, which cannot be imported "
            f"({error}). Install it: pip install diffusers."
        ) from error
    return UNet2DConditionModel, AutoencoderKL, DDIMScheduler


class DiffusionFeatures(nn.Module):
    r"""
    Stable Diffusion's VAE encoder and the front part of its UNet, as one feature extractor.

    The modules are diffusers' own. What lies behind up block `config.diffusion_block` is removed, so that the UNet's
    forward ends with that block's output: less to store and to compute, and no other path to the same numbers.

    Args:
        config ([`DiffLmmConfig`]): Sizes, block, time step.

    Raises:
        ImportError: If diffusers is not installed.
    """

    def __init__(self, config: DiffLmmConfig):
        super().__init__()
        unet_class, vae_class, _ = diffusers_classes()
        self.scheduler_config = config.scheduler_config
        self.timestep = config.timestep
        self.vae = vae_class.from_config(config.vae_config)
        self.vae.decoder = self.vae.post_quant_conv = None
        self.unet = unet_class.from_config(config.unet_config)
        self.unet.up_blocks = self.unet.up_blocks[: config.diffusion_block + 1]
        self.unet.conv_norm_out = None
        self.unet.conv_out = nn.Identity()
        self._scheduler = None

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        prompt_embeds: torch.FloatTensor,
        vae_noise: torch.FloatTensor,
        latent_noise: torch.FloatTensor,
        keep_layout: bool = False,
    ) -> torch.FloatTensor:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`): What the VAE encodes.
            prompt_embeds (`torch.FloatTensor` of shape `(num_images, prompt_length, cross_attention_dim)`):
                What the UNet is conditioned on.
            vae_noise (`torch.FloatTensor` of shape `(ensemble_size * num_images, channels, rows, columns)`):
                Standard normal noise with which the latents are drawn from the VAE's distribution; all images with
                their first noise, then all with their second, and so on.
            latent_noise (`torch.FloatTensor` of the same shape): The noise of the diffusion step.
            keep_layout (`bool`, *optional*, defaults to `False`):
                Whether latents stay in the memory layout in which the VAE returns them, as in the original. On a CPU
                those of several images then have their channels last, for which torch takes the variance of a group
                as `E[x^2] - E[x]^2`, inexact where the mean is large: features move by up to 2e-3 of their standard
                deviation, and an image's features depend on the number of threads and on whether others are beside
                it. Only of use to meet the original's numbers.

        Returns:
            `torch.FloatTensor` of shape `(num_images, diffusion_channels, *image_token_grid)`: Mean over the ensemble.
        """
        ensemble_size = len(vae_noise) // len(pixel_values)
        noisy = self.add_noise(self.draw_latents(pixel_values, vae_noise), latent_noise)
        noisy = noisy if keep_layout else noisy.contiguous()
        timestep = torch.full((len(noisy),), self.timestep, dtype=torch.long, device=noisy.device)
        features = self.unet(
            noisy, timestep, encoder_hidden_states=prompt_embeds.repeat(ensemble_size, 1, 1), return_dict=False
        )[0]
        return torch.stack(features.chunk(ensemble_size)).mean(0)

    def draw_latents(self, pixel_values: torch.FloatTensor, noise: torch.FloatTensor) -> torch.FloatTensor:
        """Latents `(ensemble_size * num_images, channels, rows, columns)`; each image is encoded once."""
        distribution = self.vae.encode(pixel_values).latent_dist
        mean, std = distribution.mean, distribution.std
        draws = noise.to(mean.device, mean.dtype).split(len(pixel_values))
        return torch.cat([mean + std * draw for draw in draws]) * self.vae.config.scaling_factor

    def add_noise(self, latents: torch.FloatTensor, noise: torch.FloatTensor) -> torch.FloatTensor:
        """Mixes latents and noise as the diffusion process has them at `timestep`."""
        if self._scheduler is None:
            # Not in __init__, where loading a checkpoint replaces values by placeholders without content.
            self._scheduler = diffusers_classes()[2].from_config(self.scheduler_config)
        timesteps = torch.full((len(latents),), self.timestep, dtype=torch.long, device=latents.device)
        return self._scheduler.add_noise(latents, noise.to(latents.device, latents.dtype), timesteps)


def draw_noise(
    config: DiffLmmConfig, num_images: int, seed: int | None = None, generator: torch.Generator | None = None
) -> tuple[torch.FloatTensor, torch.FloatTensor]:
    r"""
    Args:
        config ([`DiffLmmConfig`]): Shape of the latents, size of the ensemble, default seed.
        num_images (`int`): Number of images.
        seed (`int`, *optional*):
            Every image gets the noise of this seed, so that its features do not depend on the images beside it.
        generator (`torch.Generator`, *optional*):
            Draws other noise for every image, and moves on.

    Returns:
        `vae_noise` and `latent_noise`, float32 of shape `(ensemble_size * num_images, *latent_shape)` on the
        generator's device, else on the CPU. A generator draws them in the original's order (first all of the one,
        then all of the other).

    Raises:
        ValueError: If both a seed and a generator are given.
    """
    if seed is not None and generator is not None:
        raise ValueError("Both `noise_seed` and `generator` were given; give one of them.")
    if generator is not None:
        shape = (config.ensemble_size * num_images, *config.latent_shape)
        first = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
        return first, torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
    generator = torch.Generator().manual_seed(config.noise_seed if seed is None else seed)
    shape = (config.ensemble_size, *config.latent_shape)
    noises = [torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) for _ in range(2)]
    return tuple(noise.repeat_interleave(num_images, dim=0) for noise in noises)


def check_noise(config: DiffLmmConfig, num_images: int, **noises: torch.Tensor | None) -> None:
    """
    Raises:
        ValueError: If a noise was given without the other one, or has another shape than the latents.
    """
    if missing := [name for name, noise in noises.items() if noise is None]:
        given = ", ".join(sorted(set(noises) - set(missing)))
        raise ValueError(f"{given} was given without {missing[0]}; give both, or neither.")
    wanted = (config.ensemble_size * num_images, *config.latent_shape)
    for name, noise in noises.items():
        if tuple(noise.shape) != wanted:
            raise ValueError(
                f"{name} has the shape {tuple(noise.shape)}; {num_images} images with ensemble_size="
                f"{config.ensemble_size} need {wanted}: all images with their first noise, then all with their second."
            )


__all__ = ["DiffusionFeatures", "check_noise", "diffusers_classes", "draw_noise"]
