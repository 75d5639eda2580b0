"""Answers of any model of this package or of transformers' image-text-to-text kind, whole or while written."""

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch

from ..modeling.composed_model import ImageCache, ImageReader
from ..modeling.generation_stream import StreamStep, check_one_answer, stream_generation
from ..modeling.outputs import ReasoningSegmentationOutput
from ..processing.answer_stream import AnswerEvent, AnswerReader, read_answer
from ..processing.chat import as_list
from ..processing.chat_processor import ChatInputs, image_of_row
from ..processing.image_loading import load_rgb_image
from ..processing.segments import SegmentationResult


# Below it only the most likely token has a chance, and logits that are divided by it have no number.
LEAST_TEMPERATURE = 1e-4


# What an output says of an answer without slots.
_NO_SLOTS = {"pred_masks": [torch.zeros(0, 1, 1)], "slot_positions": [torch.zeros(0, dtype=torch.long)]}


class CachingVlm(ImageReader):
    """
    An image-text-to-text model that draws nothing, with an [`ImageCache`] as the models have that do: the images of
    one prompt are encoded once, and later prompts about them are read from where they differ.

    Args:
        vlm (`PreTrainedModel`): The model.
    """

    def __init__(self, vlm: Any):
        self.vlm = vlm

    def __getattr__(self, name: str) -> Any:
        if name == "vlm":  # while this is being made
            raise AttributeError(name)
        return getattr(self.vlm, name)

    def encode_image(self, pixel_values: torch.FloatTensor, **kwargs) -> ImageCache:
        """Encodes all images of one prompt; see [`ImageReader.encode_image`]."""
        images = super().encode_image(pixel_values, **kwargs)
        # One prompt looks at all of them, as at the tiles of one image.
        images.tile_counts, images.num_images = torch.tensor([images.num_images]), 1
        return images


def with_image_cache(model: Any) -> Any:
    """The model itself where it has `encode_image`; one around it where it can take encoded images; else `None`."""
    if hasattr(model, "encode_image"):
        return model
    takes = inspect.signature(model.forward).parameters
    has_token = getattr(model.config, "image_token_id", None) is not None
    return CachingVlm(model) if has_token and "mm_encoder_outputs" in takes else None


def stream_segmentation(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    mask_threshold: float = 0.0,
    reject_threshold: float | None = None,
    image_cache: ImageCache | None = None,
    image: Any = None,
    **generation_options,
) -> Generator[AnswerEvent, None, None]:
    """
    Answers one prompt, and says what is written while it is.

    Args:
        model: A model of this package, or any of transformers' image-text-to-text kind, which writes text alone.
        processor: Its processor.
        inputs (`Mapping`): What the processor returned, one row, on the model's device.
        mask_threshold (`float`): Pixels with a larger mask logit belong to a segment.
        reject_threshold (`float`, *optional*): Reject slots whose `slot_probs` is lower.
        image_cache ([`ImageCache`], *optional*): What `with_image_cache(model).encode_image(**inputs)` returned.
        image (*optional*): For the result, where `inputs` do not hold their image.
        generation_options: As `generate` takes them.

    Returns:
        `Generator[AnswerEvent]`: [`TextPiece`] as they become certain; [`SegmentDrawn`] right after its `[SEG]` or
        `[REJ]`, or before the end where the model writes none; [`AnswerEnd`]. The model works in a thread of its own,
        whose errors are raised here. Closing the iterator stops it after the token that is being written.

    Raises:
        ValueError: For several rows, answers or beams, now and not when the first event is asked for.
    """
    draws = draws_masks(processor, model)
    options = answer_options(model, draws, reject_threshold, image_cache, generation_options)
    steps = _steps(model, inputs, image_cache, options, draws)
    finish = _finish(processor, inputs, mask_threshold, image, draws)
    return read_answer(steps, processor, inputs, finish, mask_threshold)


