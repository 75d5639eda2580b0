"""`segment` and `mask` over many files: bad ones, several processes on one folder, kills; as commands are started."""

import errno
import json
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli import results, segment
from reasonseg.cli.app import app
from reasonseg.cli.progress import step_progress
from reasonseg.folder_lock import FolderInUseError, FolderLock, alone_in
from tests.support.forked_python import fork_server
from tests.support.installed import EXECUTABLE, forked


ROOT = Path(__file__).parents[2]
KILLS = 10


def run(*arguments: object, code: int = 0):
    """The command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def draw(path: bytes | Path, size: tuple[int, int] = (60, 40), seed: int = 0) -> None:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    path = Path(os.fsdecode(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path, format="PNG")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two good images, and everything that people's folders hold besides."""
    folder = tmp_path / "in"
    draw(folder / "a.png")
    draw(folder / "sub" / "b.png")
    draw(os.fsencode(folder) + b"/caf\xe9.png", seed=1)
    draw(folder / f"{'long' * 62}.png", seed=2)
    draw(folder / f"{'long' * 61}more.png", seed=3)
    (folder / "broken.png").symlink_to("gone.png")
    (folder / "gone").symlink_to(tmp_path / "not mounted")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "ring").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (folder / "text.png").write_text("no image")
    draw(folder / "._a.png")
    draw(folder / ".thumbnails" / "a.png")
    draw(folder / "__MACOSX" / "a.png")
    (folder / "notes.txt").write_text("nothing")
    return folder


BAD = {
    "broken.png": "a link to 'gone.png', which does not exist",
    "gone": "a link to",
    "loop.png": "a link that leads back to itself",
    "ring": "a link to a folder that it lies in",
    "pipe.png": "a pipe, not a file",
    "text.png": "cannot be opened as an image",
}


def check_bad_ones_are_named(folder: Path, stderr: str) -> None:
    for name, reason in BAD.items():
        (line,) = [line for line in stderr.split("error: ") if line.startswith(f"{folder / name}: ")]
        assert reason in line
    assert "Left out: 2 hidden, 1 in __MACOSX." in stderr
    assert "notes.txt" not in stderr
    assert "Traceback" not in stderr


def test_segment_does_what_can_be_done_and_names_the_rest(folder, tmp_path):
    out = tmp_path / "out"
    command = ("segment", folder, "--phrase", "the red cup", "--model", "embedded", "--out", out, "--json")
    done = forked(*command, code=1)
    check_bad_ones_are_named(folder, done.stderr)
    assert "6 of 11 images failed" in " ".join(done.stderr.split())
    assert [json.loads(line) for line in done.stdout.split("\n")[:-1]] == records(out)
    by_stem = {Path(record["image"]).stem: record for record in records(out)}
    assert set(by_stem) == {"a", "b", r"caf\xe9", "long" * 62, "long" * 61 + "more"}
    names = [record["name"] for record in by_stem.values()]
    assert len(set(names)) == 5
    assert by_stem[r"caf\xe9"]["name"].startswith("caf_-")
    for record in by_stem.values():
        assert Image.open(out / record["overlay"]).size == (60, 40)
    again = run(*command, code=1)
    assert "5 of 6 images are done already" in again.stderr
    assert len(records(out)) == 5


def test_mask_does_what_can_be_done_and_names_the_rest(small_ivm, folder, tmp_path):
    out = tmp_path / "out"
    result = run("mask", folder, "Where?", "--model", small_ivm, "--out", out, code=1)
    check_bad_ones_are_named(folder, result.stderr)
    assert "6 of 11 images failed" in " ".join(result.stderr.split())
    names = {record["name"] for record in records(out)}
    assert {"a.png", "sub/b.png", f"{'long' * 62}.png"} <= names
    assert len(names) == 5
    assert all((out / name).is_file() for name in names)
    assert "5 of 6 images are done already" in run("mask", folder, "Where?", "-m", small_ivm, "-o", out, code=1).stderr


