"""DiffLMM: a LLaVA that looks with Stable Diffusion's features beside CLIP's (arXiv 2410.08209, section 3.3)."""

from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModel,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .configuration_difflmm import DiffLmmConfig
from .outputs import judge_without_placeholder, output_or_tuple


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class DiffLmmImageOutput(BaseModelOutputWithPooling):
    r"""
    pooler_output (`list[torch.FloatTensor]` of shape `(image_seq_length, hidden_size)`):
        The image tokens, one entry per image.
    clip_features (`torch.FloatTensor` of shape `(num_images, num_patches, clip_hidden_size)`):
        CLIP's hidden state `vision_feature_layer` without its class token.
    diffusion_features (`torch.FloatTensor` of shape `(num_images, diffusion_channels, rows, columns)`):
        Output of the UNet's up block `diffusion_block`, mean over the ensemble.
    """

    clip_features: torch.FloatTensor | None = None
    diffusion_features: torch.FloatTensor | None = None


# ---- Stable Diffusion as a feature extractor ------------------------------------------------------------------------


def diffusers_classes() -> tuple[Any, Any, Any]:
    """diffusers' `UNet2DConditionModel`, `AutoencoderKL` and `DDIMScheduler`."""
    try:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    except ImportError as error:
        raise ImportError(
            "DiffLMM looks through Stable Diffusion and needs the package diffusers, which cannot be imported "
            f"({error}). Install it: pip install diffusers."
        ) from error
    return UNet2DConditionModel, AutoencoderKL, DDIMScheduler


class DiffusionFeatures(nn.Module):
    """
    Stable Diffusion's VAE encoder and the front part of its UNet: one denoising step, of which features are kept.

    The modules are diffusers' own. What lies after up block `config.diffusion_block` is removed, so that the UNet's
    forward ends with that block's output: less to store and to compute, and no other path to the same numbers.
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
    """
    Args:
        config ([`DiffLmmConfig`]): Shape of the latents, size of the ensemble, default seed.
        num_images (`int`): Number of images.
        seed (`int`, *optional*):
            Every image gets the noise of this seed, so that its features do not depend on the images beside it.
        generator (`torch.Generator`, *optional*): Draws other noise for every image, and moves on.

    Returns:
        `vae_noise` and `latent_noise`, float32 of shape `(ensemble_size * num_images, *latent_shape)` on the
        generator's device, else on the CPU. A generator draws them in the original's order (first all of the one,
        then all of the other).
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
    """Refuses a noise that was given without the other one, or has another shape than the latents."""
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


# ---- the model ------------------------------------------------------------------------------------------------------


