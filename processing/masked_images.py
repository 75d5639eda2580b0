"""Hide what a heat-map leaves out: threshold, widen, soften, paint over or cut out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .colors import ColorSource, read_color
from .image_loading import MAX_IMAGE_PIXELS, load_rgb_image, mask_box


# IVM.forward_batch of the original: kernels of twice 5 % of the height plus one, white over the rest, threshold 0.1.
DEFAULT_SPREAD = 0.05
DEFAULT_COLOR = (255, 255, 255)
DEFAULT_THRESHOLD = 0.1
# Pixels that are blurred at a time: all passes over them stay in the cache, and torch, which shares out 2**15 and more
# among threads of its own, leaves them to the thread that is at work here.
_BLOCK = 2**15 - 1


@dataclass(repr=False)
class MaskedImage:
    """An image of which only what matters is left. A notebook shows it as `masked_image`.

    Args:
        heatmap (`np.ndarray`): float32 in 0..1, of shape `(height, width)`: how much each pixel matters.
        mask (`np.ndarray`): bool, of shape `(height, width)`: where the heat-map exceeds the threshold.
        weights (`np.ndarray`):
            float32 in 0..1, of shape `(height, width)`: the mask widened and softened; 1 shows the image, 0 the
            overlay colour. All 1 where nothing was found.
        pixels (`np.ndarray`): float32, of shape `(height, width, 3)`: the masked image before it is rounded, 0..255.
        found (`bool`):
            Whether the mask covers enough. If not, the whole image is kept, as the original does: an image without
            anything in it helps no model.
        threshold (`float`): The threshold of `mask`.
    """

    heatmap: np.ndarray
    mask: np.ndarray
    weights: np.ndarray
    pixels: np.ndarray
    found: bool
    threshold: float

    def __repr__(self) -> str:
        height, width = self.mask.shape
        kept = f"kept_ratio={self.kept_ratio:.4f}, box_xyxy={self.box_xyxy}"
        return f"MaskedImage(found={self.found}, {kept}, {width}x{height})"

    def _repr_png_(self) -> bytes | None:
        return self.masked_image._repr_png_()

    @property
    def masked_image(self) -> Image.Image:
        """`PIL.Image.Image`: the masked image, mode RGB."""
        pixels = np.clip(self.pixels, 0, 255)
        return Image.fromarray(np.rint(pixels, out=pixels).astype(np.uint8))

    @property
    def crop(self) -> Image.Image:
        """`PIL.Image.Image`: `masked_image` cut to `crop_box_xyxy`."""
        return self.masked_image.crop(self.crop_box_xyxy)

    @property
    def crop_box_xyxy(self) -> tuple[int, int, int, int]:
        """`tuple[int, int, int, int]`: what `crop` shows, `(x1, y1, x2, y2)` with x2 and y2 after the last pixel: the
        box of all that is not fully painted over, the whole image where nothing was found."""
        height, width = self.mask.shape
        return mask_box(self.weights > 0) or (0, 0, width, height)

    @property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """`tuple[int, int, int, int]`: box of `mask`, `(x1, y1, x2, y2)` with x2 and y2 after the last pixel; `None`
        where no pixel exceeds the threshold."""
        return mask_box(self.mask)

    @property
    def kept_ratio(self) -> float:
        """`float`: share of the pixels that exceed the threshold, 0..1."""
        return int(np.count_nonzero(self.mask)) / self.mask.size


def mask_image(
    image: Any,
    heatmap: np.ndarray,
    threshold: float = DEFAULT_THRESHOLD,
    overlay_color: ColorSource = DEFAULT_COLOR,
    dilate: float = DEFAULT_SPREAD,
    blur: float = DEFAULT_SPREAD,
    min_kept_ratio: float = 0.0,
) -> MaskedImage:
    """Paint over what a heat-map leaves out, as the original IVM does (forward_batch in IVM.py).

    Args:
        image: the image the heat-map belongs to, of any kind `load_rgb_image` reads.
        heatmap (`np.ndarray`): values in 0..1, of shape `(height, width)` of the upright image.
        threshold (`float`, *optional*, defaults to 0.1): pixels with a larger value are kept.
        overlay_color (*optional*, defaults to white): see `read_color`; fractions are allowed.
        dilate (`float`, *optional*, defaults to 0.05): how far the mask is widened, as a share of the height.
        blur (`float`, *optional*, defaults to 0.05): radius over which its edge is softened, as a share of the height.
        min_kept_ratio (`float`, *optional*, defaults to 0.0): keep the whole image where a smaller share of it
            exceeds the threshold; an image where nothing does is always kept whole.

    Returns:
        `MaskedImage`

    Raises:
        ValueError: The sizes differ, or an option is out of its range.
    """
    for name, value, largest in (
        ("threshold", threshold, 1.0),
        ("min_kept_ratio", min_kept_ratio, 1.0),
        ("dilate", dilate, 0.5),
        ("blur", blur, 0.5),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= largest:
            raise ValueError(f"{name} is {value!r}. It must lie in 0..{largest:g}.")
    color = np.asarray(read_color(overlay_color, whole=False), dtype=np.float32)
    heatmap = np.asarray(heatmap, dtype=np.float32)
    # the image was accepted before, when the heat-map was made
    image = load_rgb_image(image, max_image_pixels=max(MAX_IMAGE_PIXELS, heatmap.size))
    pixels = np.asarray(image, dtype=np.float32)
    if heatmap.shape != pixels.shape[:2]:
        raise ValueError(
            f"The heat-map has the shape {heatmap.shape}, the image {pixels.shape[:2]} (height, width). Pass the "
            "image that the heat-map was made for."
        )
    mask = heatmap > np.float32(threshold)
    kept = int(np.count_nonzero(mask))
    found = kept > 0 and kept / mask.size >= min_kept_ratio
    if not found:
        return MaskedImage(heatmap, mask, np.ones_like(heatmap), pixels, found, float(threshold))
    height = len(mask)
    weights = blur_mask(dilate_mask(mask, int(height * dilate)), int(height * blur))
    # In float32 and in this order, so that the values are the original's to the last bit; channel by channel, which is
    # faster than all three at once.
    hidden = np.float32(1) - weights
    for channel, shade in enumerate(color):
        np.add(pixels[..., channel] * weights, shade * hidden, out=pixels[..., channel])
    return MaskedImage(heatmap, mask, weights, pixels, found, float(threshold))


def dilate_mask(mask: np.ndarray, radius: int) -> np.ndarray:
    """Widen a mask to every pixel whose square of `2 * radius + 1` pixels touches it.

    Args:
        mask (`np.ndarray`): bool, of shape `(height, width)`.
        radius (`int`): in pixels; 0 changes nothing.

    Returns:
        `np.ndarray`: bool, of the same shape.
    """
    length = 2 * radius + 1
    for axis in (0, 1) if radius else ():
        wide = np.pad(mask, [(radius, radius) if other == axis else (0, 0) for other in (0, 1)])
        covered = 1  # how many pixels of the window each value stands for, doubled until it is all of them
        while covered < length:
            step = min(covered, length - covered)
            size = wide.shape[axis] - step
            wide = (wide[:size] | wide[step:]) if axis == 0 else (wide[:, :size] | wide[:, step:])
            covered += step
        mask = wide
    return mask


def gaussian_weights(radius: int) -> np.ndarray:
    """Weights of a Gaussian of `2 * radius + 1` pixels, float32; the deviation is OpenCV's for that size."""
    deviation = 0.3 * (radius - 1) + 0.8
    distance = np.arange(-radius, radius + 1, dtype=np.float64)
    weights = np.exp(-(distance**2) / (2 * deviation**2))
    return (weights / weights.sum()).astype(np.float32)


