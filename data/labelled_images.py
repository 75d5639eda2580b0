"""Images with labelled masks: what every annotation format is written from and read into.

Masks are COCO's compressed run lengths and lie in the upright frame, in which viewers show the image. Images stay in
their files, so that a data set of any size is passed on one image at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..processing.image_loading import MAX_IMAGE_PIXELS, load_rgb_image, open_image
from ..processing.mask_reading import read_mask
from ..processing.regions import read_rle
from ..processing.segments import mask_to_rle


@dataclass(frozen=True)
class LabelledObject:
    """
    One object of an image, or a phrase that nothing in it fits.

    Args:
        label (`str`): What it is called: a category, or the phrase of a question; may be empty.
        mask (`dict`, *optional*): `{"size": [height, width], "counts": str}` in the upright frame; `None` where
            nothing fits.
        score (`float`, *optional*): 0 to 1; `None` where a person has drawn it.
        rejected (`bool`): Whether nothing in the image fits the label.
        span (`tuple[int, int]`, *optional*): Characters `[start, end)` of its slot in the answer.
        request (`int`): Which of the image's requests it belongs to.
        is_crowd (`bool`): Whether the mask holds several objects, as `iscrowd` of COCO.
        attributes (`Mapping`): What else a format says of it, as JSON types.
    """

    label: str
    mask: dict[str, Any] | None
    score: float | None = None
    rejected: bool = False
    span: tuple[int, int] | None = None
    request: int = 0
    is_crowd: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def area(self) -> int:
        """`int`: pixels of the mask; 0 without one."""
        return 0 if self.mask is None else int(_coco_mask().area(_as_bytes(self.mask)))

    @property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """`tuple`: x1, y1, x2, y2 in pixels, x2 and y2 after the last pixel; `None` without a mask or pixels."""
        if self.mask is None or not self.area:
            return None
        x, y, width, height = map(int, _coco_mask().toBbox(_as_bytes(self.mask)))
        return x, y, x + width, y + height

    def pixels(self) -> np.ndarray:
        """Decode the mask; bool, of shape `(height, width)`.

        Raises:
            ValueError: There is no mask.
        """
        if self.mask is None:
            raise ValueError(f"{self.label!r} has no mask: nothing in the image fits it.")
        return read_rle(self.mask, tuple(self.mask["size"]))


@dataclass(frozen=True)
class LabelledRequest:
    """
    What was asked about an image, and the answer.

    Args:
        question (`str`, *optional*): `None` where phrases were given and no question.
        answer (`str`, *optional*): With a `[SEG]` or `[REJ]` for each of its objects, in order, where the model writes
            such slots; `None` where nobody has answered in words.
    """

    question: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class LabelledImage:
    """
    One image with its objects.

    Args:
        file_name (`str`): Its name in the data set, with `/`; no two images share one.
        size (`tuple[int, int]`): (height, width) of the upright image.
        source (`Path`, `bytes`, *optional*): Its file, or the content of one; `None` where it is not at hand.
        objects (`tuple[LabelledObject, ...]`): In the order in which they were drawn or asked for.
        requests (`tuple[LabelledRequest, ...]`): What was asked about it; none in formats that know no questions.
        image_id (`int` or `str`, *optional*): Its id in the format it was read from.
        split (`str`, *optional*): Such as `"train"`.
        model, revision (`str`, *optional*): What has drawn the masks.
    """

    file_name: str
    size: tuple[int, int]
    source: Path | bytes | None = None
    objects: tuple[LabelledObject, ...] = ()
    requests: tuple[LabelledRequest, ...] = ()
    image_id: int | str | None = None
    split: str | None = None
    model: str | None = None
    revision: str | None = None

    @property
    def drawn(self) -> Iterator[LabelledObject]:
        """The objects that have a mask."""
        return (found for found in self.objects if found.mask is not None)

    @property
    def rejected(self) -> Iterator[LabelledObject]:
        """The phrases that nothing in the image fits."""
        return (found for found in self.objects if found.rejected)

    def content(self) -> bytes:
        """The bytes of the image's file.

        Raises:
            ValueError: The image is not at hand.
        """
        if self.source is None:
            raise ValueError(f"The image {self.file_name!r} is not at hand; name the folder that holds it.")
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def pixels(self, max_image_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
        """Decode the image upright; uint8 RGB of shape `(height, width, 3)`.

        Raises:
            ValueError: It is not at hand, is no image, or has another size than its masks.
        """
        source = self.source
        if source is None:
            raise ValueError(f"The image {self.file_name!r} is not at hand; name the folder that holds it.")
        with open_image(source, max_image_pixels) as opened:
            image = load_rgb_image(opened, max_image_pixels)
        if (image.height, image.width) != tuple(self.size):
            raise ValueError(
                f"The image {self.file_name!r} is {image.width} x {image.height} pixels, its masks are "
                f"{self.size[1]} x {self.size[0]} (width x height)."
            )
        return np.asarray(image)


def from_result_line(record: Mapping[str, Any], folder: Path, source: Path | None = None) -> LabelledImage:
    """
    One line of the `results.jsonl` that `reasonseg segment` writes, with the masks that lie beside it.

    Args:
        record (`Mapping`): The line.
        folder (`Path`): The folder that holds it.
        source (`Path`, *optional*): File of the image; by default as the line names it.

    Raises:
        ValueError: A mask cannot be read, or has another size than the image.
    """
    size, request = (record["height"], record["width"]), record["request"]
    objects = []
    for segment in record["segments"]:
        mask = None
        if segment["mask"] is not None:
            mask = mask_to_rle(read_mask(folder / segment["mask"], size, f"The mask {segment['mask']!r}"))
        objects.append(
            LabelledObject(
                label=segment["label"] or "",
                mask=mask,
                score=segment["score"],
                rejected=segment["rejected"],
                span=None if segment["span"] is None else tuple(segment["span"]),
                attributes={"slot_prob": segment["slot_prob"]},
            )
        )
    return LabelledImage(
        # the name is that of no other image of the folder, also where images of several folders are called the same
        file_name=record["name"] + Path(record["image"]).suffix,
        size=size,
        source=Path(record["image"]) if source is None else source,
        objects=tuple(objects),
        requests=(LabelledRequest(request.get("text"), record["text"]),),
        model=request.get("model"),
        revision=request.get("revision"),
    )


def _coco_mask() -> Any:
    from pycocotools import mask as coco_mask

    return coco_mask


def _as_bytes(mask: Mapping[str, Any]) -> dict[str, Any]:
    """The run lengths as pycocotools takes them."""
    counts = mask["counts"]
    return {"size": list(mask["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


__all__ = ["LabelledImage", "LabelledObject", "LabelledRequest", "from_result_line"]
