"""How published code reads boxes and points from answers, slips included: what an answer counts in their numbers.

Every function takes a text and the [`ImageSizes`] and returns a [`PublishedAnswer`], or raises where the original
does, one of `READING_ERRORS`; where that reads a variable which was never set, a `ValueError`. Sources:

- Seg-Zero: its `inference_scripts/infer.py`; VisionReasoner: its evaluation script, which lives there as well and
  raises, and its package, which returns nothing;
- StAR: its inference and its evaluation, each for Qwen2.5-VL and Qwen3-VL;
- Qwen: the cookbooks of Qwen2.5-VL and Qwen3-VL on grounding, their evaluation on ODinW, and the baseline of
  VisionReasoner's package;
- InternVL: the evaluation on RefCOCO, and the demo; Molmo: `extract_points` and `extract_bboxes`.
"""

import ast
import json
import math
import re
import warnings
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np


READING_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    SyntaxError,
    RecursionError,
    MemoryError,
)
# StAR on Qwen3-VL: the largest number of an answer up to which all are fractions, and thousandths.
LARGEST_FRACTION, LARGEST_THOUSANDTH = 1.2, 1000.5


class ImageSizes(NamedTuple):
    """
    Both (height, width).

    Args:
        image (`tuple[int, int]`): The upright image, in whose pixels results are.
        seen (`tuple[int, int]`): What the vision-language model saw, in whose pixels some of them write.
    """

    image: tuple[int, int]
    seen: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the image per pixel that was seen, (x, y)."""
        return self.image[1] / self.seen[1], self.image[0] / self.seen[0]


@dataclass
class PublishedAnswer:
    """
    Args:
        boxes (`list`): `[x1, y1, x2, y2]` each, in pixels of the image, which they may leave.
        points (`list`): `[x, y]` each, there.
        labels (`list[str]`): One per box, of code that reads them.
        thinking (`str`, *optional*): What the model wrote before its answer; `None` of code that does not look for it.
        points_per_box (`int`): How many points belong to a box.
        zeros_are_nothing (`bool`): Whether a box of zeros says that none was found.
        draws_boxes_alone (`bool`): Whether points are read, but do not prompt.
        draws_pairs (`bool`): Whether as many are drawn as there are both boxes and points, in the order of either.
    """

    boxes: list[list[float]] = field(default_factory=list)
    points: list[list[float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    thinking: str | None = None
    points_per_box: int = 1
    zeros_are_nothing: bool = False
    draws_boxes_alone: bool = False
    draws_pairs: bool = False


PublishedReader = Callable[[str, ImageSizes], PublishedAnswer]


# ---- Seg-Zero and VisionReasoner ------------------------------------------------------------------------------------


def half_up(value: float, factor: float) -> int:
    """VisionReasoner's pixel: halves up, negative numbers towards zero."""
    return int(value * factor + 0.5)


def truncated_first(value: float, factor: float) -> int:
    """Seg-Zero's pixel: the number truncated, the pixel rounded, halves to even."""
    return round(int(value) * factor)


