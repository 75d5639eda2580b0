"""Noun phrases of English captions by rules: a dependency-light stand-in for a parser."""

import re


Span = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*['’]?", re.UNICODE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this that these those some any each every several many few both all another other no more most various "
    "numerous multiple different certain his her its their my our your whose one two three four five six seven eight "
    "nine ten eleven twelve dozen"
)
# Behind these a word is a noun or an adjective, however it is spelled ("the display"); the others stand alone as well.
_NOUN_OPENERS = _words("a an the his her its their my our your")
_PRONOUNS = _words(
    "i you he she it we they me him us them who whom which what someone something anyone anything everyone everything "
    "nobody nothing one's there here himself herself itself themselves others each"
)
_PREPOSITIONS = _words(
    "of in on at by with without from to into onto over under above below behind beside besides between among along "
    "across around near next against through toward towards upon within inside outside off out up down during for as "
    "like about after before beneath beyond amid amidst atop alongside throughout past via than per"
)
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
    "sitting standing contributing emphasizing"
)
_ADVERBS = _words(
    "very quite rather too also just only even still already almost nearly together away back not never always often "
    "sometimes perhaps maybe possibly likely well then now again once further closer left's overall additionally "
    "however meanwhile furthermore moreover respectively especially apart ahead nearby indoors outdoors"
)
_ADJECTIVES = _words(
    "red green blue yellow black white brown grey gray orange pink purple large small big little tall short long old "
    "young new open closed empty full bright dark clear cloudy sunny busy happy ready available close far high low "
    "able aware similar beautiful colorful calm quiet wet dry clean dirty"
)
_BREAKS = _PRONOUNS | _PREPOSITIONS | _CONJUNCTIONS | _VERBS | _ADVERBS
# Nouns that stand without a determiner though they are no plurals.
_BARE_NOUNS = _words(
    "people men women children grass water snow sand food furniture traffic sky ground fruit bread rice pizza luggage "
    "equipment clothing sheep cattle wood glass fire smoke dirt"
)
_NO_PLURALS = ("ss", "us", "is", "'s", "’s")


def rule_noun_phrases(text: str) -> list[tuple[Span, Span]]:
    """
    Args:
        text (`str`): English.

    Returns:
        `list[tuple[Span, Span]]`: Range of each phrase and of its core word, in reading order.
    """
    found = []
    for run in _runs(text):
        phrase = _longest_phrase(run, text)
        if phrase is not None:
            found.append(phrase)
    return found


def _runs(text: str) -> list[list[re.Match[str]]]:
    """Words between punctuation, function words and verbs; a determiner opens a new run."""
    runs: list[list[re.Match[str]]] = [[]]
    previous_stop = 0
    for word in _WORD.finditer(text):
        lower = word[0].lower()
        between = text[previous_stop : word.start()]
        # "a large, red bus": the comma stands between adjectives.
        continues = between.strip() == "," and _awaits_noun(runs[-1])
        if (between.strip() or "\n" in between) and not continues:
            runs.append([])
        previous_stop = word.end()
        run = runs[-1]
        if lower in _DETERMINERS:
            # "the two dogs" is one phrase; "the dog the man holds" are two.
            if run and not all(_is_determiner(other) for other in run):
                runs.append([])
            runs[-1].append(word)
        elif _breaks(lower, run):
            runs.append([])
        else:
            run.append(word)
    return [run for run in runs if run]


def _breaks(lower: str, run: list[re.Match[str]]) -> bool:
    content = [word for word in run if not _is_determiner(word)]
    if lower in _VERBS and run and not content:
        # "the display", "a show"; but "this is", "each holds".
        return run[-1][0].lower() not in _NOUN_OPENERS
    if lower in _BREAKS:
        return True
    if lower.endswith("ly") and len(lower) > 4:
        return True
    # "a dog sitting": a participle behind the noun; "a sitting dog": an adjective.
    return bool(content) and lower.endswith("ing") and len(lower) > 4


def _awaits_noun(run: list[re.Match[str]]) -> bool:
    """Whether a run so far is a determiner with adjectives."""
    content = [word for word in run if not _is_determiner(word)]
    return 0 < len(content) < len(run) and all(word[0].lower() in _ADJECTIVES for word in content)


def _longest_phrase(run: list[re.Match[str]], text: str) -> tuple[Span, Span] | None:
    words = list(run)
    has_determiner = _is_determiner(words[0]) or words[0][0].isdigit()
    # "a woman dressed": a participle at the end belongs to what follows.
    while len(words) > 1 and _is_past_participle(words[-1][0].lower()) and not _is_determiner(words[-2]):
        words.pop()
    core = words[-1]
    lower = core[0].lower()
    if _is_determiner(core):
        return None
    if not has_determiner:
        if lower in _ADJECTIVES or _is_past_participle(lower) or lower.endswith("ing"):
            return None
        is_name = core[0][0].isupper() and _stands_inside(core, text)
        if not (_is_plural(lower) or lower in _BARE_NOUNS or is_name):
            return None
    return (words[0].start(), core.end()), (core.start(), core.end())


def _is_determiner(word: re.Match[str]) -> bool:
    return word[0].lower() in _DETERMINERS or word[0].isdigit()


def _is_past_participle(lower: str) -> bool:
    return lower.endswith("ed") and len(lower) > 4


def _is_plural(lower: str) -> bool:
    return len(lower) > 2 and lower.endswith("s") and not lower.endswith(_NO_PLURALS)


def _stands_inside(word: re.Match[str], text: str) -> bool:
    """Whether a word does not begin a sentence, so that its capital letter says something."""
    before = text[: word.start()].rstrip()
    return bool(before) and before[-1] not in ".!?:\n"


__all__ = ["rule_noun_phrases"]