def stream_batch(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    has_ended: Callable[[int, list[int]], bool],
    mask_threshold: float = 0.0,
    reject_threshold: float | None = None,
    image_cache: ImageCache | None = None,
    images: Sequence[Any] = (),
    **generation_options,
) -> Generator[tuple[int, AnswerEvent], None, None]:
    """
    As [`stream_segmentation`] for prompts that are answered side by side.

    Args:
        model, processor, mask_threshold, reject_threshold, image_cache, generation_options: As there.
        inputs (`Mapping`): What the processor returned, on the model's device.
        has_ended (`Callable[[int, list[int]], bool]`):
            (row, ids it wrote) -> whether its answer is complete. Its end is given then, and not with that of the
            longest, unless the model draws only once all is written.
        images (*optional*): For the results, one per row, where `inputs` do not hold their images.

    Returns:
        `Generator[tuple[int, AnswerEvent]]`: Each event with the row it belongs to.

    Raises:
        ValueError: For several answers or beams, now.
    """
    draws = draws_masks(processor, model)
    options = answer_options(model, draws, reject_threshold, image_cache, generation_options)
    steps = _steps(model, inputs, image_cache, options, draws, side_by_side=True)
    rows = [_inputs_of_row(inputs, row) for row in range(len(inputs["input_ids"]))]
    return _read_batch(steps, processor, inputs, rows, has_ended, mask_threshold, images, draws)


def _read_batch(
    steps: Generator[StreamStep, None, None],
    processor: Any,
    inputs: Mapping[str, Any],
    rows: list[ChatInputs],
    has_ended: Callable[[int, list[int]], bool],
    mask_threshold: float,
    images: Sequence[Any],
    draws: bool,
) -> Generator[tuple[int, AnswerEvent], None, None]:
    readers = [AnswerReader(processor, row, mask_threshold) for row in rows]
    slots: list[list[ReasoningSegmentationOutput]] = [[] for _ in rows]
    ended, going = set(), set(range(len(rows)))
    # Of what was seen of a row by itself, unless it is drawn from the whole output.
    knows_rows = not draws or hasattr(processor, "post_process_slot")

    def result(row: int) -> SegmentationResult:
        if not draws:
            return text_result(processor, readers[row].ids, images[row] if images else image_of_row(rows[row], 0))
        drawn = slots[row] or [_NO_SLOTS]
        fields = {name: [torch.cat([slot[name][0] for slot in drawn])] for name in drawn[0]}
        written = rows[row]["input_ids"].new_tensor([readers[row].ids])
        output = ReasoningSegmentationOutput(sequences=torch.cat([rows[row]["input_ids"], written], dim=1), **fields)
        return processor.post_process_segmentation(output, rows[row], mask_threshold=mask_threshold)[0]

    def finish(row: int, found: SegmentationResult) -> Iterator[tuple[int, AnswerEvent]]:
        going.discard(row)
        yield from ((row, event) for event in readers[row].finish(found))

    with closing(steps):
        for step in steps:
            row = step.row
            if step.output is not None:
                left = sorted(going)
                if left and not knows_rows:
                    found = processor.post_process_segmentation(step.output, inputs, mask_threshold=mask_threshold)
                for row in left:
                    yield from finish(row, result(row) if knows_rows else found[row])
            elif step.slot is None and row in ended:  # padding
                if knows_rows and row in going:
                    yield from finish(row, result(row))
            else:
                yield from ((row, event) for event in readers[row].read(step))
                if step.slot is not None:
                    slots[row].append(step.slot)
                elif has_ended(row, readers[row].ids):
                    ended.add(row)


def _inputs_of_row(inputs: Mapping[str, Any], row: int) -> ChatInputs:
    """What results need of one row's inputs, whose image may be that of others, too."""
    per_row = {name: inputs[name][row : row + 1] for name in ("input_ids", "attention_mask") if name in inputs}
    index = inputs.get("image_index")
    alone = ChatInputs({**inputs, **per_row, "image_index": torch.tensor([row]) if index is None else index[[row]]})
    prompts = getattr(inputs, "rows", None)
    alone.rows = None if prompts is None else [prompts[row]]
    alone.images = getattr(inputs, "images", None)
    return alone


