"""Runs attend-and-segment's benchmarks: COCO instances by phrases, and grounded conversations on GranD-f."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import AutoModel, AutoProcessor

from .conversion.systems import ATTEND_AND_SEGMENT
from .data.annotated_images import AnnotatedImage
from .evaluation.coco_instances import (
    CocoInstances,
    InstanceResult,
    name_instances,
    number_instances,
    read_instances,
    score_instances,
)
from .evaluation.grounded_answers import GroundedAnswer, read_grounded_answers
from .evaluation.grounded_conversation import (
    GroundedConversationResult,
    GroundedConversations,
    score_grounded_conversation,
)
from .evaluation.phrase_grounding import MAX_NEW_TOKENS, QUESTION, Grounder, ground_pictures
from .evaluation.phrase_similarity import TEXT_ENCODER, EncodedPhrases
from .evaluation.registry import EvaluationOptions, Outcome, UnknownBenchmarkError
from .evaluation.report import numbers_table
from .loading import load_pretrained
from .model_kinds import WrongModelError, check_model_fits
from .processing.noun_phrases import SpacyExtractor
from .whole_files import write_whole


# Fields of AttendAndSegmentConfig, and how their values are read from the command line.
_POINTING: dict[str, Callable[[str], Any]] = {
    "heads": lambda text: text if text in ("paper", "mean") else [int(part) for part in text.split(",")],
    "attention_layers": lambda text: [int(part) for part in text.split(",")],
    "subtract_mean": lambda text: _yes_or_no(text),
    "remove_corners": lambda text: _yes_or_no(text),
    "prompt": str,
    "attention_temperature": float,
    "box_threshold": float,
    "mask_choice": str,
}
_GROUNDED_NUMBERS = ("ap", "ap50")
_INSTANCE_NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


def run_coco(options: EvaluationOptions) -> Outcome:
    """COCO instance segmentation: every phrase's mask gets the category that its head word means."""
    options.require("annotations")
    settings = _read(options, {"category_threshold": float, "word_vectors": str, "results": str})
    data = CocoInstances(options.annotations, options.limit)
    if "results" in settings:
        instances = read_instances(settings["results"])
        scored = {image.id for image in data.images}
        instances = [instance for instance in instances if options.limit is None or instance["image_id"] in scored]
    else:
        word_vector = _word_vector(settings.get("word_vectors", "spacy"))
        answers = _answers(options, settings, data.images)
        if answers is None:
            return _ELSEWHERE
        instances = number_instances(
            [
                instance
                for image in data.images
                if image.id in answers
                for instance in name_instances(
                    image,
                    answers[image.id],
                    data.candidates(image, options.protocol),
                    word_vector,
                    settings.get("category_threshold", 0.0),
                )
            ]
        )
        write_whole(options.out / "instances.json", json.dumps(instances) + "\n")
    result = score_instances(data, instances, options.protocol, options.images)
    return Outcome(result, _instance_table(result), _about(options, settings))


def run_grandf(options: EvaluationOptions) -> Outcome:
    """Grounded conversation generation on GranD-f."""
    options.require("annotations")
    options.split = options.split or "val"
    settings = _read(options, {"text_encoder": str, "captions": _yes_or_no})
    data = GroundedConversations(options.annotations, options.split, options.limit)
    encoder = settings.get("text_encoder", TEXT_ENCODER)
    device = PartialState().device
    # Loaded first: a name that cannot be found is told before the work, not after it.
    similarity = None if encoder == "none" else EncodedPhrases.load(encoder, device)
    answers = _answers(options, settings, data.images)
    if answers is None:
        return _ELSEWHERE
    result = score_grounded_conversation(
        data, answers, options.protocol, similarity, settings.get("captions", True), options.images
    )
    return Outcome(result, _grounded_table(result), _about(options, settings))


# What processes other than the main one return: they have done their part of the pictures.
_ELSEWHERE = Outcome(None, None, {})


def _answers(
    options: EvaluationOptions, settings: dict[str, Any], images: list[AnnotatedImage]
) -> dict[int | str, GroundedAnswer] | None:
    """Answers by picture, made now or read; None on all processes but the main one."""
    folder = settings.get("answers")
    if folder is None:
        folder = options.out / "answers"
        _ground(options, settings, images, folder)
    return read_grounded_answers(folder, images) if PartialState().is_main_process else None


