import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reasonseg.cli import result_lines
from reasonseg.cli.failures import CommandError, path_text
from reasonseg.cli.results import ANSWER_FIELDS, RESULTS_NAME, ResultFolder, file_sha256
from reasonseg.data.data_files import file_in
from reasonseg.folder_lock import LOCK_NAME


REQUEST = {"model": "m", "text": "where?", "threshold": 0.5}


@pytest.fixture
def images(tmp_path) -> list[Path]:
    paths = [tmp_path / "in" / f"{name}.png" for name in "abc"]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def finish(results: ResultFolder, image: Path, mask: str | None = None, answers: bool = False) -> dict:
    """Write what `segment` writes for one image."""
    name = results.output_names([image])[image]
    masks = [results.save_file(mask, lambda path: path.write_bytes(b"mask"))] if mask else [None]
    record = {
        "image": str(image),
        "sha256": file_sha256(image),
        "name": name,
        "segments": [{"mask": file} for file in masks],
        "overlay": results.save_file(f"{name}_overlay.png", lambda path: path.write_bytes(b"overlay")),
        "request": results.request,
    }
    for field in ANSWER_FIELDS if answers else ():
        record[field] = results.save_file(f"{name}_{field}", lambda path: path.write_bytes(b"answer"))
    results.add(record)
    return record


def test_nothing_is_made_before_the_first_result(tmp_path, images):
    results = ResultFolder(tmp_path / "out", REQUEST)
    assert results.pending(images) == images
    assert not (tmp_path / "out").exists()


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path, images):
    first = ResultFolder(tmp_path / "out", REQUEST)
    finish(first, images[0], mask="a_mask_0.png")
    finish(first, images[1])
    second = ResultFolder(tmp_path / "out", REQUEST)
    assert second.pending(images) == [images[2]]
    finish(second, images[2])
    lines = (tmp_path / "out" / RESULTS_NAME).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["image"] for line in lines] == [str(image) for image in images]


def test_a_line_that_a_killed_run_did_not_finish_is_done_again(tmp_path, images):
    first = ResultFolder(tmp_path / "out", REQUEST)
    finish(first, images[0])
    finish(first, images[1])
    path = tmp_path / "out" / RESULTS_NAME
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-10], encoding="utf-8")
    second = ResultFolder(tmp_path / "out", REQUEST)
    assert second.pending(images) == images[1:]
    finish(second, images[1])
    assert path.read_text(encoding="utf-8") == whole


@pytest.mark.parametrize("lost", ["a_mask_0.png", "a_overlay.png"])
def test_an_image_whose_files_are_gone_is_done_again(tmp_path, images, lost):
    finish(ResultFolder(tmp_path / "out", REQUEST), images[0], mask="a_mask_0.png")
    (tmp_path / "out" / lost).unlink()
    assert ResultFolder(tmp_path / "out", REQUEST).pending(images[:1]) == images[:1]


def test_answers_that_are_missing_are_made_where_they_are_asked_for(tmp_path, images):
    finish(ResultFolder(tmp_path / "out", REQUEST), images[0])
    finish(ResultFolder(tmp_path / "out", REQUEST), images[1], answers=True)
    results = ResultFolder(tmp_path / "out", REQUEST)
    assert results.pending(images[:2]) == []
    assert results.pending(images[:2], needed=ANSWER_FIELDS) == images[:1]
    finish(results, images[0], answers=True)
    results = ResultFolder(tmp_path / "out", REQUEST)
    assert results.pending(images[:2], needed=ANSWER_FIELDS) == []
    (tmp_path / "out" / "a_answer_html").unlink()
    assert results.pending(images[:2]) == images[:1]
    finish(results, images[1])
    assert not list((tmp_path / "out").glob("b_answer*")), "files of the line that was replaced"


def test_a_changed_image_is_done_again_and_its_line_replaced(tmp_path, images):
    finish(ResultFolder(tmp_path / "out", REQUEST), images[0], mask="a_mask_0.png")
    images[0].write_bytes(b"another image")
    results = ResultFolder(tmp_path / "out", REQUEST)
    assert results.pending(images[:1]) == images[:1]
    record = finish(results, images[0])
    assert [json.loads(line) for line in results.path.read_text(encoding="utf-8").splitlines()] == [record]
    assert not (tmp_path / "out" / "a_mask_0.png").exists(), "the mask of the old image"


