"""Follows a recipe: builds model, data and Trainer, trains, and leaves a complete repo."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, TrainingArguments, set_seed

from ..data.dialogues import DialogueCollator, RegionDialogues
from ..data.ivm_mix import IvmMixDataset, IvmMixSource
from ..loading import load_pretrained
from ..whole_files import written_whole
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
from .datasets import ImageFolderExamples, TabletopExamples
from .dwsl import WeightedExamples
from .dwsl_stages import discriminator_weights, keep_settings
from .mask_scores import IOU_HEAD, MaskScoreTrainer
from .masking_data import MaskingCollator
from .optimizers import muon_and_adamw
from .recipe import OptimizerRecipe, Recipe, RecipeError, require_model
from .tabletop_collator import TabletopCollator
from .tabletop_model import SEGMENTER_PATCH, SEGMENTER_SIDE, VLM_PATCH, VLM_SIDE, tabletop_config, tabletop_model
from .tabletop_processor import build_processor, token_ids
from .tabletop_stream import TabletopDataset
from .tabletop_towers import BACKGROUND_WORD, WORDS, PatchGuidance, TowerCollator, TowerPretraining
from .trained_parameters import add_lora, select_trained
from .trainer import ReasoningSegmentationTrainer


logger = logging.getLogger(__name__)


def run_recipe(
    recipe: Recipe, out: str | Path, resume: bool = False, build: Callable[..., tuple[Any, Any]] | None = None
) -> Path:
    """
    Args:
        recipe ([`Recipe`]): What to do.
        out (`str` or `Path`): Folder of the finished repo; checkpoints are folders in it.
        resume (`bool`): Continue from the newest complete checkpoint in `out`; from the beginning if the run in `out`
            was stopped before its first one.
        build (`Callable`, *optional*): Makes model and processor of `recipe.parts`, a number format and an
            implementation of attention.

    Returns:
        `Path`: `out`, a repo that loads and runs.

    Raises:
        DataFileError: If the data cannot be used; with the lines, what was found there and what is allowed.
        RecipeError: If no model is named, there is nothing to resume, checkpoints would be overwritten, `out` holds
            the first stage of another recipe, or the model or an option cannot be used.
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
        _train(recipe, out, checkpoint, build)
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


def _train(recipe: Recipe, out: Path, checkpoint: Path | None, build: Callable[..., tuple[Any, Any]] | None) -> None:
    """Train from `checkpoint`, or from the start, and save the repo to `out`."""
    data = training_data(recipe)  # first, so that what is wrong with it is said before a model is loaded
    if recipe.model == "tabletop":
        model, processor = build_tabletop(recipe)
    elif recipe.parts is not None:
        if build is None:
            raise RecipeError("`parts` needs somebody who puts them together; pass `build` (`reasonseg train` does).")
        model, processor = build(recipe.parts, recipe.dtype, recipe.attn_implementation)
    else:
        processor = load_pretrained(AutoProcessor, recipe.model)
        if isinstance(data, ImageFolderExamples):
            data.check_slots(processor, recipe.model)
        # A model that only talks has its language head under this name alone.
        kind = AutoModelForImageTextToText if recipe.data.kind == "regions" else AutoModel
        model = load_pretrained(kind, recipe.model, attn_implementation=recipe.attn_implementation, dtype=recipe.dtype)
        if getattr(model.config, "needs_adapter", False):
            raise RecipeError(f"{recipe.model} keeps its adapter apart; convert it without --keep-lora to train on.")
    if int(os.environ.get("RANK", "0")) == 0:  # of the processes that torchrun has started
        begin(out)
    if recipe.model == "tabletop" and recipe.towers is not None and checkpoint is None:
        pretrain_towers(model, processor, recipe, out)
    if recipe.dwsl is not None:
        data = WeightedExamples(data, dwsl_weights(model, processor, data, recipe, out))
    if recipe.lora is not None:
        lora = recipe.lora
        add_lora(model, lora.r, lora.lora_alpha, lora.lora_dropout, lora.targets)
    select_trained(model, recipe.trained)

    trainer = ReasoningSegmentationTrainer(
        model=model,
        args=training_arguments(recipe, out),
        train_dataset=data,
        data_collator=collator(processor, recipe),
        processing_class=processor,
        decision_loss_weight=recipe.decision_loss_weight,
        auxiliary_losses=auxiliary_losses(model, processor, recipe),
        optimizer_factory=optimizer_factory(recipe.optimizer),
        learning_rates=recipe.learning_rates,
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if recipe.score_steps:
        fit_mask_scores(model, processor, data, recipe, out)
    save_finished(trainer, out, recipe.storage_dtype)


def save_finished(trainer: ReasoningSegmentationTrainer, out: Path, storage_dtype: str | None) -> None:
    """Leaves the repo in `out`, every file of it whole; no file is there before all of them are written."""
    draft = out / FINISHED_DRAFT
    trainer.save_model(str(draft))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        if storage_dtype is not None:
            store_as(draft, getattr(torch, storage_dtype))
        move_files_in_place(draft, out)
        end(out)


def auxiliary_losses(model, processor, recipe: Recipe) -> dict[str, Callable[..., torch.Tensor]]:
    guidance = recipe.guidance
    if guidance is None:
        return {}
    losses = {"attention_loss": AttentionGuidance(model, guidance.layer, guidance.heads, guidance.weight)}
    if guidance.landmark_layer is not None:
        losses["landmark_loss"] = AttentionGuidance(
            model, guidance.landmark_layer, guidance.heads, guidance.weight, landmarks=True
        )
    if guidance.word_weight:
        losses["word_loss"] = PatchGuidance(model, word_ids(processor), guidance.word_weight)
    return losses


def word_ids(processor) -> dict[str, list[int]]:
    """Token ids of what patches of a tabletop are compared with."""
    ids = processor.tokenizer.convert_tokens_to_ids
    return {name: ids(list(words)) for name, words in {**WORDS, "background": [BACKGROUND_WORD]}.items()}


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


def training_arguments(recipe: Recipe, out: Path, **overrides) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(out),
        **{
            "remove_unused_columns": False,
            "label_names": ["labels", "mask_labels"],
            "report_to": [],
            "seed": recipe.seed,
            **recipe.arguments,
            **overrides,
        },
    )


