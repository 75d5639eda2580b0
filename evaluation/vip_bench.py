"""ViP-Bench: free answers about marked regions, scored by a judge, by capability (vip-bench_evaluator.py)."""

import csv
import json
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..data.data_files import file_in, read_json, read_json_lines
from ..whole_files import write_whole, written_whole
from .judges import Judge


SPLITS = ("bbox", "human")
METADATA = "vip-bench-meta-data.json"
_DECIMALS = 1


class VipBenchError(ValueError):
    """The benchmark's files are not as they should be."""


@dataclass(frozen=True)
class VipBenchQuestion:
    """
    Args:
        id (`str`): As in the metadata: `v1_0`.
        image (`Path`): The picture; its marks are in it.
        text (`str`): What is asked about it in this split.
        plain_text (`str`): The metadata's question.
        answer (`str`): The truth, with `<AND>` and `<OR>`.
        capabilities (`tuple[str, ...]`): What the question needs, in the order of the file.
    """

    id: str
    image: Path
    text: str
    plain_text: str
    answer: str
    capabilities: tuple[str, ...]


def read_vip_bench(folder: str | Path, split: str) -> list[VipBenchQuestion]:
    """
    Args:
        folder (`str` or `Path`): Of the extracted benchmark.
        split (`str`): `bbox` or `human`, who drew the marks.

    Raises:
        VipBenchError: If there is no such split, or questions and metadata do not match.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise VipBenchError(f"ViP-Bench has no split {split!r}; it has {' and '.join(SPLITS)}.")
    files = {name: folder / name for name in (METADATA, f"{split}/questions.jsonl")}
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise VipBenchError(f"{folder} lacks {', '.join(missing)}; extract the files of mucai/ViP-Bench there.")
    metadata = read_json(files[METADATA], VipBenchError)
    _check_metadata(metadata, files[METADATA])
    asked = {}
    for number, row in read_json_lines(files[f"{split}/questions.jsonl"], VipBenchError):
        if not isinstance(row, dict) or not {"question_id", "image", "text"} <= set(row):
            raise VipBenchError(
                f"{files[f'{split}/questions.jsonl']}, line {number} is {reprlib.repr(row)}; it must be an object "
                "with question_id, image and text."
            )
        asked[f"v1_{row['question_id']}"] = row
    if different := sorted(metadata.keys() ^ asked.keys()):
        raise VipBenchError(f"Metadata and questions of {split} do not have the same ids: {different[:5]} ...")
    return [
        VipBenchQuestion(
            id=key,
            image=_image(folder / split / "images", asked[key]["image"], key),
            text=asked[key]["text"],
            plain_text=row["question"],
            answer=row["answer"],
            capabilities=tuple(dict.fromkeys(row["capability"])),
        )
        for key, row in metadata.items()
    ]


def _check_metadata(metadata: Any, path: Path) -> None:
    """
    Raises:
        VipBenchError: If a question has no text, answer and capabilities, or there is none.
    """
    if not isinstance(metadata, dict) or not metadata:
        raise VipBenchError(f"{path} must be an object with one entry per question, not {reprlib.repr(metadata)}.")
    for key, row in metadata.items():
        is_whole = isinstance(row, dict) and {"question", "answer", "capability"} <= set(row)
        names = row["capability"] if is_whole else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise VipBenchError(
                f"{path}, {key!r} is {reprlib.repr(row)}; it needs question, answer and capability, a list of names."
            )


def _image(folder: Path, name: Any, key: str) -> Path:
    try:
        return file_in(folder, name)
    except ValueError as error:
        raise VipBenchError(f"The image of {key!r}: {error}") from None


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
    Has every answer scored `runs` times; a run that was stopped goes on with what `path` holds.

    Args:
        questions (`Sequence[VipBenchQuestion]`): All of them.
        results (`Mapping[str, str]`): Answers by id.
        judge ([`Judge`]): Who scores.
        runs (`int`): How often; 5 in the paper.
        path (`Path`): JSON file, written after every score, in the original's form with the answer beside.
        progress (`Callable`, *optional*): Called with the number of scores there are and of all.

    Returns:
        `dict`: By id the `prediction`, and `model`, `content` and `score`, one entry per run each.

    Raises:
        VipBenchError: If an answer is missing.
    """
    if missing := [question.id for question in questions if question.id not in results]:
        raise VipBenchError(f"There is no answer to {len(missing)} questions: {', '.join(missing[:5])} ...")
    grades = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    done = 0
    for run in range(runs):
        for question in questions:
            grade_of = grades.get(question.id)
            if grade_of is None or grade_of.get("prediction") != results[question.id]:
                # Never scored, or another answer was.
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


__all__ = [
    "SPLITS",
    "VipBenchError",
    "VipBenchQuestion",
    "VipBenchResult",
    "grade",
    "read_vip_bench",
    "scores_by_capability",
    "write_results",
    "write_tables",
]
