"""Two views of one image: the vision-language model's and the segmenter's."""

import math
import os
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .image_loading import MAX_IMAGE_PIXELS, check_pixel_count, image_to_uint8, load_rgb_image, tensor_to_numpy


# Where resizing a long image would give more pixels than this, only the part that the crop keeps is resized.
_MAX_RESIZED_PIXELS = 2**24
# Half the width, in source pixels at scale 1, of Pillow's widest filter (Lanczos).
_WIDEST_FILTER = 3
# Into so many a pixel can be cut by weights that torch does not round.
_FINEST_STEPS = 2**13
_MASK_RESIZINGS = ("straight", "through_view")


class SegmenterImageProcessorKwargs(TypedDict, total=False):
    r"""
    size (`dict[str, int]`, *optional*):
        `{"longest_edge": N}` keeps the aspect ratio and pads with zeros on the right and bottom to N x N (SAM,
        SAM-HQ); `{"height": N, "width": N}` squashes the image to N x N (SAM 2, SAM 3).
    resample (`PILImageResampling`, *optional*): Resampling filter.
    image_mean, image_std (`float` or `list[float]`, *optional*):
        Mean and standard deviation per channel, for values in 0..1.
    max_image_pixels (`int`, *optional*): Largest allowed height x width of an input image.
    input_data_format (`ChannelDimension` or `str`, *optional*):
        Where the channels of arrays and tensors are; inferred when omitted.
    return_tensors (`str` or `TensorType`, *optional*): `"pt"` or `"np"`; lists of arrays when omitted.
    resize_in_float (`bool`, *optional*, defaults to `False`):
        Resize floating-point values, as SAM 2's predictor does, and not to 8 bits, as SAM does.
    mask_resizing (`str`, *optional*):
        How the segmenter's low-resolution masks come to the size of the image: `"through_view"` by way of the size of
        this view, as SAM does and as systems of this package do by default; or `"straight"`, as SAM 2's own predictor
        does, for a view that is not padded.
    """

    size: dict[str, int] | None
    resample: PILImageResampling | int | None
    image_mean: float | list[float] | tuple[float, ...] | None
    image_std: float | list[float] | tuple[float, ...] | None
    max_image_pixels: int | None
    input_data_format: str | ChannelDimension | None
    return_tensors: str | TensorType | None
    resize_in_float: bool | None
    mask_resizing: str | None


class ReasoningSegmentationImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    segmenter_size, segmenter_resample, segmenter_image_mean, segmenter_image_std (*optional*):
        Of the segmenter's view, see [`SegmenterImageProcessorKwargs`].
    squash_first (`bool`, *optional*):
        Whether to squash the image to the segmenter's view before anything else and to make the view of the
        vision-language model from that, as IVM does. Needs a `segmenter_size` with height and width.
    max_image_pixels (`int`, *optional*): Largest allowed height x width of an input image.
    """

    segmenter_size: dict[str, int] | None
    segmenter_resample: PILImageResampling | int | None
    segmenter_image_mean: float | list[float] | tuple[float, ...] | None
    segmenter_image_std: float | list[float] | tuple[float, ...] | None
    squash_first: bool | None
    max_image_pixels: int | None


class UprightImageBackend(PilBackend):
    """Pillow backend that reads every supported kind of image, upright, and refuses what it cannot read."""

    max_image_pixels = MAX_IMAGE_PIXELS

    def read_images(self, images: ImageInput, max_image_pixels: int | None = None, **kwargs) -> list[np.ndarray]:
        """Read one image, a list, a list of lists or a batched array, each image as by `process_image`.

        Raises:
            ValueError: There is no image, or one that is not readable.
        """
        images = _flatten(images)
        if not images:
            raise ValueError("An empty list of images was given. Pass at least one image.")
        return [self.process_image(image, max_image_pixels=max_image_pixels, **kwargs) for image in images]

    def process_image(
        self,
        image: ImageInput | str | os.PathLike,
        do_convert_rgb: bool | None = True,
        input_data_format: str | ChannelDimension | None = None,
        max_image_pixels: int | None = None,
        **kwargs,
    ) -> np.ndarray:
        """Return one image as an upright uint8 array of shape `(channels, height, width)`.

        Arrays and tensors keep their channels when `do_convert_rgb` is false; everything else becomes RGB.
        """
        max_image_pixels = max_image_pixels or self.max_image_pixels
        if do_convert_rgb or not isinstance(image, (np.ndarray, torch.Tensor)):
            image = np.asarray(load_rgb_image(image, max_image_pixels, input_data_format))
            return np.moveaxis(image, -1, 0)
        image = tensor_to_numpy(image) if isinstance(image, torch.Tensor) else image
        image, input_data_format = image_to_uint8(image, input_data_format)
        image = image if input_data_format == ChannelDimension.FIRST else np.moveaxis(image, -1, 0)
        check_pixel_count(*image.shape[-2:], "The image array", max_image_pixels)
        return image

    def fetch_images(
        self, images: ImageInput | str | os.PathLike | list, max_image_pixels: int | None = None
    ) -> ImageInput | list:
        """Load the files named in `images`, at any depth of lists, for processors of transformers, whose own way would
        download what a name leads to; a ValueError for a URL or what is not a readable image. Two-dimensional arrays
        get the channel axis that their helpers want.
        """
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image, max_image_pixels) for image in images]
        if isinstance(images, (str, os.PathLike)):
            return load_rgb_image(images, max_image_pixels or self.max_image_pixels)
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 2:
            return images[None]
        return images

    def _resize_visible_part(
        self,
        image: np.ndarray,
        max_image_pixels: int,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        do_center_crop: bool,
        crop_size: SizeDict,
        **kwargs,
    ) -> np.ndarray:
        """Resize only what the centre crop will keep of a very long image.

        An image of 1 x 10000 pixels becomes 224 x 2240000 before the crop takes 224 x 224 of it. Other images are
        returned unchanged; the regular resize leaves the image returned here as it is. Pillow may filter the part in
        another order of rows and columns than the whole, so that values can differ by the rounding in between.
        """
        if not (do_resize and size.shortest_edge and not size.longest_edge):
            return image
        height, width = get_resize_output_image_size(
            image, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
        if not do_center_crop:
            check_pixel_count(height, width, "The image resized for the vision-language model", max_image_pixels)
            return image
        kept = max(crop_size.height, crop_size.width, size.shortest_edge)
        if height * width <= _MAX_RESIZED_PIXELS or max(height, width) <= kept:
            return image
        # the same offset of the crop, whether it is taken from the whole image or from the kept part
        long_edge, crop_edge = (height, crop_size.height) if height > width else (width, crop_size.width)
        start = (long_edge - crop_edge) // 2 - (kept - crop_edge) // 2
        scale = max(image.shape[-2:]) / long_edge
        first, last = start * scale, (start + kept) * scale
        margin = math.ceil(_WIDEST_FILTER * max(scale, 1.0)) + 1
        cut_first, cut_last = max(0, math.floor(first) - margin), min(max(image.shape[-2:]), math.ceil(last) + margin)
        first, last = first - cut_first, last - cut_first
        cut = image[:, cut_first:cut_last] if height > width else image[..., cut_first:cut_last]
        if height > width:
            return resize_channels(cut, (width, kept), resample, (0, first, cut.shape[-1], last))
        return resize_channels(cut, (kept, height), resample, (first, 0, last, cut.shape[-2]))


class SegmenterImageProcessor(UprightImageBackend):
    r"""The segmenter's view alone, for models whose vision-language model brings its own image processor.

    Calling it returns a `BatchFeature` with

    - `sam_pixel_values` `(images, 3, N, N)`, float32: resized, normalised, then padded with zeros;
    - `original_sizes` `(images, 2)`, int64: (height, width) of the upright image;
    - `reshaped_input_sizes` `(images, 2)`, int64: (height, width) of the resized image before padding.

    Options are those of [`SegmenterImageProcessorKwargs`].
    """

    size = {"longest_edge": 1024}
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    resize_in_float = False
    mask_resizing = None
    valid_kwargs = SegmenterImageProcessorKwargs
    model_input_names = ["sam_pixel_values", "original_sizes", "reshaped_input_sizes"]

    def __init__(self, **kwargs: Unpack[SegmenterImageProcessorKwargs]):
        super().__init__(**kwargs)

    @property
    def segmenter_target_size(self) -> tuple[int, int]:
        """`tuple[int, int]`: (height, width) of `sam_pixel_values`."""
        return _target_size(self.size)

    def get_resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the entry of `reshaped_input_sizes`, (height, width), for an upright image of this size."""
        return _resized_size(height, width, self.size)

    @property
    def masks_go_through_view(self) -> bool:
        """
        `bool`: What `mask_resizing` says.

        Raises:
            ValueError: If it is no such word, or the view is padded, so that masks must be cut in it.
        """
        if self.mask_resizing not in (None, *_MASK_RESIZINGS):
            allowed = " and ".join(map(repr, _MASK_RESIZINGS))
            raise ValueError(f"mask_resizing is {self.mask_resizing!r}; allowed are {allowed}.")
        if self.mask_resizing == "straight" and self.pads:
            raise ValueError(
                f"mask_resizing is 'straight', but a view of the size {dict(self.size)} is padded, and masks must be "
                "cut in it. Use 'through_view', or a size with height and width."
            )
        return self.mask_resizing != "straight"

    @property
    def pads(self) -> bool:
        """`bool`: Whether the image keeps its aspect ratio in the view."""
        return "longest_edge" in dict(self.size)

    def _standardize_kwargs(self, size: dict[str, int] | SizeDict | None = None, **kwargs) -> dict[str, Any]:
        _target_size(size)
        return super()._standardize_kwargs(size=SizeDict(**dict(size)), **kwargs)

    def _validate_preprocess_kwargs(self, **kwargs) -> None:
        """Nothing is left to check: the base class looks at options that this view does not have."""

    def _preprocess_image_like_inputs(
        self, images: ImageInput, return_tensors: str | TensorType | None = None, **kwargs
    ) -> BatchFeature:
        images = self.read_images(images, kwargs["max_image_pixels"], input_data_format=kwargs["input_data_format"])
        options = [kwargs[name] for name in ("size", "resample", "image_mean", "image_std", "resize_in_float")]
        data = segmenter_view(images, *options)
        return _batch_feature(data, return_tensors)


