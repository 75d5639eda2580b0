"""Follows a recipe: builds model, data and Trainer, trains, and leaves a complete repo."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoProcessor, set_seed

from ..atomic_files import written_whole
from ..loading import import_object, load_pretrained
from .attention_guidance import AttentionGuidance
from .checkpoints import (
    FINISHED_DRAFT,
    begin,
    end,
    list_checkpoints,
    move_files_in_place,
    newest_complete,
    was_stopped,
)
from .collator import SegmentationCollator
from .composed_start import Compose, composed_start
from .data_kinds import NEW_MODELS
from .mask_scores import IOU_HEAD, MaskScoreTrainer
from .optimizers import optimizer_factory
from .recipe import Recipe, RecipeError, require_model
from .trained_parameters import add_lora, select_trained
from .trainer import ReasoningSegmentationTrainer, training_arguments
from .validation import Validation


logger = logging.getLogger(__name__)


def run_recipe(recipe: Recipe, out: str | Path, resume: bool = False, compose: Compose | None = None) -> Path:
    """
    Args:
        recipe ([`Recipe`]): What to do.
        out (`str` or `Path`): Folder of the finished repo; checkpoints are folders in it.
        resume (`bool`): Continue from the newest complete checkpoint in `out`; from the beginning if the run in `out`
            was stopped before its first one.
        compose (`Callable`, *optional*): Makes a repository of `recipe.parts` in a folder; see [`composed_start`].

    Returns:
        `Path`: `out`, a repo that loads and runs.

    Raises:
        DataFileError: If the data cannot be used; with the lines, what was found there and what is allowed.
        RecipeError: If no model is named, there is nothing to resume, checkpoints would be overwritten, `out` holds
            the first stage or the composed model of another recipe, or the model or an option cannot be used.
    """
    require_model(recipe)
    out = Path(out)
    checkpoint = _resume_point(recipe, out) if resume else None
    if not resume and (earlier := list_checkpoints(out)):
        raise RecipeError(f"{out} holds {earlier[0].name} of an earlier run; pass --resume or another folder.")
    set_seed(recipe.seed)
    precision_before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(recipe.matmul_precision)
    try:
        _train(recipe, out, checkpoint, compose)
    finally:
        # A setting of the whole process: what runs after the training keeps its own.
        torch.set_float32_matmul_precision(precision_before)
    return out


def _resume_point(recipe: Recipe, out: Path) -> Path | None:
    """The checkpoint to resume from; `None` if the run was stopped before there was one."""
    checkpoint = newest_complete(out, with_optimizer=not recipe.arguments.get("save_only_model", False))
    if checkpoint is not None:
        logger.warning("Resuming from %s.", checkpoint)
    elif was_stopped(out) or list_checkpoints(out):
        logger.warning("The run in %s has no complete checkpoint; starting from the beginning.", out)
    else:
        raise RecipeError(f"There is no checkpoint in {out} to resume from; leave out --resume to start.")
    return checkpoint


def _train(recipe: Recipe, out: Path, checkpoint: Path | None, compose: Compose | None) -> None:
    """Train from `checkpoint`, or from the start, and save the repo to `out`."""
    data = recipe.kind.dataset(recipe)  # first, so that an error in it comes before a model is loaded
    validation = None if recipe.validation is None else Validation(recipe.validation, out)
    if validation is not None:
        validation.check()
    start = recipe.model if recipe.parts is None else str(composed_start(recipe, out, compose))
    model, processor = _model_and_processor(recipe, start, data)
    if int(os.environ.get("RANK", "0")) == 0:  # of the processes that torchrun has started
        begin(out)
    for stage in recipe.first_stages.values():
        data = stage.run(recipe, model, processor, data, out, resumed=checkpoint is not None)
    if recipe.lora is not None:
        lora = recipe.lora
        add_lora(model, lora.r, lora.lora_alpha, lora.lora_dropout, lora.targets)
    select_trained(model, recipe.trained)

    trainer = ReasoningSegmentationTrainer(
        model=model,
        args=training_arguments(recipe, out, **(validation.training_arguments if validation else {})),
        train_dataset=data,
        validation=validation,
        data_collator=recipe.kind.collator(recipe, processor),
        processing_class=processor,
        decision_loss_weight=recipe.decision_loss_weight,
        auxiliary_losses=auxiliary_losses(recipe, model, processor),
        optimizer_factory=optimizer_factory(recipe.optimizer),
        learning_rates=recipe.learning_rates,
        signed_lengths=data.signed_lengths() if recipe.data.group_by_modality_length else None,
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if recipe.score_steps:
        fit_mask_scores(model, processor, data, recipe, out)
    save_finished(trainer, out, recipe.storage_dtype)


def _model_and_processor(recipe: Recipe, start: str, data: Dataset) -> tuple[Any, Any]:
    """What the recipe starts from."""
    if start in NEW_MODELS:
        return import_object(NEW_MODELS[start])(recipe)
    processor = load_pretrained(AutoProcessor, start)
    recipe.kind.check_model(data, processor, start)
    model_class = getattr(transformers, recipe.kind.model_class)
    config, options = load_pretrained(AutoConfig, start), {"dtype": recipe.dtype}
    if hasattr(config, "segmenter_dtype"):
        # What learns is in float32, whatever the finished repo is to be run in.
        options["segmenter_dtype"] = "float32"
    model = load_pretrained(model_class, start, attn_implementation=recipe.attn_implementation, **options)
    if hasattr(config, "segmenter_dtype"):
        model.config.segmenter_dtype = config.segmenter_dtype
    if getattr(model.config, "needs_adapter", False):
        raise RecipeError(f"{start} keeps its adapter apart; convert it without --keep-lora to train on.")
    return model, processor


def save_finished(trainer: ReasoningSegmentationTrainer, out: Path, storage_dtype: str | None) -> None:
    """Leaves the repo in `out`, every file of it whole; no file is there before all of them are written."""
    draft = out / FINISHED_DRAFT
    trainer.save_model(str(draft))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        if trainer.validation is not None:
            trainer.validation.write(trainer.state, draft)
        if storage_dtype is not None:
            store_as(draft, getattr(torch, storage_dtype))
        move_files_in_place(draft, out)
        end(out)


def auxiliary_losses(recipe: Recipe, model, processor) -> dict[str, Callable[..., torch.Tensor]]:
    """Losses on the language model's attention, by the name they have in the logs."""
    guidance = recipe.guidance
    if guidance is None:
        return {}
    losses = {"attention_loss": AttentionGuidance(model, guidance.layer, guidance.heads, guidance.weight)}
    return losses | recipe.kind.scene_losses(recipe, model, processor)


def fit_mask_scores(model, processor, data, recipe: Recipe, out: Path) -> None:
    """Trains the segmenter's IoU head alone, in place; masks and words stay as they are."""
    select_trained(model, [IOU_HEAD])
    args = training_arguments(
        recipe,
        out / "scores",
        max_steps=recipe.score_steps,
        save_strategy="no",
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        lr_scheduler_kwargs={},
        warmup_steps=recipe.score_steps // 8,
    )
    MaskScoreTrainer(
        model=model, args=args, train_dataset=data, data_collator=SegmentationCollator(processor, recipe.mask_size)
    ).train()


def store_as(repo: Path, dtype: torch.dtype) -> None:
    """Rewrites the weights in fewer bits; the configuration still names the type they are computed in."""
    for shard in sorted(repo.glob("*.safetensors")):
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(shard).items()}
        with written_whole(shard) as draft:
            save_file(tensors, draft, metadata={"format": "pt"})


__all__ = ["run_recipe"]
