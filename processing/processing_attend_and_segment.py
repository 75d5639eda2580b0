"""Attend-and-segment's processor: any vision-language model's own, with the geometry of its tokens and its phrases."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.processing_utils import Unpack

from .attention_grids import LEVELS, attention_grids, grid_inputs
from .chat import GENERIC_WORDING, PromptRow, as_list, ask_and_answer, clean_phrase, complete_wording
from .chat_processor import ChatInputs, ChatProcessorKwargs, image_of_row
from .composed_processor import ComposedProcessor
from .noun_phrases import AnswerPhrase, PhraseFinder, make_extractor
from .phrase_segments import (
    PhraseSegment,
    PhraseSegmentationResult,
    match_categories,
    without_overlaps,
)
from .segments import MaskSizes, input_of_rows, masks_to_numpy, post_process_masks, read_mask_sizes
from .token_spans import token_spans


if TYPE_CHECKING:
    # So that it travels with a saved processor: files named in such lines are copied.
    from .pipeline_reasoning_segmentation import ReasoningSegmentationPipeline  # noqa: F401


# No slot stands for a phrase: its own words do. The question is that of the original's evaluations.
DESCRIPTION_WORDING = {
    **GENERIC_WORDING,
    "question": "Describe the image in detail.",
    "questions": "Describe the image in detail.",
    "answer": "The image shows {items}.",
    "answers": "The image shows {items}.",
    "item": "{phrase}{seg}",
}


class AttendAndSegmentProcessor(ComposedProcessor):
    r"""
    The processor of any vision-language model, for [`AttendAndSegmentForReasoningSegmentation`].

    Besides the views of the images it returns where the image tokens lie in them (`grid_sizes`, `grid_boxes`,
    `grid_tokens`), where given answers are (`answer_ranges`), and a `phrase_finder` that the model asks for the
    phrases of its answer.

    Args:
        vlm_processor (`ProcessorMixin`): Processor of the vision-language model (`LlavaProcessor`, ...).
        segmenter_image_processor ([`SegmenterImageProcessor`], *optional*): The segmenter's view; SAM's by default.
        chat_template (`str` or `dict`, *optional*): Instead of the vision-language model's own.
        phrase_extractor (`str` or `Callable`, *optional*, defaults to `"auto"`):
            What finds noun phrases: `"spacy"` or `"spacy:<pipeline>"` (needs spaCy and an English pipeline), `"rules"`
            (needs nothing), `"auto"` (spaCy where it is installed, else the rules; results name which), a loaded spaCy
            pipeline, or any callable that takes a text and returns phrases, see [`CustomExtractor`]. A callable is not
            saved.
        attention_grid (`str`, *optional*, defaults to `"fine"`):
            `"fine"`, or `"base"` for the overview that models with tiles see besides.
        wording (`dict`, *optional*): Fields of `DESCRIPTION_WORDING` that differ, for calls with `phrases`.

    Example:
        ```python
        inputs = processor(images=image, text="Describe the image in detail.", return_tensors="pt")
        output = model.generate_with_masks(**inputs, max_new_tokens=256)
        result = processor.post_process_segmentation(output, inputs)[0]
        ```
    """

    own_fields = ("wording", "phrase_extractor", "attention_grid")

    def __init__(
        self,
        vlm_processor=None,
        segmenter_image_processor=None,
        chat_template=None,
        phrase_extractor="auto",
        attention_grid="fine",
        wording=None,
        **kwargs,
    ):
        if attention_grid not in LEVELS:
            raise ValueError(f"attention_grid is {attention_grid!r}; allowed are {', '.join(map(repr, LEVELS))}.")
        super().__init__(vlm_processor, segmenter_image_processor, chat_template)
        self.phrase_extractor = phrase_extractor
        self.attention_grid = attention_grid
        self.wording = complete_wording(wording, DESCRIPTION_WORDING)

    @property
    def phrase_extractor(self) -> Any:
        """What finds noun phrases, as it was given."""
        return self.__dict__["_phrase_extractor"]

    @phrase_extractor.setter
    def phrase_extractor(self, choice: Any):
        if choice in ("auto", "spacy") or (isinstance(choice, str) and choice.startswith("spacy:")):
            extractor = None  # loads at its first use: a parser takes its time
        else:
            extractor = make_extractor(choice)
        self.__dict__["_phrase_extractor"] = choice
        self.__dict__["_loaded_extractor"] = extractor

    def extract_phrases(self, text: str) -> list:
        """The noun phrases of a text, as [`NounPhrase`] objects."""
        return list(self._extractor(text))

    @property
    def _extractor(self) -> Any:
        if self.__dict__["_loaded_extractor"] is None:
            self.__dict__["_loaded_extractor"] = make_extractor(self.phrase_extractor)
        return self.__dict__["_loaded_extractor"]

    @property
    def extractor_name(self) -> str:
        """`str`: What finds the phrases, such as `"spacy:en_core_web_lg"` or `"rules"`."""
        return self._extractor.name

    def find_phrases(self, token_ids: list[int]) -> list[AnswerPhrase]:
        """The phrases of an answer given as ids, with their tokens."""
        return PhraseFinder(self.decode_answer, self.extract_phrases)(token_ids)

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
        As in the other processors. `text` alone lets the model write; with `answer` its phrases are found in the given
        words; `phrases` puts what to segment into an answer of its own ("The image shows ...").

        Returns:
            [`ChatInputs`]: Also `grid_sizes` `(images, 2)`, `grid_boxes` `(images, 4)`,
            `grid_tokens` `(images, cells)`, all integers, `phrase_finder`, and `answer_ranges` `(rows, 2)` where
            answers are given.
        """
        has_answers = answer is not None or phrases is not None
        given = {"images": images, "text": text, "answer": answer, "phrases": phrases, "image_index": image_index}
        inputs = self._call_with_ranges(has_answers, kwargs, **given)
        if inputs.rows is None:
            return inputs
        asked = tuple(self._asked(row) for row in inputs.rows)
        inputs["phrase_finder"] = PhraseFinder(
            self.decode_answer, self.extract_phrases, asked, tuple(self._lead(phrases) for phrases in asked)
        )
        return inputs

    def _word_phrases(self, phrases: list[str]) -> tuple[str, str]:
        return ask_and_answer(self.wording, phrases, "", [self.image_token])

    def _asked(self, row: PromptRow) -> tuple[str, ...] | None:
        """The phrases as the answer holds them."""
        return None if row.phrases is None else tuple(clean_phrase(self.wording, phrase) for phrase in row.phrases)

    def _lead(self, phrases: tuple[str, ...] | None) -> str:
        """What the answer says before its phrases."""
        if phrases is None:
            return ""
        template = self.wording["answer" if len(phrases) == 1 else "answers"]
        lead = template.partition("{items}" if "{items}" in template else "{phrases}")[0]
        return lead.replace("{seg}", "").replace("{phrases}", self.wording["separator"].join(phrases))

    def _encode(self, conversations, images, index, options):
        tokens, views = super()._encode(conversations, images, index, options)
        if images is not None and "grid_sizes" not in views:
            views = self._with_grids(views)
        return tokens, views

    def _encode_images(self, images, options):
        return self._with_grids(super()._encode_images(images, options))

    def _with_grids(self, views: dict[str, Any]) -> dict[str, Any]:
        sizes = [(int(height), int(width)) for height, width in views["original_sizes"]]
        grids = attention_grids(self.vlm_processor, views, sizes, self.attention_grid)
        inputs = grid_inputs(grids)
        if isinstance(views["original_sizes"], torch.Tensor):
            inputs = {name: torch.tensor(values) for name, values in inputs.items()}
        return {**views, **inputs}

    def decode_answer(self, ids: list[int]) -> str:
        """Decodes without special tokens and without tidying up, so that text grows with every token."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # ---- results ------------------------------------------------------------------------------------------------

    def post_process_segmentation(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        mask_threshold: float = 0.0,
        target_sizes: Any = None,
        reject_threshold: float | None = None,
        rows: list[PromptRow] | None = None,
        candidates: str = "chosen",
        min_score: float | None = None,
        categories: list[str] | None = None,
        min_similarity: float = 0.7,
        compare: str = "phrase",
        word_vector: Any = None,
        nms_threshold: float | None = None,
        keep_maps: bool = False,
    ) -> list[PhraseSegmentationResult]:
        r"""
        Args:
            outputs ([`AttendAndSegmentOutput`]): What the model returned.
            inputs ([`ReasoningSegmentationInputs`]): What the processor returned.
            mask_threshold (`float`, *optional*, defaults to 0.0): Pixels with a larger logit belong to the segment.
            target_sizes (`list[tuple[int, int]]`, *optional*): (height, width) of the masks.
            reject_threshold (`float`, *optional*):
                Mark segments whose score is lower as rejected; they stay in the list without a mask. Phrases that
                were found nowhere (an empty box as only prompt) are rejected in any case.
            rows (`list[PromptRow]`, *optional*): `inputs.rows`, where `inputs` has lost it on the way.
            candidates (`str`, *optional*, defaults to `"chosen"`):
                `"all"` returns a segment for each of the segmenter's candidate masks, each with its own score.
            min_score (`float`, *optional*): Leave out segments with a lower score (the released demo: 0.85).
            categories (`list[str]`, *optional*):
                Leave out phrases that are similar to none of these; the others get `category` and `similarity`.
            min_similarity (`float`, *optional*, defaults to 0.7): The least similarity that counts.
            compare (`str`, *optional*, defaults to `"phrase"`): What is compared: `"phrase"` or `"core_word"`.
            word_vector (`Callable[[str], np.ndarray]`, *optional*): Vector of a text; spaCy's by default.
            nms_threshold (`float`, *optional*): Leave out masks whose IoU with a better one is greater (demo: 0.75).
            keep_maps (`bool`, *optional*, defaults to `False`): Whether results hold the answer's attention maps.

        Returns:
            `list[PhraseSegmentationResult]`: One per row of the output, a segment per phrase in reading order.

        Raises:
            ValueError: If output and inputs do not match or an option means nothing.
        """
        if candidates not in ("chosen", "all"):
            raise ValueError(f"candidates is {candidates!r}; allowed are 'chosen' and 'all'.")
        if compare not in ("phrase", "core_word"):
            raise ValueError(f"compare is {compare!r}; allowed are 'phrase' and 'core_word'.")
        if outputs.get("phrases") is None or outputs.get("pred_masks") is None:
            raise ValueError(
                "The output has no phrases. Call generate_with_masks, or forward with an answer, with all that the "
                "processor returned: phrase_finder and answer_ranges are among it."
            )
        inputs = {} if inputs is None else inputs
        rows = rows if rows is not None else getattr(inputs, "rows", None)
        num_rows = len(outputs["phrases"])
        num_inputs = len(inputs["input_ids"]) if "input_ids" in inputs else num_rows
        source = input_of_rows(num_rows, num_inputs)
        sizes = read_mask_sizes(inputs, target_sizes, source, self._segmenter_view)
        if categories is not None and word_vector is None:
            word_vector = self._word_vector()

        results = []
        for row in range(num_rows):
            ids = self._answer_ids(outputs, inputs, row, source[row])
            whole, spans = token_spans(self.decode_answer, ids)
            lead = len(whole) - len(whole.lstrip())
            segments = self._phrase_segments(outputs, row, sizes[row], mask_threshold, candidates, reject_threshold)
            if categories is not None:
                match_categories(segments, categories, word_vector, compare)
                segments = [segment for segment in segments if segment.similarity >= min_similarity]
            if min_score is not None:
                segments = [segment for segment in segments if segment.score >= min_score]
            if nms_threshold is not None:
                segments = without_overlaps(segments, nms_threshold)
            given = rows is not None and rows[source[row]].phrases is not None
            results.append(
                PhraseSegmentationResult(
                    text=whole.strip(),
                    segments=segments,
                    image_size=sizes[row].original,
                    image=image_of_row(inputs, source[row]),
                    phrase_extractor="given" if given else self.extractor_name,
                    token_spans=[(max(0, start - lead), max(0, stop - lead)) for start, stop in spans],
                    attention_maps=outputs["attention_maps"][row].float().cpu().numpy() if keep_maps else None,
                    grid_box=tuple(as_list(outputs["grid_boxes"][row])) if keep_maps else None,
                )
            )
        return results

    def _phrase_segments(
        self,
        outputs: Mapping[str, Any],
        row: int,
        sizes: MaskSizes,
        mask_threshold: float,
        candidates: str,
        reject_threshold: float | None,
    ) -> list[PhraseSegment]:
        phrases: list[AnswerPhrase] = outputs["phrases"][row]
        if candidates == "all":
            masks, scores = outputs["candidate_masks"][row], outputs["candidate_scores"][row]
        else:
            masks, scores = outputs["pred_masks"][row][:, None], outputs["mask_scores"][row][:, None]
        drawn = post_process_masks(masks.flatten(0, 1), *sizes, mask_threshold)
        drawn = masks_to_numpy(drawn).reshape(*masks.shape[:2], *sizes.original)
        scores = scores.float().tolist()
        found = outputs["slot_probs"][row].tolist()
        if reject_threshold is not None:
            rejected = [[score < reject_threshold for score in row_scores] for row_scores in scores]
        else:
            flags = outputs["rejected"][row].tolist() if candidates == "chosen" else [False] * len(phrases)
            rejected = [[flag] * masks.shape[1] for flag in flags]
        rejected = [[flag or not found[index] for flag in flags] for index, flags in enumerate(rejected)]
        points, boxes = (_row_lists(outputs.get(name), row) for name in ("points", "boxes"))
        return [
            PhraseSegment(
                label=phrase.text,
                span=phrase.span,
                mask=None if rejected[index][candidate] else drawn[index, candidate],
                score=scores[index][candidate],
                slot_prob=found[index],
                rejected=rejected[index][candidate],
                core_word=phrase.core_word,
                core_span=phrase.core_span,
                point_xy=None if points is None else tuple(points[index]),
                prompt_box_xyxy=tuple(boxes[index]) if boxes is not None and found[index] else None,
                candidate=candidate if candidates == "all" else None,
            )
            for index, phrase in enumerate(phrases)
            for candidate in range(masks.shape[1])
        ]

    def _answer_ids(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any], row: int, source: int) -> list[int]:
        """The ids that the maps of a row belong to."""
        count = len(outputs["attention_maps"][row])
        if outputs.get("sequences") is not None:
            start = len(inputs["input_ids"][0]) if "input_ids" in inputs else None
            if start is None:
                raise ValueError("Where the answer begins is not known. Pass the processor's `inputs`.")
            return as_list(outputs["sequences"][row])[start : start + count]
        if "answer_ranges" not in inputs:
            raise ValueError("The text of a forward pass is not in its output. Pass the processor's `inputs`.")
        start, stop = as_list(inputs["answer_ranges"][source])
        return as_list(inputs["input_ids"][source])[start:stop]

    def _word_vector(self) -> Any:
        extractor = self._extractor
        if not hasattr(extractor, "vector"):
            raise ValueError(
                f"categories needs vectors of words, which the phrase extractor {extractor.name!r} has not. Pass "
                "word_vector=, a callable that takes a text, or use a spaCy pipeline with vectors (en_core_web_lg)."
            )
        return extractor.vector

    def _saved(self, name: str) -> Any:
        """As in the base class; a phrase extractor that is no name is not saved."""
        if name == "phrase_extractor" and not isinstance(self.phrase_extractor, str):
            return "auto"
        return super()._saved(name)


def _row_lists(values: Any, row: int) -> list | None:
    return None if values is None else as_list(values[row])


__all__ = ["AttendAndSegmentProcessor"]
