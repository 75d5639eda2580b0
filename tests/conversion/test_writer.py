"""A repository appears complete or not at all."""

import os
import socket
import subprocess
import sys

import pytest

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.writer import staging_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_target_appears_at_the_end(tmp_path):
    out = tmp_path / "deep" / "repo"
    with staging_folder(out) as folder:
        (folder / "file").write_text("x")
        assert not out.exists()
        assert folder.parent == out.parent
    assert names(out) == ["file"]
    assert names(out.parent) == ["repo"]


def test_an_empty_target_is_filled(tmp_path):
    out = tmp_path / "repo"
    out.mkdir()
    with staging_folder(out) as folder:
        (folder / "file").write_text("x")
    assert names(out) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_behind(tmp_path, error):
    def write():
        with staging_folder(tmp_path / "new" / "deep" / "repo") as folder:
            (folder / "file").write_text("x")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == []


def test_existing_targets_are_never_overwritten(tmp_path):
    out = tmp_path / "repo"
    out.mkdir()
    (out / "mine").write_text("x")
    for target in (out, out / "mine"):
        with pytest.raises(ConversionError, match="exists already"), staging_folder(target):
            pytest.fail("The block must not run.")
    assert names(tmp_path) == ["repo"]
    assert (out / "mine").read_text() == "x"


def test_a_target_that_appears_meanwhile_is_kept(tmp_path):
    out = tmp_path / "repo"

    def write():
        with staging_folder(out):
            out.mkdir()
            (out / "theirs").write_text("x")

    with pytest.raises(ConversionError, match="exists already"):
        write()
    assert names(tmp_path) == ["repo"]
    assert names(out) == ["theirs"]


def test_a_full_disk_is_reported_and_cleaned_up(tmp_path):
    with pytest.raises(ConversionError, match="No space left"), staging_folder(tmp_path / "repo") as folder:
        raise OSError(28, "No space left on device", str(folder / "model.safetensors"))
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="Elsewhere a process cannot be asked for without disturbing it.")
def test_leftovers_of_killed_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    abandoned = tmp_path / f".repo.{host}-{dead.pid}.partial"
    running = tmp_path / f".repo.{host}-{os.getppid()}.partial"
    other = tmp_path / f".other.{host}-{dead.pid}.partial"
    for folder in (abandoned, running, other):
        folder.mkdir()
    with staging_folder(tmp_path / "repo"):
        assert not abandoned.exists()
    assert names(tmp_path) == sorted([running.name, other.name, "repo"])
