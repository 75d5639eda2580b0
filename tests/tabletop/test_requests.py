"""Requests: an independent reader of the phrases must find the same things, and the words must not tell presence."""

import math
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from reasonseg.tabletop.phrases import AFFORDANCES, PLURALS, RELATIONS, TYPE_WEIGHTS, UNKNOWN_NOUNS
from reasonseg.tabletop.requests import (
    WORDS,
    build_answer,
    build_question,
    make_requests,
    normalise,
)
from reasonseg.tabletop.scenes import COLOURS, HELD_OUT_PAIRS, SIZES, draw_scene
from reasonseg.tabletop.sprites import KINDS


SCENES = 300
SINGULAR = {plural: singular for singular, plural in PLURALS.items()}
SIZE_WORDS = {"big": "large", "little": "small"} | {size: size for size in SIZES}
GOOD_FOR = {
    "something to drink from": {"cup", "bottle"},
    "something to pour coffee into": {"cup"},
    "something to pour water from": {"bottle"},
    "something to eat from": {"plate", "bowl"},
    "something to put food on": {"plate", "bowl"},
    "something to serve soup in": {"bowl"},
    "something to eat": {"banana"},
    "something that would roll off the table": {"ball"},
    "something to play with": {"ball"},
    "something to keep things in": {"box"},
    "something to read": {"book"},
    "something to open a door with": {"key"},
    "something that gives light": {"lamp"},
}


@pytest.fixture(scope="module")
def asked() -> list:
    """`(scene, requests)` of both kinds of splits."""
    splits = ("train", "test_unseen")
    scenes = [draw_scene(split, index, size=96) for split in splits for index in range(SCENES)]
    return [(scene, make_requests(scene, 5)) for scene in scenes]


def phrases_of(asked):
    for scene, requests in asked:
        for request in requests:
            for text, kind, targets in zip(request.phrases, request.phrase_types, request.targets, strict=True):
                yield scene, text, kind, targets


# -- a second, separate reading of the phrases ----------------------------------------------------------------------


def named_by(words: str, scene) -> list[int]:
    """Positions of the things that a noun with its adjectives names."""
    *adjectives, head = words.split()
    head = SINGULAR.get(head, head)
    found = []
    for position, thing in enumerate(scene.objects):
        fits = head in ("thing", "object", thing.kind)
        for word in adjectives:
            fits &= SIZE_WORDS[word] == thing.size if word in SIZE_WORDS else word == thing.colour
        if fits:
            found.append(position)
    return found


def read_singular(text: str, scene) -> list[int]:
    article, words = text.split(" ", 1)
    assert article == "the" or article == ("an" if words[0] in "aeiou" else "a")
    return named_by(words, scene)


def read_plural(text: str, scene) -> list[int]:
    for opening in ("all the ", "all ", "every ", "the "):
        if text.startswith(opening):
            return named_by(text.removeprefix(opening), scene)
    raise AssertionError(text)


def read_superlative(text: str, scene) -> list[int]:
    _, word, noun = text.split(" ", 2)
    keys = {
        "largest": lambda thing: -thing.area,
        "biggest": lambda thing: -thing.area,
        "smallest": lambda thing: thing.area,
        "leftmost": lambda thing: thing.centre_xy[0],
        "rightmost": lambda thing: -thing.centre_xy[0],
        "nearest": lambda thing: -thing.base_xy[1],
        "farthest": lambda thing: thing.base_xy[1],
    }
    found = sorted(named_by(noun, scene), key=lambda position: keys[word](scene.objects[position]))
    if len(found) > 1:
        first, second = (keys[word](scene.objects[position]) for position in found[:2])
        is_size = word in ("largest", "biggest", "smallest")
        margin = abs(math.log(first / second)) / math.log(1.5) if is_size else (second - first) / (0.07 * scene.size)
        assert margin >= 1, f"{text!r} is not clear"
    return found[:1]


def read_relation(text: str, scene) -> list[int]:
    relation = max((words for words in RELATIONS if f" {words} the " in text), key=len)
    subject, anchor = text.split(f" {relation} the ")
    anchors = named_by(anchor, scene)
    assert len(anchors) <= 1, f"{text!r} has two landmarks"
    if not anchors:
        return []
    landmark = scene.objects[anchors[0]]

    def holds(thing) -> bool:
        across, along = (thing.centre_xy[0] - landmark.centre_xy[0], thing.base_xy[1] - landmark.base_xy[1])
        if relation == "next to":
            boxes = thing.box_xyxy, landmark.box_xyxy
            gaps = [max(b[i] for b in boxes) - min(b[i + 2] for b in boxes) for i in (0, 1)]
            return max(gaps) <= 0.1 * scene.size
        forward = {"left": -across, "right": across, "behind": -along, "front": along}[RELATIONS[relation]]
        return forward > 0.065 * scene.size

    subjects = named_by(subject.removeprefix("the "), scene)
    return [position for position in subjects if position != anchors[0] and holds(scene.objects[position])]


