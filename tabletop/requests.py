"""Requests about a tabletop scene: the wording of question and answer around phrases, and the masks they mean.

Questions and answers are plain English ("What is the red cup?" / "the red cup [SEG]."); `normalise` brings them, and
what people type, into the form of the closed vocabulary `WORDS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .phrases import (
    AFFORDANCES,
    PHRASE_TRIES,
    PLURALS,
    RELATIONS,
    SIZE_SYNONYMS,
    SUPERLATIVES,
    THINGS,
    ScenePhrase,
    draw_phrase,
)
from .scenes import COLOURS, SIZES, TabletopRandom, TabletopScene, scene_random
from .sprites import KINDS


SEG_TOKEN = "[SEG]"
REJ_TOKEN = "[REJ]"

SEVERAL = "several"
"""Type of a request that holds more than one phrase."""


CANONICAL_QUESTION = "What {verb} {phrases}?"
"""The wording that is always understood; `phrases` are joined by ", "."""

_QUESTIONS: tuple[str, ...] = (
    "Where {verb} {phrases}?",
    "Find {phrases}.",
    "Show me {phrases}.",
    "Segment {phrases}.",
    "Please segment {phrases}.",
    "Can you segment {phrases} in this image?",
    "Can you see {phrases} in this picture?",
    "Mark {phrases} in the image, please.",
    "Please find {phrases} on the table.",
    "Do you see {phrases}?",
    "I need {phrases}.",
    "{phrases}",
)


@dataclass(frozen=True, eq=False)
class SceneRequest:
    """What a user asks about one scene, and the right answer.

    Attributes:
        phrases: The phrases in the order of the question, lower case.
        masks: Per phrase the union of the visible pixels it names, `(size, size)` bool, or None when absent.
        targets: Per phrase the positions of the named things in `scene.objects`.
        landmarks: Per phrase the positions of the things to look at first; see [`ScenePhrase`].
        phrase_types: Per phrase a key of `TYPE_WEIGHTS`.
        type: The type of the only phrase, or `several`.
        question: The message of the user.
        named: Whether the answer repeats the phrase; "What gives light?" has none to repeat.
    """

    phrases: list[str]
    masks: list[np.ndarray | None]
    targets: list[tuple[int, ...]]
    landmarks: list[tuple[int, ...]]
    phrase_types: list[str]
    type: str
    question: str
    named: bool = True

    @property
    def present(self) -> list[bool]:
        """Per phrase whether it names something in the scene."""
        return [bool(targets) for targets in self.targets]

    @property
    def answer(self) -> str:
        """The right answer, e.g. `the red cup [SEG], all plates [REJ].`, or `It is [SEG].`"""
        return build_answer(self.phrases, self.present, self.named)


def build_question(
    phrases: Sequence[str], plural: bool = False, template: str = CANONICAL_QUESTION, last_joiner: str = ", "
) -> str:
    """Ask for phrases.

    Args:
        phrases: The phrases.
        plural: Whether a single phrase is plural ("What are all plates?"); several phrases always are.
        template: Wording with the fields `phrases` and, optionally, `verb`.
        last_joiner: What stands between the last two phrases.

    Raises:
        ValueError: If there is no phrase.
    """
    if not phrases:
        raise ValueError("A question needs at least one phrase.")
    verb = "are" if plural or len(phrases) > 1 else "is"
    joined = last_joiner.join([*([", ".join(phrases[:-1])] if len(phrases) > 1 else []), phrases[-1]])
    question = template.format(verb=verb, phrases=joined)
    return question[0].upper() + question[1:]


def build_answer(phrases: Sequence[str], present: Sequence[bool], named: bool = True) -> str:
    """The answer to phrases of which some are absent.

    Each slot follows the last word of its phrase at once, so that one state stands for the word, decides and points.

    Args:
        phrases: The phrases.
        present: Per phrase whether it names something.
        named: Whether phrases are repeated; if not, there must be a single one.

    Raises:
        ValueError: If there is no phrase, the two lengths differ, or several phrases are not repeated.
    """
    if not phrases or len(phrases) != len(present):
        raise ValueError(f"An answer needs one flag per phrase, got {len(phrases)} phrases and {len(present)} flags.")
    slots = [SEG_TOKEN if flag else REJ_TOKEN for flag in present]
    if not named and len(phrases) > 1:
        raise ValueError(f"An answer to {len(phrases)} phrases must repeat them.")
    if not named:
        return f"It is {slots[0]}."
    return ", ".join(f"{phrase} {slot}" for phrase, slot in zip(phrases, slots, strict=True)) + "."


_TOKEN = re.compile(r"\[SEG\]|\[REJ\]|\w+|[^\w\s]")


def normalise(text: str) -> str:
    """Bring English as people type it into the form of the vocabulary: lower case, one space between all tokens.

    A tokenizer does the same with the normalizer `Lowercase` and the pre-tokenizers `WhitespaceSplit` and
    `Punctuation("isolated")`, if `[SEG]` and `[REJ]` are added tokens that are not normalized.

    Example:
        >>> normalise("Where is the  red cup?")
        'where is the red cup ?'
        >>> normalise("It is [SEG].")
        'it is [SEG] .'
    """
    tokens = _TOKEN.findall(text)
    return " ".join(token if token in (SEG_TOKEN, REJ_TOKEN) else token.lower() for token in tokens)


def make_requests(
    scene: TabletopScene,
    count: int = 4,
    *,
    draw: int = 0,
    absent_rate: float = 0.4,
    several_rate: float = 0.25,
    varied_rate: float = 0.5,
    weights: Mapping[str, float] | None = None,
) -> list[SceneRequest]:
    """Make requests about a scene.

    Args:
        scene: The scene.
        count: Number of requests, at least 1.
        draw: Number of the draw, from 0; another number gives fresh requests for the same scene (e.g. the epoch).
        absent_rate: Share of the phrases that name nothing in the scene, 0 to 1.
        several_rate: Share of the requests that hold 2 to 4 phrases, 0 to 1.
        varied_rate: Share of the questions that are not worded as `CANONICAL_QUESTION`, 0 to 1.
        weights: How often each phrase type is tried; the default is `TYPE_WEIGHTS`.

    Returns:
        `count` requests with different phrases.

    Raises:
        ValueError: If an argument is out of its range, or the scene offers too few phrases of the types in `weights`.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    rates = {"absent_rate": absent_rate, "several_rate": several_rate, "varied_rate": varied_rate}
    for name, rate in rates.items():
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"{name} must be 0 to 1, got {rate}.")
    rng = scene_random(scene.split, scene.index, scene.seed, stream=1 + draw)
    used: set[str] = set()
    requests = []
    for _ in range(count):
        wanted = 2 + rng.below(3) if rng.chance(several_rate) else 1
        phrases = [_fresh_phrase(scene, rng, absent_rate, weights, used) for _ in range(wanted)]
        requests.append(_word_request(scene, rng, phrases, varied_rate))
    return requests


