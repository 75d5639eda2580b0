"""`pipeline("reasoning-segmentation")`: images and questions in, text and segments out."""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig, Pipeline
from transformers.utils import ModelOutput

from .answer_stream import AnswerEvent, read_answer
from .chat import read_phrases
from .image_loading import MAX_IMAGE_PIXELS, ImageSource, load_rgb_image


# What generation takes besides the fields of GenerationConfig.
_GENERATION_OBJECTS = {
    "generation_config",
    "streamer",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "assistant_model",
}
_GENERATION_NAMES = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | _GENERATION_OBJECTS
# Large and of no use for masks and text; without them nothing large travels from the accelerator.
_NOT_POST_PROCESSED = {"logits", "loss", "losses", "past_key_values", "hidden_states", "attentions"}
_MASK_FORMATS = ("pil", "rle")
_MISSING = object()


class ReasoningSegmentationPipeline(Pipeline):
    r"""Answers questions about images with text and masks.

    Works with every model that has `forward` and, where it writes text, `generate_with_masks`, together with its
    processor. Rows are put into batches by the processor, so that images of any sizes can share one.

    Example:
        ```python
        pipe = pipeline("reasoning-segmentation", model=repo, trust_remote_code=True)
        pipe("kitchen.jpg", text="Where could I pour coffee?")  # the model writes its answer
        pipe("kitchen.jpg", phrases=["the red cup", "a dog"])  # one forward pass, one segment per phrase
        pipe(["a.jpg", "b.jpg"], text=["Where is the exit?", "What is unusual?"], batch_size=2)
        pipe("kitchen.jpg", text=["Where is the cup?", "What can be eaten?"])  # encodes the image once
        ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.processor, "post_process_segmentation"):
            raise ValueError(
                f"{type(self.model).__name__} with {type(self.processor).__name__} draws no masks, which is what this "
                "pipeline returns. Models that answer in text alone, such as ViP-LLaVA and DiffLMM, are run by "
                'pipeline("image-text-to-text", model=...) and `reasonseg ask`.'
            )

    def __call__(
        self,
        images: Any,
        text: str | list[str] | None = None,
        phrases: str | list[str] | list[list[str]] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs,
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        r"""Segment what `text` asks for or what `phrases` name; exactly one of the two is needed.

        Args:
            images:
                One image (path of a local file or its content, Pillow image, array or tensor, see `load_rgb_image`)
                or a list of them. Instead a list of rows `{"image": ..., "text": ...}`, `{"image": ..., "phrases":
                [...]}`, `(image, text)` or `(image, phrases)`. Also anything else with images or rows that can be
                iterated or indexed: a generator, a data set of torch or `datasets` (further columns are ignored, as
                are labels in `(image, label)`) or a column of one, which are read as they are needed.
            text (`str` or `list[str]`, *optional*):
                One question for all images, one for each (a list, a column or another iterable), or several for the
                one image, which is then encoded once. The model writes its answer, and every `[SEG]` in it gets a
                mask.
            phrases (`str`, `list[str]` or `list[list[str]]`, *optional*):
                What to segment in every image (a string is one phrase), or one list for each row, for which a column
                of a data set is read as well. The answer is forced: one forward pass, one segment per phrase.
            batch_size (`int`, *optional*, defaults to 1): Rows per forward pass.
            num_workers (`int`, *optional*, defaults to 0): Processes that read images ahead.
            mask_format (`str`, *optional*, defaults to `"pil"`):
                `"pil"` for mode L images with 0 and 255, `"rle"` for COCO's compressed RLE (needs pycocotools).
            mask_threshold (`float`, *optional*):
                Mask logit above which a pixel belongs to a segment, 0.0 by the processor's default.
            reject_threshold (`float`, *optional*):
                Reject slots whose probability of being `[SEG]` is lower; without it by the model's own decision.
            processor_kwargs (`dict`, *optional*): Further arguments of the processor.
            kwargs:
                Arguments of generation with `text`: `max_new_tokens` (256 by default), `do_sample`, `num_beams`,
                `generation_config`, `streamer` (with one row), ..., also together as `generate_kwargs`.

        Returns:
            `dict`, a `list` of them where a list, tuple or batched array was given, or an iterator over them for
            anything else that is iterated:
            `generated_text` (`str`) and `segments`, in reading order a list of `{"label", "score", "rejected", "span",
            "box_xyxy", "mask"}`. `score` rates the mask, 0 to 1, see [`Segment`]; `span` is `(start, end)` of its
            token in the text, which reads `[REJ]` where the segment is rejected; `box_xyxy` is `[x1, y1, x2, y2]` in
            pixels of the upright image, and `mask` has its size; both are None for rejected segments. Systems that
            find phrases in the answer add `phrase_extractor`, what found them; those that write coordinates add
            `thinking` and `problems`, what could not be read, and to each segment what was written: `prompt_box_xyxy`,
            `points_xy`, `point_labels`, and `repairs`, what was put right to read it.

        Raises:
            ValueError: Images and questions do not match, or an option has no meaning here.
            TypeError: An option is unknown.
        """
        batch_size = batch_size or self._batch_size or 1
        options = {"num_workers": num_workers, "batch_size": 1, **kwargs}  # a batch is one input of the base class
        images = _split_array(images)
        if _is_iterable(images):
            rows = _rows(images, text, phrases, more_columns=True)
            batches = super().__call__(_batches(rows, batch_size), **options)
            return (result for batch in batches for result in batch)
        text, phrases = _as_list(text), _as_list(phrases, wrapped=True)
        is_list, is_many = isinstance(images, (list, tuple)), _is_many(text, phrases)
        is_shared = is_many and not is_list
        if is_many and text is None:
            phrases = read_phrases(phrases)
        if is_shared:
            images = [self._load_image(images)] * len(phrases if text is None else text)
        rows = list(_rows(images if is_list or is_shared else [images], text, phrases))
        if not rows:
            return []
        batches = list(_batches(rows, batch_size, _SharedImage() if is_shared else None))
        results = [result for batch in super().__call__(batches, **options) for result in batch]
        return results if is_list or is_shared else results[0]

    def stream(self, image: Any, text: str, **kwargs) -> Generator[AnswerEvent, None, None]:
        r"""Answer one question about one image while the answer is written.

        Args:
            image: Path of a local file, Pillow image, array or tensor, see `load_rgb_image`.
            text (`str`): The question.
            kwargs: As in calls: `mask_threshold`, `reject_threshold`, `processor_kwargs` and options of generation.

        Returns:
            `Generator[AnswerEvent]`: [`TextPiece`], [`SegmentDrawn`] right after its `[SEG]` or `[REJ]`, and at last
            [`AnswerEnd`] with the [`SegmentationResult`]. Systems that point by attention, whose phrases are known at
            the end, and IVM, which writes no text, draw right before the end. Close it to stop early.

        Raises:
            ValueError: For several questions, answers or beams, and as calls do.
        """
        if not isinstance(text, str):
            raise ValueError(
                f"text is of type {type(text).__name__}; one question is streamed at a time: give a string."
            )
        if "mask_format" in kwargs:
            raise ValueError("mask_format is an option of calls; the segments of a stream hold arrays.")
        steps = self._sanitize_parameters(**kwargs)
        defaults = (self._preprocess_params, self._forward_params, self._postprocess_params)
        prepare, forward, finish = ({**params, **given} for params, given in zip(defaults, steps, strict=True))
        finish.pop("mask_format", None)
        generation = self._prepare_generate_kwargs(forward.pop("generate_kwargs", None) or {})
        model_inputs = self.preprocess({"rows": [{"image": image, "text": text}], "shared": None}, **prepare)
        inputs = model_inputs["batch"].inputs
        with self.device_placement(), self.get_inference_context()():
            tensors = self.ensure_tensor_on_device(**model_inputs["inputs"])
            streamed = self.model.stream_with_masks(**tensors, **forward, **generation)

        def result(output: Any) -> Any:
            return self.processor.post_process_segmentation(output, inputs, **finish)[0]

        return read_answer(streamed, self.processor, inputs, result, **finish)

    def _sanitize_parameters(
        self,
        mask_format: str | None = None,
        mask_threshold: float | None = None,
        reject_threshold: float | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        local_files_only: bool | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        """Sort the options by the step that takes them. `pipeline()` leaves its `local_files_only` among them."""
        unknown = sorted(set(kwargs) - _GENERATION_NAMES)
        if unknown:
            raise TypeError(
                f"Unknown options {unknown}. Allowed are mask_format, mask_threshold, reject_threshold, "
                "processor_kwargs, generate_kwargs, batch_size, num_workers and the arguments of generation."
            )
        twice = sorted(set(kwargs) & set(generate_kwargs or {}))
        if twice:
            raise ValueError(f"{twice} are given directly and in generate_kwargs. Give each option once.")
        if mask_format is not None and mask_format not in _MASK_FORMATS:
            raise ValueError(f"mask_format is {mask_format!r}. Allowed are {' and '.join(map(repr, _MASK_FORMATS))}.")
        generate_kwargs = {**(generate_kwargs or {}), **kwargs}
        by_step = (
            {"processor_kwargs": processor_kwargs},
            {"reject_threshold": reject_threshold, "generate_kwargs": generate_kwargs or None},
            {"mask_format": mask_format, "mask_threshold": mask_threshold},
        )
        return tuple({name: value for name, value in step.items() if value is not None} for step in by_step)

    def preprocess(self, input_: dict[str, Any], processor_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        """Turn a batch of rows into model inputs; an image that several rows show is prepared once."""
        rows = input_["rows"]
        unique = {_identity(row["image"]): row["image"] for row in rows}
        arguments = {"images": [self._load_image(image) for image in unique.values()]}
        if len(unique) < len(rows):
            indices = {key: index for index, key in enumerate(unique)}
            arguments["image_index"] = [indices[_identity(row["image"])] for row in rows]
        kind = "phrases" if "phrases" in rows[0] else "text"
        arguments[kind] = [row[kind] for row in rows]
        inputs = self.processor(**arguments, return_tensors="pt", **(processor_kwargs or {}))
        return {"inputs": dict(inputs), "batch": _Batch(inputs, kind, input_["shared"])}

    def _load_image(self, image: Any) -> Image.Image:
        """Read an image within the processor's own size limit, where it has one."""
        return load_rgb_image(image, getattr(self.processor, "max_image_pixels", MAX_IMAGE_PIXELS))

    def _forward(
        self,
        model_inputs: dict[str, Any],
        reject_threshold: float | None = None,
        generate_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run one batch: a forward pass for phrases, generation for text."""
        inputs, batch = model_inputs["inputs"], model_inputs["batch"]
        options = {} if reject_threshold is None else {"reject_threshold": reject_threshold}
        if batch.shared is not None and hasattr(self.model, "encode_image"):
            if batch.shared.cache is None:
                batch.shared.cache = self.model.encode_image(**inputs)
            options["image_cache"] = batch.shared.cache
        is_answered = batch.kind == "text" or getattr(batch.inputs, "awaits_answers", False)
        writes_text = is_answered and hasattr(self.model, "generate_with_masks")
        if writes_text:
            options.update(self._prepare_generate_kwargs(generate_kwargs or {}))
            if (self._get_set_generation_params(options).get("num_return_sequences") or 1) != 1:
                raise ValueError(
                    "num_return_sequences is not 1, but the pipeline gives one answer per row. Call the model's "
                    "generate_with_masks for several."
                )
            output = self.model.generate_with_masks(**inputs, **options)
        elif generate_kwargs:
            raise ValueError(f"{sorted(generate_kwargs)} are options of generation, but this call writes no text.")
        else:
            output = self.model(**inputs, **options)
        kept = {name: value for name, value in output.items() if name not in _NOT_POST_PROCESSED}
        return {"output": ModelOutput(kept), "batch": batch}

    def postprocess(
        self, model_outputs: dict[str, Any], mask_format: str = "pil", mask_threshold: float | None = None
    ) -> list[dict[str, Any]]:
        """Turn the model's output for a batch into one dict per row."""
        options = {} if mask_threshold is None else {"mask_threshold": mask_threshold}
        inputs = model_outputs["batch"].inputs
        rows = []
        for result in self.processor.post_process_segmentation(model_outputs["output"], inputs, **options):
            row = {"generated_text": result.text, "segments": [], **result.remarks}
            for segment in result.segments:
                box, mask = segment.box_xyxy, segment.mask
                if mask is not None:
                    mask = segment.rle if mask_format == "rle" else Image.fromarray(mask.astype(np.uint8) * 255)
                box = None if box is None else list(box)
                row["segments"].append(
                    {
                        "label": segment.label,
                        "score": float(segment.score),
                        "rejected": bool(segment.rejected),
                        "span": segment.span,
                        "box_xyxy": box,
                        "mask": mask,
                        **segment.remarks,
                    }
                )
            rows.append(row)
        return rows

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """Save the model and its processor, a complete checkpoint; `kwargs` go to both `save_pretrained`."""
        self.model.save_pretrained(save_directory, **{"save_original_format": False, **kwargs})
        self.processor.save_pretrained(save_directory, **kwargs)


class _SharedImage:
    """Holds the encoded image that all rows of a call show, once the first batch has encoded it."""

    cache: Any = None


@dataclass
class _Batch:
    """What goes past the model. `inputs` are the processor's own, which may know more than their tensors; the base
    class copies what it moves between devices, but not what such an object holds."""

    inputs: Any
    kind: str
    shared: _SharedImage | None


def _is_many(text: Any, phrases: Any) -> bool:
    """Whether questions for several rows are given: in a list, or in a column or another stream of them."""
    asked = phrases if text is None else text
    if asked is None or isinstance(asked, (list, tuple)):
        return asked is not None and (text is not None or any(isinstance(one, (list, tuple)) for one in asked))
    return _is_iterable(asked)


def _rows(images: Any, text: Any, phrases: Any, more_columns: bool = False) -> Iterator[dict[str, Any]]:
    """Match images, whose number may be unknown, with one question for all or with one for each."""
    if not _is_many(text, phrases):
        yield from (_row(image, text, phrases, more_columns) for image in _iterate(images))
        return
    asked = phrases if text is None else text
    counts = [len(given) if hasattr(given, "__len__") else None for given in (images, asked)]
    if None in counts or counts[0] == counts[1]:
        asked = _questions(asked, wrapped=text is None)
        for count, (image, own) in enumerate(zip_longest(_iterate(images), asked, fillvalue=_MISSING)):
            if image is _MISSING or own is _MISSING:
                known = (count + (image is not _MISSING), count + (own is not _MISSING))
                counts = [number if number is not None else least for number, least in zip(counts, known, strict=True)]
                break
            yield _row(image, None, own, more_columns) if text is None else _row(image, own, phrases, more_columns)
        else:
            return
    or_more = " (or more)" if more_columns else ""
    raise ValueError(
        f"{counts[0]} images{or_more} and {counts[1]} {'texts' if phrases is None else 'lists of phrases'} were "
        "given. Give one for each image, or a single one for all."
    )


def _row(item: Any, text: Any, phrases: Any, more_columns: bool = False) -> dict[str, Any]:
    """Check one image with its question; `more_columns` of a data set, and labels in a tuple with it, are ignored."""
    if isinstance(item, tuple) and item:
        item = _named(*item, is_asked=text is not None or phrases is not None)
    image = _stored(item)
    if isinstance(image, Mapping):
        unknown = [] if more_columns else sorted(set(item) - {"image", "text", "phrases"})
        if unknown or "image" not in item:
            raise ValueError(
                f"A row with the entries {sorted(item)} was given. It needs 'image' and one of 'text' and 'phrases'."
            )
        image, text, phrases = _stored(item["image"]), item.get("text", text), item.get("phrases", phrases)
    if (text is None) == (phrases is None):
        given = "neither" if text is None else "both"
        raise ValueError(
            f"Exactly one of `text` and `phrases` is needed, {given} was given. `text` asks a question and lets the "
            "model write its answer; `phrases` names what to segment."
        )
    if text is not None:
        if not isinstance(text, str):
            raise ValueError(f"A text of type {type(text).__name__} was given. Each question must be a string.")
        return {"image": image, "text": text}
    own, *others = read_phrases(phrases)
    if others:
        raise ValueError(
            f"The phrases {phrases!r} were given for one row. It needs one phrase or one list of phrases."
        )
    return {"image": image, "phrases": own}


def _named(image: Any, *others: Any, is_asked: bool) -> dict[str, Any]:
    """The row of a tuple, as data sets of torch give it: an image, and a question or labels of any kind."""
    for other in () if is_asked else others:
        if isinstance(other, str):
            return {"image": image, "text": other}
        if isinstance(other, (list, tuple)) and other and all(isinstance(one, str) for one in other):
            return {"image": image, "phrases": list(other)}
    return {"image": image}


def _stored(image: Any) -> Any:
    """The content of a file, or its path, where `datasets` gives an image as it is stored; else what was given."""
    if isinstance(image, Mapping) and image.keys() == {"bytes", "path"}:
        return image["path"] if image["bytes"] is None else image["bytes"]
    return image


def _batches(
    rows: Iterable[dict[str, Any]], batch_size: int, shared: _SharedImage | None = None
) -> Iterator[dict[str, Any]]:
    """Cut rows into batches; rows with text and rows with phrases take different ways and do not mix."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        if batch and (len(batch) == batch_size or row.keys() != batch[0].keys()):
            yield {"rows": batch, "shared": shared}
            batch = []
        batch.append(row)
    if batch:
        yield {"rows": batch, "shared": shared}


def _identity(image: Any) -> Any:
    """Key that is equal for rows that show the same image."""
    return image if isinstance(image, (str, os.PathLike)) else id(image)


def _is_iterable(images: Any) -> bool:
    """Whether images are to be read one after another, as they are needed."""
    if isinstance(images, (list, tuple, Mapping, ImageSource)):
        return False
    return any(hasattr(images, name) for name in ("__iter__", "__getitem__"))


def _iterate(items: Any) -> Iterator[Any]:
    """Go through anything that can be iterated, or that only knows its length and its items."""
    if not hasattr(items, "__iter__") and hasattr(items, "__len__"):
        return (items[index] for index in range(len(items)))
    return iter(items)


def _as_list(questions: Any, wrapped: bool = False) -> Any:
    """Columns of data sets and other iterables as a list with one entry for each row; the rest as it is."""
    if questions is None or isinstance(questions, (list, tuple)) or not _is_iterable(questions):
        return questions
    return list(_questions(questions, wrapped))


def _questions(asked: Any, wrapped: bool) -> Iterator[Any]:
    """Go through the questions of rows; `wrapped`: a column of phrases has a list or a single one for each row."""
    is_column = wrapped and not isinstance(asked, (list, tuple))
    return ([one] if is_column and isinstance(one, str) else one for one in _iterate(asked))


def _split_array(images: Any) -> Any:
    """A batch of images in one array, or an array of paths, as a list; the rest as it is."""
    is_batch = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
    is_names = isinstance(images, np.ndarray) and images.dtype.kind in "OU"
    return list(images) if is_batch or is_names else images


__all__ = ["ReasoningSegmentationPipeline"]
