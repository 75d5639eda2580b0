"""Read images of every supported kind, upright and in RGB, and the values of masks; or say why not."""

import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format


# 8192 x 8192. A file of a few bytes can claim any size, and every later step allocates several times that much.
MAX_IMAGE_PIXELS = 2**26
# Where this is set in the environment, it takes the place of every limit of files and images, stored ones included.
PIXELS_VARIABLE = "REASONSEG_MAX_IMAGE_PIXELS"
Box = tuple[int, int, int, int]
ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray | torch.Tensor

# What cameras, screens and data sets write. Pillow knows some forty more; one of them (EPS) starts another program,
# and others (ICO, ICNS) hold an image of another size than they state. AVIF is read where Pillow was built with it.
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")

_EXIF_ORIENTATION = 0x0112
_TIFF_TILE_SIDES = (0x0142, 0x0143)
_UPRIGHT_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow has no direct conversion of premultiplied alpha to RGB.
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
# What stands for "belongs to the mask" beside 0: a flag, white in 8 bits, white in 16 bits.
_FULL_VALUES = (1, 255, 65535)
_ALLOWED_VALUES = "Allowed are bool, 0 and 1, or 0 and 255."


class ImageTooLargeError(ValueError):
    """An image has more pixels than are allowed."""


def load_rgb_image(
    image: ImageSource,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    input_data_format: str | ChannelDimension | None = None,
    upright: bool = True,
) -> Image.Image:
    """Read one image and return it upright, in RGB, with 8 bits per channel.

    The EXIF orientation is applied, so masks predicted for the result lie in the frame in which a viewer shows the
    image. An alpha channel is dropped, not composited, as `Image.convert("RGB")` of the original projects does. 16-bit
    greyscale keeps its high byte. Of an animation the current (for a file: the first) frame is taken.

    Args:
        image (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            The path of a local file or its content, a Pillow image of any mode, or an array or tensor of shape
            `(height, width)`, `(height, width, channels)` or `(channels, height, width)` with 1, 3 or 4 channels:
            uint8 in 0..255 or floating point in 0..1.
        max_image_pixels (`int`, *optional*, defaults to 67108864):
            Largest allowed height x width; the environment variable REASONSEG_MAX_IMAGE_PIXELS takes its place.
        input_data_format (`str` or `ChannelDimension`, *optional*):
            `"channels_first"` or `"channels_last"` for arrays and tensors; inferred from the shape when omitted.
        upright (`bool`, *optional*, defaults to `True`):
            False keeps the pixels as they are stored, in which COCO's annotations count.

    Raises:
        ValueError: The source is a URL, is not a readable image, has no pixels or too many
            ([`ImageTooLargeError`]), or is an array of another dtype, shape or value range.

    Example:
        >>> load_rgb_image(np.zeros((2, 3), dtype=np.uint8)).size
        (3, 2)
    """
    max_image_pixels = _allowed_pixels(max_image_pixels)
    if isinstance(image, (str, os.PathLike, bytes)):
        with open_image(image, max_image_pixels) as opened:
            return _decode(opened, _shown(image), max_image_pixels, upright)
    if isinstance(image, Image.Image):
        return _decode(image, f"The image of mode {image.mode}", max_image_pixels, upright)
    if isinstance(image, torch.Tensor):
        image = tensor_to_numpy(image)
    if isinstance(image, np.ndarray):
        return _from_array(image, max_image_pixels, input_data_format)
    raise ValueError(
        f"An image of type {type(image).__name__} was given. Pass the path of a local file, a PIL.Image.Image, "
        "a numpy array or a torch tensor."
    )


