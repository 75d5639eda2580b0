"""Names of data sets, and what is said where `datasets` is not installed."""

import os
import sys
import zipfile

import pytest

from reasonseg.data.streamed_tables import DataSetError, DataSetName, StreamedTables, image_content, read_name


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


def test_what_a_row_holds(tmp_path):
    files, hub = read_name(str(tmp_path)), read_name("anna/cups")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"x")
    (tmp_path / "link.png").symlink_to(tmp_path / "sub" / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.png", "x")
    (tmp_path / "damaged.zip").write_bytes(b"PK")
    os.mkfifo(tmp_path / "pipe.png")
    named = ("sub/a.png", f"{tmp_path}/sub/a.png", "link.png", "sub/../sub/a.png")
    for stored in ({"bytes": b"x", "path": "a.png"}, b"x", *named, {"bytes": None, "path": "sub/a.png"}):
        assert image_content(stored, files) == b"x", stored
    inside = f"zip://a.png::{tmp_path}/all.zip"
    assert files.address(inside) == inside
    assert hub.address("hf://datasets/anna/cups@main/a.png") == "hf://datasets/anna/cups@main/a.png"
    for stored, message in (
        (None, "It has no image"),
        ({"bytes": None, "path": None}, "It has no image"),
        ({"bytes": None, "path": "gone.png"}, r"The file 'gone\.png' cannot be read"),
        *((name, "cannot be read") for name in ("sub", "pipe.png", "x" * 300, f"zip://a.png::{tmp_path}/damaged.zip")),
        (7, "type int"),
    ):
        with pytest.raises(ValueError, match=message):
            image_content(stored, files)
    # rows of a stranger name what they like
    (tmp_path.parent / f"{tmp_path.name}-private").mkdir()
    outside = ("/etc/passwd", f"{tmp_path}-private/a.png", "../a.png", "sub/../../a.png", "file:///etc/passwd")
    outside += ("a\0.png", "zip://a.png::/etc/a.zip", f"simplecache::{tmp_path}/sub/a.png")
    remote = ("https://localhost/a.png", "s3://bucket/a.png", "reference://::hf://datasets/anna/cups/a.json")
    others = ("hf://datasets/anna/cups-private/a.png", "hf://datasets/anna/cups/../b/a.png", "hf://anna/cups/a.png")
    for name in (*outside, *remote):
        with pytest.raises(ValueError, match="none of the data set's own"):
            files.content(name)
    for name in (*outside, *remote, *others, "a.png", f"{tmp_path}/sub/a.png"):
        with pytest.raises(ValueError, match="none of the data set's own"):
            hub.content(name)
