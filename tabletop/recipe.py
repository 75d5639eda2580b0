"""What a recipe may say about tabletops: `model: tabletop`, `data.kind: tabletop` and the section `towers`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ..training.attention_guidance import AttentionGuidance
from ..training.collator import SegmentationCollator
from ..training.data_kinds import DataKind, FirstStage
from ..training.optimizers import optimizer_factory
from ..training.recipe import DataRecipe, OptimizerRecipe, Recipe, RecipeError
from ..training.trainer import ReasoningSegmentationTrainer, training_arguments
from .collator import TabletopCollator
from .dataset import TabletopDataset
from .model import SEGMENTER_PATCH, SEGMENTER_SIDE, VLM_PATCH, VLM_SIDE, tabletop_config, tabletop_model
from .processor import build_processor, token_ids
from .towers import BACKGROUND_WORD, WORDS, PatchGuidance, TowerCollator, TowerPretraining


class Tabletops(DataKind):
    """Scenes drawn on the fly. `data.options`, and `data.curriculum` for the first epochs, are of `make_requests`."""

    licence = "Apache-2.0"
    knows_scenes = True

    def dataset(self, recipe: Recipe) -> TabletopDataset:
        data = recipe.data
        return TabletopDataset(
            data.split,
            data.length,
            seed=recipe.seed,
            requests_per_scene=data.requests_per_scene,
            flip=True,
            fresh_scenes=True,
            curriculum=data.curriculum,
            **data.options,
        )

    def collator(self, recipe: Recipe, processor: Any) -> SegmentationCollator:
        if recipe.guidance is not None and recipe.guidance.needs_scenes:
            return TabletopCollator(processor, recipe.mask_size, VLM_SIDE // VLM_PATCH)
        return SegmentationCollator(processor, recipe.mask_size)

    def scene_losses(self, recipe: Recipe, model: nn.Module, processor: Any) -> dict[str, Callable]:
        guidance, losses = recipe.guidance, {}
        if guidance.landmark_layer is not None:
            losses["landmark_loss"] = AttentionGuidance(
                model, guidance.landmark_layer, guidance.heads, guidance.weight, landmarks=True
            )
        if guidance.word_weight:
            losses["word_loss"] = PatchGuidance(model, word_ids(processor), guidance.word_weight)
        return losses

    def names(self, data: DataRecipe) -> str:
        return "tabletops drawn by reasonseg"


@dataclass
class TowerRecipe(FirstStage):
    """Trains both image encoders alone, on dense labels."""

    steps: int = 800
    batch_size: int = 32
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)

    def check(self, recipe: Recipe) -> None:
        if recipe.model != "tabletop":
            raise RecipeError("towers trains encoders from scratch; it needs `model: tabletop`.")

    def run(
        self, recipe: Recipe, model: nn.Module, processor: Any, data: Dataset, out: Path, resumed: bool
    ) -> Dataset:
        """Trains the image encoders and the mask decoder, in place."""
        if resumed:
            return data
        arguments = training_arguments(
            recipe,
            out / "towers",
            max_steps=self.steps,
            save_strategy="no",
            label_names=["vlm_labels"],
            lr_scheduler_type="cosine",
            lr_scheduler_kwargs={},
            warmup_steps=self.steps // 8,
        )
        arguments.per_device_train_batch_size = max(1, self.batch_size // arguments.world_size)
        ReasoningSegmentationTrainer(
            model=TowerPretraining(model, word_ids(processor)),
            args=arguments,
            train_dataset=TabletopDataset(
                "train", recipe.data.length, seed=recipe.seed, requests_per_scene=1, flip=True, fresh_scenes=True
            ),
            data_collator=TowerCollator(
                processor.image_processor, VLM_SIDE // VLM_PATCH, SEGMENTER_SIDE // SEGMENTER_PATCH
            ),
            optimizer_factory=optimizer_factory(self.optimizer),
        ).train()
        return data


def build_tabletop(recipe: Recipe):
    """The embedded model with random weights, and its processor."""
    processor = build_processor(VLM_SIDE, VLM_PATCH, SEGMENTER_SIDE)
    return tabletop_model(tabletop_config(token_ids(processor)), recipe.seed, recipe.attn_implementation), processor


def word_ids(processor) -> dict[str, list[int]]:
    """Token ids of what patches of a tabletop are compared with."""
    ids = processor.tokenizer.convert_tokens_to_ids
    return {name: ids(list(words)) for name, words in {**WORDS, "background": [BACKGROUND_WORD]}.items()}


__all__ = ["Tabletops", "TowerRecipe", "build_tabletop", "word_ids"]
