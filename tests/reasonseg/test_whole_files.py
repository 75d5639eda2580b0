import pytest

from reasonseg.whole_files import write_whole, written_whole


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "mask.png"
    target.write_bytes(b"old")

    def write_half():
        with written_whole(target) as draft:
            draft.write_bytes(b"half")
            assert target.read_bytes() == b"old"
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]
    assert target.read_bytes() == b"old"


def test_folders_are_made_and_the_file_is_replaced(tmp_path):
    target = tmp_path / "new" / "folder" / "notes.txt"
    write_whole(target, "é\n")
    assert target.read_bytes() == b"\xc3\xa9\n"
    write_whole(str(target), b"\x00")
    assert target.read_bytes() == b"\x00"
    assert [path.name for path in target.parent.iterdir()] == ["notes.txt"]


def test_the_temporary_is_hidden_and_found_by_no_ending(tmp_path):
    with written_whole(tmp_path / "a.json") as draft:
        draft.touch()
        assert draft.parent == tmp_path
        assert draft.name.startswith(".")
        assert not list(tmp_path.glob("*.json"))
    with written_whole(tmp_path / "a.png", suffix=".png") as draft:
        draft.touch()
        assert draft.suffix == ".png"