def test_questions_about_names_that_no_file_can_have(small_ivm, tmp_path):
    draw(tmp_path / "a.png")
    rows = [{"image": "a.png", "question": "Where \ud83d?"}, {"image": "x" * 400 + ".png", "question": "Where?"}]
    source = tmp_path / "q.jsonl"
    source.write_text("\ufeff" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run("mask", "--jsonl", source, "--model", small_ivm, "--out", tmp_path / "out", code=1)
    assert "x" * 400 in result.stderr
    assert "of 2 images failed" in " ".join(result.stderr.split())
    assert (tmp_path / "out" / "q.jsonl").is_file()
    source.write_text(json.dumps({"image": "a\0.png", "question": "Where?"}), encoding="utf-8")
    refused = run("mask", "--jsonl", source, "--model", small_ivm, "--out", tmp_path / "other", code=1)
    assert "no file has such a name" in " ".join(refused.stderr.split())


def test_a_folder_that_cannot_be_read_is_named(folder, tmp_path, monkeypatch):
    listdir = os.listdir

    def refuse(path):
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    command = ("--phrase", "the red cup", "--model", "embedded", "--out", tmp_path / "out")
    result = run("segment", folder / "a.png", folder / "sub", *command, code=1)
    assert f"{folder / 'sub'}: the folder cannot be read (Permission denied)" in result.stderr
    assert [Path(record["image"]).name for record in records(tmp_path / "out")] == ["a.png"]


@pytest.mark.slow
def test_two_processes_on_one_folder_write_every_line_once(tmp_path):
    for number in range(6):
        draw(tmp_path / "in" / f"{number}.png", seed=number)
    out = tmp_path / "out"
    command = ("segment", tmp_path / "in", "--phrase", "the red cup", "--reject-threshold", "0", "--model", "embedded")
    command = (*command, "--out", out)
    processes = [fork_server().start(EXECUTABLE, *command) for _ in range(2)]
    for process in processes:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert [Path(record["image"]).name for record in records(out)] == [f"{number}.png" for number in range(6)]
    written = {record["overlay"] for record in records(out)} | {
        found["mask"] for record in records(out) for found in record["segments"] if found["mask"]
    }
    assert {path.name for path in out.iterdir()} == {*written, "results.jsonl"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Without fork every run would import torch again.")
@pytest.mark.timeout(300)
def test_kills_leave_whole_lines_and_no_drafts(tmp_path):
    images = 4 * KILLS + 4  # a kill comes before the end of a second batch of two
    for number in range(images):
        draw(tmp_path / "in" / f"{number:02}.png", (400, 300), seed=number)
    out = tmp_path / "out"
    process = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).parents[1] / "support" / "kill_and_segment.py"),
            tmp_path / "in",
            out,
            str(KILLS),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    killed = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"images"')]
    assert len(killed) == KILLS
    assert any(record["drafts"] for record in killed), "no kill met a file that was being written"
    for record in killed:
        assert len(set(record["images"])) == len(record["images"])
    names = [Path(record["image"]).name for record in records(out)]
    assert names == [f"{number:02}.png" for number in range(images)]
    for record in records(out):
        Image.open(out / record["overlay"]).load()
    content, alone = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (out, tmp_path / "out-alone")
    )
    assert content == alone, "kills change no byte"


@pytest.mark.slow
def test_results_are_no_inputs(folder, tmp_path):
    """Neither of this run, nor of earlier ones, wherever they lie."""
    common = ("--phrase", "the red cup", "--reject-threshold", 0, "--model", "embedded", "--out")
    images = {"a.png", "b.png"}
    photos = tmp_path / "photos"
    draw(photos / "a.png")
    draw(photos / "sub" / "b.png")
    run("segment", photos, *common, photos / "first")
    assert len(list((photos / "first").glob("*.png"))) > 2
    for out in (photos / "second", photos, tmp_path):
        result = run("segment", photos, *common, out)
        assert {Path(record["image"]).name for record in records(out)} == images
        assert "from earlier runs" in result.stderr
    # As the shell writes out photos/*.png: results of this folder stand among the arguments.
    (photos / "results.jsonl").write_text("", encoding="utf-8")
    result = run("segment", *sorted(photos.glob("*.png")), *common, photos)
    assert [Path(record["image"]).name for record in records(photos)] == ["a.png"]
    assert f"Left out: {len(list(photos.glob('*.png'))) - 1} from earlier runs." in result.stderr
    refused = run("segment", photos / "first", *common, tmp_path / "other", code=1)
    assert "No image was found" in refused.stderr
    assert "from earlier runs" in refused.stderr
    # Who names a result means it.
    overlay = next((photos / "first").glob("*_overlay.png"))
    run("segment", overlay, *common, tmp_path / "other")
    assert len(records(tmp_path / "other")) == 1


