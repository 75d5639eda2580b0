"""Small annotation files of other tools, and checks of what is read from them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reasonseg.data.annotation_formats import ReadingOptions, find_format
from reasonseg.data.labelled_images import LabelledImage
from tests.support.labelled import SIZE, box_mask


HEIGHT, WIDTH = SIZE
BOX = (4, 3, 20, 12)
MASK = box_mask(BOX)
CORNERS = [4, 3, 20, 3, 20, 12, 4, 12]
HOLE = [8, 5, 12, 5, 12, 9, 8, 9]
WITH_HOLE = box_mask(BOX, holes=((8, 5, 12, 9),))
TWO = box_mask(BOX, (25, 15, 30, 20))
SECOND = [25, 15, 30, 15, 30, 20, 25, 20]


def counts_of(mask: np.ndarray) -> list[int]:
    """Run lengths, column by column, that begin with the background."""
    flat = np.concatenate([[False], mask.T.ravel()])
    ends = np.flatnonzero(np.diff(flat.astype(int)))
    return np.diff([0, *ends.tolist(), mask.size]).tolist()


def save_image(path: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, exif=exif)
    return path


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def read(name: str, source: Path, **options) -> list[LabelledImage]:
    return list(find_format(name).read(source, ReadingOptions(**options)))


def masks_of(images: list[LabelledImage]) -> list[tuple[str, np.ndarray]]:
    return [(found.label, found.pixels()) for image in images for found in image.objects]


def check_mask(images: list[LabelledImage], mask: np.ndarray, label: str = "cup") -> None:
    ((found, pixels),) = masks_of(images)
    assert found == label
    np.testing.assert_array_equal(pixels, mask)


def refused(name: str, source: Path, *words: str, **options) -> None:
    """One error, one sentence or a few, that holds these words."""
    with pytest.raises(ValueError, match=r".") as error:
        read(name, source, **options)
    for word in words:
        assert word in str(error.value), str(error.value)


def coco(folder: Path, *annotations: dict, orientation: int = 1, size=SIZE, bom: bool = False, **image) -> Path:
    """A file of one image whose annotations lack what is usual, with ids from 0."""
    save_image(folder / "images" / "a.jpg", orientation)
    content = {
        "images": [{"id": 0, "file_name": "a.jpg", "height": size[0], "width": size[1], **image}],
        "categories": [{"id": 0, "name": "cup"}, {"id": 7, "name": "dog"}],
        "annotations": [{"image_id": 0, "category_id": 0, "id": 0, **each} for each in annotations],
    }
    path = folder / "annotations" / "instances.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + json.dumps(content).encode())
    return path


def labelme(folder: Path, *shapes: dict, orientation: int = 1, name: str = "a.json", **content) -> Path:
    save_image(folder / "a.jpg", orientation)
    size = {} if orientation >= 5 else {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    given = {"version": "5.5.0", "flags": {}, "imagePath": "a.jpg", "imageData": None, **size}
    (folder / name).write_text(json.dumps({**given, "shapes": list(shapes), **content}), encoding="utf-8")
    return folder


def shape(points: list, kind: str | None = "polygon", label: str = "cup", **others) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **others}


def pairs(numbers: list) -> list:
    return np.reshape(numbers, (-1, 2)).tolist()
