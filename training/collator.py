"""Turns images with conversations and masks into batches; conversations about one image share it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..data.example import Example
from ..processing.mask_reading import read_soft_mask


class SegmentationCollator:
    """
    Args:
        processor: The model's processor; it writes prompts, labels and both image views.
        mask_size (`int`, *optional*): Side in pixels to which targets are averaged down (soft edges). `None` keeps
            the size of the image, as the originals do; small models learn the same from smaller targets.
    """

    def __init__(self, processor, mask_size: int | None = None):
        self.processor = processor
        self.mask_size = mask_size

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        rows = [
            (image, question, answer)
            for image, example in enumerate(examples)
            for question, answer in zip(example.questions, example.answers, strict=True)
        ]
        batch = self.processor(
            images=[example.image for example in examples],
            text=[question for _, question, _ in rows],
            answer=[answer for _, _, answer in rows],
            image_index=[image for image, _, _ in rows],
            return_labels=True,
            return_tensors="pt",
        )
        sizes = batch["original_sizes"].tolist()
        return {**batch, "mask_labels": self.targets([example.masks for example in examples], sizes)}

    def targets(self, masks: Sequence[list[list[Any | None]]], sizes: Sequence[list[int]]) -> list[torch.FloatTensor]:
        """
        Per conversation `(slots, height, width)`, of all images in a row.

        Raises:
            ValueError: If a mask has not the size of its upright image, or values that may mean several things.
        """
        return [
            self._targets(of_row, size) for of_image, size in zip(masks, sizes, strict=True) for of_row in of_image
        ]

    def _targets(self, masks: list[Any | None], size: list[int]) -> torch.FloatTensor:
        """`(slots, height, width)` with an empty mask for every rejection."""
        stacked = torch.zeros(len(masks), *size)
        for slot, mask in enumerate(masks):
            if mask is not None:
                stacked[slot] = torch.from_numpy(read_soft_mask(mask, tuple(size), f"The mask of slot {slot + 1}"))
        if self.mask_size is None:
            return stacked
        return F.adaptive_avg_pool2d(stacked, self.mask_size)


__all__ = ["Example", "SegmentationCollator"]