def seg_zero(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """The first `{...}` without another `}`, wherever it stands: a box and two points."""
    found = _first_braces(text)
    data = {} if found is None else json.loads(found)
    boxes = [data[key] for key in data if "bbox" in key.lower()][:1]
    points = [data[key] for key in data if "points" in key.lower()][:2]
    box = [truncated_first(*pair) for pair in zip(boxes[0], sizes.scale * 2, strict=True)] if boxes else []
    if not box or len(points) != 2:
        raise ValueError("a box of four numbers and two points are needed")
    points = [[truncated_first(point[axis], sizes.scale[axis]) for axis in (0, 1)] for point in points]
    thinking = _plain_thinking(text)
    if thinking is None:
        raise ValueError("<think> is missing")
    return PublishedAnswer([box], points, thinking=thinking, points_per_box=2)


def _first_braces(text: str) -> str | None:
    """The first `{...}` that holds something but no `}`; by `find`, see `_between`."""
    start = text.find("{")
    while start >= 0 and (stop := text.find("}", start)) == start + 1:
        start = text.find("{", stop)
    return None if start < 0 or stop < 0 else text[start : stop + 1]


def vision_reasoner_script(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """A list of objects in `<answer>`, of which each has a box and a point."""
    answer = _in_answer_tags(text)
    if answer is None:
        raise ValueError("<answer> is missing")
    objects = json.loads(answer)
    boxes, points = [_box(one, sizes) for one in objects], [_point(one, sizes) for one in objects]
    return PublishedAnswer(boxes, points, thinking=_plain_thinking(text) or "")


def vision_reasoner_package(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """The same, but what cannot be read is left out: one box leads to no boxes, one point to no points."""
    read = PublishedAnswer(thinking=_plain_thinking(text) or "")
    answer = _in_answer_tags(text)
    with suppress(*READING_ERRORS):
        objects = json.loads(answer or "")
        read.boxes = [_box(one, sizes) for one in objects]
        read.points = [_point(one, sizes) for one in objects]
    return read


def _in_answer_tags(text: str) -> str | None:
    return _between(text, "<answer>", "</answer>")


def _between(text: str, opening: str, closing: str) -> str | None:
    """What stands between the first of each, without white space around it; by `find`, as expressions with `.*?` may
    take a time that is quadratic in the length of the text."""
    start = text.find(opening)
    stop = text.find(closing, start + len(opening))
    return None if start < 0 or stop < 0 else text[start + len(opening) : stop].strip()


def _plain_thinking(text: str) -> str | None:
    """What is in `<think>`, unless it holds a `<`."""
    found = re.search("<think>([^<]+)</think>", text)
    return None if found is None else found[1]


def _box(found: Any, sizes: ImageSizes) -> list[int]:
    return [half_up(found["bbox_2d"][edge], sizes.scale[edge % 2]) for edge in range(4)]


def _point(found: Any, sizes: ImageSizes) -> list[int]:
    return [half_up(found["point_2d"][axis], sizes.scale[axis]) for axis in range(2)]


# ---- StAR -----------------------------------------------------------------------------------------------------------

_POINT_OPENS = re.compile(r'"point_2d"\s*:\s*\[')
_ROWS_OPEN = (re.compile(r'"bbox_2d"\s*:\s*\['), _POINT_OPENS)


def _with_points_closed(text: str, end: re.Pattern, mended: str) -> str:
    """A point that comes to such an `end` before any `]` ends as `mended`."""
    kept, start, bracket, found = [], 0, -1, None
    for opened in _POINT_OPENS.finditer(text):
        if opened.start() < start:
            continue
        if found is None or found.start() < opened.end():
            found = end.search(text, opened.end())
        if found is None:
            break
        if bracket < opened.end():
            bracket = text.find("]", opened.end())
            bracket = len(text) if bracket < 0 else bracket
        if found.start() < bracket:
            kept += [text[start : found.start()], mended]
            start = found.end()
    return "".join(kept) + text[start:]


def _without_quotes_in_rows(text: str) -> str:
    for opens in _ROWS_OPEN:
        kept, start = [], 0
        while (opened := opens.search(text, start)) and (stop := text.find("]", opened.end())) >= 0:
            kept += [text[start : opened.end()], text[opened.end() : stop].replace('"', ""), "]"]
            start = stop + 1
        text = "".join(kept) + text[start:]
    return text


def _without_quotes_after_rows(text: str) -> str:
    for opens in _ROWS_OPEN:
        kept, start, stop = [], 0, -1
        for opened in opens.finditer(text):
            stop = text.find("]", opened.end()) if stop < opened.end() else stop
            if stop < 0:
                break
            if opened.start() >= start and text.startswith('"', stop + 1):
                kept.append(text[start : stop + 1])
                start = stop + 2
        text = "".join(kept) + text[start:]
    return text


# In this order, where the text is not JSON. The authors have one expression for each, most of which read on to the
# same bracket from everything that may be their beginning; that takes a time that is quadratic in the text's length.
_STAR_REPAIRS = (
    partial(_with_points_closed, end=re.compile(r"\}\s*\}"), mended="]}"),
    partial(_with_points_closed, end=re.compile(r"\}\s*\]"), mended="]}]"),
    partial(re.compile(r"\}\}(?=\s*\])").sub, "}"),
    _without_quotes_in_rows,
    _without_quotes_after_rows,
)


def star_inference(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """StAR on Qwen2.5-VL: as VisionReasoner, with labels and repairs; nothing where even these fail."""
    objects = _star_objects(text, lenient=True)
    return _star_pixels(objects, sizes, [one.get("label", "") for one in objects], _thinking_before(text, False))


def star_evaluation(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """The same in the evaluation, which raises instead and needs labels; `[{}]` is nothing there."""
    objects = _star_objects(text, lenient=False)
    return _star_pixels(objects, sizes, [one["label"] for one in objects], _thinking_before(text, False))


def _star_pixels(objects: list, sizes: ImageSizes, labels: list[str], thinking: str) -> PublishedAnswer:
    boxes, points = [_box(one, sizes) for one in objects], [_point(one, sizes) for one in objects]
    return PublishedAnswer(boxes, points, labels, thinking)


def star_inference_qwen3(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """StAR on Qwen3-VL: what is no object is left out, and so is a box or a point of another length."""
    objects = _star_objects(text, lenient=True)
    objects = [one for one in objects if isinstance(one, dict)] if isinstance(objects, list) else []
    return _star_relative(objects, sizes, [one.get("label", "") for one in objects], _thinking_before(text, True))


def star_evaluation_qwen3(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """The same in the evaluation, which needs labels, widens boxes of no extent, and has a point for each box, zeros
    where there is none."""
    objects = _star_objects(text, lenient=False)
    read = _star_relative(objects, sizes, [one["label"] for one in objects], _thinking_before(text, True))
    height, width = sizes.image
    for box in read.boxes:
        for low, high, size in ((0, 2, width), (1, 3, height)):
            if box[high] <= box[low]:
                box[high] = min(box[low] + 1, size - 1)
                box[low] = min(box[low], max(size - 2, 0))
    read.points = [*read.points, *([[0, 0]] * len(read.boxes))][: len(read.boxes)]
    return read


def _star_objects(text: str, lenient: bool) -> list:
    """What is in the answer; `lenient` as in inference, where what no repair makes readable is nothing."""
    answer = _in_answer_tags(text)
    if answer is None:
        return []
    try:
        objects = json.loads(answer)
    except json.JSONDecodeError:
        for repair in _STAR_REPAIRS:
            answer = repair(answer)
        try:
            objects = json.loads(answer)
        except json.JSONDecodeError:
            if not lenient:
                raise
            return []
    if lenient:
        return objects or []
    return [] if objects in ([], [{}]) else objects


def _star_relative(objects: list[dict], sizes: ImageSizes, labels: list[str], thinking: str) -> PublishedAnswer:
    read = PublishedAnswer(labels=labels, thinking=thinking, draws_pairs=True)
    numbers = {name: [one[name] for one in objects if isinstance(one.get(name), list)] for name in _LENGTHS}
    groups = {name: [group for group in groups if len(group) == _LENGTHS[name]] for name, groups in numbers.items()}
    largest = max((_magnitude(value) for kind in groups.values() for group in kind for value in group), default=0.0)
    for name, found in groups.items():
        for group in found:
            pixels = [relative_pixel(value, largest, sizes.image[1 - axis % 2]) for axis, value in enumerate(group)]
            if name == "point_2d":
                read.points.append(pixels)
            else:
                read.boxes.append([*map(min, pixels[:2], pixels[2:]), *map(max, pixels[:2], pixels[2:])])
    return read


_LENGTHS = {"bbox_2d": 4, "point_2d": 2}


def _magnitude(value: Any) -> float:
    """How large a number is, 0 where it is none."""
    with suppress(*READING_ERRORS):
        return abs(float(value)) if math.isfinite(float(value)) else 0.0
    return 0.0


def relative_pixel(value: Any, largest: float, size: int) -> int:
    """StAR's pixel on Qwen3-VL, within the image; what the number means is said by the `largest` of its answer."""
    if largest <= LARGEST_FRACTION:
        pixel = round(float(value) * (size - 1))
    elif largest <= LARGEST_THOUSANDTH:
        pixel = round(float(value) * (size - 1) / 999)
    else:
        pixel = round(value)
    return min(max(pixel, 0), size - 1)


def _thinking_before(text: str, without_tags: bool) -> str:
    """Up to the first `</think>`; on Qwen3-VL, where nothing is in such tags, all that stands before the answer."""
    thinking = _between(text, "<think>", "</think>")
    before, answer, _ = text.partition("<answer>")
    return thinking or (before.strip() if without_tags and answer else "")


# ---- Qwen -----------------------------------------------------------------------------------------------------------


def qwen2_5_cookbook(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """A list in a fence that is opened by exactly the line "```json"; in pixels of what the model saw."""
    return _cookbook(text, lambda value, axis: int(value / sizes.seen[1 - axis] * sizes.image[1 - axis]))


def qwen3_cookbook(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """The same in thousandths of width and height."""
    return _cookbook(text, lambda value, axis: int(value / 1000 * sizes.image[1 - axis]))


def _cookbook(text: str, to_pixel: Callable[[float, int], int]) -> PublishedAnswer:
    lines = text.splitlines()
    if "```json" in lines:
        text = "\n".join(lines[lines.index("```json") + 1 :]).split("```")[0]
    try:
        objects = read_literal(text)
    except READING_ERRORS:
        objects = read_literal(text[: text.rfind('"}') + 2] + "]")
    read = PublishedAnswer()
    for found in objects if isinstance(objects, list) else [objects]:
        box = [to_pixel(found["bbox_2d"][edge], edge % 2) for edge in range(4)]
        read.boxes.append([*map(min, box[:2], box[2:]), *map(max, box[:2], box[2:])])
        read.labels.append(found.get("label", ""))
    return read


def read_literal(text: str) -> Any:
    """What Python's spelling of lists, numbers, texts ... means; nothing is executed."""
    with warnings.catch_warnings():  # Python has some for what is written, such as "\\d"
        warnings.simplefilter("ignore")
        return ast.literal_eval(text)


def qwen2_5_odinw(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """A list between fences of any kind, less what has no box of four; all is lost where a label is missing."""
    return _odinw(text, lambda value, axis: value / sizes.seen[1 - axis] * sizes.image[1 - axis])


def qwen3_odinw(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """The same in thousandths."""
    return _odinw(text, lambda value, axis: value / 1000 * sizes.image[1 - axis])


def _odinw(text: str, to_pixel: Callable[[float, int], float]) -> PublishedAnswer:
    read, found = PublishedAnswer(), []
    with suppress(*READING_ERRORS):
        objects = read_literal(text.replace("```json", "").replace("```", ""))
        of_four = [one for one in objects if len(one.get("bbox_2d", [])) == 4]
        found = [(one["bbox_2d"], one["label"]) for one in of_four]
    for box, label in found:
        read.boxes.append([to_pixel(value, edge % 2) for edge, value in enumerate(box)])
        read.labels.append(label)
    return read


def qwen2_5_baseline(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """VisionReasoner's baseline takes the numbers for pixels of the image itself, whatever the model saw; it reads
    points, and draws by boxes alone."""
    return _baseline(text, lambda value, axis: int(value))


def qwen2_baseline(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """The same in thousandths."""
    return _baseline(text, lambda value, axis: int(value * (sizes.image[1 - axis] / 1000)))


_BASELINE_KEYS = {"bbox": 4, "bbox_2d": 4, "point": 2, "point_2d": 2}


def _baseline(text: str, to_pixel: Callable[[float, int], int]) -> PublishedAnswer:
    read, fenced = PublishedAnswer(draws_boxes_alone=True), _between(text, "```json", "```")
    start = text.find("[")
    bracketed = text[start : text.find("]", start) + 1] if start >= 0 else ""
    try:
        objects = json.loads((bracketed or "[]") if fenced is None else fenced)
    except READING_ERRORS as error:
        if fenced is None or isinstance(error, json.JSONDecodeError):
            return read
        raise
    for one in objects if isinstance(objects, list) else []:
        for name, count in _BASELINE_KEYS.items():
            if name in one and len(one[name]) == count:
                kind = read.boxes if count == 4 else read.points
                kind.append([to_pixel(value, axis % 2) for axis, value in enumerate(one[name])])
    return read


# ---- InternVL and Molmo ---------------------------------------------------------------------------------------------


def internvl_refcoco(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """What stands in the first brackets with four parts, all on one line, if these are numbers: thousandths, or
    fractions where their sum is below 4; else all zeros."""
    box = np.zeros(4, dtype=np.float32)
    with np.errstate(all="ignore"):  # what is too large for float32 is infinite
        with suppress(ValueError):
            box = np.array([float(part) for part in _first_four_parts(text)], dtype=np.float32)
        if box.sum() >= 4:
            box = box / np.float32(1000)
        box = box * np.array(sizes.image[::-1] * 2, dtype=np.float32)
    return PublishedAnswer([box.tolist()], zeros_are_nothing=True)


def _first_four_parts(text: str) -> list[str]:
    """
    Raises:
        ValueError: There are no such brackets.
    """
    for line in text.split("\n"):
        _, opened, inside = line.partition("[")
        parts = inside.lstrip("[").split(",", 3)
        if opened and len(parts) == 4 and "]" in parts[3]:
            return [*parts[:3], parts[3].partition("]")[0]]
    raise ValueError("there are no brackets with four parts")


_BOXES_OPEN = re.compile(r"</ref>\s*<box>\s*(?=\[\[)")
_BOXES_END = re.compile(r"\]\](?=\s*</box>)")


def internvl_demo(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """All boxes of every `<ref>` with its `<box>`, each on one line; thousandths. The original executes what it finds,
    of which only numbers and lists are read here."""
    read, start, at = PublishedAnswer(), 0, 0
    places = _boxes_of_references(text)
    while (reference := text.find("<ref>", start)) >= 0:
        start = reference + len("<ref>")
        while at < len(places) and places[at][0] < start:
            at += 1
        if at == len(places):
            break
        label = text[start : places[at][0]].strip()
        if "\n" in label:
            continue
        _, begin, start = places[at]
        for box in read_literal(text[begin:start]):
            read.boxes.append([int(float(box[edge]) / 1000 * sizes.image[1 - edge % 2]) for edge in range(4)])
            read.labels.append(label)
    return read


def _boxes_of_references(text: str) -> list[tuple[int, int, int]]:
    """Where references end that boxes follow, and where these begin and end."""
    ends = [found.end() for found in _BOXES_END.finditer(text)]
    places = []
    for found in _BOXES_OPEN.finditer(text):
        stop = bisect_left(ends, found.end() + len("[[]]"))
        if stop < len(ends) and text.find("\n", found.end(), ends[stop]) < 0:
            places.append((found.start(), found.end(), ends[stop]))
    return places


# Each is searched for by itself, so that a click is found twice; the last one holds tenths.
_MOLMO_POINTS = (
    (r"Click\(([0-9]+\.[0-9]), ?([0-9]+\.[0-9])\)", 1.0),
    (r"\(([0-9]+\.[0-9]),? ?([0-9]+\.[0-9])\)", 1.0),
    (r'x\d*="\s*([0-9]+(?:\.[0-9]+)?)"\s+y\d*="\s*([0-9]+(?:\.[0-9]+)?)"', 1.0),
    (r"(?:\d|p)\s*=\s*([0-9]{3})\s*,\s*([0-9]{3})", 10.0),
)


def molmo_points(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """Percent of width and height, four spellings; what is beyond 100 is left out."""
    read = PublishedAnswer()
    for pattern, unit in _MOLMO_POINTS:
        for found in re.finditer(pattern, text):
            x, y = (float(number) / unit for number in found.groups())
            if max(x, y) <= 100:
                read.points.append([x / 100 * sizes.image[1], y / 100 * sizes.image[0]])
    return read


def molmo_boxes(text: str, sizes: ImageSizes) -> PublishedAnswer:
    """Of every two successive points the box between them, as they come."""
    points = molmo_points(text, sizes).points
    return PublishedAnswer([[*points[at], *points[at + 1]] for at in range(0, len(points) - 1, 2)])


PUBLISHED_READERS: dict[str, PublishedReader] = {
    reader.__name__: reader
    for reader in (
        seg_zero,
        vision_reasoner_script,
        vision_reasoner_package,
        star_inference,
        star_evaluation,
        star_inference_qwen3,
        star_evaluation_qwen3,
        qwen2_5_cookbook,
        qwen3_cookbook,
        qwen2_5_odinw,
        qwen3_odinw,
        qwen2_5_baseline,
        qwen2_baseline,
        internvl_refcoco,
        internvl_demo,
        molmo_points,
        molmo_boxes,
    )
}


__all__ = ["PUBLISHED_READERS", "READING_ERRORS", "ImageSizes", "PublishedAnswer", "PublishedReader", "read_literal"]
