"""The commands as they are typed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.cli.segment import _report
from tests.support.installed import forked
from tests.support.parity_data import PARITY, gsva_vision_tower, load_case, load_meta, unpack_mask
from tests.support.tabletop_folder import write_dataset
from tests.support.tiny_training import write_tiny_recipe


IMAGES = PARITY / "lisa" / "images"


def run(*arguments: object, code: int = 0):
    """Run the command in this process and check its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_phrases_give_masks_an_overlay_and_a_line(lisa_repo, tmp_path):
    out = tmp_path / "out"
    result = run("segment", IMAGES / "img0.png", "-p", "the dog", "-p", "a cup", "-m", lisa_repo, "-o", out)
    (record,) = records(out)
    assert record["image"] == str(IMAGES / "img0.png")
    assert [found["label"] for found in record["segments"]] == ["the dog", "a cup"]
    assert (record["height"], record["width"]) == (427, 640)
    names = {"img0_mask_0.png", "img0_mask_1.png", "img0_overlay.png", "results.jsonl"}
    assert {path.name for path in out.iterdir()} == names
    for found in record["segments"]:
        mask = np.asarray(Image.open(out / found["mask"]))
        assert mask.shape == (427, 640)
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask == 255).sum() == found["area"] > 0
    assert Image.open(out / record["overlay"]).size == (640, 427)
    assert "the dog:" in result.stdout

    model, processor = AutoModel.from_pretrained(lisa_repo), AutoProcessor.from_pretrained(lisa_repo)
    inputs = processor(images=Image.open(IMAGES / "img0.png"), phrases=[["the dog", "a cup"]], return_tensors="pt")
    with torch.inference_mode():
        (expected,) = processor.post_process_segmentation(model(**inputs), inputs)
    for found, segment in zip(record["segments"], expected.segments, strict=True):
        assert np.array_equal(np.asarray(Image.open(out / found["mask"])) == 255, segment.mask)
        assert found["span"] == list(segment.span)
        assert found["box_xyxy"] == list(segment.box_xyxy)


@pytest.mark.parametrize("place", ["argument", "option"])
def test_a_question_is_answered_with_the_recorded_masks(talking_lisa_repo, tmp_path, place):
    case = "evaluate/segbias_img0_p0"
    question = load_meta("lisa")["config"]["prompts"][0]
    asked = [question] if place == "argument" else ["--text", question]
    out = tmp_path / "out"
    run("segment", IMAGES / "img0.png", *asked, "-m", talking_lisa_repo, "-o", out, "--max-new-tokens", 32)
    (record,) = records(out)
    recorded = unpack_mask(load_case("lisa", case)["pred_masks_packed"], width=640)
    assert len(record["segments"]) == len(recorded) == 1
    mask = np.asarray(Image.open(out / record["segments"][0]["mask"])) == 255
    assert (mask & recorded[0]).sum() / (mask | recorded[0]).sum() >= 0.999