def blur_mask(mask: np.ndarray, radius: int) -> np.ndarray:
    """Soften a mask's edge with a Gaussian, images mirrored at their borders.

    Sums run in float32 in the order of OpenCV's filters for float images (rows from left to right, columns from the
    middle outwards with fused multiply-adds), so that weights are equal to the original's to the last bit.

    Args:
        mask (`np.ndarray`): bool, of shape `(height, width)`.
        radius (`int`): in pixels; 0 changes nothing.

    Returns:
        `np.ndarray`: float32 in 0..1, of the same shape.
    """
    blurred = np.zeros(mask.shape, np.float32)
    box = mask_box(mask)
    if not radius or box is None:
        blurred[mask] = 1
        return blurred
    weights = gaussian_weights(radius)
    # Further away from the mask everything stays 0; mirrored pixels come from no further than the radius.
    height, width = mask.shape
    left, right = max(0, box[0] - radius), min(width, box[2] + radius)
    top, bottom = max(0, box[1] - radius), min(height, box[3] + radius)
    rows = _mirrored(np.arange(top - radius, bottom + radius), height)
    columns = _mirrored(np.arange(left - radius, right + radius), width)
    blurred_rows = _blur_rows(mask[rows].take(columns, axis=1), weights)
    _blur_columns(blurred_rows, weights, blurred[top:bottom, left:right])
    return blurred


