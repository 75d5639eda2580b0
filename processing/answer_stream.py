"""An answer as it is written: pieces of text, each segment as soon as it is drawn, and the whole result at the end."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from .segments import Segment, SegmentationResult
from .slot_processor import decode_with_spans, replace_tokens


# What bytes decode to that do not make up a character yet.
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class TextPiece:
    """
    Args:
        text (`str`): What was written; all pieces together are the text of the result.
        start (`int`): Characters of the answer before it.
    """

    text: str
    start: int


@dataclass(frozen=True)
class SegmentDrawn:
    """
    Args:
        index (`int`): Which segment of the answer, from 0.
        segment ([`Segment`]):
            As the result will hold it. Its `span` lies in the last piece of text; slots of the question, which come
            first, have none. Rejected segments come, too. Only the label of a first slot without a name of its own
            may change: the question names it while no other slot follows.
    """

    index: int
    segment: Segment


@dataclass(frozen=True)
class AnswerEnd:
    """
    Args:
        result ([`SegmentationResult`]): The same as without streaming.
    """

    result: SegmentationResult


AnswerEvent = TextPiece | SegmentDrawn | AnswerEnd


class _WrittenText:
    """
    The text of ids as they come, in pieces that later ids do not change.

    Args:
        processor: Has a `tokenizer`; `decode_answer` and `slot_tokens` where its answers hold slots; `stop_words`
            where words end them.
    """

    def __init__(self, processor: Any):
        self.tokenizer = processor.tokenizer
        self.decode: Callable[[list[int]], str] = getattr(processor, "decode_answer", self._decode)
        self.slot_tokens: dict[int, str] = getattr(processor, "slot_tokens", {})
        beginnings = {word[:length] for word in getattr(processor, "stop_words", ()) for length in range(len(word))}
        self.may_end: list[str] = sorted(beginnings - {""}, key=len, reverse=True)
        self.ids: list[int] = []
        # Of the slots that are decided: which token says so.
        self.decisions: list[str] = []
        self.length = 0

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def read(self) -> tuple[str, list]:
        """The text so far, whose slots read as was decided, and their ranges in it."""
        text, spans = decode_with_spans(self.decode, self.ids, self.slot_tokens)
        return replace_tokens(text, spans, self.decisions)

    def add(self, token_ids: Iterable[int]) -> Iterator[TextPiece]:
        self.ids += token_ids
        if self.ids[-1] not in self.slot_tokens:  # its text waits for what is decided
            text = self.read()[0].rstrip(_INCOMPLETE).rstrip()
            if getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
                text = text.rpartition(" ")[0]  # the next token may take the space away
            if begun := next((one for one in self.may_end if text.endswith(one)), None):
                text = text.removesuffix(begun).rstrip()
            yield from self.up_to(text)

    def up_to(self, text: str) -> Iterator[TextPiece]:
        """The piece with which what was given away becomes `text`."""
        if len(text) > self.length:
            yield TextPiece(text[self.length :], self.length)
            self.length = len(text)


class AnswerReader:
    """
    Makes events of what happens in the generation of one row.

    Args:
        processor: The processor of the model.
        inputs ([`ChatInputs`]): What the processor returned for this row.
        mask_threshold (`float`): See `post_process_segmentation`.

    Attributes:
        ids (`list[int]`): What was written.
    """

    def __init__(self, processor: Any, inputs: Mapping[str, Any], mask_threshold: float = 0.0):
        self.processor, self.inputs, self.mask_threshold = processor, inputs, mask_threshold
        self._written, self._drawn = _WrittenText(processor), 0

    @property
    def ids(self) -> list[int]:
        return self._written.ids

    def read(self, step: Any) -> Iterator[AnswerEvent]:
        """Of a [`StreamStep`] with tokens or a slot."""
        written = self._written
        if step.token_ids is not None:
            yield from written.add(step.token_ids)
            return
        segment = self.processor.post_process_slot(step.slot, written.ids, self.inputs, self.mask_threshold)
        if segment.span is not None:
            token_of = list(written.slot_tokens.values())
            written.decisions.append(token_of[-1] if segment.rejected else token_of[0])
            text, spans = written.read()
            yield from written.up_to(text)
            segment = replace(segment, span=spans[-1])
        self._drawn += 1
        yield SegmentDrawn(self._drawn - 1, segment)

    def finish(self, result: SegmentationResult) -> Iterator[AnswerEvent]:
        """What the result holds beyond what was read; segments that no slot of the text stands for are among it."""
        yield from self._written.up_to(result.text)
        yield from (SegmentDrawn(*found) for found in list(enumerate(result.segments))[self._drawn :])
        yield AnswerEnd(result)


def read_answer(
    steps: Generator[Any, None, None],
    processor: Any,
    inputs: Mapping[str, Any],
    finish: Callable[[Any], SegmentationResult],
    mask_threshold: float = 0.0,
) -> Generator[AnswerEvent, None, None]:
    """
    Args:
        steps (`Generator[StreamStep]`):
            What a generation of one row does, as `stream_with_masks` of the model says it.
        processor, inputs, mask_threshold: As for [`AnswerReader`].
        finish (`Callable`): Makes the result of the output.

    Returns:
        `Generator[AnswerEvent]`: Segments that no slot of the text stands for come before the end.
    """
    reader = AnswerReader(processor, inputs, mask_threshold)
    with closing(steps):
        for step in steps:
            yield from reader.read(step) if step.output is None else reader.finish(finish(step.output))


__all__ = ["AnswerEnd", "AnswerEvent", "AnswerReader", "SegmentDrawn", "TextPiece", "read_answer"]
