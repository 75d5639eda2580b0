"""Grounded conversation generation on GranD-f: captions whose phrases have masks (GLaMM, arXiv 2311.03356).

The numbers are those of `aas/eval_gcg.py` of attend-and-segment, which are GLaMM's (`eval/gcg/evaluate.py`): AP of
masks without scores, METEOR and CIDEr of captions, mean IoU of paired masks, and recall of phrases that have both the
mask and the meaning.
"""

import contextlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from ..data.coco import run_lengths
from ..data.grandf import GroundedConversations, GroundedTarget
from .coco_scores import coco_scores, iou_matrix
from .grounded_answers import GroundedAnswer
from .phrase_grounding import about_grounding, read_or_ground
from .phrase_similarity import TEXT_ENCODER, EncodedPhrases, PhraseVectors, cosine_similarities
from .registry import EvaluationOptions, Outcome
from .report import Case, numbers_table


# The only category of GranD-f.
_CATEGORY = 1


@dataclass
class GroundedConversationResult:
    """
    Args:
        protocol (`str`): `paper` or `fixed`; see `score_grounded_conversation`.
        images (`int`): Images that were scored.
        unanswered (`int`): Those without an answer; each counts as an empty one.
        masks (`dict`): AP and AR of the masks, see `COCO_SCORES`; every answer has the score 1.
        miou (`float`): Mean over images of the mean IoU of paired masks; masks without a pair cost nothing.
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
    cases: list[Case] = field(repr=False, default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, as plain JSON values."""
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
        answers (`dict`): Answers by id of the image.
        protocol (`str`):
            `paper`: as published; pairing for recall stops at the first pair that fails, see `match_phrases`, and
            every image must have an answer. `fixed`: pairing continues, and an image without an answer counts as an
            empty one.
        similarity ([`PhraseVectors`], *optional*): Vectors that compare phrases; without them there is no recall.
        score_captions (`bool`): Whether to score captions, where pycocoevalcap and Java are installed.
        image_folder (`str` or `Path`, *optional*): Where the images are, for the cases of a contact sheet.

    Raises:
        ValueError: If the protocol does not exist, or an answer is missing under `paper`.
    """
    _check_protocol(protocol)
    missing = [image for image in data.images if image.id not in answers]
    if missing and protocol == "paper":
        raise ValueError(
            f"{len(missing)} of {len(data)} images have no answer, such as {missing[0].id!r}; the protocol `paper` "
            "needs all. Finish the run, or use the protocol `fixed`, which counts them as empty."
        )
    detections, mious, full_mious, cases = [], [], [], []
    matches = targets = 0
    for image in data.images:
        target, answer = data.target(image), answers.get(image.id, _EMPTY)
        given = [run_lengths(mask, image.size) for mask in answer.masks]
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


def _cases(path: Path, target: GroundedTarget, given: list[dict[str, Any]], ious: np.ndarray) -> list[Case]:
    """Every right mask with the answer that overlaps it most."""
    cases = []
    for index, mask in enumerate(target.masks):
        best = int(ious[index].argmax()) if given else None
        phrase = target.phrases[index] if index < len(target.phrases) else ""
        iou = 0.0 if best is None else float(ious[index, best])
        cases.append(Case(path, phrase, iou, mask, None if best is None or iou == 0 else given[best], upright=False))
    return cases


def _check_protocol(protocol: str) -> None:
    if protocol not in ("paper", "fixed"):
        raise ValueError(f"There is no protocol {protocol!r}; choose one of paper, fixed.")


def paired_ious(ious: np.ndarray) -> list[float]:
    """
    Pair masks greedily, the greatest IoU first, until nothing overlaps.

    Args:
        ious (`np.ndarray`): `(targets, predictions)`.

    Returns:
        `list[float]`: IoU of each pair, in order of pairing.
    """
    # Of equal IoUs the original takes the one of the first prediction.
    left = np.array(ious, dtype=np.float64).T
    paired = []
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        paired.append(float(left[row, column]))
        left = np.delete(np.delete(left, row, axis=0), column, axis=1)
    return paired


def match_phrases(
    ious: np.ndarray,
    similarities: np.ndarray,
    protocol: str = "paper",
    iou_threshold: float = 0.5,
    similarity_threshold: float = 0.5,
) -> list[tuple[int, int]]:
    """
    Pair targets with answers that overlap and mean the same.

    Args:
        ious (`np.ndarray`): `(target masks, predicted masks)`.
        similarities (`np.ndarray`): `(target phrases, predicted phrases)`, cosine.
        protocol (`str`):
            `paper`: always the pair with the greatest IoU next; the first one that misses a threshold ends the whole
            image, though other pairs may be left that would count. Where masks and phrases are not of one number
            and such a pair is reached, the image counts nothing (GLaMM's script catches the IndexError).
            `fixed`: a pair that misses a threshold is left out, and the others are tried.
        iou_threshold (`float`): Above 0, to 1.
        similarity_threshold (`float`): -1 to 1.

    Returns:
        `list[tuple[int, int]]`: (target, prediction), the greatest IoU first.

    Raises:
        ValueError: If the protocol does not exist or `iou_threshold` is not above 0.
    """
    _check_protocol(protocol)
    if iou_threshold <= 0:
        raise ValueError(f"iou_threshold must be above 0, got {iou_threshold}: masks apart are never a pair.")
    left = np.array(ious, dtype=np.float64)
    pairs: list[tuple[int, int]] = []
    while left.size and left.max() >= iou_threshold:
        target, prediction = map(int, np.unravel_index(left.argmax(), left.shape))
        has_phrases = target < similarities.shape[0] and prediction < similarities.shape[1]
        if has_phrases and similarities[target, prediction] >= similarity_threshold:
            pairs.append((target, prediction))
            left[target, :] = 0
            left[:, prediction] = 0
        elif protocol == "fixed":
            left[target, prediction] = 0
        else:
            return pairs if has_phrases else []
    return pairs


class CaptionsUnavailableError(RuntimeError):
    """Captions cannot be scored here: a package or Java is missing."""


def check_caption_scores() -> None:
    """
    Raises:
        CaptionsUnavailableError: If pycocoevalcap or Java is missing; with what to install.
    """
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        raise CaptionsUnavailableError(
            "Captions are not scored: pycocoevalcap is not installed. Install it: pip install pycocoevalcap."
        ) from None
    if shutil.which("java") is None:
        raise CaptionsUnavailableError(
            "Captions are not scored: the tokenizer and METEOR of pycocoevalcap need Java, and there is no `java` on "
            "the PATH. Install a runtime of version 8 or newer."
        )


def caption_scores(references: Sequence[Sequence[str]], captions: Sequence[str]) -> dict[str, float]:
    """
    The scores of COCO's caption evaluation but SPICE, which downloads a parser.

    Args:
        references (`Sequence[Sequence[str]]`): Per image the right captions, at least one.
        captions (`Sequence[str]`): Per image the answer.

    Returns:
        `dict`: `bleu_1` ... `bleu_4`, `meteor`, `rouge_l` in [0, 1] and `cider` in [0, 10].

    Raises:
        CaptionsUnavailableError: See `check_caption_scores`.
        ValueError: If an image has no reference, or the numbers differ.
    """
    check_caption_scores()
    if len(references) != len(captions) or not captions:
        raise ValueError(f"{len(references)} images have references and {len(captions)} captions.")
    if not all(references):
        raise ValueError("Every image needs at least one reference caption.")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    right = _tokenize([list(texts) for texts in references])
    given = _tokenize([[caption] for caption in captions])
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(right, given)
        scores: dict[str, Any] = {f"bleu_{n}": value for n, value in enumerate(bleu, start=1)}
        for name, scorer in (("meteor", Meteor), ("rouge_l", Rouge), ("cider", Cider)):
            scores[name], _ = scorer().compute_score(right, given)
    return {name: float(value) for name, value in scores.items()}


def _tokenize(texts: list[list[str]]) -> dict[int, list[str]]:
    """Split into words as the Penn Treebank does, lower case, without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # One line for one caption: a line break inside, or an empty line, would shift all later ones.
    entries = {
        index: [{"caption": " ".join(text.split()) or "."} for text in group] for index, group in enumerate(texts)
    }
    return PTBTokenizer().tokenize(entries)


def run_grandf(options: EvaluationOptions, data: GroundedConversations) -> Outcome:
    """Grounded conversation generation on GranD-f."""
    encoder = options.settings.get("text_encoder", TEXT_ENCODER)
    # Loaded first: a name that cannot be found is reported before the work, not after it.
    similarity = None if encoder == "none" else EncodedPhrases.load(encoder, PartialState().device)
    answers = read_or_ground(options, data.images)
    if answers is None:
        return Outcome()
    score_captions = options.settings.get("captions", True)
    result = score_grounded_conversation(data, answers, options.protocol, similarity, score_captions, options.images)
    numbers = {
        **{name: result.masks[name] for name in ("ap", "ap50")},
        **{"mIoU": result.miou, "mIoU, misses as 0": result.miou_all_targets, "recall": result.recall},
        **{name.upper(): value for name, value in (result.captions or {}).items()},
        **{"images": result.images, "unanswered": result.unanswered},
    }
    table = numbers_table(f"GranD-f, protocol: {result.protocol} (%)", numbers, result.notes)
    return Outcome(result, table, about_grounding(options))


__all__ = [
    "CaptionsUnavailableError",
    "GroundedConversationResult",
    "caption_scores",
    "check_caption_scores",
    "match_phrases",
    "paired_ious",
    "run_grandf",
    "score_grounded_conversation",
]
