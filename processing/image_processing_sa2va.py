"""Sa2VA's two views of an image: Qwen-VL's patches after two resizings, and SAM 2's square."""

import numpy as np
from transformers import Qwen2VLImageProcessorPil
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.processing_utils import Unpack

from .image_processing_reasoning_segmentation import (
    ReasoningSegmentationImageProcessor,
    ReasoningSegmentationImageProcessorKwargs,
    resize_channels,
)


# ImageNet's constants rounded to bfloat16, as the original holds them.
SEGMENTER_MEAN = (0.484375, 0.455078125, 0.40625)
SEGMENTER_STD = (0.228515625, 0.2236328125, 0.224609375)
# What qwen_vl_utils makes of every image before the processor sees it: sides are multiples of 28 pixels, whatever the
# patches of the model are, and the area lies in this range.
_FIRST_FACTOR = 28
_FIRST_AREA = {"min_pixels": 4 * _FIRST_FACTOR**2, "max_pixels": 16384 * _FIRST_FACTOR**2}


def sa2va_segmenter_view(side: int = 1024) -> dict:
    """
    Options of the segmenter's view: the whole image squeezed to a square.

    Args:
        side (`int`): Of the square in pixels.
    """
    return {
        "segmenter_size": {"height": side, "width": side},
        "segmenter_resample": PILImageResampling.BICUBIC,
        "segmenter_image_mean": SEGMENTER_MEAN,
        "segmenter_image_std": SEGMENTER_STD,
    }


class Sa2VaImageProcessorKwargs(ReasoningSegmentationImageProcessorKwargs, total=False):
    r"""
    min_pixels, max_pixels (`int`, *optional*): Other names of the two entries of `size`.
    patch_size, merge_size, temporal_patch_size (`int`, *optional*):
        Side of a patch in pixels, patches per side that make one image token, frames that a patch spans.
    resize_twice (`bool`, *optional*):
        Whether to bring the sides to multiples of 28 pixels first, as the original does at inference by qwen_vl_utils
        (it trained without).
    """

    min_pixels: int
    max_pixels: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    resize_twice: bool | None


class Sa2VaImageProcessor(ReasoningSegmentationImageProcessor, Qwen2VLImageProcessorPil):
    r"""One image, two views: Qwen-VL's patches and SAM 2's square.

    Calling it returns what [`ReasoningSegmentationImageProcessor`] returns, but for the vision-language model's view:

    - `pixel_values` `(patches of all images, channels * frames * height * width)`, float32, and
    - `image_grid_thw` `(images, 3)`, int64: patches of each image along time, height and width.

    `size` is the range of areas in pixels, `shortest_edge` to `longest_edge`, to which images are scaled up or down.
    Pillow resizes. The published checkpoints were measured with torchvision's resizing, which differs from it by one
    or two of 255 levels in some thousand pixels of an image.

    Further options are those of [`Sa2VaImageProcessorKwargs`].
    """

    size = {"shortest_edge": 512 * 28 * 28, "longest_edge": 2048 * 28 * 28}
    crop_size = None
    do_center_crop = False
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    patch_size = 16
    merge_size = 2
    temporal_patch_size = 2
    resize_twice = True
    segmenter_size = {"height": 1024, "width": 1024}
    segmenter_resample = PILImageResampling.BICUBIC
    segmenter_image_mean = SEGMENTER_MEAN
    segmenter_image_std = SEGMENTER_STD
    valid_kwargs = Sa2VaImageProcessorKwargs
    model_input_names = [*ReasoningSegmentationImageProcessor.model_input_names, "image_grid_thw"]

    def __init__(self, **kwargs: Unpack[Sa2VaImageProcessorKwargs]):
        super().__init__(**kwargs)

    def _preprocess(self, images: list[np.ndarray], resize_twice: bool, **kwargs):
        if resize_twice and kwargs["do_resize"]:
            images = [self._first_resize(image, kwargs["resample"]) for image in images]
        return super()._preprocess(images, **kwargs)

    def _first_resize(self, image: np.ndarray, resample: PILImageResampling | int) -> np.ndarray:
        height, width = smart_resize(*image.shape[-2:], factor=_FIRST_FACTOR, **_FIRST_AREA)
        return image if image.shape[-2:] == (height, width) else resize_channels(image, (width, height), resample)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Number of patches of an image of this size, as [`Qwen2VLImageProcessorPil`]'s."""
        resize_twice = (images_kwargs or {}).get("resize_twice")
        if self.resize_twice if resize_twice is None else resize_twice:
            height, width = smart_resize(height, width, factor=_FIRST_FACTOR, **_FIRST_AREA)
        return super().get_number_of_image_patches(height, width, images_kwargs)


__all__ = ["Sa2VaImageProcessor", "sa2va_segmenter_view"]
