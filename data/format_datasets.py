"""Parquet files of the library `datasets`, read and written.

    data/SPLIT-00000-of-00001.parquet

There is a row per image: `image` (an Image column, the file inside), `file_name`, `height`, `width`, `requests` (of
`question`, `answer`), `model`, `revision`, and `objects`, a list of `label`, `rle` (`size`, `counts`; null where
nothing fits), `score`, `span`, `rejected`, `request`, `is_crowd`, `box_xyxy`, `area`.
"""

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..processing.image_loading import MAX_IMAGE_PIXELS, open_image
from ..processing.mask_reading import read_mask
from .annotation_formats import COLUMNS, ReadingOptions, WritingOptions, Written
from .annotation_reading import IMAGE_SUFFIXES, ImageMasks, image_ending, read_each, read_head
from .annotation_writing import DEFAULT_SPLIT, linked_file, upright_content
from .data_files import DataFileError, local_name
from .hub_datasets import ArrowRow
from .labelled_images import LabelledImage, LabelledObject, LabelledRequest
from .streamed_tables import DataSetName, StreamedTables, image_column, image_content


# What the Hub recommends for a file, and what is kept in memory before it is written.
SHARD_BYTES = 500_000_000
_GROUP_BYTES = 32_000_000
_GROUP_ROWS = 256


def is_datasets(path: Path) -> bool:
    """Whether a path is a folder that `save_to_disk` wrote, or one with parquet files."""
    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return saved or any(True for pattern in ("*.parquet", "data/*.parquet") for _ in path.glob(pattern))


def read_datasets(source: str | Path, options: ReadingOptions) -> Iterator[LabelledImage]:
    """
    Read a data set of the library `datasets`, row by row as it streams.

    Rows are those of [`write_datasets`] or of `reasonseg segment --dataset`, of which those that could not be done are
    left out, or have an image, a mask (run lengths, an image, polygons, rows of yes and
    no; null where nothing fits; or a list of masks) and what it is called or what was asked: `columns` names them.
    Images and masks may be names of files, of the data set or of the folder that is chosen.

    Args:
        source (`str` or `Path`): A folder, or a name on the Hub.
        options ([`ReadingOptions`]): As chosen.

    Raises:
        DataFileError: A row cannot be used.
        ValueError: There is no such data set, split or column.
        ImportError: `datasets` is not installed.
    """
    tables = StreamedTables(str(source), options.split, options.config, options.revision)
    files = tables.origin if options.images is None else DataSetName(str(options.images), None, is_folder=True)
    rows = _rows(tables)
    first = next(rows, None)
    columns = {} if first is None else _columns_of(first[1], options.columns)
    class_names = None if first is None else _class_names(first[1], columns)
    names: set[str] = set()

    def read(numbered: tuple[int, Any]) -> LabelledImage | None:
        number, table = numbered
        what, row = f"{tables.name}, {tables.split}, row {number}", ArrowRow(table)
        is_own = "mask" not in columns
        if is_own and "error" in row and row["error"] is not None:
            options.left_out["rows that could not be done"] += 1
            return None
        stored = row[columns["image"]]
        try:
            content = _image_of(stored, files)
            head = read_head(content, options.max_image_pixels)
        except ValueError as error:
            raise DataFileError(f"{what}: {error}") from None
        named = _file_name(row[columns["file_name"]] if "file_name" in columns else None)
        if PurePosixPath(named).suffix.lower() not in IMAGE_SUFFIXES:
            named = (named or f"{tables.split}-{number:08d}") + image_ending(content, options.max_image_pixels)
        if named in names:  # as where each row has one question, or one object
            named = str(PurePosixPath(named).with_stem(f"{PurePosixPath(named).stem}-{number:08d}"))
        names.add(named)
        masks = ImageMasks(head, None, options, what, tool_frame="upright" if is_own else None)
        if is_own:
            objects, requests = _own_row(row, masks, _question(row, options.columns, masks))
        else:
            objects, requests = _plain_row(row, columns, masks, class_names, files)
        return LabelledImage(
            file_name=named,
            size=head.upright,
            source=content,
            objects=tuple(objects),
            requests=tuple(requests),
            split=tables.split,
            **{name: row[name] for name in ("model", "revision") if name in row},
        )

    return read_each(rows if first is None else chain((first,), rows), read, f"{tables.name}, {tables.split}")


