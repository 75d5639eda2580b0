"""Tables of the library `datasets`: which rows are in which, however they are taken."""

import numpy as np
import pytest

from reasonseg.data.streamed_tables import MOST_SOURCES, DataSetError, StreamedTables, TableReader


datasets = pytest.importorskip("datasets", reason="The extra `data` (pip install datasets) is not installed.")
pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def reader(*sizes: int) -> TableReader:
    start, tables = 0, []
    for size in sizes:
        tables.append(pa.table({"number": range(start, start + size)}))
        start += size
    return TableReader(iter(tables))


def numbers(tables) -> list[list[int]]:
    return [table.column("number").to_pylist() for table in tables]


def test_portions_cut_tables_at_the_same_places():
    first = reader(3, 0, 3, 1)
    assert numbers(first.take(4)) == [[0, 1, 2], [3]]
    assert (first.position, first.has_more) == (4, True)
    assert numbers(first.take(4)) == [[4, 5], [6]]
    assert (first.position, first.has_more) == (7, False)
    assert numbers(first.take(4)) == []
    again = reader(3, 0, 3, 1)
    again.skip_to(4)
    assert numbers(again.take(4)) == [[4, 5], [6]]
    assert not reader().has_more


def test_sources_hold_every_row_once_and_in_order(tmp_path):
    for number in range(MOST_SOURCES + 60):
        parquet.write_table(pa.table({"number": [2 * number, 2 * number + 1]}), tmp_path / f"{number:04}.parquet")
    tables = StreamedTables(str(tmp_path))
    assert (tables.sources, tables.split) == (MOST_SOURCES, "train")
    rows = [row for source in range(tables.sources) for part in numbers(tables.read(source)) for row in part]
    assert rows == list(range(2 * MOST_SOURCES + 120))


def test_a_row_group_is_not_read_as_a_whole(tmp_path):
    """But page by page. Nor are features lost that the file does not hold itself, and a damaged one is named."""
    content, rows = np.random.default_rng(0).bytes(100_000), 400
    table = pa.table({"image": [content] * rows, "number": range(rows), "label": [1] * rows})
    pages = {"write_batch_size": 10, "use_dictionary": False, "compression": "none"}
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=rows, **pages)
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: image, dtype: binary}\n  - {name: number, dtype: int32}\n"
        "  - name: label\n    dtype:\n      class_label: {names: {'0': cat, '1': dog}}\n---\n"
    )
    tables = StreamedTables(str(tmp_path))
    before, peak, found = pa.total_allocated_bytes(), 0, []
    for part in tables.read(0):
        peak = max(peak, pa.total_allocated_bytes() - before)
        found += part.column("number").to_pylist()
        features = datasets.Features.from_arrow_schema(part.schema)
    assert found == list(range(rows))
    assert peak < 0.6 * table.nbytes
    assert features["label"].names == ["cat", "dog"]
    assert features["number"] == datasets.Value("int32")
    with (tmp_path / "a.parquet").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataSetError, match=r"a\.parquet"):
        list(tables.read(0))


def test_rows_on_the_disk_are_read_in_sources_of_a_thousand(tmp_path):
    datasets.Dataset.from_dict({"number": range(2500)}).save_to_disk(tmp_path / "saved")
    tables = StreamedTables(str(tmp_path / "saved"), "test")
    assert (tables.sources, tables.rows, tables.split) == (3, 2500, "test")
    found = [numbers(tables.read(source)) for source in range(3)]
    assert [row for source in found for part in source for row in part] == list(range(2500))
    assert {len(part) for part in found[0][:-1]} == {100}
    assert tables.version == StreamedTables(str(tmp_path / "saved")).version
