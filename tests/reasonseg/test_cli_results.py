import json
from pathlib import Path

import pytest

from reasonseg.cli.failures import CommandError
from reasonseg.cli.results import ANSWER_FIELDS, RESULTS_NAME, ResultFolder, file_sha256


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
    masks = [results.save_picture(mask, lambda path: path.write_bytes(b"mask"))] if mask else [None]
    record = {
        "image": str(image),
        "sha256": file_sha256(image),
        "name": name,
        "segments": [{"mask": file} for file in masks],
        "overlay": results.save_picture(f"{name}_overlay.png", lambda path: path.write_bytes(b"overlay")),
        "request": results.request,
    }
    for field in ANSWER_FIELDS if answers else ():
        record[field] = results.save_picture(f"{name}_{field}", lambda path: path.write_bytes(b"answer"))
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


def test_a_changed_picture_is_done_again_and_its_line_replaced(tmp_path, images):
    finish(ResultFolder(tmp_path / "out", REQUEST), images[0], mask="a_mask_0.png")
    images[0].write_bytes(b"another picture")
    results = ResultFolder(tmp_path / "out", REQUEST)
    assert results.pending(images[:1]) == images[:1]
    record = finish(results, images[0])
    assert [json.loads(line) for line in results.path.read_text(encoding="utf-8").splitlines()] == [record]
    assert not (tmp_path / "out" / "a_mask_0.png").exists(), "the mask of the old picture"


def test_another_request_is_refused_unless_overwrite_is_given(tmp_path, images):
    finish(ResultFolder(tmp_path / "out", REQUEST), images[0])
    other = {**REQUEST, "text": "who?", "threshold": 0.4}
    with pytest.raises(CommandError, match=r"with another text, threshold.*--overwrite"):
        ResultFolder(tmp_path / "out", other).pending(images)
    results = ResultFolder(tmp_path / "out", other, overwrite=True)
    assert results.pending(images) == images
    finish(results, images[0])
    assert ResultFolder(tmp_path / "out", other).pending(images) == images[1:]


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path, images):
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
