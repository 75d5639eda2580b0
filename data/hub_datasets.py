"""ReasonSeg and RefCOCO as they lie on the Hub: parquet files with images, read by the library `datasets`.

    Ricky06662/ReasonSeg_val, Ricky06662/ReasonSeg_test     one query per image, its mask as rows of yes and no
    lmms-lab/RefCOCO, lmms-lab/RefCOCOplus, lmms-lab/RefCOCOg    one outline per row with all its sentences

Both lack something of the originals: ReasonSeg's regions to ignore are targets there, as in GSVA's evaluation, and
its other queries are left out; RefCOCO's objects have one outline, also where the original has several. So numbers
that are measured on them are not the published ones.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..processing.image_loading import load_rgb_image
from .data_files import DataFileError
from .mask_targets import Target, UndrawableMaskError
from .part_segmentation import draw_segmentation


@dataclass(frozen=True)
class HubImage:
    """
    Args:
        name (`str`): What the data set calls the row.
        image (`PIL.Image.Image`): Upright, in RGB.
        targets (`list[Target]`): What is asked about it, in the order of the row.
    """

    name: str
    image: Image.Image
    targets: list[Target]


Row = Mapping[str, Any]


class HubImages:
    """
    A split of one of these data sets.

    Args:
        name (`str`): A name on the Hub whose last part begins with `ReasonSeg_` or `RefCOCO`.
        split (`str`, *optional*): `val`, `testA` ...; both of ReasonSeg are called `test`, the default.
        revision (`str`, *optional*): A commit; the newest by default.
        rows (`Sequence`, *optional*): The rows, if they are loaded already.

    Raises:
        ValueError: If the name is none of these.
        ImportError: If `datasets` is not installed.
    """

    def __init__(
        self, name: str, split: str | None = None, revision: str | None = None, rows: Sequence[Row] | None = None
    ):
        self.name, self.split = name, split or "test"
        self._read = _reader_of(name)
        self._rows = _load_rows(name, self.split, revision) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> HubImage:
        """
        Raises:
            DataFileError: If a column is missing, or holds what its name does not say.
        """
        what = f"{self.name}, {self.split}, row {index}"
        row = self._rows[index]
        try:
            image = load_rgb_image(row["image"])
            return self._read(row, image, what)
        except KeyError as error:
            raise DataFileError(f"{what} has no column {error}; it has {', '.join(row)}.") from None
        except ValueError as error:
            raise error if isinstance(error, DataFileError) else DataFileError(f"{what}: {error}") from None


def _reasoning_row(row: Row, image: Image.Image, what: str) -> HubImage:
    text = row["text"]
    if not isinstance(text, str):
        raise DataFileError(f"{what}: its `text` is {reprlib.repr(text)}; it must be a text.")
    return HubImage(str(row["image_id"]), image, [Target((text,), _rows_of_mask(row["mask"], image, what))])


def _rows_of_mask(stored: Any, image: Image.Image, what: str) -> Callable[[], np.ndarray]:
    def decode() -> np.ndarray:
        try:
            mask = np.asarray(stored, dtype=bool)
        except ValueError:  # rows of different lengths
            mask = np.zeros(0, dtype=bool)
        if mask.shape != (image.height, image.width):
            raise DataFileError(
                f"{what}: its `mask` has the shape {mask.shape}, its upright image {(image.height, image.width)}. If "
                "these are swapped, it was painted on an image that is not upright; use the original files."
            )
        return mask

    return decode


def _referring_row(row: Row, image: Image.Image, what: str) -> HubImage:
    sentences, outline = row["answer"], row["segmentation"]
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise DataFileError(f"{what}: its `answer` is {reprlib.repr(sentences)}; it must be a list of texts.")

    def decode() -> np.ndarray:
        try:
            return draw_segmentation([list(outline)], (image.height, image.width), what)
        except UndrawableMaskError as error:
            raise DataFileError(str(error)) from None

    return HubImage(str(row["question_id"]), image, [Target((sentence,), decode) for sentence in sentences])


_READERS = {"ReasonSeg_": _reasoning_row, "RefCOCO": _referring_row}


def _reader_of(name: str) -> Callable[[Row, Image.Image, str], HubImage]:
    last = name.rsplit("/", maxsplit=1)[-1]
    for beginning, reader in _READERS.items():
        if last.startswith(beginning):
            return reader
    raise ValueError(f"{name!r} is read by nothing here; names end in {' or '.join(f'{key}...' for key in _READERS)}.")


def _load_rows(name: str, split: str, revision: str | None) -> Sequence[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            "Data sets of the Hub need the package datasets. Install it: pip install datasets"
        ) from error
    return load_dataset(name, split=split, revision=revision)


__all__ = ["HubImage", "HubImages"]
