"""`data.kind: ivm_mix`: IVM learns from instructions and heat-maps of what they need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.example import MaskingExample
from ..data.ivm_mix import IvmMixDataset, IvmMixSource, resize_mask
from ..processing.mask_reading import soft_mask
from .data_kinds import DataKind
from .recipe import DataRecipe, Recipe, RecipeError


# The original's side of images and masks in pixels, that of SAM's view.
MASK_SIZE = 1024


class IvmMix(DataKind):
    """Each of `data.sources` is an [`IvmMixSource`]; `data.options` are of [`IvmMixDataset`]."""

    def check(self, recipe: Recipe) -> None:
        sources = recipe.data.sources
        known, needed = {"meta", "images", "masks", "human"}, {"meta", "images"}
        if not isinstance(sources, list) or not sources or not all(isinstance(source, dict) for source in sources):
            raise RecipeError(f"data.sources must list the parts of the data set, each with {sorted(known)}.")
        for source in sources:
            if set(source) - known or needed - set(source):
                raise RecipeError(
                    f"A part of data.sources has {sorted(source)}; it needs {sorted(needed)}, of {sorted(known)}."
                )

    def dataset(self, recipe: Recipe) -> IvmMixDataset:
        sources = [IvmMixSource(**source) for source in recipe.data.sources]
        try:
            return IvmMixDataset(sources, seed=recipe.seed, size=recipe.mask_size or MASK_SIZE, **recipe.data.options)
        except TypeError as error:
            raise RecipeError(f"data.options of ivm_mix: {error}") from error

    def collator(self, recipe: Recipe, processor: Any) -> "MaskingCollator":
        return MaskingCollator(processor, recipe.mask_size or MASK_SIZE)

    def names(self, data: DataRecipe) -> str:
        return ", ".join(Path(source["meta"]).absolute().name for source in data.sources)


class MaskingCollator:
    """
    Batches for [`IvmForVisualMasking`]: `pixel_values`, `input_ids`, ..., `mask_labels` and `sample_weights`.

    Args:
        processor ([`IvmProcessor`]): Writes the prompts and both views.
        mask_size (`int`): Side in pixels of the square targets, to which images and masks are squashed alike; 1024
            in the original, the side of SAM's view.
    """

    def __init__(self, processor, mask_size: int = MASK_SIZE):
        self.processor = processor
        self.mask_size = mask_size

    def __call__(self, examples: Sequence[MaskingExample]) -> dict[str, Any]:
        batch = self.processor(
            images=[example.image for example in examples],
            text=[example.instruction for example in examples],
            return_tensors="pt",
        )
        masks = [resize_mask(soft_mask(example.mask), self.mask_size, self.mask_size) for example in examples]
        return {
            **batch,
            "mask_labels": torch.from_numpy(np.stack(masks)),
            "sample_weights": torch.tensor([example.weight for example in examples]),
        }


__all__ = ["IvmMix", "MaskingCollator"]
