"""IVM: the last words of an instruction point, SAM's features with a decoder of their own draw one heat-map."""

import inspect
import os
from typing import Self

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    GenerationMixin,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPreTrainedModel,
)
from transformers.models.sam.modeling_sam import (
    SamFeedForward,
    SamLayerNorm,
    SamPositionalEmbedding,
    SamTwoWayTransformer,
    SamVisionEncoder,
)
from transformers.utils import is_peft_available

from .composed_model import ComposedModel, ImageCache
from .configuration_ivm import IvmConfig
from .outputs import ReasoningSegmentationOutput, language_fields, output_or_tuple
from .segmenters import (
    DRAWN_AT_ONCE,
    bce_per_mask,
    check_targets,
    dice_per_mask,
    mean_over_masks,
    prepare_segmenter_config,
    segmenter_adapter,
    upsample_masks,
)


# LLaVAEncoder of the original reads the state at index -2: the token before the colon of "ASSISTANT:".
_STATE_FROM_END = 2
_HYPERNETWORK_LAYERS = 3
# Where a conversion puts an adapter it keeps, and what of `from_pretrained` says where the repository is.
_ADAPTER_FOLDER = "adapter"
_SOURCE_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")


class ConditionedMaskDecoder(nn.Module):
    r"""
    Draws one mask from one language token (IVM, section 4.1; model/decoder.py).

    Unlike SAM's decoder it has no IoU token, adds no "no mask" embedding to the image, and answers with one mask.

    Args:
        config (`SamMaskDecoderConfig`): Sizes; `layer_norm_eps` is 1e-5 in the published weights.
    """

    def __init__(self, config: SamMaskDecoderConfig):
        super().__init__()
        width = config.hidden_size
        self.mask_tokens = nn.Embedding(1, width)
        self.transformer = SamTwoWayTransformer(config)
        self.upscale_conv1 = nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2)
        self.upscale_layer_norm = SamLayerNorm(width // 4, data_format="channels_first")
        self.upscale_conv2 = nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2)
        self.activation = nn.GELU()
        self.output_hypernetworks_mlps = SamFeedForward(width, width, width // 8, _HYPERNETWORK_LAYERS)

    def forward(
        self,
        image_embeddings: torch.FloatTensor,
        image_positional_embeddings: torch.FloatTensor,
        language_embeddings: torch.FloatTensor,
    ) -> torch.FloatTensor:
        """
        Args:
            image_embeddings (`torch.FloatTensor` of shape `(masks, channels, height, width)`): SAM's, one per mask.
            image_positional_embeddings (`torch.FloatTensor` of shape `(1, channels, height, width)`): Where each is.
            language_embeddings (`torch.FloatTensor` of shape `(masks, channels)`): What each mask is about.

        Returns:
            `torch.FloatTensor` of shape `(masks, 4 * height, 4 * width)`: Mask logits.
        """
        num_masks, channels, height, width = image_embeddings.shape
        mask_token = self.mask_tokens.weight.expand(num_masks, -1, -1)
        tokens = torch.cat([mask_token, language_embeddings[:, None].to(mask_token.dtype)], dim=1)
        tokens, pixels = self.transformer(
            point_embeddings=tokens[:, None],  # image, prompt of the image, token, channel
            image_embeddings=image_embeddings,
            image_positional_embeddings=image_positional_embeddings.expand(num_masks, -1, -1, -1),
            attention_similarity=None,
        )
        pixels = pixels[:, 0].transpose(1, 2).reshape(num_masks, channels, height, width)
        pixels = self.activation(self.upscale_layer_norm(self.upscale_conv1(pixels)))
        pixels = self.activation(self.upscale_conv2(pixels))
        filters = self.output_hypernetworks_mlps(tokens[:, 0, 0])
        return (filters[:, None] @ pixels.flatten(2)).reshape(num_masks, *pixels.shape[-2:])


class ConditionedSam(SamPreTrainedModel):
    r"""
    What IVM has of SAM: the image encoder, and a decoder of its own with its own positional matrix.

    Args:
        config (`SamConfig`): SAM's sizes.
    """

    def __init__(self, config: SamConfig):
        super().__init__(config)
        self.shared_image_embedding = SamPositionalEmbedding(config.vision_config)
        self.vision_encoder = SamVisionEncoder(config.vision_config)
        # The decoder is no model of its own, so nothing else tells it how to attend.
        config.mask_decoder_config._attn_implementation = config._attn_implementation
        self.mask_decoder = ConditionedMaskDecoder(config.mask_decoder_config)
        self.post_init()

    get_image_wide_positional_embeddings = SamModel.get_image_wide_positional_embeddings

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_encoder.get_input_embeddings()


class PromptProjector(nn.Module):
    """Turns the language state into the decoder's language token: Linear, GELU, Linear (`text_proj`)."""

    def __init__(self, hidden_size: int, projector_hidden_size: int, prompt_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, projector_hidden_size)
        self.linear_2 = nn.Linear(projector_hidden_size, prompt_dim)

    def forward(self, states: torch.FloatTensor) -> torch.FloatTensor:
        return self.linear_2(F.gelu(self.linear_1(states)))


class IvmForVisualMasking(ComposedModel):
    r"""
    Instruction-guided visual masking: how much an instruction needs each pixel of an image.

    One forward pass, no text is written. Every row of the batch is one slot: `pred_masks` holds one heat-map of logits
    per row, whose sigmoid is the heat-map.

    Args:
        config ([`IvmConfig`]): What to compose.
    """

    config: IvmConfig
    config_class = IvmConfig
    _no_split_modules = ["PromptProjector", "ConditionedSam"]
    _keep_in_fp32_modules = ["segmenter", "seg_projector"]
    _keep_in_fp32_modules_strict = ["segmenter", "seg_projector"]

    def __init__(self, config: IvmConfig):
        if config.needs_adapter and not is_peft_available():
            raise ImportError(
                "This checkpoint keeps its LoRA adapter beside the weights, and transformers loads it with PEFT only. "
                "Install it: pip install peft"
            )
        if not isinstance(config.segmenter_config, SamConfig):
            raise ValueError(
                f"IVM draws on SAM's image encoder; segmenter_config has the type "
                f"{config.segmenter_config.model_type!r}. Pass a SamConfig."
            )
        super().__init__(config)
        self.segmenter = self._with_encoder_dtype(ConditionedSam(prepare_segmenter_config(config.segmenter_config)))
        prompt_dim = config.segmenter_config.mask_decoder_config.hidden_size
        hidden_size = config.get_text_config().hidden_size
        self.seg_projector = PromptProjector(hidden_size, config.projector_hidden_size, prompt_dim).float()
        self.vlm = self._build_vlm()
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        reshaped_input_sizes: torch.LongTensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        mask_labels: list[torch.Tensor] | torch.Tensor | None = None,
        sample_weights: torch.FloatTensor | None = None,
        reject_threshold: None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ReasoningSegmentationOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Prompts up to where the answer would begin, image placeholders expanded, padded on either side.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding.
            pixel_values, sam_pixel_values, original_sizes, reshaped_input_sizes: See [`ComposedModel.encode_image`].
            image_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The image of each row, where rows share images.
            image_cache ([`ImageCache`], *optional*): Images encoded before, instead of the pixel values.
            mask_labels (`list[torch.Tensor]` or `torch.Tensor` of shapes `(height, width)` or `(1, height, width)`):
                Per row the target, bool or in [0, 1], at any size: the whole image squeezed to it. Losses are
                computed there; the original's targets are 1024 x 1024.
            sample_weights (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
                Factor of each row's loss; the loss is the mean of the weighted losses over all rows.
            reject_threshold: Must be `None`: IVM has no `[REJ]`, and its heat-map no probability that all is absent.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are set.
            kwargs: Further inputs of the vision-language model.

        Returns:
            [`ReasoningSegmentationOutput`]: `pred_masks`, `slot_probs` (1.0), `rejected` (False), `slot_positions`
            (of the state in `input_ids`), `slot_states`, `prompt_embeddings`, and with `mask_labels` the losses. There
            is no `mask_scores`: the decoder has no IoU head.

        Raises:
            ValueError: If rows, images, labels and weights do not match, labels have values outside [0, 1], a row has
                fewer than two tokens, or a `reject_threshold` is given.
        """
        if input_ids is None:
            raise ValueError("IVM reads a prompt with its image: pass `input_ids` as the processor returns them.")
        if image_cache is None and pixel_values is None:
            raise ValueError("IVM masks an image: pass `pixel_values` and `sam_pixel_values`, or `image_cache`.")
        if reject_threshold is not None:
            raise ValueError(
                f"reject_threshold is {reject_threshold}, but IVM rejects nothing: it draws a heat-map for every "
                "instruction and has no [REJ]. Leave it out, and judge the heat-map itself, such as its largest value."
            )
        views = (pixel_values, sam_pixel_values, original_sizes, reshaped_input_sizes)
        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs, *views)
        language = self.vlm.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            return_dict=True,
            **self._vlm_image_inputs(images, image_index),
            **kwargs,
        )
        states = language.last_hidden_state
        positions = state_positions(input_ids, attention_mask).to(states.device)
        states = states[torch.arange(len(input_ids), device=states.device), positions]
        weight = self.seg_projector.linear_1.weight
        prompts = self.seg_projector(states.to(weight.device, weight.dtype))
        masks = self._draw(images, image_index, prompts)
        output = ReasoningSegmentationOutput(
            pred_masks=list(masks.split(1)),
            slot_probs=list(masks.new_ones(len(masks)).split(1)),
            rejected=list(torch.zeros(len(masks), dtype=torch.bool, device=masks.device).split(1)),
            slot_positions=list(positions.split(1)),
            slot_states=list(states.split(1)),
            prompt_embeddings=list(prompts.split(1)),
            **language_fields(language),
        )
        if mask_labels is not None:
            output.losses = self._mask_losses(masks, images, image_index, mask_labels, sample_weights)
            output.loss = sum(output.losses.values())
        elif sample_weights is not None:
            raise ValueError("sample_weights weigh the losses, which need `mask_labels`.")
        return output_or_tuple(output, return_dict, self.config)

    def _draw(
        self, images: ImageCache, image_index: torch.LongTensor, prompts: torch.FloatTensor
    ) -> torch.FloatTensor:
        """Heat-maps `(rows, height, width)` of logits; outside of training a few rows at a time."""
        features = self._segmenter_features(images, image_index)["image_embeddings"]
        positions = self.segmenter.get_image_wide_positional_embeddings()
        prompts = prompts.to(self.segmenter.device, segmenter_adapter(self.segmenter).dtype)
        if self.training or torch.compiler.is_exporting():
            return self.segmenter.mask_decoder(features, positions, prompts)
        parts = zip(features.split(DRAWN_AT_ONCE), prompts.split(DRAWN_AT_ONCE), strict=True)
        return torch.cat([self.segmenter.mask_decoder(some, positions, their) for some, their in parts])

    def _mask_losses(
        self,
        masks: torch.FloatTensor,
        images: ImageCache,
        image_index: torch.LongTensor,
        mask_labels: list[torch.Tensor] | torch.Tensor,
        sample_weights: torch.FloatTensor | None,
    ) -> dict[str, torch.FloatTensor]:
        """IVM.forward of the original: the mean over rows of per-pixel and overlap loss, each times its weight."""
        if len(mask_labels) != len(masks):
            raise ValueError(f"{len(masks)} rows and {len(mask_labels)} mask_labels; give one target per row.")
        if sample_weights is None:
            sample_weights = masks.new_ones(len(masks))
        if sample_weights.shape != (len(masks),):
            raise ValueError(
                f"sample_weights has the shape {tuple(sample_weights.shape)}; give one weight per row ({len(masks)},)."
            )
        side = images.sam_pixel_values.shape[-1]
        weighted_bce, weighted_dice = [], []
        for row, (target, weight) in enumerate(zip(mask_labels, sample_weights.to(masks.device), strict=True)):
            target = target[None] if target.ndim == 2 else target
            if target.ndim != 3 or len(target) != 1:
                raise ValueError(
                    f"The target of row {row} has the shape {tuple(target.shape)}; IVM draws one mask per row: give "
                    "(height, width) or (1, height, width)."
                )
            resized = (side, side)
            if images.reshaped_input_sizes is not None:
                resized = images.reshaped_input_sizes[image_index[row]].tolist()
            logits = upsample_masks(masks[row : row + 1], side, resized, target.shape[-2:])
            target = check_targets(target, row, images.size_of(image_index[row]), any_size=True).to(logits)
            weighted_bce.append(weight.to(logits) * bce_per_mask(logits, target))
            weighted_dice.append(weight.to(logits) * dice_per_mask(logits, target))
        return {
            "mask_bce_loss": self.config.bce_loss_weight * mean_over_masks(weighted_bce),
            "mask_dice_loss": self.config.dice_loss_weight * mean_over_masks(weighted_dice),
        }

    @torch.no_grad()
    def generate_with_masks(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        reject_threshold: None = None,
        return_dict: bool = True,
        **kwargs,
    ) -> ReasoningSegmentationOutput:
        r"""
        `forward` under the name that every system has. IVM writes no text, so that `sequences` are the prompts and
        options of generation (`max_new_tokens`, ...) have nothing to act on.

        Args:
            input_ids, attention_mask, image_index, image_cache, reject_threshold: As in `forward`.
            return_dict (`bool`): `False` returns a tuple of the fields that are set.
            kwargs: The images as in `forward`, and options of generation.

        Raises:
            ValueError: If a keyword is none that any system's `generate_with_masks` takes, such as a misspelt option,
                and as in `forward`.
        """
        images, image_index, options = self._take_images(input_ids, image_index, image_cache, kwargs)
        given = {name for name, value in options.items() if value is not None}
        if unknown := sorted(given - self._known_options()):
            raise ValueError(
                f"generate_with_masks does not know {', '.join(unknown)}. Pass the images as the processor returns "
                "them, and options of generation by the names they have in transformers."
            )
        output = self.forward(
            input_ids,
            attention_mask,
            image_index=image_index,
            image_cache=images,
            reject_threshold=reject_threshold,
            return_dict=True,
        )
        output.sequences = input_ids
        if options.get("streamer") is not None:
            options["streamer"].end()  # a reader in another thread waits for it
        return output if return_dict else output.to_tuple()

    def _known_options(self) -> set[str]:
        """What `generate` of the vision-language model takes, so that a call works with every system or with none."""
        names = set(vars(GenerationConfig())) | {"tokenizer", "assistant_tokenizer", "share_prefixes"}
        for method in (GenerationMixin.generate, type(self.vlm).prepare_inputs_for_generation, type(self.vlm).forward):
            names |= set(inspect.signature(method).parameters)
        return names - {"self", "kwargs"}

    # ---- an adapter that is kept apart --------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs) -> Self:
        """As in every model of transformers; a checkpoint that keeps its adapter apart is loaded with it."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.needs_adapter and not getattr(model, "_hf_peft_config_loaded", False):
            source = {name: value for name, value in kwargs.items() if name in _SOURCE_OPTIONS and value is not None}
            model.load_adapter(pretrained_model_name_or_path, adapter_kwargs={**source, "subfolder": _ADAPTER_FOLDER})
            model.eval()
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """
        As in every model of transformers; a kept adapter is written apart again, beside the weights it belongs to.

        Raises:
            ValueError: For `push_to_hub` with a kept adapter, which would upload the weights without it.
        """
        if not (self.config.needs_adapter and getattr(self, "_hf_peft_config_loaded", False)):
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        if push_to_hub:
            raise ValueError(
                "This model keeps its adapter apart, and push_to_hub would leave it out. Save to a folder and upload "
                "that, with huggingface_hub.upload_folder or `reasonseg publish`."
            )
        from peft import get_peft_model_state_dict

        weights = kwargs.pop("state_dict", None) or self.state_dict()
        below = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
        # transformers would write the adapter alone, which nothing loads without the weights below it.
        self._hf_peft_config_loaded = False
        # Nor may it turn back the names by which it read the adapter.
        kwargs["save_original_format"] = False
        try:
            super().save_pretrained(save_directory, state_dict=below, **kwargs)
        finally:
            self._hf_peft_config_loaded = True
        adapter_folder = os.path.join(save_directory, _ADAPTER_FOLDER)
        ((adapter_name, adapter_config),) = self.peft_config.items()
        adapter_config.save_pretrained(adapter_folder)
        adapter = get_peft_model_state_dict(self, adapter_name=adapter_name)
        adapter = {f"base_model.model.{name}": value.contiguous() for name, value in adapter.items()}
        save_file(adapter, os.path.join(adapter_folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def state_positions(input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.LongTensor:
    """
    Positions `(rows,)` of the second-last token of each prompt, whichever side is padded. The original counts from the
    end of the batch, which is the same where padding is on the left, as its processor puts it.

    Raises:
        ValueError: If a row has fewer than two tokens.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    tokens_from_here = mask.flip(-1).cumsum(-1).flip(-1)
    found = (tokens_from_here == _STATE_FROM_END) & mask.bool()
    if not torch.compiler.is_exporting() and not bool(found.any(-1).all()):
        short = (~found.any(-1)).nonzero().flatten().tolist()
        raise ValueError(f"The rows {short} have fewer than {_STATE_FROM_END} tokens; IVM needs a prompt.")
    return found.long().argmax(-1)


__all__ = ["IvmForVisualMasking"]
