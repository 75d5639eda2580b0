"""What a recipe may name: kinds of data, stages before the training, models from scratch, and benchmarks.

Every entry is `module:name`, and nothing of it is imported before a recipe uses it: a package that needs this one can
have entries of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from .recipe import DataRecipe, Recipe


DATA_KINDS = {
    "tabletop": "reasonseg.tabletop.recipe:Tabletops",
    "image_folder": "reasonseg.training.image_folder:ImageFolder",
    "lisa_mixture": "reasonseg.training.instruction_mixture:InstructionMixture",
    "ivm_mix": "reasonseg.training.ivm_mix:IvmMix",
    "regions": "reasonseg.training.regions:Regions",
}
"""A [`DataKind`] for each `data.kind`."""

FIRST_STAGES = {
    "towers": "reasonseg.tabletop.recipe:TowerRecipe",
    "dwsl": "reasonseg.training.dwsl_stages:DwslRecipe",
}
"""A [`FirstStage`] for each section of a recipe that asks for one, in the order in which they run."""

NEW_MODELS = {"tabletop": "reasonseg.tabletop.recipe:build_tabletop"}
"""For each `model` that begins with random weights a function of the recipe that returns it and its processor."""


BENCHMARKS = {
    "check": "reasonseg.evaluation.during_training:check_benchmark",
    "measure": "reasonseg.evaluation.during_training:measure",
    "error": "reasonseg.evaluation.registry:UnknownBenchmarkError",
}
"""What a recipe's `validation` is checked and measured by, and the error that says it cannot be."""


class DataKind:
    """
    How to learn from one kind of data.

    Attributes:
        model_class (`str`): Auto class of transformers that loads the model of a recipe.
        licence (`str`, *optional*): Of the data, where this package can say it.
        knows_scenes (`bool`): Whether [`scene_losses`] can say what every patch of an image shows.
        knows_lengths (`bool`): Whether its data set has `signed_lengths`, for `data.group_by_modality_length`.
    """

    model_class = "AutoModel"
    licence: str | None = None
    knows_scenes = False
    knows_lengths = False

    def check(self, recipe: Recipe) -> None:
        """
        Raises:
            RecipeError: If `recipe.data` lacks something; before anything is read.
        """

    def dataset(self, recipe: Recipe) -> Dataset:
        """
        Raises:
            DataFileError: If the data cannot be used.
            RecipeError: If an option does not exist.
        """
        raise NotImplementedError(f"{type(self).__name__} must say which data set it reads.")

    def check_model(self, dataset: Dataset, processor: Any, model: str) -> None:
        """
        Args:
            dataset (`Dataset`): What [`dataset`] returned.
            processor: Of the model, which is not loaded yet.
            model (`str`): Its name, for messages.

        Raises:
            DataFileError: If the model cannot learn from the data.
        """

    def collator(self, recipe: Recipe, processor: Any) -> Callable:
        """Makes batches of the data set's examples."""
        raise NotImplementedError(f"{type(self).__name__} must say how its examples become batches.")

    def scene_losses(self, recipe: Recipe, model: nn.Module, processor: Any) -> dict[str, Callable]:
        """Auxiliary losses by name, for `guidance.landmark_layer` and `guidance.word_weight`."""
        return {}

    def names(self, data: DataRecipe) -> str:
        """What is learned from, in words and without the folder where it lies."""
        return Path(data.path).absolute().name


class FirstStage:
    """Base of a section of a recipe that trains something before the recipe's own training."""

    def check(self, recipe: Recipe) -> None:
        """
        Raises:
            RecipeError: If the stage does not fit the rest of the recipe.
        """

    def run(
        self, recipe: Recipe, model: nn.Module, processor: Any, data: Dataset, out: Path, resumed: bool
    ) -> Dataset:
        """
        Args:
            recipe ([`Recipe`]): The whole recipe.
            model (`nn.Module`): What will be trained afterwards; may be changed in place.
            processor: Its processor.
            data (`Dataset`): What will be learned from.
            out (`Path`): Folder of the run.
            resumed (`bool`): Whether the training afterwards resumes from a checkpoint.

        Returns:
            `Dataset`: What to learn from afterwards.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it trains.")


__all__ = ["BENCHMARKS", "DATA_KINDS", "FIRST_STAGES", "NEW_MODELS", "DataKind", "FirstStage"]