def _rows(tables: StreamedTables) -> Iterator[tuple[int, Any]]:
    """Each row by its number, as a table of its own."""
    number = 0
    for part in range(tables.sources):
        for table in tables.read(part):
            for row in range(table.num_rows):
                yield number, table.slice(row, 1)
                number += 1


def _columns_of(table: Any, named: dict[str, str]) -> dict[str, str]:
    """The columns that are read, by what they hold."""
    present = table.column_names
    if missing := [column for column in named.values() if column not in present]:
        raise ValueError(f"There is no column {missing[0]!r}; there are {', '.join(present)}.")
    columns = {name: name for name in COLUMNS if name in present} | named
    if "image" not in columns:
        columns["image"] = image_column(table)
    if _has_own_objects(table) and "mask" not in named:
        columns.pop("mask", None)
    elif "mask" not in columns:
        raise ValueError(
            f"There is no column of masks among {', '.join(present)}; say which by the column `mask` "
            "(--column mask=NAME)."
        )
    return columns


def _has_own_objects(table: Any) -> bool:
    """Whether there is a column `objects` with masks; data sets of boxes have one without."""
    kind = table.schema.field("objects").type if "objects" in table.column_names else None
    return "rle" in {field.name for field in getattr(getattr(kind, "value_type", None), "fields", ())}


def _class_names(table: Any, columns: dict[str, str]) -> list[str] | None:
    """What the numbers of the column of labels are called, where `datasets` knows it."""
    from datasets import Features

    feature = Features.from_arrow_schema(table.schema).get(columns.get("label", ""))
    return getattr(getattr(feature, "feature", feature), "names", None)  # of a list, those of its entries


def _image_of(stored: Any, files: DataSetName) -> bytes | Path:
    """The content of an image, or its file: only below the data set, or below the folder that was named for that."""
    if isinstance(stored, Mapping):
        stored = stored.get("path") if stored.get("bytes") is None else stored["bytes"]
    if isinstance(stored, bytes):
        return stored
    path = stored
    if not path:
        raise ValueError("It has no image.")
    if not isinstance(path, str):
        raise ValueError(f"Its image is of type {type(path).__name__}; it must be one image, or the name of its file.")
    try:
        address = files.address(path)
    except ValueError as error:
        raise ValueError(f"{error} Say where it may lie: images='FOLDER'.") from None
    return files.content(path) if "::" in address or not files.is_folder else Path(address)


def _file_name(named: Any) -> str:
    """What a row calls its image, below the folder of any data set; empty where it does not."""
    name = local_name(named) if isinstance(named, str) else ""
    return PurePosixPath(name).as_posix() if name.strip(". ") and "\0" not in name else ""


def _plain_row(
    row: Mapping[str, Any],
    columns: dict[str, str],
    masks: ImageMasks,
    class_names: list[str] | None,
    files: DataSetName,
) -> tuple[list[LabelledObject], list[LabelledRequest]]:
    """One mask, or a list of them, with what it is called and what was asked."""
    given, labels = row[columns["mask"]], row[columns["label"]] if "label" in columns else ""
    several = isinstance(given, list) and (not given or isinstance(given[0], (Mapping, type(None))))
    if isinstance(given, np.ndarray) and given.ndim == 3 and _is_bitmap(given):
        given, several = list(given), True
    if not several:
        given, labels = [given], [labels]
    if not isinstance(labels, list):
        labels = [labels] * len(given)
    if len(labels) != len(given):
        raise DataFileError(f"{masks.what} has {len(given)} masks and {len(labels)} labels; give one for each.")
    objects = []
    for number, (mask, label) in enumerate(zip(given, labels, strict=True), start=1):
        what = f"mask number {number}" if several else "its mask"
        if class_names is not None and isinstance(label, int) and 0 <= label < len(class_names):
            label = class_names[label]
        if not isinstance(label, (str, type(None))):
            raise DataFileError(f"{masks.what}, {what}: its label is {reprlib.repr(label)}; it must be a text.")
        if mask is None:
            found = masks.rejected(label or "")
        else:
            found = masks.object(label or "", _mask_of(mask, masks, files, what), what)
        if found is not None:
            objects.append(found)
    asked = _question(row, columns, masks)
    return objects, [LabelledRequest(asked)] if asked else []


