"""Where the tokens of an answer are in its text, whatever kind of tokenizer wrote them."""

from collections.abc import Callable, Sequence


Span = tuple[int, int]


def token_spans(decode: Callable[[list[int]], str], token_ids: Sequence[int]) -> tuple[str, list[Span]]:
    """
    Reads off how the text grows with every token, so that nothing about the tokenizer need be known: SentencePiece
    drops the first space, byte fallback and byte-level BPE spell one character with several tokens.

    A character of several bytes belongs to the token that begins it; the tokens that complete it are empty. The same
    holds for special tokens, which decode to nothing.

    Args:
        decode (`Callable[[list[int]], str]`): Turns ids into text, without special tokens.
        token_ids (`Sequence[int]`): Ids of an answer.

    Returns:
        `tuple[str, list[Span]]`: The whole text, unstripped, and the character range of every token.
    """
    ids = list(token_ids)
    texts = [decode(ids[: count + 1]) for count in range(len(ids))]
    # Bytes of an incomplete character decode to one or more replacement characters; the text then gets shorter again.
    # The shortest text from here on is what is certain.
    lengths = [len(text) for text in texts]
    for index in reversed(range(len(lengths) - 1)):
        lengths[index] = min(lengths[index], lengths[index + 1])
    return (texts[-1] if texts else ""), list(zip([0, *lengths], lengths, strict=False))


def tokens_within(span: Span, spans: Sequence[Span]) -> tuple[int, ...]:
    """Indices of the tokens that share a character with `span`; empty tokens belong to nothing."""
    start, stop = span
    return tuple(
        index
        for index, (token_start, token_stop) in enumerate(spans)
        if token_start < stop and token_stop > start and token_stop > token_start
    )


__all__ = ["token_spans", "tokens_within"]
