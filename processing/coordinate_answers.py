"""Boxes and points in what a model wrote: whatever can be read, with a word on everything that was put right.

Nothing that a model writes raises here or is executed: JSON is read object by object, and what is no JSON by its keys
and numbers. How published code reads the same answers is in `published_answers`.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .published_answers import READING_ERRORS, ImageSizes, read_literal
from .token_spans import Span


# Of an answer; the rest is left out, and said to be. The longest published ones have 4,096 tokens.
MAX_CHARACTERS = 50_000
# A larger number is no coordinate of anything; JSON allows 1e300, NaN and Infinity.
MAX_NUMBER = 1e6
# A point that lies further outside, in parts of the side, points at nothing; a nearer one is moved to the edge.
_POINT_MARGIN = 0.05

NOT_JSON = "read although it is no valid JSON"
CUT_OFF = "read although the answer ends within it"
NUMBERS_AS_TEXT = "numbers read that were written as text"
MORE_NUMBERS = "more numbers than needed; the first ones were taken"
SWAPPED = "corners put in order"
CLIPPED = "moved to the edge of the image"
NO_BOX = "box left out: {}"
NO_POINT = "point left out: {}"
NO_EXTENT = "it has no extent in the image"
UNCLOSED = "it does not end"
IS_NO_JSON = "it is no valid JSON"
NO_PAIR = "one of its two numbers is missing"
ALL_NEGATIVE = "it is where the object is not, and nothing says where it is"
OUTSIDE = "it lies outside of the image"
FRACTIONS = "numbers read as fractions of the sides"
AS_PIXELS = "numbers read as pixels of the image"
BARE_NUMBERS = "numbers read that stand by themselves"
NO_TAGS = "the answer stands outside of <answer>"
FENCED = "the answer stands in a code fence that does not belong there"
NOT_WHOLE = "the answer as a whole is no valid JSON"
NO_LIST = "the answer is no list of objects"
NOTHING = "the answer holds no coordinates"
ONLY_CHARACTERS = f"only the first {MAX_CHARACTERS} characters were read"
ONLY_OBJECTS = "only the first {} objects were read"
NOT_EVEN = "points left out: they do not come out even with the boxes"
BEFORE_THE_END = "the answer stands before the end of the thinking"


@dataclass(frozen=True)
class CoordinateObject:
    """
    An object of an answer; it has a box, points or both.

    Args:
        box_xyxy (`tuple[float, float, float, float]`, *optional*): In pixels of the upright image.
        points_xy (`tuple[tuple[float, float], ...]`): Points there.
        point_labels (`tuple[int, ...]`): 1 for each point on the object, 0 for one that is not.
        label (`str`, *optional*): What the model calls it.
        span (`tuple[int, int]`, *optional*): Where it stands in the text of the answer.
        repairs (`tuple[str, ...]`): What was put right, or left out, to read it.
    """

    box_xyxy: tuple[float, float, float, float] | None = None
    points_xy: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[int, ...] = ()
    label: str | None = None
    span: Span | None = None
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class CoordinateAnswer:
    """
    What was read of an answer.

    Args:
        text (`str`): All that was written, without white space around it.
        objects (`tuple[CoordinateObject, ...]`): In the order of the text.
        thinking (`str`): The chain of thought, which stands before the answer proper.
        span (`tuple[int, int]`): Where the answer proper is in the text.
        problems (`tuple[str, ...]`): What could not be read, or is not said where it should be.
        error (`str`, *optional*): What the published code raises on this answer, where that was asked to read it.
    """

    text: str
    objects: tuple[CoordinateObject, ...] = ()
    thinking: str = ""
    span: Span = (0, 0)
    problems: tuple[str, ...] = ()
    error: str | None = None


@dataclass
class _Found:
    """What stands at a place of the text, its numbers not yet understood."""

    span: Span
    box: Any = None
    # with 1 for each that is on the object, 0 for one that is not
    points: list[tuple[Any, int]] = field(default_factory=list)
    label: Any = None
    repairs: list[str] = field(default_factory=list)


Syntax = Callable[[str, int, int], Iterator[_Found]]


def read_objects(
    text: str,
    syntaxes: Sequence[str],
    factors: Callable[[Sequence[float], ImageSizes], tuple[float, float, str | None]],
    sizes: ImageSizes,
    max_objects: int,
    around: str = "",
) -> CoordinateAnswer:
    """
    Args:
        text (`str`): All that was written.
        syntaxes (`Sequence[str]`): Names in `SYNTAXES`; the first with which any numbers are found is taken.
        factors (`Callable`): Of all numbers of the answer and the sizes: pixels per unit (x, y), and what is to be
            said of it.
        sizes ([`ImageSizes`]): Of the image.
        max_objects (`int`): Further ones are left out.
        around (`str`): What should stand around the objects: tags, a list.

    Returns:
        [`CoordinateAnswer`]: All coordinates lie inside the image.
    """
    text = text.strip()
    start, stop, thinking, problems = _find_answer(text, "<answer>" in around)
    if stop - start > MAX_CHARACTERS:
        stop = start + MAX_CHARACTERS
        problems.append(ONLY_CHARACTERS)
    found: list[_Found] = []
    for name in syntaxes if start < stop else ():
        for one in SYNTAXES[name](text, start, stop):
            if len(found) == max_objects:
                problems.append(ONLY_OBJECTS.format(max_objects))
                break
            found.append(one)
        if any(one.box is not None or one.points for one in found):
            problems += _problems_of_json(text[start:stop], around) if name == "json" else []
            break
    checked = [_numbers_of(one) for one in found]
    numbers = [
        abs(number)
        for box, points, _ in checked
        for group in ([box] if box else []) + [point for point, _ in points]
        for number in group
    ]
    *factor, remark = factors(numbers, sizes)
    objects = []
    for one, (box, points, repairs) in zip(found, checked, strict=True):
        repairs = [*repairs, remark] if remark else repairs
        read = _place(one, box, points, repairs, factor, sizes.image)
        if read.box_xyxy is None and not read.points_xy:
            reasons = "; ".join(read.repairs) or "it has no coordinates"
            problems.append(f"{_quoted(text[slice(*one.span)])} could not be read: {reasons}")
        else:
            objects.append(read)
    if not found:
        problems.append(NOTHING)
    return CoordinateAnswer(text, tuple(objects), thinking, (start, stop), tuple(problems))


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


# ---- where the answer is --------------------------------------------------------------------------------------------


def _find_answer(text: str, in_tags: bool) -> tuple[int, int, str, list[str]]:
    """Where the answer proper is in `text`, what was thought before it, and what is to be said of it."""
    problems: list[str] = []
    thought_from, thought_to = (re.search(tag, text, re.IGNORECASE) for tag in ("<think>", "</think>"))
    start, stop = thought_to.end() if thought_to else 0, len(text)
    opening, closing = (re.compile(tag, re.IGNORECASE) for tag in ("<answer>", "</answer>"))
    opened = opening.search(text, start)
    if not opened and (early := opening.search(text)) and closing.search(text, early.end()):
        # Within the thinking it is the answer only where nothing follows, which would be another one.
        is_within = thought_from is None or thought_from.start() < early.start()
        if not re.compile(r"\w" if is_within else r"[\d\[]").search(text, start):
            problems.append(BEFORE_THE_END)
            opened = early
    ends = [found.start() for found in (thought_to, opened) if found]
    if thought_from and not ends:
        problems.append("the model did not come to an end of its thinking")
        ends = [start := stop]
    begin = thought_from.end() if thought_from and thought_from.end() <= max(ends) else 0
    thinking = text[begin : min((end for end in ends if end >= begin), default=0)].strip()
    if opened:
        start = opened.end()
        if opened[0] != "<answer>":
            problems.append(f"{opened[0]} was read as <answer>")
        closed = closing.search(text, start)
        stop = closed.start() if closed else stop
        if not closed:
            problems.append("the answer does not end")
        elif opening.search(text, stop):
            problems.append("a second answer was left out")
    elif in_tags and start < stop:
        problems.append(NO_TAGS)
    return start, stop, thinking, problems


# ---- how objects are written ----------------------------------------------------------------------------------------

_DECODER = json.JSONDecoder()
_CHUNK = re.compile(r"\{[^{}]*\}?")
# Python's spelling of an object without others in it; braces in quotes are none.
_PYTHON_OBJECT = re.compile(r"""\{(?:[^{}"']|"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')*+\}""")
_LONGEST_PYTHON_OBJECT = 2000
# A key with a row of numbers, or with a label; a bracket that is closed by the brace of the object counts as closed.
_ENTRY = re.compile(
    r"""["']?(\w{1,40})["']?\s*:\s*"""
    r"""(?:(\[[\d\s.,eE+\-\[\]"']*)(\}?)|"((?:[^"\\]|\\.)*+)"|'((?:[^'\\]|\\.)*+)')"""
)
_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
# Numbers written as one text: "10, 20, 30, 40", "[10, 20, 30, 40]", "(10, 20), (30, 40)".
_NUMBERS_IN_TEXT = re.compile(r"[\d\s.,;eE+\-\[\]()]{1,200}")
_NAMED_NUMBERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x", "y"))
_COORDINATE_KEY = re.compile("box|point", re.IGNORECASE)
_NEGATIVE = re.compile("neg|background")
_LABEL_KEYS = ("label", "labels", "name", "category", "object", "text_content", "text")
# Braces at which an object is looked for: each trial reads on to the first error, so that more would take long.
_MAX_TRIALS = 500


def _json_objects(text: str, start: int, stop: int) -> Iterator[_Found]:
    """`{"bbox_2d": [...], "point_2d": [...], "label": ...}`, in a list or not."""
    whole, position, trials = text[:stop], start, 0
    while (brace := whole.find("{", position)) >= 0 and trials < _MAX_TRIALS:
        trials += 1
        repairs: list[str] = []
        try:
            value, end = _DECODER.raw_decode(whole, brace)
        except (ValueError, RecursionError):
            value, end = _python_object(whole, brace)
            if value is None:
                chunk = _CHUNK.match(whole, brace)
                end = chunk.end()
                value = _loose_object(chunk[0], end == stop)
            repairs.append(CUT_OFF if end == stop and not whole.endswith("}") else NOT_JSON)
        found = _from_keys(value, (brace, end), repairs) if isinstance(value, dict) else []
        is_closed = whole[end - 1] == "}"
        if repairs and not found and (is_closed or end == stop) and _COORDINATE_KEY.search(whole, brace, end):
            found = [_Found((brace, end), repairs=[IS_NO_JSON if is_closed else UNCLOSED])]
        position = end if found else brace + 1  # objects may be inside
        yield from found


def _problems_of_json(answer: str, around: str) -> list[str]:
    """What is wrong with an answer as a whole, whose objects could be read by themselves."""
    fence = "```json\n"
    problems = [FENCED] if "```" in answer and not (fence in around and fence in answer) else []
    try:
        whole = json.loads(re.sub(r"```[ \t]*\w*", "", answer))
    except (ValueError, RecursionError):
        return [*problems, NOT_WHOLE]
    is_list = isinstance(whole, list) and all(isinstance(one, dict) for one in whole)
    return [*problems, NO_LIST] if "[" in around and not is_list else problems


def _python_object(text: str, brace: int) -> tuple[dict[str, Any] | None, int]:
    """An object with single quotes, tuples, trailing commas, None ...; and where it ends."""
    found = _PYTHON_OBJECT.match(text, brace)
    if found is None or found.end() - brace > _LONGEST_PYTHON_OBJECT:
        return None, brace
    try:
        value = read_literal(found[0])
    except READING_ERRORS:
        return None, brace
    return (value if isinstance(value, dict) else None), found.end()


def _loose_object(chunk: str, is_last: bool) -> dict[str, Any]:
    """Keys and values of an object that is no JSON; the last row of numbers of a text that was cut off is left out."""
    entries: dict[str, Any] = {}
    for key, numbers, brace, label, other_label in _ENTRY.findall(chunk):
        if not numbers:
            entries[key] = re.sub(r"\\(.)", r"\1", label or other_label, flags=re.DOTALL)
            continue
        rows = [row for row in re.findall(r"\[[^\[\]]*\]?", numbers) if row.endswith("]") or brace or not is_last]
        read = [[float(number) for number in re.findall(_NUMBER, row)] for row in rows]
        if read := [row for row in read if row]:
            entries[key] = read[0] if len(read) == 1 else read
    return entries


def _from_keys(value: dict[str, Any], span: Span, repairs: list[str]) -> list[_Found]:
    """
    By what their keys are called a box, up to any number of points, and a label; of several boxes each is an object,
    with its point and its label where there are as many. Empty where there are none, or they are objects themselves.
    """
    boxes, points, labels, point_labels = [], [], [None], []
    if (own := _by_names(value)) is not None:
        (boxes if len(own) == 4 else points).append(own if len(own) == 4 else (own, 1))
    for key, entry in value.items():
        name, entry = str(key).lower(), _as_row(entry)
        rows = entry if isinstance(entry, list) and all(isinstance(row, list) for row in entry) else []
        if "label" in name and (
            "point" in name or (isinstance(entry, list) and 1 in entry and _zeros_and_ones(entry))
        ):
            point_labels = entry if isinstance(entry, list) else [entry]
        elif (name in _LABEL_KEYS or ("label" in name and "box" in name)) and isinstance(entry, (str, list)):
            labels = entry if isinstance(entry, list) else [entry]
        elif "box" in name and entry is not None:
            # Two corners in brackets of their own are one box.
            boxes += rows if rows and all(len(row) >= 4 for row in rows) else [entry]
        elif "point" in name and entry is not None:
            points += [(one, int(not _NEGATIVE.search(name))) for one in rows or [entry]]
    # Keys such as "box_format" and "num_points" name none.
    boxes = [one for one in boxes if isinstance(one, list)] or boxes
    points = [one for one in points if isinstance(one[0], list)] or points
    lists = [one for one in (*boxes, *(point for point, _ in points)) if isinstance(one, list) and one]
    are_objects = [all(isinstance(part, dict) for part in one) for one in lists]
    if not (boxes or points) or (lists and all(are_objects)):
        return []
    if len(written := _zeros_and_ones(point_labels)) == len(points):
        points = [(point, label) for (point, _), label in zip(points, written, strict=True)]
    count = max(len(boxes), 1)
    labels = labels if len(labels) == count else [None] * count if len(labels) != 1 else labels * count
    if count == 1:
        return [_Found(span, next(iter(boxes), None), points, labels[0], repairs)]
    pairs = [[point] for point in points] if len(points) == count else [[]] * count
    repairs = [*repairs, NOT_EVEN] if len(points) not in (0, count) else repairs
    return [_Found(span, box, own, label, repairs) for box, own, label in zip(boxes, pairs, labels, strict=True)]


def _zeros_and_ones(written: list[Any]) -> list[int]:
    """Labels of points, as segmenters have them; none where they are anything else."""
    return [int(one) for one in written] if all(isinstance(one, int) and one in (0, 1) for one in written) else []


def _as_row(entry: Any, within: bool = False) -> Any:
    """A tuple, numbers in one text, or numbers with a name each, as a list; `within` another, a list of several."""
    if isinstance(entry, (list, tuple)):
        return list(entry) if within else [_as_row(one, within=True) for one in entry]
    if isinstance(entry, str) and _NUMBERS_IN_TEXT.fullmatch(entry):
        found = re.findall(_NUMBER, entry)
        return found if len(found) > within else entry
    row = _by_names(entry) or []
    return row if len(row) == 2 or (row and not within) else entry


def _by_names(value: Any) -> list[Any] | None:
    """The numbers of `{"x1": .., "y1": .., "x2": .., "y2": ..}` or `{"x": .., "y": ..}`, in this order."""
    names = {str(name).lower(): number for name, number in value.items()} if isinstance(value, dict) else {}
    for wanted in () if names.keys() & {"w", "h", "width", "height"} else _NAMED_NUMBERS:
        if all(name in names for name in wanted):
            return [names[name] for name in wanted]
    return None


_REF = re.compile(r"<ref>([^<]*)</ref>|<box>([^<]*)")
_ROW_OF_FOUR = re.compile(rf"\[\s*({_NUMBER}(?:\s*,\s*{_NUMBER}){{3}})\s*\]")


def _ref_boxes(text: str, start: int, stop: int) -> Iterator[_Found]:
    """`<ref>label</ref><box>[[x1, y1, x2, y2], ...]</box>`."""
    label = None
    for found in _REF.finditer(text, start, stop):
        if found[2] is None:
            label = found[1].strip()
            continue
        rows = list(re.finditer(r"\[[^\[\]]*\]?", text[found.start(2) : found.end(2)]))
        for row in rows:
            span = (found.start(2) + row.start(), found.start(2) + row.end())
            if row[0].endswith("]"):
                yield _Found(span, box=[float(number) for number in re.findall(_NUMBER, row[0])], label=label)
            elif row[0][1:].strip():  # else it is the list's own bracket
                yield _Found(span, repairs=[NO_BOX.format(UNCLOSED)])


def _bare_boxes(text: str, start: int, stop: int) -> Iterator[_Found]:
    """`[x1, y1, x2, y2]` without anything that says what it is."""
    for found in _ROW_OF_FOUR.finditer(text, start, stop):
        yield _Found(found.span(), box=[float(number) for number in found[1].split(",")], repairs=[BARE_NUMBERS])


_CORNERS = re.compile(rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)(?:\s*,)?\s*\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)")


def _corner_pairs(text: str, start: int, stop: int) -> Iterator[_Found]:
    """Two corners, `(x1,y1),(x2,y2)`, as Qwen-VL and Qwen2-VL write boxes."""
    for found in _CORNERS.finditer(text, start, stop):
        yield _Found(found.span(), box=list(map(float, re.findall(_NUMBER, found[0]))), repairs=[BARE_NUMBERS])


_POINT_TAG = re.compile(r"<points?\b([^<>]*)>?(?:([^<>]*)</points?>)?")
_ATTRIBUTE = re.compile(r"""\b(\w{1,20})\s*=\s*(?:"([^"]*)"|'([^']*)')""")


def _point_tags(text: str, start: int, stop: int) -> Iterator[_Found]:
    """`<point x="10.5" y="20.1" alt="label">label</point>`, and `<points x1=".." y1=".." ...>`."""
    for tag in _POINT_TAG.finditer(text, start, stop):
        values = {name: one or other for name, one, other in _ATTRIBUTE.findall(tag[1])}
        label = values.get("alt") or (tag[2] or "").strip() or None
        for name, value in values.items():
            if name[0] != "x" or not (name[1:].isdecimal() or name == "x"):
                continue
            if (y := values.get(f"y{name[1:]}")) is None:
                yield _Found(tag.span(), repairs=[NO_POINT.format(NO_PAIR)])
                continue
            numbers = [float(one) if re.fullmatch(rf"\s*{_NUMBER}\s*", one) else one for one in (value, y)]
            yield _Found(tag.span(), points=[(numbers, 1)], label=label)


_PAIR = re.compile(
    r"\(\s*(\d{1,3}(?:\.\d+)?)(?:\s*,\s*|\s+)(\d{1,3}(?:\.\d+)?)\s*\)|(?:\d|p)\s?=\s?(\d{3})\s?,\s?(\d{3})"
)


def _point_pairs(text: str, start: int, stop: int) -> Iterator[_Found]:
    """Molmo's other spellings: `Click(x, y)`, `(x, y)`, and `p=125,400` in tenths."""
    for pair in _PAIR.finditer(text, start, stop):
        point = [float(pair[1]), float(pair[2])] if pair[1] else [int(pair[3]) / 10, int(pair[4]) / 10]
        yield _Found(pair.span(), points=[(point, 1)])


SYNTAXES: dict[str, Syntax] = {
    "json": _json_objects,
    "ref": _ref_boxes,
    "points": _point_tags,
    "pairs": _point_pairs,
    "bare": _bare_boxes,
    "corners": _corner_pairs,
}


# ---- what their numbers mean ----------------------------------------------------------------------------------------


def _numbers_of(found: _Found) -> tuple[list[float] | None, list[tuple[list[float], int]], list[str]]:
    """The numbers of the box and of the points, with their labels, where they are numbers, and what is to be said."""
    repairs, box, points = list(found.repairs), None, []
    of_points = [(point, 2, NO_POINT, label) for point, label in found.points]
    for value, count, left_out, label in ((found.box, 4, NO_BOX, 1), *of_points):
        if value is None:
            continue
        try:
            numbers, remarks = _row_of_numbers(value, count)
        except ValueError as error:
            repairs.append(left_out.format(error))
            continue
        repairs += [remark for remark in dict.fromkeys(remarks) if remark not in repairs]
        if count == 4:
            box = numbers
        else:
            points.append((numbers, label))
    return box, points, repairs


def _row_of_numbers(value: Any, count: int) -> tuple[list[float], list[str]]:
    """Exactly `count` numbers; a `ValueError` says why there are none."""
    remarks = []
    if isinstance(value, list) and any(isinstance(one, list) for one in value):
        value = [number for one in value for number in (one if isinstance(one, list) else [one])]
    if not isinstance(value, list) or len(value) < count:
        raise ValueError(f"{count} numbers are needed")
    if len(value) > count:
        remarks.append(MORE_NUMBERS)
    numbers = []
    for one in value[:count]:
        if isinstance(one, str) and len(one) < 30 and re.fullmatch(rf"\s*{_NUMBER}\s*", one):
            one = float(one)
            remarks.append(NUMBERS_AS_TEXT)
        if isinstance(one, bool) or not isinstance(one, (int, float)):
            raise ValueError(f"{_quoted(str(one))} is no number")
        if not math.isfinite(one) or abs(one) > MAX_NUMBER:
            raise ValueError(f"{one} is no coordinate")
        numbers.append(float(one))
    return numbers, remarks


def _place(
    found: _Found,
    box: list[float] | None,
    points: list[tuple[list[float], int]],
    repairs: list[str],
    factor: Sequence[float],
    image_size: tuple[int, int],
) -> CoordinateObject:
    """The object in pixels of the image, all inside it."""
    height, width = image_size
    repairs = list(repairs)
    placed_box, placed_points, labels = None, [], []
    if box is not None:
        left, top, right, bottom = (number * factor[axis % 2] for axis, number in enumerate(box))
        ordered = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        inside = tuple(min(max(edge, 0.0), (width, height)[axis % 2]) for axis, edge in enumerate(ordered))
        if inside[0] < inside[2] and inside[1] < inside[3]:
            placed_box = inside
            repairs += [SWAPPED] * (ordered != (left, top, right, bottom)) + [CLIPPED] * (inside != ordered)
        else:
            repairs.append(NO_BOX.format(NO_EXTENT))
    for point, point_label in points:
        x, y = (number * factor[axis] for axis, number in enumerate(point))
        if not (_is_near(x, width) and _is_near(y, height)):
            repairs.append(NO_POINT.format(OUTSIDE))
            continue
        inside = (min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0))
        # The right and the lower edge of the image are coordinates, too, but no pixel begins there.
        if (x, y) != inside and not (0 <= x <= width and 0 <= y <= height) and CLIPPED not in repairs:
            repairs.append(CLIPPED)
        placed_points.append(inside)
        labels.append(point_label)
    if placed_box is None and 1 not in labels:
        repairs += [NO_POINT.format(ALL_NEGATIVE)] * len(labels)
        placed_points, labels = [], []
    label = read_label(found.label)
    return CoordinateObject(placed_box, tuple(placed_points), tuple(labels), label, found.span, tuple(repairs))


def read_label(label: Any) -> str | None:
    """A label that is a text, without white space around it; half a pair of surrogates, for which JSON has a spelling
    and UTF-8 has none, becomes a question mark."""
    return (isinstance(label, str) and label.encode("utf-8", "replace").decode().strip()) or None


def _is_near(value: float, size: int) -> bool:
    return -_POINT_MARGIN * size <= value <= (1 + _POINT_MARGIN) * size


__all__ = ["CoordinateAnswer", "CoordinateObject", "read_objects"]
