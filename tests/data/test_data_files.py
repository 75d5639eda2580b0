"""JSON files and JSON lines: what ends a line, byte order marks, and where an error is."""

import contextlib
import gc

import pytest

from reasonseg.data.data_files import DataFileError, file_in, read_json, read_json_lines, without_garbage_collection


def test_only_a_line_feed_ends_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = [f"a{separator}b" for separator in "\u2028\u2029\x85"]
    lines = ['{"text": "' + text + '"}' for text in texts]
    path.write_bytes("\n".join([*lines, "", "  ", '"last"\r']).encode() + b"\n")
    assert list(read_json_lines(path)) == [*enumerate([{"text": text} for text in texts], start=1), (6, "last")]
    path.write_bytes(b'"' + "".join(chr(0x2028) for _ in range(3)).encode() + b'"')
    assert list(read_json_lines(path)) == [(1, "\u2028" * 3)]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": "\ufeff"}\n', encoding="utf-8-sig")
    assert list(read_json_lines(path)) == [(1, {"a": 1}), (2, {"a": "\ufeff"})]
    path.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "Expecting ',' delimiter, column 8"),
        (b"{'a': 1}", "Expecting property name enclosed in double quotes, column 2"),
        (b'{"a": "\xff"}', r"byte 8 \(0xff\) is not UTF-8"),
        (b'{"a": 1} {"a": 2}', "Extra data, column 10"),
        (b"[" * 100_000, "its lists or objects are nested too deeply"),
    ],
)
def test_an_error_names_file_line_and_column(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(DataFileError, match=rf"rows\.jsonl, line 3: {reason}\. Give one JSON value"):
        list(read_json_lines(path))
    problems = {}
    assert [number for number, _ in read_json_lines(path, problems=problems)] == [1, 4]
    assert list(problems) == [3]
    path.write_bytes(line)
    with pytest.raises(KeyError, match=r"rows\.jsonl is not a JSON file: "):
        read_json(path, error_class=KeyError)


def test_the_line_of_an_error_in_a_whole_file(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{\n "a": 1,\n "b": }\n', encoding="utf-8")
    with pytest.raises(DataFileError, match="Expecting value, line 3, column 7"):
        read_json(path)
    path.write_text('{"a": 1}', encoding="utf-16")
    with pytest.raises(DataFileError, match=r"byte 1 \(0xff\) is not UTF-8"):
        read_json(path)


def test_file_names_stay_in_their_folder(tmp_path):
    assert file_in(tmp_path, "a/b..c.png") == tmp_path / "a" / "b..c.png"
    for name in ("/etc/passwd", "../a.png", "a/../../b.png", "C:\\a.png", "\\\\host\\a.png", "..\\a.png"):
        with pytest.raises(ValueError, match="leads out of the folder"):
            file_in(tmp_path, name)
    for name in ("", "  ", 3, None, ["a.png"], "a\0.png"):
        with pytest.raises(ValueError, match="is not a file name"):
            file_in(tmp_path, name)
    for stored, named in (("e\u0301.png", "\xe9.png"), ("\xfc.png", "u\u0308.png")):  # as archives of others have it
        assert file_in(tmp_path, named) == tmp_path / named
        (tmp_path / stored).touch()
        assert file_in(tmp_path, named) == tmp_path / stored


@pytest.mark.parametrize("is_enabled", [True, False])
def test_garbage_is_collected_again_after_a_large_file(is_enabled):
    before, enable = gc.isenabled(), {True: gc.enable, False: gc.disable}
    try:
        enable[is_enabled]()
        with contextlib.suppress(DataFileError), without_garbage_collection():
            assert not gc.isenabled()
            raise DataFileError("damaged")
        assert gc.isenabled() == is_enabled
    finally:
        enable[before]()