class ReasoningSegmentationImageProcessor(UprightImageBackend):
    r"""One image, two views: CLIP's for the vision-language model and SAM's for the segmenter.

    Calling it with an image, a list of images, or a list of lists (which is flattened) returns a `BatchFeature` with

    - `pixel_values` `(images, 3, height, width)`, float32: shortest edge resized, centre cropped, normalised. As in
      the original LISA and GSVA the ends of an image that is not square are cut away, not padded;
    - `sam_pixel_values`, `original_sizes` and `reshaped_input_sizes`, as of [`SegmenterImageProcessor`].

    Images are file paths, Pillow images of any mode, and arrays or tensors with uint8 values in 0..255 or
    floating-point values in 0..1 (which are brought to 8 bits first, so that `do_rescale` acts on all alike). Pillow
    resizes them, so results do not depend on torchvision being installed. `do_convert_rgb=False` concerns the view of
    the vision-language model; the segmenter always sees RGB. Options without prefix are those of `CLIPImageProcessor`;
    for others see [`ReasoningSegmentationImageProcessorKwargs`].

    Example:
        >>> views = ReasoningSegmentationImageProcessor()(np.zeros((30, 40, 3), dtype=np.uint8), return_tensors="pt")
        >>> tuple(views.sam_pixel_values.shape), views.reshaped_input_sizes.tolist()
        ((1, 3, 1024, 1024), [[768, 1024]])
    """

    size = {"shortest_edge": 224}
    crop_size = {"height": 224, "width": 224}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    segmenter_size = {"longest_edge": 1024}
    segmenter_resample = PILImageResampling.BILINEAR
    segmenter_image_mean = IMAGENET_DEFAULT_MEAN
    segmenter_image_std = IMAGENET_DEFAULT_STD
    squash_first = False
    valid_kwargs = ReasoningSegmentationImageProcessorKwargs
    model_input_names = ["pixel_values", "sam_pixel_values", "original_sizes", "reshaped_input_sizes"]

    def __init__(self, **kwargs: Unpack[ReasoningSegmentationImageProcessorKwargs]):
        super().__init__(**kwargs)

    @property
    def segmenter_target_size(self) -> tuple[int, int]:
        """`tuple[int, int]`: (height, width) of `sam_pixel_values`."""
        return _target_size(self.segmenter_size)

    def get_resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the entry of `reshaped_input_sizes`, (height, width), for an upright image of this size."""
        return _resized_size(height, width, self.segmenter_size)

    def _standardize_kwargs(
        self,
        segmenter_size: dict[str, int] | SizeDict | None = None,
        segmenter_image_mean: float | list[float] | None = None,
        segmenter_image_std: float | list[float] | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        _target_size(segmenter_size)
        kwargs["segmenter_size"] = SizeDict(**dict(segmenter_size))
        for name, value in (("mean", segmenter_image_mean), ("std", segmenter_image_std)):
            kwargs[f"segmenter_image_{name}"] = tuple(value) if isinstance(value, list) else value
        return kwargs

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        do_convert_rgb: bool | None = True,
        input_data_format: str | ChannelDimension | None = None,
        max_image_pixels: int | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        if not kwargs["do_rescale"] and any(_is_floating_point(image) for image in _flatten(images)):
            raise ValueError(
                "A floating-point image was given with `do_rescale=False`. All images are brought to 0..255 before "
                "they are rescaled, so leave `do_rescale` on; values in 0..1 are read as they are."
            )
        images = self.read_images(
            images, max_image_pixels, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format
        )
        original_sizes = [list(image.shape[-2:]) for image in images]
        if kwargs["squash_first"]:
            size = kwargs["segmenter_size"]
            if size.longest_edge:
                raise ValueError(
                    f"squash_first=True needs segmenter_size={{'height': N, 'width': N}}; {dict(size)} keeps the "
                    "aspect ratio."
                )
            squashed = (size.width, size.height)
            images = [resize_channels(image, squashed, kwargs["segmenter_resample"]) for image in images]
        trimmed = [self._resize_visible_part(image, max_image_pixels, **kwargs) for image in images]
        data = dict(self._preprocess(trimmed, return_tensors=None, **kwargs))
        rgb_images = [np.repeat(image, 3, axis=0) if image.shape[0] == 1 else image[:3] for image in images]
        options = [kwargs[f"segmenter_{name}"] for name in ("size", "resample", "image_mean", "image_std")]
        data |= {**segmenter_view(rgb_images, *options), "original_sizes": original_sizes}
        return _batch_feature(data, return_tensors)


def _batch_feature(data: dict[str, Any], return_tensors: str | TensorType | None) -> BatchFeature:
    if return_tensors is None:
        data["sam_pixel_values"] = list(data["sam_pixel_values"])
    return BatchFeature(data, tensor_type=return_tensors)


def _target_size(size: dict[str, int] | SizeDict) -> tuple[int, int]:
    """(height, width) of what the segmenter sees; a ValueError for a `size` of neither of the two forms."""
    given = dict(size) if isinstance(size, (dict, SizeDict)) else {}
    # a bare number is refused: it could mean either form
    if set(given) not in ({"longest_edge"}, {"height", "width"}) or min(given.values()) < 1:
        raise ValueError(
            f"The segmenter's size is {given or size}. Allowed are {{'longest_edge': N}} (keep the aspect ratio, pad "
            "to N x N) and {'height': N, 'width': N} (squash), with positive N."
        )
    return given.get("height", given.get("longest_edge")), given.get("width", given.get("longest_edge"))


def _resized_size(height: int, width: int, size: dict[str, int] | SizeDict) -> tuple[int, int]:
    """(height, width) of a resized image before padding; a very thin one keeps at least one pixel."""
    target_height, target_width = _target_size(size)
    if "longest_edge" not in dict(size):
        return target_height, target_width
    scale = target_height / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_channels(
    image: np.ndarray, size: tuple[int, int], resample: PILImageResampling | int, box: tuple | None = None
) -> np.ndarray:
    """Resize `box` of an image `(channels, height, width)` to (width, height), one channel after the other, which
    gives the same values and takes any number of them."""
    channels = [Image.fromarray(channel) for channel in np.ascontiguousarray(image)]
    return np.stack([np.asarray(channel.resize(size, resample, box=box)) for channel in channels])


def segmenter_view(
    images: list[np.ndarray],
    size: dict[str, int] | SizeDict,
    resample: PILImageResampling | int,
    mean: float | tuple[float, ...],
    std: float | tuple[float, ...],
    in_float: bool | None = False,
) -> dict[str, Any]:
    """Resize, normalise and pad uint8 images `(3, height, width)`: what [`SegmenterImageProcessor`] returns, as one
    array and lists of sizes.

    As in the original SAM, values are normalised in units of 0..255 and padded with zeros afterwards, so the padding
    is the mean colour; they are resized to 8 bits, too, unless `in_float` says otherwise.
    """
    target_height, target_width = _target_size(size)
    # float64 until here: 0.485 * 255 then rounds to the same float32 as the original's 123.675
    mean, std = (np.broadcast_to(np.asarray(value, dtype=np.float64), (3,))[:, None, None] for value in (mean, std))
    byte_mean, byte_std = ((value * 255.0).astype(np.float32) for value in (mean, std))
    # One array for all: stacking large ones costs as much as filling them.
    views = np.empty((len(images), 3, target_height, target_width), dtype=np.float32)
    sizes, resized_sizes = [list(image.shape[-2:]) for image in images], []
    for image, canvas in zip(images, views, strict=True):
        new_height, new_width = _resized_size(*image.shape[-2:], size)
        resized_sizes.append([new_height, new_width])
        canvas[:, new_height:], canvas[:, :new_height, new_width:] = 0, 0
        if in_float:
            values = _resize_in_float(image, (new_height, new_width), resample)
            canvas[:, :new_height, :new_width] = (values - mean.astype(np.float32)) / std.astype(np.float32)
            continue
        channels = _resize_to_bytes(image, (new_height, new_width), resample)
        # Channel by channel and in place, which is several times as fast as all three at once.
        for channel, view, channel_mean, channel_std in zip(channels, canvas, byte_mean, byte_std, strict=True):
            view = view[:new_height, :new_width]
            view[...] = channel
            view -= channel_mean
            view /= channel_std
    return {"sam_pixel_values": views, "original_sizes": sizes, "reshaped_input_sizes": resized_sizes}


def _resize_to_bytes(
    image: np.ndarray, size: tuple[int, int], resample: PILImageResampling | int
) -> Sequence[np.ndarray]:
    """Resize a uint8 image `(3, height, width)` to (height, width) as Pillow does, and return its channels.

    torch takes less than half the time, but rounds weights to 16 bits. It keeps linear ones of an enlargement from n
    pixels to 2**k, as from 640 to 1024 (5 to 8), which are multiples of 2**-k / 2, up to a k of 13; values are then
    Pillow's.
    """
    if resample == PILImageResampling.BILINEAR and all(map(_grows_by_halves, image.shape[-2:], size)):
        pixels = torch.from_numpy(np.array(image, order="C"))[None]
        return F.interpolate(pixels, size, mode="bilinear", antialias=True)[0].numpy()
    pixels = Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1)))
    return [np.asarray(channel) for channel in pixels.resize(size[::-1], resample=resample).split()]


def _grows_by_halves(old: int, new: int) -> bool:
    steps = new // math.gcd(old, new)
    return old <= new and steps.bit_count() == 1 and steps <= _FINEST_STEPS


def _resize_in_float(image: np.ndarray, size: tuple[int, int], resample: PILImageResampling | int) -> np.ndarray:
    """Resize a uint8 image `(channels, height, width)` to (height, width) as values in 0..1."""
    modes = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}
    if resample not in modes:
        raise ValueError(f"resample is {resample!r}; resize_in_float=True allows BILINEAR (2) and BICUBIC (3).")
    values = torch.from_numpy(np.array(image, order="C"))[None].float().div(255)
    return F.interpolate(values, size, mode=modes[resample], align_corners=False, antialias=True)[0].numpy()


def _is_floating_point(image: Any) -> bool:
    """Whether `image` is an array or tensor of floating-point values."""
    if isinstance(image, torch.Tensor):
        return image.is_floating_point()
    return isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating)


def _flatten(images: Any) -> list:
    """Flatten nested lists and batched arrays of images."""
    if isinstance(images, (list, tuple)):
        return [image for nested in images for image in _flatten(nested)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


__all__ = ["ReasoningSegmentationImageProcessor", "SegmenterImageProcessor", "UprightImageBackend"]
