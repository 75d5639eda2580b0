"""Accuracy of answers that must be equal to the right one: Visual7W, PointQA-LookTwice, VCR."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


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
    """Equal but for case and surrounding space (model_vqa_loader_vip.py): "A." is no answer to "A"."""
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


__all__ = ["ChoiceResult", "choice_result", "is_right"]
