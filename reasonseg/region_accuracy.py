"""Runs ViP-LLaVA's benchmarks: Visual7W, PointQA-LookTwice, VCR, any region file of one's own, and ViP-Bench."""

import json
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from .evaluation.answering import Answering, PictureQuestion, answer_questions, input_side
from .evaluation.choice_accuracy import choice_result
from .evaluation.judges import EndpointJudge, Judge, PipelineJudge, RuleJudge
from .evaluation.registry import EvaluationOptions, Outcome, UnknownBenchmarkError
from .evaluation.vip_bench import (
    grade,
    read_vip_bench,
    scores_by_capability,
    write_results,
    write_tables,
)
from .loading import load_pipeline, load_pretrained
from .model_kinds import check_model_fits
from .processing.chat_templates import IMAGE_TOKEN
from .processing.image_loading import load_rgb_image
from .processing.visual_prompt_sampling import PromptRandom
from .processing.visual_prompts import ANCHOR, DEFAULT_ALPHA
from .training.region_conversation import marked_image
from .training.region_data import RegionFile
from .training.region_questions import build_conversation


# The names of what is asked about one row of VCR, by protocol; both together give Q->AR.
_VCR_TASKS = {"qa": {"q-a": "vcr_qa"}, "qar": {"qa-r": "vcr_qar"}, "both": {"q-a": "vcr_qa", "qa-r": "vcr_qar"}}

_RULES = ("keyword", "exact")
_JUDGE_MODEL = "gpt-4-0613"  # who gave the published numbers


class RegionQuestions(Sequence):
    """
    First questions of a region file's conversations, with the marks drawn when a question is taken.

    Args:
        file ([`RegionFile`]): The rows.
        task (`str`, *optional*): `vcr_qa` or `vcr_qar`.
        seed (`int`): With the row's number it decides colours, places and wording.
        alpha (`int`, *optional*): Opacity of the marks; the original's commands give 128. `None` draws it.
        squashed (`bool`): Resize the picture to the model's square instead of padding it, as for VCR.
        side (`int`): Side in pixels of the model's input.
        limit (`int`, *optional*): Only the first rows.
    """

    def __init__(
        self,
        file: RegionFile,
        task: str | None = None,
        seed: int = 0,
        alpha: int | None = DEFAULT_ALPHA,
        squashed: bool = False,
        side: int = ANCHOR,
        limit: int | None = None,
    ):
        self.file, self.task, self.seed, self.alpha = file, task, seed, alpha
        self.squashed, self.side = squashed, side
        self.count = len(file) if limit is None else min(limit, len(file))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> PictureQuestion:
        if not 0 <= number < self.count:
            raise IndexError(f"There are {self.count} questions; there is no question {number}.")
        sample = self.file[number]
        rng = PromptRandom.from_seed((self.seed + number) % 2**32)
        conversation = build_conversation(sample, rng, self.task)
        image = marked_image(sample.image, conversation, rng, alpha=self.alpha, anchor=self.side)
        if self.squashed:
            image = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        question, answer = conversation.turns[0]
        return PictureQuestion(sample.id, image, question.replace(IMAGE_TOKEN, "").strip(), answer)


def run_v7w(options: EvaluationOptions) -> Outcome:
    """Visual7W: which of four marked boxes is meant."""
    return _run_choices(options, {"v7w": None})


def run_pointqa(options: EvaluationOptions) -> Outcome:
    """PointQA-LookTwice: a question about things like the marked one."""
    return _run_choices(options, {"pointqa-looktwice": None})


def run_vcr(options: EvaluationOptions) -> Outcome:
    """VCR: Q->A, QA->R, and both right."""
    return _run_choices(options, _VCR_TASKS[options.protocol], "q-ar" if options.protocol == "both" else "")


def run_regions(options: EvaluationOptions) -> Outcome:
    """Any region file; the first answer of each conversation must be met exactly."""
    return _run_choices(options, {"regions": None})


def _run_choices(options: EvaluationOptions, tasks: dict[str, str | None], all_of_them: str = "") -> Outcome:
    options.require("model", "annotations")
    settings = options.settings
    preprocess = settings.get("preprocess", "resize" if options.dataset == "vcr" else "pad")
    if preprocess not in ("pad", "resize"):
        raise UnknownBenchmarkError(f"--set preprocess={preprocess} is not known; it is pad or resize.")
    alpha = settings.get("alpha", str(DEFAULT_ALPHA))
    file = RegionFile(options.annotations, options.images)
    if not len(file):
        raise UnknownBenchmarkError(f"{options.annotations} has no rows to ask about.")
    model, processor = _load(options)
    answering = _answering(options, settings, default_length=128)
    lines = {}
    for name, task in tasks.items():
        questions = RegionQuestions(
            file,
            task,
            seed=answering.seed,
            alpha=None if alpha == "random" else _integer("alpha", alpha),
            squashed=preprocess == "resize",
            side=input_side(processor),
            limit=options.limit,
        )
        answering.about = {**_asked_of(options), "dataset": options.dataset, "task": name, "seed": answering.seed}
        answering.about |= {"alpha": alpha, "preprocess": preprocess}
        lines[name] = answer_questions(
            model,
            processor,
            questions,
            Path(options.out) / name,
            answering,
            model_id=str(options.model),
            progress=lambda done, total, name=name: options.progress(name, done, total),
        )
    result = choice_result(lines, all_of_them)
    about = {"model": options.model, "dataset": options.dataset, "protocol": options.protocol, **settings}
    return Outcome(result, result.table(options.dataset), about)


