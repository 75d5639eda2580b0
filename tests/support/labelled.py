"""A small data set with everything that annotation formats disagree about."""

from pathlib import Path

import numpy as np
from PIL import Image

from reasonseg.data.labelled_images import LabelledImage, LabelledObject, LabelledRequest
from reasonseg.processing.image_loading import load_rgb_image
from reasonseg.processing.segments import mask_to_rle


SIZE = (24, 36)
_ROTATED = 6  # EXIF: the right side of the stored pixels is shown at the bottom


def box_mask(*boxes: tuple[int, int, int, int], holes: tuple[tuple[int, int, int, int], ...] = ()) -> np.ndarray:
    """bool, of SIZE: 1 in boxes (x1, y1, x2, y2), 0 in holes."""
    mask = np.zeros(SIZE, dtype=bool)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = True
    for x1, y1, x2, y2 in holes:
        mask[y1:y2, x1:x2] = False
    return mask


# A ring with an island in its hole, and another part; a box that overlaps it; two pixels that touch at a corner.
RING = box_mask((2, 2, 16, 14), (6, 6, 8, 8), (25, 15, 30, 20))
RING[4:11, 4:12] = False
RING[6:8, 6:8] = True
BOX = box_mask((10, 0, 20, 6))
CORNERS = box_mask((33, 20, 34, 21), (34, 21, 35, 22))


def labelled_images(folder: Path, splits: tuple[str | None, str | None] = (None, None)) -> list[LabelledImage]:
    """Four images of which one must be turned upright, in files below the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = _ROTATED
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "upright.png")
    Image.fromarray(np.rot90(noise).copy()).save(folder / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(noise).save(folder / "second split.png")
    Image.fromarray(noise).save(folder / "nothing.png")
    assert load_rgb_image(folder / "turned.jpg").size == SIZE[::-1]
    return [
        LabelledImage(
            "upright.png",
            SIZE,
            folder / "upright.png",
            (
                LabelledObject("the ring", mask_to_rle(RING), 0.75, span=(9, 14)),
                LabelledObject("a dog", None, 0.25, rejected=True, span=(22, 27)),
                LabelledObject("", mask_to_rle(BOX), 0.5, span=(30, 35)),
            ),
            (LabelledRequest("What is round?", "the ring [SEG], a dog [REJ], [SEG]."),),
            split=splits[0],
            model="org/model",
            revision="main",
        ),
        LabelledImage(
            "turned.jpg",
            SIZE,
            folder / "turned.jpg",
            (LabelledObject("crème: brûlée", mask_to_rle(CORNERS)), LabelledObject("the ring", mask_to_rle(BOX))),
            split=splits[0],
        ),
        LabelledImage(
            "second split.png",
            SIZE,
            folder / "second split.png",
            (LabelledObject("a crowd", mask_to_rle(np.ones(SIZE, dtype=bool)), is_crowd=True),),
            split=splits[1],
        ),
        LabelledImage(
            "nothing.png",
            SIZE,
            folder / "nothing.png",
            (LabelledObject("a dog", None, 0.125, rejected=True),),
            (LabelledRequest(None, "a dog [REJ]."),),
            split=splits[1],
        ),
    ]
