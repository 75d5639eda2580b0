"""Pictures with an instruction and the mask of what it needs, as visual masking and its discriminator learn from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.example import MaskingExample
from ..data.ivm_mix import resize_mask
from ..processing.image_loading import load_rgb_image
from ..processing.mask_values import soft_mask


# The original's llavaTextPreprocess(role="discriminator"), without what the processor writes around every instruction.
DISCRIMINATOR_QUESTION = "{instruction} \n Can you follow instruction above based on the given image?"
WHITE = (255, 255, 255)


def apply_mask(image: Image.Image, mask: np.ndarray, fill: tuple[int, int, int] = WHITE) -> Image.Image:
    """
    The picture where the mask is 1 and a colour where it is 0; values between mix both.

    Args:
        image (`PIL.Image.Image`): RGB.
        mask (`np.ndarray`): `(height, width)` of the picture, in [0, 1].
        fill (`tuple[int, int, int]`): RGB.

    Raises:
        ValueError: If picture and mask differ in size, or the mask has other values.
    """
    mask = np.asarray(mask)
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"A mask of shape {mask.shape} was given for a picture of {image.width} x {image.height} pixels; it must "
            f"be {(image.height, image.width)}, (height, width)."
        )
    kept = soft_mask(mask)[..., None]
    mixed = np.asarray(image, dtype=np.float32) * kept + np.asarray(fill, dtype=np.float32) * (1 - kept)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


class MaskingCollator:
    """
    Batches for [`IvmForVisualMasking`]: `pixel_values`, `input_ids`, ..., `mask_labels` and `sample_weights`.

    Args:
        processor ([`IvmProcessor`]): Writes the prompts and both views.
        mask_size (`int`): Side in pixels of the square targets, to which pictures and masks are squashed alike; 1024
            in the original, the side of SAM's view.
    """

    def __init__(self, processor, mask_size: int = 1024):
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


class DiscriminatorCollator:
    """
    Batches for [`IvmDiscriminator`]: the masked pictures, the question whether they suffice, and who drew the masks.

    Args:
        processor ([`IvmProcessor`]): Writes the prompts and the vision-language model's view.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, examples: Sequence[MaskingExample]) -> dict[str, Any]:
        batch = self.processor(
            images=[apply_mask(load_rgb_image(example.image), example.mask) for example in examples],
            text=[DISCRIMINATOR_QUESTION.format(instruction=example.instruction) for example in examples],
            return_tensors="pt",
        )
        return {
            **{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")},
            "labels": torch.tensor([float(example.human) for example in examples]),
        }


__all__ = [
    "DISCRIMINATOR_QUESTION",
    "DiscriminatorCollator",
    "MaskingCollator",
    "apply_mask",
]