def training_data(recipe: Recipe) -> TabletopExamples | ImageFolderExamples | IvmMixDataset | RegionDialogues:
    data = recipe.data
    if data.kind == "regions":
        try:
            return RegionDialogues(data.path, **{"seed": recipe.seed, **data.options})
        except TypeError as error:
            raise RecipeError(f"data.options of regions: {error}") from error
    if data.kind == "ivm_mix":
        sources = [IvmMixSource(**source) for source in data.sources]
        try:
            return IvmMixDataset(sources, seed=recipe.seed, size=recipe.mask_size or 1024, **data.options)
        except TypeError as error:
            raise RecipeError(f"data.options of ivm_mix: {error}") from error
    if data.kind == "image_folder":
        return ImageFolderExamples(data.path)
    return TabletopExamples(
        data.split,
        data.length,
        seed=recipe.seed,
        requests_per_scene=data.requests_per_scene,
        flip=True,
        fresh_scenes=True,
        curriculum=data.curriculum,
        **data.options,
    )


def collator(processor, recipe: Recipe) -> SegmentationCollator | MaskingCollator | DialogueCollator:
    if recipe.data.kind == "regions":
        try:
            return DialogueCollator(processor, **recipe.data.collator)
        except TypeError as error:
            raise RecipeError(f"data.collator of regions: {error}") from error
    if recipe.data.kind == "ivm_mix":
        return MaskingCollator(processor, recipe.mask_size or 1024)
    if recipe.guidance is not None and recipe.guidance.needs_scenes:
        return TabletopCollator(processor, recipe.mask_size, VLM_SIDE // VLM_PATCH)
    return SegmentationCollator(processor, recipe.mask_size)


def dwsl_weights(model, processor, data: IvmMixDataset, recipe: Recipe, out: Path) -> torch.FloatTensor:
    """Trains IVM's discriminator on the data and weighs them with it."""
    dwsl, folder = recipe.dwsl, out / "dwsl"
    arguments = training_arguments(
        recipe,
        folder,
        max_steps=dwsl.steps,
        learning_rate=dwsl.learning_rate,
        per_device_train_batch_size=dwsl.batch_size,
        gradient_accumulation_steps=1,
        save_strategy="no",
        label_names=["labels"],
        warmup_steps=dwsl.steps // 8,
    )
    keep_settings(recipe, folder)
    plain = training_data(
        replace(recipe, data=replace(recipe.data, options={**recipe.data.options, "augment": False}))
    )
    return discriminator_weights(model.vlm, processor, data, plain, dwsl, recipe.lora, folder, arguments)


def optimizer_factory(recipe: OptimizerRecipe | None):
    if recipe is None:
        return None
    return lambda named_parameters: muon_and_adamw(
        named_parameters, recipe.learning_rate, recipe.muon_learning_rate, recipe.weight_decay
    )


def build_tabletop(recipe: Recipe):
    """The embedded model with random weights, and its processor."""
    processor = build_processor(VLM_SIDE, VLM_PATCH, SEGMENTER_SIDE)
    return tabletop_model(tabletop_config(token_ids(processor)), recipe.seed, recipe.attn_implementation), processor


def pretrain_towers(model, processor, recipe: Recipe, out: Path) -> None:
    """Trains what sees and what draws, in place, on dense labels."""
    towers = recipe.towers
    args = training_arguments(
        recipe,
        out / "towers",
        max_steps=towers.steps,
        save_strategy="no",
        label_names=["vlm_labels"],
        lr_scheduler_type="cosine",
        lr_scheduler_kwargs={},
        warmup_steps=towers.steps // 8,
    )
    args.per_device_train_batch_size = max(1, towers.batch_size // args.world_size)
    ReasoningSegmentationTrainer(
        model=TowerPretraining(model, word_ids(processor)),
        args=args,
        train_dataset=TabletopDataset(
            "train", recipe.data.length, seed=recipe.seed, requests_per_scene=1, flip=True, fresh_scenes=True
        ),
        data_collator=TowerCollator(
            processor.image_processor, VLM_SIDE // VLM_PATCH, SEGMENTER_SIDE // SEGMENTER_PATCH
        ),
        optimizer_factory=optimizer_factory(towers.optimizer),
    ).train()


__all__ = ["run_recipe"]
