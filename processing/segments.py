"""What a segmentation is: masks at the size of the image, with their phrases, scores, drawings and export formats."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from .chat import as_list
from .image_loading import MAX_IMAGE_PIXELS, Box, binary_mask, load_rgb_image, mask_box


# Largest intermediate tensor while masks are brought to the size of the image: 256 MB of float32.
_CHUNK_VALUES = 2**26
# A notebook keeps what it shows inside its file.
_NOTEBOOK_SIDE = 1024
_NOTEBOOK_BACKGROUND = (128, 128, 128)
_REPR_CHARACTERS, _REPR_SEGMENTS = 80, 8
_GOLDEN_RATIO = 0.618033988749895
_REJECTED_COLOR = (64, 64, 64)
# Unit steps (dx, dy) of the four directions in which an outline runs, numbered clockwise: right, down, left, up.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


@dataclass(repr=False)
class Segment:
    """One segment: what a `[SEG]` or `[REJ]` slot of an answer stands for.

    `score` rates the mask alone, and what it comes from differs by system:

    - LISA, GSVA and composed models: the segmenter's estimate of the IoU of the mask, `mask_scores` of the model's
      output. Training as in the papers of LISA and GSVA leaves the head that gives it as it was: do not rank their
      masks by it. The embedded model's head was trained last, on its own masks.
    - attend-and-segment: the same estimate by a segmenter as its authors trained it.
    - IVM: the largest value of the heat-map.

    Whether the thing is there at all is what `rejected` and `slot_prob` say. The score of a rejected segment is that
    of the mask it would have had.

    Args:
        label (`str`, *optional*): The phrase the slot belongs to; None when the answer does not tell.
        span (`tuple[int, int]`, *optional*): Character range `[start, end)` of the slot's token in the result's text.
        mask (`np.ndarray`, *optional*): bool, `(height, width)` of the upright image; None when the slot is rejected.
        score (`float`): How good the mask is, see above; the head has no bounds, so it is clipped to 0..1, NaN to 0.
        slot_prob (`float`): Probability that the slot is `[SEG]` rather than `[REJ]`; 1.0 for models without `[REJ]`.
        rejected (`bool`): Whether the model says that nothing in the image fits the phrase.
        heatmap (`np.ndarray`, *optional*):
            Systems that rate every pixel (IVM): float32 in 0..1, `(height, width)`, from which the mask was made.
    """

    label: str | None = None
    span: tuple[int, int] | None = None
    mask: np.ndarray | None = None
    score: float = 0.0
    slot_prob: float = 1.0
    rejected: bool = False
    heatmap: np.ndarray | None = None

    def __post_init__(self):
        self.score = min(1.0, max(0.0, float(self.score)))

    def __repr__(self) -> str:
        found = "rejected" if self.rejected else f"score={self.score:.2f}, box_xyxy={self.box_xyxy}, area={self.area}"
        return f"{type(self).__name__}(label={_shortened(self.label)}, span={self.span}, {found})"

    @property
    def remarks(self) -> dict[str, Any]:
        """`dict`: What a system says of it beside these fields, as plain JSON values."""
        return {}

    @property
    def area(self) -> int:
        """`int`: number of pixels of the mask, 0 without one."""
        return 0 if self.mask is None else int(np.count_nonzero(self.mask))

    @property
    def box_xyxy(self) -> Box | None:
        """`tuple[int, int, int, int]`: see [`mask_box`]; None without a mask or with an empty one."""
        return None if self.mask is None else mask_box(self.mask)

    @property
    def rle(self) -> dict[str, Any] | None:
        """`dict`: the mask as COCO's compressed run lengths, see [`mask_to_rle`]; None without a mask."""
        return None if self.mask is None else mask_to_rle(self.mask)

    @property
    def polygons(self) -> list[np.ndarray]:
        """`list[np.ndarray]`: outlines of the mask, see [`mask_to_polygons`]; empty without a mask."""
        return [] if self.mask is None else mask_to_polygons(self.mask)


