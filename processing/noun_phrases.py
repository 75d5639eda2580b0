"""Noun phrases of an English answer, found with spaCy, with rules that need nothing or with anything callable, and the
tokens that spell them."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .token_spans import Span, token_spans, tokens_within


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


# ---- tokens of an answer --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerPhrase:
    """
    A phrase of an answer with its tokens.

    Args:
        text (`str`): The phrase.
        span (`tuple[int, int]`): Its character range in the answer without white space around it.
        core_word (`str`): The word it is about.
        core_span (`tuple[int, int]`): Its range there.
        tokens (`tuple[int, ...]`): Indices of the core word's tokens among the ids of the answer.
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
    Ranges of phrases that a text was made of, in order, after what the text says before them.

    The core of each is what the extractor takes for the core of its first phrase ("cup" of "the red cup on the
    table"), and its last word where it finds none.

    Raises:
        ValueError: If a phrase, or the text before them, is not in the text.
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
            raise ValueError(f"The phrase {phrase!r} is not in the answer {text!r} after the phrases before it.")
        position = start + len(phrase)
        inside = extract(phrase)
        words = phrase.split()
        core = inside[0].core if inside else (phrase.rindex(words[-1]), phrase.rindex(words[-1]) + len(words[-1]))
        found.append(NounPhrase((start, position), (start + core[0], start + core[1])))
    return found


def _shifted(span: Span, lead: int) -> Span:
    return max(0, span[0] - lead), max(0, span[1] - lead)


# ---- the rules ------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*['’]?", re.UNICODE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this that these those some any each every several many few both all another other no more most various "
    "numerous multiple different certain his her its their my our your whose one two three four five six seven eight "
    "nine ten eleven twelve dozen"
)
# After these a word is a noun or an adjective, however it is spelled ("the display"); the others are complete without.
_NOUN_OPENERS = _words("a an the his her its their my our your")
# After these the noun is singular, so that what ends in s is a verb ("a man feeds pigeons").
_SINGULAR_OPENERS = _words("a an this each every another one")
# People in the image. "it" is left out, as most of its uses name nothing ("it is sunny").
_PERSONS = _words("he she they someone somebody everyone everybody")
_OBJECTS = _words("it them him me us itself")
_PRONOUNS = _words(
    "i you it we me him us them who whom which what something anyone anything everything nobody nothing one's there "
    "here himself herself itself themselves others each yes sure"
)
_PREPOSITIONS = _words(
    "of in on at by with without from to into onto over under above below behind beside besides between among along "
    "across around near next against through toward towards upon within inside outside off out up down during for as "
    "like about after before beneath beyond amid amidst atop alongside throughout past via than per"
)
# What follows these need not be a noun ("to run", "as tall", "up high").
_LOOSE_PREPOSITIONS = _words("to as like about than out off up down next past")
_CONJUNCTIONS = _words("and or but nor so yet while when where because although though if since until unless whether")
_VERBS = _words(
    "is are was were be been being am has have had having do does did done can could will would shall should may "
    "might must seems seem appears appear appearing looks look shows show showing shown features feature featuring "
    "depicts depict depicting contains contain containing includes include including displays display displaying "
    "captures capture capturing suggests suggest suggesting indicates indicate adds add adding creates create "
    "creating gives give giving makes make making stands stand sits sit lies lie lays rests rest hangs hang holds "
    "hold rides ride walks walk runs run wears wear plays play eats eat drinks drink carries carry takes take taking "
    "uses use using watches watch waits wait leans lean faces enjoys enjoy surrounds fills covers reads read flies "
    "fly swims swim jumps jump skis surf surfs sleeps sleep goes go comes come gets get puts put keeps keep located "
    "placed parked positioned situated seen visible scattered dressed surrounded filled covered seated made says say "
    "writes write provides provide let's shines shine grows grow works work travels travel gathers gather gathered "
    "sitting standing contributing emphasizing enters flows rises drifts leads allows begins belongs becomes consists "
    "occupies connects separates serves falls drips floats hovers"
)
# Of these the ones that something follows: "enjoys lunch".
_TRANSITIVES = _words(
    "contains contain includes include shows show features feature wears wear eats eat drinks drink carries "
    "carry plays play uses use serves sells enjoys enjoy holds hold provides provide"
)
_ADVERBS = _words(
    "very quite rather too also just only even still already almost nearly together away back not never always often "
    "sometimes perhaps maybe possibly likely well then now again once further closer left's overall additionally "
    "such however meanwhile furthermore moreover respectively especially apart ahead nearby indoors outdoors"
)
_ADJECTIVES = _words(
    "red green blue yellow black white brown grey gray orange pink purple large small big little tall short long old "
    "young new open closed empty full bright dark clear cloudy sunny busy happy ready available close far high low "
    "able aware similar beautiful colorful calm quiet wet dry clean dirty round square wooden narrow wide deep thick "
    "thin heavy soft hot cold warm fresh friendly modern shiny striped bare"
)
_BREAKS = _PRONOUNS | _PREPOSITIONS | _CONJUNCTIONS | _VERBS
# After these an adjective or an adverb follows rather than a thing.
_POSTURES = _words(
    "standing sitting lying looking being leaning hanging going getting coming walking seeming remaining"
)
# Nouns without a determiner though they are no plurals.
_BARE_NOUNS = _words(
    "people men women children grass water snow sand food furniture traffic sky ground fruit bread rice pizza luggage "
    "equipment clothing sheep cattle wood glass fire smoke dirt"
)
_NO_PLURALS = ("ss", "us", "is", "'s", "’s")
_NOUNS_IN_ING = _words(
    "building painting ceiling clothing railing evening morning string spring wedding lighting awning"
)
# What ends in s and is never a verb, also before another noun.
_NOUNS_IN_S = _words("sports clothes glasses stairs arms news lens gas series species canvas pants")
_NOUNS_IN_LY = _words("family butterfly jelly belly lily ally supply reply assembly")


