"""Grounded conversation generation on GranD-f: captions whose phrases have masks (GLaMM, arXiv 2311.03356).

The numbers are those of `aas/eval_gcg.py` of attend-and-segment, which are GLaMM's: AP of masks without scores, METEOR
and CIDEr of captions, mean IoU of paired masks, and recall of phrases that have both the mask and the meaning.
"""

import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.annotated_images import AnnotatedImage, by_image, read_annotations, read_images
from ..data.coco import check_categories, clean_annotations
from ..data.data_files import DataFileError
from .caption_scores import CaptionsUnavailableError, caption_scores
from .coco_masks import iou_matrix, segmentation_rle
from .coco_scores import coco_scores
from .contact_sheet import StoredCase
from .grounded_answers import GroundedAnswer
from .mask_pairing import PROTOCOLS, match_phrases, paired_ious
from .phrase_similarity import PhraseVectors, cosine_similarities


# The only category of GranD-f.
_CATEGORY = 1
_MASKS, _CAPTIONS = "mask_gt", "caption_gt"


@dataclass(frozen=True)
class GroundedTarget:
    """
    What is right about one picture.

    Args:
        captions (`list[str]`): Right captions.
        phrases (`list[str]`): Phrases of the first caption that have masks.
        masks (`list[dict]`): Their compressed run lengths, in the same order.
    """

    captions: list[str]
    phrases: list[str]
    masks: list[dict[str, Any]]


class GroundedConversations:
    """
    One split of GranD-f as it is published: `val_gcg_coco_mask_gt.json` and `val_gcg_coco_caption_gt.json`.

    Args:
        annotations (`str` or `Path`): Folder with both files, or one of the two.
        split (`str`): `val` or `test`; tells the files of a folder apart.
        limit (`int`, *optional*): Only the first pictures.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is not in COCO's format, lists no image, or holds an annotation that cannot be used.
    """

    def __init__(self, annotations: str | Path, split: str = "val", limit: int | None = None):
        path = Path(annotations)
        if path.is_dir():
            path = path / f"{split}_gcg_coco_{_MASKS}.json"
        elif _MASKS not in path.name and _CAPTIONS not in path.name:
            raise ValueError(f"{path.name} must have {_MASKS} or {_CAPTIONS} in its name, so that the other is found.")
        masks_path = path.with_name(path.name.replace(_CAPTIONS, _MASKS))
        captions_path = path.with_name(path.name.replace(_MASKS, _CAPTIONS))
        content = read_annotations(masks_path, ("images", "annotations", "categories"))
        captions = read_annotations(captions_path, ("images", "annotations"))
        described = {entry["id"]: entry for entry in content["images"] if _has_id(entry)}
        mask_sizes = _sizes_of_masks(content["annotations"])
        # Captions say which pictures count; their sizes may stand with the masks alone, or in the masks.
        images = read_images(
            [
                {**mask_sizes.get(entry["id"], {}), **described.get(entry["id"], {}), **entry}
                if _has_id(entry)
                else entry
                for entry in captions["images"]
            ],
            str(captions_path),
        )
        if not images:
            raise ValueError(f"{captions_path} has no images; an empty data set has no scores.")
        self.images: list[AnnotatedImage] = images[:limit]
        sizes = {image.id: image.size for image in images}
        cleaned = clean_annotations(content["annotations"], sizes, str(masks_path), without_masks=True)
        check_categories(content["categories"], str(masks_path))
        self.mask_dataset = {
            **content,
            "images": [
                {**described[image_id], "height": height, "width": width}
                for image_id, (height, width) in sizes.items()
                if image_id in described
            ],
            "annotations": cleaned,
        }
        self._masks = by_image(cleaned)
        # AP counts every picture with masks, as the original does, unless only the first ones are asked for.
        self.scored_ids = None if limit is None else [image.id for image in self.images if image.id in described]
        self._captions = by_image(_check_captions(captions["annotations"], str(captions_path)))

    def __len__(self) -> int:
        return len(self.images)

    def target(self, image: AnnotatedImage) -> GroundedTarget:
        """
        Raises:
            ValueError: If the picture has no caption.
        """
        captions = self._captions.get(image.id)
        if not captions:
            raise ValueError(f"The picture {image.id!r} has no caption.")
        masks = [
            segmentation_rle(annotation["segmentation"], image.size) for annotation in self._masks.get(image.id, [])
        ]
        return GroundedTarget([entry["caption"] for entry in captions], list(captions[0].get("labels", [])), masks)


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), (int, str))


def _sizes_of_masks(annotations: list[Any]) -> dict[int | str, dict[str, int]]:
    """Height and width of images by the run lengths of their masks."""
    sizes = {}
    for annotation in annotations:
        runs = annotation.get("segmentation") if isinstance(annotation, dict) else None
        size = runs.get("size") if isinstance(runs, dict) else None
        if isinstance(size, list) and len(size) == 2 and isinstance(annotation.get("image_id"), (int, str)):
            sizes.setdefault(annotation["image_id"], {"height": size[0], "width": size[1]})
    return sizes


def _check_captions(annotations: list[Any], source: str) -> list[dict[str, Any]]:
    """
    Raises:
        DataFileError: If a caption has no text, no image, or no list of phrases.
    """
    for place, entry in enumerate(annotations, start=1):
        known = isinstance(entry, dict) and isinstance(entry.get("image_id"), (int, str))
        labels = entry.get("labels", []) if known else None
        if (
            not known
            or not isinstance(entry.get("caption"), str)
            or not isinstance(labels, list)
            or not all(isinstance(label, str) for label in labels)
        ):
            raise DataFileError(
                f"{source}, caption number {place} is {reprlib.repr(entry)}; it must have an `image_id`, a `caption` "
                "and `labels`, the list of its phrases."
            )
    return annotations


