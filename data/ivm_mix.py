"""IVM-Mix-1M: instructions about images with heat-maps or boxes of what they need.

The data set (https://huggingface.co/datasets/2toINF/IVM-Mix-1M, described in section 3 of arXiv 2405.19783) comes as
JSONL files with `uuid`, `instruction` and, where the image is not `img_<uuid>.jpg`, `image`; heat-maps lie in
`mask_<uuid>.jpg`, or a line has `boxes` instead. Which labels people drew is known per file only (HumanLabelData
against RobotMachineData and VQAMachineData), hence `human` of a source.
"""

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..processing.image_loading import load_rgb_image, open_image
from .data_files import DataFileError, file_in, read_json_lines
from .example import MaskingExample
from .shared_epoch import SharedEpoch


logger = logging.getLogger(__name__)

# IVM_1M_Mix/datareader.py: heat-maps are brightened by half before they are stretched to [0, 1].
HEATMAP_GAIN = 1.5
# OpenCV's fixed-point weights (15 bits) of the first, second and third channel for grey.
GREY_WEIGHTS, GREY_SHIFT = (9798, 19235, 3735), 15
CROP_SCALE, CROP_RATIO, CROP_TRIES = (0.8, 1.0), (3 / 4, 4 / 3), 10


@dataclass(frozen=True)
class IvmMixSource:
    """
    One JSONL file and where its images and heat-maps lie.

    Args:
        meta (`Path`): The JSONL file.
        images (`Path`): Folder that `image` and `img_<uuid>.jpg` are relative to.
        masks (`Path`, *optional*): Folder of `mask_<uuid>.jpg`; `images` if not given.
        human (`bool`): Whether people drew these labels.
    """

    meta: Path
    images: Path
    masks: Path | None = None
    human: bool = False

    def __post_init__(self):
        object.__setattr__(self, "meta", Path(self.meta))
        object.__setattr__(self, "images", Path(self.images))
        object.__setattr__(self, "masks", self.images if self.masks is None else Path(self.masks))