def open_image(path: str | os.PathLike | bytes, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Open a local image file of one of `IMAGE_FORMATS`, or its content, without decoding it; close it, or use it as a
    context. Every image of this package is opened here. For `max_image_pixels` see `load_rgb_image`.

    Raises:
        ValueError: The file is a URL, does not exist, is of another format, or claims too many pixels.
    """
    if isinstance(path, bytes):
        source, shown = io.BytesIO(path), _shown(path)
    else:
        source, shown = os.fspath(path), _shown(path)
        _check_file(source, shown)
    max_image_pixels = _allowed_pixels(max_image_pixels)
    Image.init()
    try:
        with _PILLOW.allows(max_image_pixels):
            image = Image.open(source, formats=[kind for kind in IMAGE_FORMATS if kind in Image.OPEN])
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise ImageTooLargeError(
            f"{shown} is {'too many' if count is None else count[0]} pixels, more than the {max_image_pixels} "
            f"allowed ({type(error).__name__}). Shrink it first, or raise `max_image_pixels` if you trust it."
        ) from error
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        raise ValueError(
            f"{shown} cannot be opened as an image ({_reason(error)}). Check or convert the file; "
            f"{', '.join(IMAGE_FORMATS)} are read."
        ) from error
    try:
        check_pixel_count(image.height, image.width, shown, max_image_pixels)
        _check_tiles(image, shown, max_image_pixels)
    except ValueError:
        image.close()
        raise
    return image


def _check_file(name: str, shown: str) -> None:
    if "://" in name or name.startswith("data:"):
        raise ValueError(
            f"{shown} is a URL. Only local files are read; download it yourself and pass its path or a "
            "PIL.Image.Image."
        )
    # A pipe or device would block or never end
    if not os.path.isfile(name):
        raise ValueError(f"{shown} is not an existing local image file. Check the path, or pass a PIL.Image.Image.")


def _check_tiles(image: Image.Image, what: str, max_image_pixels: int) -> None:
    """Refuse a TIFF whose tiles, which are decoded as a whole, are larger than any image."""
    sides = [getattr(image, "tag_v2", {}).get(tag, 1) for tag in _TIFF_TILE_SIDES]
    if all(isinstance(side, int) for side in sides):
        check_pixel_count(*sides, f"A tile of {what}", max_image_pixels)


def tensor_to_numpy(image: torch.Tensor) -> np.ndarray:
    """Copy a tensor of any device and dtype to NumPy."""
    image = image.detach().cpu()
    return (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # NumPy has no bfloat16


def image_to_uint8(
    image: np.ndarray, input_data_format: str | ChannelDimension | None = None
) -> tuple[np.ndarray, ChannelDimension]:
    """Bring an array of two or three dimensions, uint8 in 0..255 or floating point in 0..1, to uint8 and three
    dimensions; also returns where its channels are. A ValueError for another dtype, shape or range.
    """
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(
            f"An image array of shape {image.shape} was given. Allowed are (height, width), (height, width, channels) "
            "and (channels, height, width), every size at least 1. Pass several images as a list."
        )
    if image.ndim == 2:
        image, input_data_format = image[None], ChannelDimension.FIRST
    elif input_data_format is None:
        if not {image.shape[0], image.shape[-1]} & {1, 3, 4}:
            raise ValueError(
                f"An image array of shape {image.shape} was given, in which neither the first nor the last dimension "
                "can hold the channels. Pass 1 (grey), 3 (RGB) or 4 (RGBA) channels."
            )
        input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
    input_data_format = ChannelDimension(input_data_format)
    channels = image.shape[0] if input_data_format == ChannelDimension.FIRST else image.shape[-1]
    if channels not in (1, 3, 4):
        raise ValueError(
            f"An image array of shape {image.shape} was given as {input_data_format.value}, which makes {channels} "
            "channels. Pass 1 (grey), 3 (RGB) or 4 (RGBA) channels, or another `input_data_format`."
        )
    if np.issubdtype(image.dtype, np.floating):
        low, high = float(image.min()), float(image.max())
        if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
            raise ValueError(
                f"A floating-point image with values from {low} to {high} was given. Floating-point images must lie "
                "in 0..1; convert values in 0..255 to uint8, undo any normalisation, and remove NaN."
            )
        image = np.rint(image.astype(np.float32) * 255.0).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(
            f"An image array of dtype {image.dtype} was given. Allowed are uint8 in 0..255 and floating point in "
            "0..1; convert the array first."
        )
    return image, input_data_format


def check_pixel_count(height: int, width: int, what: str, max_image_pixels: int) -> None:
    """Refuse an image without pixels or with more than `max_image_pixels`; `what` names it in the ValueError."""
    if height < 1 or width < 1:
        raise ValueError(f"{what} is {width} x {height} pixels. Both sides must be at least 1 pixel.")
    if height * width > max_image_pixels:
        raise ImageTooLargeError(
            f"{what} is {width} x {height} = {height * width} pixels, more than the {max_image_pixels} allowed. "
            "Shrink it first, or raise `max_image_pixels` if you trust it."
        )


def _allowed_pixels(max_image_pixels: int) -> int:
    """The limit that the environment sets, else `max_image_pixels`."""
    given = os.environ.get(PIXELS_VARIABLE)
    if not given:
        return max_image_pixels
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{PIXELS_VARIABLE} is {given!r}. It must be a number of pixels, at least 1.")
    return int(given)


class _Pillow:
    """Lets Pillow open what is allowed here, and leaves it to `check_pixel_count` to refuse the rest.

    Its limit and Python's list of warnings are of the whole process, so that all threads that decode share a change
    from the first one's begin to the last one's end.
    """

    def __init__(self) -> None:
        self._lock, self._limits = threading.Lock(), []

    @contextmanager
    def allows(self, max_image_pixels: int) -> Iterator[None]:
        with self._lock:
            if not self._limits:
                self._before, self._warnings = Image.MAX_IMAGE_PIXELS, warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            self._limits.append(max_image_pixels)
            self._set_limit()
        try:
            yield
        finally:
            with self._lock:
                self._limits.remove(max_image_pixels)
                self._set_limit()
                if not self._limits:
                    self._warnings.__exit__(None, None, None)

    def _set_limit(self) -> None:
        if self._before is not None:
            Image.MAX_IMAGE_PIXELS = max(self._before, *self._limits) if self._limits else self._before


_PILLOW = _Pillow()


def _shown(path: str | os.PathLike | bytes) -> str:
    """A path, or the content of a file, as messages name it."""
    if isinstance(path, bytes):
        return f"The image of {len(path)} bytes"
    name = os.fspath(path)
    return f"'{name if len(name) <= 200 else name[:200] + '...'}'"


def upright_image(image: Image.Image, what: str, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode a Pillow image and apply its EXIF orientation, keeping its mode; a ValueError as in `load_rgb_image`."""
    orientation = _load(image, what, max_image_pixels)
    return image.transpose(_UPRIGHT_TRANSPOSE[orientation]) if orientation in _UPRIGHT_TRANSPOSE else image


def upright_mask(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a bool mask `(height, width)` of stored pixels as the EXIF orientation 1..8 turns its image."""
    transpose = _UPRIGHT_TRANSPOSE.get(orientation)
    return mask if transpose is None else np.asarray(Image.fromarray(mask).transpose(transpose))


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Say which image is damaged: decoders raise errors of many kinds on damaged files."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} cannot be decoded ({_reason(error)}). Check or convert the file.") from error


def _load(image: Image.Image, what: str, max_image_pixels: int) -> int:
    """Decode a Pillow image in place and return its EXIF orientation."""
    if isinstance(image, ImageFile.ImageFile) and image.format not in IMAGE_FORMATS:
        raise ValueError(
            f"{what} comes from a file of the format {image.format}; {', '.join(IMAGE_FORMATS)} are decoded. "
            "If you trust the file, pass `image.convert('RGB')`."
        )
    check_pixel_count(image.height, image.width, what, max_image_pixels)
    _check_tiles(image, what, max_image_pixels)
    with _decoding(what), _PILLOW.allows(max_image_pixels):
        image.load()
    return exif_orientation(image)


def _decode(image: Image.Image, what: str, max_image_pixels: int, upright: bool) -> Image.Image:
    """Decode a Pillow image, turn it upright if asked for, and convert it to RGB."""
    orientation = _load(image, what, max_image_pixels)
    with _decoding(what):
        image = _to_rgb(image, what)
    if upright and orientation in _UPRIGHT_TRANSPOSE:
        image = image.transpose(_UPRIGHT_TRANSPOSE[orientation])
    image.info = {}  # keeps the orientation from being applied a second time
    return image


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1..8: 1 (as stored) where there is none or the EXIF block is damaged."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return orientation if orientation in _UPRIGHT_TRANSPOSE else 1
    except Exception:  # pixels of images with broken metadata are fine, and public data sets contain such images
        return 1


def _to_rgb(image: Image.Image, what: str) -> Image.Image:
    """Convert any Pillow mode to RGB with 8 bits per channel."""
    if image.mode == "F":
        return _from_array(np.asarray(image), image.width * image.height, None)
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            raise ValueError(f"{what} has values from {low} to {high}; greyscale must lie in 0..255 or 0..65535")
        # Mode I does not tell its depth: it is how some Pillow versions open 16-bit files
        is_8_bit = image.mode == "I" and high <= 0xFF
        return Image.fromarray((values if is_8_bit else values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    return image.convert("RGB")


def _from_array(image: np.ndarray, max_image_pixels: int, input_data_format: Any) -> Image.Image:
    """Convert a checked array to an RGB image."""
    image, input_data_format = image_to_uint8(image, input_data_format)
    if input_data_format == ChannelDimension.FIRST:
        image = np.moveaxis(image, 0, -1)
    check_pixel_count(image.shape[0], image.shape[1], "The image array", max_image_pixels)
    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    return Image.fromarray(np.ascontiguousarray(image[..., :3]))


def _reason(error: Exception) -> str:
    """Name an error whose own message may be empty, or hold where an object lies in memory, in which runs differ."""
    if isinstance(error, UnidentifiedImageError):
        return "of no known kind"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# ---- masks and colours ----------------------------------------------------------------------------------------------


def mask_array(values: Any, what: str) -> np.ndarray:
    """Bring an array or tensor to NumPy and check that it has the shape and the kind of values of a mask."""
    values = tensor_to_numpy(values) if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{what} has the shape {values.shape}. Give (height, width), each at least 1 pixel.")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{what} has values of dtype {values.dtype}. {_ALLOWED_VALUES}")
    return values


def binary_mask(values: Any, what: str = "The mask") -> np.ndarray:
    """Read an array or tensor `(height, width)` of any layout and number format as a mask: bool, 0 and 1, or 0 and 255
    (in 16 bits 0 and 65535).

    Returns:
        `np.ndarray`: bool, of the same shape; contiguous.

    Raises:
        ValueError: The shape or the values are not those of a mask, which `what` names.
    """
    values = mask_array(values, what)
    if values.dtype != np.bool_:
        high = values.max()
        mask = values == (high if high in _FULL_VALUES else 1)
        if not (mask | (values == 0)).all():  # written so that NaN fails too
            found = "has values that are not finite"
            if np.isfinite(values).all():
                different = np.unique(values)
                listed = ", ".join(f"{value:g}" for value in different[:4].tolist())
                listed += f", ... {different[-1]:g}" if len(different) > 4 else ""
                found = f"has {len(different)} different values ({listed})"
            raise ValueError(
                f"{what} {found}. {_ALLOWED_VALUES} Make it binary first: `mask > 0` for logits, `mask == n` for a "
                "label map, `mask > 127` for grey edges."
            )
        values = mask
    return np.ascontiguousarray(values)


def mask_box(mask: np.ndarray) -> Box | None:
    """Return the box `(x1, y1, x2, y2)` of a bool mask in pixels; None for an empty one. x2 and y2 lie after the last
    pixel, so that the width is x2 - x1."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
