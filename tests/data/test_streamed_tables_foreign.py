"""Tables of the library `datasets`: which rows are in which, however they are taken."""

import pytest

from reasonseg.data.streamed_tables import MOST_SOURCES, StreamedTables, TableReader


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


def test_rows_on_the_disk_are_read_in_sources_of_a_thousand(tmp_path):
    datasets.Dataset.from_dict({"number": range(2500)}).save_to_disk(tmp_path / "saved")
    tables = StreamedTables(str(tmp_path / "saved"), "test")
    assert (tables.sources, tables.rows, tables.split) == (3, 2500, "test")
    found = [numbers(tables.read(source)) for source in range(3)]
    assert [row for source in found for part in source for row in part] == list(range(2500))
    assert {len(part) for part in found[0][:-1]} == {100}
    assert tables.version == StreamedTables(str(tmp_path / "saved")).version
