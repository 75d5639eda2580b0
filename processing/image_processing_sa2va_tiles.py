"""The two views of an image of Sa2VA on InternVL: tiles with a thumbnail, and SAM 2's square."""

from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.processing_utils import Unpack

from .image_processing_reasoning_segmentation import (
    ReasoningSegmentationImageProcessor,
    ReasoningSegmentationImageProcessorKwargs,
)
from .image_processing_sa2va import SEGMENTER_MEAN, SEGMENTER_STD


class Sa2VaTileImageProcessorKwargs(ReasoningSegmentationImageProcessorKwargs, total=False):
    r"""
    crop_to_patches (`bool`, *optional*): Whether to cut an image into tiles; a single one otherwise.
    min_patches, max_patches (`int`, *optional*): Fewest and most tiles, the thumbnail not counted.
    """

    crop_to_patches: bool
    min_patches: int
    max_patches: int


class Sa2VaTileImageProcessor(ReasoningSegmentationImageProcessor, GotOcr2ImageProcessorPil):
    r"""One image, two views: InternVL's tiles and SAM 2's square.

    The image is resized to the grid of tiles, each of `size`, whose proportions are closest to its own, and cut; where
    there are several, the whole image as one more tile follows (InternVL 1.5, section 3.3). Calling it returns what
    [`ReasoningSegmentationImageProcessor`] returns, but for the vision-language model's view:

    - `pixel_values` `(tiles of all images, 3, height, width)`, float32, and
    - `tile_counts` `(images,)`, int64: how many of them show each image.

    Further options are those of [`Sa2VaTileImageProcessorKwargs`].
    """

    size = {"height": 448, "width": 448}
    crop_size = None
    do_center_crop = False
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    crop_to_patches = True
    min_patches = 1
    max_patches = 12
    segmenter_size = {"height": 1024, "width": 1024}
    segmenter_resample = PILImageResampling.BICUBIC
    segmenter_image_mean = SEGMENTER_MEAN
    segmenter_image_std = SEGMENTER_STD
    valid_kwargs = Sa2VaTileImageProcessorKwargs
    model_input_names = [*ReasoningSegmentationImageProcessor.model_input_names, "tile_counts"]

    def __init__(self, **kwargs: Unpack[Sa2VaTileImageProcessorKwargs]):
        super().__init__(**kwargs)

    def _preprocess(self, images: list[np.ndarray], **kwargs: Any) -> BatchFeature:
        views = super()._preprocess(images, **kwargs)
        views["tile_counts"] = views.pop("num_patches")
        return views


__all__ = ["Sa2VaTileImageProcessor"]
