"""What all systems share: a vision-language model and a segmenter that are one model to the outside."""

import copy
import inspect
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)

from .configuration_reasoning_segmentation import ComposedConfig
from .generation_stream import Beside, StreamStep, TorchModes, check_one_answer, stream_generation, takes_slots
from .key_value_cache import (
    ReadPrompts,
    ReadTokens,
    can_continue,
    read_prompts,
    with_cache_named_for,
)
from .segmenters import (
    DRAWN_AT_ONCE,
    SegmenterPrompt,
    prepare_segmenter_config,
    segmenter_adapter,
    with_encoder_in,
    with_heads_in_parts,
)


# Four views of SAM: more at once is no faster, and takes memory.
_PIXELS_AT_ONCE = 4 * 1024**2
VIEW_NAMES = ("pixel_values", "sam_pixel_values", "original_sizes", "reshaped_input_sizes", "tile_counts")


# Beside these, `generate` hands its keyword arguments to the model.
_GENERATION_OPTIONS = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | {
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "streamer",
    "prefix_allowed_tokens_fn",
    "tokenizer",
}
# Settings of a generation that must read its prompts itself.
_WHOLE_PROMPT_OPTIONS = (
    "cache_implementation",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "token_healing",
    "output_attentions",
    "output_hidden_states",
)


@dataclass
class ImageCache:
    """
    The images of one call as both encoders see them, to be handed to later calls about the same images. Not tied to a
    number of rows: `image_index` says which image a row looks at. It belongs to the model as it was then.

    Args:
        vlm_features: Output of the model's `get_image_features`, one entry of `pooler_output` per image or tile.
        vlm_inputs (`dict`): Per-image tensors that the language model still needs (`image_grid_thw`, ...).
        num_images (`int`): Number of images; one of several tiles counts once.
        sam_pixel_values, original_sizes, reshaped_input_sizes, tile_counts: See [`ComposedModel.encode_image`].
        segmenter_features (`list`): Per image the encoded view, `None` until it is needed.
        grids (`dict`, *optional*): Per image where its tokens lie, for models that point by attention.
        prefixes (`list`, *optional*):
            Per image the last prompt about it with its keys and values, answer included, or what its prompts shared
            where there were several: later calls that are handed this object read only what follows. About 0.5 MB per
            token for LLaMA-7B in 16 bit, freed with this object; set it to `None` to forget.
        encoding ([`Beside`], *optional*): The segmenter's encoder, while it runs beside a generation.
    """

    vlm_features: object
    vlm_inputs: dict[str, torch.Tensor]
    num_images: int
    sam_pixel_values: torch.FloatTensor | None = None
    original_sizes: torch.LongTensor | None = None
    reshaped_input_sizes: torch.LongTensor | None = None
    segmenter_features: list | None = None
    tile_counts: torch.LongTensor | None = None
    grids: dict[str, torch.Tensor] | None = None
    prefixes: list[ReadTokens | None] | None = None
    encoding: Beside | None = None

    def size_of(self, image: int | torch.Tensor) -> tuple[int, int] | None:
        """(height, width) of an image in pixels, where it is known."""
        return None if self.original_sizes is None else tuple(self.original_sizes[image].tolist())

    def scale_of(self, image: int) -> tuple[float, float]:
        """
        By what x and y in pixels of an image become those of the segmenter's view. As in SAM's ResizeLongestSide:
        rounding of the resized size included, no half pixel added.

        Raises:
            ValueError: If the sizes of the images are not known.
        """
        if self.original_sizes is None or self.reshaped_input_sizes is None:
            raise ValueError(
                "Pointing needs `original_sizes` and `reshaped_input_sizes` as the processor returns them."
            )
        (height, width), (resized_height, resized_width) = (
            sizes[image].tolist() for sizes in (self.original_sizes, self.reshaped_input_sizes)
        )
        return resized_width / width, resized_height / height


class PlaceholderSuppressor(SuppressTokensLogitsProcessor):
    """A type of its own, so that it works beside the `suppress_tokens` of a generation config instead of for it."""