@dataclass(frozen=True)
class IvmMixRecord:
    """
    One line of the data set.

    Args:
        uuid (`str`): Its name.
        instructions (`tuple[str, ...]`): Wordings that share the label, at least one.
        image (`Path`): File of the image.
        mask (`Path`, *optional*): File of the heat-map; `None` where there are boxes.
        boxes (`tuple[tuple[float, float, float, float], ...]`): `x_min, y_min, x_max, y_max` as parts of the side of
            the image padded to a square.
        human (`bool`): Whether people drew the label.
    """

    uuid: str
    instructions: tuple[str, ...]
    image: Path
    mask: Path | None
    boxes: tuple[tuple[float, float, float, float], ...]
    human: bool

    def read_image(self) -> Image.Image:
        """The image, upright and RGB."""
        try:
            return load_rgb_image(self.image)
        except ValueError as error:
            raise DataFileError(f"Image of {self.uuid}: {error}") from error

    def read_mask(self, height: int, width: int) -> np.ndarray:
        """The label, `(height, width)` float32 in [0, 1]; a heat-map of another size is stretched.

        Raises:
            DataFileError: If it cannot be read, or has the sides of the image swapped.
        """
        if self.mask is None:
            return boxes_to_mask(self.boxes, height, width)
        try:
            with open_image(self.mask) as image:
                heatmap = np.array(image if image.mode == "L" else image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise DataFileError(f"Heat-map of {self.uuid}: {self.mask} cannot be read ({error}).") from error
        if height != width and heatmap.shape[:2] == (width, height):
            raise DataFileError(
                f"Heat-map of {self.uuid}: {self.mask} is {height} x {width} pixels, its image {width} x {height}. "
                "Heat-maps lie in the upright frame, in which viewers show the image (EXIF orientation applied)."
            )
        return resize_mask(normalise_heatmap(heatmap), height, width)


def normalise_heatmap(heatmap: np.ndarray) -> np.ndarray:
    """
    Brightens a stored heat-map and stretches it to [0, 1], value for value as the original's reader.

    Args:
        heatmap (`np.ndarray`): `(height, width)` or `(height, width, 3)` RGB, uint8.

    Returns:
        `np.ndarray`: `(height, width)` float32. An even heat-map becomes 1 everywhere; a black one stays 0, where the
        original divides by zero.
    """
    values = heatmap.astype(np.int64)
    if values.ndim == 3:
        # The original reads BGR and converts as if it were RGB, so that red and blue weigh the wrong way round.
        values = (values[..., ::-1] * GREY_WEIGHTS).sum(-1) + (1 << GREY_SHIFT >> 1) >> GREY_SHIFT
    values = np.minimum(np.rint(HEATMAP_GAIN * values), 255.0)
    low, high = values.min(), values.max()
    if high > low:
        return ((values - low) / (high - low)).astype(np.float32)
    return np.full(values.shape, float(high > 0), dtype=np.float32)


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """`(height, width)` float32, bilinear over all pixels that an output pixel covers; the aspect ratio may change."""
    mask = np.asarray(mask, dtype=np.float32)
    if mask.shape == (height, width):
        return mask
    resized = Image.fromarray(mask, mode="F").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def boxes_to_mask(boxes: Sequence[Sequence[float]] | Sequence[float], height: int, width: int) -> np.ndarray:
    """
    Draws boxes that are given in the image padded to a square around its centre, as LLaVA sees it.

    Args:
        boxes: One `x_min, y_min, x_max, y_max` or several, in [0, 1] of the square's side.
        height, width (`int`): Size of the image in pixels.

    Returns:
        `np.ndarray`: `(height, width)` float32, 1 in any of the boxes. Edges are cut to whole pixels.

    Raises:
        DataFileError: If a box has not four ordered numbers in [0, 1].
    """
    side, mask = max(height, width), np.zeros((height, width), dtype=np.float32)
    # utils.py of the original pads the shorter side only.
    left, top = (side - width) // 2, (side - height) // 2
    for x_min, y_min, x_max, y_max in check_boxes(boxes):
        columns = slice(int(max(0, x_min * side - left)), int(max(0, x_max * side - left)))
        rows = slice(int(max(0, y_min * side - top)), int(max(0, y_max * side - top)))
        mask[rows, columns] = 1.0
    return mask


def check_boxes(boxes: Any) -> tuple[tuple[float, float, float, float], ...]:
    """One box or several as a tuple of boxes; see `boxes_to_mask`."""
    several = boxes if isinstance(boxes, (list, tuple)) and boxes and isinstance(boxes[0], (list, tuple)) else [boxes]
    for box in several:
        numbers = isinstance(box, (list, tuple)) and len(box) == 4
        numbers = numbers and all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in box)
        if not numbers or box[0] > box[2] or box[1] > box[3]:
            raise DataFileError(
                f"{box!r} is not a box; write x_min, y_min, x_max, y_max as parts of the padded square's side, 0 to 1."
            )
    return tuple(tuple(map(float, box)) for box in several)


def read_records(source: IvmMixSource) -> list[IvmMixRecord]:
    """
    All lines of a source; images and heat-maps are opened later.

    Raises:
        DataFileError: If the file is missing or empty, or a line is not of the data set; the message names both.
    """
    if not source.meta.is_file():
        raise DataFileError(f"There is no file {source.meta}; name the JSONL file of one part of IVM-Mix-1M.")
    records = []
    for number, item in read_json_lines(source.meta):
        try:
            records.append(_record(item, source))
        except ValueError as error:
            raise DataFileError(f"{source.meta}, line {number}: {error}") from error
    if not records:
        raise DataFileError(f"{source.meta} has no lines.")
    return records


def _record(item: Any, source: IvmMixSource) -> IvmMixRecord:
    if not isinstance(item, dict) or not isinstance(item.get("uuid"), (str, int)):
        raise DataFileError(f"it needs an object with `uuid` and `instruction`, got {str(item)[:80]!r}.")
    uuid, instructions = str(item["uuid"]), item.get("instruction")
    if isinstance(instructions, str):
        instructions = [instructions]
    if not isinstance(instructions, list) or not instructions or not all(isinstance(one, str) for one in instructions):
        raise DataFileError(f"`instruction` of {uuid} must be a text or a list of texts, got {instructions!r}.")
    image = item.get("image", f"img_{uuid}.jpg")
    if not isinstance(image, str):
        raise DataFileError(f"`image` of {uuid} must be a file name, got {image!r}.")
    boxes = item.get("boxes")
    return IvmMixRecord(
        uuid=uuid,
        instructions=tuple(instructions),
        image=file_in(source.images, image),
        mask=None if boxes is not None else file_in(source.masks, f"mask_{uuid}.jpg"),
        boxes=() if boxes is None else check_boxes(boxes),
        human=source.human,
    )


