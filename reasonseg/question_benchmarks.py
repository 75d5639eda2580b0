"""Runs questions with known masks: drawn tabletops, or any image folder with requests."""

from accelerate import PartialState
from transformers import AutoModel, AutoProcessor

from .evaluation.reasoning_segmentation import Question, check_rejections, evaluate
from .evaluation.registry import EvaluationOptions, Outcome
from .evaluation.report import results_table
from .loading import load_pretrained
from .model_kinds import check_model_fits
from .tabletop_questions import image_folder_questions, tabletop_questions


def run_tabletop(options: EvaluationOptions) -> Outcome:
    """Score a model on the first scenes of a split of the drawn data set."""
    options.split = options.split or "test"
    return _run(options, tabletop_questions(options.split, options.scenes))


def run_image_folder(options: EvaluationOptions) -> Outcome:
    """Score a model on the folder of one split (`metadata.jsonl`)."""
    options.split = None
    return _run(options, image_folder_questions(options.dataset))


def _run(options: EvaluationOptions, questions: list[Question]) -> Outcome:
    options.require("model")
    check_model_fits("segment", options.repository, **options.load_arguments(), asked=f"--dataset {options.dataset}")
    questions = questions[: options.limit]
    processor = load_pretrained(AutoProcessor, options.repository, **options.load_arguments())
    check_rejections(processor, questions, options.protocol)  # before the model is loaded
    network = load_pretrained(AutoModel, options.repository, dtype="auto", **options.load_arguments())
    result = evaluate(
        network.to(PartialState().device),
        processor,
        questions,
        protocol=options.protocol,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens or 128,
        rule=options.rule,
        progress=lambda done, total: options.progress("evaluating", done, total),
    )
    about = {
        "model": options.model,
        "dataset": options.dataset,
        "split": options.split,
        "questions": len(questions),
        "rule": options.rule,
    }
    return Outcome(result, results_table(result), about)


__all__ = ["run_image_folder", "run_tabletop"]
