"""Rows of a data set with what a model has drawn in them, as parquet files that `datasets` loads, written and read.

The columns of a row stay as they are; `objects` (see `data/format_datasets.py`), `answer`, `model`, `revision` and
`error` are added.
"""

from collections import deque
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..processing.image_loading import MAX_IMAGE_PIXELS, load_rgb_image, open_image
from ..processing.regions import read_rle
from ..processing.segments import Segment, SegmentationResult
from .format_datasets import make_features, object_row
from .labelled_images import LabelledObject
from .streamed_tables import DataSetError


NEW_COLUMNS = ("objects", "answer", "model", "revision", "error")
# Rows that are held at a time while a part is read.
_ROWS_AT_ONCE = 16


def result_columns(result: Any) -> dict[str, Any]:
    """The new columns of a row from its `SegmentationResult`."""
    objects = [
        LabelledObject(segment.label or "", segment.rle, segment.score, segment.rejected, segment.span)
        for segment in result.segments
    ]
    return {"answer": result.text, "objects": [object_row(found) for found in objects], "error": None}


def error_columns(error: str) -> dict[str, Any]:
    """The new columns of a row that could not be done."""
    return {"answer": None, "objects": [], "error": error}


def output_features(table: Any, dropped: tuple[str, ...]) -> Any:
    """Return the features of the rows that are written, from those that are read.

    Raises:
        DataSetError: a column has the name of a new one, or one that is to be dropped is not there.
    """
    from datasets import Features, Value

    features = dict(Features.from_arrow_schema(table.schema))
    if unknown := sorted(set(dropped) - set(features)):
        raise DataSetError(f"There is no column {unknown[0]!r} to drop; there are {', '.join(features)}.")
    features = {name: feature for name, feature in features.items() if name not in dropped}
    if taken := [name for name in NEW_COLUMNS if name in features]:
        raise DataSetError(
            f"The data set has a column {taken[0]!r} already, which is the name of a new one. Leave it out with "
            f"--drop-column {taken[0]}."
        )
    text = Value("string")
    new = {"objects": make_features()["objects"], "answer": text, "model": text, "revision": text, "error": text}
    return Features({**features, **new})


class PartWriter:
    """Writes a part table by table, each as soon as its rows are done, so that memory holds no whole part.

    Args:
        path: of the file.
        model, revision: what the columns of these names say.
        dropped: columns that are not copied.
    """

    def __init__(self, path: Path, model: str, revision: str | None, dropped: tuple[str, ...]):
        self.path, self.model, self.revision, self.dropped = path, model, revision, dropped
        self.rows = self.failed = 0
        self._waiting: deque[Any] = deque()
        self._results: dict[int, dict[str, Any]] = {}
        self._writer: Any = None
        self._schema: Any = None

    def expect(self, table: Any) -> None:
        """Take the rows that come next."""
        self._waiting.append(table)

    def add(self, number: int, result: dict[str, Any]) -> None:
        """Take what has become of a row of the part; in any order."""
        self._results[number] = result
        self.failed += result["error"] is not None
        while self._waiting and all(
            self.rows + offset in self._results for offset in range(self._waiting[0].num_rows)
        ):
            self._write(self._waiting.popleft())

    def _write(self, table: Any) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        common = {"model": self.model, "revision": self.revision}
        results = [{**self._results.pop(self.rows + offset), **common} for offset in range(table.num_rows)]
        if self._writer is None:
            self._schema = output_features(table, self.dropped).arrow_schema
            # Chosen by name, so that another default of a later release changes no file.
            self._writer = pq.ParquetWriter(self.path, self._schema, compression="snappy", version="2.6")
        columns = [
            pa.array([result[field.name] for result in results], field.type)
            if field.name in NEW_COLUMNS
            else table.column(field.name)
            for field in self._schema
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=table.num_rows)
        self.rows += table.num_rows

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def part_schema(path: Path) -> Any:
    """The columns of a part (`pyarrow.Schema`)."""
    import pyarrow.parquet as pq

    return pq.read_schema(path)


def read_part(
    path: Path, columns: Sequence[str], numbers: Container[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows of a part with their numbers in it, a few held at a time.

    Args:
        path: of the file.
        columns: those that are read.
        numbers: of the rows that are wanted, by default all; groups of rows without one are passed over.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        number = 0
        for group in range(file.num_row_groups):
            end = number + file.metadata.row_group(group).num_rows
            if numbers is not None and not any(wanted in numbers for wanted in range(number, end)):
                number = end
                continue
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
                for row in range(batch.num_rows):
                    if numbers is None or number in numbers:
                        yield number, batch.slice(row, 1).to_pylist()[0]
                    number += 1


def row_result(row: dict[str, Any], image: bytes) -> SegmentationResult:
    """
    What the model has drawn in a row, and its image.

    Args:
        row: with the columns `objects` and `answer`.
        image: the file that its column of images holds.

    Raises:
        ValueError: it is no image, or of another size than the masks.
    """
    masks = [None if each["rle"] is None else read_rle(each["rle"], each["rle"]["size"]) for each in row["objects"]]
    sizes = [mask.shape for mask in masks if mask is not None]
    limit = max([MAX_IMAGE_PIXELS, *(height * width for height, width in sizes)])  # it was accepted before
    with open_image(image, limit) as opened:
        upright = load_rgb_image(opened, limit)
    segments = [
        Segment(each["label"], None, mask, each["score"], rejected=each["rejected"])
        for each, mask in zip(row["objects"], masks, strict=True)
    ]
    size = sizes[0] if sizes else (upright.height, upright.width)
    return SegmentationResult(row["answer"] or "", segments, size, upright)


__all__ = [
    "NEW_COLUMNS",
    "PartWriter",
    "error_columns",
    "output_features",
    "part_schema",
    "read_part",
    "result_columns",
    "row_result",
]
