"""Text that is certain as soon as it is written, and the decisions in it."""

from types import SimpleNamespace

from reasonseg.processing.answer_stream import AnswerEnd, SegmentDrawn, TextPiece, read_answer
from reasonseg.processing.segments import Segment, SegmentationResult
from tests.processing.test_processing_reasoning_segmentation import byte_level_tokenizer


def steps(*given):
    for value in given:
        tokens, slot, output = (value if isinstance(value, kind) else None for kind in (list, float, str))
        yield SimpleNamespace(token_ids=tokens, slot=slot, output=output)


def finish(text):
    return SegmentationResult(text, [Segment("late", None)] if text == "late" else [], (4, 4))


def test_characters_of_several_bytes_and_white_space_wait():
    tokenizer = byte_level_tokenizer()
    ids = tokenizer("  a \u00e9 b\n")["input_ids"]
    written = steps(*([one] for one in ids), "a \u00e9 b")
    events = list(read_answer(written, SimpleNamespace(tokenizer=tokenizer), {}, finish))
    pieces = [TextPiece("a", 0), TextPiece(" \u00e9", 1), TextPiece(" b", 3)]
    assert events == [*pieces, AnswerEnd(events[-1].result)]


def test_slots_read_as_was_decided():
    tokenizer = byte_level_tokenizer()
    seg, rej = tokenizer.convert_tokens_to_ids("[SEG]"), 10**6
    questioned = []

    def post_process_slot(slot, answer_ids, inputs, mask_threshold):
        questioned.append((slot, list(answer_ids), inputs, mask_threshold))
        return Segment("it", (0, 5), rejected=slot < 0.5)

    processor = SimpleNamespace(
        tokenizer=tokenizer,
        slot_tokens={seg: "[SEG]", rej: "[NO]"},
        decode_answer=tokenizer.decode,
        post_process_slot=post_process_slot,
    )
    a, b = tokenizer("ab")["input_ids"]
    given = steps([a], [seg], 0.2, [b], [seg], 0.9, "a[NO]b[SEG]")
    events = list(read_answer(given, processor, {"x": 1}, finish, 0.3))
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == "a[NO]b[SEG]"
    drawn = [event for event in events if isinstance(event, SegmentDrawn)]
    assert [(event.index, event.segment.span, event.segment.rejected) for event in drawn] == [
        (0, (1, 5), True),
        (1, (6, 11), False),
    ]
    assert [type(event).__name__ for event in events] == [
        *("TextPiece", "TextPiece", "SegmentDrawn", "TextPiece", "TextPiece", "SegmentDrawn", "AnswerEnd")
    ]
    assert questioned[1] == (0.9, [a, seg, b, seg], {"x": 1}, 0.3)


def test_what_no_token_stands_for_comes_before_the_end_and_closing_goes_through():
    closed = []

    def watched():
        try:
            yield from steps("late")
        finally:
            closed.append(True)

    processor = SimpleNamespace(tokenizer=byte_level_tokenizer())
    events = read_answer(watched(), processor, {}, finish)
    assert next(events) == TextPiece("late", 0)
    assert next(events).segment.label == "late"
    events.close()
    assert closed == [True]