def test_a_folder_in_batches_gives_what_single_images_give(lisa_repo, tmp_path):
    common = ("--phrase", "the dog", "--model", lisa_repo, "--json", "--out")
    batched = run("segment", IMAGES, *common, tmp_path / "batched", "--batch-size", 2)
    lines = [json.loads(line) for line in batched.stdout.splitlines()]
    assert lines == records(tmp_path / "batched")
    run("segment", IMAGES / "*.png", *common, tmp_path / "single")
    singles = records(tmp_path / "single")
    assert [line["name"] for line in lines] == [line["name"] for line in singles] == ["img0", "img1"]
    for line, single in zip(lines, singles, strict=True):
        ours, theirs = line["segments"][0], single["segments"][0]
        assert ours["label"] == theirs["label"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert abs(ours["area"] - theirs["area"]) <= 1e-3 * theirs["area"]


def test_a_second_run_does_only_what_is_left(lisa_repo, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.open(IMAGES / "img0.png").save(folder / "a.png")
    command = ("segment", folder, "-p", "the dog", "-m", lisa_repo, "-o", out)
    run(*command)
    written = (out / "a_mask_0.png").stat().st_mtime_ns
    Image.open(IMAGES / "img1.png").save(folder / "b.png")
    result = run(*command)
    assert "1 of 2 images are done already" in result.stderr
    assert "a.png" not in result.stdout
    assert (out / "a_mask_0.png").stat().st_mtime_ns == written
    assert [Path(record["image"]).name for record in records(out)] == ["a.png", "b.png"]
    assert "2 of 2 images are done already" in run(*command).stderr

    refused = run(*command, "--mask-threshold", 1.0, code=1)
    assert "with another mask_threshold" in one_line(refused.stderr)
    areas = [record["segments"][0]["area"] for record in records(out)]
    run(*command, "--mask-threshold", 1.0, "--overwrite")
    assert all(record["segments"][0]["area"] < area for record, area in zip(records(out), areas, strict=True))


def test_a_bad_image_is_reported_and_the_others_are_done(lisa_repo, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    Image.open(IMAGES / "img0.png").save(folder / "b.png")
    command = ("segment", folder, "-p", "the dog", "-m", lisa_repo, "-o", out, "--batch-size", 2)
    result = run(*command, code=1)
    assert "a.png" in result.stderr
    assert "cannot be opened as an image" in one_line(result.stderr)
    assert "1 of 2 images failed" in one_line(result.stderr)
    assert [Path(record["image"]).name for record in records(out)] == ["b.png"]
    Image.open(IMAGES / "img1.png").save(folder / "a.png")
    run(*command)
    assert len(records(out)) == 2


def test_rejected_phrases_have_no_mask(gsva_repo, tmp_path):
    out = tmp_path / "out"
    image = PARITY / "gsva" / "images" / "img0.png"
    command = ("segment", image, "-p", "the dog", "-m", gsva_repo, "-o", out, "--reject-threshold", 1.0)
    result = run(*command)
    (found,) = records(out)[0]["segments"]
    assert found["rejected"]
    assert found["mask"] is None
    assert "the dog: rejected" in result.stdout
    assert records(out)[0]["text"] == "Sure,the dog:[REJ]."
    assert "[SEG]" not in result.stdout


def test_segments_without_a_label_have_a_number(capsys, tmp_path):
    found = {"label": None, "rejected": False, "area": 5, "score": 0.25, "mask": "m.png"}
    rejected = {**found, "rejected": True, "mask": None}
    named = {**rejected, "label": "a cup"}
    _report({"image": "a.png", "text": "[SEG] [REJ]", "segments": [found, rejected, named]}, tmp_path, False)
    assert capsys.readouterr().out.splitlines() == [
        "a.png: [SEG] [REJ]",
        f"  segment 1: 5 pixels, score 0.25 -> {tmp_path / 'm.png'}",
        "  segment 2: rejected",
        "  a cup: rejected",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["segment", "missing.png", "where?", "-m", "m", "-o", "out"], 1, "'missing.png' is not an existing file"),
        (["segment", IMAGES, "-m", "m", "-o", "out"], 1, "There is no question"),
        (["segment", IMAGES, "where?", "-o", "out"], 2, "--model"),
        (["segment", IMAGES, "where?", "-m", "m", "-o", "out", "--batch-size", 0], 2, "--batch-size"),
        (["segment", IMAGES, "where?", "-m", "no/such/model", "-o", "out"], 1, "no/such/model"),
        (["convert", "lisa", "missing", "--vision-tower", IMAGES, "-o", "out"], 1, "missing"),
        (["convert", "gsva", "missing.bin", "--base", PARITY / "gsva" / "base_llava", "-o", "out"], 1, "missing.bin"),
    ],
)
def test_mistakes_end_in_one_paragraph_on_stderr(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, code=code)
    assert message in one_line(result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there(lisa_repo, tmp_path):
    command = ("segment", IMAGES, "-p", "the dog", "-m", lisa_repo, "-o", tmp_path / "out", "--device")
    assert "Use auto or cpu" in one_line(run(*command, "nonsense", code=1).stderr)
    assert not (tmp_path / "out").exists()


def test_debug_lets_the_exception_through(tmp_path):
    result = CliRunner().invoke(app, ["--debug", "segment", str(tmp_path), "x", "-m", "m", "-o", "out"])
    assert "No image was found" in str(result.exception)
    assert type(result.exception).__name__ == "CommandError"


def test_convert_commands_make_the_repositories_of_the_functions(lisa_repo, gsva_repo, tmp_path):
    lisa, gsva = PARITY / "lisa", PARITY / "gsva"
    result = run("convert", "lisa", lisa / "checkpoint", "--vision-tower", lisa / "vision_tower", "-o", tmp_path / "a")
    assert "parameters" in result.stdout
    options = ("--base", gsva / "base_llava", "--vision-tower", gsva_vision_tower(), "--lora-alpha", 16)
    run("convert", "gsva", gsva / "gsva-tiny.bin", *options, "-o", tmp_path / "b")
    for made, expected in ((tmp_path / "a", lisa_repo), (tmp_path / "b", gsva_repo)):
        files = {file.name for file in expected.iterdir()}
        assert {file.name for file in made.iterdir()} == files
        for name in files:
            assert (made / name).read_bytes() == (expected / name).read_bytes(), name
    again = run(
        "convert", "lisa", lisa / "checkpoint", "--vision-tower", lisa / "vision_tower", "-o", tmp_path / "a", code=1
    )
    assert "exists already" in one_line(again.stderr)


def large(path: Path, width: int = 12000, height: int = 9000) -> Path:
    """An image of a phone with 108 megapixels, as one colour."""
    Image.new("1", (width, height)).save(path)
    return path


def test_an_image_over_the_limit_is_refused_in_one_message(tmp_path):
    """The command in a process of its own: Pillow's warning would stand beside the message."""
    options = ("--phrase", "a cup", "--model", "embedded", "--out", tmp_path / "o")
    result = forked("segment", large(tmp_path / "a.png"), *options, code=1)
    assert "12000 x 9000 = 108000000 pixels, more than the 67108864 allowed" in one_line(result.stderr)
    assert "or raise --max-image-pixels" in one_line(result.stderr)
    assert "max_image_pixels" not in result.stderr
    assert "Warning" not in result.stderr


@pytest.mark.parametrize("command", ["segment", "mask", "ask", "evaluate", "train"])
def test_the_limit_is_an_option_of_every_command_that_reads_images(command, small_ivm, tmp_path, monkeypatch):
    """An image just over the limit fails with the option's name, and is read where the option allows it."""
    monkeypatch.chdir(tmp_path)
    write_dataset("data", "train", 1, size=64, requests_per_scene=1)
    image = Path(
        "data", "train", json.loads(Path("data/train/metadata.jsonl").read_text(encoding="utf-8"))["file_name"]
    )
    Path("tiny").mkdir()
    arguments = {
        "segment": ("segment", image, "--phrase", "a cup", "--model", "embedded", "--out", "out"),
        "mask": ("mask", image, "Where?", "--model", small_ivm, "--out", "out"),
        "ask": ("ask", image, "Where?", "--model", "./nosuch"),
        "evaluate": ("evaluate", "--dataset", "data/train", "--model", "embedded", "--out", "out"),
        "train": ("train", write_tiny_recipe(Path("tiny"), max_steps=1, save_strategy="no"), "--out", "out"),
    }[command]
    refused = one_line(run(*arguments, "--max-image-pixels", 64 * 64 - 1, code=1).stderr)
    assert "64 x 64 = 4096 pixels, more than the 4095 allowed. Shrink it first, or raise --max-image-pixels" in refused
    code = 1 if command == "ask" else 0  # its model does not exist; the image was read before
    allowed = one_line(run(*arguments, "--max-image-pixels", 64 * 64, code=code).stderr)
    assert "max-image-pixels" not in allowed
    assert "REASONSEG_MAX_IMAGE_PIXELS" not in os.environ, "the next command in this process has its own limit"