class ImplicitCaptioner(nn.Module):
    """Turns CLIP's features into what a text encoder would say about the image: Linear, GELU, Linear, positions."""

    def __init__(self, config: DiffLmmConfig):
        super().__init__()
        width = config.unet_config["cross_attention_dim"]
        self.clip_projector = nn.Sequential(
            nn.Linear(config.vision_config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        rows, columns = config.clip_grid
        self.clip_pe = nn.Parameter(torch.zeros(rows * columns, width)) if config.use_position_embeddings else None

    def forward(self, clip_features: torch.FloatTensor) -> torch.FloatTensor:
        embeds = self.clip_projector(clip_features)
        return embeds if self.clip_pe is None else embeds + self.clip_pe


class SDCLIPBlock(nn.Module):
    """Projects the grid of diffusion features, and CLIP's beside them, to image tokens of the language model."""

    def __init__(self, config: DiffLmmConfig):
        super().__init__()
        hidden_size = config.text_config.hidden_size
        reduced = hidden_size // 4
        self.sd_norm_layer = nn.LayerNorm(config.diffusion_channels)
        self.sd_proj_layer = nn.Sequential(nn.Conv2d(config.diffusion_channels, reduced, kernel_size=1), nn.GELU())
        width = reduced + (config.vision_config.hidden_size if config.concat_clip else 0)
        self.linear = nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.vt_pe = None
        if config.use_position_embeddings:
            self.vt_pe = nn.Parameter(torch.zeros(config.image_seq_length, hidden_size))

    def forward(
        self, diffusion_features: torch.FloatTensor, clip_features: torch.FloatTensor | None = None
    ) -> torch.FloatTensor:
        """
        Args:
            diffusion_features (`torch.FloatTensor` of shape `(num_images, channels, rows, columns)`).
            clip_features (`torch.FloatTensor` of shape `(num_images, rows * columns, clip_hidden_size)`, *optional*).

        Returns:
            `torch.FloatTensor` of shape `(num_images, rows * columns, hidden_size)`: Image tokens in reading order.
        """
        features = self.sd_norm_layer(diffusion_features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        features = self.sd_proj_layer(features).flatten(2).transpose(1, 2)
        if clip_features is not None:
            features = torch.cat([features, clip_features.to(features.device)], dim=-1)
        tokens = self.linear(features)
        return tokens if self.vt_pe is None else tokens + self.vt_pe


class DiffLmmModel(LlavaModel):
    r"""
    LLaVA's model with another way to look at images: `get_image_features`.

    Args:
        config ([`DiffLmmConfig`]): What to compose.
    """

    config: DiffLmmConfig
    config_class = DiffLmmConfig
    _can_compile_fullgraph = False
    _no_split_modules = ["DiffusionFeatures", "ImplicitCaptioner", "SDCLIPBlock"]

    def __init__(self, config: DiffLmmConfig):
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = self._build_part(config.vision_config)
        self.diffusion = DiffusionFeatures(config)
        self.implicit_captioner = ImplicitCaptioner(config) if config.implicit_caption else None
        self.prompt_encoder = None if config.implicit_caption else self._build_part(config.prompt_config)
        self.multi_modal_projector = SDCLIPBlock(config)
        self.language_model = self._build_part(config.text_config)
        self.post_init()

    def train(self, mode: bool = True) -> "DiffLmmModel":
        """As for any module, but towers of which nothing learns stay in evaluation mode, as in the original."""
        super().train(mode)
        for tower in (self.vision_tower, self.diffusion, self.prompt_encoder):
            if tower is not None and not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    @property
    def learns_to_look(self) -> bool:
        """Whether the projector or the implicit captioner learns."""
        learning = (self.multi_modal_projector, self.implicit_captioner)
        return any(value.requires_grad for part in learning if part is not None for value in part.parameters())

    @staticmethod
    def _build_part(config: PreTrainedConfig) -> PreTrainedModel:
        # Each part could name code of its own.
        return AutoModel.from_config(config, trust_remote_code=False)

    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        vae_noise: torch.FloatTensor | None = None,
        latent_noise: torch.FloatTensor | None = None,
        noise_seed: int | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> DiffLmmImageOutput | tuple:
        r"""
        Without any of the noise arguments every image gets the noise of `config.noise_seed`: results repeat, and do
        not depend on the other images of the batch. In training mode torch's own generator on the CPU draws other
        noise for every image at every call, as the original always does; `set_seed` decides it, and checkpoints of the
        Trainer hold its state.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, image_size, image_size)`):
                Images with CLIP's statistics, as [`DiffLmmProcessor`] makes them.
            vae_noise, latent_noise (`torch.FloatTensor`, *optional*):
                Both standard normal noises, of shape `(ensemble_size * num_images, *latent_shape)`, for the numbers of
                a run of the original; see [`DiffusionFeatures`], also for `keep_layout`, which this turns on.
            noise_seed (`int`, *optional*): Seed of the noise that every image gets.
            generator (`torch.Generator`, *optional*): Draws the noise, another one for every image.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are set.

        Returns:
            [`DiffLmmImageOutput`]

        Raises:
            ValueError: If images or noises have another shape, or noise is given in two ways.
        """
        side = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, side, side):
            raise ValueError(
                f"pixel_values have the shape {tuple(pixel_values.shape)}; this model takes (num_images, 3, {side}, "
                f"{side})."
            )
        # Who brings the noise wants the numbers of the run it is from.
        as_original = vae_noise is not None
        if vae_noise is None and latent_noise is None:
            if self.training and noise_seed is None and generator is None:
                generator = torch.default_generator
            vae_noise, latent_noise = draw_noise(self.config, len(pixel_values), noise_seed, generator)
        elif noise_seed is not None or generator is not None:
            raise ValueError("Noise was given both as tensors and as a seed or generator; give one of them.")
        else:
            check_noise(self.config, len(pixel_values), vae_noise=vae_noise, latent_noise=latent_noise)
        clip_view, diffusion_view = self.two_views(pixel_values)
        states = self.vision_tower(clip_view, output_hidden_states=True, return_dict=True).hidden_states
        clip_features = states[self.config.vision_feature_layer][:, 1:]
        features = self.diffusion(
            diffusion_view, self.prompt_embeds(clip_features), vae_noise, latent_noise, keep_layout=as_original
        )
        tokens = self.multi_modal_projector(features, clip_features if self.config.concat_clip else None)
        output = DiffLmmImageOutput(
            pooler_output=list(tokens), clip_features=clip_features, diffusion_features=features
        )
        return output_or_tuple(output, return_dict, self.config)

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.BoolTensor:
        """As in LLaVA, with both counts in the message where they do not match."""
        if input_ids is not None and not torch.compiler.is_exporting():
            placeholders = int((input_ids == self.config.image_token_id).sum())
            if placeholders != len(image_features):
                raise ValueError(
                    f"input_ids hold {placeholders} image tokens and the images give {len(image_features)}: every "
                    f"image needs {self.config.image_seq_length}, as DiffLmmProcessor writes them."
                )
        return super().get_placeholder_mask(input_ids, inputs_embeds, image_features)

    def two_views(self, pixel_values: torch.FloatTensor) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """What CLIP sees, `(num_images, 3, clip_size, clip_size)`, and what Stable Diffusion sees."""
        pixel_values = pixel_values.to(self.vision_tower.dtype)
        size = (self.config.vision_config.image_size,) * 2
        clip_view = F.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)
        mean, std = (
            torch.tensor(value, device=pixel_values.device, dtype=pixel_values.dtype).view(1, 3, 1, 1)
            for value in (CLIP_MEAN, CLIP_STD)
        )
        if self.config.normalize_twice:
            # The original takes its pixels for values in -1..1, which they are not; see DiffLmmConfig.
            return (clip_view * 0.5 + 0.5 - mean) / std, pixel_values
        return clip_view, (pixel_values * std + mean) * 2 - 1

    def prompt_embeds(self, clip_features: torch.FloatTensor) -> torch.FloatTensor:
        """What the UNet is conditioned on, `(num_images, prompt_length, cross_attention_dim)`."""
        if self.implicit_captioner is not None:
            return self.implicit_captioner(clip_features)
        ids = torch.tensor([self.config.empty_prompt_ids], device=self.prompt_encoder.device)
        return self.prompt_encoder(input_ids=ids).last_hidden_state.expand(len(clip_features), -1, -1)


class DiffLmmForConditionalGeneration(LlavaForConditionalGeneration):
    r"""
    DiffLMM with its language head: answers questions about images, and is an image-text-to-text model like any other.

    Args:
        config ([`DiffLmmConfig`]): What to compose.

    Raises:
        ImportError: If diffusers is not installed.
    """

    config: DiffLmmConfig
    config_class = DiffLmmConfig
    _can_compile_fullgraph = False
    _no_split_modules = ["DiffusionFeatures", "ImplicitCaptioner", "SDCLIPBlock"]

    def __init__(self, config: DiffLmmConfig):
        LlavaPreTrainedModel.__init__(self, config)
        self.model = DiffLmmModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> DiffLmmImageOutput:
        """See [`DiffLmmModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values=pixel_values, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        vae_noise: torch.FloatTensor | None = None,
        latent_noise: torch.FloatTensor | None = None,
        noise_seed: int | None = None,
        generator: torch.Generator | None = None,
        image_index: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, DiffLmmImageOutput] | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ModelOutput | tuple:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Ids in which every image has `image_seq_length` placeholders.
            pixel_values, vae_noise, latent_noise, noise_seed, generator: See [`DiffLmmModel.get_image_features`].
                `generate` takes them too.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): As in LLaVA.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Ids to predict, -100 where nothing is to be learned; placeholders are never learned. In training mode a
                batch without images then looks at a black one with weight 0: every parameter that learns gets a
                gradient, which optimizers that carry momentum and processes that wait for each other need.
            image_index (`torch.LongTensor` of shape `(num_rows_with_images,)`, *optional*):
                The image in `pixel_values` of each row that has one, in the order of the rows, where rows share
                images: each is encoded once. `generate` takes an image per row instead.
            logits_to_keep (`int` or `torch.Tensor`): Logits of the last so many positions, or of these; 0 for all.
            mm_encoder_outputs (`dict`, *optional*): `{"image": get_image_features(...)}`, in place of `pixel_values`.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are set.
            kwargs: Further inputs of [`LlavaForConditionalGeneration`].
        """
        noise = {
            "vae_noise": vae_noise,
            "latent_noise": latent_noise,
            "noise_seed": noise_seed,
            "generator": generator,
        }
        if pixel_values is not None and mm_encoder_outputs is None:
            images = self.get_image_features(pixel_values, **noise, return_dict=True)
            if image_index is not None:
                images.pooler_output = _of_rows(images.pooler_output, image_index)
            pixel_values, mm_encoder_outputs = None, {"image": images}
        # Before the language model, as with images, so that processes that share weights read them in one order.
        is_unseen = labels is not None and mm_encoder_outputs is None and self.training and self.model.learns_to_look
        nothing = self._look_at_nothing() if is_unseen else 0.0
        output = super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
            return_dict=True,
        )
        judge_without_placeholder(self, output, labels, **kwargs)
        if labels is not None:
            output.loss = output.loss + nothing
        return output_or_tuple(output, return_dict, self.config)

    # What `generate` takes, and under which name the cache, is read off this.
    @wraps(LlavaForConditionalGeneration.prepare_inputs_for_generation, assigned=())
    def prepare_inputs_for_generation(self, *args, image_index: torch.LongTensor | None = None, **kwargs) -> dict:
        """
        Raises:
            ValueError: If rows share images, whose order beams and several answers per row would change.
        """
        if image_index is not None:
            raise ValueError("`generate` takes an image per row; `image_index` is for batches with labels.")
        return super().prepare_inputs_for_generation(*args, **kwargs)

    def _look_at_nothing(self) -> torch.FloatTensor:
        """0, with a gradient of 0 for everything that learns to look; LLaVA gives each text a black image for it."""
        side = self.config.image_size
        black = torch.zeros(1, 3, side, side, device=self.model.multi_modal_projector.linear[0].weight.device)
        return torch.stack(self.get_image_features(black, return_dict=True).pooler_output).sum() * 0.0


def _of_rows(tokens: list[torch.FloatTensor], image_index: torch.LongTensor) -> list[torch.FloatTensor]:
    """The image tokens of each row.

    Raises:
        ValueError: If an index names no image.
    """
    index = image_index.tolist()
    if wrong := [image for image in index if not 0 <= image < len(tokens)]:
        raise ValueError(f"image_index names the image {wrong[0]}; pixel_values hold {len(tokens)}, counted from 0.")
    return [tokens[image] for image in index]


__all__ = ["DiffLmmForConditionalGeneration", "DiffLmmImageOutput", "DiffLmmModel", "DiffusionFeatures"]