def _question(row: Mapping[str, Any], columns: Mapping[str, str], masks: ImageMasks) -> str | None:
    asked = row[columns["text"]] if "text" in columns else None
    if not isinstance(asked, (str, type(None))):
        raise DataFileError(f"{masks.what}: its question is {reprlib.repr(asked)}; it must be a text.")
    return asked


def _mask_of(stored: Any, masks: ImageMasks, files: DataSetName, what: str) -> Any:
    """A mask of any kind as [`ImageMasks`] takes it."""
    if isinstance(stored, (str, bytes)) or (isinstance(stored, Mapping) and "counts" not in stored):
        try:
            content = image_content(stored, files)
            with open_image(content, masks.options.max_image_pixels or MAX_IMAGE_PIXELS) as opened:
                return read_mask(opened, what="The image")
        except ValueError as error:
            raise DataFileError(f"{masks.what}, {what}: {error}") from None
    if not isinstance(stored, np.ndarray) or stored.shape in (masks.head.upright, masks.head.stored):
        return stored
    return stored if _is_bitmap(stored) else stored.tolist()  # outlines that have as many corners each


def _is_bitmap(values: np.ndarray) -> bool:
    """Whether numbers are yes and no of pixels, and no corners of outlines, also where an image has another size."""
    return values.dtype == bool or (min(values.shape[-2:]) > 2 and bool(np.isin(values, (0, 1, 255)).all()))


def _own_row(
    row: Mapping[str, Any], masks: ImageMasks, question: str | None
) -> tuple[list[LabelledObject], list[LabelledRequest]]:
    """What [`write_datasets`] has written, or `reasonseg segment --dataset`, which has one answer, to the question in
    the column that is named for it."""
    answered = [{"question": question, "answer": row["answer"]}] if row.get("answer") else []
    objects, asked = [], row.get("requests") or answered
    for number, each in enumerate(row["objects"] or [], start=1):
        what = f"object number {number}"
        if not isinstance(each, Mapping) or "rle" not in each:
            raise DataFileError(f"{masks.what}, {what} is {reprlib.repr(each)}; it must have an `rle`.")
        others = {name: each.get(name) for name in ("score", "span", "request", "is_crowd", "rejected")}
        others["span"] = None if others["span"] is None else tuple(others["span"])
        others = {name: value for name, value in others.items() if value is not None}
        if not 0 <= others.get("request", 0) < max(1, len(asked)):
            raise DataFileError(
                f"{masks.what}, {what}: its request is {others['request']}, and the row has {len(asked)}, counted "
                "from 0."
            )
        label = each.get("label") or ""
        if each["rle"] is None:
            found = masks.rejected(label, **others)
        else:
            found = masks.object(label, dict(each["rle"]), what, **others)
        if found is not None:
            objects.append(found)
    return objects, [LabelledRequest(each.get("question"), each.get("answer")) for each in asked]


# ---- writing --------------------------------------------------------------------------------------------------------


def write_datasets(
    images: Iterable[LabelledImage], folder: Path, options: WritingOptions, shard_bytes: int = SHARD_BYTES
) -> Written:
    """Write parquet files that `datasets.load_dataset(FOLDER)` loads with an Image column; see the module and
    [`AnnotationFormat`].

    With linked images the column holds their paths, but for one that its EXIF orientation turns; without images there
    is none.

    Args:
        shard_bytes (`int`): Size of the images and masks after which another file begins.

    Raises:
        ImportError: `datasets` is not installed.
    """
    written = Written()
    features = make_features(with_images=options.images != "none")
    shards: dict[str, _Shards] = {}
    try:
        for image in images:
            split = image.split or DEFAULT_SPLIT
            if split not in shards:
                shards[split] = _Shards(folder / "data", split, features, shard_bytes)
            shards[split].add(*_row(image, options))
            written.images += 1
            written.masks += sum(1 for _ in image.drawn)
            written.rejected += sum(1 for _ in image.rejected)
        if not shards:
            shards[DEFAULT_SPLIT] = _Shards(folder / "data", DEFAULT_SPLIT, features, shard_bytes)
    finally:
        for writer in shards.values():
            writer.close()
    return written


