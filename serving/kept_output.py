"""What is kept of an output so that its masks can be drawn again with other thresholds, without the model."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..processing.segments import SegmentationResult


# Of an output: large, and of no use to a processor. Of inputs: what texts, sizes and images are read from.
_DROPPED_OUTPUTS = {
    *("loss", "losses", "logits", "cache", "past_key_values", "hidden_states", "attentions"),
    *("slot_states", "prompt_embeddings", "candidate_masks", "candidate_scores"),
}
_KEPT_INPUTS = (
    "input_ids",
    "attention_mask",
    "image_index",
    "original_sizes",
    "reshaped_input_sizes",
    "answer_ranges",
)
_VIEW = "sam_pixel_values"


class KeptOutput:
    """
    The mask logits of an answer, at the segmenter's resolution and in main memory: 256 KB per mask of a SAM.

    Args:
        processor: Has `post_process_segmentation`.
        outputs, inputs: As that takes them, one row of a prompt.
    """

    def __init__(self, processor: Any, outputs: Mapping[str, Any], inputs: Mapping[str, Any]):
        self.processor = processor
        self.outputs = {name: _in_memory(value) for name, value in outputs.items() if name not in _DROPPED_OUTPUTS}
        data = {name: _in_memory(inputs[name]) for name in _KEPT_INPUTS if name in inputs}
        if _VIEW in inputs:
            data[_VIEW] = torch.zeros(()).expand(tuple(inputs[_VIEW].shape))  # its size is asked for, not its pixels
        self.inputs = type(inputs)(data)
        for name in ("rows", "images"):
            setattr(self.inputs, name, getattr(inputs, name, None))

    def draw(self, threshold: float = 0.5, reject_threshold: float | None = None) -> SegmentationResult:
        """
        Args:
            threshold (`float`): Pixels with a larger probability belong to a mask, 0..1; of IVM's heat-map its value.
            reject_threshold (`float`, *optional*):
                Reject what is less probably there, 0..1; by default what the model decided.

        Returns:
            [`SegmentationResult`]: As with these thresholds from the beginning.

        Raises:
            ValueError: A threshold is outside 0..1.
        """
        given = {} if reject_threshold is None else {"reject_threshold": checked_probability(reject_threshold)}
        if rates_pixels(self.processor):
            given["heatmap_threshold"] = checked_probability(threshold)
        else:
            given["mask_threshold"] = threshold_logit(threshold)
        return self.processor.post_process_segmentation(self.outputs, self.inputs, **given)[0]


class OutputKeeper:
    """
    A processor that draws masks, with what it last made a result of.

    Args:
        processor: Has `post_process_segmentation`.

    Attributes:
        kept ([`KeptOutput`], *optional*): Of the last result.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.kept: KeptOutput | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "processor":  # while this is being made
            raise AttributeError(name)
        return getattr(self.processor, name)

    def __call__(self, *args, **kwargs) -> Any:
        return self.processor(*args, **kwargs)

    def post_process_segmentation(self, outputs: Mapping[str, Any], inputs: Any, **options) -> list:
        """As that of the processor."""
        results = self.processor.post_process_segmentation(outputs, inputs, **options)
        self.kept = KeptOutput(self.processor, outputs, inputs)
        return results


def rates_pixels(processor: Any) -> bool:
    """Whether the answers of its model are heat-maps."""
    return hasattr(processor, "post_process_heatmaps")


def threshold_logit(probability: float) -> float:
    """The mask logit of a probability in 0..1; infinite at the ends, where all pixels belong to a mask, or none."""
    probability = checked_probability(probability)
    if probability in (0.0, 1.0):
        return -math.inf if probability == 0.0 else math.inf
    return math.log(probability / (1.0 - probability))


def checked_probability(value: float) -> float:
    """The value; a ValueError where it is none of 0..1."""
    if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"A threshold is {str(value)[:60]}. It must lie in 0..1.")
    return float(value)


def _in_memory(value: Any) -> Any:
    """Tensors, also in lists and dicts, off their device."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, (list, tuple)):
        return type(value)(_in_memory(item) for item in value) if type(value) in (list, tuple) else value
    if isinstance(value, dict):
        return {name: _in_memory(item) for name, item in value.items()}
    return value


__all__ = ["KeptOutput", "OutputKeeper", "checked_probability", "rates_pixels", "threshold_logit"]
