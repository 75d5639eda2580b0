"""Finds the noun phrases of an English answer: with spaCy, with rules that need nothing, or with anything callable."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .noun_phrase_rules import rule_noun_phrases


Span = tuple[int, int]
EXTRACTORS = ("auto", "spacy", "rules")


@dataclass(frozen=True)
class NounPhrase:
    """
    A phrase in a text.

    Args:
        span (`tuple[int, int]`): Character range `[start, end)` of the whole phrase ("a brown dog").
        core (`tuple[int, int]`): Range of the word it is about ("dog"), whose tokens point.
    """

    span: Span
    core: Span


PhraseExtractor = Callable[[str], Iterable[Any]]


class RuleExtractor:
    """
    Our own rules: determiners, numbers and function words bound a phrase, its last word is its core.

    A stand-in where no parser is installed, and named so in results. On the 200 sentences of
    `tests/processing/image_answers.txt` 94 % of what it finds and of what spaCy's small pipeline finds is the same
    (F1 of exact ranges). Where a verb and a noun are spelled alike and no list knows better it may take one for the
    other. Of the pronouns it returns those for people ("she"), but no "it", which often names nothing.
    """

    name = "rules"

    def __call__(self, text: str) -> list[NounPhrase]:
        """The noun phrases of `text`, in reading order."""
        return [NounPhrase(span, core) for span, core in rule_noun_phrases(text)]


class SpacyExtractor:
    """
    The noun chunks of a spaCy pipeline; the core is the root of the chunk.

    Args:
        pipeline: A loaded pipeline with a parser, or the name of an installed one; by default the largest installed
            English one (the released code uses `en_core_web_lg`).
    """

    def __init__(self, pipeline: Any = None):
        self.pipeline = load_spacy(pipeline) if pipeline is None or isinstance(pipeline, str) else pipeline
        meta = getattr(self.pipeline, "meta", {})
        self.name = f"spacy:{meta.get('lang', '')}_{meta.get('name', 'pipeline')}".replace(":_", ":")

    def __call__(self, text: str) -> list[NounPhrase]:
        """The noun chunks of `text`, in reading order."""
        return list(_from_document(self.pipeline(text)))

    def vector(self, text: str) -> Any:
        """
        The pipeline's vector of a text.

        Raises:
            ValueError: The pipeline has no word vectors (`_sm`, `_trf`); what it gives instead depends on its parser.
        """
        if not self.pipeline.vocab.vectors_length:
            raise ValueError(
                f"The pipeline {self.name} has no word vectors, so nothing can be compared by them. Take one with: "
                "python -m spacy download en_core_web_lg. Or pass word_vector=, a callable that takes a text."
            )
        return self.pipeline(text).vector


class CustomExtractor:
    """
    Somebody else's callable. It takes a text and returns phrases: a spaCy document, [`NounPhrase`] objects, or tuples
    `(start, end)` or `(start, end, core_start, core_end)` of characters.
    """

    def __init__(self, function: PhraseExtractor):
        self.function = function
        named = getattr(function, "name", None) or getattr(function, "__name__", None) or type(function).__name__
        self.name = f"custom:{named}"

    def __call__(self, text: str) -> list[NounPhrase]:
        """
        The phrases of `text`, as the callable orders them.

        Raises:
            ValueError: If it returns something else, or a range outside of the text.
        """
        found = self.function(text)
        if hasattr(found, "noun_chunks"):
            return list(_from_document(found))
        return [_read_phrase(phrase, text) for phrase in found]


def load_spacy(name: str | None = None) -> Any:
    """
    Load an installed spaCy pipeline.

    Args:
        name (`str`, *optional*): Its name; the largest installed English pipeline with a parser by default.

    Raises:
        ImportError: spaCy or the pipeline is not installed.
    """
    try:
        import spacy
    except ImportError as error:
        raise ImportError(
            "Noun phrases by spaCy need the package spacy and an English pipeline. Install both: pip install spacy; "
            'python -m spacy download en_core_web_lg. Or choose phrase_extractor="rules".'
        ) from error
    if name is not None:
        try:
            return spacy.load(name)
        except OSError as error:
            raise ImportError(
                f"There is no spaCy pipeline {name!r} here. Install it: python -m spacy download {name}."
            ) from error
    # The released code uses the large one. A transformer pipeline parses better, but has no word vectors.
    sizes = ("lg", "md", "trf", "sm")
    ranks = {f"en_core_web_{size}": rank for rank, size in enumerate(sizes)}
    installed = [model for model in spacy.util.get_installed_models() if model.startswith("en_")]
    installed.sort(key=lambda model: (ranks.get(model, len(sizes)), model))
    for model in installed:
        pipeline = spacy.load(model)
        if pipeline.has_pipe("parser"):
            return pipeline
    raise ImportError(
        "spaCy is installed, but no English pipeline with a parser is. Install one: python -m spacy download "
        'en_core_web_lg. Or choose phrase_extractor="rules".'
    )


def make_extractor(choice: Any = "auto") -> RuleExtractor | SpacyExtractor | CustomExtractor:
    """
    Args:
        choice (`str` or `Callable`):
            `"spacy"`, `"spacy:<pipeline>"`, `"rules"`, `"auto"` (spaCy where an English pipeline is installed, else
            the rules), a spaCy pipeline, or any other callable, see [`CustomExtractor`]. The `name` of the result says
            what was taken, and results repeat it.

    Raises:
        ImportError: spaCy was asked for by name and is not installed.
        ValueError: There is no such extractor.
    """
    if isinstance(choice, (RuleExtractor, SpacyExtractor, CustomExtractor)):
        return choice
    if choice == "rules":
        return RuleExtractor()
    if choice == "spacy":
        return SpacyExtractor()
    if isinstance(choice, str) and choice.startswith("spacy:"):
        return SpacyExtractor(choice.removeprefix("spacy:"))
    if choice == "auto":
        try:
            return SpacyExtractor()
        except ImportError:
            return RuleExtractor()
    if callable(choice) and not isinstance(choice, (str, type)):
        is_pipeline = hasattr(choice, "meta") and hasattr(choice, "has_pipe")
        return SpacyExtractor(choice) if is_pipeline else CustomExtractor(choice)
    raise ValueError(
        f"phrase_extractor is {choice!r}. Allowed are {', '.join(map(repr, EXTRACTORS))}, 'spacy:<pipeline>', or a "
        "callable that takes a text and returns phrases."
    )


def _from_document(document: Any) -> Iterable[NounPhrase]:
    for chunk in document.noun_chunks:
        root = chunk.root
        yield NounPhrase((chunk.start_char, chunk.end_char), (root.idx, root.idx + len(root.text)))


def _read_phrase(phrase: Any, text: str) -> NounPhrase:
    if not isinstance(phrase, NounPhrase):
        edges = phrase if isinstance(phrase, (tuple, list)) else ()
        if len(edges) not in (2, 4) or not all(isinstance(edge, int) for edge in edges):
            raise ValueError(
                f"The phrase extractor returned {phrase!r}. Each phrase must be a NounPhrase or a tuple (start, end) "
                "or (start, end, core_start, core_end)."
            )
        phrase = NounPhrase((edges[0], edges[1]), (edges[-2], edges[-1]))
    for start, stop in (phrase.span, phrase.core):
        if not 0 <= start < stop <= len(text):
            raise ValueError(
                f"The phrase extractor returned the range {start}..{stop} for a text of {len(text)} characters."
            )
    return phrase


__all__ = [
    "EXTRACTORS",
    "CustomExtractor",
    "NounPhrase",
    "RuleExtractor",
    "SpacyExtractor",
    "load_spacy",
    "make_extractor",
]
