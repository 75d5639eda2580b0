"""The one output type of all systems and what an image leaves behind for the next question."""

from dataclasses import dataclass

import torch
from transformers import Cache, PreTrainedConfig
from transformers.utils import ModelOutput


@dataclass
class ReasoningSegmentationOutput(ModelOutput):
    """
    What a forward pass or a generation returns. A *slot* is one `[SEG]` or `[REJ]` token; lists have one entry per
    row, slots stand in reading order, rejected slots keep their place and their logits.

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
        slot_states (`list[torch.FloatTensor]` of shapes `(slots, prompt_dim)`):
            Each slot's projected state, the prompt that the segmenter got.
        language_states (`torch.FloatTensor` of shape `(rows, hidden_size)`, *optional*):
            Models whose rows are slots (IVM): the state before it was projected.
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
    language_states: torch.FloatTensor | None = None
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


@dataclass
class AttendAndSegmentOutput(ReasoningSegmentationOutput):
    """
    What [`AttendAndSegmentModel`] returns. A slot is one phrase of the answer; lists have one entry per row.

    Args:
        attention_maps (`list[torch.FloatTensor]` of shapes `(tokens, grid_rows, grid_columns)`):
            What each token of the answer looked at when it was predicted, its end token included; raw, all positive.
        phrases (`list[list]`): What the phrase finder returned for each row, one entry per mask.
        phrase_maps (`list[torch.FloatTensor]` of shapes `(phrases, grid_rows, grid_columns)`):
            The map of each phrase; with `subtract_mean` the mean map of the answer is taken off.
        grid_boxes (`torch.FloatTensor` of shape `(rows, 4)`):
            What part of the picture the grid covers, `(x1, y1, x2, y2)` in its pixels.
        points (`list[torch.LongTensor]` of shapes `(phrases, 2)`, *optional*):
            Point prompts, `(x, y)` in pixels of the picture.
        boxes (`list[torch.LongTensor]` of shapes `(phrases, 4)`, *optional*):
            Box prompts there, `(x1, y1, x2, y2)`, x2 and y2 behind the last pixel.
        candidate_masks (`list[torch.FloatTensor]` of shapes `(phrases, candidates, height, width)`):
            All masks the segmenter offered, as logits; `pred_masks` is one of each.
        candidate_scores (`list[torch.FloatTensor]` of shapes `(phrases, candidates)`): Their scores.
        slot_probs, rejected: 0.0 and True for a phrase that was found nowhere, so that nothing was drawn for it: with
            `prompt="box"` one for which no pixel lies above `box_threshold`. 1.0 for all others.
    """

    attention_maps: list[torch.FloatTensor] | None = None
    phrases: list[list] | None = None
    phrase_maps: list[torch.FloatTensor] | None = None
    grid_boxes: torch.FloatTensor | None = None
    points: list[torch.LongTensor] | None = None
    boxes: list[torch.LongTensor] | None = None
    candidate_masks: list[torch.FloatTensor] | None = None
    candidate_scores: list[torch.FloatTensor] | None = None


@dataclass
class ImageCache:
    """
    The images of one call as both encoders see them, to be handed to later calls about the same images.

    The vision-language model's features are computed at once, the segmenter's at the first slot that needs them; then
    they stay here. Not tied to a number of rows: `image_index` says which image a row looks at.

    Args:
        vlm_features: Output of the model's `get_image_features`, one entry of `pooler_output` per image.
        vlm_inputs (`dict`): Per-image tensors that the language model still needs (`image_grid_thw`, ...).
        num_images (`int`): Number of pictures; one of several tiles counts once.
        sam_pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`, *optional*):
            The segmenter's view.
        original_sizes, sam_resized_sizes (`torch.LongTensor` of shape `(num_images, 2)`, *optional*):
            (height, width) of the picture and of its part of the segmenter's view.
        segmenter_features (`list`): Per image the encoded view, `None` until it is needed.
        grids (`dict`, *optional*):
            Per image where its tokens lie, for models that point by attention, and `tile_counts`: how many entries of
            `pixel_values` each has, where it has several.
    """

    vlm_features: object
    vlm_inputs: dict[str, torch.Tensor]
    num_images: int
    sam_pixel_values: torch.FloatTensor | None = None
    original_sizes: torch.LongTensor | None = None
    sam_resized_sizes: torch.LongTensor | None = None
    segmenter_features: list | None = None
    grids: dict[str, torch.Tensor] | None = None


def find_cache(output: ModelOutput) -> Cache | None:
    """The key-value cache in an output of transformers, found by its type: 5.24 renamed the field."""
    return next((value for value in output.values() if isinstance(value, Cache)), None)


def language_fields(language: ModelOutput) -> dict:
    """What an output of the language model hands on as it is."""
    return {
        "cache": find_cache(language),
        "hidden_states": language.get("hidden_states"),
        "attentions": language.get("attentions"),
    }


def output_or_tuple(output: ModelOutput, return_dict: bool | None, config: PreTrainedConfig) -> ModelOutput | tuple:
    """`output`, or the tuple of its set fields where the call, or else the configuration, says `return_dict=False`."""
    wanted = config.return_dict if return_dict is None else return_dict
    return output if wanted else output.to_tuple()


__all__ = [
    "AttendAndSegmentOutput",
    "ImageCache",
    "ReasoningSegmentationOutput",
    "find_cache",
    "language_fields",
    "output_or_tuple",
]