def run_vip_bench(options: EvaluationOptions) -> Outcome:
    """ViP-Bench: answers, then scores of a judge; without `--model` the answers that `--out` holds are scored."""
    options.require("annotations")
    settings = options.settings
    split = options.split or "bbox"
    questions = read_vip_bench(options.annotations, split)[: options.limit]
    out, state = Path(options.out), PartialState()
    answering = _answering(options, settings, default_length=1024)
    if options.model is not None:
        model, processor = _load(options)
        answering.about = {**_asked_of(options), "dataset": f"vip-bench {split}"}
        asked = [PictureQuestion(row.id.removeprefix("v1_"), row.image, row.text) for row in questions]
        lines = answer_questions(
            model,
            processor,
            _Opened(asked),
            out / split,
            answering,
            model_id=str(options.model),
            progress=lambda done, total: options.progress("answering", done, total),
        )
        del model
        if state.is_main_process:
            write_results(lines, out / f"{split}.json")
    if not state.is_main_process:
        return Outcome(None, None, {})  # it has answered its part; one process judges
    given = settings.get("judge", _RULES[0])
    judged_by = settings.get("judge_model", _JUDGE_MODEL) if "://" in given else given
    runs = _integer("runs", settings.get("runs", "1" if given in _RULES else "5"))
    stem = f"{split}-{Path(judged_by).name}"
    path = out / f"{stem}-grade.json"
    grades = grade(
        questions,
        _read_results(out / f"{split}.json"),
        _judge(given, judged_by, options),
        runs,
        path,
        progress=lambda done, total: options.progress("judging", done, total),
    )
    result = scores_by_capability(questions, grades, runs)
    name = str(options.model or out.name)
    write_tables(result, name, out / f"{stem}-capabilities.csv", out / f"{stem}-integrations.csv")
    about = {"model": options.model, "dataset": "vip-bench", "split": split, "judge": judged_by}
    return Outcome(result, result.table(f"ViP-Bench {split}, judged by {judged_by}"), about)


class _Opened(Sequence):
    """Questions whose pictures are read when they are taken."""

    def __init__(self, questions: list[PictureQuestion]):
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, number: int) -> PictureQuestion:
        question = self.questions[number]
        return PictureQuestion(question.id, load_rgb_image(question.image), question.text, question.answer)


def _judge(given: str, name: str, options: EvaluationOptions) -> Judge:
    if given in _RULES:
        return RuleJudge(given)
    if "://" in given:
        variable = options.settings.get("key_variable")
        return EndpointJudge(given, name, **({} if variable is None else {"key_variable": variable}))
    generate = load_pipeline("text-generation", model=given, dtype="auto", **options.load_arguments())
    return PipelineJudge(generate, name)


def _load(options: EvaluationOptions):
    check_model_fits("ask", options.repository, **options.load_arguments(), asked=f"--dataset {options.dataset}")
    model = load_pretrained(AutoModelForImageTextToText, options.repository, dtype="auto", **options.load_arguments())
    return (
        model.to(PartialState().device),
        load_pretrained(AutoProcessor, options.repository, **options.load_arguments()),
    )


def _answering(options: EvaluationOptions, settings: dict[str, str], default_length: int) -> Answering:
    return Answering(
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens or default_length,
        temperature=_number("temperature", settings.get("temperature", "0")),
        seed=_integer("seed", settings.get("seed", "0")),
    )


def _asked_of(options: EvaluationOptions) -> dict[str, str]:
    """Which model and which files the answers are of; what was not given is left out."""
    given = {name: getattr(options, name) for name in ("model", "revision", "images", "annotations")}
    return {name: str(value) for name, value in given.items() if value is not None}


def _integer(name: str, value: str) -> int:
    if not value.isdigit():
        raise UnknownBenchmarkError(f"--set {name}={value} must be a whole number of at least 0.")
    return int(value)


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if number < 0:
        raise UnknownBenchmarkError(f"--set {name}={value} must be a number of at least 0.")
    return number


def _read_results(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UnknownBenchmarkError(f"There are no answers in {path}; give --model to make them.")
    return json.loads(path.read_text(encoding="utf-8"))


__all__ = ["RegionQuestions", "run_pointqa", "run_regions", "run_v7w", "run_vcr", "run_vip_bench"]
