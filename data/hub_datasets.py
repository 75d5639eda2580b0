"""ReasonSeg and RefCOCO as they lie on the Hub: parquet files with images, read by the library `datasets`.

    Ricky06662/ReasonSeg_val, Ricky06662/ReasonSeg_test     one query per image, its mask as rows of yes and no
    lmms-lab/RefCOCO, lmms-lab/RefCOCOplus, lmms-lab/RefCOCOg    one outline per row with all its sentences

Both lack something of the originals: ReasonSeg's regions to ignore are targets there, as in GSVA's evaluation, and
its other queries are left out; RefCOCO's objects have one outline, also where the original has several. So numbers
that are measured on them are not the published ones.

`datasets` keeps the rows in a file that is mapped into memory, once for all workers. Of a row only the columns that
are used are read, the image is decoded once, and a mask when it is asked for.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..processing.image_loading import load_rgb_image, open_image
from ..processing.mask_reading import read_mask
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

    @property
    def path(self) -> Path:
        """The name in place of a file's, for [`LisaMixture`]."""
        return Path(self.name)

    def load_image(self) -> Image.Image:
        """The image, which is decoded already."""
        return self.image


Row = Mapping[str, Any]


class HubImages:
    """
    A split of one of these data sets.

    Args:
        name (`str`): A name on the Hub, or a folder with the same files. If its last part does not begin with
            `ReasonSeg_` or `RefCOCO`, its columns must be those of one of the two.
        split (`str`, *optional*): `val`, `testA` ...; both of ReasonSeg are called `test`, the default.
        revision (`str`, *optional*): A commit; the newest by default.
        rows (`Sequence`, *optional*): The rows, if they are loaded already.

    Raises:
        ValueError: If the data set is none of these, or has no such split.
        ImportError: If `datasets` is not installed.
        FileNotFoundError: If there is no such data set.

    Example:
        >>> data = HubImages("lmms-lab/RefCOCO", "testA")  # doctest: +SKIP
        >>> data[0].image, [(target.wordings[0], target.mask()) for target in data[0].targets]  # doctest: +SKIP
    """

    def __init__(
        self, name: str, split: str | None = None, revision: str | None = None, rows: Sequence[Row] | None = None
    ):
        self.name, self.split = name, split or "test"
        self._rows = _load_rows(name, self.split, revision) if rows is None else rows
        self._read = _reader_of(name, self._rows)

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
            image = _decode_image(row["image"])
            return self._read(row, image, what)
        except KeyError as error:
            raise DataFileError(f"{what} has no column {error}; it has {', '.join(row)}.") from None
        except ValueError as error:
            raise error if isinstance(error, DataFileError) else DataFileError(f"{what}: {error}") from None


def _reasoning_row(row: Row, image: Image.Image, what: str) -> HubImage:
    text = row["text"]
    if not isinstance(text, str):
        raise DataFileError(f"{what}: its `text` is {reprlib.repr(text)}; it must be a text.")
    return HubImage(str(row["image_id"]), image, [Target((text,), _mask_of(row["mask"], image, what))])


def _mask_of(stored: Any, image: Image.Image, what: str) -> Callable[[], np.ndarray]:
    size = image.height, image.width

    def decode() -> np.ndarray:
        if isinstance(stored, Mapping) and "counts" in stored:
            return read_mask(stored, size, f"{what}: its `mask`")
        if isinstance(stored, (Mapping, Image.Image)):
            return read_mask(_open_image(stored), size, f"{what}: its `mask`")
        try:
            mask = np.asarray(stored, dtype=bool)
        except ValueError:  # rows of different lengths
            mask = np.zeros(0, dtype=bool)
        if mask.shape != size:
            raise DataFileError(
                f"{what}: its `mask` has the shape {mask.shape}, its upright image {size}. If these are swapped, it "
                "was painted on an image that is not upright; use the original files."
            )
        return mask

    def decode_or_refuse() -> np.ndarray:
        try:
            return decode()
        except ValueError as error:
            raise error if isinstance(error, DataFileError) else DataFileError(str(error)) from None

    return decode_or_refuse


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
_COLUMNS = {("image", "mask", "text"): _reasoning_row, ("image", "answer", "segmentation"): _referring_row}


