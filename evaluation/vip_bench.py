"""ViP-Bench: free answers about images with visual prompts, scored by a judge (vip-bench_evaluator.py)."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.table import Table

from ..atomic_files import write_whole, written_whole
from ..data.data_files import read_json
from ..data.vip_bench import VipBenchError, VipBenchQuestion
from ..loading import load_pipeline
from ..processing.image_loading import load_rgb_image
from .answering import ImageQuestion, answer_questions, answering_of
from .judges import TEXT_MATCHES, EndpointJudge, Judge, PipelineJudge, TextMatchJudge
from .registry import EvaluationOptions, Outcome, UnknownBenchmarkError


_DECIMALS = 1


def write_results(lines: Sequence[Mapping[str, Any]], path: Path) -> dict[str, str]:
    """The answers as the benchmark's evaluation server takes them: one JSON object, text by `v1_` and the number."""
    results = {f"v1_{line['question_id']}": line["text"] for line in lines}
    _write_json(results, path, indent=2)
    return results


def grade(
    questions: Sequence[VipBenchQuestion],
    results: Mapping[str, str],
    judge: Judge,
    runs: int,
    path: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, list]]:
    """
    Has every answer scored `runs` times; a run that was stopped resumes from what `path` holds.

    Args:
        questions (`Sequence[VipBenchQuestion]`): All of them.
        results (`Mapping[str, str]`): Answers by id.
        judge ([`Judge`]): Who scores.
        runs (`int`): How often; 5 in the paper.
        path (`Path`): JSON file, written after every score, in the original's form with the answer added.
        progress (`Callable`, *optional*): Called with the number of scores so far and in total.

    Returns:
        `dict`: By id the `prediction`, and `model`, `content` and `score`, one entry per run each.

    Raises:
        VipBenchError: If an answer is missing.
    """
    if missing := [question.id for question in questions if question.id not in results]:
        raise VipBenchError(f"There is no answer to {len(missing)} questions: {', '.join(missing[:5])} ...")
    grades = read_json(path) if path.is_file() else {}
    done = 0
    for run in range(runs):
        for question in questions:
            grade_of = grades.get(question.id)
            if grade_of is None or grade_of.get("prediction") != results[question.id]:
                # Not scored yet, or the scores are of another answer.
                grade_of = {"prediction": results[question.id], "model": [], "content": [], "score": []}
                grades[question.id] = grade_of
            if len(grade_of["score"]) <= run:
                verdict = judge.judge(question.text, question.answer, results[question.id], question.plain_text)
                for name in ("model", "content", "score"):
                    grade_of[name].append(getattr(verdict, name))
                _write_json(grades, path, indent=4)
            done += 1
            if progress is not None:
                progress(done, runs * len(questions))
    return grades


@dataclass
class VipBenchResult:
    """
    Scores from 0 to 100, means over the runs.

    Args:
        capabilities (`dict[str, float]`): By capability, the most frequent first, and `total`.
        integrations (`dict[str, float]`): By the set of capabilities that a question needs, and `total`.
        counts (`dict[str, int]`): Questions of each capability, and all.
        integration_counts (`dict[str, int]`): Questions of each set, and all.
        std (`float`): Standard deviation of the total over the runs.
        runs (`list[float]`): Total of each run.
        cases (`list`): Always empty.
    """

    capabilities: dict[str, float]
    integrations: dict[str, float]
    counts: dict[str, int]
    integration_counts: dict[str, int]
    std: float
    runs: list[float]
    cases: list[Any] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: value for name, value in vars(self).items() if name != "cases"}

    def table(self, title: str) -> Table:
        """One row per capability."""
        table = Table(title=title)
        table.add_column("capability")
        table.add_column("questions", justify="right")
        table.add_column("score", justify="right")
        for name, score in self.capabilities.items():
            table.add_row(name, str(self.counts[name]), f"{score:.{_DECIMALS}f}")
        table.add_row("std over runs", str(len(self.runs)), f"{self.std:.{_DECIMALS}f}")
        return table