def _fresh_phrase(
    scene: TabletopScene,
    rng: TabletopRandom,
    absent_rate: float,
    weights: Mapping[str, float] | None,
    used: set[str],
) -> ScenePhrase:
    """A phrase whose words were not used before; presence is kept unless the scene offers no such phrase."""
    present = not rng.chance(absent_rate)
    for attempt in range(2 * PHRASE_TRIES):
        phrase = draw_phrase(scene, rng, present if attempt < PHRASE_TRIES else not present, weights)
        if phrase is None:
            continue
        # "A red cup" after "the red cup" would ask the same again.
        words = phrase.text.removeprefix("the ").removeprefix("a ").removeprefix("an ")
        if words not in used:
            used.add(words)
            return phrase
    raise ValueError(
        f"Scene {scene.index} of {scene.split!r} offers only {len(used)} phrases of the types asked for; "
        "ask for fewer requests or more types."
    )


def _word_request(
    scene: TabletopScene, rng: TabletopRandom, phrases: list[ScenePhrase], varied_rate: float
) -> SceneRequest:
    varied = rng.chance(varied_rate)
    template = rng.choice(_QUESTIONS) if varied else CANONICAL_QUESTION
    joiner = " and " if varied and rng.chance(0.4) else ", "
    texts = [phrase.text for phrase in phrases]
    own_words = phrases[0].question if len(phrases) == 1 else None
    return SceneRequest(
        phrases=texts,
        masks=[scene.mask(*phrase.targets) if phrase.targets else None for phrase in phrases],
        targets=[phrase.targets for phrase in phrases],
        landmarks=[phrase.landmarks for phrase in phrases],
        phrase_types=[phrase.type for phrase in phrases],
        type=phrases[0].type if len(phrases) == 1 else SEVERAL,
        named=own_words is None,
        question=own_words or build_question(texts, phrases[0].plural, template, last_joiner=joiner),
    )


def _collect_words() -> tuple[str, ...]:
    texts = [*KINDS, *PLURALS.values(), *THINGS, *COLOURS, *SIZES, *SIZE_SYNONYMS.values(), *SUPERLATIVES, *RELATIONS]
    texts += ["the a an all every", "and", "it is are"]
    texts += [text for affordance in AFFORDANCES for text in (*affordance.phrases, *affordance.questions)]
    texts += [template.format(verb="is", phrases="") for template in (CANONICAL_QUESTION, *_QUESTIONS)]
    texts.append("? . , !")
    return tuple(sorted({token for text in texts for token in normalise(text).split()}))


WORDS: tuple[str, ...] = _collect_words()
"""The closed vocabulary of questions and answers in the form of `normalise`, without `[SEG]` and `[REJ]`."""
