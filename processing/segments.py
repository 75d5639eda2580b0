"""What a segmentation is: masks at the size of the picture, with their phrases, scores and export formats."""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from .answer_rendering import answer_html, draw_answer
from .mask_drawing import draw_segments, segment_name
from .mask_polygons import mask_to_polygons
from .mask_values import binary_mask


# Largest intermediate tensor while masks are brought to the size of the picture: 256 MB of float32.
_CHUNK_VALUES = 2**26
# A notebook keeps what it shows inside its file.
_NOTEBOOK_SIDE = 1024
_NOTEBOOK_BACKGROUND = (128, 128, 128)
_REPR_CHARACTERS, _REPR_SEGMENTS = 80, 8


@dataclass(repr=False)
class Segment:
    """One segment: what a `[SEG]` or `[REJ]` slot of an answer stands for.

    `score` rates the mask alone, and what it comes from differs by system:

    - LISA, GSVA and composed models: the segmenter's estimate of the IoU of the mask, `mask_scores` of the model's
      output. The head that gives it has no bounds, so that what lies outside of 0 and 1 is brought to the nearer of
      them. Training as in the papers of LISA and GSVA leaves this head as it was: do not rank their masks by it. The
      embedded model's head was trained last, on its own masks.
    - attend-and-segment: the same estimate by a segmenter as its authors trained it.
    - IVM: the largest value of the heat-map.

    Whether there is such a thing at all is what `rejected` and `slot_prob` say. The score of a rejected segment is
    that of the mask it would have had.

    Args:
        label (`str`, *optional*):
            The phrase the slot belongs to, None when the answer does not tell.
        span (`tuple[int, int]`, *optional*):
            Character range `[start, end)` of the slot's token in the text of the result.
        mask (`np.ndarray`, *optional*):
            bool, of shape `(height, width)` of the upright picture; None when the slot is rejected.
        score (`float`):
            How good the mask is, 0 to 1, see above. A number outside of that is brought to the nearer end, NaN to 0.
        slot_prob (`float`):
            Probability that the slot is `[SEG]` rather than `[REJ]`; 1.0 for models without `[REJ]`.
        rejected (`bool`):
            Whether the model says that nothing in the picture fits the phrase.
        heatmap (`np.ndarray`, *optional*):
            Systems that rate every pixel (IVM): float32 in 0..1, of shape `(height, width)`, from which the mask was
            made.
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
    def area(self) -> int:
        """`int`: number of pixels of the mask, 0 without one."""
        return 0 if self.mask is None else int(np.count_nonzero(self.mask))

    @property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """`tuple[int, int, int, int]`: box `(x1, y1, x2, y2)` in pixels of the picture; x2 and y2 lie behind the last
        pixel, so that the width is x2 - x1. None without a mask or with an empty one."""
        return None if self.mask is None else mask_box(self.mask)

    @property
    def rle(self) -> dict[str, Any] | None:
        """`dict`: the mask as COCO's compressed RLE, `{"size": [height, width], "counts": str}`; None without a mask.

        Raises:
            ImportError: pycocotools is not installed.
        """
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
        segments (`list[Segment]`):
            One per slot, in reading order, rejected ones included.
        image_size (`tuple[int, int]`):
            (height, width) of the upright picture.
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

    def _repr_html_(self) -> str:
        drawn = None
        if self.image is not None:
            # It may have been moved since, or masks were asked for at another size.
            with contextlib.suppress(OSError, ValueError):
                drawn = self.overlay()
        if drawn is None:
            drawn = self.overlay(Image.new("RGB", self.image_size[::-1], _NOTEBOOK_BACKGROUND))
        drawn.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        return answer_html(self.text, self.segments, drawn)

    @property
    def heatmap(self) -> np.ndarray | None:
        """`np.ndarray`: heat-map of the first segment, of systems that rate every pixel; None for others."""
        return self.segments[0].heatmap if self.segments else None

    def to_coco(self, image_id: int = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """Return the segments that are not rejected in COCO's results format.

        Args:
            image_id (`int`, *optional*, defaults to 0): copied into every entry.
            category_id (`int`, *optional*, defaults to 1): copied into every entry; the phrase stands under `label`.

        Returns:
            `list[dict]`: `image_id`, `category_id`, `label`, `segmentation` (compressed RLE), `bbox`
            (`[x, y, width, height]`), `area`, `score`.

        Raises:
            ImportError: pycocotools is not installed.
        """
        entries = []
        for segment in self.segments:
            if segment.mask is None:
                continue
            x1, y1, x2, y2 = segment.box_xyxy or (0, 0, 0, 0)
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "label": segment.label,
                    "segmentation": segment.rle,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": segment.area,
                    "score": segment.score,
                }
            )
        return entries

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
        return supervision.Detections(
            xyxy=np.array([_last_pixel_box(s.box_xyxy) for s in segments], dtype=np.float32).reshape(-1, 4),
            mask=np.array([s.mask for s in segments], dtype=bool).reshape(-1, *self.image_size),
            confidence=np.array([s.score for s in segments], dtype=np.float32),
            class_id=np.array([classes[name] for name in names], dtype=int),
            data={"class_name": np.array(names, dtype=str)},
        )

    def overlay(self, image: Any = None, alpha: float = 0.5) -> Image.Image:
        """Draw the masks and their labels on the picture; rejected phrases are listed in its lower left corner.

        Args:
            image (*optional*):
                The image these segments belong to, of any kind `load_rgb_image` reads; `self.image` by default.
            alpha (`float`, *optional*, defaults to 0.5): share of the colour on a mask, 0..1.

        Returns:
            `PIL.Image.Image`: mode RGB, upright, of the size of the picture.

        Raises:
            ValueError: There is no image, it has another size than the masks, or `alpha` is outside 0..1.
        """
        image = self.image if image is None else image
        if image is None:
            raise ValueError("The result does not hold its image. Pass the one that was segmented: overlay(image).")
        return draw_segments(image, self.segments, self.image_size, alpha)

    def to_html(self, image: Any = None) -> str:
        """Return the answer as HTML whose phrases have the colours of their masks.

        Args:
            image (*optional*): the picture these segments belong to; with it the overlay stands above the text.

        Returns:
            `str`: one `<div>` that needs no other file.
        """
        return answer_html(self.text, self.segments, None if image is None else self.overlay(image))

    def draw_answer(self, image: Any = None, width: int | None = None) -> Image.Image:
        """Draw the answer with the colours of `overlay`, which stands above the text where `image` is given.

        Args:
            image (*optional*): the picture these segments belong to.
            width (`int`, *optional*): width in pixels; by default that of the picture, but at least 480.

        Returns:
            `PIL.Image.Image`: mode RGB; save it as PNG.
        """
        return draw_answer(self.text, self.segments, None if image is None else self.overlay(image), width)


def post_process_masks(
    low_res_masks: torch.Tensor,
    original_size: tuple[int, int] | torch.Tensor,
    resized_size: tuple[int, int] | torch.Tensor,
    target_size: int | tuple[int, int] = (1024, 1024),
    threshold: float | None = 0.0,
) -> torch.Tensor:
    """Bring low-resolution mask logits to the size of the picture, as the original SAM does.

    In float32: bilinear (align_corners=False) to the segmenter's square, cut to the part that is not padding, bilinear
    to the size of the picture. Masks go through in chunks, so that memory for intermediate values stays near 256 MB
    (or one mask, where that is more).

    Args:
        low_res_masks (`torch.Tensor`):
            Mask logits of shape `(masks, height, width)`.
        original_size (`tuple[int, int]`):
            (height, width) of the picture.
        resized_size (`tuple[int, int]`):
            (height, width) of the picture as the segmenter saw it, before padding.
        target_size (`int` or `tuple[int, int]`, *optional*, defaults to (1024, 1024)):
            (height, width) of `sam_pixel_values`.
        threshold (`float`, *optional*, defaults to 0.0):
            Pixels with a larger logit belong to the mask; None returns the logits.

    Returns:
        `torch.Tensor`: shape `(masks, *original_size)`, on the device of the input; bool, or float32 with
        `threshold=None`.

    Raises:
        ValueError: The masks are not three-dimensional or a size is impossible.
    """
    original, resized = _size_pair(original_size), _size_pair(resized_size)
    target = (target_size, target_size) if isinstance(target_size, int) else _size_pair(target_size)
    if low_res_masks.ndim != 3:
        raise ValueError(
            f"Mask logits of shape {tuple(low_res_masks.shape)} were given; (masks, height, width) is needed."
        )
    if min(*original, *resized) < 1 or resized[0] > target[0] or resized[1] > target[1]:
        raise ValueError(
            f"original_size {original}, resized_size {resized} and target_size {target} were given, each (height, "
            "width). All must be positive, and the resized picture must fit into the target."
        )
    # written into one tensor of the final kind: the logits of all masks at once may not fit into memory
    kind = torch.float32 if threshold is None else torch.bool
    masks = torch.empty((len(low_res_masks), *original), dtype=kind, device=low_res_masks.device)
    chunk = max(1, _CHUNK_VALUES // max(target[0] * target[1], original[0] * original[1]))
    for start in range(0, len(low_res_masks), chunk):
        logits = low_res_masks[start : start + chunk, None].float()
        logits = F.interpolate(logits, target, mode="bilinear", align_corners=False)
        logits = logits[..., : resized[0], : resized[1]]
        logits = F.interpolate(logits, original, mode="bilinear", align_corners=False)[:, 0]
        masks[start : start + chunk] = logits if threshold is None else logits > threshold
    return masks


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the box `(x1, y1, x2, y2)` of a bool mask, x2 and y2 behind the last pixel; None for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _last_pixel_box(box: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
    """A box whose x2 and y2 are the last pixel; zeros for None."""
    return (0, 0, 0, 0) if box is None else (box[0], box[1], box[2] - 1, box[3] - 1)


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask as COCO's compressed run lengths.

    Args:
        mask (`np.ndarray`): of shape `(height, width)`: bool, 0 and 1, or 0 and 255.

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


def _shortened(text: str | None) -> str:
    """The `repr` of a text, of its beginning where it is long."""
    return repr(text if text is None or len(text) <= _REPR_CHARACTERS else f"{text[:_REPR_CHARACTERS]}...")


def _size_pair(size: Any) -> tuple[int, int]:
    """Turn a (height, width) of any kind into two ints."""
    height, width = size.tolist() if isinstance(size, (torch.Tensor, np.ndarray)) else size
    return int(height), int(width)


__all__ = ["Segment", "SegmentationResult", "mask_box", "mask_to_rle", "post_process_masks"]
