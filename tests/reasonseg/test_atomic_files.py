import os
import subprocess
import sys

import pytest

from reasonseg.atomic_files import remove_drafts, write_whole, written_whole


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


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "x" * 240 + ".json"])
def test_the_longest_names(tmp_path, name):
    write_whole(tmp_path / name, "whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_drafts_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    drafts = [tmp_path / f".{name}.{ended.pid}.partial" for name in ("a.json", "b.json")]
    others = [tmp_path / "a.json", tmp_path / f".c.json.{os.getpid()}.partial", tmp_path / ".d.partial"]
    for path in (*drafts, *others):
        path.touch()
    (tmp_path / f".folder.{ended.pid}.partial").mkdir()
    remove_drafts(tmp_path, "a.json")
    assert [path.exists() for path in drafts] == [False, True]
    remove_drafts(tmp_path)
    assert [path.exists() for path in drafts] == [False, False]
    assert all(path.exists() for path in others)
    remove_drafts(tmp_path / "nowhere")
    remove_drafts(tmp_path / "a.json")


def test_the_draft_of_a_long_name_is_known_by_it(tmp_path):
    with written_whole(tmp_path / ("x" * 255), suffix=".png") as draft:
        draft.touch()
        killed = draft.rename(draft.with_name(draft.name.replace(str(os.getpid()), "4194305")))  # above all numbers
        remove_drafts(tmp_path, "other")
        assert killed.exists()
        remove_drafts(tmp_path, "x" * 255)
        assert not killed.exists()
        draft.touch()
