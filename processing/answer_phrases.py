"""Which tokens of an answer spell which phrase."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .noun_phrases import NounPhrase
from .token_spans import Span, token_spans, tokens_within


@dataclass(frozen=True)
class AnswerPhrase:
    """
    A phrase of an answer with its tokens.

    Args:
        text (`str`): The phrase.
        span (`tuple[int, int]`): Its character range in the answer without white space around it.
        core_word (`str`): The word it is about.
        core_span (`tuple[int, int]`): Its range there.
        tokens (`tuple[int, ...]`): Places of the core word's tokens among the ids of the answer.
    """

    text: str
    span: Span
    core_word: str
    core_span: Span
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class PhraseFinder:
    """
    Finds the phrases of an answer in its ids; goes to the model with its inputs, which calls it once per answer.

    Args:
        decode (`Callable[[list[int]], str]`): Turns ids into text, without special tokens.
        extract (`Callable[[str], list[NounPhrase]]`): Finds phrases in a text.
        given (`tuple`): Per input row the phrases that its answer was made of, `None` where it was not.
        leads (`tuple`): Per input row what such an answer says before its first phrase.
    """

    decode: Callable[[list[int]], str]
    extract: Callable[[str], list[NounPhrase]]
    given: tuple[tuple[str, ...] | None, ...] = ()
    leads: tuple[str, ...] = ()

    def __call__(self, token_ids: Sequence[int], row: int = 0) -> list[AnswerPhrase]:
        """
        Args:
            token_ids (`Sequence[int]`): Ids of an answer, its end token included or not.
            row (`int`): The input row it answers.

        Returns:
            `list[AnswerPhrase]`: In the order of the extractor; phrases whose core has no token of its own are left
            out.
        """
        text, spans = token_spans(self.decode, token_ids)
        given = self.given[row] if row < len(self.given) else None
        before = self.leads[row] if row < len(self.leads) else ""
        phrases = self.extract(text) if given is None else find_given(text, given, self.extract, before)
        lead = len(text) - len(text.lstrip())
        found = []
        for phrase in phrases:
            tokens = tokens_within(phrase.core, spans)
            if tokens:
                found.append(
                    AnswerPhrase(
                        text=text[slice(*phrase.span)],
                        span=_shifted(phrase.span, lead),
                        core_word=text[slice(*phrase.core)],
                        core_span=_shifted(phrase.core, lead),
                        tokens=tokens,
                    )
                )
        return found


def find_given(
    text: str, phrases: Sequence[str], extract: Callable[[str], list[NounPhrase]], before: str = ""
) -> list[NounPhrase]:
    """
    Places of phrases that a text was made of, in order, behind what the text says before them.

    The core of each is what the extractor takes for the core of its first phrase ("cup" of "the red cup on the
    table"), and its last word where it finds none.

    Raises:
        ValueError: If a phrase, or what stands before them, is not in the text.
    """
    before = before.strip()
    position = text.find(before)
    if position < 0:
        raise ValueError(f"The answer {text!r} does not hold {before!r}, which the wording puts before its phrases.")
    position += len(before)
    found = []
    for phrase in phrases:
        start = text.find(phrase, position)
        if start < 0:
            raise ValueError(f"The phrase {phrase!r} is not in the answer {text!r} behind the phrases before it.")
        position = start + len(phrase)
        inside = extract(phrase)
        words = phrase.split()
        core = inside[0].core if inside else (phrase.rindex(words[-1]), phrase.rindex(words[-1]) + len(words[-1]))
        found.append(NounPhrase((start, position), (start + core[0], start + core[1])))
    return found


def _shifted(span: Span, lead: int) -> Span:
    return max(0, span[0] - lead), max(0, span[1] - lead)


__all__ = ["AnswerPhrase", "PhraseFinder", "find_given"]