@dataclass
class _Word:
    """
    Args:
        match (`re.Match[str]`): Where it is.
        lower (`str`): It in lower case.
        gap (`str`): Punctuation before it; "." at the beginning of the text and of a line.
        is_verb (`bool`): Whether it must be a verb, though no list has it.
    """

    match: re.Match[str]
    lower: str
    gap: str
    is_verb: bool = False

    @property
    def is_determiner(self) -> bool:
        return self.lower in _DETERMINERS or self.lower.isdigit()

    @property
    def is_adverb(self) -> bool:
        ends_so = self.lower.endswith("ly") and len(self.lower) > 4 and self.lower not in _NOUNS_IN_LY
        return self.lower in _ADVERBS or (ends_so and self.lower not in _ADJECTIVES)

    @property
    def is_past_participle(self) -> bool:
        return self.lower.endswith("ed") and len(self.lower) > 4

    @property
    def is_ing(self) -> bool:
        return self.lower.endswith("ing") and len(self.lower) > 4 and self.lower not in _NOUNS_IN_ING

    @property
    def is_plural(self) -> bool:
        return len(self.lower) > 2 and self.lower.endswith("s") and not self.lower.endswith(_NO_PLURALS)

    @property
    def takes_object(self) -> bool:
        """Whether a noun follows: "of oak", "is drinking milk"."""
        if self.lower in _PREPOSITIONS:
            return self.lower not in _LOOSE_PREPOSITIONS
        return self.is_verb or self.lower in _TRANSITIVES or (self.is_ing and self.lower not in _POSTURES)


def rule_noun_phrases(text: str) -> list[tuple[Span, Span]]:
    """
    Args:
        text (`str`): English.

    Returns:
        `list[tuple[Span, Span]]`: Range of each phrase and of its core word, in reading order.
    """
    words = _read_words(text)
    for start, stop in _runs(words):
        _mark_verb(words[start:stop], _neighbour(words, start - 1, start), _neighbour(words, stop, stop))
    found, list_stop = [], -1
    for start, stop in _runs(words):
        joint = start - 1 if start and words[start - 1].lower in ("and", "or") else start
        is_listed = joint == list_stop and words[joint].gap in ("", ",")
        before, after = _neighbour(words, start - 1, start), _neighbour(words, stop, stop)
        if phrase := _noun_phrase(words[start:stop], before, after, is_listed):
            found.append(((phrase[0].match.start(), phrase[-1].match.end()), phrase[-1].match.span()))
            list_stop = -1 if phrase[0].is_determiner else stop
    return found


def _read_words(text: str) -> list[_Word]:
    words, stop = [], 0
    for match in _WORD.finditer(text):
        between = text[stop : match.start()]
        gap = "." if not words or "\n" in between else between.strip()
        words.append(_Word(match, match[0].lower(), gap))
        stop = match.end()
    return words


def _neighbour(words: list[_Word], index: int, gap_index: int) -> _Word | None:
    """The word at an index, unless there is punctuation before the word at `gap_index`."""
    is_there = 0 <= index < len(words) and not words[gap_index].gap
    return words[index] if is_there else None


def _runs(words: list[_Word]) -> list[Span]:
    """Ranges of words between punctuation, function words and verbs; a determiner opens another one."""
    runs, start = [], 0
    for index, word in enumerate(words):
        run, following = words[start:index], words[index + 1 : index + 2]
        if _joins_adjectives(run, word, following):
            continue
        if word.gap or _opens_run(word, run):
            runs.append((start, index))
            start, run = index, []
        if _ends_run(word, run, _neighbour(words, index - 1, index), following):
            runs.append((start, index))
            start = index + 1
    return [(begin, stop) for begin, stop in [*runs, (start, len(words))] if begin < stop]


