"""Rows of a data set with what a model has drawn in them, written as parquet files that `datasets` loads.

The columns of a row stay as they are; `objects` (see `data/format_datasets.py`), `answer`, `model`, `revision` and
`error` are added.
"""

from collections import deque
from pathlib import Path
from typing import Any

from .format_datasets import make_features, object_row
from .labelled_images import LabelledObject
from .streamed_tables import DataSetError


NEW_COLUMNS = ("objects", "answer", "model", "revision", "error")


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


__all__ = ["NEW_COLUMNS", "PartWriter", "error_columns", "output_features", "result_columns"]
