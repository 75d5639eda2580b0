"""COCO instance segmentation by phrases: AP and AR of masks, and how often the point lies on the thing.

As `aas/instance_seg.py` and `aas/eval_instance_seg.py` of attend-and-segment do it (arXiv 2410.08209).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..atomic_files import write_whole
from ..data.annotated_images import AnnotatedImage, CocoInstances, by_image
from ..data.coco import run_lengths
from ..data.data_files import read_json
from ..processing.phrase_segments import PhraseSegment, WordVector, match_categories
from .coco_scores import coco_scores, iou_matrix
from .grounded_answers import GroundedAnswer
from .phrase_grounding import about_grounding, read_or_ground
from .phrase_similarity import word_vectors
from .registry import EvaluationOptions, Outcome
from .report import Case, numbers_table


_REPORTED = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


def candidate_categories(data: CocoInstances, image: AnnotatedImage, protocol: str) -> dict[int, str]:
    """
    Categories that a phrase of an image may mean, names by id.

    Args:
        data ([`CocoInstances`]): The data set.
        image ([`AnnotatedImage`]): The image.
        protocol (`str`):
            `paper`: those that are annotated in it, which gives away what there is to find. `fixed`: all.

    Raises:
        ValueError: If the protocol does not exist.
    """
    if protocol not in ("paper", "fixed"):
        raise ValueError(f"There is no protocol {protocol!r}; choose one of paper, fixed.")
    present = {annotation["category_id"] for annotation in data.annotations(image)}
    return {id: name for id, name in sorted(data.categories.items()) if protocol == "fixed" or id in present}


def name_instances(
    image: AnnotatedImage,
    answer: GroundedAnswer,
    categories: dict[int, str],
    vector: WordVector,
    category_threshold: float = 0.0,
) -> list[dict[str, Any]]:
    """
    Gives every mask the category that its phrase's head word means.

    Args:
        image ([`AnnotatedImage`]): The image.
        answer ([`GroundedAnswer`]): What was found in it: one mask per phrase, or several candidates.
        categories (`dict[int, str]`): Categories to choose from, names by id; with none, nothing is kept.
        vector (`Callable[[str], np.ndarray]`): Vector of a word.
        category_threshold (`float`): Phrases that are less similar to any category are dropped; the released code
            defaults to 0, its documented command sets 0.5.

    Returns:
        `list[dict]`: Entries of COCO's results format with `category_name`, `noun_phrase`, `point` or `box`; masks
        without a pixel are left out. `id` is not set, see `number_instances`.

    Raises:
        ValueError: If the answer has another number of masks than phrases, as GLaMM's files may.
    """
    if len(answer.phrases) != len(answer.masks):
        raise ValueError(
            f"The answer about {image.id!r} has {len(answer.phrases)} phrases and {len(answer.masks)} masks; each "
            "mask needs its phrase."
        )
    if not categories:
        return []
    ids = {name: id for id, name in sorted(categories.items(), reverse=True)}
    names = [categories[id] for id in sorted(categories)]
    words = answer.core_words or answer.phrases
    segments = [
        PhraseSegment(label=phrase, core_word=word) for phrase, word in zip(answer.phrases, words, strict=True)
    ]
    match_categories(segments, names, vector, by="core_word")
    instances = []
    for index, segment in enumerate(segments):
        area = int(coco_mask.area(run_lengths(answer.masks[index], image.size)))
        if segment.similarity < category_threshold or area == 0:
            continue
        instance = {
            "image_id": image.id,
            "category_id": ids[segment.category],
            "category_name": segment.category,
            "noun_phrase": segment.label,
            "segmentation": answer.masks[index],
            "score": 1.0 if answer.scores is None else answer.scores[index],
            "iscrowd": 0,
            "area": area,
        }
        if answer.points is not None:
            instance["point"] = list(answer.points[index])
        if answer.boxes is not None:
            instance["box"] = list(answer.boxes[index])
        instances.append(instance)
    return instances


def number_instances(instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries with `id` from 1 on, in front as the original writes them."""
    return [{"id": number, **instance} for number, instance in enumerate(instances, start=1)]


def read_instances(path: str | Path) -> list[dict[str, Any]]:
    """
    Read a results file, of this project or the original.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is not a list of entries with `image_id`, `category_id`, `segmentation` and `score`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The results file {path} does not exist.")
    entries = read_json(path)
    needed = {"image_id", "category_id", "segmentation", "score"}
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and needed <= set(entry) for entry in entries):
        raise ValueError(f"{path} must be a list of entries with {', '.join(sorted(needed))}.")
    for number, entry in enumerate(entries, start=1):
        what, point = f"{path}, entry number {number}", entry.get("point", [0, 0])
        if not isinstance(entry["image_id"], (int, str)) or not isinstance(entry["category_id"], int):
            raise ValueError(f"{what}: `image_id` and `category_id` must be the ids of the annotation file.")
        if not isinstance(point, list) or len(point) != 2 or not all(map(_is_finite, point)):
            raise ValueError(f"{what}: its `point` is {point!r}; it must be [x, y].")
    return entries


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


@dataclass
class InstanceResult:
    """
    Args:
        protocol (`str`): `paper` or `fixed`; how categories were chosen.
        images (`int`): Images that were scored.
        instances (`int`): Masks that were scored.
        masks (`dict`): AP and AR, see `COCO_SCORES`.
        point_accuracy (`float`, *optional*): Share of points that lie on a thing of their category, in [0, 1].
        points_right, points (`int`): The counts behind it.
        notes (`list[str]`): Why a number is missing.
        cases (`list`): What a contact sheet shows.
    """

    protocol: str
    images: int
    instances: int
    masks: dict[str, float | None]
    point_accuracy: float | None
    points_right: int
    points: int
    notes: list[str]
    cases: list[Case] = field(repr=False, default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, as plain JSON values."""
        return {name: value for name, value in vars(self).items() if name != "cases"}


