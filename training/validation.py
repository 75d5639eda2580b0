"""Validation while a model learns: a benchmark measures it every so many steps, and the best checkpoint is kept."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from ..atomic_files import write_whole
from ..loading import import_object
from .checkpoints import VALIDATION_DRAFT
from .data_kinds import BENCHMARKS
from .recipe import RecipeError, ValidationRecipe


if TYPE_CHECKING:
    from transformers import TrainerState


logger = logging.getLogger(__name__)

# Holds the numbers of every validation, in the finished repository.
VALIDATION_FILE = "validation.json"
# Fields of a recipe's section that are not options of a benchmark.
_OWN = ("dataset", "every", "metric", "greater_is_better")


class Validation:
    """
    Args:
        recipe ([`ValidationRecipe`]): What is measured, and when.
        out (`Path`): Folder of the run.
    """

    def __init__(self, recipe: ValidationRecipe, out: Path):
        self.recipe, self.out, self.metric = recipe, out, recipe.metric
        options = {own.name: getattr(recipe, own.name) for own in fields(recipe) if own.name not in _OWN}
        self._options = {name: value for name, value in options.items() if value is not None}

    @property
    def training_arguments(self) -> dict[str, Any]:
        """Arguments of the Trainer: checkpoints are written where the model is measured, and the best one is kept."""
        by_steps = self.recipe.every != "epoch"
        steps = {"eval_steps": self.recipe.every, "save_steps": self.recipe.every} if by_steps else {}
        return {
            "eval_strategy": "steps" if by_steps else "epoch",
            "save_strategy": "steps" if by_steps else "epoch",
            **steps,
            "metric_for_best_model": f"eval_{self.metric}",
            "greater_is_better": self.recipe.greater_is_better,
            "load_best_model_at_end": True,
        }

    def check(self) -> None:
        """
        Before a model is loaded.

        Raises:
            RecipeError: If the benchmark does not exist, or lacks what was asked of it.
            DataFileError: If its data cannot be used.
        """
        self._call(BENCHMARKS["check"])

    def measure(self, model: Any, processor: Any) -> dict[str, float]:
        """
        Returns:
            `dict[str, float]`: The metric, and the other numbers over everything by their names.

        Raises:
            RecipeError: If the benchmark does not give the metric.
        """
        numbers = self._call(BENCHMARKS["measure"], model, processor)
        value = {name.lower(): number for name, number in numbers.items()}.get(self.metric.lower())
        if value is None:
            raise RecipeError(
                f"validation.metric is {self.metric!r}; {self.recipe.dataset} gives {', '.join(numbers)}."
            )
        return {self.metric: value} | {name: number for name, number in numbers.items() if "/" not in name}

    def _call(self, reference: str, *loaded: Any) -> Any:
        scratch, processes = self.out / VALIDATION_DRAFT, PartialState()
        try:
            return import_object(reference)(self.recipe.dataset, scratch, *loaded, **self._options)
        except import_object(BENCHMARKS["error"]) as error:
            raise RecipeError(f"validation: {error}") from error
        finally:
            processes.wait_for_everyone()
            if processes.is_main_process:
                # the next time the weights are others, and nothing may be taken from here
                shutil.rmtree(scratch, ignore_errors=True)
            processes.wait_for_everyone()

    def write(self, state: TrainerState, folder: Path) -> None:
        """Write the numbers of all validations, and which of them the finished weights had."""
        history = [
            {"step": entry["step"], **{name[5:]: value for name, value in entry.items() if name.startswith("eval_")}}
            for entry in state.log_history
            if f"eval_{self.metric}" in entry
        ]
        found = {
            "dataset": Path(self.recipe.dataset).name,
            "split": self.recipe.split,
            "protocol": self.recipe.protocol,
            "metric": self.metric,
            "best": {"step": state.best_global_step, self.metric: state.best_metric},
            "history": history,
        }
        write_whole(folder / VALIDATION_FILE, json.dumps(found, indent=2) + "\n")


__all__ = ["VALIDATION_FILE", "Validation"]
