"""Where slot tokens stand in an answer and which phrase each belongs to."""

import re
from collections.abc import Callable, Sequence


Span = tuple[int, int]

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
_QUESTIONS = (
    re.compile(
        r"\b(?:can|could) you (?:please )?segment (?:the )?(.+?) in (?:this|the) (?:image|picture|photo)\b", re.I
    ),
    re.compile(r"\bplease segment (?:the )?(.+?) in (?:this|the) (?:image|picture|photo)\b", re.I),
    re.compile(r"\bwhat (?:is|are) (.+?) ?in (?:this|the) (?:image|picture|photo)\b", re.I),
)


def find_tokens(text: str, tokens: Sequence[str]) -> list[Span]:
    """Character ranges of all `tokens` in `text`, in order."""
    return [found.span() for found in re.finditer("|".join(map(re.escape, tokens)), text)]


def decode_with_spans(
    decode: Callable[[list[int]], str], token_ids: list[int], slot_tokens: dict[int, str]
) -> tuple[str, list[Span]]:
    """
    Args:
        decode (`Callable`): Turns ids into text; leaves out end and padding, keeps slot tokens.
        token_ids (`list[int]`): Ids of an answer.
        slot_tokens (`dict[int, str]`): Text of each slot token by id.

    Returns:
        `tuple[str, list[Span]]`: The text without white space around it, and the range of every slot token.
    """
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
    """
    Writes one of `tokens` over each span.

    Args:
        text (`str`): An answer.
        spans (`Sequence[Span | None]`): Character ranges in it, in order; `None` for what does not stand in it.
        tokens (`Sequence[str]`): What shall stand there, one for each.

    Returns:
        `tuple[str, list[Span | None]]`: The new text, and where the tokens stand in it.
    """
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
    """
    Reads off which phrase each slot belongs to.

    Args:
        text (`str`): An answer.
        spans (`Sequence[Span]`): Character ranges of its slot tokens, in order.
        question (`str`, *optional*):
            What the user asked. Where the answer has one slot and does not name it, the phrase asked for is its label.

    Returns:
        `list[str | None]`: The phrase in front of each slot ("a dog: [SEG]", "the mask of a dog is [SEG]", "a dog
        [SEG]"), `None` where there is none.
    """
    labels, previous_stop = [], 0
    for start, stop in spans:
        labels.append(_phrase_before(text[previous_stop:start]))
        previous_stop = stop
    if labels == [None] and question:
        labels = [asked_phrase(question)]
    return labels


def asked_phrase(question: str) -> str | None:
    """The phrase that a question in one of the originals' wordings asks for, as in "What is {} in this image?"."""
    for pattern in _QUESTIONS:
        if found := pattern.findall(question):
            return found[-1].strip() or None
    return None


def _phrase_before(context: str) -> str | None:
    """The last phrase of the text between two slots."""
    phrase = _LEADING.sub("", context.strip())
    phrase = _OPENING.sub("", _TRAILING.sub("", phrase), count=1)
    # In a list the phrase follows the last separator; "Sure, the cup" has lost its comma with the opening.
    phrase = _SEPARATOR.split(phrase)[-1]
    phrase = _OPENING.sub("", _LEADING.sub("", phrase), count=1)
    phrase = _TRAILING.sub("", _AROUND_PHRASE.sub("", phrase)).strip(" \t\n,;:.\"'")
    return None if _NAMELESS.match(phrase) else phrase


__all__ = ["asked_phrase", "decode_with_spans", "find_tokens", "replace_tokens", "slot_labels"]