def score_instances(
    data: CocoInstances,
    instances: Sequence[dict[str, Any]],
    protocol: str = "paper",
    image_folder: str | Path | None = None,
) -> InstanceResult:
    """
    Args:
        data ([`CocoInstances`]): What is right.
        instances (`Sequence[dict]`): Entries of COCO's results format; those with a `point` count for point accuracy.
        protocol (`str`): How the categories were chosen; written into the result.
        image_folder (`str` or `Path`, *optional*): Where the images are, for the cases of a contact sheet.

    Raises:
        ValueError: If an instance belongs to an image that is not annotated.
    """
    right, points = point_hits(data, instances)
    notes = [*data.notes, *([] if points else ["Point accuracy is not measured: no instance has a point."])]
    scores = coco_scores(data.dataset, instances, [image.id for image in data.images])
    return InstanceResult(
        protocol=protocol,
        images=len(data),
        instances=len(instances),
        masks=scores,
        point_accuracy=right / points if points else None,
        points_right=right,
        points=points,
        notes=notes,
        cases=[] if image_folder is None else _cases(data, instances, Path(image_folder)),
    )


def point_hits(data: CocoInstances, instances: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """
    Points that lie on a thing of their category, crowds included, and all points.

    A category that is not in the image, or a point outside it, is a miss (the original, which never meets one,
    would stop).
    """
    answered = by_image(instances)
    right = total = 0
    for image in data.images:
        regions = _regions_by_category(data, image) if image.id in answered else {}
        for instance in answered.get(image.id, []):
            if "point" not in instance:
                continue
            total += 1
            column, row = (math.floor(value) for value in instance["point"])
            region = regions.get(instance["category_id"])
            inside = 0 <= row < image.size[0] and 0 <= column < image.size[1]
            right += int(region is not None and inside and region[row, column])
    return right, total


def _regions_by_category(data: CocoInstances, image: AnnotatedImage) -> dict[int, np.ndarray]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for annotation in data.annotations(image):
        rle = run_lengths(annotation["segmentation"], image.size)
        grouped.setdefault(annotation["category_id"], []).append(rle)
    return {category: coco_mask.decode(coco_mask.merge(masks)).astype(bool) for category, masks in grouped.items()}


def _cases(data: CocoInstances, instances: Sequence[dict[str, Any]], folder: Path) -> list[Case]:
    """Every annotated thing with the answer of its category that overlaps it most."""
    answered, cases = by_image(instances), []
    for image in data.images:
        for annotation in data.annotations(image):
            if annotation.get("iscrowd"):
                continue
            same = [i for i in answered.get(image.id, []) if i["category_id"] == annotation["category_id"]]
            target = run_lengths(annotation["segmentation"], image.size)
            given = [run_lengths(instance["segmentation"], image.size) for instance in same]
            ious = iou_matrix([target], given)[0]
            best = int(ious.argmax()) if given else None
            name = data.categories.get(annotation["category_id"], "")
            named = None if best is None else same[best].get("noun_phrase")
            phrase = name if named is None else f"{named} -> {name}"
            iou = 0.0 if best is None else float(ious[best])
            path = folder / image.file_name
            cases.append(Case(path, phrase, iou, target, None if best is None else given[best], upright=False))
    return cases


def run_coco(options: EvaluationOptions, data: CocoInstances) -> Outcome:
    """COCO instance segmentation: every phrase's mask gets the category that its head word means."""
    settings = options.settings
    if "results" in settings:
        instances = read_instances(settings["results"])
        scored = {image.id for image in data.images}
        instances = [instance for instance in instances if options.limit is None or instance["image_id"] in scored]
    else:
        # Loaded first: what is missing is reported before the work, not after it.
        vector = word_vectors(settings.get("word_vectors", "spacy"))
        answers = read_or_ground(options, data.images)
        if answers is None:
            return Outcome()
        named = []
        for image in data.images:
            if image.id in answers:
                categories = candidate_categories(data, image, options.protocol)
                threshold = settings.get("category_threshold", 0.0)
                named += name_instances(image, answers[image.id], categories, vector, threshold)
        instances = number_instances(named)
        write_whole(options.out / "instances.json", json.dumps(instances) + "\n")
    result = score_instances(data, instances, options.protocol, options.images)
    numbers = {
        **{name: result.masks[name] for name in _REPORTED},
        **{"point accuracy": result.point_accuracy, "images": result.images, "instances": result.instances},
    }
    table = numbers_table(f"COCO instances, protocol: {result.protocol} (%)", numbers, result.notes)
    return Outcome(result, table, about_grounding(options))


__all__ = [
    "InstanceResult",
    "candidate_categories",
    "name_instances",
    "number_instances",
    "point_hits",
    "read_instances",
    "run_coco",
    "score_instances",
]
