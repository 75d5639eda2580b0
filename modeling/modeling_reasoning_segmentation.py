"""A vision-language model points, a segmenter draws: any of the one with any of the other."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
)

from .configuration_reasoning_segmentation import ReasoningSegmentationConfig
from .image_features import (
    accepts_encoded_images,
    image_encoder_parameters,
    resolve_image_index,
    select_images,
    with_cache_named_for,
)
from .image_placeholder import PlaceholderSuppressor, ignore_placeholder, without_placeholder
from .mask_losses import bce_per_mask, check_targets, dice_per_mask, mean_over_masks
from .outputs import ImageCache, ReasoningSegmentationOutput, find_cache, language_fields, output_or_tuple
from .segmenters import prepare_segmenter_config, segmenter_adapter, upsample_masks
from .slot_states import HeadInputRecorder, SlotStateCollector, record_head_inputs
from .slots import Slots, find_slots, rejected_by_argmax, seg_probabilities


class SegProjector(nn.Module):
    """Turns the state that predicts a slot into a segmenter prompt: Linear, ReLU, Linear (`text_hidden_fcs`)."""

    def __init__(self, hidden_size: int, prompt_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, prompt_dim)

    def forward(self, states: torch.FloatTensor) -> torch.FloatTensor:
        return self.linear_2(self.linear_1(states).relu())


class ReasoningSegmentationModel(PreTrainedModel, GenerationMixin):
    r"""
    Composes a stock image-text-to-text model and a stock segmenter, with two Linears between them.

    `forward` reads an answer that is given; `generate_with_masks` writes the answer; both draw one mask per slot.
    `model.vlm` stays a checkpoint of its own that loads in plain transformers.

    Args:
        config ([`ReasoningSegmentationConfig`]): What to compose.
    """

    config: ReasoningSegmentationConfig
    config_class = ReasoningSegmentationConfig
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
    _no_split_modules = ["SegProjector", "SamModel", "SamHQModel", "Sam2Model", "Sam3TrackerModel"]
    # Quantizers skip what the first names; loading in 16 bit keeps in float32 what the second names.
    _keep_in_fp32_modules = ["segmenter", "seg_projector"]
    _keep_in_fp32_modules_strict = ["segmenter", "seg_projector"]

    def __init__(self, config: ReasoningSegmentationConfig):
        super().__init__(config)
        # The segmenter comes first: where memory is short, device_map="auto" then offloads layers of the language
        # model, which can be offloaded, rather than the segmenter, which cannot.
        # Both in float32, as `_keep_in_fp32_modules_strict` says of loading, also where a model is made in 16 bit.
        self.segmenter = self._build_segmenter(config).float()
        self.seg_projector = self._build_projector(config).float()
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config, trust_remote_code=False)
        self.post_init()

    @staticmethod
    def _build_segmenter(config: ReasoningSegmentationConfig) -> PreTrainedModel:
        return AutoModel.from_config(prepare_segmenter_config(config.segmenter_config), trust_remote_code=False)

    @staticmethod
    def _build_projector(config: ReasoningSegmentationConfig) -> nn.Module:
        return SegProjector(
            config.get_text_config().hidden_size, config.segmenter_config.prompt_encoder_config.hidden_size
        )

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
        """
        As in every model of transformers; refuses what would train a segmenter with zero gradients.

        Raises:
            ValueError: For reentrant checkpointing of any segmenter but SAM.
        """
        if (activation_checkpointing_kwargs or {}).get("use_reentrant") and self.segmenter.config.model_type != "sam":
            raise ValueError(
                f"Reentrant checkpointing loses the gradients of a {self.segmenter.config.model_type} segmenter; pass "
                'activation_checkpointing_kwargs={"use_reentrant": False}.'
            )
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    # ---- images -------------------------------------------------------------------------------------------------

    def encode_image(
        self,
        pixel_values: torch.FloatTensor,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        sam_resized_sizes: torch.LongTensor | None = None,
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
            original_sizes, sam_resized_sizes (`torch.LongTensor` of shape `(num_images, 2)`, *optional*):
                (height, width) of the picture and of its part of the segmenter's view.
        """
        encoder_inputs = {
            name: value
            for name, value in {"pixel_values": pixel_values, **kwargs}.items()
            if name in image_encoder_parameters(self.vlm) and value is not None
        }
        if accepts_encoded_images(self.vlm):
            features = self.vlm.base_model.get_image_features(**encoder_inputs, return_dict=True)
            num_images = len(features.pooler_output)
            vlm_inputs = {name: value for name, value in encoder_inputs.items() if name != "pixel_values"}
        else:
            features, num_images, vlm_inputs = None, len(pixel_values), encoder_inputs
        if sam_pixel_values is not None and len(sam_pixel_values) != num_images:
            raise ValueError(
                f"{num_images} images for the vision-language model and {len(sam_pixel_values)} for the segmenter; "
                "both views must show the same images in the same order."
            )
        return ImageCache(
            vlm_features=features,
            vlm_inputs=vlm_inputs,
            num_images=num_images,
            sam_pixel_values=sam_pixel_values,
            original_sizes=original_sizes,
            sam_resized_sizes=sam_resized_sizes,
            segmenter_features=[None] * num_images,
        )

    def _image_input_names(self) -> set[str]:
        """Keyword arguments that `encode_image` takes."""
        return image_encoder_parameters(self.vlm) | {"sam_pixel_values", "original_sizes", "sam_resized_sizes"}

    def _take_images(
        self,
        input_ids: torch.LongTensor | None,
        image_index: torch.LongTensor | None,
        images: ImageCache | None,
        kwargs: dict,
    ) -> tuple[ImageCache | None, torch.LongTensor | None, dict]:
        """
        Takes the images out of the keyword arguments and encodes them unless that was done before; what is left goes
        to the vision-language model.
        """
        names = self._image_input_names()
        image_inputs = {name: value for name, value in kwargs.items() if name in names}
        kwargs = {name: value for name, value in kwargs.items() if name not in names}
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
        """The encoded images as keyword arguments of the vision-language model, one per row."""
        if images is None:
            return {}
        inputs = {
            name: value[image_index.to(value.device)] if isinstance(value, torch.Tensor) else value
            for name, value in images.vlm_inputs.items()
        }
        if images.vlm_features is not None:
            inputs["mm_encoder_outputs"] = {"image": select_images(images.vlm_features, image_index)}
        return inputs

    def _segmenter_features(self, images: ImageCache | None, slot_images: torch.LongTensor) -> dict[str, torch.Tensor]:
        """Encoded segmenter views, one entry per slot; each image is encoded at its first use only."""
        if images is None or images.sam_pixel_values is None:
            raise ValueError(
                f"{len(slot_images)} [SEG]/[REJ] slots need the segmenter's view of their images, but there is none; "
                "pass `sam_pixel_values` as the processor returns them, or an `image_cache` made with them."
            )
        if torch.compiler.is_exporting():  # which images have slots is not known then
            pixel_values = images.sam_pixel_values.to(self.segmenter.device, self.segmenter.dtype)
            features = segmenter_adapter(self.segmenter).encode(pixel_values)
            return {name: value[slot_images] for name, value in features.items()}
        encoded = images.segmenter_features
        missing = [image for image in sorted(set(slot_images.tolist())) if encoded[image] is None]
        if missing:
            pixel_values = images.sam_pixel_values[missing].to(self.segmenter.device, self.segmenter.dtype)
            features = segmenter_adapter(self.segmenter).encode(pixel_values)
            for i, image in enumerate(missing):
                encoded[image] = {name: value[i] for name, value in features.items()}
        first = encoded[int(slot_images[0])]
        return {name: torch.stack([encoded[image][name] for image in slot_images.tolist()]) for name in first}

    # ---- drawing ------------------------------------------------------------------------------------------------

    def _draw(
        self, images: ImageCache | None, slot_images: torch.LongTensor, states: torch.FloatTensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompts `(slots, prompt_dim)`, mask logits `(slots, height, width)` and IoU estimates `(slots,)`."""
        weight = self.seg_projector.linear_1.weight
        prompts = self.seg_projector(states.to(weight.device, weight.dtype))
        segmenter = segmenter_adapter(self.segmenter)
        prompts = prompts.to(self.segmenter.device, self.segmenter.dtype)
        if not torch.compiler.is_exporting() and not len(prompts):
            return prompts, prompts.new_zeros((0, *segmenter.mask_size)), prompts.new_zeros(0)
        masks, scores = segmenter.decode(self._segmenter_features(images, slot_images), prompts)
        return prompts, masks, scores

    def _slot_outputs(
        self,
        slots: Slots,
        slot_states: torch.FloatTensor,
        slot_logits: torch.FloatTensor,
        rejected: torch.BoolTensor,
        images: ImageCache | None,
        image_index: torch.LongTensor | None,
        reject_threshold: float | None,
    ) -> dict[str, list[torch.Tensor]]:
        """Everything that the output says about slots, split by row."""
        config = self.config
        probabilities = seg_probabilities(slot_logits, config.seg_token_id, config.rej_token_id)
        if reject_threshold is not None:
            rejected = probabilities < reject_threshold
        slot_images = slots.rows if image_index is None else image_index.to(slots.rows.device)[slots.rows]
        prompts, masks, scores = self._draw(images, slot_images, slot_states)
        return {
            "pred_masks": slots.per_row(masks),
            "mask_scores": slots.per_row(scores),
            "slot_probs": slots.per_row(probabilities),
            "rejected": slots.per_row(rejected),
            "slot_positions": slots.per_row(slots.positions),
            "slot_states": slots.per_row(prompts),
        }

    # ---- a given answer -----------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        sam_resized_sizes: torch.LongTensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        labels: torch.LongTensor | None = None,
        mask_labels: list[torch.Tensor] | None = None,
        reject_threshold: float | None = None,
        reeval: bool = False,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ReasoningSegmentationOutput:
        r"""
        One pass over prompts that hold their answers. Every `[SEG]` and `[REJ]` in `input_ids` is a slot; the state
        that predicts it (one position before) becomes the segmenter's prompt.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Ids with image placeholders expanded, padded on either side.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding.
            pixel_values (`torch.FloatTensor`): The vision-language model's view, one per image.
            sam_pixel_values (`torch.FloatTensor` of shape `(num_images, 3, side, side)`): The segmenter's view.
            original_sizes, sam_resized_sizes (`torch.LongTensor` of shape `(num_images, 2)`): (height, width).
            image_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The image of each row, where rows share images.
            image_cache ([`ImageCache`], *optional*): Images encoded before; takes the place of the pixel values.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Ids to predict, -100 where nothing is to be learned.
            mask_labels (`list[torch.Tensor]` of shapes `(slots, height, width)`, *optional*):
                Per row the target of every slot, bool or in [0, 1], at the size of the upright image, or the whole
                image squeezed to a square.
            reject_threshold (`float`, *optional*):
                Reject slots whose `slot_probs` is lower, instead of by the most probable token.
            reeval (`bool`):
                Draw all masks from a second pass in which every `[REJ]` of the answer reads `[SEG]`; the decisions
                stay those of the first pass. GSVA's gRefCOCO and RefZOM numbers are made this way (model_forward with
                `reeval=True`). Only for evaluation: it takes no labels.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are set.
            kwargs: Further inputs of the vision-language model.

        Returns:
            [`ReasoningSegmentationOutput`]

        Raises:
            ValueError: If rows, images, slots and mask labels do not match, mask labels have other values or another
                size, or `reeval` makes no sense.
        """
        if reeval and (self.config.rej_token_id is None or labels is not None or mask_labels is not None):
            raise ValueError(
                "reeval replaces [REJ] by [SEG] to score masks: it needs a rej_token_id in the configuration and "
                "takes no labels. Call forward without it to get losses."
            )
        views = {
            "pixel_values": pixel_values,
            "sam_pixel_values": sam_pixel_values,
            "original_sizes": original_sizes,
            "sam_resized_sizes": sam_resized_sizes,
        }
        image_cache, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs | views)

        recorder = HeadInputRecorder()
        with record_head_inputs(self.vlm, recorder):
            language = self.vlm(
                input_ids=input_ids,
                attention_mask=attention_mask,
                return_dict=True,
                **self._vlm_image_inputs(image_cache, image_index),
                **kwargs,
            )
        logits = without_placeholder(language.logits, self.config.image_token_id)
        slots, slot_outputs = None, {}
        if input_ids is not None and self.config.seg_token_id is not None and logits.shape[1] == input_ids.shape[1]:
            # Over several devices the head may stand on another one than the inputs.
            ids, mask = input_ids.to(logits.device), attention_mask
            slots = find_slots(ids, self.config.slot_token_ids, mask.to(logits.device) if mask is not None else None)
            rows, predictors = slots.rows, slots.positions - 1
            slot_logits = logits[rows, predictors]
            rejected = rejected_by_argmax(
                slot_logits, slots.token_ids, self.config.seg_token_id, self.config.rej_token_id
            )
            slot_states = recorder.states[rows, predictors]
            slot_outputs = self._slot_outputs(
                slots, slot_states, slot_logits, rejected, image_cache, image_index, reject_threshold
            )
        output = ReasoningSegmentationOutput(
            logits=logits,
            **language_fields(language),
            **slot_outputs,
        )
        if reeval:
            asked_again = input_ids.masked_fill(input_ids == self.config.rej_token_id, self.config.seg_token_id)
            second = self.forward(
                asked_again,
                attention_mask,
                image_index=image_index,
                image_cache=image_cache,
                return_dict=True,
                **kwargs,
            )
            for name in ("pred_masks", "mask_scores", "slot_states"):
                output[name] = second[name]
        if labels is not None or mask_labels is not None:
            output.losses = self._losses(output, slots, image_cache, image_index, labels, mask_labels)
            output.loss = sum(output.losses.values())
            if self.training and slots is not None and not len(slots) and image_cache is not None:
                output.loss = output.loss + 0.0 * self._unused_mask_path(image_cache, recorder.states)
        return output_or_tuple(output, return_dict, self.config)

    def _losses(
        self,
        output: ReasoningSegmentationOutput,
        slots: Slots | None,
        images: ImageCache | None,
        image_index: torch.LongTensor | None,
        labels: torch.LongTensor | None,
        mask_labels: list[torch.Tensor] | None,
    ) -> dict[str, torch.FloatTensor]:
        """LISA, section 3.2: language loss over all labelled tokens, mask losses over all masks of the batch."""
        config, losses = self.config, {}
        if labels is not None:
            losses["ce_loss"] = config.ce_loss_weight * self.vlm.loss_function(
                logits=output.logits,
                labels=ignore_placeholder(labels, config.image_token_id),
                vocab_size=output.logits.shape[-1],
            )
        if mask_labels is None:
            return losses
        counts = slots.counts if slots is not None else [0] * len(mask_labels)
        given = [len(targets) for targets in mask_labels]
        if counts != given:
            raise ValueError(
                f"The rows hold {counts} [SEG]/[REJ] slots but mask_labels holds {given} masks; give one mask per "
                "slot, an empty one for [REJ], and a tensor of shape (0, height, width) for a row without slots."
            )
        per_mask_bce, per_mask_dice = [output.logits.new_zeros(0)], [output.logits.new_zeros(0)]
        for row, (low_res_masks, targets) in enumerate(zip(output.pred_masks, mask_labels, strict=True)):
            if not len(targets):
                continue
            size = None if images.original_sizes is None else tuple(images.original_sizes[image_index[row]].tolist())
            check_targets(targets, row, size)
            is_rejection = slots.token_ids[slots.rows == row] != config.seg_token_id
            if not config.count_rejected_masks:
                low_res_masks, targets = low_res_masks[~is_rejection], targets[~is_rejection]
                is_rejection = is_rejection[~is_rejection]
            if not len(low_res_masks):
                continue
            masks = upsample_masks(
                low_res_masks,
                side=images.sam_pixel_values.shape[-1],
                resized_size=images.sam_resized_sizes[image_index[row]].tolist(),
                output_size=targets.shape[-2:],
            )
            masks = masks.masked_fill(is_rejection[:, None, None], 0.0)
            targets = targets.to(masks)
            per_mask_bce.append(bce_per_mask(masks, targets))
            per_mask_dice.append(dice_per_mask(masks, targets))
        losses["mask_bce_loss"] = config.bce_loss_weight * mean_over_masks(per_mask_bce)
        losses["mask_dice_loss"] = config.dice_loss_weight * mean_over_masks(per_mask_dice)
        return losses

    def _unused_mask_path(self, images: ImageCache, states: torch.FloatTensor) -> torch.FloatTensor:
        """One mask drawn for nothing: with many processes each must use the same modules, also without any slot."""
        if images.sam_pixel_values is None:
            return states.new_zeros(())
        _, masks, scores = self._draw(images, torch.zeros(1, dtype=torch.long), states[:1, 0])
        return masks.sum() + scores.sum()

    # ---- an answer of its own -----------------------------------------------------------------------------------

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
        segmenter needs is left aside. See [`~GenerationMixin.generate`] for the keyword arguments.
        """
        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs)
        return self._generate(input_ids, attention_mask, images, image_index, [], kwargs)

    @torch.no_grad()
    def generate_with_masks(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        reject_threshold: float | None = None,
        return_dict: bool = True,
        **kwargs,
    ) -> ReasoningSegmentationOutput:
        r"""
        Writes the answers, with the KV cache on, and draws a mask for every `[SEG]` and `[REJ]` in them.

        A generated slot needs no second pass: the state that predicted it was an input of the output embedding.
        `[SEG]` tokens of the prompt (earlier turns) get no mask.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Prompts, padded on the left.
            image_index, image_cache: As in `forward`.
            reject_threshold (`float`, *optional*):
                Reject slots whose `slot_probs` is lower, instead of those for which `[REJ]` was generated.
            return_dict (`bool`): `False` returns a tuple of the fields that are set.
            kwargs:
                The images as in `forward`, and anything that [`~GenerationMixin.generate`] takes: `max_new_tokens`,
                `num_beams`, `do_sample`, `num_return_sequences`, `streamer`, `generation_config`, ...

        Returns:
            [`ReasoningSegmentationOutput`] with `sequences` and the slot fields.

        Raises:
            ValueError: For `guidance_scale`, whose second pass per step would replace the states.
        """
        if self.config.seg_token_id is None:
            raise ValueError("The configuration names no seg_token_id, so no mask can be asked for; use `generate`.")
        kwargs = self._recorded_generation(kwargs)

        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs)
        collector = SlotStateCollector()
        with record_head_inputs(self.vlm, collector):
            generated = self._generate(input_ids, attention_mask, images, image_index, [collector], kwargs)

        sequences, prompt_length = generated.sequences, input_ids.shape[1]
        slots = find_slots(sequences, self.config.slot_token_ids, start=prompt_length)
        running_rows = slots.rows
        if (beam_indices := generated.get("beam_indices")) is not None:
            running_rows = beam_indices.to(slots.rows.device)[slots.rows, slots.positions - prompt_length]
        slot_states = (
            collector.states_at(running_rows, slots.positions)
            if len(slots)
            else torch.zeros(0, self.config.get_text_config().hidden_size, device=self.device)
        )
        if image_index is not None:
            image_index = image_index.repeat_interleave(len(sequences) // len(input_ids))
        output = ReasoningSegmentationOutput(
            sequences=sequences,
            sequences_scores=generated.get("sequences_scores"),
            cache=find_cache(generated),
            **self._slot_outputs(
                slots,
                slot_states,
                self._head_logits(slot_states),
                # What was written is the decision, also where sampling or beams passed over the most probable token.
                slots.token_ids != self.config.seg_token_id,
                images,
                image_index,
                reject_threshold,
            ),
        )
        return output if return_dict else output.to_tuple()

    def _head_logits(self, states: torch.FloatTensor) -> torch.FloatTensor:
        head = self.vlm.get_output_embeddings()
        return head(states.to(head.weight.dtype))

    def _setting(self, name: str, kwargs: dict) -> Any:
        """
        What `generate` goes by: the argument, else the given configuration's value, else the model's own, as
        transformers fills up what a given configuration leaves open.
        """
        if name in kwargs:
            return kwargs[name]
        given = getattr(kwargs.get("generation_config"), name, None)
        return given if given is not None else getattr(self.generation_config, name, None)

    def _recorded_generation(self, kwargs: dict) -> dict:
        """
        The arguments of a generation each of whose passes is one step that is recorded: its result tells which beam
        wrote which token.

        Raises:
            ValueError: For `guidance_scale`.
        """
        if (self._setting("guidance_scale", kwargs) or 1) != 1:
            raise ValueError("guidance_scale runs a second pass per step and is not supported; leave it unset.")
        if kwargs.get("generation_config") is None:
            return {**kwargs, "return_dict_in_generate": True}
        # Beside a configuration transformers takes no single settings.
        settings = copy.deepcopy(kwargs["generation_config"])
        settings.return_dict_in_generate = True
        kwargs = {name: value for name, value in kwargs.items() if name != "return_dict_in_generate"}
        return {**kwargs, "generation_config": settings}

    def _generate(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        images: ImageCache | None,
        image_index: torch.LongTensor | None,
        processors: list,
        kwargs: dict,
    ):
        kwargs = dict(kwargs)
        processors = [*(kwargs.pop("logits_processor", None) or []), *processors]
        if self.config.image_token_id is not None:
            # A generated placeholder would ask for image features that do not exist.
            processors.append(PlaceholderSuppressor([self.config.image_token_id], device=self.device))
        return self.vlm.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            logits_processor=LogitsProcessorList(processors),
            **self._vlm_image_inputs(images, image_index),
            **kwargs,
        )


__all__ = ["ReasoningSegmentationModel"]