READERS = {
    "colour": read_singular,
    "kind": read_singular,
    "colour_kind": read_singular,
    "size": read_singular,
    "superlative": read_superlative,
    "relation": read_relation,
    "plural": read_plural,
    "affordance": lambda text, scene: [p for p, t in enumerate(scene.objects) if t.kind in GOOD_FOR[text]],
    "unknown": lambda text, scene: [],
}


@pytest.mark.slow
@pytest.mark.parametrize("phrase_type", TYPE_WEIGHTS)
def test_phrases_name_what_they_say(asked, phrase_type):
    checked = Counter()
    for scene, text, kind, targets in phrases_of(asked):
        if kind == phrase_type:
            assert sorted(READERS[kind](text, scene)) == sorted(targets), text
            checked[bool(targets)] += 1
    assert checked[False] > 20
    assert checked[True] > 20 or phrase_type == "unknown"


def read_landmarks(kind: str, text: str, targets, scene) -> list[int]:
    """What has to be found before the targets of a phrase."""
    if kind == "relation":
        relation = max((words for words in RELATIONS if f" {words} the " in text), key=len)
        return named_by(text.split(f" {relation} the ")[1], scene)
    if kind == "superlative":
        return named_by(text.split(" ", 2)[2], scene)
    if kind == "size":
        return named_by(" ".join(word for word in text.split()[1:] if word not in SIZE_WORDS), scene)
    return list(targets)


def test_landmarks_come_before_the_targets(asked):
    differ = Counter()
    for scene, requests in asked:
        for request in requests:
            columns = (request.phrases, request.phrase_types, request.targets, request.landmarks)
            for text, kind, targets, landmarks in zip(*columns, strict=True):
                assert sorted(landmarks) == sorted(read_landmarks(kind, text, targets, scene)), text
                differ[kind] += set(landmarks) != set(targets)
    assert min(differ[kind] for kind in ("relation", "superlative", "size")) > 20


def test_singular_phrases_name_one_thing(asked):
    for _, text, kind, targets in phrases_of(asked):
        if kind not in ("plural", "affordance"):
            assert len(targets) <= 1, text


def test_masks_are_the_visible_pixels_of_the_targets(asked):
    for scene, requests in asked[:50]:
        for request in requests:
            assert request.present == [bool(targets) for targets in request.targets]
            for mask, targets in zip(request.masks, request.targets, strict=True):
                if not targets:
                    assert mask is None
                    continue
                np.testing.assert_array_equal(mask, np.isin(scene.id_map, [position + 1 for position in targets]))


def test_absent_rate_and_several_rate_are_kept(asked):
    present = [bool(targets) for _, _, kind, targets in phrases_of(asked) if kind != "unknown"]
    assert np.mean(present) == pytest.approx(0.6, abs=0.04)
    several = [len(request.phrases) > 1 for _, requests in asked for request in requests]
    assert np.mean(several) == pytest.approx(0.25, abs=0.03)
    scene = asked[0][0]
    assert all(all(r.present) for r in make_requests(scene, 3, absent_rate=0.0, several_rate=0.0))
    assert not any(any(r.present) for r in make_requests(scene, 3, absent_rate=1.0, several_rate=1.0))


def test_no_phrase_is_asked_twice(asked):
    for _, requests in asked:
        texts = [text for request in requests for text in request.phrases]
        nouns = [text.removeprefix("the ").removeprefix("a ").removeprefix("an ") for text in texts]
        assert len(set(nouns)) == len(nouns)


def test_held_out_pairs_are_named_only_in_their_split(asked):
    named = defaultdict(set)
    for scene, text, _, _ in phrases_of(asked):
        words = text.split()
        for first, second in pairwise(words):
            named[scene.split].add((SINGULAR.get(second, second), first))
    assert not named["train"] & HELD_OUT_PAIRS
    assert len(named["test_unseen"] & HELD_OUT_PAIRS) >= 8


@pytest.mark.slow
def test_words_do_not_tell_presence():
    """A naive Bayes reader of words and word pairs does no better than always guessing "present"."""
    phrases = defaultdict(list)
    for index in range(1500):
        scene = draw_scene("train", index, size=64)
        for request in make_requests(scene, 8):
            for text, kind, targets in zip(request.phrases, request.phrase_types, request.targets, strict=True):
                phrases[kind].append((text, bool(targets)))

    def features(text: str) -> set:
        words = ["^", *text.split()]
        return {*words, *pairwise(words)}

    gains = {}
    for kind in set(phrases) - {"unknown"}:
        half = len(phrases[kind]) // 2
        seen = {False: Counter(), True: Counter()}
        total = Counter(present for _, present in phrases[kind][:half])
        for text, present in phrases[kind][:half]:
            seen[present].update(features(text))
        right = 0
        for text, present in phrases[kind][half:]:
            score = math.log(total[True] / total[False])
            for feature in features(text):
                rates = [(seen[flag][feature] + 1) / (total[flag] + 2) for flag in (True, False)]
                score += math.log(rates[0] / rates[1])
            right += (score > 0) == present
        base = np.mean([present for _, present in phrases[kind][half:]])
        gains[kind] = right / (len(phrases[kind]) - half) - max(base, 1 - base)
    assert max(gains.values()) < 0.03, gains


