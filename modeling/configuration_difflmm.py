"""DiffLMM: a LLaVA that looks with Stable Diffusion's features beside CLIP's (arXiv 2410.08209, section 3.3)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlavaConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


# Stable Diffusion 1.5, in the words of diffusers' own configs.
STABLE_DIFFUSION_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
STABLE_DIFFUSION_VAE = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
STABLE_DIFFUSION_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
# Vicuna 7B v1.5, as a conversion writes it: the last row is that of `<image>`, padding is `<unk>`. The rest is what
# transformers' own LlamaConfig says.
VICUNA_7B = {
    "vocab_size": 32001,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}


@strict
class DiffLmmConfig(LlavaConfig):
    r"""
    Configuration of [`DiffLmmForConditionalGeneration`]. The defaults are those of the published
    difflmm-llava-v1.5-7b-lora on Vicuna 7B v1.5, Stable Diffusion 1.5 and CLIP ViT-L/14 at 336 pixels.

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*): The language model; Vicuna 7B v1.5 by default.
        vision_config (`dict` or `PreTrainedConfig`, *optional*): The CLIP vision tower.
        unet_config, vae_config, scheduler_config (`dict[str, Any]`, *optional*):
            Fields of diffusers' `UNet2DConditionModel`, `AutoencoderKL` and `DDIMScheduler` that differ from Stable
            Diffusion 1.5's.
        prompt_config (`dict` or `PreTrainedConfig`, *optional*):
            Stable Diffusion's text encoder (`clip_text_model`); only with `implicit_caption=False`.
        empty_prompt_ids (`list[int]`, *optional*):
            Ids of the empty prompt, padded as Stable Diffusion pads them; only with `implicit_caption=False`.
        image_size (`int`, *optional*, defaults to 384): Side of the square `pixel_values` in pixels.
        timestep (`int`, *optional*, defaults to 100):
            Diffusion step whose share of noise the latents get, 0 to `num_train_timesteps - 1`.
        ensemble_size (`int`, *optional*, defaults to 1):
            Number of noises per image over which the diffusion features are averaged.
        diffusion_block (`int`, *optional*, defaults to 1):
            Index of the UNet's up block whose output is used. What follows it is not part of the model.
        implicit_caption (`bool`, *optional*, defaults to `True`):
            Whether the UNet is conditioned on projected CLIP features instead of the empty prompt.
        concat_clip (`bool`, *optional*, defaults to `True`):
            Whether CLIP's features are put after the diffusion features.
        use_position_embeddings (`bool`, *optional*, defaults to `True`):
            Whether learned position embeddings are added to the implicit caption and to the image tokens.
        normalize_twice (`bool`, *optional*, defaults to `True`):
            The original passes mean and standard deviation under names its image processor does not know, so that the
            pixels already have CLIP's statistics where it takes them for values in -1..1: Stable Diffusion sees CLIP's
            statistics, and CLIP sees pixels that are normalised twice. The published weights were trained so. `False`
            gives both towers the statistics they were made for, for a training of one's own.
        noise_seed (`int`, *optional*, defaults to 0):
            Seed of the noise when none is given. The original draws other noise at every call.
        vision_feature_layer (`int`, *optional*, defaults to -2): CLIP's hidden state that is used, without its
            class token.
        image_token_index (`int`, *optional*, defaults to 32000): Id of the image placeholder.

    Attributes:
        image_token_grid (`tuple[int, int]`): (rows, columns) of the image tokens, which are in reading order.
        image_seq_length (`int`): Number of image tokens; follows from the other fields.
        patch_size (`int`): Side in pixels of what one image token stands for.

    Raises:
        ValueError: The sizes of the towers do not belong together, or a value is out of its range.
    """

    model_type = "difflmm"
    # Files and class names that a published checkpoint names in its auto_map.
    published_config = "configuration_difflmm.DiffLmmConfig"
    published_model = "modeling_difflmm.DiffLmmForConditionalGeneration"

    sub_configs_defaults = {
        **LlavaConfig.sub_configs_defaults,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs=VICUNA_7B),
        "prompt_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_text_model"),
    }

    prompt_config: PreTrainedConfig | dict | None = None
    empty_prompt_ids: list[int] | None = None
    unet_config: dict[str, Any] | None = None
    vae_config: dict[str, Any] | None = None
    scheduler_config: dict[str, Any] | None = None
    image_size: int = 384
    timestep: int = 100
    ensemble_size: int = 1
    diffusion_block: int = 1
    implicit_caption: bool = True
    concat_clip: bool = True
    use_position_embeddings: bool = True
    normalize_twice: bool = True
    noise_seed: int = 0

    def __post_init__(self, **kwargs):
        # Outside a remotely loaded module this entry would make `pipeline()` ask for trust_remote_code although the
        # classes are already registered; `to_dict` writes it again.
        if not type(self).__module__.startswith("transformers_modules."):
            kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        self.unet_config = STABLE_DIFFUSION_UNET | _plain(self.unet_config)
        self.vae_config = STABLE_DIFFUSION_VAE | _plain(self.vae_config)
        self.scheduler_config = STABLE_DIFFUSION_SCHEDULER | _plain(self.scheduler_config)
        if self.implicit_caption:
            self.prompt_config = self.empty_prompt_ids = None
        self._check()
        rows, columns = self.image_token_grid
        self.image_seq_length = rows * columns

    def _check(self) -> None:
        blocks, steps = len(self.unet_config["up_block_types"]), self.scheduler_config["num_train_timesteps"]
        ranges = {
            "diffusion_block": (0, blocks - 1, f"the UNet has {blocks} up blocks"),
            "timestep": (0, steps - 1, f"the scheduler has {steps} steps"),
            "ensemble_size": (1, None, "at least one noise is needed"),
        }
        for name, (low, high, why) in ranges.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                allowed = f"{low} to {high}" if high is not None else f"{low} or more"
                raise ValueError(f"{name} is {value}; allowed is {allowed}: {why}.")
        multiple = self.latent_factor * 2 ** (len(self.unet_config["block_out_channels"]) - 1)
        if self.image_size < multiple or self.image_size % multiple:
            raise ValueError(
                f"image_size is {self.image_size}; this VAE and UNet take multiples of {multiple} pixels."
            )
        if self.concat_clip and self.image_token_grid != self.clip_grid:
            raise ValueError(
                f"Up block {self.diffusion_block} gives {self.image_token_grid} features for {self.image_size} pixels "
                f"and CLIP {self.clip_grid} for {self.vision_config.image_size}; to be put together they must be as "
                "many. Change image_size, diffusion_block or vision_config, or set concat_clip=False."
            )
        if self.implicit_caption:
            return
        if self.prompt_config is None or not self.empty_prompt_ids:
            raise ValueError(
                "implicit_caption=False conditions the UNet on the empty prompt and needs `prompt_config` and "
                "`empty_prompt_ids`."
            )

    @property
    def latent_factor(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of one image's latents, which is the shape of one noise."""
        side = self.image_size // self.latent_factor
        return self.vae_config["latent_channels"], side, side

    @property
    def image_token_grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens, which are in reading order."""
        levels = len(self.unet_config["block_out_channels"])
        # Every up block but the last one ends with an upsampler.
        side = self.latent_shape[1] // 2 ** (levels - 1) * 2 ** min(self.diffusion_block + 1, levels - 1)
        return side, side

    @property
    def clip_grid(self) -> tuple[int, int]:
        """(rows, columns) of CLIP's features."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return side, side

    @property
    def patch_size(self) -> int:
        """Side in pixels of what one image token stands for."""
        return self.image_size // self.image_token_grid[0]

    @property
    def diffusion_channels(self) -> int:
        """Channels of the diffusion features."""
        return self.unet_config["block_out_channels"][::-1][self.diffusion_block]

    def to_dict(self) -> dict:
        """Adds what lets a saved checkpoint load in an environment without this package."""
        output = super().to_dict()
        output["auto_map"] = {
            "AutoConfig": self.published_config,
            "AutoModel": self.published_model,
            "AutoModelForImageTextToText": self.published_model,
        }
        return output


def _plain(fields: dict[str, Any] | None) -> dict[str, Any]:
    """A diffusers config without its notes on class and version."""
    return {name: value for name, value in (fields or {}).items() if not name.startswith("_")}


__all__ = ["DiffLmmConfig"]