def _reader_of(name: str, rows: Sequence[Row]) -> Callable[[Row, Image.Image, str], HubImage]:
    last = name.rstrip("/").rsplit("/", maxsplit=1)[-1]
    for beginning, reader in _READERS.items():
        if last.startswith(beginning):
            return reader
    columns = list(rows[0]) if len(rows) else []
    for needed, reader in _COLUMNS.items():
        if set(needed) <= set(columns):
            return reader
    raise ValueError(
        f"{name!r} is read by nothing here; names end in {' or '.join(f'{key}...' for key in _READERS)}, or there are "
        f"the columns {' or '.join(', '.join(needed) for needed in _COLUMNS)}, not {', '.join(columns) or 'none'}."
    )


def _decode_image(stored: Any) -> Image.Image:
    return load_rgb_image(_open_image(stored) if isinstance(stored, Mapping) else stored)


def _open_image(stored: Any) -> Any:
    """What a column of images holds, as Pillow's image, not decoded yet, or the path of one.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(stored, Mapping):
        return stored
    if stored.get("bytes") is None:
        if not isinstance(stored.get("path"), str):
            raise ValueError(f"an image must have `bytes` or a `path`; it has {reprlib.repr(dict(stored))}.")
        return stored["path"]
    return open_image(stored["bytes"])


@dataclass(frozen=True)
class HubQuery:
    """
    The query of a row of ReasonSeg, as [`ReasoningImage`] has it.

    Args:
        image ([`HubImage`]): The row.
    """

    image: HubImage
    explanation: None = None

    @property
    def path(self) -> Path:
        return self.image.path

    @property
    def annotation(self) -> "HubQuery":
        return self

    @property
    def texts(self) -> list[str]:
        return [target.wordings[0] for target in self.image.targets]

    @property
    def is_sentence(self) -> bool:
        """The rows do not say it: what ends like a sentence is one, and else a name."""
        return self.texts[0].rstrip().endswith((".", "?", "!"))

    def load_image(self) -> Image.Image:
        return self.image.image

    def paint(self, size: tuple[int, int]) -> np.ndarray:
        """The map of [`Annotation.paint`]; there are no regions to ignore."""
        return self.image.targets[0].mask().astype(np.uint8)


class HubReasonSeg:
    """ReasonSeg of the Hub for training, in place of [`ReasonSeg`]; for arguments and errors see [`HubImages`]."""

    def __init__(self, name: str, split: str | None = None):
        self._images = HubImages(name, split)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> HubQuery:
        return HubQuery(self._images[index])


class ArrowRow(Mapping[str, Any]):
    """A row of a table, whose columns are read one by one."""

    def __init__(self, table: Any):
        self._table = table

    def __getitem__(self, column: str) -> Any:
        if column not in self._table.column_names:
            raise KeyError(column)
        stored = self._table.column(column)[0]
        # lists of lists, and arrays of `datasets`: as Python's they would take a second and 100 MB
        inner, shape = getattr(getattr(stored, "value", stored), "values", None), []
        while hasattr(inner := getattr(inner, "storage", inner), "value_lengths"):
            lengths = inner.value_lengths().unique()
            if len(lengths) != 1 or lengths.null_count:
                return stored.as_py()
            shape += [lengths[0].as_py()]
            inner = inner.flatten()
        if not shape or inner.null_count:
            return stored.as_py()
        return inner.to_numpy(zero_copy_only=False).reshape(-1, *shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


class _ArrowRows(Sequence[Row]):
    """The rows of a data set of the library `datasets`, as they are stored."""

    def __init__(self, data: Any):
        self._data = data.with_format("arrow")

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> Row:
        return ArrowRow(self._data[index])


def _load_rows(name: str, split: str, revision: str | None) -> Sequence[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            "Data sets of the Hub need the package datasets. Install it: pip install datasets"
        ) from error
    try:
        loaded = load_dataset(name, split=split, revision=revision)
    except ValueError as error:  # an unknown split
        raise ValueError(f"{name} cannot be read: {error}") from None
    return _ArrowRows(loaded) if hasattr(loaded, "with_format") else loaded


__all__ = ["ArrowRow", "HubImage", "HubImages", "HubQuery", "HubReasonSeg"]
