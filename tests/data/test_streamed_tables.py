"""Names of data sets, and what is said where `datasets` is not installed."""

import sys

import pytest

from reasonseg.data.streamed_tables import DataSetError, DataSetName, StreamedTables, image_source, read_name


def test_names(tmp_path):
    assert read_name(str(tmp_path)) == DataSetName(str(tmp_path), None, True)
    assert read_name("anna/cups") == DataSetName("anna/cups", None, False)
    assert read_name("anna/cups@v1.2") == DataSetName("anna/cups", "v1.2", False)
    assert read_name("hf://datasets/anna/cups@main") == DataSetName("anna/cups", "main", False)
    (tmp_path / "file").touch()
    for wrong, message in ((str(tmp_path / "file"), "is a file"), ("a/b/c", "neither a folder"), ("", "neither")):
        with pytest.raises(DataSetError, match=message):
            read_name(wrong)


def test_without_datasets_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        StreamedTables(str(tmp_path))


def test_what_a_row_holds():
    assert image_source({"bytes": b"x", "path": "a.png"}) == image_source(b"x") == b"x"
    assert image_source("a.png") == "a.png"
    for stored, message in (
        (None, "It has no image"),
        ({"bytes": None, "path": None}, "It has no image"),
        ({"bytes": None, "path": "gone.png"}, r"The file 'gone\.png' cannot be read"),
        (7, "type int"),
    ):
        with pytest.raises(ValueError, match=message):
            image_source(stored)
