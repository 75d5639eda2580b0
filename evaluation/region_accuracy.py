"""Accuracy of answers about regions: Visual7W, PointQA-LookTwice, VCR, and any custom region file.

An answer is right if it is equal to the right one (`model_vqa_loader_vip.py` of ViP-LLaVA).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from rich.table import Table

from ..data.region_conversation import image_with_prompts
from ..data.region_data import RegionFile
from ..data.region_questions import build_conversation
from ..processing.chat import IMAGE_TOKEN
from ..processing.visual_prompt_sampling import PromptRandom
from ..processing.visual_prompts import ANCHOR, DEFAULT_ALPHA
from .answering import ImageQuestion, answer_questions, answering_of, input_side
from .registry import EvaluationOptions, Outcome, UnknownBenchmarkError


# The names of what is asked about one row of VCR, by protocol; both together give Q->AR.
_VCR_TASKS = {"qa": {"q-a": "vcr_qa"}, "qar": {"qa-r": "vcr_qar"}, "both": {"q-a": "vcr_qa", "qa-r": "vcr_qar"}}


class RegionQuestions(Sequence):
    """
    First questions of a region file's conversations, with the visual prompts drawn when a question is taken.

    Args:
        file ([`RegionFile`]): The rows.
        task (`str`, *optional*): `vcr_qa` or `vcr_qar`.
        seed (`int`): With the row's index it determines colours, positions and wording.
        alpha (`int`, *optional*): Opacity of the visual prompts; the original's commands give 128. `None` samples it.
        squashed (`bool`): Resize the image to the model's square instead of padding it, as for VCR.
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

    def __getitem__(self, index: int) -> ImageQuestion:
        if not 0 <= index < self.count:
            raise IndexError(f"There are {self.count} questions; there is no question {index}.")
        sample = self.file[index]
        rng = PromptRandom.from_seed((self.seed + index) % 2**32)
        conversation = build_conversation(sample, rng, self.task)
        image = image_with_prompts(sample.image, conversation, rng, alpha=self.alpha, anchor=self.side)
        if self.squashed:
            image = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        question, answer = conversation.turns[0]
        return ImageQuestion(sample.id, image, question.replace(IMAGE_TOKEN, "").strip(), answer)


@dataclass
class ChoiceResult:
    """
    Args:
        accuracies (`dict[str, float]`): Share of right answers, 0 to 1, by the name of the question.
        counts (`dict[str, int]`): Questions of each.
        cases (`list`): Always empty: there are no masks to show.
    """

    accuracies: dict[str, float]
    counts: dict[str, int]
    cases: list[Any] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"accuracy": self.accuracies, "questions": self.counts}

    def table(self, title: str) -> Table:
        """One row per question."""
        table = Table(title=title)
        for name in ("question", "count", "accuracy"):
            table.add_column(name, justify="left" if name == "question" else "right")
        for name, accuracy in self.accuracies.items():
            table.add_row(name, str(self.counts[name]), f"{100 * accuracy:.2f}")
        return table


def is_right(text: str, answer: str) -> bool:
    """Equal except for case and surrounding space: "A." does not match "A"."""
    return text.strip().lower() == answer.strip().lower()


def choice_result(lines_by_name: Mapping[str, Sequence[Mapping[str, Any]]], all_of_them: str = "") -> ChoiceResult:
    """
    Args:
        lines_by_name: Lines of `answer_questions`, by the name of what was asked.
        all_of_them (`str`): Name of one more number: the share of rows for which everything was answered right (Q->AR
            of VCR). All lists must then be about the same rows in the same order.

    Raises:
        ValueError: If nothing was asked.
    """
    right = {
        name: [is_right(line["text"], line["metadata"]["answer"]) for line in lines]
        for name, lines in lines_by_name.items()
    }
    if not right or not all(right.values()):
        raise ValueError("There are no questions to count. Check the annotation file and --limit.")
    if all_of_them:
        right[all_of_them] = [all(row) for row in zip(*right.values(), strict=True)]
    return ChoiceResult(
        accuracies={name: sum(flags) / len(flags) for name, flags in right.items()},
        counts={name: len(flags) for name, flags in right.items()},
    )


def run_regions(options: EvaluationOptions, file: RegionFile) -> Outcome:
    """The first question of each row, such as which of Visual7W's four boxes is meant."""
    return _run(options, file, {options.dataset: None})


def run_pointqa(options: EvaluationOptions, file: RegionFile) -> Outcome:
    """PointQA-LookTwice: a question about things like the one in the box."""
    return _run(options, file, {"pointqa-looktwice": None})


def run_vcr(options: EvaluationOptions, file: RegionFile) -> Outcome:
    """VCR: Q->A, QA->R, and both right."""
    return _run(options, file, _VCR_TASKS[options.protocol], "q-ar" if options.protocol == "both" else "")


def _run(options: EvaluationOptions, file: RegionFile, tasks: dict[str, str | None], all_of_them: str = "") -> Outcome:
    if not len(file):
        raise UnknownBenchmarkError(f"{options.annotations} has no rows to ask about.")
    settings = options.settings
    alpha, preprocess, seed = settings["alpha"], settings["preprocess"], settings["seed"]
    model, processor = options.load_model(), options.load_processor()
    lines = {}
    for name, task in tasks.items():
        questions = RegionQuestions(
            file,
            task,
            seed=seed,
            alpha=None if alpha == "random" else alpha,
            squashed=preprocess == "resize",
            side=input_side(processor),
            limit=options.limit,
        )
        about = {"dataset": options.dataset, "task": name, "seed": seed, "alpha": str(alpha), "preprocess": preprocess}
        lines[name] = answer_questions(
            model,
            processor,
            questions,
            options.out / name,
            answering_of(options, default_length=128, **about),
            model_id=str(options.model),
            progress=options.report(name),
        )
    result = choice_result(lines, all_of_them)
    about = {"model": options.model, "dataset": options.dataset, "protocol": options.protocol, **options.given}
    return Outcome(result, result.table(options.dataset), about)


__all__ = ["ChoiceResult", "RegionQuestions", "choice_result", "is_right", "run_pointqa", "run_regions", "run_vcr"]