@dataclass(repr=False)
class SegmentationResult:
    """All segments of one row: one image with one question. A notebook shows it as the image with its masks.

    Args:
        text (`str`):
            The answer. The token of a slot says what was decided: `[REJ]` where its segment is rejected, else `[SEG]`.
        segments (`list[Segment]`): One per slot, in reading order, rejected ones included.
        image_size (`tuple[int, int]`): (height, width) of the upright image.
        image (*optional*):
            The image as the processor got it, for `overlay` and notebooks; None where inputs have lost it.
    """

    text: str
    segments: list[Segment]
    image_size: tuple[int, int]
    image: Any = None

    def __repr__(self) -> str:
        shown = [
            f"{segment_name(_shortened(segment.label) if segment.label else None, index)}"
            f" {'rejected' if segment.rejected else f'{segment.score:.2f}'}"
            for index, segment in enumerate(self.segments[:_REPR_SEGMENTS])
        ]
        if len(self.segments) > _REPR_SEGMENTS:
            shown.append(f"{len(self.segments) - _REPR_SEGMENTS} more")
        height, width = self.image_size
        return f"{type(self).__name__}(text={_shortened(self.text)}, segments=[{', '.join(shown)}], {width}x{height})"

    def _repr_png_(self) -> bytes | None:
        return self.thumbnail()._repr_png_()

    def thumbnail(self) -> Image.Image:
        """Return the overlay, at most 1024 pixels on a side, on grey where the image is not known."""
        grey = Image.new("RGB", self.image_size[::-1], _NOTEBOOK_BACKGROUND)
        try:
            drawn = self.overlay(grey if self.image is None else self.image)
        except (OSError, ValueError):  # it may have been moved since, or masks were asked for at another size
            drawn = self.overlay(grey)
        drawn.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        return drawn

    @property
    def remarks(self) -> dict[str, Any]:
        """`dict`: What a system says of its answer beside text and segments, as plain JSON values."""
        return {}

    @property
    def heatmap(self) -> np.ndarray | None:
        """`np.ndarray`: heat-map of the first segment, of systems that rate every pixel; None for others."""
        return self.segments[0].heatmap if self.segments else None

    def to_coco(self, image_id: int = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """Return the segments that are not rejected in COCO's results format, all with these ids: `image_id`,
        `category_id`, `label` (the phrase), `segmentation` (compressed RLE), `bbox` (`[x, y, width, height]`), `area`,
        `score`.

        Raises:
            ImportError: pycocotools is not installed.
        """
        boxes = [(segment, segment.box_xyxy or (0, 0, 0, 0)) for segment in self.segments if segment.mask is not None]
        return [
            {
                "image_id": image_id,
                "category_id": category_id,
                "label": segment.label,
                "segmentation": segment.rle,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": segment.area,
                "score": segment.score,
            }
            for segment, (x1, y1, x2, y2) in boxes
        ]

    def to_supervision(self) -> Any:
        """Return the segments that are not rejected as `supervision.Detections`.

        `class_id` counts the different labels in order of appearance, `data["class_name"]` holds them. `xyxy` are
        those of supervision's own `mask_to_xyxy`, whose x2 and y2 are the last pixel of a mask, and not one after it
        as in `box_xyxy`; an empty mask has zeros.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs the package supervision. Install it: pip install supervision"
            ) from error
        segments = [segment for segment in self.segments if segment.mask is not None]
        names = [segment.label or "" for segment in segments]
        classes = {name: index for index, name in enumerate(dict.fromkeys(names))}
        boxes = [np.subtract(segment.box_xyxy or (0, 0, 1, 1), (0, 0, 1, 1)) for segment in segments]
        return supervision.Detections(
            xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
            mask=np.array([s.mask for s in segments], dtype=bool).reshape(-1, *self.image_size),
            confidence=np.array([s.score for s in segments], dtype=np.float32),
            class_id=np.array([classes[name] for name in names], dtype=int),
            data={"class_name": np.array(names, dtype=str)},
        )

    def overlay(self, image: Any = None, alpha: float = 0.5) -> Image.Image:
        """Draw the masks and their labels on the image; rejected phrases are listed in its lower left corner.

        Args:
            image (*optional*):
                The image these segments belong to, of any kind `load_rgb_image` reads; `self.image` by default.
            alpha (`float`, *optional*, defaults to 0.5): share of the colour on a mask, 0..1.

        Returns:
            `PIL.Image.Image`: mode RGB, upright, of the size of the image.

        Raises:
            ValueError: There is no image, it has another size than the masks, or `alpha` is outside 0..1.
        """
        image = self.image if image is None else image
        if image is None:
            raise ValueError("The result does not hold its image. Pass the one that was segmented: overlay(image).")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha is {alpha}. It is the share of the colour and must lie in 0..1.")
        overlay = self.read_image(image)  # a copy of what was given
        drawn = [(index, segment) for index, segment in enumerate(self.segments) if segment.mask is not None]
        for index, segment in drawn:
            colors = np.add.outer(np.array(segment_color(index)) * alpha, np.arange(256) * (1.0 - alpha))
            if box := segment.box_xyxy:
                colored = overlay.crop(box).point(np.rint(colors).astype(int).ravel().tolist())
                left, top, right, bottom = box
                overlay.paste(colored, box, Image.fromarray(segment.mask[top:bottom, left:right]))
        canvas = ImageDraw.Draw(overlay)
        font = ImageFont.load_default(size=max(10, min(self.image_size) // 32))
        for index, segment in drawn:
            if box := segment.box_xyxy:
                text = f"{segment_name(segment.label, index)} {segment.score:.2f}"
                _draw_label(canvas, box[:2], text, segment_color(index), font)
        bottom = overlay.height
        for index, segment in reversed(list(enumerate(self.segments))):
            if segment.rejected:
                text = f"not in the image: {segment_name(segment.label, index)}"
                bottom = _draw_label(canvas, (0, bottom), text, _REJECTED_COLOR, font)
        return overlay

    def read_image(self, image: Any) -> Image.Image:
        """Read the image that was segmented, upright and in RGB; a ValueError says that it has another size."""
        height, width = self.image_size
        # The image was accepted before, when it was segmented.
        image = load_rgb_image(image, max_image_pixels=max(MAX_IMAGE_PIXELS, height * width))
        if image.size != (width, height):
            raise ValueError(
                f"The image is {image.width} x {image.height} pixels, the masks are {width} x {height}. Pass the "
                "image that was segmented."
            )
        return image


# ---- drawing --------------------------------------------------------------------------------------------------------


def segment_color(index: int) -> tuple[int, int, int]:
    """Return the RGB colour, 0..255, of the segment with this number: bright, and far from its neighbours' hues."""
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1.0, 0.8, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def segment_name(label: str | None, index: int) -> str:
    """Return what to call a segment: its label, or its number from 1 on where the answer gives it none."""
    return label or f"segment {index + 1}"


def is_light(color: tuple[int, int, int]) -> bool:
    """Whether black is easier to read on a colour than white (weights of Rec. 601 luma)."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140


def _draw_label(
    canvas: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, color: tuple[int, int, int], font: Any
) -> int:
    """Write `text` on a filled box above `corner`, moved inside the image; return the y of the box's upper edge."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    image_width, image_height = canvas.im.size
    x = max(0, min(corner[0], image_width - width))
    y = max(0, min(corner[1] - height, image_height - height))
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    fill = (0, 0, 0) if is_light(color) else (255, 255, 255)
    canvas.text((x + 3 - left, y + 3 - top), text, fill=fill, font=font)
    return y


def _shortened(text: str | None) -> str:
    """The `repr` of a text, of its beginning where it is long."""
    return repr(text if text is None or len(text) <= _REPR_CHARACTERS else f"{text[:_REPR_CHARACTERS]}...")


# ---- masks ----------------------------------------------------------------------------------------------------------


def post_process_masks(
    masks: torch.Tensor,
    original_size: tuple[int, int] | torch.Tensor,
    reshaped_input_size: tuple[int, int] | torch.Tensor | None,
    pad_size: int | tuple[int, int] | None = (1024, 1024),
    mask_threshold: float | None = 0.0,
) -> torch.Tensor:
    """Bring low-resolution mask logits to the size of the image, as the original SAM does.

    In float32: bilinear (align_corners=False) to the segmenter's square, cut to the part that is not padding, bilinear
    to the size of the image; or in one such step, as SAM 2's `SAM2ImagePredictor` does. Masks go through in chunks, so
    that memory for intermediate values stays near 256 MB (or one mask, where that is more).

    Args:
        masks (`torch.Tensor`): Mask logits of shape `(masks, height, width)`.
        original_size, reshaped_input_size, pad_size:
            (height, width) of the image, of the image within the segmenter's view, and of the whole view. With
            `reshaped_input_size=None`, for a view that is not padded, masks do not go through it.
        mask_threshold (`float`, *optional*): Pixels with a larger logit belong to the mask; None returns the logits.

    Returns:
        `torch.Tensor`: shape `(masks, *original_size)`, on the device of the input; bool, or float32 with
        `mask_threshold=None`.

    Raises:
        ValueError: The masks are not three-dimensional or a size is impossible.
    """
    original = tuple(map(int, original_size))
    reshaped = padded = original
    if reshaped_input_size is not None:
        pad_size = (pad_size, pad_size) if isinstance(pad_size, int) else pad_size
        reshaped, padded = (tuple(map(int, size)) for size in (reshaped_input_size, pad_size))
    if masks.ndim != 3:
        raise ValueError(f"Mask logits of shape {tuple(masks.shape)} were given; (masks, height, width) is needed.")
    if min(*original, *reshaped) < 1 or reshaped[0] > padded[0] or reshaped[1] > padded[1]:
        raise ValueError(
            f"original_size {original}, reshaped_input_size {reshaped} and pad_size {padded} were given, each "
            "(height, width). All must be positive, and the reshaped image must fit into the padded one."
        )
    # written into one tensor of the final kind: the logits of all masks at once may not fit into memory
    kind = torch.float32 if mask_threshold is None else torch.bool
    result = torch.empty((len(masks), *original), dtype=kind, device=masks.device)
    chunk = max(1, _CHUNK_VALUES // max(padded[0] * padded[1], original[0] * original[1]))
    for start in range(0, len(masks), chunk):
        logits = masks[start : start + chunk, None].float()
        if reshaped_input_size is not None:
            logits = F.interpolate(logits, padded, mode="bilinear", align_corners=False)
            logits = logits[..., : reshaped[0], : reshaped[1]]
        logits = F.interpolate(logits, original, mode="bilinear", align_corners=False)[:, 0]
        result[start : start + chunk] = logits if mask_threshold is None else logits > mask_threshold
    return result


def masks_to_numpy(masks: torch.Tensor) -> np.ndarray:
    """Copy bool masks of any shape to NumPy; from an accelerator as bits, an eighth of the bytes."""
    if masks.device.type == "cpu":
        return masks.numpy()
    bits = pack_bits(masks).cpu().numpy()
    return np.unpackbits(bits, count=masks.numel()).view(bool).reshape(masks.shape)


def pack_bits(masks: torch.Tensor) -> torch.Tensor:
    """Pack a bool tensor where it lies, eight values into a byte, in the order of `np.packbits`; uint8, flat."""
    bits = F.pad(masks.flatten().view(torch.uint8), (0, -masks.numel() % 8)).view(-1, 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=masks.device)
    return (bits * weights).sum(dim=1, dtype=torch.uint8)


class MaskSizes(NamedTuple):
    """Sizes of one image, each (height, width), in the order in which `post_process_masks` takes them: the masks', the
    image's within the segmenter's view, and the whole view's; these two are None where masks do not go through it."""

    original: tuple[int, int]
    reshaped: tuple[int, int] | None
    padded: tuple[int, int] | None


def input_of_rows(num_rows: int, num_inputs: int) -> list[int]:
    """For each row of an output its row of the inputs, which may have several; a ValueError if they do not match."""
    if not num_inputs or num_rows % num_inputs:
        raise ValueError(
            f"The output has {num_rows} rows and the inputs {num_inputs}; pass the inputs that led to this output."
        )
    return [row // (num_rows // num_inputs) for row in range(num_rows)]


def read_mask_sizes(
    inputs: Mapping[str, Any], target_sizes: Any, source: Sequence[int], segmenter_view: Any
) -> list[MaskSizes]:
    """
    The sizes of each row of an output.

    Args:
        inputs (`Mapping[str, Any]`): What the processor returned; empty where that is not known.
        target_sizes (*optional*): Sizes of masks, one per image, one per row, or one for all; by default `inputs` say.
        source (`Sequence[int]`): See [`input_of_rows`].
        segmenter_view: The image processor that made the segmenter's view; says whether masks go through it, and is
            asked for sizes where the inputs do not tell.

    Raises:
        ValueError: If the sizes are unknown, or their number is none of these.
    """
    given, reshaped = inputs.get("original_sizes"), inputs.get("reshaped_input_sizes")
    wanted = target_sizes if target_sizes is not None else given
    if wanted is None:
        raise ValueError("The size of the images is unknown. Pass the processor's `inputs` or `target_sizes`.")
    wanted = _size_pairs(wanted)
    known = wanted if given is None or target_sizes is None else _size_pairs(given)
    if reshaped is None:
        reshaped = [segmenter_view.get_resized_size(*size) for size in known]
    padded = segmenter_view.segmenter_target_size
    if "sam_pixel_values" in inputs:
        padded = tuple(int(side) for side in np.shape(inputs["sam_pixel_values"])[-2:])
    index, num_inputs = inputs.get("image_index"), source[-1] + 1 if source else 0
    index = None if index is None else as_list(index)

    def per_row(sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if len(sizes) == 1:
            return sizes * len(source)
        if index is not None and len(sizes) == len(known):
            return [sizes[index[row]] for row in source]
        if len(sizes) == num_inputs:
            return [sizes[row] for row in source]
        if len(sizes) == len(source):
            return sizes
        raise ValueError(
            f"{len(sizes)} sizes were given for {len(source)} rows of output, {num_inputs} rows of input and "
            f"{len(known)} images. Give one per image, one per row, or one for all."
        )

    pairs = zip(per_row(wanted), per_row(_size_pairs(reshaped)), strict=True)
    if not getattr(segmenter_view, "masks_go_through_view", True):
        return [MaskSizes(original, None, None) for original, _ in pairs]
    return [MaskSizes(original, resized, padded) for original, resized in pairs]


def _size_pairs(sizes: Any) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in sizes]


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask, as `binary_mask` reads it, as COCO's compressed run lengths.

    Returns:
        `dict`: `{"size": [height, width], "counts": str}`, ready for JSON and for `pycocotools.mask.decode`.

    Raises:
        ValueError: The mask has another shape or other values.
        ImportError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("COCO RLE needs the package pycocotools. Install it: pip install pycocotools") from error
    encoded = coco_mask.encode(np.asfortranarray(binary_mask(mask), dtype=np.uint8))
    return {"size": [int(size) for size in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def mask_to_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Trace the outlines of a mask along the edges of its pixels.

    The polygons describe the mask exactly: filled by the even-odd rule they give it back, and their signed areas sum
    up to its number of pixels. Outer outlines run clockwise as seen on the screen and have positive area, outlines of
    holes run the other way. Pixels that touch only at a corner belong to different outlines.

    Args:
        mask (`np.ndarray`): As `binary_mask` reads it.

    Returns:
        `list[np.ndarray]`: one int64 array `(corners, 2)` per outline, each row `(x, y)` in pixels, where pixel (row,
        column) covers `x` from column to column + 1 and `y` from row to row + 1. The first corner is the topmost, then
        leftmost one and is not repeated at the end; outlines are ordered by it.

    Raises:
        ValueError: The mask has another shape or other values.

    Example:
        >>> mask_to_polygons(np.array([[False, True, True]]))[0].tolist()
        [[1, 0], [3, 0], [3, 1], [1, 1]]
    """
    padded = np.pad(binary_mask(mask), 1)
    inside, above, left = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]
    # every edge between a pixel inside and one outside, directed so that the inside lies on its right
    edges: dict[tuple[int, int], dict[int, None]] = {}
    for direction, present, offset in (
        (0, inside & ~above, (0, 0)),
        (1, ~inside & left, (0, 0)),
        (2, ~inside & above, (1, 0)),
        (3, inside & ~left, (0, 1)),
    ):
        rows, columns = np.nonzero(present)
        for x, y in zip((columns + offset[0]).tolist(), (rows + offset[1]).tolist(), strict=True):
            edges.setdefault((x, y), {})[direction] = None
    polygons = []
    for start in sorted(edges, key=lambda corner: (corner[1], corner[0])):
        while edges[start]:
            polygons.append(np.array(_trace(edges, start), dtype=np.int64))
    return polygons


def _trace(edges: dict[tuple[int, int], dict[int, None]], start: tuple[int, int]) -> list[tuple[int, int]]:
    """Follow one outline from `start` back to it, taking its edges away; return the corners where it turns."""
    direction = min(edges[start])
    corner, corners = start, [start]
    while True:
        del edges[corner][direction]
        corner = (corner[0] + _STEPS[direction][0], corner[1] + _STEPS[direction][1])
        # Turn right first: where two pixels touch at a corner this stays with the present one
        turn = next((turn for turn in (1, 0, 3) if (direction + turn) % 4 in edges[corner]), None)
        if turn is None:
            return corners
        direction = (direction + turn) % 4
        if turn:
            corners.append(corner)
