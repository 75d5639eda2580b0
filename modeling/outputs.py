"""The one output type of all systems, and what is made of an output of the vision-language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


IGNORED_LABEL = -100


@dataclass
class ReasoningSegmentationOutput(ModelOutput):
    """
    What a forward pass or a generation returns. A *slot* is one `[SEG]` or `[REJ]` token, for IVM the whole row; lists
    have one entry per row, slots are in reading order, rejected slots keep their index and their logits.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): Sum of `losses`.
        losses (`dict[str, torch.FloatTensor]`, *optional*):
            The parts `ce_loss`, `mask_bce_loss`, `mask_dice_loss`, their weights applied.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*):
            Language logits of a forward pass. The column of the image placeholder holds the lowest finite value.
        sequences (`torch.LongTensor` of shape `(rows, sequence_length)`, *optional*):
            Prompt and answer ids of a generation.
        sequences_scores (`torch.FloatTensor` of shape `(rows,)`, *optional*): Beam scores, where beams were used.
        pred_masks (`list[torch.FloatTensor]` of shapes `(slots, height, width)`):
            Low-resolution mask logits (SAM: 256 x 256 of the padded square). Above 0 is foreground.
        mask_scores (`list[torch.FloatTensor]` of shapes `(slots,)`):
            The segmenter's own estimate of each mask's IoU, as its head gives it: it may leave 0..1. LISA and GSVA
            never trained this head further.
        slot_probs (`list[torch.FloatTensor]` of shapes `(slots,)`):
            Probability in [0, 1] that the slot is `[SEG]` rather than `[REJ]`; 1.0 for models without `[REJ]`.
        rejected (`list[torch.BoolTensor]` of shapes `(slots,)`): Whether the model says that the target is absent.
        slot_positions (`list[torch.LongTensor]` of shapes `(slots,)`):
            Position of each slot token in `input_ids` or `sequences`.
        slot_states (`list[torch.FloatTensor]` of shapes `(slots, hidden_size)`):
            The language model's last hidden state that predicts each slot, or that at it (`slot_state`).
        prompt_embeddings (`list[torch.FloatTensor]` of shapes `(slots, prompt_dim)`):
            The same projected: what entered the mask decoder.
        cache (`Cache`, *optional*): The key-value cache. `past_key_values`, its older name, reads the same.
        hidden_states, attentions: As the vision-language model returned them.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    sequences: torch.LongTensor | None = None
    sequences_scores: torch.FloatTensor | None = None
    pred_masks: list[torch.FloatTensor] | None = None
    mask_scores: list[torch.FloatTensor] | None = None
    slot_probs: list[torch.FloatTensor] | None = None
    rejected: list[torch.BoolTensor] | None = None
    slot_positions: list[torch.LongTensor] | None = None
    slot_states: list[torch.FloatTensor] | None = None
    prompt_embeddings: list[torch.FloatTensor] | None = None
    cache: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    @property
    def past_key_values(self) -> Cache | None:
        return self.cache

    def __getitem__(self, key):
        return super().__getitem__("cache" if key == "past_key_values" else key)

    def get(self, key, default=None):
        return super().get("cache" if key == "past_key_values" else key, default)

    def __contains__(self, key) -> bool:
        return super().__contains__("cache" if key == "past_key_values" else key)


def find_cache(output: ModelOutput) -> Cache | None:
    """The key-value cache in an output of transformers, found by its type: 5.24 renamed the field."""
    return next((value for value in output.values() if isinstance(value, Cache)), None)


def language_fields(language: ModelOutput) -> dict:
    """What an output of the language model hands on as it is."""
    names = ("hidden_states", "attentions")
    return {"cache": find_cache(language), **{name: language.get(name) for name in names}}


def output_or_tuple(output: ModelOutput, return_dict: bool | None, config: PreTrainedConfig) -> ModelOutput | tuple:
    """`output`, or the tuple of its set fields where the call, or else the configuration, says `return_dict=False`."""
    wanted = config.return_dict if return_dict is None else return_dict
    return output if wanted else output.to_tuple()


def without_placeholder(logits: torch.FloatTensor, image_token_id: int | None) -> torch.FloatTensor:
    """
    Logits `(..., vocab_size)` with the lowest finite value in the column of the image placeholder, if there is one.
    The original models have no such token: with its column out of the way, losses and decisions are theirs.
    """
    if image_token_id is None or image_token_id >= logits.shape[-1]:
        return logits
    column = torch.arange(logits.shape[-1], device=logits.device) == image_token_id
    return logits.masked_fill(column, torch.finfo(logits.dtype).min)


def language_loss(
    model: PreTrainedModel, logits: torch.FloatTensor, labels: torch.LongTensor, **kwargs
) -> torch.FloatTensor:
    """The model's own loss; an image placeholder is never predicted, whatever the labels say."""
    image_token_id = getattr(model.config, "image_token_id", None)
    if image_token_id is not None:
        labels = labels.masked_fill(labels == image_token_id, IGNORED_LABEL)
    if not torch.compiler.is_compiling() and not bool((labels[..., 1:] != IGNORED_LABEL).any()):
        return 0.0 * logits.clamp(min=0).sum()  # truncation may leave nothing to predict, whose mean is no number
    return model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)


def judge_without_placeholder(
    model: PreTrainedModel, output: ModelOutput, labels: torch.LongTensor | None, **kwargs
) -> None:
    """Takes the placeholder out of the logits of an output of `model`, and sets its loss to that of what is left."""
    output.logits = without_placeholder(output.logits, model.config.image_token_id)
    if labels is not None:
        output.loss = language_loss(model, output.logits, labels, **kwargs)


# ---- where answers are ----------------------------------------------------------------------------------------------


def check_ranges(answer_ranges: torch.LongTensor, input_ids: torch.LongTensor) -> list[tuple[int, int]]:
    """First position of each answer in `input_ids` `(rows, length)`, and after its last, as numbers."""
    ranges = [(int(start), int(stop)) for start, stop in answer_ranges]
    if len(ranges) != len(input_ids) or any(not 1 <= start <= stop <= input_ids.shape[1] for start, stop in ranges):
        raise ValueError(
            f"answer_ranges {ranges} must name one range per row ({len(input_ids)}) after its first position and "
            f"within the {input_ids.shape[1]} of input_ids."
        )
    return ranges


def answer_length(model: PreTrainedModel, given: int | None, otherwise: int = 256) -> int:
    """Most tokens of an answer: as many as are `given`, else what the model's own generation configuration says."""
    return given or getattr(getattr(model, "generation_config", None), "max_new_tokens", None) or otherwise


def stop_ids_of(eos_token_id: int | Sequence[int] | torch.Tensor | None) -> set[int]:
    """The end tokens of a generation, in whatever form it takes them."""
    if eos_token_id is None:
        return set()
    if isinstance(eos_token_id, torch.Tensor):
        eos_token_id = eos_token_id.tolist()
    return {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)


def answer_ids(new_ids: list[int], stop_ids: set[int], pad_id: int | None) -> list[int]:
    """The ids that a row has written, its end token included, without what fills it up after that."""
    for index, token_id in enumerate(new_ids):
        if token_id in stop_ids:
            return new_ids[: index + 1]
    while new_ids and new_ids[-1] == pad_id:
        new_ids = new_ids[:-1]
    return new_ids
