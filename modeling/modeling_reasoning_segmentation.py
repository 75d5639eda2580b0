"""`[SEG]` tokens point, a segmenter draws: LISA's scheme with any vision-language model and any SAM."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LogitsProcessor

from .composed_model import ComposedModel, ImageCache
from .configuration_reasoning_segmentation import ReasoningSegmentationConfig
from .generation_stream import SlotStreamer, takes_slots
from .key_value_cache import ReadPrompts, read_prompts
from .outputs import (
    ReasoningSegmentationOutput,
    find_cache,
    language_fields,
    language_loss,
    output_or_tuple,
    without_placeholder,
)
from .segmenters import (
    bce_per_mask,
    check_targets,
    dice_per_mask,
    mean_over_masks,
    naive_dice_per_mask,
    sample_points,
    segmenter_adapter,
    upsample_masks,
    values_at,
)


# ---- where slots are, and what they say -----------------------------------------------------------------------------

# What an output says about each of them.
_SLOT_FIELDS = (
    "pred_masks",
    "mask_scores",
    "slot_probs",
    "rejected",
    "slot_positions",
    "slot_states",
    "prompt_embeddings",
)


@dataclass
class Slots:
    """
    All `[SEG]` and `[REJ]` in a batch of `num_rows`, in reading order, row after row: where each is and which token,
    all `(slots,)`.
    """

    rows: torch.LongTensor
    positions: torch.LongTensor
    token_ids: torch.LongTensor
    num_rows: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> list[int]:
        """Slots per row."""
        return torch.bincount(self.rows, minlength=self.num_rows).tolist()

    def per_row(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Splits `values`, one per slot along dimension 0, into one tensor per row."""
        if torch.compiler.is_exporting():  # without a number that is not known then
            return [values[self.rows == row] for row in range(self.num_rows)]
        return list(values.split(self.counts))


def find_slots(
    input_ids: torch.LongTensor,
    slot_token_ids: list[int],
    attention_mask: torch.Tensor | None = None,
    start: int = 1,
) -> Slots:
    """
    The slots of `input_ids` `(rows, sequence_length)` from position `start` on; the first token of a sequence has no
    predecessor. `attention_mask` is longer than the ids where a key-value cache holds what came before.
    """
    is_slot = torch.isin(input_ids, torch.tensor(slot_token_ids, device=input_ids.device, dtype=input_ids.dtype))
    if attention_mask is not None:
        is_slot &= attention_mask[:, -input_ids.shape[1] :].bool()
    is_slot[:, :start] = False
    rows, positions = is_slot.nonzero(as_tuple=True)
    if torch.compiler.is_exporting():
        torch._check(rows.shape[0] > 0)  # a graph that draws; one for no slot would be another
    return Slots(rows, positions, input_ids[rows, positions], num_rows=len(input_ids))


def rejected_by_argmax(
    slot_logits: torch.FloatTensor, token_ids: torch.LongTensor, seg_id: int, rej_id: int | None
) -> torch.BoolTensor:
    """
    GSVA's decision on a given answer (model/modeling_lisa_gsva.py): at a `[SEG]` the target is absent unless the most
    probable token is `[SEG]`; at a `[REJ]` it is absent only if the most probable token is `[REJ]`.
    """
    if rej_id is None:
        return torch.zeros(slot_logits.shape[:1], dtype=torch.bool, device=slot_logits.device)
    best = slot_logits.argmax(-1)
    return torch.where(token_ids == seg_id, best != seg_id, best == rej_id)


# ---- the states that predict slots ----------------------------------------------------------------------------------

# Per thread the output embedding that is watched, and its last input. An assistant model of the same class has another
# output embedding, so its states are not recorded. Of all that is one value per thread, this alone is traced by every
# torch, so that compiled models have one graph; a stop to compute eagerly would come with every token.
_WATCHED = threading.local()


def _record_head_input(head: nn.Module, args: tuple) -> None:
    if getattr(_WATCHED, "head", None) is head:
        # Of what the norm was given, the positions that the head is.
        _WATCHED.states = args[0] if _WATCHED.norm is None else _WATCHED.before_norm[:, -args[0].shape[1] :]


def _record_norm_input(norm: nn.Module, args: tuple) -> None:
    if getattr(_WATCHED, "norm", None) is norm:
        _WATCHED.before_norm = args[0]