def _blur_rows(mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of the windows of each row, without those that are all the same: sums of no pixel, of all, and of
    those on one side of an edge are known before. Rows in which a window holds two edges are summed one by one."""
    length, width = len(weights), mask.shape[1] - len(weights) + 1
    before = np.add.accumulate(weights)  # sums in float32 from left to right, as of windows that end with zeros ...
    after = np.add.accumulate(np.triu(np.broadcast_to(weights, (length, length))), axis=1)[:, -1]  # ... or begin so
    blurred = np.where(mask[:, :width], before[-1], np.float32(0))
    rows, edges = np.nonzero(mask[:, 1:] != mask[:, :-1])
    is_close = np.zeros(len(mask), bool)
    is_close[rows[1:][(rows[1:] == rows[:-1]) & (edges[1:] - edges[:-1] < length)]] = True
    rows, edges = rows[~is_close[rows]], edges[~is_close[rows]]
    # Windows that begin at the pixels up to an edge hold 1, 2, ... of them.
    held = np.arange(1, length)
    columns = edges[:, None] + 1 - held
    values = np.where(mask[rows, edges][:, None], before[held - 1], after[held])
    is_inside = (columns >= 0) & (columns < width)
    blurred[np.broadcast_to(rows[:, None], columns.shape)[is_inside], columns[is_inside]] = values[is_inside]
    if is_close.any():
        blurred[is_close] = _sum_rows(mask[is_close], weights)
    return blurred


def _sum_rows(mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    width = mask.shape[1] - len(weights) + 1
    blurred = np.zeros((len(mask), width), np.float32)
    step = max(1, _BLOCK // mask.shape[1])
    for start in range(0, len(mask), step):
        source, total = mask[start : start + step].astype(np.float32), blurred[start : start + step]
        product = np.empty_like(total)
        for index, weight in enumerate(weights):
            total += np.multiply(source[:, index : index + width], weight, out=product)
    return blurred


def _blur_columns(values: np.ndarray, weights: np.ndarray, blurred: np.ndarray) -> None:
    """Write the weighted sums of the windows of each column into `blurred`."""
    source, target, weights = torch.from_numpy(values), torch.from_numpy(blurred), weights.tolist()
    radius, step = len(weights) // 2, max(1, _BLOCK // values.shape[1])
    for start in range(0, len(target), step):
        total = target[start : start + step]
        shifted = source[start : start + len(total) + 2 * radius].unfold(0, len(total), 1).transpose(1, 2).unbind()
        torch.mul(shifted[radius], weights[radius], out=total)
        for distance in range(1, radius + 1):
            # A fused multiply-add, wherever the processor has one.
            total.add_(shifted[radius - distance] + shifted[radius + distance], alpha=weights[radius + distance])


def _mirrored(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices beyond a border taken back into the image, the border pixel itself not repeated."""
    if size == 1:
        return np.zeros_like(indices)
    period = 2 * (size - 1)
    indices = np.mod(indices, period)
    return np.where(indices < size, indices, period - indices)


__all__ = ["MaskedImage", "blur_mask", "dilate_mask", "gaussian_weights", "mask_image"]