class ImageReader:
    """
    Images that are encoded once for any number of questions, and prompts about them that continue one another, around
    an image-text-to-text model `vlm`. Subclasses have its `config`, `device`, `training` and `generation_config`.
    """

    vlm: PreTrainedModel

    # ---- images -------------------------------------------------------------------------------------------------

    def encode_image(
        self,
        pixel_values: torch.FloatTensor,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        reshaped_input_sizes: torch.LongTensor | None = None,
        tile_counts: torch.LongTensor | None = None,
        **kwargs,
    ) -> ImageCache:
        """
        Encodes images for any number of later questions: pass the result as `image_cache`.

        The vision-language model's features are computed now, the segmenter's when the first slot needs them; both
        then stay in the result. Further inputs of a processor (`input_ids`, ...) are accepted and ignored.

        Args:
            pixel_values (`torch.FloatTensor`): The vision-language model's view, as its processor made it.
            sam_pixel_values (`torch.FloatTensor` of shape `(num_images, 3, side, side)`, *optional*):
                The segmenter's view. Without it no masks can be drawn.
            original_sizes, reshaped_input_sizes (`torch.LongTensor` of shape `(num_images, 2)`, *optional*):
                (height, width) of the image and of its part of the segmenter's view.
            tile_counts (`torch.LongTensor` of shape `(num_images,)`, *optional*):
                Entries of `pixel_values` that show each image, where there are several (InternVL).
        """
        inputs = {"pixel_values": pixel_values, **kwargs}
        names = image_encoder_parameters(self.vlm)
        vlm_inputs = {name: value for name, value in inputs.items() if name in names and value is not None}
        features, num_images = None, len(pixel_values)
        if "mm_encoder_outputs" in inspect.signature(self.vlm.forward).parameters:  # it takes encoded images
            features = self._vlm_features(vlm_inputs)
            num_images = len(features.pooler_output)
            del vlm_inputs["pixel_values"]
        if tile_counts is not None:
            if int(tile_counts.sum()) != num_images:
                raise ValueError(f"tile_counts {tile_counts.tolist()} must add up to the {num_images} pixel_values.")
            num_images = len(tile_counts)
        if sam_pixel_values is not None and len(sam_pixel_values) != num_images:
            counted = "by tile_counts " if tile_counts is not None else ""
            raise ValueError(
                f"{num_images} images {counted}for the vision-language model and {len(sam_pixel_values)} for the "
                "segmenter; both views must show the same images in the same order."
            )
        views = (sam_pixel_values, original_sizes, reshaped_input_sizes, [None] * num_images, tile_counts)
        return ImageCache(features, vlm_inputs, num_images, *views)

    def _vlm_features(self, inputs: dict[str, torch.Tensor]):
        """
        Output of the vision-language model's `get_image_features`. Where the images are one tensor of views it gets a
        few at a time, and only the features are kept, not what each layer of the encoder returned.
        """
        encode, views = self.vlm.base_model.get_image_features, inputs["pixel_values"]
        at_once = max(1, _PIXELS_AT_ONCE // views[0, 0].numel())
        is_one_tensor = set(inputs) == {"pixel_values"} and views.ndim == 4 and not torch.compiler.is_exporting()
        if self.training or not is_one_tensor or len(views) <= at_once:
            return encode(**inputs, return_dict=True)
        entries = []
        for part in views.split(at_once):
            output = encode(part, return_dict=True)
            entries += output.pooler_output
        joined = torch.stack(entries) if isinstance(output.pooler_output, torch.Tensor) else entries
        return type(output)(pooler_output=joined)

    def _image_input_names(self) -> set[str]:
        """Keyword arguments that `encode_image` takes."""
        return image_encoder_parameters(self.vlm) | set(VIEW_NAMES)

    def _take_images(
        self,
        input_ids: torch.LongTensor | None,
        image_index: torch.LongTensor | None,
        images: ImageCache | None,
        kwargs: dict,
        *views: torch.Tensor | None,
    ) -> tuple[ImageCache | None, torch.LongTensor | None, dict]:
        """
        Takes the images out of a call's arguments, `views` by `VIEW_NAMES`, and encodes them unless that was done
        before; what is left goes to the vision-language model.
        """
        names, kwargs = self._image_input_names(), kwargs | dict(zip(VIEW_NAMES, views, strict=False))
        image_inputs = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
        kwargs = with_cache_named_for(self.vlm, kwargs)
        if torch.compiler.is_exporting():
            kwargs.setdefault("use_cache", False)  # an exported graph returns tensors
        if images is None and image_inputs.get("pixel_values") is not None:
            images = self.encode_image(**image_inputs)
        if images is not None:
            num_rows = len(input_ids if input_ids is not None else kwargs["inputs_embeds"])
            image_index = resolve_image_index(image_index, num_rows, images.num_images, self.device)
        return images, image_index, kwargs

    def _vlm_image_inputs(self, images: ImageCache | None, image_index: torch.LongTensor | None) -> dict:
        """The encoded images as keyword arguments of the vision-language model, one per row that has one."""
        if images is None:
            return {}
        if not torch.compiler.is_compiling() and bool((image_index < 0).any()):
            image_index = image_index[image_index >= 0]  # rows without an image
            if not len(image_index):
                return {}
        if images.tile_counts is not None:
            tiles = torch.arange(int(images.tile_counts.sum()), device=image_index.device)
            per_image = tiles.split(images.tile_counts.tolist())
            image_index = torch.cat([per_image[image] for image in image_index.tolist()])
        inputs = {
            name: value[image_index.to(value.device)] if isinstance(value, torch.Tensor) else value
            for name, value in images.vlm_inputs.items()
        }
        if images.vlm_features is not None:
            inputs["mm_encoder_outputs"] = {"image": select_images(images.vlm_features, image_index)}
        return inputs

    # ---- generation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        **kwargs,
    ):
        """
        `generate` of the vision-language model, text only. Takes everything that the processor returns; what only the
        segmenter needs is ignored. See [`~GenerationMixin.generate`] for the keyword arguments.

        What the prompts about one image begin with is read once, and with `image_cache` not again by later calls (see
        [`ImageCache`]), unless `share_prefixes=False` is given. The answers are the same. Each prompt is read whole
        where the vision-language model allows nothing else (`can_continue`), with `use_cache=False`, a given cache,
        `cache_implementation`, an assistant, `prefill_chunk_size`, and attentions or hidden states in the output.
        """
        keep = image_cache is not None
        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs)
        return self._generate(input_ids, attention_mask, image_index, images, keep, **kwargs)

    def _generate(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        image_index: torch.LongTensor | None,
        images: ImageCache | None,
        keep: bool,
        share_prefixes: bool = True,
        **kwargs,
    ):
        """`generate` with images that are encoded; `keep` leaves what was read in `images`. A `stop_criterion` that a
        processor brings along is one beside those that are given."""
        if (criterion := kwargs.pop("stop_criterion", None)) is not None:
            kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or []), criterion])
        processors = LogitsProcessorList(kwargs.pop("logits_processor", None) or [])
        if self.config.image_token_id is not None:
            # A generated placeholder would ask for image features that do not exist.
            processors.append(PlaceholderSuppressor([self.config.image_token_id], device=self.device))
        kwargs.update(input_ids=input_ids, attention_mask=attention_mask, logits_processor=processors)
        image_inputs = self._vlm_image_inputs(images, image_index)
        if not share_prefixes or not self._can_generate_from_prefixes(images, kwargs):
            return self.vlm.generate(**image_inputs, **kwargs)

        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        position_ids = self._position_ids(input_ids, attention_mask, image_inputs, kwargs)
        # The last token is left to `generate`, which must have one to begin with.
        start = (input_ids[:, :-1], attention_mask[:, :-1], position_ids[..., :-1])
        read = self._read_prompts(*start, images, image_index, keep)
        if read is None:
            return self.vlm.generate(**image_inputs, **kwargs)
        copies = max(self._setting("num_beams", kwargs) or 1, self._setting("num_return_sequences", kwargs) or 1)
        cache = read.cache(input_ids.shape[1] - 1, copies)
        read.rows.layers = None
        kwargs.pop("mm_token_type_ids", None)  # they only say the positions
        kwargs.update(attention_mask=attention_mask, position_ids=position_ids)
        generated = self.vlm.generate(**with_cache_named_for(self.vlm, {**kwargs, "cache": cache}))
        if keep and copies == 1 and len(image_index.unique()) == len(image_index):
            sequences = generated if isinstance(generated, torch.Tensor) else generated.sequences
            for image, row in zip(
                image_index.tolist(), read.with_answers(sequences, position_ids, cache), strict=True
            ):
                images.prefixes[image] = row
        return generated

    def _read_prompts(self, *prompts) -> ReadPrompts | None:
        """[`read_prompts`], for a generation that goes on from what was read."""
        return read_prompts(self, *prompts)

    def _can_generate_from_prefixes(self, images: ImageCache | None, kwargs: dict) -> bool:
        """Whether `generate` may be handed a cache of the prompts; see there."""
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        known = _GENERATION_OPTIONS | {"input_ids", "attention_mask", "mm_token_type_ids"}
        if any(value is not None for name, value in kwargs.items() if name not in known):
            return False
        if any(self._setting(name, kwargs) for name in _WHOLE_PROMPT_OPTIONS) or ids is None or ids.shape[1] < 2:
            return False
        pad_id = self._setting("pad_token_id", kwargs)
        if mask is None and pad_id is not None and bool((ids == pad_id).any()):  # transformers then guesses a mask
            return False
        is_whole = mask is None or (mask.shape == ids.shape and bool(mask[:, -1].all()))
        # The last token is read without images.
        is_whole = is_whole and not bool((ids[:, -1] == self.config.image_token_id).any())
        return is_whole and self._setting("use_cache", kwargs) is not False and self._can_share_prefixes(images)

    def _can_share_prefixes(self, images: ImageCache | None) -> bool:
        """Whether prompts about `images` may continue one another: in inference, with encoded images."""
        is_traced = torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()
        is_inference = not self.training and not torch.is_grad_enabled() and not is_traced
        return is_inference and images is not None and images.vlm_features is not None and can_continue(self.vlm)

    def _position_ids(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor, image_inputs: dict, kwargs: dict
    ) -> torch.LongTensor:
        """`(..., rows, sequence_length)`, counted from each row's first token, where images lie as the model wants."""
        given = {name: kwargs[name] for name in ("mm_token_type_ids",) if kwargs.get(name) is not None}
        inputs = {"attention_mask": attention_mask, **image_inputs, **given}
        return self.vlm._prepare_position_ids_for_generation(input_ids, inputs)

    def _setting(self, name: str, kwargs: dict) -> Any:
        """What `generate` goes by: the argument, else the given configuration's value, else the model's own."""
        if name in kwargs:
            return kwargs[name]
        given = getattr(kwargs.get("generation_config"), name, None)
        return given if given is not None else getattr(self.generation_config, name, None)

    def _recorded_generation(self, kwargs: dict, recorder: LogitsProcessor) -> dict:
        """The arguments of a generation in which `recorder` sees every step, and whose result names the beams."""
        if (self._setting("guidance_scale", kwargs) or 1) != 1:
            raise ValueError("guidance_scale runs a second pass per step and is not supported; leave it unset.")
        kwargs = {**kwargs, "logits_processor": [*(kwargs.get("logits_processor") or []), recorder]}
        if kwargs.get("generation_config") is None:
            return {**kwargs, "return_dict_in_generate": True}
        # Beside a configuration transformers takes no single settings.
        kwargs.pop("return_dict_in_generate", None)
        kwargs["generation_config"] = copy.deepcopy(kwargs["generation_config"])
        kwargs["generation_config"].return_dict_in_generate = True
        return kwargs


