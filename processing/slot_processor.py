"""Processors of answers with `[SEG]`: phrases with a slot each, and the way back from masks to text and segments."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .chat import GENERIC_WORDING, PromptRow, answer_text, as_list, ask_and_answer, complete_wording
from .chat_processor import ChatProcessor, image_of_row
from .segments import (
    MaskSizes,
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


SEG_TOKEN = "[SEG]"
REJ_TOKEN = "[REJ]"

Span = tuple[int, int]


class ReadAnswer(NamedTuple):
    """An answer, the range of every slot token in it (`None` for one in a question), and the prompt's last turn, which
    asks for it."""

    text: str
    spans: list[Span | None]
    question: str = ""


class SlotProcessor(ChatProcessor):
    """
    Prompts whose answers hold slots, one mask each, for any way to encode them.

    Subclasses call `_set_slots`, and name the image processor that makes the segmenter's view as `_segmenter_view`.
    """

    # The wording of phrases and the token for "not in the image" of a checkpoint that names no others.
    default_wording = GENERIC_WORDING
    default_rej_token = None

    def _set_slots(self, seg_token: str, rej_token: str | None, wording: dict[str, Any] | None) -> None:
        self.seg_token = seg_token
        self.rej_token = self.default_rej_token if rej_token is None else rej_token
        self.wording = complete_wording(wording, self.default_wording)

    def post_process_segmentation(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        mask_threshold: float = 0.0,
        target_sizes: Any = None,
        reject_threshold: float | None = None,
        rows: list[PromptRow] | None = None,
    ) -> list[SegmentationResult]:
        r"""
        Args:
            outputs ([`ReasoningSegmentationOutput`]):
                What the model returned, of a forward pass or of `generate_with_masks`. With several returned sequences
                per prompt, rows belong to inputs in order.
            inputs ([`ChatInputs`], *optional*):
                What the processor returned, needed for a forward pass. From a plain dict prompts and answers are
                decoded, and labels read off the answer; without any, the answer of a generation is found by the chat
                template's words before it.
            mask_threshold (`float`, *optional*, defaults to 0.0):
                Pixels with a larger mask logit belong to the segment.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                (height, width) of the masks, one per image, one per row, or one for all; `original_sizes` of `inputs`
                by default.
            reject_threshold (`float`, *optional*):
                Reject slots whose `slot_probs` is lower, instead of by `outputs.rejected`.
            rows (`list[PromptRow]`, *optional*):
                `inputs.rows`, where `inputs` has lost it on the way.

        Returns:
            `list[SegmentationResult]`: One per row of the output. `text` is the answer; each `[SEG]` and `[REJ]` in it
            is a segment, in reading order: `span` is the character range of the token in `text`, `label` the phrase it
            stands for, `mask` is `None` where it is rejected.

        Raises:
            ValueError: If texts, masks and images do not match; with both counts.
        """
        slot_tokens = self.slot_tokens
        rows = rows if rows is not None else getattr(inputs, "rows", None)
        inputs = {} if inputs is None else inputs
        masks = outputs.get("pred_masks")
        if masks is None:
            raise ValueError(
                "The output has no pred_masks. Call the model's forward with an answer that holds "
                f"{' or '.join(slot_tokens.values())}, or generate_with_masks."
            )
        num_inputs = len(inputs["input_ids"]) if "input_ids" in inputs else len(rows or masks)
        if rows is not None and len(rows) != num_inputs:
            raise ValueError(f"The inputs have {num_inputs} rows, but {len(rows)} prompts are known.")
        source = input_of_rows(len(masks), num_inputs)
        answers = self._answers(outputs, inputs, rows, source)
        sizes = read_mask_sizes(inputs, target_sizes, source, self._segmenter_view)

        results = []
        for row, answer in enumerate(answers):
            if len(answer.spans) != len(masks[row]):
                raise ValueError(
                    f"Row {row} of the output has {len(masks[row])} masks, but its text has {len(answer.spans)} "
                    f"slots: {answer.text!r}. Pass the inputs that led to this output."
                )
            phrases = rows[source[row]].phrases if rows is not None else None
            segments = self._segments(answer, phrases, outputs, row, mask_threshold, reject_threshold, sizes[row])
            text, image = self._write_decisions(answer.text, segments), image_of_row(inputs, source[row])
            results.append(SegmentationResult(text, segments, sizes[row].original, image))
        return results

    def post_process_slot(
        self,
        output: Mapping[str, Any],
        answer_ids: list[int],
        inputs: Mapping[str, Any],
        mask_threshold: float = 0.0,
    ) -> Segment:
        r"""
        The segment of the slot with which an answer ends so far, or of one of the prompt.

        Args:
            output ([`ReasoningSegmentationOutput`]): What a streamer of `generate_with_masks` got for that slot alone.
            answer_ids (`list[int]`): Ids of the answer up to the slot.
            inputs ([`ChatInputs`]): What the processor returned, one row.
            mask_threshold (`float`, *optional*, defaults to 0.0): As in `post_process_segmentation`.

        Returns:
            [`Segment`]: Its `span` lies in the text of `answer_ids`, and is `None` for one of the prompt.
        """
        sizes = read_mask_sizes(inputs, None, [0], self._segmenter_view)[0]
        if int(output["slot_positions"][0][-1]) < len(inputs["input_ids"][0]):
            return self._segments(ReadAnswer("", [None]), None, output, 0, mask_threshold, None, sizes)[0]
        answer = self._written_answer(answer_ids, self._prompt(inputs, getattr(inputs, "rows", None), 0))
        labels = slot_labels(answer.text, answer.spans, answer.question if len(answer.spans) == 1 else None)
        slot = answer._replace(spans=answer.spans[-1:])
        return self._segments(slot, tuple(labels[-1:]), output, 0, mask_threshold, None, sizes)[0]

    @property
    def slot_tokens(self) -> dict[int, str]:
        """The tokens that open a slot, by id: `[SEG]` and, where the model has it, `[REJ]`; a ValueError for one that
        the tokenizer lacks."""
        tokens = [token for token in (self.seg_token, self.rej_token) if token is not None]
        ids = self.tokenizer.convert_tokens_to_ids(tokens)
        for token, token_id in zip(tokens, ids, strict=True):
            if token_id is None or token_id == self.tokenizer.unk_token_id:
                raise ValueError(
                    f"The tokenizer has no token {token!r}. Add it with tokenizer.add_tokens([{token!r}]) and resize "
                    "the model's embeddings, or name another `seg_token` or `rej_token`."
                )
        return dict(zip(ids, tokens, strict=True))

    @property
    def shown_tokens(self) -> set[int]:
        """Ids of special tokens, beside those of slots, that belong to the text of an answer."""
        return set()

    def _word_phrases(self, phrases: list[str]) -> tuple[str, str]:
        reserved = [*self.slot_tokens.values(), self.image_token]
        return ask_and_answer(self.wording, phrases, self.seg_token, reserved)

    def _watched_tokens(self) -> dict[str, Callable[[list[int]], int]]:
        slots = self.slot_tokens
        names = "/".join(slots.values())
        return {**super()._watched_tokens(), names: lambda ids: sum(token_id in slots for token_id in ids)}

    # ---- from outputs to results --------------------------------------------------------------------------------

    def _segments(
        self,
        answer: ReadAnswer,
        phrases: tuple[str | None, ...] | None,
        outputs: Mapping[str, Any],
        row: int,
        mask_threshold: float,
        reject_threshold: float | None,
        sizes: MaskSizes,
    ) -> list[Segment]:
        def values(name: str, default: Any) -> list:
            return [default] * len(answer.spans) if outputs.get(name) is None else as_list(outputs[name][row])

        probabilities, rejected = values("slot_probs", 1.0), values("rejected", False)
        if reject_threshold is not None:
            rejected = [probability < reject_threshold for probability in probabilities]
        labels = phrases
        if phrases is None or len(phrases) != len(answer.spans):
            placed = [span for span in answer.spans if span is not None]
            found = iter(slot_labels(answer.text, placed, answer.question if len(answer.spans) == 1 else None))
            labels = [None if span is None else next(found) for span in answer.spans]
        kept = [slot for slot, is_rejected in enumerate(rejected) if not is_rejected]
        masks = post_process_masks(outputs["pred_masks"][row][kept], *sizes, mask_threshold)
        masks = dict(zip(kept, masks_to_numpy(masks), strict=True))
        slots = zip(labels, answer.spans, values("mask_scores", 0.0), probabilities, rejected, strict=True)
        return [
            Segment(label, span, masks.get(slot), float(score), float(probability), bool(is_rejected))
            for slot, (label, span, score, probability, is_rejected) in enumerate(slots)
        ]

    def _write_decisions(self, text: str, segments: list[Segment]) -> str:
        """The text whose slots read as was decided, which may differ from a given answer."""
        if len(self.slot_tokens) < 2:
            return text
        seg_token, rej_token = self.slot_tokens.values()
        tokens = [rej_token if segment.rejected else seg_token for segment in segments]
        text, spans = replace_tokens(text, [segment.span for segment in segments], tokens)
        for segment, span in zip(segments, spans, strict=True):
            segment.span = span
        return text

    def _answers(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any],
        rows: Sequence[PromptRow] | None,
        source: list[int],
    ) -> list[ReadAnswer]:
        sequences = outputs.get("sequences")
        if sequences is None:
            return [self._given_answer(self._prompt(inputs, rows, row)) for row in source]
        if "input_ids" not in inputs:
            # Where the answer begins is then a question of the words before it.
            return [self._last_answer(PromptRow(self._decode_all(ids))) for ids in as_list(sequences)]
        prompt_length = len(inputs["input_ids"][0])
        answers = [
            self._written_answer(ids[prompt_length:], self._prompt(inputs, rows, row))
            for ids, row in zip(as_list(sequences), source, strict=True)
        ]
        if outputs.get("slot_positions") is None:
            return answers
        drawn = [[position - prompt_length for position in as_list(row)] for row in outputs["slot_positions"]]
        ids = [row[prompt_length:] for row in as_list(sequences)]
        return [self._drawn_slots(*row) for row in zip(answers, ids, drawn, strict=True)]

    def _drawn_slots(self, answer: ReadAnswer, ids: list[int], drawn: list[int]) -> ReadAnswer:
        """The answer with the slots at the positions that were drawn: those of the prompt lie before its beginning,
        and one that ends a generation that was cut short may have no mask."""
        positions = [position for position, token_id in enumerate(ids) if token_id in self.slot_tokens]
        placed = dict(zip(positions, answer.spans, strict=True))
        return answer._replace(spans=[placed.get(position) for position in drawn])

    def decode_answer(self, ids: list[int]) -> str:
        """Decodes the ids of an answer."""
        # Special tokens are no part of an answer, but slots are, should they be special too.
        special = {token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        hidden = (special | set(self.tokenizer.all_special_ids)) - self.slot_tokens.keys() - self.shown_tokens
        return self.tokenizer.decode([token_id for token_id in ids if token_id not in hidden])

    def _written_answer(self, ids: list[int], row: PromptRow) -> ReadAnswer:
        text, spans = decode_with_spans(self.decode_answer, ids, self.slot_tokens)
        return ReadAnswer(text, spans, question_before(row.conversation, row.find_answers(self._markers())))

    def _prompt(self, inputs: Mapping[str, Any], rows: Sequence[PromptRow] | None, row: int) -> PromptRow:
        """The whole prompt of an input row, as it was or, where that is not known, decoded."""
        if rows is not None:
            return rows[row]
        if "input_ids" not in inputs:
            raise ValueError("The text of a forward pass is not in its output. Pass the processor's `inputs`.")
        ids = as_list(inputs["input_ids"])[row]
        if "attention_mask" in inputs:
            mask = as_list(inputs["attention_mask"])[row]
            ids = [token_id for token_id, kept in zip(ids, mask, strict=True) if kept]
        return PromptRow(self._decode_all(ids))

    def _given_answer(self, row: PromptRow) -> ReadAnswer:
        """All answers of a conversation, one per line, with every slot of the conversation."""
        conversation, markers = row.conversation, self._markers()
        slots = find_tokens(conversation, self.slot_tokens.values())
        ranges = row.find_answers(markers)
        if not ranges:
            lead = len(conversation) - len(conversation.lstrip())
            return ReadAnswer(conversation.strip(), [(start - lead, stop - lead) for start, stop in slots])
        parts, spans, offset, question = [], {}, 0, ""
        for number, answer_range in enumerate(ranges, start=1):
            text, begin = answer_text(conversation, answer_range, markers)
            for start, stop in slots:
                if begin <= start and stop <= begin + len(text):
                    spans[start] = (start - begin + offset, stop - begin + offset)
                    question = question_before(conversation, ranges[:number])
            parts.append(text)
            offset += len(text) + 1
        return ReadAnswer("\n".join(parts), [spans.get(start) for start, _ in slots], question)

    def _last_answer(self, row: PromptRow) -> ReadAnswer:
        """The last answer of a conversation; slots of earlier turns have no mask in a generation."""
        markers = self._markers()
        ranges = row.find_answers(markers)
        if not ranges:
            return self._given_answer(row)
        text, _ = answer_text(row.conversation, ranges[-1], markers)
        question = question_before(row.conversation, ranges)
        return ReadAnswer(text, find_tokens(text, self.slot_tokens.values()), question)

    def _decode_all(self, ids: list[int]) -> str:
        """Decodes a prompt with the tokens between turns, without images and padding."""
        hidden = {self.image_token_id, self.tokenizer.pad_token_id}
        return self.tokenizer.decode([token_id for token_id in ids if token_id not in hidden])


# ---- slots in a text ------------------------------------------------------------------------------------------------

# "Sure, they are", "The segmentation results are", "It is": how LISA and GSVA begin before they name something.
_OPENING = re.compile(
    r"^(?:(?:sure|yes|certainly|of course|okay|ok)\b[,.!:]?\s*)?"
    r"(?:(?:they|these|those|here) are\b|(?:here|it|this|that|there) is\b|it's"
    r"|the (?:segmentation )?(?:results?|masks?|segmentations?)(?: results?)? (?:is|are)\b)?[:,]?\s*",
    re.IGNORECASE,
)
# "the mask of {c} is [SEG]", "the segmentation of {c} is [SEG]", "the referred {c} is [SEG]" (GSVA's answers)
_AROUND_PHRASE = re.compile(
    r"^(?:the )?(?:(?:segmentation )?(?:mask|segmentation)(?: result)? (?:of|for)|referred)\s+", re.IGNORECASE
)
_TRAILING = re.compile(r"(?:\s*:|\s+(?:is|are|at|as|with|by))\s*$", re.IGNORECASE)
_LEADING = re.compile(r"^(?:[\s,;.:!?)\]}\"'-]+|(?:and|or|while|is|are)\b\s*)+", re.IGNORECASE)
_SEPARATOR = re.compile(r"[.!?;\n]\s+|\n|,\s+")
# What names nothing by itself; "the mask" and "the result" are the slot, not its phrase.
_NAMELESS = re.compile(
    r"^(?:(?:sure|yes|it|they|this|that|these|those|here|there|he|she|one)"
    r"|(?:the )?(?:segmentation )?(?:masks?|results?|segmentations?|answer|target)(?: results?)?)?$",
    re.IGNORECASE,
)
# "<p> A man </p> [SEG]" (GLaMM, Sa2VA)
_MARKED_PHRASE = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_QUESTIONS = (
    re.compile(
        r"\b(?:can|could) you (?:please )?segment (?:the )?(.+?) in (?:this|the) (?:image|picture|photo)\b", re.I
    ),
    re.compile(r"\bplease segment (?:the )?(.+?) in (?:this|the) (?:image|picture|photo)\b", re.I),
    re.compile(r"\bwhat (?:is|are) (.+?) ?in (?:this|the) (?:image|picture|photo)\b", re.I),
)


def find_tokens(text: str, tokens: Iterable[str]) -> list[Span]:
    """Character ranges of all `tokens` in `text`, in order."""
    return [found.span() for found in re.finditer("|".join(map(re.escape, tokens)), text)]


def question_before(conversation: str, answers: Sequence[Span]) -> str:
    """What stands between the last of the `answers` (ranges) and the one before it; all where there is no answer."""
    begin, end = answers[-2][1] if len(answers) > 1 else 0, answers[-1][0] if answers else None
    return conversation[begin:end]


def decode_with_spans(
    decode: Callable[[list[int]], str], token_ids: list[int], slot_tokens: dict[int, str]
) -> tuple[str, list[Span]]:
    """Decode an answer with `decode`, which leaves out end and padding; returns the text without white space around
    it, and the range of every slot token."""
    whole = decode(token_ids)
    text = whole.strip()
    lead = len(whole) - len(whole.lstrip())
    spans = []
    for position, token_id in enumerate(token_ids):
        if token_id not in slot_tokens:
            continue
        token = slot_tokens[token_id]
        # The text up to a slot is the beginning of the whole text; a letter the model spelled out of "[", "SEG", "]"
        # is not taken for the token.
        stop = len(decode(token_ids[: position + 1])) - lead
        span = (stop - len(token), stop)
        if text[slice(*span)] != token:
            first = text.index(token, spans[-1][1] if spans else 0)
            span = (first, first + len(token))
        spans.append(span)
    return text, spans


def replace_tokens(text: str, spans: Sequence[Span | None], tokens: Sequence[str]) -> tuple[str, list[Span | None]]:
    """Write `tokens` over the spans of a text, which are in order and `None` where a token is elsewhere; returns the
    new text and where the tokens are in it."""
    written, moved, position = "", [], 0
    for span, token in zip(spans, tokens, strict=True):
        if span is None:
            moved.append(None)
            continue
        written += text[position : span[0]] + token
        moved.append((len(written) - len(token), len(written)))
        position = span[1]
    return written + text[position:], moved


def slot_labels(text: str, spans: Sequence[Span], question: str | None = None) -> list[str | None]:
    """The phrase before each slot of an answer ("a dog: [SEG]", "the mask of a dog is [SEG]", "a dog [SEG]"), `None`
    where there is none. An only slot without a name has the phrase that the `question` asks for."""
    starts = [0, *(stop for _, stop in spans)]
    labels = [_phrase_before(text[start : span[0]]) for start, span in zip(starts, spans, strict=False)]
    return [asked_phrase(question)] if labels == [None] and question else labels


def asked_phrase(question: str) -> str | None:
    """The phrase that a question in one of the originals' wordings asks for, as in "What is {} in this image?"."""
    found = next((phrases for pattern in _QUESTIONS if (phrases := pattern.findall(question))), [""])
    return found[-1].strip() or None


def _phrase_before(context: str) -> str | None:
    """The last phrase of the text before a slot, the last one that is marked as such where any is."""
    if marked := _MARKED_PHRASE.findall(context):
        return marked[-1].strip() or None
    phrase = _LEADING.sub("", context.strip())
    phrase = _OPENING.sub("", _TRAILING.sub("", phrase), count=1)
    # In a list the phrase follows the last separator; "Sure, the cup" has lost its comma with the opening.
    phrase = _SEPARATOR.split(phrase)[-1]
    phrase = _OPENING.sub("", _LEADING.sub("", phrase), count=1)
    phrase = _TRAILING.sub("", _AROUND_PHRASE.sub("", phrase)).strip(" \t\n,;:.\"'")
    return None if _NAMELESS.match(phrase) else phrase
