"""Batches of drawn tabletops with what a scene's drawing tells beyond masks."""

from collections.abc import Sequence
from typing import Any

from ..training.collator import SegmentationCollator
from .dataset import TabletopExample
from .towers import patch_labels


class TabletopCollator(SegmentationCollator):
    """
    Adds `auxiliary_labels`: `landmark_labels`, masks like `mask_labels`, and `patch_labels`, see [`patch_labels`].

    Args:
        processor, mask_size: As in [`SegmentationCollator`].
        patches (`int`): Patches along a side of the vision-language model's view.
    """

    def __init__(self, processor, mask_size: int | None, patches: int):
        super().__init__(processor, mask_size)
        self.patches = patches

    def __call__(self, examples: Sequence[TabletopExample]) -> dict[str, Any]:
        batch = super().__call__(examples)
        sizes = batch["original_sizes"].tolist()
        return {
            **batch,
            "auxiliary_labels": {
                "landmark_labels": self.targets([example.landmarks for example in examples], sizes),
                "patch_labels": patch_labels([example.scene for example in examples], self.patches),
            },
        }


__all__ = ["TabletopCollator"]