def _ground(options: EvaluationOptions, settings: dict[str, Any], images: list[AnnotatedImage], folder: Path) -> None:
    options.require("model", "images")
    repo, arguments = options.repository, options.load_arguments()
    kind = check_model_fits("segment", repo, **arguments, asked=f"--dataset {options.dataset}")
    if kind is None or kind.name != ATTEND_AND_SEGMENT.name:
        raise WrongModelError(
            f"--dataset {options.dataset} needs a model that points by its attention; {options.model} is of the kind "
            f"{kind and kind.name}. Make one: reasonseg convert attend-and-segment VLM --sam FILE --out DIR."
        )
    model = load_pretrained(AutoModel, repo, dtype=settings.get("dtype", "auto"), **arguments)
    processor = load_pretrained(AutoProcessor, repo, **arguments)
    if "phrase_extractor" in settings:
        processor.phrase_extractor = settings["phrase_extractor"]
    grounder = Grounder(
        model.to(PartialState().device).eval(),
        processor,
        question=settings.get("question", QUESTION),
        max_new_tokens=options.max_new_tokens or MAX_NEW_TOKENS,
        candidates=settings.get("candidates", "chosen"),
        options={name: settings[name] for name in _POINTING if name in settings},
    )
    identity = {"model": options.model, "revision": options.revision, "dtype": str(model.dtype).removeprefix("torch.")}
    ground_pictures(
        grounder,
        images,
        options.images,
        folder,
        identity,
        maps=settings.get("maps"),
        original_maps=settings.get("original_maps"),
        batch_size=options.batch_size,
        progress=options.progress,
    )


def _read(options: EvaluationOptions, own: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The settings with their values read.

    Raises:
        UnknownBenchmarkError: If a value cannot be read.
    """
    paths = dict.fromkeys(("maps", "original_maps", "answers"), Path)
    words = dict.fromkeys(("candidates", "phrase_extractor", "dtype"), str)
    readers = {**paths, **words, "question": _question, **_POINTING, **own}
    values = {}
    for name, text in options.settings.items():
        try:
            values[name] = readers[name](text)
        except ValueError as error:
            raise UnknownBenchmarkError(f"--set {name}={text} cannot be read: {error}.") from None
    return values


def _question(text: str) -> str:
    if not text.strip():
        raise ValueError("the question is empty")
    return text


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("yes", "no", "true", "false"):
        raise ValueError("it is yes or no")
    return text.lower() in ("yes", "true")


def _word_vector(choice: str) -> Callable[[str], np.ndarray]:
    """Vectors of words: `spacy`, `spacy:<pipeline>` or `encoder:<folder or name>`; each word is computed once."""
    kind, _, name = choice.partition(":")
    if kind == "encoder":
        encoder = EncodedPhrases.load(name or TEXT_ENCODER, PartialState().device)
        return lambda word: encoder([word])[0]
    if kind == "spacy":
        return functools.cache(_spacy_vector(name or None))
    raise UnknownBenchmarkError(
        f"--set word_vectors={choice} is not known; it is spacy, spacy:<pipeline> or encoder:<folder or name>."
    )


def _spacy_vector(name: str | None) -> Callable[[str], np.ndarray]:
    instead = "or compare with a text encoder: --set word_vectors=encoder:FOLDER."
    try:
        extractor = SpacyExtractor(name)
    except ImportError as error:
        raise UnknownBenchmarkError(
            "Phrases get their category by spaCy's word vectors, and there are none here. Install them (pip install "
            f"spacy; python -m spacy download en_core_web_lg), {instead} ({error})"
        ) from error
    # Without them spaCy takes what its parser computes, in which related words are not near each other.
    if not extractor.pipeline.vocab.vectors_length:
        raise UnknownBenchmarkError(
            f"The pipeline {extractor.name} has no word vectors, by which phrases get their category. Install "
            f"en_core_web_lg and name it, --set word_vectors=spacy:en_core_web_lg, {instead}"
        )
    return extractor.vector


def _about(options: EvaluationOptions, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": options.model,
        "dataset": options.dataset,
        "split": options.split,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
    }


def _instance_table(result: InstanceResult):
    numbers = {name: result.masks[name] for name in _INSTANCE_NUMBERS}
    numbers |= {"point accuracy": result.point_accuracy, "pictures": result.images, "instances": result.instances}
    return numbers_table(f"COCO instances, protocol: {result.protocol} (%)", numbers, result.notes)


def _grounded_table(result: GroundedConversationResult):
    numbers = {name: result.masks[name] for name in _GROUNDED_NUMBERS}
    numbers |= {"mIoU": result.miou, "mIoU, misses as 0": result.miou_all_targets, "recall": result.recall}
    numbers |= {name.upper(): value for name, value in (result.captions or {}).items()}
    numbers |= {"pictures": result.images, "unanswered": result.unanswered}
    return numbers_table(f"GranD-f, protocol: {result.protocol} (%)", numbers, result.notes)


__all__ = ["run_coco", "run_grandf"]