def make_features(with_images: bool = True) -> Any:
    """
    The columns as `datasets.Features`.

    Raises:
        ImportError: `datasets` is not installed.
    """
    try:
        from datasets import Features, Image, List, Value
    except ImportError as error:
        raise ImportError("Parquet files need the package datasets. Install it: pip install datasets") from error
    text, number = Value("string"), Value("int32")
    objects = {
        "label": text,
        "rle": {"size": List(number), "counts": text},
        "score": Value("float64"),
        "span": List(number),
        "rejected": Value("bool"),
        "request": number,
        "is_crowd": Value("bool"),
        "box_xyxy": List(number),
        "area": Value("int64"),
    }
    return Features(
        {
            **({"image": Image()} if with_images else {}),
            "file_name": text,
            "height": number,
            "width": number,
            "requests": List({"question": text, "answer": text}),
            "objects": List(objects),
            "model": text,
            "revision": text,
        }
    )


def _row(image: LabelledImage, options: WritingOptions) -> tuple[dict[str, Any], int]:
    """A row and about how many bytes it has."""
    height, width = image.size
    row: dict[str, Any] = {
        "file_name": image.file_name,
        "height": height,
        "width": width,
        "requests": [{"question": asked.question, "answer": asked.answer} for asked in image.requests],
        "objects": [object_row(found) for found in image.objects],
        "model": image.model,
        "revision": image.revision,
    }
    size = 1000 + sum(len(found.mask["counts"]) for found in image.objects if found.mask is not None)
    if (linked := linked_file(image, options)) is not None:
        row["image"] = {"bytes": None, "path": str(linked)}
    elif options.images != "none":
        content = upright_content(image)
        row["image"] = {"bytes": content, "path": image.file_name}
        size += len(content)
    return row, size


def object_row(found: LabelledObject) -> dict[str, Any]:
    """One entry of the column `objects`."""
    return {
        "label": found.label,
        "rle": found.mask,
        "score": found.score,
        "span": None if found.span is None else list(found.span),
        "rejected": found.rejected,
        "request": found.request,
        "is_crowd": found.is_crowd,
        "box_xyxy": None if (box := found.box_xyxy) is None else list(box),
        "area": found.area,
    }


class _Shards:
    """The files of one split, `SPLIT-00000-of-00002.parquet` and so on, written a group of rows at a time."""

    def __init__(self, folder: Path, split: str, features: Any, shard_bytes: int):
        folder.mkdir(exist_ok=True)
        self.folder, self.split, self.shard_bytes = folder, split, shard_bytes
        self.schema = features.arrow_schema
        self._paths: list[Path] = []
        self._begin()

    def _begin(self) -> None:
        import pyarrow.parquet as parquet

        self._paths.append(self.folder / f"{self.split}-{len(self._paths):05d}.partial")
        self._file = parquet.ParquetWriter(self._paths[-1], self.schema)
        self._rows: list[dict[str, Any]] = []
        self._waiting = self._written = 0

    def add(self, row: dict[str, Any], size: int) -> None:
        if self._written + self._waiting and self._written + self._waiting + size > self.shard_bytes:
            self._end()
            self._begin()
        self._rows.append(row)
        self._waiting += size
        if self._waiting >= _GROUP_BYTES or len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._file.write_table(pyarrow.Table.from_pylist(self._rows, schema=self.schema))
            self._written += self._waiting
        self._rows, self._waiting = [], 0

    def _end(self) -> None:
        self._flush()
        self._file.close()

    def close(self) -> None:
        """Write what is left, and name the files by their number."""
        self._end()
        for number, path in enumerate(self._paths):
            path.rename(path.with_name(f"{self.split}-{number:05d}-of-{len(self._paths):05d}.parquet"))


__all__ = ["make_features", "write_datasets"]