def test_another_request_is_refused_unless_overwrite_is_given(tmp_path, images):
    finish(ResultFolder(tmp_path / "out", REQUEST), images[0])
    other = {**REQUEST, "text": "who?", "threshold": 0.4}
    with pytest.raises(CommandError, match=r"with another text, threshold.*--overwrite"):
        ResultFolder(tmp_path / "out", other).pending(images)
    results = ResultFolder(tmp_path / "out", other, overwrite=True)
    assert results.pending(images) == images
    finish(results, images[0])
    assert ResultFolder(tmp_path / "out", other).pending(images) == images[1:]


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path, images):
    twin = tmp_path / "elsewhere" / "a.jpg"
    twin.parent.mkdir()
    twin.write_bytes(b"twin")
    results = ResultFolder(tmp_path / "out", REQUEST)
    together = results.output_names([*images, twin])
    assert len(set(together.values())) == 4
    assert together[images[1]] == "b"
    finish(results, images[0])
    later = ResultFolder(tmp_path / "out", REQUEST).output_names([twin])[twin]
    assert later == together[twin] != "a"


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "{}",
        "[1, 2]",
        '{"image": "a", "request": {}, "name": "a", "overlay": "../a.png", "segments": []}',
        '{"image": "a", "request": {}, "name": "a", "overlay": "a.png", "segments": [{"mask": "/etc/passwd"}]}',
        '{"image": "a", "request": {}, "name": "a", "overlay": "a", "segments": [], "answer_png": "../b.png"}',
        '{"image": "a", "request": {}, "name": "../a", "overlay": "a.png", "segments": []}',
    ],
)
def test_a_results_file_of_something_else_is_refused(tmp_path, line):
    (tmp_path / RESULTS_NAME).write_text(line + "\n", encoding="utf-8")
    with pytest.raises(CommandError, match=r"Line 1 of .* is not a result"):
        ResultFolder(tmp_path, REQUEST)


def test_out_that_is_a_file_is_refused(images):
    with pytest.raises(CommandError, match="is a file"):
        ResultFolder(images[0], REQUEST)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / RESULTS_NAME).read_text(encoding="utf-8").split("\n")[:-1]]


def test_a_line_that_was_cut_inside_a_character_is_done_again(tmp_path, images):
    results = ResultFolder(tmp_path / "out", {**REQUEST, "text": "Wo ist die Tür?"})
    finish(results, images[0])
    finish(results, images[1])
    content = results.path.read_bytes()
    results.path.write_bytes(content[: content.rindex("ü".encode()) + 1])
    again = ResultFolder(tmp_path / "out", results.request)
    assert again.pending(images[:2]) == [images[1]]
    again.tidy()
    assert lines_of(tmp_path / "out") == [again.records[str(images[0])]]


def test_only_the_line_end_is_missing(tmp_path, images):
    """Nothing is lost, also where the next run has other images."""
    results = ResultFolder(tmp_path / "out", REQUEST)
    done = [finish(results, image) for image in images[:2]]
    results.path.write_bytes(results.path.read_bytes()[:-1])
    finish(ResultFolder(tmp_path / "out", REQUEST), images[2])
    assert lines_of(tmp_path / "out")[:2] == done
    assert len(lines_of(tmp_path / "out")) == 3


def test_lines_that_stand_there_twice_are_mended(tmp_path, images):
    """As two processes have left them that did not know of each other."""
    results = ResultFolder(tmp_path / "out", REQUEST)
    done = [finish(results, image) for image in images[:2]]
    results.path.write_bytes(results.path.read_bytes() * 2)
    ResultFolder(tmp_path / "out", REQUEST).tidy()
    assert lines_of(tmp_path / "out") == done


def test_two_at_the_same_time_know_of_each_other(tmp_path, images):
    first, second = ResultFolder(tmp_path / "out", REQUEST), ResultFolder(tmp_path / "out", REQUEST)
    assert first.pending(images) == second.pending(images) == images
    finish(first, images[0], mask="a_mask_0.png")
    with second.writing():
        assert second.is_done(images[0])
        assert not second.is_free("A", str(images[1]))
    finish(second, images[1])
    images[0].write_bytes(b"another image")
    finish(second, images[0])  # rewrites the file
    finish(first, images[2])
    assert [Path(record["image"]).name for record in lines_of(tmp_path / "out")] == ["a.png", "b.png", "c.png"]
    with first.writing():
        assert first.records == second.records | {str(images[2]): first.records[str(images[2])]}


def test_a_line_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path, images, monkeypatch):
    results = ResultFolder(tmp_path / "out", REQUEST)
    finish(results, images[0])
    before = results.path.read_bytes()

    def full(number):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        finish(results, images[1])
    assert results.path.read_bytes() == before
    monkeypatch.undo()
    finish(results, images[1])
    assert len(lines_of(tmp_path / "out")) == 2


