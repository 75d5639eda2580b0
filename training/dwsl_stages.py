"""IVM's first stage as a recipe runs it: train the discriminator or find it, score every example, make weights."""

import copy
import json
import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ..atomic_files import remove_drafts, write_whole
from ..data.data_files import read_json
from .data_kinds import FirstStage
from .dwsl import WeightedExamples, WeightRule, score_examples
from .ivm_discriminator import (
    DiscriminatorCollator,
    IvmDiscriminator,
    human_share,
    load_discriminator,
    save_discriminator,
)
from .recipe import LoraRecipe, Recipe, RecipeError
from .trained_parameters import add_lora, remove_lora, select_trained
from .trainer import ReasoningSegmentationTrainer, training_arguments


logger = logging.getLogger(__name__)

DISCRIMINATOR_FILE = "discriminator.safetensors"
SCORES_FOLDER = "scores"
SETTINGS_FILE = "settings.json"
# They make weights of scores, which every run does again.
_WEIGHT_RULE = ("floor", "sharpness", "normalise")


@dataclass
class DwslRecipe(FirstStage):
    """
    A discriminator of people's and machines' masks, whose scores weigh the examples.

    Args:
        steps (`int`): Steps of the discriminator's training.
        batch_size (`int`): Examples per step and process, also while scoring.
        learning_rate (`float`): Of the discriminator.
        floor, sharpness, normalise: How a score becomes a weight; see `WeightRule`.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-4
    floor: float = 0.2
    sharpness: float = 1.0
    normalise: bool = True

    def check(self, recipe: Recipe) -> None:
        if recipe.data.kind != "ivm_mix":
            raise RecipeError("dwsl weighs examples by who drew their masks; it needs `data.kind: ivm_mix`.")
        if len({bool(source.get("human")) for source in recipe.data.sources}) < 2:
            raise RecipeError(
                "dwsl needs masks of people and of machines; set `human: true` in those data.sources that people drew."
            )

    def run(
        self, recipe: Recipe, model: nn.Module, processor: Any, data: Dataset, out: Path, resumed: bool
    ) -> WeightedExamples:
        """The same examples with weights; a resumed run uses the discriminator and the scores that it finds."""
        folder = out / "dwsl"
        arguments = training_arguments(
            recipe,
            folder,
            max_steps=self.steps,
            learning_rate=self.learning_rate,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=1,
            save_strategy="no",
            label_names=["labels"],
            warmup_steps=self.steps // 8,
        )
        keep_settings(recipe, folder)
        plain_data = replace(recipe.data, options={**recipe.data.options, "augment": False})
        plain = recipe.kind.dataset(replace(recipe, data=plain_data))
        weights = discriminator_weights(model.vlm, processor, data, plain, self, recipe.lora, folder, arguments)
        return WeightedExamples(data, weights)


def build_discriminator(vlm: nn.Module, share: float, lora: LoraRecipe | None) -> IvmDiscriminator:
    """
    With `lora` a discriminator on the given model with adapters in it, as in the paper, to be taken out by
    `remove_lora`; without, on a copy of the model that learns as a whole.
    """
    if lora is None:
        return IvmDiscriminator(copy.deepcopy(vlm).requires_grad_(True), share)
    discriminator = IvmDiscriminator(vlm, share)
    add_lora(discriminator, lora.r, lora.lora_alpha, lora.lora_dropout, lora.targets)
    select_trained(discriminator, [r"head\."])
    return discriminator


def keep_settings(recipe: Recipe, out: Path) -> None:
    """
    Writes down what the discriminator and its scores in `out` depend on, before there are any.

    Raises:
        RecipeError: If those in `out` are of other settings; the message says which differ.
    """
    dwsl = {name: value for name, value in asdict(recipe.first_stages["dwsl"]).items() if name not in _WEIGHT_RULE}
    content = json.dumps(
        {
            "model": recipe.model,
            "data": {"sources": recipe.data.sources, "options": recipe.data.options},
            "mask_size": recipe.mask_size,
            "lora": recipe.lora and asdict(recipe.lora),
            "dwsl": dwsl,
            "seed": recipe.seed,
        },
        indent=2,
        default=str,
    )
    file = out / SETTINGS_FILE
    if file.is_file():
        if differing := _differences(read_json(file), json.loads(content)):
            raise RecipeError(
                f"{out} holds the first stage of another recipe ({'; '.join(differing)}); use another --out."
            )
    elif PartialState().is_main_process:
        write_whole(file, content + "\n")


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        parts = [
            _differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
            for key in sorted(there.keys() | here.keys())
        ]
        return [line for part in parts for line in part]
    return [] if there == here else [f"{name} is {there!r} there and {here!r} here"]


def train_discriminator(
    discriminator: IvmDiscriminator, processor, examples: Dataset, arguments: TrainingArguments
) -> None:
    """Stage I, in place; `examples` are [`MaskingExample`]s of people and machines."""
    ReasoningSegmentationTrainer(
        model=discriminator,
        args=arguments,
        train_dataset=examples,
        data_collator=DiscriminatorCollator(processor),
    ).train()


def discriminator_weights(
    vlm: nn.Module,
    processor,
    examples: Dataset,
    plain_examples: Dataset,
    dwsl: DwslRecipe,
    lora: LoraRecipe | None,
    out: Path,
    arguments: TrainingArguments,
) -> torch.FloatTensor:
    """
    Stage I and the weights of stage II. The trained discriminator and the scores stay in `out` and are used again
    by later runs, for which `keep_settings` makes sure that they are the same; the model is left as it was.

    Args:
        vlm (`nn.Module`): IVM's vision-language model.
        processor: IVM's processor.
        examples, plain_examples (`Dataset`): The same examples with and without augmentation, with `human_flags`.
        dwsl ([`DwslRecipe`]): Batch size of the scoring, rule of the weights.
        lora ([`LoraRecipe`], *optional*): Adapters of the discriminator.
        out (`Path`): A folder of this stage's own.
        arguments (`TrainingArguments`): Of the discriminator's training.

    Returns:
        `torch.FloatTensor` of shape `(examples,)`.
    """
    state, file = PartialState(), out / DISCRIMINATOR_FILE
    for folder in (out, out / SCORES_FOLDER):
        remove_drafts(folder)
    discriminator = build_discriminator(vlm, human_share(plain_examples.human_flags), lora)
    if file.is_file():
        load_discriminator(discriminator, file)
        discriminator.to(arguments.device)
    else:
        if state.is_main_process:
            shutil.rmtree(out / SCORES_FOLDER, ignore_errors=True)  # of another discriminator
        state.wait_for_everyone()
        train_discriminator(discriminator, processor, examples, arguments)
        if state.is_main_process:
            save_discriminator(discriminator, file)
        state.wait_for_everyone()
    collator = DiscriminatorCollator(processor)
    scores = score_examples(
        discriminator, plain_examples, collator, out / SCORES_FOLDER, dwsl.batch_size, _log_progress()
    )
    if lora is not None:
        remove_lora(vlm)
    flags = torch.tensor(plain_examples.human_flags)
    means = torch.tensor(scores)
    logger.warning(
        "The discriminator gives masks of people %.3f and masks of machines %.3f on average.",
        means[flags].mean(),
        means[~flags].mean(),
    )
    return WeightRule(dwsl.floor, dwsl.sharpness, dwsl.normalise)(scores)


def _log_progress(parts: int = 20):
    """Logs about `parts` times how many examples are scored."""
    told = -1

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done * parts // total > told:
            told = done * parts // total
            logger.warning("Scored %d of %d examples.", done, total)

    return progress


__all__ = [
    "DISCRIMINATOR_FILE",
    "SCORES_FOLDER",
    "SETTINGS_FILE",
    "DwslRecipe",
    "build_discriminator",
    "discriminator_weights",
    "keep_settings",
    "train_discriminator",
]
