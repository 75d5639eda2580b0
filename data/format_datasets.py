"""Parquet files of the library `datasets`, read and written.

    data/SPLIT-00000-of-00001.parquet

There is a row per image: `image` (an Image column, the file inside), `file_name`, `height`, `width`, `requests` (of
`question`, `answer`), `model`, `revision`, and `objects`, a list of `label`, `rle` (`size`, `counts`; null where
nothing fits), `score`, `span`, `rejected`, `request`, `is_crowd`, `box_xyxy`, `area`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .annotation_formats import WritingOptions, Written
from .annotation_writing import upright_content
from .labelled_images import LabelledImage, LabelledObject


DEFAULT_SPLIT = "train"
# What the Hub recommends for a file, and what is kept in memory before it is written.
SHARD_BYTES = 500_000_000
_GROUP_BYTES = 32_000_000
_GROUP_ROWS = 256


def write_datasets(
    images: Iterable[LabelledImage], folder: Path, options: WritingOptions, shard_bytes: int = SHARD_BYTES
) -> Written:
    """Write parquet files that `datasets.load_dataset(FOLDER)` loads with an Image column; see the module and
    [`AnnotationFormat`].

    With linked images the column holds their paths; without images there is none.

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
    if options.images == "link" and isinstance(image.source, Path):
        row["image"] = {"bytes": None, "path": str(image.source.absolute())}
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