class IvmMixDataset(Dataset):
    """
    IVM-Mix-1M with the original's augmentation: a random part of each image, squashed to a square.

    Instruction and part are drawn from seed, epoch and the example's uuid alone, so that a resumed run sees what it
    would have seen. What each draws is the original's; it draws from the process's state instead.

    Args:
        sources (`Sequence[IvmMixSource]`): The parts of the data set.
        size (`int`): Side in pixels of image and mask.
        augment (`bool`): Take a random part (80 to 100 % of the area, aspect ratio changed by 3/4 to 4/3) and a random
            wording. Without it the whole image and the first wording.
        seed (`int`): Seed of what is drawn.
        skip_unreadable (`bool`): Take the next example for one whose files cannot be read, with a warning, as
            the original does; otherwise that is an error.

    Raises:
        DataFileError: If a source cannot be read.
    """

    def __init__(
        self,
        sources: Sequence[IvmMixSource],
        *,
        size: int = 1024,
        augment: bool = True,
        seed: int = 0,
        skip_unreadable: bool = False,
    ):
        if not sources:
            raise DataFileError("There is no source; give at least one IvmMixSource.")
        self.records = [record for source in sources for record in read_records(source)]
        self.size, self.augment, self.seed, self.skip_unreadable = size, augment, seed, skip_unreadable
        self._epoch = SharedEpoch()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def human_flags(self) -> list[bool]:
        """Per example whether people drew its mask."""
        return [record.human for record in self.records]

    def set_epoch(self, epoch: int) -> None:
        """Choose other parts and wordings; `accelerate` calls this at the start of each epoch."""
        self._epoch.set(epoch)

    def __getitem__(self, index: int) -> MaskingExample:
        self.records[index]  # also what ends an iteration, by its IndexError
        for step in range(len(self.records)):
            record = self.records[(index + step) % len(self.records)]
            try:
                return self._read(record, random.Random(f"{self.seed}/{int(self._epoch)}/{record.uuid}"))
            except DataFileError as error:
                if not self.skip_unreadable:
                    raise
                logger.warning("%s The next example is taken instead.", error)
        raise DataFileError("No example of the data set can be read; see the warnings above.")

    def _read(self, record: IvmMixRecord, rng: random.Random) -> MaskingExample:
        image = record.read_image()
        mask = record.read_mask(image.height, image.width)
        instruction = record.instructions[0]
        if self.augment:
            box = random_crop(image.height, image.width, rng)
            image = image.crop(box)
            mask = mask[box[1] : box[3], box[0] : box[2]]
            instruction = rng.choice(record.instructions)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return MaskingExample(image, instruction, resize_mask(mask, self.size, self.size), record.human)


def random_crop(height: int, width: int, rng: random.Random) -> tuple[int, int, int, int]:
    """
    A part of an image, drawn as torchvision's `RandomResizedCrop` does: 80 to 100 % of the area and an aspect ratio
    of 3/4 to 4/3, uniform in its logarithm; the largest centred part of such a ratio where ten tries do not fit.

    Returns:
        `tuple[int, int, int, int]`: `left, top, right, bottom` in pixels, the last two exclusive.
    """
    area, logarithms = height * width, tuple(map(math.log, CROP_RATIO))
    for _ in range(CROP_TRIES):
        target, ratio = area * rng.uniform(*CROP_SCALE), math.exp(rng.uniform(*logarithms))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    w = min(width, round(height * ratio))
    h = min(height, round(w / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


__all__ = [
    "IvmMixDataset",
    "IvmMixRecord",
    "IvmMixSource",
    "boxes_to_mask",
    "check_boxes",
    "normalise_heatmap",
    "random_crop",
    "read_records",
    "resize_mask",
]
