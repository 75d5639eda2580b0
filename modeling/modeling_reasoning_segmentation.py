"""`[SEG]` tokens point, a segmenter draws: LISA's scheme with any vision-language model and any SAM."""

import torch
from torch import nn

from .composed_model import ComposedModel, ImageCache
from .configuration_reasoning_segmentation import ReasoningSegmentationConfig
from .mask_losses import bce_per_mask, check_targets, dice_per_mask, mean_over_masks
from .outputs import (
    ReasoningSegmentationOutput,
    find_cache,
    language_fields,
    language_loss,
    output_or_tuple,
    without_placeholder,
)
from .segmenters import segmenter_adapter, upsample_masks
from .slots import (
    HeadInputRecorder,
    Slots,
    SlotStateCollector,
    find_slots,
    record_head_inputs,
    rejected_by_argmax,
    seg_probabilities,
)


class SegProjector(nn.Module):
    """Turns the state that predicts a slot into a segmenter prompt: Linear, ReLU, Linear (`text_hidden_fcs`)."""

    def __init__(self, hidden_size: int, prompt_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, prompt_dim)

    def forward(self, states: torch.FloatTensor) -> torch.FloatTensor:
        return self.linear_2(self.linear_1(states).relu())


class ReasoningSegmentationModel(ComposedModel):
    r"""
    Composes a stock image-text-to-text model and a stock segmenter, with two Linears between them.

    `forward` reads an answer that is given; `generate_with_masks` writes the answer; both draw one mask per slot.

    Args:
        config ([`ReasoningSegmentationConfig`]): What to compose.
    """

    config: ReasoningSegmentationConfig
    config_class = ReasoningSegmentationConfig
    _no_split_modules = ["SegProjector", *ComposedModel._no_split_modules]
    _keep_in_fp32_modules = ["segmenter", "seg_projector"]
    _keep_in_fp32_modules_strict = ["segmenter", "seg_projector"]

    def __init__(self, config: ReasoningSegmentationConfig):
        super().__init__(config)
        self.segmenter = self._build_segmenter()
        prompt_dim = config.segmenter_config.prompt_encoder_config.hidden_size
        self.seg_projector = SegProjector(config.get_text_config().hidden_size, prompt_dim).float()
        self.vlm = self._build_vlm()
        self.post_init()

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
        probabilities = seg_probabilities(slot_logits, self.config.seg_token_id, self.config.rej_token_id)
        if reject_threshold is not None:
            rejected = probabilities < reject_threshold
        slot_images = slots.rows if image_index is None else image_index.to(slots.rows.device)[slots.rows]
        prompts, masks, scores = self._draw(images, slot_images, slot_states)
        of_slots = {
            "pred_masks": masks,
            "mask_scores": scores,
            "slot_probs": probabilities,
            "rejected": rejected,
            "slot_positions": slots.positions,
            "slot_states": slot_states,
            "prompt_embeddings": prompts,
        }
        return {name: slots.per_row(values) for name, values in of_slots.items()}

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
            pixel_values, sam_pixel_values, original_sizes, sam_resized_sizes: See [`ComposedModel.encode_image`].
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
        config = self.config
        if reeval and (config.rej_token_id is None or labels is not None or mask_labels is not None):
            raise ValueError(
                "reeval replaces [REJ] by [SEG] to score masks: it needs a rej_token_id in the configuration and "
                "takes no labels. Call forward without it to get losses."
            )
        images, image_index, kwargs = self._take_images(
            input_ids,
            image_index,
            image_cache,
            kwargs,
            pixel_values=pixel_values,
            sam_pixel_values=sam_pixel_values,
            original_sizes=original_sizes,
            sam_resized_sizes=sam_resized_sizes,
        )
        recorder = HeadInputRecorder()
        with record_head_inputs(self.vlm, recorder):
            language = self.vlm(
                input_ids=input_ids,
                attention_mask=attention_mask,
                return_dict=True,
                **self._vlm_image_inputs(images, image_index),
                **kwargs,
            )
        logits = without_placeholder(language.logits, config.image_token_id)
        slots, slot_outputs = None, {}
        if input_ids is not None and config.seg_token_id is not None and logits.shape[1] == input_ids.shape[1]:
            # Over several devices the head may stand on another one than the inputs.
            ids, mask = input_ids.to(logits.device), attention_mask
            slots = find_slots(ids, config.slot_token_ids, mask.to(logits.device) if mask is not None else None)
            predictors = (slots.rows, slots.positions - 1)
            slot_logits = logits[predictors]
            rejected = rejected_by_argmax(slot_logits, slots.token_ids, config.seg_token_id, config.rej_token_id)
            slot_outputs = self._slot_outputs(
                slots, recorder.states[predictors], slot_logits, rejected, images, image_index, reject_threshold
            )
        output = ReasoningSegmentationOutput(logits=logits, **language_fields(language), **slot_outputs)
        if reeval:
            all_seg = input_ids.masked_fill(input_ids == config.rej_token_id, config.seg_token_id)
            second = self.forward(
                all_seg, attention_mask, image_index=image_index, image_cache=images, return_dict=True, **kwargs
            )
            for name in ("pred_masks", "mask_scores", "slot_states", "prompt_embeddings"):
                output[name] = second[name]
        # LISA, section 3.2: language loss over all labelled tokens, mask losses over all masks of the batch.
        losses = {}
        if labels is not None:
            losses["ce_loss"] = config.ce_loss_weight * language_loss(self.vlm, logits, labels)
        if mask_labels is not None:
            losses |= self._mask_losses(output, slots, images, image_index, mask_labels)
        if losses:
            output.losses, output.loss = losses, sum(losses.values())
            if self.training and slots is not None and not len(slots) and images is not None:
                output.loss = output.loss + 0.0 * self._unused_mask_path(images, recorder.states)
        return output_or_tuple(output, return_dict, config)

    def _mask_losses(
        self,
        output: ReasoningSegmentationOutput,
        slots: Slots | None,
        images: ImageCache | None,
        image_index: torch.LongTensor | None,
        mask_labels: list[torch.Tensor],
    ) -> dict[str, torch.FloatTensor]:
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
            check_targets(targets, row, images.size_of(image_index[row]))
            is_rejection = slots.token_ids[slots.rows == row] != self.config.seg_token_id
            if not self.config.count_rejected_masks:
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
        return {
            "mask_bce_loss": self.config.bce_loss_weight * mean_over_masks(per_mask_bce),
            "mask_dice_loss": self.config.dice_loss_weight * mean_over_masks(per_mask_dice),
        }

    def _unused_mask_path(self, images: ImageCache, states: torch.FloatTensor) -> torch.FloatTensor:
        """One mask drawn for nothing: with many processes each must use the same modules, also without any slot."""
        if images.sam_pixel_values is None:
            return states.new_zeros(())
        _, masks, scores = self._draw(images, torch.zeros(1, dtype=torch.long), states[:1, 0])
        return masks.sum() + scores.sum()

    # ---- an answer of its own -----------------------------------------------------------------------------------

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
            generated = self._generate(input_ids, attention_mask, images, image_index, kwargs, recorder=collector)

        sequences, prompt_length = generated.sequences, input_ids.shape[1]
        slots = find_slots(sequences, self.config.slot_token_ids, start=prompt_length)
        running_rows = slots.rows
        if (beam_indices := generated.get("beam_indices")) is not None:
            running_rows = beam_indices.to(slots.rows.device)[slots.rows, slots.positions - prompt_length]
        if len(slots):
            slot_states = collector.states_at(running_rows, slots.positions)
        else:
            slot_states = torch.zeros(0, self.config.get_text_config().hidden_size, device=self.device)
        head = self.vlm.get_output_embeddings()
        slot_logits = head(slot_states.to(head.weight.dtype))
        # What was written is the decision, also where sampling or beams passed over the most probable token.
        rejected = slots.token_ids != self.config.seg_token_id
        if image_index is not None:
            image_index = image_index.repeat_interleave(len(sequences) // len(input_ids))
        output = ReasoningSegmentationOutput(
            sequences=sequences,
            sequences_scores=generated.get("sequences_scores"),
            cache=find_cache(generated),
            **self._slot_outputs(slots, slot_states, slot_logits, rejected, images, image_index, reject_threshold),
        )
        return output if return_dict else output.to_tuple()


__all__ = ["ReasoningSegmentationModel"]
