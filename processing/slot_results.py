"""From a model's output back to text and segments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from .chat_processor import image_of_row
from .chat_templates import TurnMarkers, answer_text
from .mask_sizes import MaskSizes, read_mask_sizes
from .prompt_rows import PromptRow
from .segments import Segment, SegmentationResult, post_process_masks
from .slot_spans import Span, decode_with_spans, find_tokens, replace_tokens, slot_labels
from .token_rows import as_list


@dataclass(frozen=True)
class ReadAnswer:
    """
    An answer with its slots.

    Args:
        text (`str`): The answer.
        spans (`list[Span | None]`): Range of every slot token in `text`; `None` for one that stands in a question.
        question (`str`): What stands before the answer.
    """

    text: str
    spans: list[Span | None]
    question: str = ""


@dataclass(frozen=True)
class SlotReader:
    """
    Args:
        tokenizer (`PreTrainedTokenizerBase`): Turns ids into text.
        slot_tokens (`dict[int, str]`): The tokens that open a slot, by id.
        image_token_id (`int`): Id of the image token.
        markers (`TurnMarkers`, *optional*): What the chat template writes around answers.
        segmenter_image_processor: Made the segmenter's view; asked where the inputs do not tell its sizes.
    """

    tokenizer: PreTrainedTokenizerBase
    slot_tokens: dict[int, str]
    image_token_id: int
    markers: TurnMarkers | None
    segmenter_image_processor: Any

    def read(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any] | None,
        rows: Sequence[PromptRow] | None,
        mask_threshold: float,
        target_sizes: Any,
        reject_threshold: float | None,
    ) -> list[SegmentationResult]:
        """See `post_process_segmentation` of the processor."""
        inputs = {} if inputs is None else inputs
        masks = outputs.get("pred_masks")
        if masks is None:
            raise ValueError(
                "The output has no pred_masks. Call the model's forward with an answer that holds "
                f"{' or '.join(self.slot_tokens.values())}, or generate_with_masks."
            )
        num_rows = len(masks)
        num_inputs = len(inputs["input_ids"]) if "input_ids" in inputs else len(rows or masks)
        if rows is not None and len(rows) != num_inputs:
            raise ValueError(f"The inputs have {num_inputs} rows, but {len(rows)} prompts are known.")
        if not num_inputs or num_rows % num_inputs:
            raise ValueError(
                f"The output has {num_rows} rows and the inputs {num_inputs}; pass the inputs that led to this output."
            )
        source = [row // (num_rows // num_inputs) for row in range(num_rows)]
        answers = self._answers(outputs, inputs, rows, source)
        sizes = read_mask_sizes(inputs, target_sizes, source, self.segmenter_image_processor)

        results = []
        for row, answer in enumerate(answers):
            if len(answer.spans) != len(masks[row]):
                raise ValueError(
                    f"Row {row} of the output has {len(masks[row])} masks, but its text has {len(answer.spans)} "
                    f"slots: {answer.text!r}. Pass the inputs that led to this output."
                )
            phrases = rows[source[row]].phrases if rows is not None else None
            segments = self._segments(answer, phrases, outputs, row, mask_threshold, reject_threshold, sizes[row])
            text = self._write_decisions(answer.text, segments)
            image = image_of_row(inputs, source[row])
            results.append(SegmentationResult(text, segments, sizes[row].original, image))
        return results

    def _write_decisions(self, text: str, segments: list[Segment]) -> str:
        """The text whose slots read as was decided, which a given answer or a threshold need not agree with."""
        seg_token, rej_token = [*self.slot_tokens.values(), None][:2]
        if rej_token is None:
            return text
        tokens = [rej_token if segment.rejected else seg_token for segment in segments]
        text, spans = replace_tokens(text, [segment.span for segment in segments], tokens)
        for segment, span in zip(segments, spans, strict=True):
            segment.span = span
        return text

    # ---- text ---------------------------------------------------------------------------------------------------

    def _answers(
        self,
        output: Mapping[str, Any],
        inputs: Mapping[str, Any],
        rows: Sequence[PromptRow] | None,
        source: list[int],
    ) -> list[ReadAnswer]:
        sequences = output.get("sequences")
        if sequences is None:
            return [self._given_answer(self._prompt(inputs, rows, row)) for row in source]
        if "input_ids" not in inputs:
            # Where the answer begins is then a question of the words in front of it.
            return [self._last_answer(PromptRow(self._decode_all(ids))) for ids in as_list(sequences)]
        prompt_length = len(inputs["input_ids"][0])
        answers = []
        for ids, row in zip(as_list(sequences), source, strict=True):
            text, spans = decode_with_spans(self._decode, ids[prompt_length:], self.slot_tokens)
            answers.append(ReadAnswer(text, list(spans), self._prompt(inputs, rows, row).conversation))
        return answers

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
        conversation = row.conversation
        slots = find_tokens(conversation, list(self.slot_tokens.values()))
        ranges = row.find_answers(self.markers)
        if not ranges:
            lead = len(conversation) - len(conversation.lstrip())
            return ReadAnswer(conversation.strip(), [(start - lead, stop - lead) for start, stop in slots])
        parts, spans, offset = [], {}, 0
        for place in ranges:
            text, begin = answer_text(conversation, place, self.markers)
            for start, stop in slots:
                if begin <= start and stop <= begin + len(text):
                    spans[start] = (start - begin + offset, stop - begin + offset)
            parts.append(text)
            offset += len(text) + 1
        question = conversation[: ranges[-1][0]]
        return ReadAnswer("\n".join(parts), [spans.get(start) for start, _ in slots], question)

    def _last_answer(self, row: PromptRow) -> ReadAnswer:
        """The last answer of a conversation; slots of earlier turns have no mask in a generation."""
        ranges = row.find_answers(self.markers)
        if not ranges:
            return self._given_answer(row)
        text, _ = answer_text(row.conversation, ranges[-1], self.markers)
        slots = find_tokens(text, list(self.slot_tokens.values()))
        return ReadAnswer(text, list(slots), row.conversation[: ranges[-1][0]])

    def _decode(self, ids: list[int]) -> str:
        """Decodes an answer without special tokens, but with slots, should they be special too."""
        return self.tokenizer.decode([token_id for token_id in ids if token_id not in self._special_ids])

    @cached_property
    def _special_ids(self) -> set[int]:
        special = {token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return (special | set(self.tokenizer.all_special_ids)) - set(self.slot_tokens)

    def _decode_all(self, ids: list[int]) -> str:
        """Decodes a prompt with the tokens between turns, without images and padding."""
        hidden = {self.image_token_id, self.tokenizer.pad_token_id}
        return self.tokenizer.decode([token_id for token_id in ids if token_id not in hidden])

    def _segments(
        self,
        answer: ReadAnswer,
        phrases: tuple[str, ...] | None,
        output: Mapping[str, Any],
        row: int,
        threshold: float,
        reject_threshold: float | None,
        sizes: MaskSizes,
    ) -> list[Segment]:
        count = len(answer.spans)
        scores = _row_of(output, "mask_scores", row, [0.0] * count)
        probabilities = _row_of(output, "slot_probs", row, [1.0] * count)
        rejected = _row_of(output, "rejected", row, [False] * count)
        if reject_threshold is not None:
            rejected = [probability < reject_threshold for probability in probabilities]
        if phrases is not None and len(phrases) == count:
            labels = list(phrases)
        else:
            placed = [span for span in answer.spans if span is not None]
            found = iter(slot_labels(answer.text, placed, answer.question if count == 1 else None))
            labels = [None if span is None else next(found) for span in answer.spans]
        kept = [place for place in range(count) if not rejected[place]]
        masks = output["pred_masks"][row][kept]
        masks = post_process_masks(masks, sizes.original, sizes.resized, sizes.target, threshold)
        masks = dict(zip(kept, masks.cpu().numpy(), strict=True))
        return [
            Segment(
                label=labels[place],
                span=answer.spans[place],
                mask=masks.get(place),
                score=float(scores[place]),
                slot_prob=float(probabilities[place]),
                rejected=bool(rejected[place]),
            )
            for place in range(count)
        ]


def _row_of(output: Mapping[str, Any], name: str, row: int, default: list) -> list:
    values = output.get(name)
    return default if values is None else as_list(values[row])


__all__ = ["ReadAnswer", "SlotReader"]