def _joins_adjectives(run: list[_Word], word: _Word, following: list[_Word]) -> bool:
    """ "a large, red bus", "an orange and white cat": what is between adjectives ends no phrase."""
    content = [other for other in run if not other.is_determiner]
    if not 0 < len(content) < len(run) or content[-1].lower not in _ADJECTIVES:
        return False
    if not all(other.lower in _ADJECTIVES or other.is_adverb for other in content):
        return False
    return word.gap == "," or (word.lower == "and" and any(other.lower in _ADJECTIVES for other in following))


def _opens_run(word: _Word, run: list[_Word]) -> bool:
    """ "the two dogs" is one phrase; "the dog the man holds" are two; "the second one" is one again."""
    has_content = any(not other.is_determiner for other in run)
    is_person = word.lower in _PERSONS or (bool(run) and run[0].lower in _PERSONS)
    return is_person or (has_content and word.is_determiner and word.lower not in ("one", "that"))


def _ends_run(word: _Word, run: list[_Word], before: _Word | None, following: list[_Word]) -> bool:
    """Whether a word belongs to no phrase."""
    lower = word.lower
    if lower == "that" and (run or any(other.is_determiner for other in following)):
        return True  # "a butterfly that landed", "says that the shop is closed"
    if word.is_determiner or lower in _PERSONS:
        return word.is_verb
    if run and all(other.is_determiner for other in run):
        # "the display", "a show", "a few scattered clouds", "a very tall man"; but "this is", "each holds".
        if lower in _VERBS and not word.is_past_participle:
            return run[-1].lower not in _NOUN_OPENERS
        return word.is_verb or lower in _BREAKS - _VERBS
    if word.is_ing and lower not in _PREPOSITIONS:
        # "a dog sitting", "is eating soup": a participle; "with running shoes": an adjective.
        is_after_verb = before is not None and (before.lower in _VERBS or before.lower in ("and", "while"))
        return bool(run) or lower in _VERBS or is_after_verb
    if word.is_past_participle and not run and before is not None and (before.takes_object or before.lower == "and"):
        # "trees and parked cars"
        return not any(other.lower not in _BREAKS and not other.gap and not other.is_determiner for other in following)
    return word.is_verb or lower in _BREAKS or word.is_adverb


def _mark_verb(run: list[_Word], before: _Word | None, after: _Word | None) -> None:
    """Mark the word of a run that must be a verb: "a man feeds pigeons", "the boy kicks | the ball"."""
    first = run[0].lower
    if before is not None and (before.lower == "that" or before.lower in _PERSONS) and not run[0].is_determiner:
        run[0].is_verb = True  # "she | pours tea"
        return
    is_singular = all(word.lower in _SINGULAR_OPENERS for word in run if word.is_determiner) and run[0].is_determiner
    is_object_next = after is not None and (after.is_determiner or after.lower in _OBJECTS)
    for index, word in enumerate(run):
        if not word.is_plural or word.lower in _NOUNS_IN_S:
            continue
        rest = run[index + 1 :]
        if len(rest) == 1 and is_object_next and not is_singular:
            rest[0].is_verb = True  # "lights illuminate | the square"
            return
        has_subject = any(not other.is_determiner for other in run[:index])
        is_in_between = has_subject and (is_singular or (rest and first in _NOUN_OPENERS))
        if is_in_between or (not rest and is_object_next and (has_subject or not run[0].is_determiner)):
            word.is_verb = True
            return


def _noun_phrase(run: list[_Word], before: _Word | None, after: _Word | None, is_listed: bool) -> list[_Word]:
    """What of a run is a noun phrase; nothing where it is none."""
    if run[0].lower in _PERSONS:
        return run
    # "a woman dressed", "a basket full of": the last word belongs to what follows.
    is_open = after is not None and after.lower in _PREPOSITIONS
    while len(run) > 1 and not run[-2].is_determiner:
        if not run[-1].is_past_participle and not (is_open and run[-1].lower in _ADJECTIVES):
            break
        run = run[:-1]
    core = run[-1]
    if core.is_determiner:
        return run if core.lower == "one" and len(run) > 2 else []
    if core.is_adverb:
        return []
    if run[0].is_determiner or run[0].lower[0].isdigit():
        return run
    if core.lower in _ADJECTIVES or core.is_past_participle or core.is_ing:
        return []
    is_name = core.match[0][0].isupper() and core.gap[-1:] not in (".", "!", "?", ":")
    is_verb_next = after is not None and (after.is_verb or after.lower in _VERBS)
    is_subject = is_verb_next and (before is None or before.lower in _CONJUNCTIONS)
    is_object = before is not None and before.takes_object
    stands_alone = core.is_plural or core.lower in _BARE_NOUNS or is_name or is_subject or is_object or is_listed
    return run if stands_alone else []


__all__ = [
    "EXTRACTORS",
    "AnswerPhrase",
    "CustomExtractor",
    "NounPhrase",
    "PhraseFinder",
    "RuleExtractor",
    "SpacyExtractor",
    "find_given",
    "load_spacy",
    "make_extractor",
    "rule_noun_phrases",
]