def test_masked_images_are_inputs_only_where_they_are_named(small_ivm, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    draw(photos / "a.png")
    draw(photos / "sub" / "b.png")
    run("mask", photos, "Where?", "--model", small_ivm, "--out", photos / "masked")
    result = run("mask", photos, "Where?", "--model", small_ivm, "--out", out)
    assert {record["name"] for record in records(out)} == {"a.png", "sub/b.png"}
    assert "Left out: 2 from earlier runs." in result.stderr
    run("segment", photos / "masked", "--phrase", "the red cup", "--model", "embedded", "--out", tmp_path / "masks")
    assert len(records(tmp_path / "masks")) == 2


def test_a_name_that_another_process_has_taken_meanwhile(tmp_path, monkeypatch):
    """Two processes over different folders that hold images of one name."""
    draw(tmp_path / "one" / "a.png")
    draw(tmp_path / "two" / "a.png", seed=1)
    out = tmp_path / "out"
    common = ("--phrase", "the red cup", "--model", "embedded", "--out", out)
    load = segment.Segmenter.load

    def other_process_first(self, image):
        monkeypatch.setattr(segment.Segmenter, "load", load)
        run("segment", tmp_path / "two", *common)
        return load(self, image)

    monkeypatch.setattr(segment.Segmenter, "load", other_process_first)
    run("segment", tmp_path / "one", *common)
    two, one = records(out)
    assert two["name"] == "a"
    assert one["name"].startswith("a-")
    assert (out / one["overlay"]).is_file()


def test_a_full_disk_ends_the_run_and_a_bad_item_does_not(tmp_path, monkeypatch):
    for name in "abc":
        draw(tmp_path / "in" / f"{name}.png")
    command = ("segment", tmp_path / "in", "--phrase", "the red cup", "--model", "embedded", "--out", tmp_path / "out")
    save = results.ResultFolder.save_file

    def fail(number):
        def save_file(self, name, write):
            if name.startswith("b"):
                raise OSError(number, os.strerror(number))
            return save(self, name, write)

        monkeypatch.setattr(results.ResultFolder, "save_file", save_file)

    fail(errno.EIO)
    result = run(*command, code=1)
    assert [record["name"] for record in records(tmp_path / "out")] == ["a", "c"]
    assert "b.png: [Errno 5]" in result.stderr
    assert "1 of 3 images failed" in " ".join(result.stderr.split())
    fail(errno.ENOSPC)
    assert "No space left on device" in run(*command, "--overwrite", code=1).stderr
    assert [record["name"] for record in records(tmp_path / "out")] == ["a", "c"]


def read_terminal(terminal: int, seen: list[bytes]) -> None:
    try:
        while chunk := os.read(terminal, 4096):
            seen.append(chunk)
    except OSError:  # the other end was closed
        return


@pytest.mark.slow
def test_progress_on_a_terminal_leaves_standard_output_alone(tmp_path):
    """The bar is drawn on the terminal; what goes into a file is not drawn above it instead."""
    for number in range(3):
        draw(tmp_path / "in" / f"{number}.png", seed=number)
    terminal, other_end = pty.openpty()
    seen: list[bytes] = []
    reader = threading.Thread(target=read_terminal, args=(terminal, seen))
    reader.start()
    command = ("segment", tmp_path / "in", "--phrase", "the red cup", "--model", "embedded", "--out", tmp_path / "out")
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    pipes = {"stdout": subprocess.PIPE, "stderr": other_end, "text": True}
    process = subprocess.Popen([EXECUTABLE, *command, "--json"], env=env, **pipes)
    stdout, _ = process.communicate(timeout=200)
    os.close(other_end)
    reader.join(timeout=20)
    os.close(terminal)
    assert process.returncode == 0
    assert [json.loads(line) for line in stdout.split("\n")[:-1]] == records(tmp_path / "out")
    shown = b"".join(seen).decode()
    assert "3/3" in shown
    assert "0:00:0" in shown
    assert '"image"' not in shown


class Log:
    """Stands for a console that is not a terminal."""

    is_terminal = False

    def __init__(self):
        self.lines = []

    def print(self, line, **options):
        self.lines.append(line)


def test_progress_in_a_log(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = Log()
    with step_progress(log) as report:
        for done in range(6):
            report("Masking", done, 5)
            now[0] += 20.0
    assert log.lines == ["Masking: 2/5, 0:01:00 left", "Masking: 4/5, 0:00:20 left", "Masking: 5/5, 0:01:40 in all"]
    with step_progress(Log(), is_shown=False) as report:
        report("Masking", 0, 5)


def test_one_run_at_a_time(tmp_path):
    lock = FolderLock(tmp_path / "out")
    with lock.held(), lock.held():
        code = (
            "import sys; from pathlib import Path; from reasonseg.folder_lock import *\n"
            "try:\n    with alone_in(Path(sys.argv[1]), 0.1): print('taken')\n"
            "except FolderInUseError as error: print(error)"
        )
        other = subprocess.run([sys.executable, "-c", code, lock.folder], capture_output=True, text=True, check=True)
        assert "Another process writes to" in other.stdout
        assert lock.path.exists(), "the process that was refused has not removed it"
    with alone_in(lock.folder):
        pass
    assert list(lock.folder.iterdir()) == []
    with pytest.raises(ValueError, match="nothing"), alone_in(tmp_path / "new"):
        raise ValueError("nothing was written")
    assert not (tmp_path / "new").exists()
    assert issubclass(FolderInUseError, OSError)


@pytest.mark.slow
def test_two_evaluations_do_not_share_a_folder(tmp_path):
    with FolderLock(tmp_path / "out").held():
        options = ("--model", "embedded", "--dataset", "tabletop", "--scenes", "1", "--out", tmp_path / "out")
        refused = forked("evaluate", *options, code=1)
    assert "Another process writes to" in refused.stderr
