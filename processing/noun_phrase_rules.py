"""Noun phrases of English captions by rules: a dependency-light stand-in for a parser."""

import re
from dataclasses import dataclass


Span = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*['’]?", re.UNICODE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this that these those some any each every several many few both all another other no more most various "
    "numerous multiple different certain his her its their my our your whose one two three four five six seven eight "
    "nine ten eleven twelve dozen"
)
# After these a word is a noun or an adjective, however it is spelled ("the display"); the others stand alone as well.
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
# What follows these needs not be a noun ("to run", "as tall", "up high").
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
# Of these the ones that something stands after: "enjoys lunch".
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
# Nouns that stand without a determiner though they are no plurals.
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
        match (`re.Match[str]`): Where it stands.
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
    """The word at an index, unless punctuation stands before the word at `gap_index`."""
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
    """ "a large, red bus", "an orange and white cat": what stands between adjectives ends no phrase."""
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


__all__ = ["rule_noun_phrases"]
