"""Phrases about a tabletop scene, each with the things it names.

Every phrase is unambiguous by construction: a singular phrase names exactly one visible thing, and superlatives and
relations need a clear margin. Whether a phrase is present is drawn before its words, from the same word distributions,
so that the words alone do not give the answer away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from .scenes import COLOURS, HELD_OUT_PAIRS, SIZES, TabletopObject, TabletopRandom, TabletopScene
from .sprites import KINDS


TYPE_WEIGHTS: dict[str, float] = {
    "colour": 0.8,
    "kind": 1.2,
    "colour_kind": 2.0,
    "size": 1.2,
    "superlative": 1.4,
    "relation": 1.8,
    "plural": 1.0,
    "affordance": 1.0,
    "unknown": 0.6,
}
"""Types of phrases and how often they are drawn by default. `unknown` names things that are not of this world."""


class Affordance(NamedTuple):
    """What a thing is good for: the kinds meant, how to name it, and how to ask for it directly."""

    kinds: tuple[str, ...]
    phrases: tuple[str, ...]
    questions: tuple[str, ...]


AFFORDANCES: tuple[Affordance, ...] = (
    Affordance(("cup", "bottle"), ("something to drink from",), ("What can I drink from?",)),
    Affordance(("cup",), ("something to pour coffee into",), ("Where could I pour coffee?",)),
    Affordance(("bottle",), ("something to pour water from",), ("What can I pour water from?",)),
    Affordance(("plate", "bowl"), ("something to eat from", "something to put food on"), ("Where can I put food?",)),
    Affordance(("bowl",), ("something to serve soup in",), ("Where can I serve soup?",)),
    Affordance(("banana",), ("something to eat",), ("What can I eat?",)),
    Affordance(
        ("ball",),
        ("something that would roll off the table", "something to play with"),
        ("What would roll off the table?", "What can I play with?"),
    ),
    Affordance(("box",), ("something to keep things in",), ("Where can I keep my things?",)),
    Affordance(("book",), ("something to read",), ("What can I read?",)),
    Affordance(("key",), ("something to open a door with",), ("What can open a door?",)),
    Affordance(("lamp",), ("something that gives light",), ("What gives light?", "What can light the room?")),
)

SUPERLATIVES: dict[str, str] = {
    "largest": "large",
    "biggest": "large",
    "smallest": "small",
    "leftmost": "left",
    "rightmost": "right",
    "nearest": "near",
    "farthest": "far",
}

RELATIONS: dict[str, str] = {
    "left of": "left",
    "to the left of": "left",
    "right of": "right",
    "to the right of": "right",
    "behind": "behind",
    "in front of": "front",
    "next to": "next",
}

# fmt: off
UNKNOWN_NOUNS: tuple[str, ...] = (
    "dog", "cat", "car", "tree", "house", "phone", "laptop", "chair", "shoe", "hat", "pen", "fork", "knife",
    "spoon", "elephant", "horse", "bird", "flower", "bicycle", "train", "boat", "sock", "clock", "candle", "vase",
    "apple", "person", "woman", "man", "child", "window", "sofa", "guitar", "camera", "umbrella", "sandwich",
    "pizza",
)
# fmt: on
"""Nouns that are not in the vocabulary on purpose: the tokenizer turns them into its unknown token."""

SIZE_SYNONYMS = {"large": "big", "small": "little"}
THINGS = {"thing": "things", "object": "objects"}
PLURALS = {kind: f"{kind}es" if kind.endswith("x") else f"{kind}s" for kind in KINDS} | THINGS

# Margins as a part of the side of the image.
_POSITION_MARGIN = 0.08
_RELATION_CLEAR, _RELATION_NOT = 0.1, 0.03
_NEXT_CLEAR, _NEXT_NOT = 0.05, 0.16
_AREA_MARGIN = 1.55
PHRASE_TRIES = 24
"""How often a phrase is tried before a scene is taken to offer none."""
_RELATION_TRIES = 16


class ScenePhrase(NamedTuple):
    """One phrase and the things it names.

    Attributes:
        text: The phrase, lower case.
        targets: Positions in `scene.objects`; empty when the phrase names nothing in the scene.
        type: A key of `TYPE_WEIGHTS`.
        plural: Whether the verb of the question is "are".
        question: A question that asks for the phrase in its own words, or None for the usual templates.
        compared: Positions of the things that have to be looked at before the targets can be told: what a relation
            starts from, or among what a superlative or a size chooses. None where that is the targets themselves.
    """

    text: str
    targets: tuple[int, ...]
    type: str
    plural: bool = False
    question: str | None = None
    compared: tuple[int, ...] | None = None

    @property
    def landmarks(self) -> tuple[int, ...]:
        """What to look at first."""
        return self.targets if self.compared is None else self.compared


class _Noun(NamedTuple):
    """A description by kind, colour and size; None leaves a property open."""

    kind: str | None = None
    colour: str | None = None
    size: str | None = None

    def matches(self, objects: Sequence[TabletopObject]) -> tuple[int, ...]:
        return tuple(
            position
            for position, thing in enumerate(objects)
            if self.kind in (None, thing.kind)
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
        )

    def words(self, rng: TabletopRandom, plural: bool = False) -> str:
        head = self.kind or rng.choice(tuple(THINGS))
        size = SIZE_SYNONYMS.get(self.size, self.size) if self.size and rng.chance(0.2) else self.size
        return " ".join(word for word in (size, self.colour, PLURALS[head] if plural else head) if word)

    @property
    def is_held_out(self) -> bool:
        return (self.kind, self.colour) in HELD_OUT_PAIRS


class _Speaker:
    """Draws phrases about one scene; each method returns None when the scene does not offer what was asked for."""

    def __init__(self, scene: TabletopScene, rng: TabletopRandom):
        self.rng = rng
        self.side = scene.size
        self.objects = scene.objects
        self.may_name_held_out = scene.split == "test_unseen"

    def draw(self, phrase_type: str, present: bool) -> ScenePhrase | None:
        makers: dict[str, Callable[[bool], ScenePhrase | None]] = {
            "colour": self.colour,
            "kind": self.kind,
            "colour_kind": self.colour_kind,
            "size": self.size,
            "superlative": self.superlative,
            "relation": self.relation,
            "plural": self.plural,
            "affordance": self.affordance,
            "unknown": self.unknown,
        }
        return makers[phrase_type](present)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _may_say(self, noun: _Noun) -> bool:
        return self.may_name_held_out or not noun.is_held_out

    def _with_article(self, words: str) -> str:
        if self.rng.chance(0.8):
            return f"the {words}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def _singular(self, nouns: list[_Noun], present: bool, phrase_type: str) -> ScenePhrase | None:
        """A phrase from one of the nouns that name exactly one thing (present) or nothing (absent)."""
        wanted = 1 if present else 0
        nouns = [noun for noun in nouns if self._may_say(noun) and len(noun.matches(self.objects)) == wanted]
        if not nouns:
            return None
        noun = self.rng.choice(nouns)
        return ScenePhrase(
            self._with_article(noun.words(self.rng)),
            noun.matches(self.objects),
            phrase_type,
            compared=noun._replace(size=None).matches(self.objects) if noun.size else None,
        )

    def _random_pair(self) -> _Noun:
        while True:
            noun = _Noun(self.rng.choice(KINDS), self.rng.choice(tuple(COLOURS)))
            if self._may_say(noun):
                return noun

    def _hard_pair(self) -> _Noun:
        """A pair that shares its kind (mostly) or its colour with a thing of the scene."""
        thing = self.rng.choice(self.objects)
        style = self.rng.uniform()
        pair = self._random_pair()
        if style < 0.45:
            return _Noun(thing.kind, pair.colour)
        if style < 0.8:
            return _Noun(pair.kind, thing.colour)
        return pair

    # -- one method per type -----------------------------------------------------------------------------------------

    def colour(self, present: bool) -> ScenePhrase | None:
        return self._singular([_Noun(colour=colour) for colour in COLOURS], present, "colour")

    def kind(self, present: bool) -> ScenePhrase | None:
        return self._singular([_Noun(kind) for kind in KINDS], present, "kind")

    def colour_kind(self, present: bool) -> ScenePhrase | None:
        if present:
            nouns = [_Noun(thing.kind, thing.colour) for thing in self.objects]
            held_out = [noun for noun in nouns if noun.is_held_out]
            return self._singular(held_out or nouns, True, "colour_kind")
        nouns = [self._hard_pair() for _ in range(4)]
        if self.may_name_held_out and self.rng.chance(0.5):
            nouns = [_Noun(*pair) for pair in sorted(HELD_OUT_PAIRS)]
        return self._singular(nouns, False, "colour_kind")

    def size(self, present: bool) -> ScenePhrase | None:
        with_colour = self.rng.chance(0.3)
        if present:
            things = self.objects
            nouns = [_Noun(thing.kind, thing.colour if with_colour else None, thing.size) for thing in things]
        else:
            nouns = []
            for _ in range(4):
                # Mostly a thing that is there in another size.
                thing = self.rng.choice(self.objects)
                pair = _Noun(thing.kind, thing.colour) if self.rng.chance(0.65) else self._random_pair()
                nouns.append(_Noun(pair.kind, pair.colour if with_colour else None, self.rng.choice(tuple(SIZES))))
        return self._singular(nouns, present, "size")

    def superlative(self, present: bool) -> ScenePhrase | None:
        nouns = [_Noun(kind) for kind in KINDS] if self.rng.chance(0.7) else [_Noun(colour=name) for name in COLOURS]
        lonely = self.rng.chance(0.15)
        found = []
        for noun in nouns:
            matches = noun.matches(self.objects)
            if present and (len(matches) == 1 if lonely else len(matches) > 1):
                found.extend((word, noun, self._extreme(SUPERLATIVES[word], matches)) for word in SUPERLATIVES)
            elif not present and not matches:
                found.extend((word, noun, ()) for word in SUPERLATIVES)
        found = [item for item in found if not present or item[2]]
        if not found:
            return None
        word, noun, targets = self.rng.choice(found)
        compared = noun.matches(self.objects)
        return ScenePhrase(f"the {word} {noun.words(self.rng)}", targets, "superlative", compared=compared)

    def _extreme(self, order: str, positions: tuple[int, ...]) -> tuple[int, ...]:
        """The one thing that comes first in an order by a clear margin, or nothing."""

        def value(position: int) -> float:
            thing = self.objects[position]
            if order in ("large", "small"):
                return thing.area if order == "small" else 1.0 / thing.area
            if order in ("left", "right"):
                return thing.centre_xy[0] if order == "left" else -thing.centre_xy[0]
            return thing.base_xy[1] if order == "far" else -thing.base_xy[1]

        ranked = sorted(positions, key=value)
        if len(ranked) == 1:
            return (ranked[0],)
        first, second = (value(position) for position in ranked[:2])
        if order in ("large", "small"):
            clear = second >= _AREA_MARGIN * first
        else:
            clear = second - first >= _POSITION_MARGIN * self.side
        return (ranked[0],) if clear else ()

    def relation(self, present: bool) -> ScenePhrase | None:
        for _ in range(_RELATION_TRIES):
            words = self.rng.choice(tuple(RELATIONS))
            style = 0.0 if present else self.rng.uniform()
            anchor, subject = (self._relation_noun(anything) for anything in (False, True))
            # Absent: mostly the right things in another place, else a thing or its landmark that is not there.
            if style >= 0.8:
                anchor = self._absent_noun()
            elif style >= 0.6:
                subject = self._absent_noun()
            if not (self._may_say(anchor) and self._may_say(subject)) or anchor == subject:
                continue
            anchors, subjects = anchor.matches(self.objects), subject.matches(self.objects)
            without_anchor, without_subject = style >= 0.8, 0.6 <= style < 0.8
            if len(anchors) != (0 if without_anchor else 1) or (not subjects) != without_subject:
                continue
            targets = self._related(subjects, RELATIONS[words], anchors)
            if targets is None or len(targets) != (1 if present else 0):
                continue
            text = f"the {subject.words(self.rng)} {words} the {anchor.words(self.rng)}"
            return ScenePhrase(text, targets, "relation", compared=anchors)
        return None

    def _relation_noun(self, anything: bool) -> _Noun:
        """A description of some thing of the scene."""
        thing, style = self.rng.choice(self.objects), self.rng.uniform()
        if anything and style < 0.2:
            return _Noun()
        if style < 0.65:
            return _Noun(thing.kind)
        return _Noun(thing.kind, thing.colour)

    def _absent_noun(self) -> _Noun:
        """A description by kind, or by colour and kind, of nothing in the scene (or, rarely, of something)."""
        return _Noun(self.rng.choice(KINDS)) if self.rng.chance(0.56) else self._hard_pair()

    def _related(self, subjects: Sequence[int], relation: str, anchors: Sequence[int]) -> tuple[int, ...] | None:
        """Subjects that stand in the relation to the anchor; None if that is not clear for one of them."""
        if not anchors:
            return ()
        anchor = self.objects[anchors[0]]
        decisions = {s: self._stands(self.objects[s], relation, anchor) for s in subjects if s != anchors[0]}
        if None in decisions.values():
            return None
        return tuple(position for position, decision in decisions.items() if decision)

    def _stands(self, thing: TabletopObject, relation: str, anchor: TabletopObject) -> bool | None:
        """Whether a thing stands in a relation to another one; None when people could disagree."""
        if relation == "next":
            gap = _box_gap(thing.box_xyxy, anchor.box_xyxy) / self.side
            return True if gap <= _NEXT_CLEAR else False if gap >= _NEXT_NOT else None
        across = (thing.centre_xy[0] - anchor.centre_xy[0]) / self.side
        along = (thing.base_xy[1] - anchor.base_xy[1]) / self.side
        forward, sideways = {
            "left": (-across, along),
            "right": (across, along),
            "behind": (-along, across),
            "front": (along, across),
        }[relation]
        if forward >= _RELATION_CLEAR and abs(sideways) <= forward + 0.08:
            return True
        return False if forward <= _RELATION_NOT else None

    def plural(self, present: bool) -> ScenePhrase | None:
        style = self.rng.uniform()
        if style < 0.6:
            nouns = [_Noun(kind) for kind in KINDS]
        elif style < 0.85:
            nouns = [_Noun(colour=colour) for colour in COLOURS]
        elif present:
            nouns = sorted({_Noun(thing.kind, thing.colour) for thing in self.objects})
        else:
            nouns = [self._hard_pair() for _ in range(4)]
        nouns = [noun for noun in nouns if self._may_say(noun) and bool(noun.matches(self.objects)) == present]
        if present and self.rng.chance(0.75):
            # One thing may be "all plates" too, but a plural is mostly about more.
            nouns = [noun for noun in nouns if len(noun.matches(self.objects)) > 1]
        if not nouns:
            return None
        noun = self.rng.choice(nouns)
        opening = self.rng.choice(("all", "all the", "the", "every"))
        plural = opening != "every"
        return ScenePhrase(f"{opening} {noun.words(self.rng, plural)}", noun.matches(self.objects), "plural", plural)

    def affordance(self, present: bool) -> ScenePhrase | None:
        as_question = self.rng.chance(0.45)
        found: list[tuple[Affordance, tuple[int, ...]]] = []
        for affordance in AFFORDANCES:
            matches = tuple(p for p, thing in enumerate(self.objects) if thing.kind in affordance.kinds)
            # "Something to read" is one thing, "What can I read?" is whatever is there.
            if (bool(matches) if as_question else len(matches) == 1) if present else not matches:
                # Two kinds are present twice as often; without weights the words would give that away.
                repeat = 2 if (len(affordance.kinds) == 1) == present else 1
                found.extend([(affordance, matches)] * repeat)
        if not found:
            return None
        affordance, matches = self.rng.choice(found)
        question = self.rng.choice(affordance.questions) if as_question else None
        return ScenePhrase(self.rng.choice(affordance.phrases), matches, "affordance", False, question)

    def unknown(self, present: bool) -> ScenePhrase | None:
        if present:
            return None
        noun = self.rng.choice(UNKNOWN_NOUNS)
        words = f"{self.rng.choice(tuple(COLOURS))} {noun}" if self.rng.chance(0.3) else noun
        return ScenePhrase(self._with_article(words), (), "unknown")


def _box_gap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    """Larger of the horizontal and the vertical distance between two boxes, 0 when they touch or overlap."""
    across = max(first[0], second[0]) - min(first[2], second[2])
    along = max(first[1], second[1]) - min(first[3], second[3])
    return max(0, across, along)


def draw_phrase(
    scene: TabletopScene, rng: TabletopRandom, present: bool, weights: Mapping[str, float] | None = None
) -> ScenePhrase | None:
    """Draw one phrase about a scene.

    Args:
        scene: The scene.
        rng: Where the random numbers come from.
        present: Whether the phrase has to name something in the scene.
        weights: How often each type is tried; the default is `TYPE_WEIGHTS`.

    Returns:
        The phrase, or None if no type in `weights` has one for this scene.

    Raises:
        ValueError: If `weights` names an unknown type or has no positive weight.
    """
    weights = dict(TYPE_WEIGHTS if weights is None else weights)
    unknown = sorted(weights.keys() - TYPE_WEIGHTS.keys())
    if unknown:
        raise ValueError(f"There are no phrase types {', '.join(unknown)}; choose from {', '.join(TYPE_WEIGHTS)}.")
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError(f"At least one phrase type needs a positive weight, got {weights}.")
    speaker = _Speaker(scene, rng)
    for _ in range(PHRASE_TRIES):
        point = rng.uniform(0.0, sum(weights.values()))
        reached = dict(zip(weights, accumulate(weights.values()), strict=True))
        phrase_type = next(name for name, total in reached.items() if point < total)
        phrase = speaker.draw(phrase_type, present)
        if phrase is not None:
            return phrase
    return None
