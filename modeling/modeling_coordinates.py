"""Coordinates as text: boxes and points that a model writes become prompts of a segmenter (VisionReasoner, StAR)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .composed_model import ComposedModel, ImageCache, resolve_image_index
from .configuration_coordinates import CoordinatesConfig
from .outputs import (
    ReasoningSegmentationOutput,
    answer_ids,
    check_ranges,
    find_cache,
    language_fields,
    output_or_tuple,
    stop_ids_of,
)
from .segmenters import SegmenterPrompt, best_candidates


# (ids of an answer, its input row) -> what they say, with `objects` that have `box_xyxy`, `points_xy`, `point_labels`
CoordinateReader = Callable[[list[int], int], Any]


@dataclass
class CoordinatesOutput(ReasoningSegmentationOutput):
    """
    What [`CoordinatesForReasoningSegmentation`] returns. A slot is one object that an answer names by its coordinates;
    lists have one entry per row.

    Args:
        answers (`list`): What the coordinate reader made of each answer; `objects` has one entry per mask.
        candidate_masks (`list[torch.FloatTensor]` of shapes `(objects, candidates, height, width)`):
            All masks the segmenter offered, as logits; `pred_masks` is that of the best score.
        candidate_scores (`list[torch.FloatTensor]` of shapes `(objects, candidates)`): Their scores.
        slot_probs: 1.0 for all; what is not there the model does not name.
        rejected: True only for what scores below a `reject_threshold`.
    """

    answers: list | None = None
    candidate_masks: list[torch.FloatTensor] | None = None
    candidate_scores: list[torch.FloatTensor] | None = None


class CoordinatesForReasoningSegmentation(ComposedModel):
    r"""
    A stock image-text-to-text model and a stock segmenter, with nothing between them but text.

    The model writes boxes and points; a *coordinate reader*, which the processor brings along, reads them; and for
    each object the segmenter gets its box and its points together, offers three masks, and the one of the best
    predicted IoU is taken, as in Seg-Zero (arXiv 2503.06520), VisionReasoner (arXiv 2505.12081) and StAR.

    Args:
        config ([`CoordinatesConfig`]): What to compose.
    """

    config: CoordinatesConfig
    config_class = CoordinatesConfig

    def __init__(self, config: CoordinatesConfig):
        super().__init__(config)
        self.segmenter = self._build_segmenter()
        self.vlm = self._build_vlm()
        self.post_init()

    # ---- a given answer -----------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        reshaped_input_sizes: torch.LongTensor | None = None,
        tile_counts: torch.LongTensor | None = None,
        answer_ranges: torch.LongTensor | None = None,
        coordinate_reader: CoordinateReader | None = None,
        image_index: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        reject_threshold: float | None = None,
        labels: torch.LongTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CoordinatesOutput:
        r"""
        Reads answers that are given, in one pass. Prompts that await their answer, as the processor makes them of
        phrases, are answered first, by `generate_with_masks` and greedily: what this returns has no logits then.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Ids with image placeholders expanded, padded on either side; on the left where they await answers.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding.
            pixel_values, sam_pixel_values, original_sizes, reshaped_input_sizes, tile_counts:
                See [`ComposedModel.encode_image`].
            answer_ranges (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
                Where each answer is in `input_ids`, from its first id to after its end token.
            coordinate_reader (`Callable[[list[int], int], Any]`, *optional*):
                Reads the ids of an answer to the input row it is told. What it returns has `objects`, each with
                `box_xyxy`, a box `(x1, y1, x2, y2)` or None, `points_xy`, and as many `point_labels`, 1 on the object
                and 0 beside it; all in pixels of the upright image. Without a reader nothing is drawn.
            image_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The image of each row, where rows share images.
            image_cache ([`ImageCache`], *optional*): Images encoded before, instead of the pixel values.
            reject_threshold (`float`, *optional*):
                Reject objects for whose mask the segmenter's own score is lower.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                For the vision-language model's own loss; -100 where there is none.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are set.
            kwargs: Further inputs of the vision-language model.

        Returns:
            [`CoordinatesOutput`]

        Raises:
            ValueError: If rows, images and answers do not match.
        """
        views = (pixel_values, sam_pixel_values, original_sizes, reshaped_input_sizes, tile_counts)
        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs, *views)
        if coordinate_reader is not None and answer_ranges is None and labels is None:
            return self.generate_with_masks(
                input_ids,
                attention_mask,
                image_index=image_index,
                image_cache=images,
                coordinate_reader=coordinate_reader,
                reject_threshold=reject_threshold,
                return_dict=self.config.return_dict if return_dict is None else return_dict,
                do_sample=False,
                **kwargs,
            )
        language = self.vlm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            return_dict=True,
            **self._vlm_image_inputs(images, image_index),
            **kwargs,
        )
        drawn = {}
        if coordinate_reader is not None and answer_ranges is not None:
            ranges = check_ranges(answer_ranges, input_ids)
            answers = [
                coordinate_reader(ids[start:stop].tolist(), row)
                for row, (ids, (start, stop)) in enumerate(zip(input_ids, ranges, strict=True))
            ]
            drawn = self._draw_answers(answers, images, image_index, reject_threshold)
        output = CoordinatesOutput(
            loss=language.get("loss"), logits=language.logits, **language_fields(language), **drawn
        )
        return output_or_tuple(output, return_dict, self.config)

    # ---- an answer of its own -----------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, input_ids: torch.LongTensor | None = None, *args, **kwargs):
        """As [`ComposedModel.generate`]: text only; what only masks need is ignored."""
        left_aside = ("coordinate_reader", "answer_ranges")
        kwargs = {name: value for name, value in kwargs.items() if name not in left_aside}
        return super().generate(input_ids, *args, **kwargs)

    @torch.no_grad()
    def generate_with_masks(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        coordinate_reader: CoordinateReader | None = None,
        reject_threshold: float | None = None,
        return_dict: bool = True,
        **kwargs,
    ) -> CoordinatesOutput:
        r"""
        Writes the answers, reads their coordinates, and draws a mask for every object.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Prompts, padded on the left.
            image_index, image_cache, coordinate_reader, reject_threshold: As in `forward`.
            return_dict (`bool`): `False` returns a tuple of the fields that are set.
            kwargs:
                The images as in `forward`, and anything that [`~GenerationMixin.generate`] takes: `max_new_tokens`,
                `num_beams`, `do_sample`, `num_return_sequences`, `streamer`, ...

        Returns:
            [`CoordinatesOutput`] with `sequences`; objects are known at the end of an answer.

        Raises:
            ValueError: As in `forward`, and without an image.
        """
        keep = image_cache is not None
        kwargs.pop("answer_ranges", None)
        images, image_index, kwargs = self._take_images(input_ids, image_index, image_cache, kwargs)
        if images is None:
            raise ValueError("An image is needed to draw in: pass `pixel_values`, or an `image_cache`.")
        stop_ids = stop_ids_of(self._setting("eos_token_id", kwargs))
        # Without an end token no row is filled up, and a padding token at its end was written.
        pad_id = self._setting("pad_token_id", kwargs) if stop_ids else None
        with self._encoding_beside(images, image_index, kwargs.get("streamer")):
            generated = self._generate(input_ids, attention_mask, image_index, images, keep=keep, **kwargs)

        is_text_alone = isinstance(generated, torch.Tensor)
        sequences, start = generated if is_text_alone else generated.sequences, input_ids.shape[1]
        per_input = len(sequences) // len(input_ids)
        source = torch.arange(len(sequences), device=image_index.device) // per_input
        drawn = {}
        if coordinate_reader is not None:
            answers = [
                coordinate_reader(answer_ids(ids[start:].tolist(), stop_ids, pad_id), row)
                for ids, row in zip(sequences, source.tolist(), strict=True)
            ]
            drawn = self._draw_answers(answers, images, image_index[source], reject_threshold)
        output = CoordinatesOutput(
            sequences=sequences,
            sequences_scores=None if is_text_alone else generated.get("sequences_scores"),
            cache=None if is_text_alone else find_cache(generated),
            **drawn,
        )
        return output if return_dict else output.to_tuple()

    # ---- from coordinates to masks ------------------------------------------------------------------------------

    @torch.no_grad()
    def segment_answers(
        self,
        answers: Sequence,
        image_cache: ImageCache,
        image_index: torch.LongTensor | None = None,
        reject_threshold: float | None = None,
    ) -> CoordinatesOutput:
        r"""
        Draws what answers name that are known already, without the language model.

        Args:
            answers (`Sequence`): One per row, as the coordinate reader of `forward` returns them.
            image_cache ([`ImageCache`]): From `encode_image`; holds the segmenter's view.
            image_index (`torch.LongTensor` of shape `(rows,)`, *optional*): The image of each row.
            reject_threshold (`float`, *optional*): As in `forward`.

        Returns:
            [`CoordinatesOutput`] without text.
        """
        image_index = resolve_image_index(image_index, len(answers), image_cache.num_images, self.device)
        return CoordinatesOutput(**self._draw_answers(list(answers), image_cache, image_index, reject_threshold))

    def _draw_answers(
        self,
        answers: list,
        images: ImageCache | None,
        image_index: torch.LongTensor | None,
        reject_threshold: float | None,
    ) -> dict:
        """Everything that [`CoordinatesOutput`] says about the objects of the answers."""
        counts = [len(answer.objects) for answer in answers]
        if sum(counts) and images is None:
            raise ValueError("Coordinates need an image to draw in: pass `pixel_values`, or an `image_cache`.")
        index = torch.zeros(len(answers), dtype=torch.long) if image_index is None else image_index.cpu()
        prompts = []
        for answer, image in zip(answers, index.tolist(), strict=True):
            scale = images.scale_of(image) if answer.objects else None
            prompts += [_segmenter_prompt(one, scale) for one in answer.objects]
        masks, scores = self._draw_prompts(prompts, images, torch.repeat_interleave(index, torch.tensor(counts)))
        chosen, every = best_candidates(scores), torch.arange(len(scores), device=scores.device)
        mask_scores = scores[every, chosen]
        rejected = torch.zeros_like(mask_scores, dtype=torch.bool)
        if reject_threshold is not None:
            rejected = mask_scores < reject_threshold
        of_objects = {
            "pred_masks": masks[every, chosen],
            "mask_scores": mask_scores,
            "candidate_masks": masks,
            "candidate_scores": scores,
            "slot_probs": torch.ones_like(mask_scores),
            "rejected": rejected,
        }
        return {"answers": answers, **{name: list(values.split(counts)) for name, values in of_objects.items()}}


def _segmenter_prompt(one: Any, scale: tuple[float, float]) -> SegmenterPrompt:
    """
    The box and the points of an object in pixels of the segmenter's view.

    Raises:
        ValueError: If it has neither, or other numbers of points and labels.
    """
    if one.box_xyxy is None and not one.points_xy:
        raise ValueError("An object has neither a box nor a point, so there is nothing to prompt the segmenter with.")
    if len(one.points_xy) != len(one.point_labels):
        raise ValueError(f"An object has {len(one.points_xy)} points and {len(one.point_labels)} labels of points.")
    box = one.box_xyxy
    return SegmenterPrompt(
        points=[(x * scale[0], y * scale[1]) for x, y in one.points_xy],
        point_labels=list(one.point_labels),
        box=None if box is None else [edge * scale[axis % 2] for axis, edge in enumerate(box)],
    )


__all__ = ["CoordinatesForReasoningSegmentation"]