def test_what_a_killed_run_has_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path, images):
    results = ResultFolder(tmp_path / "out", REQUEST)
    finish(results, images[0])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = [tmp_path / "out" / f".b_overlay.png.{ended.pid}.partial.png", tmp_path / "out" / LOCK_NAME]
    stays = [
        tmp_path / "out" / f".c_overlay.png.{running.pid}.partial.png",
        tmp_path / "out" / f".d_overlay.png.{os.getpid()}.partial.png",
        tmp_path / "out" / ".notes.partial",
    ]
    for path in (*left, *stays):
        path.write_bytes(b"half")
    old = tmp_path / "out" / f".e_overlay.png.{os.getpid()}.partial.png"  # of a container with the same numbers
    old.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    with ResultFolder(tmp_path / "out", REQUEST) as again:
        again.tidy()
        assert again.pending(images[:1]) == []
    assert not [path for path in (*left, old) if path.exists()]
    assert all(path.exists() for path in stays)
    running.communicate()


def test_a_folder_that_cannot_be_written_can_be_looked_at(tmp_path, images, monkeypatch):
    finish(ResultFolder(tmp_path / "out", REQUEST), images[0])

    def refuse(self, patience=0):
        raise PermissionError("read-only")

    monkeypatch.setattr("reasonseg.folder_lock.FolderLock.held", refuse)
    with ResultFolder(tmp_path / "out", REQUEST) as results:
        results.tidy()
        assert results.pending(images[:1]) == []


@pytest.mark.parametrize("stem", [b"caf\xe9", b"x" * 201, "ü".encode() * 120, b"c:at", b" a\n\\b\xe2\x80\xa8 "])
def test_names_that_cannot_be_written(tmp_path, stem):
    folders = [tmp_path / "one", tmp_path / "two"]
    paths = [folder / os.fsdecode(stem + b".png") for folder in folders]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(bytes(path))
    results = ResultFolder(tmp_path / "out", REQUEST)
    names = [results.output_names([path])[path] for path in paths]
    assert len(set(names)) == 2
    for path, name in zip(paths, names, strict=True):
        assert len(f".{name}_answer.html.1234567.partial.html".encode()) <= 255
        assert name.split("/") == [name.strip().replace("\\", "/")] == name.splitlines()
        file_in(tmp_path, name)  # also where a name may begin with a drive
        record = {**finish_record(results, path, name), "image": path_text(path)}
        results.add(record)
        assert ResultFolder(tmp_path / "out", REQUEST).pending([path]) == []
    assert [record["name"] for record in lines_of(tmp_path / "out")] == names


def finish_record(results: ResultFolder, image: Path, name: str) -> dict:
    overlay = results.save_file(f"{name}_overlay.png", lambda path: path.write_bytes(b"overlay"))
    common = {"sha256": file_sha256(image), "name": name, "segments": [], "request": results.request}
    return {"image": path_text(image), "overlay": overlay, **common}


def test_a_results_file_that_is_none(tmp_path):
    os.mkfifo(tmp_path / RESULTS_NAME)
    with pytest.raises(CommandError, match="is not a file"):
        ResultFolder(tmp_path, REQUEST)


def test_doing_a_folder_again_does_not_rewrite_every_line_for_each_image(tmp_path, images, monkeypatch):
    images = [images[0].with_name(f"{number:02}.png") for number in range(40)]
    for image in images:
        image.write_bytes(image.name.encode())
    for image in images:
        finish(ResultFolder(tmp_path / "out", REQUEST), image)
    written, rewrite = [], result_lines.write_whole
    monkeypatch.setattr(result_lines, "write_whole", lambda *given: written.append(given) or rewrite(*given))
    results = ResultFolder(tmp_path / "out", REQUEST | {"threshold": 0.6}, overwrite=True)
    for image in images[:30]:
        finish(results, image)
    assert len(written) <= 2
    assert len(lines_of(tmp_path / "out")) > 40, "some were done again"
    late = ResultFolder(tmp_path / "out", results.request, overwrite=True)
    assert late.records == results.records, "the last line of an image counts"
    late.arrange([str(image) for image in images])
    assert [record["image"] for record in lines_of(tmp_path / "out")] == [str(image) for image in images]
    assert [record["request"]["threshold"] for record in lines_of(tmp_path / "out")] == [0.6] * 30 + [0.5] * 10
    before = len(written)
    late.arrange([str(image) for image in images])
    assert len(written) == before, "there was nothing to change"


def test_lines_are_brought_into_the_order_of_the_images(tmp_path, images):
    """Those of other images stay where they are, and what another process has written since is known."""
    other, results = (ResultFolder(tmp_path / "out", REQUEST) for _ in range(2))
    results.arrange([str(image) for image in images])
    assert not (tmp_path / "out").exists()
    for image in (images[2], images[1], images[0]):
        finish(other, image)
    results.arrange([str(images[0]), str(images[2]), "not done.png"])
    assert [Path(record["image"]).name for record in lines_of(tmp_path / "out")] == ["a.png", "b.png", "c.png"]
