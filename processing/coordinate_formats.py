"""How vision-language models are asked for boxes and points, and what the numbers in their answers mean.

One entry of `COORDINATE_FORMATS` is all there is to know of a format. Its wording is that of the model's authors:

| format            | models                | numbers                      | wording of                            |
|-------------------|-----------------------|------------------------------|---------------------------------------|
| `qwen2_5_vl`      | Qwen2.5-VL            | pixels of what the model saw | VisionReasoner's baseline, a cookbook |
| `qwen3_vl`        | Qwen3-VL              | thousandths of the sides     | the same                              |
| `internvl`        | InternVL 2, 2.5 and 3 | thousandths                  | the evaluation on RefCOCO             |
| `molmo`           | Molmo                 | percent, points alone        | its training                          |
| `seg_zero`        | Seg-Zero              | pixels of 840 x 840          | its inference script                  |
| `vision_reasoner` | VisionReasoner        | pixels of 840 x 840          | its package                           |
| `star`            | StAR-7B               | pixels of 840 x 840          | its evaluation on ReasonSeg           |
| `star_qwen3`      | StAR-8B and -32B      | thousandths of 840 x 840     | the same                              |
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .coordinate_answers import (
    AS_PIXELS,
    FRACTIONS,
    MAX_CHARACTERS,
    NOTHING,
    ONLY_CHARACTERS,
    ONLY_OBJECTS,
    CoordinateAnswer,
    CoordinateObject,
    read_label,
    read_objects,
)
from .published_answers import (
    LARGEST_FRACTION,
    LARGEST_THOUSANDTH,
    PUBLISHED_READERS,
    READING_ERRORS,
    ImageSizes,
    PublishedAnswer,
)


# What `reading` of a processor may be, beside the name of a published reader of its format.
FIXED, PAPER = "fixed", "paper"
# StAR's and VisionReasoner's rewards count as many at most.
MAX_OBJECTS = 120
_SQUASHED = (840, 840)
# Of what published code reads: what is drawn is computed in float32, in which larger ones, scaled, are infinite.
_LARGEST_COORDINATE = 1e30
BOX_ALONE, POINTS_ALONE = "drawn by its box alone", "drawn by its points alone"


@dataclass(frozen=True)
class CoordinateFormat:
    """
    A way to ask for coordinates and to write them.

    Args:
        question (`str`): The message for a question, `{question}`.
        unit (`str`): What numbers are: `pixels` (of what the model saw), `thousandths` or `percent` of the sides.
        syntaxes (`tuple[str, ...]`): How objects are written, by their names in `coordinate_answers`.
        published (`tuple[str, ...]`): Published code that reads these answers, that of `reading="paper"` first.
        expression (`str`, *optional*): The message for a referring expression, where that is another.
        phrases (`str`, *optional*): The message for several `{phrases}` whose objects the answer tells apart.
        separator (`str`): Between them.
        question_ends (`str`, *optional*):
            Characters that are taken off both ends of a question, which is then in lower case, too.
        image_size (`tuple[int, int]`, *optional*): (height, width) to which images are squeezed for the model.
        kept_tokens (`tuple[str, ...]`): Special tokens that belong to the answer.
        example (`str`): An object as it is written, with `{label}` and the numbers `{x1}`, `{y1}`, `{x2}`, `{y2}`,
            `{x}`, `{y}`.
        around (`str`): What stands around `{objects}`.
        joined_by (`str`): What stands between them.
        decimals (`int`): Digits of a number after its point.
        guesses_unit (`bool`): Whether the largest number says what all are, as StAR's code on Qwen3-VL has it.
    """

    question: str
    unit: str
    syntaxes: tuple[str, ...]
    published: tuple[str, ...]
    expression: str | None = None
    phrases: str | None = None
    separator: str = ", "
    question_ends: str | None = None
    image_size: tuple[int, int] | None = None
    kept_tokens: tuple[str, ...] = ("<think>", "</think>", "<answer>", "</answer>")
    example: str = '{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "{label}"}}'
    around: str = "```json\n[{objects}]\n```"
    joined_by: str = ", "
    decimals: int = 0
    guesses_unit: bool = False

    def ask(self, question: str, expression: bool = False) -> str:
        """The message for a question, or for an `expression` that means one thing in the image; one that is such a
        message already stays as it is."""
        wordings = ((self.question, "{question}"), (self.expression, "{question}"), (self.phrases, "{phrases}"))
        for wording, place in wordings:
            before, _, after = (wording or "").partition(place)
            if wording and question.startswith(before) and question.endswith(after.rpartition(place)[2]):
                return question
        wording = (self.expression or self.question) if expression else self.question
        return wording.replace("{question}", self.clean(question))

    def clean(self, question: str) -> str:
        """A question as the message holds it."""
        question = question.strip()
        return question if self.question_ends is None else question.lower().strip(self.question_ends)

    def scale(self, sizes: ImageSizes) -> tuple[float, float]:
        """Pixels of the image per unit, (x, y)."""
        if self.unit == "pixels":
            return sizes.scale
        parts = {"thousandths": 1000, "percent": 100}[self.unit]
        return sizes.image[1] / parts, sizes.image[0] / parts

    def factors(self, numbers: Sequence[float], sizes: ImageSizes) -> tuple[float, float, str | None]:
        """What the numbers of an answer are multiplied by, (x, y), and what is to be said of it."""
        largest = max(numbers, default=0.0)
        height, width = sizes.image
        are_fractions = largest <= (LARGEST_FRACTION if self.guesses_unit else 1.0)
        if self.unit == "thousandths" and are_fractions and any(number % 1 for number in numbers):
            return float(width), float(height), FRACTIONS
        if self.guesses_unit and largest > LARGEST_THOUSANDTH:
            return 1.0, 1.0, AS_PIXELS
        return *self.scale(sizes), None

    def read(
        self, text: str, sizes: ImageSizes, reading: str = FIXED, max_objects: int = MAX_OBJECTS
    ) -> CoordinateAnswer:
        """
        Args:
            text (`str`): An answer.
            sizes ([`ImageSizes`]): Of the image.
            reading (`str`, *optional*, defaults to `"fixed"`):
                `"fixed"` reads all it can, within the image. `"paper"`, or a name of `published`, reads as that code
                does: coordinates may leave the image, and an answer that it cannot read has an `error`.
            max_objects (`int`): Further ones are left out.

        Returns:
            [`CoordinateAnswer`]
        """
        fixed = read_objects(text, self.syntaxes, self.factors, sizes, max_objects, self.around)
        if reading == FIXED:
            return replace(fixed, objects=tuple(map(self._said_what_is_missing, fixed.objects)))
        try:
            name = self.published[0] if reading == PAPER else reading
            published = PUBLISHED_READERS[name](fixed.text[:MAX_CHARACTERS], sizes)
            _check_coordinates(published)
        except READING_ERRORS as error:
            said = f"{type(error).__name__}: {error}"
            return replace(fixed, objects=(), problems=("the published code cannot read the answer",), error=said)
        needs_points = "{x}" in self.example and "{x1}" in self.example
        objects, problems = _objects_of(published, needs_points, fixed.objects)
        if len(fixed.text) > MAX_CHARACTERS:
            problems.append(ONLY_CHARACTERS)
        if len(objects) > max_objects:
            problems.append(ONLY_OBJECTS.format(max_objects))
        thinking = fixed.thinking if published.thinking is None else published.thinking
        return replace(fixed, objects=objects[:max_objects], thinking=thinking, problems=tuple(problems))

    def _said_what_is_missing(self, found: CoordinateObject) -> CoordinateObject:
        """A box prompts without points, and points without a box, which published code may not do."""
        if found.box_xyxy is None and "{x1}" in self.example:
            return replace(found, repairs=(*found.repairs, POINTS_ALONE))
        if not found.points_xy and "{x}" in self.example:
            return replace(found, repairs=(*found.repairs, BOX_ALONE))
        return found

    def write(self, objects: Sequence[CoordinateObject], sizes: ImageSizes) -> str:
        """The answer that names these objects, in pixels of the image, as the model would write it."""
        scale = self.scale(sizes)
        written = []
        for one in objects:
            x1, y1, x2, y2 = one.box_xyxy or (*one.points_xy[0], *one.points_xy[0])
            points = one.points_xy or (((x1 + x2) / 2, (y1 + y2) / 2),)
            numbers = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "x": points[0][0], "y": points[0][1]}
            numbers |= {"x_2": points[-1][0], "y_2": points[-1][1]}
            spelled = {name: f"{value / scale[name[0] == 'y']:.{self.decimals}f}" for name, value in numbers.items()}
            label = one.label or ""
            if "json" in self.syntaxes[:1]:
                label = json.dumps(label, ensure_ascii=False)[1:-1]
            written.append(self.example.format(label=label, **spelled))
        return self.around.replace("{objects}", self.joined_by.join(written))


def _check_coordinates(published: PublishedAnswer) -> None:
    """
    Raises:
        ValueError: If there is anything with which no segmenter can be prompted.
    """
    for name, groups, count in (("box", published.boxes, 4), ("point", published.points, 2)):
        for group in groups:
            if len(group) != count:
                raise ValueError(f"a {name} of {len(group)} numbers, not {count}")
            if not all(math.isfinite(number) and abs(number) <= _LARGEST_COORDINATE for number in group):
                raise ValueError(f"a {name} with a number that is no coordinate")


def _objects_of(
    published: PublishedAnswer, needs_points: bool, seen: Sequence[CoordinateObject]
) -> tuple[tuple[CoordinateObject, ...], list[str]]:
    """
    What published code prompts the segmenter with: a box with its points, or boxes alone, or points alone where there
    are no boxes. Of boxes and points that do not come out even nothing is drawn, as by VisionReasoner's package, or as
    many as there are of both, as by StAR. Spans are those of `seen`, where there are as many objects.
    """
    boxes, points, each = published.boxes, published.points, published.points_per_box
    points = [] if published.draws_boxes_alone else points
    problems = []
    if published.zeros_are_nothing:
        boxes = [box for box in boxes if any(box)]
    if len(points) != each * len(boxes) and (published.draws_pairs or (boxes and (points or needs_points))):
        problems.append(f"{len(boxes)} boxes and {len(points)} points belong to no common objects")
        pairs = min(len(boxes), len(points)) if published.draws_pairs else 0
        boxes, points = boxes[:pairs], points[:pairs]
    groups = [points[at : at + each] for at in range(0, len(points), each)]
    count = max(len(boxes), len(groups))
    same = len(seen) == count
    if not count and not problems:
        problems.append(NOTHING)
    labels = [one.label for one in seen] if same else [None] * count
    if len(published.labels) == count:  # a model may write anything there
        labels = list(map(read_label, published.labels))
    objects = tuple(
        CoordinateObject(
            box_xyxy=tuple(boxes[at]) if boxes else None,
            points_xy=tuple(map(tuple, groups[at])) if groups else (),
            point_labels=(1,) * len(groups[at]) if groups else (),
            label=labels[at],
            span=seen[at].span if same else None,
        )
        for at in range(count)
    )
    return objects, problems


# ---- the formats ----------------------------------------------------------------------------------------------------

_VISION_REASONER_TASK = (
    "Compare the difference between object(s) and find the most closely matched object(s)."
    "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "Output the bbox(es) and point(s) inside the interested object(s) in JSON format."
    "i.e., <think> thinking process here </think>"
    '<answer>[{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}, '
    '{"bbox_2d": [225,296,706,786], "point_2d": [302,410]}]</answer>'
)
# The answer of the example has single quotes, which its own code cannot read.
_SEG_ZERO_TASK = (
    "Compare the difference between objects and find the most closely matched one."
    "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "Output the one bbox and points of two largest inscribed circles inside the interested object in JSON format."
    "i.e., <think> thinking process here </think>"
    "<answer>{'bbox': [10,100,200,210], 'points_1': [30,110], 'points_2': [35,180]}</answer>"
)
_STAR_QUESTION = (
    'Please find "{question}" with bbox(es) and point(s). Also provide a short label for each object. '
    'First, understand and summarize what the query —"{question}"— is likely referring to (which object or concept). '
    "Then apply this to the image and find the matched target object(s). "
    "Return ALL matching instances; if there are no matches, return an empty list (<answer>[]</answer>). "
    "double-check none are missed. "
    "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags. "
    "Output the bbox(es) and point(s) inside the interested object(s), along with a short label, in JSON format. "
    "i.e., <think> thinking process (step-by-step reasoning) here </think> "
    '<answer>[{"label": "chair", "bbox_2d": [10,100,200,210], "point_2d": [30,110]}, '
    '{"label": "train track", "bbox_2d": [225,296,706,786], "point_2d": [302,410]}]</answer>'
)
# On RefCOCO one thing is meant, and it is there: the third and the fourth sentence become another one, and nothing is
# said of an empty list.
_STAR_EXPRESSION = (
    _STAR_QUESTION[: _STAR_QUESTION.index("First, understand")]
    + "Compare the difference between object(s) and find the most closely matched object(s). "
    + _STAR_QUESTION[_STAR_QUESTION.index("Return ALL") :]
).replace("; if there are no matches, return an empty list (<answer>[]</answer>)", "")
_QWEN = CoordinateFormat(
    question='Locate "{question}", report the bboxes coordinates in JSON format.',
    phrases=(
        'locate every instance that belongs to the following categories: "{phrases}". '
        "Report bbox coordinates in JSON format."
    ),
    unit="pixels",
    syntaxes=("json", "points", "bare", "corners"),
    published=("qwen2_5_cookbook", "qwen2_5_odinw", "qwen2_5_baseline"),
)
_VISION_REASONER = CoordinateFormat(
    question='Please find "{question}" with bboxs and points.' + _VISION_REASONER_TASK,
    question_ends='."?!',
    unit="pixels",
    image_size=_SQUASHED,
    syntaxes=("json", "bare"),
    published=("vision_reasoner_package", "vision_reasoner_script"),
    example='{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "point_2d": [{x}, {y}]}}',
    around="<think> thinking process here </think><answer>[{objects}]</answer>",
)
_STAR = replace(
    _VISION_REASONER,
    question=_STAR_QUESTION,
    expression=_STAR_EXPRESSION,
    published=("star_evaluation", "star_inference"),
    example='{{"label": "{label}", "bbox_2d": [{x1}, {y1}, {x2}, {y2}], "point_2d": [{x}, {y}]}}',
)
COORDINATE_FORMATS: dict[str, CoordinateFormat] = {
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": replace(_QWEN, unit="thousandths", published=("qwen3_cookbook", "qwen3_odinw", "qwen2_baseline")),
    "internvl": CoordinateFormat(
        question=(
            "Please provide the bounding box coordinate of the region this sentence describes: <ref>{question}</ref>"
        ),
        unit="thousandths",
        syntaxes=("ref", "json", "bare", "corners"),
        published=("internvl_refcoco", "internvl_demo"),
        kept_tokens=("<ref>", "</ref>", "<box>", "</box>"),
        example="<ref>{label}</ref><box>[[{x1}, {y1}, {x2}, {y2}]]</box>",
        around="{objects}",
        joined_by=" ",
    ),
    "molmo": CoordinateFormat(
        question="Point to the {question}.",
        question_ends=".?!",
        unit="percent",
        syntaxes=("points", "pairs"),
        published=("molmo_points", "molmo_boxes"),
        example='<point x="{x}" y="{y}" alt="{label}">{label}</point>',
        around="{objects}",
        joined_by=" ",
        decimals=1,
    ),
    "seg_zero": replace(
        _VISION_REASONER,
        question="Please find '{question}' with bbox and points." + _SEG_ZERO_TASK,
        question_ends=".",
        published=("seg_zero",),
        example='{{"bbox": [{x1}, {y1}, {x2}, {y2}], "points_1": [{x}, {y}], "points_2": [{x_2}, {y_2}]}}',
        around="<think> thinking process here </think><answer>{objects}</answer>",
    ),
    "vision_reasoner": _VISION_REASONER,
    "star": _STAR,
    "star_qwen3": replace(
        _STAR,
        unit="thousandths",
        published=("star_evaluation_qwen3", "star_inference_qwen3"),
        guesses_unit=True,
    ),
}
_FORMAT_OF_VLM = {"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl", "internvl": "internvl", "molmo": "molmo"}


def format_of_vlm(model_type: str) -> str | None:
    """The format that a model of this `model_type` was taught by its authors; `None` where none is known."""
    return _FORMAT_OF_VLM.get(model_type)


# ---- the reader that goes to the model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoordinateReader:
    """
    Reads the objects of an answer in its ids; goes to the model with its inputs, which calls it once per answer.

    Args:
        decode (`Callable[[list[int]], str]`): Turns ids into text.
        coordinate_format ([`CoordinateFormat`]): How the text is written.
        sizes (`tuple[ImageSizes, ...]`): Of the image of each input row.
        reading (`str`): See [`CoordinateFormat.read`].
        max_objects (`int`): Of an answer.
    """

    decode: Callable[[list[int]], str]
    coordinate_format: CoordinateFormat
    sizes: tuple[ImageSizes, ...]
    reading: str = FIXED
    max_objects: int = MAX_OBJECTS

    def __call__(self, token_ids: list[int], row: int = 0) -> CoordinateAnswer:
        """
        Args:
            token_ids (`list[int]`): Ids of an answer, its end token included or not.
            row (`int`): The input row it answers.
        """
        text = self.decode(token_ids)
        return self.coordinate_format.read(text, self.sizes[row], self.reading, self.max_objects)


__all__ = ["COORDINATE_FORMATS", "FIXED", "PAPER", "CoordinateFormat", "CoordinateReader", "format_of_vlm"]
