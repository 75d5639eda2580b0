"""`reasonseg mask` as it is typed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reasonseg import Masker, MaskingOptions
from reasonseg.cli import app


QUESTION = "What is the red cup?"


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with images of several kinds, one of them deeper."""
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    for name, size in (("a.png", (40, 60)), ("b.jpg", (64, 30)), ("sub/a.png", (32, 32))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def run(*arguments: object, code: int = 0):
    """Run the command in this process and check its exit code."""
    result = CliRunner().invoke(app, ["mask", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def records(out: Path) -> dict[str, dict]:
    lines = (out / "results.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return {record["name"]: record for record in map(json.loads, lines)}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def test_names_and_folders_stay(small_ivm, images, tmp_path):
    out = tmp_path / "out"
    result = run(images, QUESTION, "-m", small_ivm, "-o", out, "--threshold", 0.5, "--batch-size", 2)
    assert files(out) == {"a.png", "b.jpg", "sub/a.png", "results.jsonl"}
    assert result.stdout.count("% kept ->") == 3
    masker = Masker(str(small_ivm), options=MaskingOptions(threshold=0.5))
    for name, record in records(out).items():
        original = Image.open(images / name).convert("RGB")
        (expected,) = masker([original], [QUESTION])
        written = np.asarray(Image.open(out / name).convert("RGB"), dtype=int)
        tolerance = 0.5 if name.endswith(".png") else 6.0  # JPEG loses something of noise, even at its best
        assert np.abs(written - np.asarray(expected.masked_image, dtype=int)).mean() < tolerance
        assert record["found"]
        assert record["kept_ratio"] == pytest.approx(expected.kept_ratio, abs=0.01)
        assert 0.02 < record["kept_ratio"] < 0.98, "the images above would be whole or empty"
        assert record["question"] == QUESTION
        assert record["crop_box_xyxy"] is None


def test_patterns_keep_what_follows_the_first_wildcard(small_ivm, images, tmp_path):
    run(images / "*" / "*.png", "-t", QUESTION, "-m", small_ivm, "-o", tmp_path / "a")
    assert files(tmp_path / "a") == {"sub/a.png", "results.jsonl"}
    run(images / "a.png", images / "sub" / "a.png", "-t", QUESTION, "-m", small_ivm, "-o", tmp_path / "b")
    assert files(tmp_path / "b") == {"a.png", "a-2.png", "results.jsonl"}


def test_options_reach_the_image(small_ivm, images, tmp_path):
    common = (
        images / "a.png",
        "-t",
        QUESTION,
        "-m",
        small_ivm,
        "--dilate",
        0,
        "--blur",
        0,
        "--threshold",
        0.5,
    )
    run(*common, "-o", tmp_path / "colour", "--overlay-color", "0,128,255")
    painted = np.asarray(Image.open(tmp_path / "colour" / "a.png"))
    changed = (painted != np.asarray(Image.open(images / "a.png"))).any(-1)
    assert changed.any()
    assert (painted[changed] == [0, 128, 255]).all()
    run(*common, "-o", tmp_path / "crop", "--crop", "--json")
    (record,) = records(tmp_path / "crop").values()
    left, top, right, bottom = record["crop_box_xyxy"]
    assert Image.open(tmp_path / "crop" / "a.png").size == (right - left, bottom - top)
    assert record["crop_box_xyxy"] == record["box_xyxy"]
    whole = run(*common, "-o", tmp_path / "whole", "--min-kept", 1)
    assert "nothing found, the whole image is kept" in whole.stdout
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "whole" / "a.png")), np.asarray(Image.open(images / "a.png"))
    )
    assert not next(iter(records(tmp_path / "whole").values()))["found"]


def test_a_file_of_questions(small_ivm, images, tmp_path):
    """Every question has its own masked image; all other fields stay as they are."""
    rows = [
        {"question_id": 1, "image": "a.png", "text": QUESTION + "\n(A) here\n(B) there", "label": "A"},
        {"question_id": 2, "image": "a.png", "text": "Where is the plate?"},
        {"question_id": 3, "image": "sub/a.png", "text": "Where is the plate?\u2028Say it."},
        {"question_id": 4, "image": "a.png", "text": "Where is the plate?"},
    ]
    source, out = write_rows(images / "questions.jsonl", *rows), tmp_path / "out"
    run("--jsonl", source, "-m", small_ivm, "-o", out, "--threshold", 0.5)
    assert files(out) == {"a.png", "a-2.png", "sub/a.png", "questions.jsonl", "results.jsonl"}
    written = [json.loads(line) for line in (out / "questions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["image"] for row in written] == ["a.png", "a-2.png", "sub/a.png", "a-2.png"]
    for row, original in zip(written, rows, strict=True):
        masking = row.pop("masking")
        assert masking["image"] == original["image"]
        assert masking["kept_ratio"] == records(out)[row["image"]]["kept_ratio"]
        assert {**row, "image": original["image"]} == original
    assert records(out)["a.png"]["question"] == rows[0]["text"]

    run("--jsonl", source, "-m", small_ivm, "-o", tmp_path / "short", "--first-line")
    assert records(tmp_path / "short")["a.png"]["question"] == QUESTION


def test_fields_and_folder_of_a_file_of_questions(small_ivm, images, tmp_path):
    source = write_rows(tmp_path / "vqa.jsonl", {"file": str(images / "b.jpg"), "ask": "Where?"})
    options = ("--image-key", "file", "--question-key", "ask", "-m", small_ivm)
    run("--jsonl", source, *options, "-o", tmp_path / "a")
    assert files(tmp_path / "a") == {"b.jpg", "vqa.jsonl", "results.jsonl"}
    source = write_rows(tmp_path / "vqa.jsonl", {"file": "../in/b.jpg", "ask": "Where?"})
    run("--jsonl", source, *options, "-o", tmp_path / "b", "--image-folder", images)
    assert files(tmp_path / "b") == {"b.jpg", "vqa.jsonl", "results.jsonl"}, "nothing is written outside --out"


def test_a_second_run_does_only_what_is_left(small_ivm, images, tmp_path):
    source, out = images / "q.jsonl", tmp_path / "out"
    write_rows(source, {"image": "a.png", "question": "Where?"})
    command = ("--jsonl", source, "-m", small_ivm, "-o", out)
    run(*command)
    stamp = (out / "a.png").stat().st_mtime_ns
    write_rows(source, {"image": "a.png", "question": "What?"}, {"image": "a.png", "question": "Where?"})
    result = run(*command)
    assert "1 of 2 images are done already" in result.stderr
    assert (out / "a.png").stat().st_mtime_ns == stamp
    written = [json.loads(line)["image"] for line in (out / "q.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written == ["a-2.png", "a.png"], "what is done keeps its name"
    assert "2 of 2 images are done already" in run(*command).stderr
    (out / "a.png").unlink()
    run(*command)
    assert (out / "a.png").is_file()
    refused = run(*command, "--threshold", 0.7, code=1)
    assert "with another threshold" in " ".join(refused.stderr.split())
    run(*command, "--threshold", 0.7, "--overwrite")
    assert {record["request"]["threshold"] for record in records(out).values()} == {0.7}

    run(images, QUESTION, "-m", small_ivm, "-o", tmp_path / "images")
    refused = run(images, "Another question?", "-m", small_ivm, "-o", tmp_path / "images", code=1)
    assert "with another text" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("questions", ["in", "apart"])
@pytest.mark.parametrize("through_a_link", [False, True])
def test_originals_are_not_overwritten(images, tmp_path, questions, through_a_link):
    """Neither the images nor the questions, wherever the other of them lies."""
    (tmp_path / "apart").mkdir()
    source = write_rows(tmp_path / questions / "q.jsonl", {"image": "a.png", "question": "Where?"})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    places = {images, source.parent}
    if through_a_link:
        places = {tmp_path / f"{place.name}-link" for place in places}
        for place in places:
            place.symlink_to(tmp_path / place.name.removesuffix("-link"))
    for out in places:
        refused = run("--jsonl", source, "--image-folder", images, "-m", "model", "-o", out, code=1)
        assert "would be overwritten: --out is where the originals lie" in " ".join(refused.stderr.split())
    assert {path: path.read_bytes() for path in before} == before
    assert files(tmp_path) >= {path.relative_to(tmp_path).as_posix() for path in before}
    assert not list(tmp_path.rglob("results.jsonl"))


def test_a_bad_image_is_reported_and_its_line_left_out(small_ivm, images, tmp_path):
    (images / "b.jpg").write_bytes(b"no image")
    names = ("a.png", "b.jpg", "gone.png", "sub/a.png")
    source = write_rows(images / "q.jsonl", *({"image": name, "question": "Where?"} for name in names))
    out = tmp_path / "out"
    result = run("--jsonl", source, "-m", small_ivm, "-o", out, "--batch-size", 4, code=1)
    message = " ".join(result.stderr.split())
    assert "2 of 4 images failed" in message
    assert "Their lines are left out" in message
    written = [json.loads(line)["image"] for line in (out / "q.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written == ["a.png", "sub/a.png"]
    Image.new("RGB", (20, 20)).save(images / "b.jpg")
    Image.new("RGB", (20, 20)).save(images / "gone.png")
    assert "2 of 4 images are done already" in run("--jsonl", source, "-m", small_ivm, "-o", out).stderr
    assert len((out / "q.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_images_without_a_suffix_that_can_be_written(small_ivm, images, tmp_path):
    (images / "a.png").rename(images / "photo")
    run(images / "photo", "-t", QUESTION, "-m", small_ivm, "-o", tmp_path / "out")
    assert files(tmp_path / "out") == {"photo.png", "results.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name images and a question"),
        (("{in}",), "There is no question"),
        (("{in}", "x", "--image-folder", "{in}"), "--image-folder belongs to --jsonl"),
        (("{in}", "x", "--jsonl", "{in}/q.jsonl"), "leave IMAGE and TEXT out"),
        (("--jsonl", "{in}/none.jsonl"), "cannot be read"),
        (("--jsonl", "{in}/results.jsonl"), "give --jsonl another name"),
        (("--jsonl", "{in}/empty.jsonl"), "has no lines"),
        (("--jsonl", "{in}/broken.jsonl"), "Line 2 of .* is not JSON"),
        (
            ("--jsonl", "{in}/other.jsonl"),
            r"Line 1 of .* has no text under 'image' and 'question'; it has \['image'\]",
        ),
        (("{in}", "x", "--overlay-color", "1,2,300"), "Give three numbers in 0..255"),
        (("{in}", "x", "--overlay-color", "nocolour"), "Give three numbers in 0..255"),
    ],
)
def test_wrong_requests(images, tmp_path, arguments, message):
    (images / "q.jsonl").write_text("{}", encoding="utf-8")
    (images / "empty.jsonl").write_text("\n", encoding="utf-8")
    (images / "broken.jsonl").write_text('{"image": "a.png", "question": "x"}\n{', encoding="utf-8")
    write_rows(images / "other.jsonl", {"image": "a.png"})
    arguments = [argument.replace("{in}", str(images)) for argument in arguments]
    result = run(*arguments, "-m", "model", "-o", tmp_path / "out", code=1)

    assert re.search(message, " ".join(result.stderr.split())), result.stderr
    assert not (tmp_path / "out").exists()


def test_files_larger_than_the_checkpoint_allows(small_ivm, images, tmp_path):
    repo = shutil.copytree(small_ivm, tmp_path / "repo")
    config = json.loads((repo / "processor_config.json").read_text(encoding="utf-8"))
    config["image_processor"]["max_image_pixels"] = 2399
    (repo / "processor_config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run(images, QUESTION, "-m", repo, "-o", tmp_path / "out", "--batch-size", 3, code=1)
    assert files(tmp_path / "out") == {"b.jpg", "sub/a.png", "results.jsonl"}
    assert "a.png' is 60 x 40 = 2400 pixels, more than the 2399 allowed" in " ".join(result.stderr.split())


def test_another_system_is_refused(lisa_repo, images, tmp_path):
    result = run(images, QUESTION, "-m", lisa_repo, "-o", tmp_path / "out", code=1)
    assert "Masking takes an IVM checkpoint" in " ".join(result.stderr.split())