def scores_by_capability(
    questions: Sequence[VipBenchQuestion], grades: Mapping[str, Mapping[str, list]], runs: int
) -> VipBenchResult:
    """
    Args:
        questions (`Sequence[VipBenchQuestion]`): All of them.
        grades (`Mapping`): Of [`grade`].
        runs (`int`): How many of its runs count.
    """
    scores = np.array([grades[question.id]["score"][:runs] for question in questions], dtype=np.float64)
    by_capability = Counter(name for question in questions for name in question.capabilities)
    sets = Counter(frozenset(question.capabilities) for question in questions)

    def mean(chosen: list[bool]) -> float:
        return round(float((scores[chosen].sum(axis=0) / sum(chosen) * 100).mean()), _DECIMALS)

    capabilities = {
        name: mean([name in question.capabilities for question in questions])
        for name, _ in by_capability.most_common()
    }
    named_sets = {"_".join(sorted(chosen)): chosen for chosen, _ in sets.most_common()}
    integrations = {
        name: mean([frozenset(question.capabilities) == chosen for question in questions])
        for name, chosen in named_sets.items()
    }
    totals = scores.mean(axis=0) * 100
    total = round(float(totals.mean()), _DECIMALS)
    return VipBenchResult(
        capabilities={**capabilities, "total": total},
        integrations={**integrations, "total": total},
        counts={**by_capability, "total": len(questions)},
        integration_counts={**{name: sets[chosen] for name, chosen in named_sets.items()}, "total": len(questions)},
        std=round(float(totals.std()), _DECIMALS),
        runs=[round(float(value), _DECIMALS) for value in totals],
    )


def write_tables(result: VipBenchResult, model: str, capabilities: Path, integrations: Path) -> None:
    """The two tables as the original writes them: one row, with `std` and `runs` last."""
    for scores, path in ((result.capabilities, capabilities), (result.integrations, integrations)):
        with written_whole(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["", *scores, "std", "runs"])
            writer.writerow([model, *scores.values(), result.std, str(result.runs)])


def _write_json(value: Any, path: Path, indent: int) -> None:
    write_whole(path, json.dumps(value, indent=indent, ensure_ascii=False))


class _ReadWhenAsked(Sequence):
    """Questions whose images are read when they are taken."""

    def __init__(self, questions: Sequence[VipBenchQuestion]):
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> ImageQuestion:
        question = self.questions[index]
        return ImageQuestion(question.id.removeprefix("v1_"), load_rgb_image(question.image), question.text)


def run_vip_bench(options: EvaluationOptions, questions: Sequence[VipBenchQuestion]) -> Outcome:
    """ViP-Bench: answers, then scores of a judge; without `--model` the answers that `--out` holds are scored."""
    questions, split, state = questions[: options.limit], options.split, PartialState()
    results = options.out / f"{split}.json"
    if options.model is not None:
        model, processor = options.load_model(), options.load_processor()
        lines = answer_questions(
            model,
            processor,
            _ReadWhenAsked(questions),
            options.out / split,
            answering_of(options, default_length=1024, dataset=f"vip-bench {split}"),
            model_id=str(options.model),
            progress=options.report("answering"),
        )
        del model  # a judge may need its memory
        if state.is_main_process:
            write_results(lines, results)
    if not state.is_main_process:
        return Outcome()  # it has answered its part; one process judges
    given = options.settings["judge"]
    judged_by = options.settings["judge_model"] if "://" in given else given
    runs = options.settings.get("runs", 1 if given in TEXT_MATCHES else 5)
    stem = options.out / f"{split}-{Path(judged_by).name}"
    if not results.is_file():
        raise UnknownBenchmarkError(f"There are no answers in {results}; give --model to make them.")
    grades = grade(
        questions,
        read_json(results),
        _judge(given, judged_by, options),
        runs,
        stem.with_name(f"{stem.name}-grade.json"),
        progress=options.report("judging"),
    )
    result = scores_by_capability(questions, grades, runs)
    write_tables(
        result,
        str(options.model or options.out.name),
        stem.with_name(f"{stem.name}-capabilities.csv"),
        stem.with_name(f"{stem.name}-integrations.csv"),
    )
    about = {"model": options.model, "dataset": "vip-bench", "split": split, "judge": judged_by}
    return Outcome(result, result.table(f"ViP-Bench {split}, judged by {judged_by}"), about)


def _judge(given: str, name: str, options: EvaluationOptions) -> Judge:
    if given in TEXT_MATCHES:
        return TextMatchJudge(given)
    if "://" in given:
        variable = options.settings.get("key_variable")
        return EndpointJudge(given, name, **({} if variable is None else {"key_variable": variable}))
    source = {"trust_remote_code": options.trust_remote_code, "revision": options.revision}
    return PipelineJudge(load_pipeline("text-generation", model=given, dtype="auto", **source), name)


__all__ = [
    "VipBenchResult",
    "grade",
    "run_vip_bench",
    "scores_by_capability",
    "write_results",
    "write_tables",
]