def segment_answer(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    mask_threshold: float = 0.0,
    reject_threshold: float | None = None,
    image_cache: ImageCache | None = None,
    image: Any = None,
    **generation_options,
) -> SegmentationResult:
    """The result of [`stream_segmentation`], not streamed, so that beams are allowed."""
    draws = draws_masks(processor, model)
    options = answer_options(model, draws, reject_threshold, image_cache, generation_options)
    with torch.inference_mode():
        if draws:
            output = model.generate_with_masks(**inputs, **options)
        else:
            output = _writer(model, image_cache)(**inputs, **options)
    return _finish(processor, inputs, mask_threshold, image, draws)(output)


def draws_masks(processor: Any, model: Any = None) -> bool:
    """Whether answers come with masks, by the processor and, where it is known, its model; others are text alone."""
    return hasattr(processor, "post_process_segmentation") and (model is None or hasattr(model, "generate_with_masks"))


def answer_options(
    model: Any, draws: bool, reject_threshold: float | None, image_cache: Any, generation_options: dict
) -> dict:
    """Keyword arguments of a generation."""
    if reject_threshold is not None and not draws:
        raise ValueError("reject_threshold is for models that draw masks; this one writes text alone. Leave it out.")
    given = {"reject_threshold": reject_threshold, "image_cache": image_cache}
    if getattr(model.config, "prompt_slots", False):
        given["prompt_slots"] = False  # what earlier answers of a conversation hold has been drawn
    return {**{name: value for name, value in given.items() if value is not None}, **generation_options}


def _writer(model: Any, image_cache: ImageCache | None) -> Callable[..., Any]:
    return model.generate if image_cache is None else with_image_cache(model).generate


def _steps(
    model: Any,
    inputs: Mapping[str, Any],
    image_cache: ImageCache | None,
    options: dict,
    draws: bool,
    side_by_side: bool = False,
) -> Generator[StreamStep, None, None]:
    """The steps of a generation: of one row, or of several side by side."""
    with torch.inference_mode():
        if draws:
            stream = model.stream_batch_with_masks if side_by_side else model.stream_with_masks
            return stream(**inputs, **options)
        config = options.get("generation_config") or model.generation_config
        asked = (options.get(name, getattr(config, name, None)) for name in ("num_beams", "num_return_sequences"))
        check_one_answer(1 if side_by_side else len(inputs["input_ids"]), *asked)
        generate = partial(_writer(model, image_cache), **inputs)
        return stream_generation(
            lambda **streaming: generate(**{**options, **streaming}), model.device, options.get("stopping_criteria")
        )


def _finish(
    processor: Any, inputs: Mapping[str, Any], mask_threshold: float, image: Any, draws: bool
) -> Callable[[Any], SegmentationResult]:
    """What makes the result of an output."""

    def result(output: Any) -> SegmentationResult:
        if draws:
            return processor.post_process_segmentation(output, inputs, mask_threshold=mask_threshold)[0]
        answer = as_list(sequences_of(output)[0, inputs["input_ids"].shape[1] :])
        return text_result(processor, answer, image if image is not None else image_of_row(inputs, 0))

    return result


def sequences_of(output: Any) -> torch.LongTensor:
    """The ids of a generation, also where its configuration has `return_dict_in_generate`."""
    return output if isinstance(output, torch.Tensor) else output.sequences


def text_result(processor: Any, answer_ids: list[int], image: Any = None) -> SegmentationResult:
    """The result of an answer in text alone, about an image or none."""
    shown = None if image is None else load_rgb_image(image)
    size = (0, 0) if shown is None else (shown.height, shown.width)
    text = processor.tokenizer.decode(answer_ids, skip_special_tokens=True).strip()
    return SegmentationResult(text, [], size, shown)


__all__ = [
    "LEAST_TEMPERATURE",
    "CachingVlm",
    "answer_options",
    "draws_masks",
    "segment_answer",
    "sequences_of",
    "stream_batch",
    "stream_segmentation",
    "text_result",
    "with_image_cache",
]
