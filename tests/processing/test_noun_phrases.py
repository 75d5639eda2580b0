"""Noun phrases by rules, by a parser, by anything callable; and which tokens spell them."""

import random
import re
import sys
from types import SimpleNamespace

import pytest

from reasonseg.processing.noun_phrases import (
    NounPhrase,
    PhraseFinder,
    RuleExtractor,
    SpacyExtractor,
    find_given,
    make_extractor,
)
from reasonseg.processing.token_spans import token_spans, tokens_within


CAPTIONS = {
    "The image features a brown dog sitting on a wooden bench next to a person.": [
        ("The image", "image"),
        ("a brown dog", "dog"),
        ("a wooden bench", "bench"),
        ("a person", "person"),
    ],
    "A café table with 3 pizzas, and the woman's umbrella.": [
        ("A café table", "table"),
        ("3 pizzas", "pizzas"),
        ("the woman's umbrella", "umbrella"),
    ],
    " A clock\nand two cars": [("A clock", "clock"), ("two cars", "cars")],
    "A group of people stand around a large, red bus parked on the street.": [
        ("A group", "group"),
        ("people", "people"),
        ("a large, red bus", "bus"),
        ("the street", "street"),
    ],
    "There are several cars, trees and traffic lights in the background.": [
        ("several cars", "cars"),
        ("trees", "trees"),
        ("traffic lights", "lights"),
        ("the background", "background"),
    ],
    "A smiling woman dressed in white is riding a horse near Paris.": [
        ("A smiling woman", "woman"),
        ("a horse", "horse"),
        ("Paris", "Paris"),
    ],
    "It is quietly walking.": [],
    "This is a dog.": [("a dog", "dog")],
    "There is a bus that is parked.": [("a bus", "bus")],
    "Both are on. One of them is red, the other is black.": [],
    "Each holds a ball near the display.": [("a ball", "ball"), ("the display", "display")],
    "Rain is falling, and Dinner is ready.": [("Rain", "Rain"), ("Dinner", "Dinner")],
    "A slice of chocolate cake with whipped cream, made of oak": [
        ("A slice", "slice"),
        ("chocolate cake", "cake"),
        ("whipped cream", "cream"),
        ("oak", "oak"),
    ],
    "They are drinking milk. She pours tea; he is eating cereal and fruit.": [
        ("They", "They"),
        ("milk", "milk"),
        ("She", "She"),
        ("tea", "tea"),
        ("he", "he"),
        ("cereal", "cereal"),
        ("fruit", "fruit"),
    ],
    "An elderly man feeds pigeons, a boy kicks the ball, lights illuminate the square.": [
        ("An elderly man", "man"),
        ("pigeons", "pigeons"),
        ("a boy", "boy"),
        ("the ball", "ball"),
        ("lights", "lights"),
        ("the square", "square"),
    ],
    "The dog that barks wears a very old, round, red hat and an orange and white coat.": [
        ("The dog", "dog"),
        ("a very old, round, red hat", "hat"),
        ("an orange and white coat", "coat"),
    ],
    "A family and the second one near a tall building: it has a few parked cars.": [
        ("A family", "family"),
        ("the second one", "one"),
        ("a tall building", "building"),
        ("a few parked cars", "cars"),
    ],
    "": [],
}


@pytest.mark.parametrize("text", CAPTIONS)
def test_rules(text):
    found = RuleExtractor()(text)
    assert [(text[slice(*phrase.span)], text[slice(*phrase.core)]) for phrase in found] == CAPTIONS[text]


class FakePipeline:
    """What a spaCy pipeline looks like from outside: a callable whose documents have noun chunks."""

    meta = {"lang": "en", "name": "core_web_lg"}
    vocab = SimpleNamespace(vectors_length=2)

    def has_pipe(self, name):
        return name == "parser"

    def __call__(self, text):
        start = text.find("brown dog")
        root = SimpleNamespace(idx=start + 6, text="dog")
        chunk = SimpleNamespace(start_char=start, end_char=start + 9, root=root)
        return SimpleNamespace(noun_chunks=[chunk] if start >= 0 else [], vector=[float(len(text)), 1.0])


def test_parsers():
    extractor = make_extractor(FakePipeline())
    assert isinstance(extractor, SpacyExtractor)
    assert extractor.name == "spacy:en_core_web_lg"
    assert extractor("a brown dog") == [NounPhrase((2, 11), (8, 11))]
    assert extractor.vector("dog") == [3.0, 1.0]
    without = FakePipeline()
    without.vocab = SimpleNamespace(vectors_length=0)
    with pytest.raises(ValueError, match="spacy:en_core_web_lg has no word vectors"):
        make_extractor(without).vector("dog")


def test_what_else_may_find_phrases():
    text = "a dog and a cat"
    whole = [NounPhrase((0, 5), (2, 5))]
    for result in (whole, [(0, 5, 2, 5)], iter(whole)):
        extractor = make_extractor(lambda text, result=result: result)
        assert extractor(text) == whole
        assert extractor.name == "custom:<lambda>"
    assert make_extractor(lambda text: [(2, 5)])(text) == [NounPhrase((2, 5), (2, 5))]
    document = make_extractor(lambda text: FakePipeline()(text))
    assert document("a brown dog") == [NounPhrase((2, 11), (8, 11))]
    assert make_extractor("rules").name == "rules"


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([(0, 99)], "the range 0..99 for a text of 5"),
        ([(3, 3)], "range 3..3"),
        (["dog"], "returned 'dog'"),
        ([(1,)], "tuple"),
    ],
)
def test_bad_phrases(result, message):
    with pytest.raises(ValueError, match=message):
        make_extractor(lambda text: result)("a dog")