# -- wording ---------------------------------------------------------------------------------------------------------


def test_vocabulary_is_closed_and_used(asked):
    used = set()
    for _, requests in asked:
        for request in requests:
            for text in (request.question, request.answer):
                used.update(normalise(text).split())
    strangers = used - set(WORDS) - {"[SEG]", "[REJ]"}
    assert strangers <= set(UNKNOWN_NOUNS)
    assert not set(UNKNOWN_NOUNS) & set(WORDS)
    assert len(WORDS) == len(set(WORDS)) <= 130
    assert set(WORDS) - used == {"!"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where is the red cup?", "where is the red cup ?"),
        ("  WHERE is\nthe red   cup ? ", "where is the red cup ?"),
        ("the red cup: [SEG], all plates: [REJ].", "the red cup : [SEG] , all plates : [REJ] ."),
        ("It is [SEG].", "it is [SEG] ."),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_a_standard_tokenizer_reads_questions_like_normalise(asked):
    """The word list and stock pre-tokenizers are enough: nothing of this module is needed to run a trained model."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    special = ["<unk>", "[SEG]", "[REJ]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in special[1:]])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    for _, requests in asked[:100]:
        for request in requests:
            for text in (request.question, request.answer):
                words = [word if word in vocabulary else "<unk>" for word in normalise(text).split()]
                assert tokenizer.encode(text).tokens == words


def test_question_and_answer_wording():
    assert build_question(["the red cup"]) == "What is the red cup?"
    assert build_question(["all plates"], plural=True) == "What are all plates?"
    assert build_question(["the red cup", "a dog"]) == "What are the red cup, a dog?"
    assert build_question(["a", "b", "c"], template="Find {phrases}.", last_joiner=" and ") == "Find a, b and c."
    assert build_question(["the key"], template="{phrases}") == "The key"
    assert build_answer(["the red cup"], [True]) == "the red cup [SEG]."
    assert build_answer(["the red cup"], [False]) == "the red cup [REJ]."
    assert build_answer(["the cup", "a dog"], [True, False]) == "the cup [SEG], a dog [REJ]."
    assert build_answer(["something to drink from"], [True], named=False) == "It is [SEG]."


def test_affordances_are_asked_in_their_own_words(asked):
    questions = {question for affordance in AFFORDANCES for question in affordance.questions}
    heard = {request.question for _, requests in asked for request in requests}
    assert questions <= heard


def test_draws_are_repeatable_and_fresh(asked):
    scene = asked[0][0]
    first, again, other = (make_requests(scene, 4, draw=draw) for draw in (0, 0, 1))
    assert [r.question for r in first] == [r.question for r in again]
    assert [r.question for r in first] != [r.question for r in other]


def test_canonical_questions_only(asked):
    for request in make_requests(asked[1][0], 5, varied_rate=0.0, weights={"kind": 1, "relation": 1}):
        assert request.question == build_question(request.phrases)


def test_mirrored_scenes_get_mirrored_answers(asked):
    for scene, _ in asked[:60]:
        flipped = scene.flipped()
        for request in make_requests(flipped, 3, weights={"relation": 1, "superlative": 1, "kind": 1}):
            for text, kind, targets in zip(request.phrases, request.phrase_types, request.targets, strict=True):
                assert sorted(READERS[kind](text, flipped)) == sorted(targets)


def test_wrong_arguments_are_explained(asked):
    scene = asked[0][0]
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        make_requests(scene, 0)
    with pytest.raises(ValueError, match=r"absent_rate must be 0 to 1, got 1\.5"):
        make_requests(scene, absent_rate=1.5)
    with pytest.raises(ValueError, match="no phrase types taste; choose from colour"):
        make_requests(scene, weights={"taste": 1.0})
    with pytest.raises(ValueError, match="needs a positive weight"):
        make_requests(scene, weights={"colour": 0.0})
    with pytest.raises(ValueError, match="ask for fewer requests or more types"):
        make_requests(scene, 200, weights={"colour": 1.0})
    with pytest.raises(ValueError, match="at least one phrase"):
        build_question([])
    with pytest.raises(ValueError, match="1 phrases and 2 flags"):
        build_answer(["a"], [True, False])
    with pytest.raises(ValueError, match="2 phrases must repeat them"):
        build_answer(["a", "b"], [True, False], named=False)


def test_all_kinds_and_colours_are_words():
    assert {*KINDS, *COLOURS, *SIZES} <= set(WORDS)
