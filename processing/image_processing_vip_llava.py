"""ViP-LLaVA's and DiffLMM's view of an image: padded to a square, then CLIP's."""

import numpy as np
from transformers import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ImageInput, PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack

from .image_loading import MAX_IMAGE_PIXELS, check_pixel_count
from .image_processing_reasoning_segmentation import UprightImageBackend


# A square of this side takes 800 MB as float32; a long image grows to one.
_MAX_SQUARE_PIXELS = 4 * MAX_IMAGE_PIXELS


class VipLlavaImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    max_image_pixels (`int`, *optional*): Largest allowed height x width of an input image.
    """

    max_image_pixels: int | None


class VipLlavaImageProcessor(UprightImageBackend):
    r"""
    Pads an image to a square of its longer side, in the colour of CLIP's mean, and makes CLIP's view of it.

    Calling it with an image, a list of images, or a list of lists (which is flattened) returns a `BatchFeature`
    with `pixel_values` `(images, 3, height, width)`, float32. Images are file paths, Pillow images of any mode, and
    arrays or tensors with uint8 values in 0..255 or floating-point values in 0..1; visual prompts must be on them
    already. Pillow resizes them, so results do not depend on torchvision being installed.

    Options are those of `CLIPImageProcessor`. The original's `image_aspect_ratio` is `"pad"` by default,
    `do_pad=False` for any other value but `"resize"`, and for this one, which its VCR evaluation uses, also
    `do_center_crop=False` and `size={"height": 336, "width": 336}`.
    """

    size = {"shortest_edge": 336}
    crop_size = {"height": 336, "width": 336}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad = True
    valid_kwargs = VipLlavaImageProcessorKwargs
    model_input_names = ["pixel_values"]

    def __init__(self, **kwargs: Unpack[VipLlavaImageProcessorKwargs]):
        super().__init__(**kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        do_convert_rgb: bool | None = True,
        input_data_format=None,
        max_image_pixels: int | None = None,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        images = self.read_images(
            images, max_image_pixels, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format
        )
        pad = kwargs.pop("do_pad")
        background = [int(255 * mean) for mean in np.atleast_1d(kwargs["image_mean"])]
        pixel_values = []
        for image in images:
            image = _pad_to_square(image, background) if pad else image
            image = self._resize_visible_part(image, max_image_pixels or self.max_image_pixels, **kwargs)
            pixel_values += self._preprocess([image], do_pad=False, return_tensors=None, **kwargs)["pixel_values"]
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


class DiffLmmImageProcessor(VipLlavaImageProcessor):
    r"""
    ViP-LLaVA's view in another size: a square in the colour of CLIP's mean, resized and normalised. Both towers of
    DiffLMM make their own view of it.

    Options are those of [`VipLlavaImageProcessor`].
    """

    size = {"shortest_edge": 384}
    crop_size = {"height": 384, "width": 384}

    def __init__(self, **kwargs: Unpack[VipLlavaImageProcessorKwargs]):
        super().__init__(**kwargs)


def _pad_to_square(image: np.ndarray, background: list[int]) -> np.ndarray:
    """Put an image `(channels, height, width)` into the middle of a square; an odd pixel goes to the end."""
    height, width = image.shape[-2:]
    side = max(height, width)
    if height == width:
        return image
    check_pixel_count(side, side, "The image padded to a square", _MAX_SQUARE_PIXELS)
    color = background if len(background) == len(image) else [round(float(np.mean(background)))] * len(image)
    square = np.empty((len(image), side, side), dtype=image.dtype)
    square[:] = np.array(color, dtype=image.dtype)[:, None, None]
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = image
    return square


__all__ = ["DiffLmmImageProcessor", "VipLlavaImageProcessor"]