def test_unknown_extractors():
    for choice in ("nltk", 3, str):
        with pytest.raises(ValueError, match="phrase_extractor is"):
            make_extractor(choice)


def test_without_a_parser(monkeypatch):
    """`auto` falls back to the rules and says so; a parser that was asked for by name is missed."""
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert make_extractor("auto").name == "rules"
    with pytest.raises(ImportError, match="pip install spacy"):
        make_extractor("spacy")


def spacy_with(installed: dict) -> SimpleNamespace:
    """The package spaCy with these pipelines."""

    def load(name):
        if name not in installed:
            raise OSError(f"[E050] Can't find model '{name}'.")
        return installed[name]

    return SimpleNamespace(load=load, util=SimpleNamespace(get_installed_models=lambda: list(installed)))


def test_without_a_pipeline(monkeypatch):
    """The package alone finds nothing: what to download is named, and `auto` takes the rules."""
    german = FakePipeline()
    monkeypatch.setitem(sys.modules, "spacy", spacy_with({"de_core_news_lg": german}))
    assert make_extractor("auto").name == "rules"
    with pytest.raises(ImportError, match="python -m spacy download en_core_web_lg"):
        make_extractor("spacy")
    with pytest.raises(
        ImportError, match=r"'en_core_web_md' here\. Install it: python -m spacy download en_core_web_md"
    ):
        make_extractor("spacy:en_core_web_md")
    assert make_extractor("spacy:de_core_news_lg").pipeline is german


def test_the_largest_installed_pipeline_with_a_parser(monkeypatch):
    small, large, blind = FakePipeline(), FakePipeline(), FakePipeline()
    blind.has_pipe = lambda name: False
    pipelines = {"en_core_web_sm": small, "en_own": blind, "en_core_web_lg": large}
    monkeypatch.setitem(sys.modules, "spacy", spacy_with(pipelines))
    assert make_extractor("auto").pipeline is large
    monkeypatch.setitem(sys.modules, "spacy", spacy_with({"en_own": blind}))
    with pytest.raises(ImportError, match="no English pipeline with a parser"):
        make_extractor("spacy")


# ---- tokens ---------------------------------------------------------------------------------------------------------

# Each token as bytes; decoding joins them as a tokenizer with byte fallback does.
KINDS = {
    "words": [b"The", b" dog", b" sat"],
    "two bytes": [b"A", b" caf", b"\xc3", b"\xa9", b" bar"],
    "three bytes": [b"a ", b"\xe2", b"\x82", b"\xac", b" bill"],
    "four bytes": [b"\xf0", b"\x9f", b"\x90", b"\xb6", b" dog"],
    "special tokens": [b"", b"a", b"", b" dog", b""],
}


def decoder(pieces: list[bytes], one_by_one: bool):
    """With `one_by_one` every byte of an unfinished character is shown, as byte fallback does; else one for all."""

    def decode(ids: list[int]) -> str:
        data = b"".join(pieces[place] for place in ids)
        for count in range(4):
            try:
                text = data[: len(data) - count].decode()
            except UnicodeDecodeError:
                continue
            return text + "\ufffd" * (count if one_by_one else min(count, 1))
        raise AssertionError(data)

    return decode


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_spans_of_tokens(kind, one_by_one):
    pieces = KINDS[kind]
    text, spans = token_spans(decoder(pieces, one_by_one), list(range(len(pieces))))
    assert text == b"".join(pieces).decode()
    assert "".join(text[slice(*span)] for span in spans) == text, "spans cover the text without gaps and in order"
    for piece, span in zip(pieces, spans, strict=True):
        if piece.isascii():
            assert text[slice(*span)] == piece.decode()
    for place, letter in enumerate(text):
        covering = tokens_within((place, place + 1), spans)
        assert len(covering) == 1
        assert letter.encode()[:1] in pieces[covering[0]]


def test_nothing_was_said():
    assert token_spans(decoder([], True), []) == ("", [])
    assert PhraseFinder(decoder([], True), RuleExtractor())([]) == []


def test_phrases_and_their_tokens():
    pieces = [b" A", b" brown", b" d", b"og", b" sits", b"."]
    finder = PhraseFinder(decoder(pieces, True), RuleExtractor())
    (phrase,) = finder(list(range(6)))
    assert (phrase.text, phrase.span, phrase.core_word, phrase.core_span) == ("A brown dog", (0, 11), "dog", (8, 11))
    assert phrase.tokens == (2, 3)


def test_given_phrases():
    text = "The image shows the red cup on the table, a dog, a dog."
    found = find_given(text, ["the red cup on the table", "a dog", "a dog"], RuleExtractor())
    assert [text[slice(*phrase.core)] for phrase in found] == ["cup", "dog", "dog"]
    assert found[1].span[0] < found[2].span[0]
    with pytest.raises(ValueError, match="'a cat' is not in the answer"):
        find_given(text, ["a cat"], RuleExtractor())
    text = "The image shows the image."
    assert find_given(text, ["image"], RuleExtractor(), "The image shows ")[0].span == (20, 25)
    with pytest.raises(ValueError, match="does not hold 'There is'"):
        find_given(text, ["image"], RuleExtractor(), "There is ")


def test_rules_on_any_text():
    """Whatever stands in a text, phrases lie in it, in order, apart from each other, and hold their cores."""
    known = "a the that he dog dogs and , . is very red feeds 3 building one no which é 狗 -ing"
    words = [*re.split(" ", known), "it\n"]
    rng = random.Random(0)
    for _ in range(2000):
        text = " ".join(rng.choices(words, k=rng.randint(0, 12)))
        stop = 0
        for phrase in RuleExtractor()(text):
            assert stop <= phrase.span[0] <= phrase.core[0] < phrase.core[1] <= phrase.span[1] <= len(text), text
            stop = phrase.span[1]