@dataclass
class GroundedConversationResult:
    """
    Args:
        protocol (`str`): `paper` or `fixed`; see `score_grounded_conversation`.
        images (`int`): Pictures that were scored.
        unanswered (`int`): Those without an answer; each counts as an empty one.
        masks (`dict`): AP and AR of the masks, see `COCO_SCORES`; every answer has the score 1.
        miou (`float`): Mean over pictures of the mean IoU of paired masks; masks without a pair cost nothing.
        miou_all_targets (`float`): The same, but right masks without a pair count 0.
        recall (`float`, *optional*): Share of right phrases that have an answer with the mask and the meaning.
        matches, targets (`int`): The counts behind recall.
        captions (`dict`, *optional*): BLEU, METEOR, ROUGE-L and CIDEr.
        notes (`list[str]`): Why a number is missing.
        cases (`list`): What a contact sheet shows.
    """

    protocol: str
    images: int
    unanswered: int
    masks: dict[str, float | None]
    miou: float | None
    miou_all_targets: float | None
    recall: float | None
    matches: int | None
    targets: int
    captions: dict[str, float] | None
    notes: list[str]
    cases: list[StoredCase] = field(repr=False, default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as plain JSON values."""
        return {name: value for name, value in vars(self).items() if name != "cases"}


def score_grounded_conversation(
    data: GroundedConversations,
    answers: dict[int | str, GroundedAnswer],
    protocol: str = "paper",
    similarity: PhraseVectors | None = None,
    score_captions: bool = True,
    image_folder: str | Path | None = None,
) -> GroundedConversationResult:
    """
    Args:
        data ([`GroundedConversations`]): What is right.
        answers (`dict`): Answers by id of the picture.
        protocol (`str`):
            `paper`: as published; pairing for recall stops at the first pair that fails, see `match_phrases`, and
            every picture must have an answer. `fixed`: pairing goes on, and a picture without an answer counts as an
            empty one.
        similarity ([`PhraseVectors`], *optional*): Vectors that compare phrases; without them there is no recall.
        score_captions (`bool`): Whether to score captions, where pycocoevalcap and Java are installed.
        image_folder (`str` or `Path`, *optional*): Where the pictures are, for the cases of a contact sheet.

    Raises:
        ValueError: If the protocol does not exist, or an answer is missing under `paper`.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"There is no protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")
    missing = [image for image in data.images if image.id not in answers]
    if missing and protocol == "paper":
        raise ValueError(
            f"{len(missing)} of {len(data)} pictures have no answer, such as {missing[0].id!r}; the protocol `paper` "
            "needs all. Finish the run, or use the protocol `fixed`, which counts them as empty."
        )
    detections, mious, full_mious, cases = [], [], [], []
    matches = targets = 0
    for image in data.images:
        target, answer = data.target(image), answers.get(image.id, _EMPTY)
        given = [segmentation_rle(mask, image.size) for mask in answer.masks]
        detections += [
            {"image_id": image.id, "category_id": _CATEGORY, "segmentation": mask, "score": 1.0} for mask in given
        ]
        ious = iou_matrix(target.masks, given)
        paired = paired_ious(ious)
        mious.append(float(np.mean(paired)) if paired else 0.0)
        full_mious.append(sum(paired) / len(target.masks) if target.masks else 0.0)
        targets += len(target.phrases)
        if similarity is not None and target.phrases and answer.phrases:
            alike = cosine_similarities(similarity(target.phrases), similarity(answer.phrases))
            matches += len(match_phrases(ious, alike, protocol))
        if image_folder is not None:
            cases += _cases(Path(image_folder) / image.file_name, target, given, ious)
    captions, notes = None, []
    if similarity is None:
        notes.append("Recall is not measured: there is no text encoder to compare phrases.")
    if score_captions:
        try:
            captions = caption_scores(
                [data.target(image).captions for image in data.images],
                [answers.get(image.id, _EMPTY).caption for image in data.images],
            )
        except CaptionsUnavailableError as error:
            notes.append(str(error))
    return GroundedConversationResult(
        protocol=protocol,
        images=len(data),
        unanswered=len(missing),
        masks=coco_scores(data.mask_dataset, detections, data.scored_ids, category_ids=[_CATEGORY]),
        miou=float(np.mean(mious)) if mious else None,
        miou_all_targets=float(np.mean(full_mious)) if full_mious else None,
        recall=matches / targets if similarity is not None and targets else None,
        matches=matches if similarity is not None else None,
        targets=targets,
        captions=captions,
        notes=notes,
        cases=cases,
    )


_EMPTY = GroundedAnswer("", [], [])


def _cases(path: Path, target: GroundedTarget, given: list[dict[str, Any]], ious: np.ndarray) -> list[StoredCase]:
    """Every right mask with the answer that overlaps it most."""
    cases = []
    for index, mask in enumerate(target.masks):
        best = int(ious[index].argmax()) if given else None
        phrase = target.phrases[index] if index < len(target.phrases) else ""
        iou = 0.0 if best is None else float(ious[index, best])
        cases.append(StoredCase(path, phrase, iou, mask, None if best is None or iou == 0 else given[best]))
    return cases


__all__ = [
    "GroundedConversationResult",
    "GroundedConversations",
    "GroundedTarget",
    "score_grounded_conversation",
]