class SlotStateRecorder(LogitsProcessor):
    """
    Reads the state that predicts each token where any model computes it: at the input of its output embedding, after
    the last norm, or as it entered that. `states` `(batch_size, positions, hidden_size)` are those of the last pass.

    As a logits processor of a generation it is called once per predicted position, with the ids so far; that aligns
    states with tokens whatever the decoding loop does in between (chunked prefill, several candidates at once,
    rejected ones). Costs `(batch_size, hidden_size)` numbers per token.
    """

    def __init__(self):
        self.states: torch.Tensor | None = None
        self._by_length: dict[int, torch.Tensor] = {}
        self._chunk_start = 0

    @contextmanager
    def watching(self, head: nn.Module, norm: nn.Module | None = None) -> Iterator[None]:
        """
        While open, sees every input that this thread computes of the output embedding `head`, or, where it is given,
        of the `norm` before it at the same positions: of a model's `state_modules`.

        The hooks are registered once per module and never removed, so that concurrent calls do not disturb each other.
        """
        for module, hook in ((head, _record_head_input), (norm, _record_norm_input)):
            if module is not None and hook not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(hook)
        outer = getattr(_WATCHED, "head", None), getattr(_WATCHED, "norm", None)
        _WATCHED.head, _WATCHED.norm, _WATCHED.states, _WATCHED.before_norm = head, norm, None, None
        try:
            yield
        finally:
            self.take_states()
            _WATCHED.head, _WATCHED.norm, _WATCHED.before_norm = *outer, None

    def take_states(self) -> bool:
        """Takes over what the last pass left; whether there was one since the last time."""
        states, _WATCHED.states = _WATCHED.states, None
        if states is not None:
            self.states = states
        return states is not None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        length = input_ids.shape[1]
        if self.take_states():
            # A model that ignores logits_to_keep hands over the whole prompt; only its last position predicts.
            whole_prompt = self.states.shape[1] >= length
            self._chunk_start = length - (self.states.shape[1] - 1 if whole_prompt else 0)
        # An assistant that proposes tokens runs the same logits processors on its own scores; they belong to no state
        # of this model, or to one that the verifying pass replaces.
        offset = length - self._chunk_start
        if self.states is not None and 0 <= offset < self.states.shape[1]:
            self._by_length[length] = self.states[:, offset].detach().clone()  # a CUDA graph uses its memory again
        return scores

    def states_at(self, rows: torch.LongTensor, positions: torch.LongTensor) -> torch.FloatTensor:
        """
        The states `(slots, hidden_size)` that predicted the tokens at `positions` `(slots,)` of the sequences that
        `rows` `(slots,)` of the running batch wrote (the beam's, for beams).
        """
        if missing := sorted(set(positions.tolist()) - self._by_length.keys()):
            raise RuntimeError(
                f"No state was seen for the tokens at positions {missing}: the vision-language model predicted them "
                "without calling `get_output_embeddings()`, or with a decoding method that skips logits processors."
            )
        pairs = zip(rows.tolist(), positions.tolist(), strict=True)
        return torch.stack([self._by_length[position][row] for row, position in pairs])


# ---- the model ------------------------------------------------------------------------------------------------------


class SegProjector(nn.Module):
    """Turns the state of a slot into a segmenter prompt: Linear, ReLU, Linear (`text_hidden_fcs`)."""

    def __init__(self, hidden_size: int, prompt_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, prompt_dim)

    def forward(self, states: torch.FloatTensor) -> torch.FloatTensor:
        return self.linear_2(self.linear_1(states).relu())


