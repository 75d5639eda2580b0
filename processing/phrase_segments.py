"""Segments of the phrases of an answer, and which of them are kept."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .segments import Segment, SegmentationResult


WordVector = Callable[[str], np.ndarray]
_ARTICLE = re.compile("^(?:the|an|a) ")


@dataclass(repr=False)
class PhraseSegment(Segment):
    """The mask of a noun phrase. `label` and `span` are the phrase and its range in the answer.

    Args:
        core_word (`str`, *optional*): The word the phrase is about, whose tokens pointed.
        core_span (`tuple[int, int]`, *optional*): Its character range in the text of the result.
        point_xy (`tuple[int, int]`, *optional*): The point prompt in pixels of the image.
        prompt_box_xyxy (`tuple[int, int, int, int]`, *optional*): The box prompt there.
        candidate (`int`, *optional*): Which of the segmenter's candidates the mask is, where all were asked for.
        category (`str`, *optional*): The most similar of the given categories.
        similarity (`float`, *optional*): Cosine between the phrase and that category.
        mask_score (`float`, *optional*):
            The segmenter's estimate as it came, of which `score` is the part within 0..1: it ranks masks that are all
            rated 1 or more.
    """

    core_word: str | None = None
    core_span: tuple[int, int] | None = None
    point_xy: tuple[int, int] | None = None
    prompt_box_xyxy: tuple[int, int, int, int] | None = None
    candidate: int | None = None
    category: str | None = None
    similarity: float | None = None
    mask_score: float | None = None

    def __post_init__(self):
        if self.mask_score is None:
            self.mask_score = float(self.score)
        super().__post_init__()


@dataclass(repr=False)
class PhraseSegmentationResult(SegmentationResult):
    """An answer with one segment per phrase.

    Args:
        phrase_extractor (`str`): What found the phrases: `"spacy:en_core_web_lg"`, `"rules"`, `"custom:..."`, or
            `"given"` where they were asked for.
        token_spans (`list[tuple[int, int]]`): Character range of every token of the answer in `text`.
        attention_maps (`np.ndarray` of shape `(tokens, grid_rows, grid_columns)`, *optional*):
            What each token looked at; raw. None unless it was asked for.
        grid_box (`tuple[float, float, float, float]`, *optional*):
            What part of the image the maps cover, `(x1, y1, x2, y2)` in its pixels.
    """

    phrase_extractor: str = ""
    token_spans: list[tuple[int, int]] = field(default_factory=list)
    attention_maps: np.ndarray | None = None
    grid_box: tuple[float, float, float, float] | None = None

    @property
    def remarks(self) -> dict[str, Any]:
        return {"phrase_extractor": self.phrase_extractor}


def match_categories(
    segments: Sequence[PhraseSegment], categories: Sequence[str], vector: WordVector, by: str = "phrase"
) -> None:
    """
    Notes for each segment the category that means about the same: the greatest cosine of the vectors of both, lower
    case and without article.

    Args:
        segments (`Sequence[PhraseSegment]`): `category` and `similarity` are set.
        categories (`Sequence[str]`): Names; of equally similar ones the first is taken.
        vector (`Callable[[str], np.ndarray]`): Vector of a text. One of zeros is similar to nothing.
        by (`str`): What is compared: `"phrase"`, as the released demo does, or `"core_word"`, as its COCO evaluation.

    Raises:
        ValueError: If there is no category.
    """
    if not categories:
        raise ValueError("categories is empty. Name at least one, or leave it out.")
    known = [_unit_vector(name, vector) for name in categories]
    for segment in segments:
        text = segment.core_word if by == "core_word" else segment.label
        own = _unit_vector(text or "", vector)
        similarities = [float(own @ other) for other in known]
        best = int(np.argmax(similarities))
        segment.category, segment.similarity = categories[best], similarities[best]


def non_maximum_suppression(
    masks: Sequence[np.ndarray], scores: Sequence[float], iou_threshold: float = 0.75
) -> list[int]:
    """Drop bool masks whose IoU with a better one is above the threshold; return the indices of others, in order."""
    kept: list[int] = []
    for index in sorted(range(len(masks)), key=lambda index: -scores[index]):
        if all(_iou(masks[index], masks[other]) <= iou_threshold for other in kept):
            kept.append(index)
    return sorted(kept)


def without_overlaps(segments: Sequence[PhraseSegment], iou_threshold: float) -> list[PhraseSegment]:
    """The segments that `non_maximum_suppression` keeps; rejected ones, which have no mask, stay."""
    drawn = [segment for segment in segments if segment.mask is not None]
    kept = non_maximum_suppression(
        [segment.mask for segment in drawn], [segment.mask_score for segment in drawn], iou_threshold
    )
    chosen = {id(drawn[index]) for index in kept}
    return [segment for segment in segments if segment.mask is None or id(segment) in chosen]


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    shared = np.count_nonzero(first & second)
    # the small number as in the released code: two empty masks do not overlap
    return shared / (np.count_nonzero(first) + np.count_nonzero(second) - shared + 1e-6)


def _unit_vector(text: str, vector: WordVector) -> np.ndarray:
    """The vector of a text in lower case and without article, of length 1."""
    values = np.asarray(vector(_ARTICLE.sub("", text.lower())), dtype=np.float64)
    return values / max(float(np.linalg.norm(values)), 1e-8)


__all__ = [
    "PhraseSegment",
    "PhraseSegmentationResult",
    "match_categories",
    "non_maximum_suppression",
    "without_overlaps",
]