class ComposedModel(ImageReader, PreTrainedModel, GenerationMixin):
    r"""
    Two stock modules, `segmenter` and `vlm`, and what they need to be used, trained and saved as one model. Subclasses
    build them, and say how the one points and the other draws: `forward` reads an answer that is given,
    `generate_with_masks` writes it. `model.vlm` stays a checkpoint of its own that loads in plain transformers.

    The segmenter comes first: where memory is short, `device_map="auto"` then offloads layers of the language model,
    which can be offloaded, rather than the segmenter, which cannot.

    Args:
        config ([`ComposedConfig`]): What to compose.
    """

    config: ComposedConfig
    config_class = ComposedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # The loss is a mean over this batch's tokens and masks; the Trainer must not rescale it.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["SamModel", "SamHQModel", "Sam2Model", "Sam3TrackerModel"]
    # Quantizers skip what the first names; loading in 16 bit keeps in float32 what the second names, but for the
    # segmenter's image encoder.
    _keep_in_fp32_modules = ["segmenter"]
    _keep_in_fp32_modules_strict = ["segmenter"]

    def _build_segmenter(self) -> PreTrainedModel:
        config = prepare_segmenter_config(self.config.segmenter_config)
        return self._with_encoder_dtype(AutoModel.from_config(config, trust_remote_code=False))

    def _with_encoder_dtype(self, segmenter: PreTrainedModel) -> PreTrainedModel:
        """In float32; the image encoder multiplies in `segmenter_dtype`, or in what the model is being made in."""
        self.config.check_encoder()
        made_in = torch.get_default_dtype()  # of `from_pretrained`, its `dtype`
        asked = self.config.encoder_dtype or (made_in if made_in.itemsize == 2 else torch.float32)
        return with_encoder_in(asked, with_heads_in_parts(segmenter))

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict:
        """Loading leaves the segmenter in what it was built in."""
        return {name: kept for name, kept in super()._get_dtype_plan(dtype).items() if name != "segmenter"}

    def _build_vlm(self) -> PreTrainedModel:
        return AutoModelForImageTextToText.from_config(self.config.vlm_config, trust_remote_code=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs) -> Self:
        """As in every model of transformers; fields of the configuration may also be given beside a `config`."""
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            for name in ("segmenter_dtype", "segmenter_batch_size"):
                if name in kwargs:
                    setattr(config, name, kwargs.pop(name))
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)

    # ---- one model to the outside -------------------------------------------------------------------------------

    @property
    def base_model(self) -> PreTrainedModel:
        return self.vlm

    @property
    def dtype(self) -> torch.dtype:
        return self.vlm.dtype

    @property
    def is_gradient_checkpointing(self) -> bool:
        """What PEFT asks for; under this name transformers' own property warns that it has a new one."""
        return self.is_activation_checkpointing

    @property
    def generation_config(self):
        return self.vlm.generation_config

    @generation_config.setter
    def generation_config(self, value):
        if "vlm" in self._modules:  # PreTrainedModel.__init__ assigns before the children exist
            self.vlm.generation_config = value

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module):
        self.vlm.set_output_embeddings(value)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs):
        """As in every model of transformers; refuses what would train a segmenter with zero gradients."""
        if (activation_checkpointing_kwargs or {}).get("use_reentrant") and self.segmenter.config.model_type != "sam":
            raise ValueError(
                f"Reentrant checkpointing loses the gradients of a {self.segmenter.config.model_type} segmenter; pass "
                'activation_checkpointing_kwargs={"use_reentrant": False}.'
            )
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    # ---- the segmenter's view -----------------------------------------------------------------------------------

    def _segmenter_features(self, images: ImageCache | None, slot_images: torch.LongTensor) -> dict[str, torch.Tensor]:
        """Encoded segmenter views, one entry per slot; each image is encoded at its first use only."""
        if images is None or images.sam_pixel_values is None:
            raise ValueError(
                f"{len(slot_images)} [SEG]/[REJ] slots need the segmenter's view of their images, but there is none; "
                "pass `sam_pixel_values` as the processor returns them, or an `image_cache` made with them."
            )
        if torch.compiler.is_exporting():  # which images have slots is not known then
            return {name: value[slot_images] for name, value in self._encode_views(images.sam_pixel_values).items()}
        if bool((slot_images < 0).any()):
            raise ValueError(
                "A row without an image holds a [SEG] or [REJ] slot; there is nothing to draw its mask in."
            )
        if (encoding := images.encoding) is not None:
            encoding.hand_over()
        self._encode_missing(images, slot_images)
        encoded = images.segmenter_features
        first = encoded[int(slot_images[0])]
        return {name: torch.stack([encoded[image][name] for image in slot_images.tolist()]) for name in first}

    def _encode_views(self, sam_pixel_values: torch.FloatTensor) -> dict[str, torch.Tensor]:
        segmenter = segmenter_adapter(self.segmenter)
        return segmenter.encode(sam_pixel_values.to(self.segmenter.device, segmenter.dtype))

    def _encode_missing(self, images: ImageCache, image_index: torch.LongTensor) -> list[torch.Tensor]:
        """Encodes those of the named images that are not yet, and returns what that gave."""
        encoded, new = images.segmenter_features, []
        missing = [image for image in sorted(set(image_index.tolist())) if image >= 0 and encoded[image] is None]
        at_once = self.config.encoder_batch_size or max(1, _PIXELS_AT_ONCE // images.sam_pixel_values[0, 0].numel())
        if self.training:  # the processes of a training must call the encoder equally often
            at_once = max(1, len(missing))
        for start in range(0, len(missing), at_once):
            part = missing[start : start + at_once]
            features = self._encode_views(images.sam_pixel_values[part])
            new += features.values()
            for i, image in enumerate(part):
                encoded[image] = {name: value[i] for name, value in features.items()}
        return new

    def _draw_prompts(
        self, prompts: Sequence[SegmenterPrompt], images: ImageCache | None, prompt_images: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Draws prompts of any kinds, each in its image: mask logits `(prompts, candidates, height, width)` and scores
        `(prompts, candidates)`. Those of one kind are drawn together; points that only fill up would change masks.
        """
        segmenter = segmenter_adapter(self.segmenter)
        shape = (len(prompts), segmenter.num_candidates)
        scores = torch.zeros(shape, device=self.segmenter.device, dtype=segmenter.dtype)
        masks = scores.new_zeros(*shape, *segmenter.mask_size)
        by_kind: dict[tuple, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_kind.setdefault(prompt.kind, []).append(index)
        for indices in by_kind.values():
            for part in torch.tensor(indices).split(DRAWN_AT_ONCE):
                features = self._segmenter_features(images, prompt_images.cpu()[part])
                drawn = segmenter.draw(features, [prompts[index] for index in part.tolist()])
                masks[part], scores[part] = (values.to(masks.dtype) for values in drawn)  # autocast has its own type
        return masks, scores

    # ---- answers that are read while they are written -----------------------------------------------------------

    def stream_with_masks(self, input_ids: torch.LongTensor, **kwargs) -> Generator[StreamStep, None, None]:
        """
        `generate_with_masks` of one row as an iterator: every token, every slot as soon as it is drawn, then the
        output. See [`stream_generation`] for what closing it does.

        Args:
            input_ids (`torch.LongTensor` of shape `(1, sequence_length)`): The prompt.
            kwargs: As `generate_with_masks` takes them, but for `streamer`.

        Raises:
            ValueError: For several rows, answers or beams, and for a streamer.
        """
        self._check_streaming(len(input_ids), kwargs)
        return self.stream_batch_with_masks(input_ids, **kwargs)

    def stream_batch_with_masks(self, input_ids: torch.LongTensor, **kwargs) -> Generator[StreamStep, None, None]:
        """
        As `stream_with_masks` for any number of rows, which are written side by side: each step says its `row`, and
        one that has ended goes on with padding until all have.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): The prompts, padded on the left.
            kwargs: As `generate_with_masks` takes them, but for `streamer`.

        Raises:
            ValueError: For several answers or beams, and for a streamer.
        """
        if kwargs.get("streamer") is not None:
            raise ValueError("This is a stream by itself and takes no streamer. Give one to `generate_with_masks`.")
        self._check_streaming(1, kwargs)

        def generate(**streaming):
            return self.generate_with_masks(input_ids, **{**kwargs, **streaming})

        return stream_generation(generate, self.device, kwargs.get("stopping_criteria"))

    def _check_streaming(self, num_rows: int, kwargs: dict) -> None:
        check_one_answer(num_rows, *(self._setting(name, kwargs) for name in ("num_beams", "num_return_sequences")))

    @contextmanager
    def _encoding_beside(
        self, images: ImageCache | None, image_index: torch.LongTensor | None, streamer: Any
    ) -> Iterator[None]:
        """
        While open, the segmenter's encoder runs in a thread of its own where `streamer` takes masks; the first slot
        waits for it. What no slot needs may fail there, and an answer without one does not wait for it where the
        streamer has `finish_later`, which takes what is to be called before the model is used again.
        """
        if not takes_slots(streamer) or images is None or images.sam_pixel_values is None:
            yield
            return
        encoding = Beside(lambda: self._encode_missing(images, image_index), TorchModes(self.segmenter.device, True))
        images.encoding = encoding

        def finish() -> None:
            encoding.hand_over()
            if images.encoding is encoding:
                images.encoding = None

        try:
            yield
        finally:
            getattr(streamer, "finish_later", lambda last: last())(finish)


# ---- what a vision-language model takes -----------------------------------------------------------------------------


def image_encoder_parameters(vlm: PreTrainedModel) -> set[str]:
    """Names of the inputs that the model's image encoder takes (`pixel_values`, `image_grid_thw`, ...)."""
    return set(inspect.signature(vlm.base_model.get_image_features).parameters) - {"kwargs"}


def select_images(features, image_index: torch.LongTensor):
    """An output of `get_image_features` whose features have one entry per row instead of one per image."""
    selected = copy.copy(features)
    selected.pooler_output = _entries(features.pooler_output, image_index)
    if (deepstack := getattr(features, "deepstack_features", None)) is not None:
        selected.deepstack_features = [_entries(layer, image_index) for layer in deepstack]
    return selected


def _entries(values, image_index: torch.LongTensor):
    """One entry per row, of a tensor or a list with one per image."""
    if isinstance(values, torch.Tensor):
        return values[image_index]
    if len({entry.shape for entry in values}) == 1:  # then no index has to be known while a graph is traced
        return list(torch.stack(list(values))[image_index])
    return [values[image] for image in image_index.tolist()]


def resolve_image_index(
    image_index: torch.LongTensor | None, num_rows: int, num_images: int, device: torch.device
) -> torch.LongTensor:
    """The image of each row, `(num_rows,)`: as given (-1 for none), or one image for all rows, or one for each."""
    if image_index is None:
        if num_images not in (1, num_rows):
            raise ValueError(
                f"{num_rows} rows of input_ids and {num_images} images: give one image per row, one image for all "
                "rows, or `image_index` with the image of each row."
            )
        own_image = torch.arange(num_rows, device=device)
        return own_image if num_images > 1 else torch.zeros_like(own_image)
    # An exported graph takes any index; what it holds is not known while it is traced.
    is_known = not torch.compiler.is_exporting()
    if len(image_index) != num_rows or (is_known and (image_index.min() < -1 or image_index.max() >= num_images)):
        raise ValueError(
            f"image_index {image_index.tolist()} must have one entry per row ({num_rows}), each naming an image "
            f"(0 to {num_images - 1}), or -1 for a row without one."
        )
    return image_index.to(device)