class ComposedForReasoningSegmentation(ComposedModel):
    r"""
    Composes a stock image-text-to-text model and a stock segmenter, with two Linears between them. Every `[SEG]` or
    `[REJ]` of an answer is a slot, for which one mask is drawn.

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
        if config.empty_without_object and not segmenter_adapter(self.segmenter).scores_objects:
            raise ValueError(
                f"empty_without_object needs a segmenter that scores objects (SAM 2, SAM 3); this is a "
                f"{config.segmenter_config.model_type!r}."
            )
        prompt_dim = config.segmenter_config.prompt_encoder_config.hidden_size
        self.seg_projector = SegProjector(config.get_text_config().hidden_size, prompt_dim).float()
        self.vlm = self._build_vlm()
        self.post_init()

    # ---- states -------------------------------------------------------------------------------------------------

    @property
    def state_modules(self) -> tuple[nn.Module, nn.Module | None]:
        """
        The output embedding, and the norm before it where states are read as they enter that; looked up per call
        because resizing and adapters replace the embedding.
        """
        head = self.vlm.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(self.vlm).__name__} has no output embedding, so it cannot predict [SEG] tokens.")
        if self.config.slot_state_normalized:
            return head, None
        norm = getattr(self.vlm.get_decoder(), "norm", None)
        if norm is None:
            raise ValueError(
                f"{type(self.vlm).__name__} has no `norm` after its last layer, so that slot_state_normalized=False "
                "has no meaning for it."
            )
        return head, norm

    def logits_of(self, states: torch.FloatTensor) -> torch.FloatTensor:
        """Language logits `(..., vocab_size)` of states `(..., hidden_size)`."""
        head, norm = self.state_modules
        with SlotStateRecorder().watching(head, norm):  # what it sees here predicts nothing
            if norm is not None:
                states = norm(states.to(self.vlm.dtype))
            return head(states.to(head.weight.dtype))

    @property
    def _states_behind(self) -> int:
        """How many positions after the one that predicts a slot its state is read."""
        return 1 if self.config.slot_state == "at" else 0

    # ---- drawing ------------------------------------------------------------------------------------------------

    def _draw(
        self, images: ImageCache | None, slot_images: torch.LongTensor, states: torch.FloatTensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompts `(slots, prompt_dim)`, mask logits `(slots, height, width)` and IoU estimates `(slots,)`."""
        weight = self.seg_projector.linear_1.weight
        prompts = self.seg_projector(states.to(weight.device, weight.dtype))
        segmenter = segmenter_adapter(self.segmenter)
        prompts = prompts.to(self.segmenter.device, segmenter.dtype)
        if not torch.compiler.is_exporting() and not len(prompts):
            return prompts, prompts.new_zeros((0, *segmenter.mask_size)), prompts.new_zeros(0)
        features = self._segmenter_features(images, slot_images)
        masks, scores = segmenter.decode(
            features,
            prompts,
            self.config.prompt_padding_points,
            self.config.multimask_output,
            # An empty mask has no gradient by which the decoder could learn to draw it.
            self.config.empty_without_object and not self.training,
        )
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
        seg_id, rej_id = self.config.seg_token_id, self.config.rej_token_id
        probabilities = torch.ones(slot_logits.shape[:1], device=slot_logits.device)
        if rej_id is not None:
            probabilities = slot_logits[:, [seg_id, rej_id]].float().softmax(-1)[:, 0]
        if reject_threshold is not None:
            rejected = probabilities < reject_threshold
        slot_images = slots.rows if image_index is None else image_index.to(slots.rows.device)[slots.rows]
        prompts, masks, scores = self._draw(images, slot_images, slot_states)
        of_slots = (masks, scores, probabilities, rejected, slots.positions, slot_states, prompts)
        return {name: slots.per_row(values) for name, values in zip(_SLOT_FIELDS, of_slots, strict=True)}

    # ---- a given answer -----------------------------------------------------------------------------------------

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
        labels: torch.LongTensor | None = None,
        mask_labels: list[torch.Tensor] | None = None,
        highest_mask_label: float = 1.0,
        reject_threshold: float | None = None,
        reeval: bool = False,
        share_prefixes: bool = True,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ReasoningSegmentationOutput:
        r"""
        One pass over prompts that hold their answers. The state of a slot, by default that which predicts it (one
        position before it), becomes the segmenter's prompt.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Ids with image placeholders expanded, padded on either side.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding.
            pixel_values, sam_pixel_values, original_sizes, reshaped_input_sizes: See [`ComposedModel.encode_image`].
            image_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The image of each row, where rows share images; -1 for a row of text alone.
            image_cache ([`ImageCache`], *optional*): Images encoded before, instead of the pixel values.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Ids to predict, -100 where nothing is to be learned.
            mask_labels (`list[torch.Tensor]` of shapes `(slots, height, width)`, *optional*):
                Per row the target of every slot, bool or in [0, 1], at the size of the upright image, or the whole
                image squeezed to a square.
            highest_mask_label (`float`):
                Largest value of `mask_labels`: LISA learns from sums of overlapping parts, where the target is 2.
            reject_threshold (`float`, *optional*):
                Reject slots whose `slot_probs` is lower, instead of by the most probable token.
            reeval (`bool`):
                Draw all masks from a second pass in which every `[REJ]` of the answer reads `[SEG]`; the decisions
                stay those of the first pass. GSVA's gRefCOCO and RefZOM numbers are made this way (model_forward with
                `reeval=True`). Only for evaluation: it takes no labels.
            share_prefixes (`bool`):
                Read once what the rows of one image begin with, and with `image_cache` not again what it knows from
                earlier calls; the second pass of `reeval` begins at the first `[REJ]`. The output is the same but for
                `cache`, which is then `None`. Each row is read whole where gradients are computed, with labels,
                `use_cache=True` or further inputs of the model, and where that allows nothing else (`can_continue`).
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
        kwargs.pop("stop_criterion", None)  # of answers that are to be written
        views = (pixel_values, sam_pixel_values, original_sizes, reshaped_input_sizes)
        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs, *views)
        recorder, read, language = SlotStateRecorder(), None, {}
        with recorder.watching(*self.state_modules):
            if share_prefixes and labels is None and mask_labels is None:
                given = (input_ids, attention_mask, images, image_index, kwargs)
                read = self._read_from_prefixes(*given, recorder, keep=image_cache is not None, read_again=reeval)
            if read is None:
                language = self.vlm(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    return_dict=True,
                    **self._vlm_image_inputs(images, image_index),
                    **kwargs,
                )
        logits = without_placeholder(language.logits, config.image_token_id) if read is None else read.logits
        slots, slot_outputs = None, {}
        if input_ids is not None and config.seg_token_id is not None and logits.shape[1] == input_ids.shape[1]:
            # Over several devices the head may be on another one than the inputs.
            ids, mask = input_ids.to(logits.device), attention_mask
            slots = find_slots(ids, config.slot_token_ids, mask.to(logits.device) if mask is not None else None)
            predictors = (slots.rows, slots.positions - 1)
            slot_logits = logits[predictors]
            rejected = rejected_by_argmax(slot_logits, slots.token_ids, config.seg_token_id, config.rej_token_id)
            if read is not None and reeval:
                with recorder.watching(*self.state_modules):
                    read = read.read_again(self, self._without_rejections(input_ids), recorder)
            where = (slots.rows, predictors[1] + self._states_behind)
            slot_states = recorder.states[where] if read is None else read.states_at(*where)
            slot_outputs = self._slot_outputs(
                slots, slot_states, slot_logits, rejected, images, image_index, reject_threshold
            )
        output = ReasoningSegmentationOutput(logits=logits, **language_fields(language), **slot_outputs)
        if reeval and read is None:
            second = self.forward(
                self._without_rejections(input_ids),
                attention_mask,
                image_index=image_index,
                image_cache=images,
                share_prefixes=False,
                return_dict=True,
                **kwargs,
            )
            for name in ("pred_masks", "mask_scores", "slot_states", "prompt_embeddings"):
                output[name] = second[name]
        # LISA, section 3.2: language loss over all labelled tokens, mask losses over all masks of the batch.
        losses = {}
        if labels is not None:
            losses["ce_loss"] = config.ce_loss_weight * language_loss(self.vlm, logits, labels)
        if mask_labels is not None:
            losses |= self._mask_losses(output, slots, images, image_index, mask_labels, highest_mask_label)
        if losses:
            output.losses, output.loss = losses, sum(losses.values())
            if self.training and slots is not None and not len(slots) and images is not None:
                output.loss = output.loss + 0.0 * self._unused_mask_path(images, recorder.states)
        return output_or_tuple(output, return_dict, config)

    def _without_rejections(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        return input_ids.masked_fill(input_ids == self.config.rej_token_id, self.config.seg_token_id)

    def _read_from_prefixes(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        images: ImageCache | None,
        image_index: torch.LongTensor | None,
        kwargs: dict,
        recorder: SlotStateRecorder,
        **options: bool,
    ) -> ReadPrompts | None:
        """The rows as [`read_prompts`] reads them, `None` where each has to be read whole."""
        others = {name for name, value in kwargs.items() if value is not None and value is not False}
        if others - {"mm_token_type_ids"} or input_ids is None or not self._can_share_prefixes(images):
            return None
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            return None
        inputs = self._vlm_image_inputs(images, image_index)
        position_ids = self._position_ids(input_ids, attention_mask, inputs, kwargs)
        prompts = (input_ids, attention_mask, position_ids)
        return read_prompts(self, *prompts, images, image_index, recorder=recorder, **options)

    def _mask_losses(
        self,
        output: ReasoningSegmentationOutput,
        slots: Slots | None,
        images: ImageCache | None,
        image_index: torch.LongTensor | None,
        mask_labels: list[torch.Tensor],
        highest: float,
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
            check_targets(targets, row, images.size_of(image_index[row]), highest=highest)
            is_rejection = slots.token_ids[slots.rows == row] != self.config.seg_token_id
            if not self.config.count_rejected_masks:
                low_res_masks, targets = low_res_masks[~is_rejection], targets[~is_rejection]
                is_rejection = is_rejection[~is_rejection]
            if not len(low_res_masks):
                continue
            side = images.sam_pixel_values.shape[-1]
            resized = images.reshaped_input_sizes[image_index[row]].tolist()
            if self.config.mask_loss_points:
                masks = low_res_masks.float().masked_fill(is_rejection[:, None, None], 0.0)
                # The original's targets are squeezed to the masks by the nearest pixel; its views are not padded.
                targets = F.interpolate(targets.to(masks)[:, None], masks.shape[-2:], mode="nearest")[:, 0]
                extent = (resized[1] / side, resized[0] / side)
                points = sample_points(masks, self.config.mask_loss_points, extent=extent)
                masks, targets = values_at(masks, points), values_at(targets, points / points.new_tensor(extent))
                per_mask_bce.append(bce_per_mask(masks, targets))
                per_mask_dice.append(naive_dice_per_mask(masks, targets))
                continue
            masks = upsample_masks(
                low_res_masks,
                side=side,
                resized_size=resized,
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
        prompt_slots: bool | None = None,
        return_dict: bool = True,
        **kwargs,
    ) -> ReasoningSegmentationOutput:
        r"""
        Writes the answers, with the KV cache on, and draws a mask for every `[SEG]` and `[REJ]` in them.

        A generated slot needs no second pass: the state that predicted it was seen on the way. Where it is read at the
        slot itself (`slot_state="at"`), it exists once the next token is predicted: a slot that ends a generation that
        was cut short has no mask, and is no slot of the output.

        Args:
            input_ids, attention_mask: As in `forward`, padded on the left.
            image_index, image_cache, return_dict: As in `forward`.
            reject_threshold (`float`, *optional*):
                Reject slots whose `slot_probs` is lower, instead of those for which `[REJ]` was generated.
            prompt_slots (`bool`, *optional*):
                Draw slots of the prompt as well, before those of the answer, at the price of a second pass over
                prompts that hold any. By default as the configuration says.
            kwargs:
                The images as in `forward`, and anything that [`~GenerationMixin.generate`] takes: `max_new_tokens`,
                `num_beams`, `do_sample`, `num_return_sequences`, `generation_config`, ...; also `share_prefixes`, see
                [`ComposedModel.generate`]. A `streamer` of one answer that has `put_slot` gets each slot after its
                token, as an output of that slot alone, those of the prompt before the first one; the segmenter's
                encoder then starts beside the decoding. With several rows, which the streamer takes where its
                `takes_rows` is true, that is an output of all slots of one step.

        Returns:
            [`ReasoningSegmentationOutput`] with `sequences` and the slot fields.

        Raises:
            ValueError: For `guidance_scale`, whose second pass per step would replace the states, and for several
                rows, answers or beams with a streamer that takes slots.
        """
        if self.config.seg_token_id is None:
            raise ValueError("The configuration names no seg_token_id, so no mask can be asked for; use `generate`.")
        recorder, keep = SlotStateRecorder(), image_cache is not None
        kwargs = self._recorded_generation(kwargs, recorder)
        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs)
        streamer, drawing = kwargs.get("streamer"), None
        if takes_slots(streamer):
            self._check_streaming(1 if getattr(streamer, "takes_rows", False) else len(input_ids), kwargs)
        asked: dict[int, dict[str, torch.Tensor]] = {}
        if images is not None and (self.config.prompt_slots if prompt_slots is None else prompt_slots):
            asked = self._slots_of_prompts(input_ids, attention_mask, images, image_index, kwargs, reject_threshold)
        if takes_slots(streamer):
            for row, found in asked.items():
                for slot in range(len(found["slot_positions"])):
                    part = {row: slice(slot, slot + 1)}  # of each other row none
                    alone = {
                        name: [values[part.get(other, slice(0))] for other in range(len(input_ids))]
                        for name, values in found.items()
                    }
                    streamer.put_slot(ReasoningSegmentationOutput(**alone))

            def draw(position: int, token_ids: dict[int, int]) -> ReasoningSegmentationOutput:
                found = [[*token_ids], [position] * len(token_ids), [*token_ids.values()]]
                slots = Slots(*torch.tensor(found, device=self.device), num_rows=len(input_ids))
                fields = self._written_slots(slots, slots.rows, recorder, images, image_index, reject_threshold)
                return ReasoningSegmentationOutput(**fields)

            drawing = kwargs["streamer"] = SlotStreamer(
                streamer, self.config.slot_token_ids, draw, waits=bool(self._states_behind)
            )
        with recorder.watching(*self.state_modules), self._encoding_beside(images, image_index, streamer):
            generated = self._generate(input_ids, attention_mask, image_index, images, keep, **kwargs)

        sequences, prompt_length = generated.sequences, input_ids.shape[1]
        slots, running_rows = self._drawable(sequences, prompt_length, generated.get("beam_indices"))
        copies = len(sequences) // len(input_ids)
        if image_index is not None:
            image_index = image_index.repeat_interleave(copies)
        if drawing is not None and drawing.slots:
            fields = {
                name: [torch.cat(parts) for parts in zip(*(slots[name] for slots in drawing.slots), strict=True)]
                for name in drawing.slots[0]
            }
        else:
            fields = self._written_slots(slots, running_rows, recorder, images, image_index, reject_threshold)
        for row in range(len(sequences)):
            for name, values in asked.get(row // copies, {}).items():
                fields[name][row] = torch.cat([values, fields[name][row]])
        output = ReasoningSegmentationOutput(
            sequences=sequences,
            sequences_scores=generated.get("sequences_scores"),
            cache=find_cache(generated),
            **fields,
        )
        return output if return_dict else output.to_tuple()

    def _slots_of_prompts(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        images: ImageCache,
        image_index: torch.LongTensor | None,
        kwargs: dict,
        reject_threshold: float | None,
    ) -> dict[int, dict[str, torch.Tensor]]:
        """By row what the output says about slots that prompts hold; other rows are not read."""
        rows = find_slots(input_ids, self.config.slot_token_ids, attention_mask).rows.unique()
        if not len(rows):
            return {}
        per_row = {"attention_mask": attention_mask, "mm_token_type_ids": kwargs.get("mm_token_type_ids")}
        per_row["image_index"] = image_index
        output = self.forward(
            input_ids[rows],
            image_cache=images,
            reject_threshold=reject_threshold,
            share_prefixes=False,
            return_dict=True,
            **{name: values[rows] for name, values in per_row.items() if values is not None},
        )
        return {row: {name: output[name][at] for name in _SLOT_FIELDS} for at, row in enumerate(rows.tolist())}

    def _drawable(
        self, sequences: torch.LongTensor, prompt_length: int, beam_indices: torch.LongTensor | None
    ) -> tuple[Slots, torch.LongTensor]:
        """The slots that were written and whose state exists, and in which row of the running batch it was made."""
        slots = find_slots(sequences, self.config.slot_token_ids, start=prompt_length)
        read = slots.positions + self._states_behind
        exists = read < sequences.shape[1]
        running_rows = slots.rows
        if beam_indices is not None:
            steps = (read - prompt_length).clamp(max=beam_indices.shape[1] - 1)
            running_rows = beam_indices.to(slots.rows.device)[slots.rows, steps]
            exists &= running_rows >= 0
        kept = (values[exists] for values in (slots.rows, slots.positions, slots.token_ids))
        return Slots(*kept, num_rows=slots.num_rows), running_rows[exists]

    def _written_slots(
        self,
        slots: Slots,
        running_rows: torch.LongTensor,
        recorder: SlotStateRecorder,
        images: ImageCache | None,
        image_index: torch.LongTensor | None,
        reject_threshold: float | None,
    ) -> dict[str, list[torch.Tensor]]:
        """What the output says about slots that were generated in `running_rows` of the batch."""
        slot_states = torch.zeros(0, self.config.get_text_config().hidden_size, device=self.device)
        if len(slots):
            slot_states = recorder.states_at(running_rows, slots.positions + self._states_behind)
        # Where states are read at the slots, they do not predict them; such models never reject.
        slot_logits = self.logits_of(slot_states)
        # What was written is the decision, also where sampling or beams passed over the most probable token.
        rejected = slots.token_ids != self.config.seg_token_id
        return self._slot_outputs(slots, slot_states, slot_logits, rejected, images, image_index, reject_threshold)


__all__ = ["ComposedForReasoningSegmentation"]
