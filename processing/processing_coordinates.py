"""The processor of models that write boxes and points as text: any vision-language model's own, with a format."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from transformers.processing_utils import Unpack

from .chat import PromptRow, as_list, check_phrase
from .chat_processor import ChatInputs, ChatProcessorKwargs, image_of_row
from .composed_processor import ComposedProcessor
from .coordinate_answers import CoordinateAnswer, CoordinateObject
from .coordinate_formats import COORDINATE_FORMATS, FIXED, MAX_OBJECTS, PAPER, CoordinateFormat, CoordinateReader
from .published_answers import ImageSizes
from .segments import (
    Segment,
    SegmentationResult,
    input_of_rows,
    masks_to_numpy,
    post_process_masks,
    read_mask_sizes,
)


if TYPE_CHECKING:
    # So that it travels with a saved processor: files named in such lines are copied.
    from .pipeline_reasoning_segmentation import ReasoningSegmentationPipeline  # noqa: F401


# In place of a size for the model: what the format says.
_BY_FORMAT = "format"
NO_ANSWER = "none of the {} answers could be read"
UNREAD = "{} of the {} answers could not be read and have no vote"
NOTHING_BY_VOTE = "{} of {} answers found nothing"


@dataclass(repr=False)
class CoordinateSegment(Segment):
    """The mask of what was written as a box or as points. `label` and `span` are those of the answer.

    Args:
        prompt_box_xyxy (`tuple[float, float, float, float]`, *optional*): The box that was written, in pixels.
        points_xy (`tuple[tuple[float, float], ...]`): The points, there.
        point_labels (`tuple[int, ...]`): 1 for each point on the object, 0 for one that is not.
        repairs (`tuple[str, ...]`): What was put right, or left out, to read it.
        mask_score (`float`, *optional*):
            The segmenter's estimate as it came, of which `score` is the part within 0..1; `None` without a mask.
    """

    prompt_box_xyxy: tuple[float, float, float, float] | None = None
    points_xy: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[int, ...] = ()
    repairs: tuple[str, ...] = ()
    mask_score: float | None = None

    @property
    def remarks(self) -> dict[str, Any]:
        return {
            "prompt_box_xyxy": None if self.prompt_box_xyxy is None else list(self.prompt_box_xyxy),
            "points_xy": [list(point) for point in self.points_xy],
            "point_labels": list(self.point_labels),
            "repairs": list(self.repairs),
        }


@dataclass(repr=False)
class CoordinateResult(SegmentationResult):
    """An answer with one segment per object, or per phrase where these were asked for.

    Args:
        thinking (`str`): The chain of thought of the text.
        answer_span (`tuple[int, int]`): Where the answer proper is in the text.
        problems (`tuple[str, ...]`): What could not be read, and whether the answer holds no coordinates at all.
        error (`str`, *optional*): What the published code raises on this answer, where it was to be read by that.
        reading (`str`): How it was read, see [`CoordinatesProcessor`].
    """

    thinking: str = ""
    answer_span: tuple[int, int] = (0, 0)
    problems: tuple[str, ...] = ()
    error: str | None = None
    reading: str = FIXED

    @property
    def remarks(self) -> dict[str, Any]:
        said = {"thinking": self.thinking, "problems": list(self.problems)}
        return said if self.error is None else {**said, "error": self.error}

    @property
    def answer(self) -> str:
        """`str`: The text without the chain of thought."""
        return self.text[slice(*self.answer_span)].strip()


class CoordinatesProcessor(ComposedProcessor):
    r"""
    The processor of any vision-language model that writes coordinates, for [`CoordinatesForReasoningSegmentation`].

    Questions are put in the words of the format, in calls as in chat templates. Besides the views of the images it
    returns a `coordinate_reader` that the model asks for the objects of its answer, and where given answers are
    (`answer_ranges`).

    Args:
        vlm_processor (`ProcessorMixin`): Processor of the vision-language model (`Qwen3VLProcessor`, ...).
        segmenter_image_processor ([`SegmenterImageProcessor`], *optional*):
            The segmenter's view; SAM's by default. Masks go straight to the size of the image where it squeezes images
            to a square (SAM 2), unless it says otherwise.
        chat_template (`str` or `dict`, *optional*): Instead of the vision-language model's own.
        coordinate_format (`str`): Name of a format, see `COORDINATE_FORMATS`.
        vlm_image_size (*optional*):
            (height, width) to which images are squeezed, bilinear, for the vision-language model; `None` leaves them
            to its own processor. By default as the format says: 840 x 840 for Seg-Zero, VisionReasoner and StAR.
        reading (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"` reads whatever can be read, within the image, and says what was put right. `"paper"`, or the name
            of a published reader of the format, takes what the published code takes, slips included.
        max_objects (`int`, *optional*, defaults to 120): Further objects of an answer are left out.
        wording (`dict`, *optional*):
            `question` with `{question}`, and `phrases` with `{phrases}`, instead of the format's own; `phrases` only
            for models that name what they find.

    Example:
        ```python
        inputs = processor(images=image, text="What can hold water?", return_tensors="pt")
        output = model.generate_with_masks(**inputs, max_new_tokens=1024)
        result = processor.post_process_segmentation(output, inputs)[0]
        result.thinking, result.problems, [segment.prompt_box_xyxy for segment in result.segments]
        ```
    """

    own_fields = ("coordinate_format", "vlm_image_size", "reading", "max_objects", "wording")
    answers_in_objects = True

    def __init__(
        self,
        vlm_processor=None,
        segmenter_image_processor=None,
        chat_template=None,
        coordinate_format=None,
        vlm_image_size=_BY_FORMAT,
        reading=FIXED,
        max_objects=MAX_OBJECTS,
        wording=None,
        **kwargs,
    ):
        if coordinate_format not in COORDINATE_FORMATS:
            raise ValueError(
                f"coordinate_format is {coordinate_format!r}; allowed are {', '.join(map(repr, COORDINATE_FORMATS))}."
            )
        super().__init__(vlm_processor, segmenter_image_processor, chat_template)
        self.coordinate_format, self.wording = coordinate_format, wording
        known = COORDINATE_FORMATS[coordinate_format]
        size = known.image_size if vlm_image_size == _BY_FORMAT else vlm_image_size
        self.vlm_image_size = None if size is None else [int(side) for side in size]
        if self.vlm_image_size is not None and (len(self.vlm_image_size) != 2 or min(self.vlm_image_size) < 1):
            raise ValueError(f"vlm_image_size is {vlm_image_size!r}; give (height, width) in pixels, or None.")
        if reading not in (FIXED, PAPER, *known.published):
            allowed = ", ".join(map(repr, (FIXED, PAPER, *known.published)))
            raise ValueError(f"reading is {reading!r}; for {coordinate_format!r} allowed are {allowed}.")
        if not isinstance(max_objects, int) or max_objects < 1:
            raise ValueError(f"max_objects is {max_objects!r}; give a whole number of at least 1.")
        self.reading, self.max_objects = reading, max_objects
        self._format = _with_wording(known, wording)
        view = self.segmenter_image_processor
        if view.mask_resizing is None:
            view.mask_resizing = "through_view" if view.pads else "straight"

    # ---- questions ----------------------------------------------------------------------------------------------

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        answer: str | list[str] | None = None,
        phrases: str | list[str] | list[list[str]] | None = None,
        image_index: list[int] | None = None,
        **kwargs: Unpack[ChatProcessorKwargs],
    ) -> ChatInputs:
        r"""
        As in the other processors. `text` is a question, which is put in the words of the format; a text that holds
        the image token is a whole prompt. `phrases` are asked for in one message, which the model answers; several in
        a row only in formats whose answers name what they found. With `answer` the given words are read.

        Returns:
            [`ChatInputs`]: Also `coordinate_reader`, and `answer_ranges` `(rows, 2)` where answers are given.

        Raises:
            ValueError: As in the other processors, and for several phrases that the answer would not tell apart.
        """
        given = {"images": images, "text": text, "answer": answer, "phrases": phrases, "image_index": image_index}
        inputs = self._call_with_ranges(answer is not None, kwargs, **given)
        if inputs.rows is None or "original_sizes" not in inputs:
            return inputs
        sizes = self._image_sizes(inputs)
        index = as_list(inputs["image_index"]) if "image_index" in inputs else range(len(sizes))
        inputs["coordinate_reader"] = CoordinateReader(
            self.decode_answer, self._format, tuple(sizes[image] for image in index), self.reading, self.max_objects
        )
        return inputs

    def word_expression(self, expression: str) -> str:
        """The message for a referring expression, which means one thing that is in the image."""
        return self._format.ask(expression, expression=True)

    def apply_chat_template(self, conversation, chat_template=None, **kwargs):
        """As [`ChatProcessor.apply_chat_template`]; what the user says is put in the words of the format."""
        return super().apply_chat_template(self._worded(conversation), chat_template, **kwargs)

    def _worded(self, conversation: Any) -> Any:
        """Messages, or a list of lists of them, with worded questions."""
        if isinstance(conversation, (list, tuple)):
            return [self._worded(part) for part in conversation]
        if not isinstance(conversation, Mapping) or conversation.get("role") != "user":
            return conversation
        content = conversation["content"]
        if isinstance(content, str):
            return {**conversation, "content": self._format.ask(content)}
        parts = [
            {**part, "text": self._format.ask(part["text"])} if part.get("type") == "text" else part
            for part in content
        ]
        return {**conversation, "content": parts}

    def _prompt_row(
        self, message: str, answer: str | None, apply_template: bool | None, has_images: bool
    ) -> PromptRow:
        if apply_template is None:
            apply_template = self.image_token not in message
        if apply_template:
            message = self._format.ask(message)
        return super()._prompt_row(message, answer, apply_template, has_images)

    def _render(self, messages: list[dict], add_generation_prompt: bool) -> str:
        """Questions are worded before they come here."""
        return super().apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)

    def _word_phrases(self, phrases: list[str]) -> tuple[str, None]:
        cleaned = [self._format.clean(phrase) for phrase in phrases]
        for given, phrase in zip(phrases, cleaned, strict=True):
            check_phrase(given, phrase, [self.image_token])
        if self._format.phrases is not None:
            return self._format.phrases.replace("{phrases}", self._format.separator.join(cleaned)), None
        if len(phrases) > 1:
            raise ValueError(
                f"{len(phrases)} phrases were given for one row. Answers in the format {self.coordinate_format!r} do "
                'not say which phrase an object belongs to; give one phrase per row: [["a cup"], ["a dog"]], or in '
                "the command line one --phrase."
            )
        return self._format.ask(phrases[0]), None

    # ---- views --------------------------------------------------------------------------------------------------

    def _call_vlm_processor(self, conversations, images, options):
        if images is not None and self.vlm_image_size is not None:
            height, width = self.vlm_image_size
            images = [image.resize((width, height), Image.Resampling.BILINEAR) for image in images]
        return super()._call_vlm_processor(conversations, images, options)

    def _image_sizes(self, inputs: Mapping[str, Any]) -> list[ImageSizes]:
        """Of each image its size, and the size of what the vision-language model sees of it."""
        sizes = [(int(height), int(width)) for height, width in inputs["original_sizes"]]
        grids = inputs.get("image_grid_thw")
        if grids is None:
            return [ImageSizes(size, tuple(self.vlm_image_size or size)) for size in sizes]
        side = self.image_processor.patch_size
        return [
            ImageSizes(size, (rows * side, columns * side))
            for size, (_, rows, columns) in zip(sizes, map(as_list, grids), strict=True)
        ]

    @property
    def shown_tokens(self) -> set[int]:
        """`set[int]`: Ids of the special tokens that answers show, those of the format."""
        tokens = self.tokenizer.added_tokens_decoder
        return {index for index, token in tokens.items() if token.content in self._format.kept_tokens}

    def decode_answer(self, ids: list[int]) -> str:
        """Decodes without special tokens, but for those of the format, and without tidying up."""
        special = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        left_out = special - self.shown_tokens
        ids = [index for index in as_list(ids) if index not in left_out]
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    # ---- results ------------------------------------------------------------------------------------------------

    def post_process_segmentation(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        mask_threshold: float = 0.0,
        target_sizes: Any = None,
        reject_threshold: float | None = None,
        rows: list[PromptRow] | None = None,
        union: bool = False,
    ) -> list[CoordinateResult]:
        r"""
        Args:
            outputs ([`CoordinatesOutput`]): What the model returned.
            inputs ([`ChatInputs`]): What the processor returned.
            mask_threshold (`float`, *optional*, defaults to 0.0): Pixels with a larger logit belong to the segment.
            target_sizes (`list[tuple[int, int]]`, *optional*): (height, width) of the masks.
            reject_threshold (`float`, *optional*):
                Mark segments whose score is lower as rejected; they stay in the list without a mask.
            rows (`list[PromptRow]`, *optional*): `inputs.rows`, where `inputs` has lost it on the way.
            union (`bool`, *optional*, defaults to `False`):
                Whether the objects of an answer are one segment, as evaluations of reasoning segmentation count them.

        Returns:
            `list[CoordinateResult]`: One per row of the output. A question has a segment per object, in the order of
            the answer: none where nothing was found, which `problems` says. Phrases have one segment each, in their
            order, of all objects with their label; one that was not found is rejected and has no mask.

        Raises:
            ValueError: If output and inputs do not match.
        """
        if outputs.get("answers") is None or outputs.get("pred_masks") is None:
            raise ValueError(
                "The output has no objects. Call generate_with_masks, or forward with an answer, with all that the "
                "processor returned: coordinate_reader is among it."
            )
        inputs = {} if inputs is None else inputs
        rows = rows if rows is not None else getattr(inputs, "rows", None)
        num_rows = len(outputs["answers"])
        source = input_of_rows(num_rows, len(inputs["input_ids"]) if "input_ids" in inputs else num_rows)
        sizes = read_mask_sizes(inputs, target_sizes, source, self._segmenter_view)
        results = []
        for row, answer in enumerate(outputs["answers"]):
            masks = masks_to_numpy(post_process_masks(outputs["pred_masks"][row], *sizes[row], mask_threshold))
            scores = outputs["mask_scores"][row].float().tolist()
            rejected = outputs["rejected"][row].tolist()
            if reject_threshold is not None:
                rejected = [score < reject_threshold for score in scores]
            segments = [_segment(*parts) for parts in zip(answer.objects, masks, scores, rejected, strict=True)]
            phrases, problems = None if rows is None else rows[source[row]].phrases, answer.problems
            if phrases is not None:
                segments, unclaimed = _per_phrase(phrases, segments)
                problems = (*problems, *unclaimed)
            elif union:
                segments = [] if not segments else [_union(segments, None)]
            results.append(
                CoordinateResult(
                    text=answer.text,
                    segments=segments,
                    image_size=sizes[row].original,
                    image=image_of_row(inputs, source[row]),
                    thinking=answer.thinking,
                    answer_span=answer.span,
                    problems=problems,
                    error=answer.error,
                    reading=self.reading,
                )
            )
        return results

    def vote(self, results: Sequence[CoordinateResult], **thresholds: float) -> CoordinateResult:
        r"""
        One result of many answers to one question that were sampled, as StAR votes on them:

        ```python
        sampled = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "num_return_sequences": 32}
        output = model.generate_with_masks(**inputs, **sampled)
        result = processor.vote(processor.post_process_segmentation(output, inputs))
        ```

        Args:
            results (`Sequence[CoordinateResult]`): What `post_process_segmentation` made of the answers.
            thresholds: `nothing_threshold`, `iou_threshold` and `vote_threshold`, see `vote`.

        Returns:
            [`CoordinateResult`]: Its segments were found by the most answers; `slot_prob` says by which share of them.

        Raises:
            ValueError: If there are no results, or they are of images of several sizes.
        """
        return vote(results, **thresholds)


def _with_wording(known: CoordinateFormat, wording: Mapping[str, str] | None) -> CoordinateFormat:
    """The format with other messages."""
    for name, message in (wording or {}).items():
        if name not in ("question", "phrases") or f"{{{name}}}" not in message:
            raise ValueError(
                f"The wording's {name} is {message!r}. Give `question` with {{question}}, `phrases` with {{phrases}}."
            )
    return replace(known, **(wording or {}))


def _segment(found: CoordinateObject, mask: np.ndarray, score: float, rejected: bool) -> CoordinateSegment:
    return CoordinateSegment(
        label=found.label,
        span=found.span,
        mask=None if rejected else mask,
        score=score,
        rejected=rejected,
        prompt_box_xyxy=found.box_xyxy,
        points_xy=found.points_xy,
        point_labels=found.point_labels,
        repairs=found.repairs,
        mask_score=score,
    )


def _union(segments: list[CoordinateSegment], label: str | None) -> CoordinateSegment:
    """All of them as one, with the mean of their scores; one that stands alone keeps what was written of it."""
    if len(segments) == 1:
        return replace(segments[0], label=label or segments[0].label)
    drawn = [segment for segment in segments if segment.mask is not None]
    score = float(np.mean([segment.mask_score for segment in drawn or segments]))
    return CoordinateSegment(
        label=label,
        span=segments[0].span,
        mask=np.logical_or.reduce([segment.mask for segment in drawn]) if drawn else None,
        score=score,
        rejected=not drawn,
        points_xy=tuple(point for segment in segments for point in segment.points_xy),
        point_labels=tuple(one for segment in segments for one in segment.point_labels),
        repairs=tuple(dict.fromkeys(repair for segment in segments for repair in segment.repairs)),
        mask_score=score,
    )


def _per_phrase(
    phrases: tuple[str, ...], segments: list[CoordinateSegment]
) -> tuple[list[CoordinateSegment], list[str]]:
    """One segment per phrase, and a word on each object that belongs to none. All belong to a phrase that is alone."""
    claimed: list[list[CoordinateSegment]] = [[] for _ in phrases]
    unclaimed = []
    for segment in segments:
        number = 0 if len(phrases) == 1 else _phrase_of(segment.label, phrases)
        if number is None:
            unclaimed.append(f"an object was left out, whose label {segment.label!r} is none of the phrases")
        else:
            claimed[number].append(segment)
    found = [
        _union(own, phrase) if own else CoordinateSegment(label=phrase, slot_prob=0.0, rejected=True)
        for phrase, own in zip(phrases, claimed, strict=True)
    ]
    return found, unclaimed


def _phrase_of(label: str | None, phrases: tuple[str, ...]) -> int | None:
    """Which phrase a label is: the same words, else the only one that it holds or is held by."""
    words = [" ".join(phrase.lower().split()) for phrase in phrases]
    label = " ".join((label or "").lower().split())
    if label in words:
        return words.index(label)
    alike = [number for number, phrase in enumerate(words) if label and (label in phrase or phrase in label)]
    return alike[0] if len(alike) == 1 else None


# ---- votes ----------------------------------------------------------------------------------------------------------


@dataclass
class _Cluster:
    """Masks of one object: (answer, its segment) each; the first one is what others are compared with."""

    members: list[tuple[int, CoordinateSegment]] = field(default_factory=list)

    @property
    def votes(self) -> int:
        """From how many answers they come."""
        return len({answer for answer, _ in self.members})

    @property
    def mean_score(self) -> float:
        return float(np.mean([segment.mask_score for _, segment in self.members]))

    @property
    def best(self) -> tuple[int, CoordinateSegment]:
        """That of the highest score, the largest of several."""
        return max(self.members, key=lambda member: (member[1].mask_score, member[1].mask.sum()))

    @property
    def label(self) -> str | None:
        """What most of them are called."""
        labels = Counter(segment.label for _, segment in self.members if segment.label is not None)
        return labels.most_common(1)[0][0] if labels else None


def vote(
    results: Sequence[CoordinateResult],
    nothing_threshold: float = 0.5,
    iou_threshold: float = 0.85,
    vote_threshold: float = 0.2,
) -> CoordinateResult:
    """
    One result of many answers, as StAR's evaluation votes on them.

    Args:
        results (`Sequence[CoordinateResult]`):
            Of answers to one question about one image that were sampled, in their order; objects are not joined. StAR
            takes 32 with a temperature of 1.0 and top-p of 0.9.
        nothing_threshold (`float`): Share of the answers which have to find nothing, so that nothing is found.
        iou_threshold (`float`): From which IoU on two masks are of one object.
        vote_threshold (`float`): Share of the answers that have to hold an object, unless none has so many.

    Returns:
        `CoordinateResult`: As many objects as most answers have that hold any: those of the most answers, then of the
        highest mean score, each with its best mask. `slot_prob` is its share of the answers. Text and chain of thought
        are those of the answer from which the first mask comes; masks of others have no span in it. Answers that could
        not be read (`error`) have no vote.

    Raises:
        ValueError: If there are no results, or they are of images of several sizes.
    """
    if not results or len({result.image_size for result in results}) != 1:
        sizes = sorted({result.image_size for result in results})
        raise ValueError(f"{len(results)} results of images of {sizes} were given; give those of one question.")
    read = [result for result in results if result.error is None]
    problems = [UNREAD.format(len(results) - len(read), len(results))] if len(read) < len(results) else []
    counts = [len(result.segments) for result in read]
    if not read:
        return replace(results[0], segments=[], problems=(NO_ANSWER.format(len(results)),))
    if counts.count(0) / len(read) >= nothing_threshold:
        said = NOTHING_BY_VOTE.format(counts.count(0), len(read))
        return replace(read[counts.index(0) if 0 in counts else 0], segments=[], problems=(*problems, said))
    clusters: list[_Cluster] = []
    for answer, result in enumerate(read):
        for segment in result.segments:
            if segment.mask is not None:
                _cluster_of(segment.mask, clusters, iou_threshold).members.append((answer, segment))
    frequent = [cluster for cluster in clusters if cluster.votes / len(read) >= vote_threshold] or clusters
    frequent.sort(key=lambda cluster: (cluster.votes, cluster.mean_score), reverse=True)
    number = Counter(count for count in counts if count).most_common(1)[0][0]
    chosen = frequent[:number]
    if not chosen:
        return replace(read[0], segments=[], problems=tuple(problems))
    writer = chosen[0].best[0]
    segments = []
    for cluster in chosen:
        answer, segment = cluster.best
        span = segment.span if answer == writer else None
        segments.append(replace(segment, label=cluster.label, span=span, slot_prob=cluster.votes / len(read)))
    return replace(read[writer], segments=segments, problems=(*read[writer].problems, *problems))


def _cluster_of(mask: np.ndarray, clusters: list[_Cluster], iou_threshold: float) -> _Cluster:
    """The first cluster with whose first mask this one agrees, or a new one."""
    for cluster in clusters:
        first = cluster.members[0][1].mask
        union = np.logical_or(mask, first).sum()
        if union and np.logical_and(mask, first).sum() / union >= iou_threshold:
            return cluster
    clusters.append(_Cluster())
    return clusters[-1]


__all__ = ["CoordinateAnswer", "CoordinateResult", "CoordinateSegment", "CoordinatesProcessor", "vote"]
