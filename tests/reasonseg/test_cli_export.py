"""`reasonseg export`, `segment --format` and `reasonseg report`."""

import json
import os
import shutil
import signal
import sys
import time
import tracemalloc
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.cli.export import export_results
from reasonseg.cli.report import image_score, read_run
from reasonseg.cli.result_lines import find_earlier_results
from tests.support import forked_runs
from tests.support.installed import forked, installed
from tests.support.written_results import Page, write_results


def run(*arguments: object, code: int = 0):
    """The command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(folder: Path, count: int, size: tuple[int, int] = (24, 36)) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05}.png" for number in range(count)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return paths


@pytest.fixture
def results(tmp_path) -> Path:
    write_results(tmp_path / "out", draw(tmp_path / "in", 12))
    return tmp_path / "out"


@pytest.mark.slow
def test_segment_and_export_write_the_same(tmp_path):
    draw(tmp_path / "in", 3)
    out, command = tmp_path / "out", ("--phrase", "the red cup", "--reject-threshold", 0, "--model", "embedded")
    formats = ("--format", "coco", "--format", "labelme", "--format", "yolo", "--format", "png")
    segmented = forked("segment", tmp_path / "in", *command, "--out", out, *formats)
    assert f"Written: {out / 'export' / 'coco'} (3 images, 3 masks)" in segmented.stderr
    exported = installed("export", out, *formats, "--out", tmp_path / "other", "--json")
    assert {name: row["masks"] for name, row in json.loads(exported.stdout).items()} == dict.fromkeys(
        ("coco", "labelme", "yolo", "voc"), 3
    )
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["coco", "labelme", "voc", "yolo"]
    assert tree(tmp_path / "other") == tree(out / "export")
    coco = COCO(out / "export" / "coco" / "annotations" / "instances.json")
    records = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, record in enumerate(records, start=1):
        (row,) = coco.loadAnns(coco.getAnnIds(imgIds=number))
        with Image.open(out / record["segments"][0]["mask"]) as mask:
            np.testing.assert_array_equal(coco.annToMask(row) * 255, np.asarray(mask))
    assert find_earlier_results(out).holds(out / "export" / "coco" / "images" / "00000.png"), "it is no input"
    # the export follows the results
    draw(tmp_path / "in", 4)
    again = run("segment", tmp_path / "in", *command, "--out", out, *formats[:2])
    assert "3 of 4 images are done already" in again.stderr
    assert len(COCO(out / "export" / "coco" / "annotations" / "instances.json").imgs) == 4
    assert "is written already" in run("segment", tmp_path / "in", *command, "--out", out, *formats[:2]).stderr


def test_what_is_wrong_is_said_before_a_model_is_loaded(tmp_path, monkeypatch, results):
    common = ("segment", tmp_path / "in", "-p", "cup", "-m", "no such model", "-o", tmp_path / "new")
    assert "There is no format 'xml'" in " ".join(run(*common, "--format", "xml", code=2).stderr.split())
    monkeypatch.chdir(tmp_path)
    refused = run(*common[:-1], "hf://datasets/anna/cups", code=1)
    assert (
        "'hf://datasets/anna/cups' is an address. Name a folder; only `segment --dataset` writes to the Hub"
        in refused.stderr
    )
    assert not (tmp_path / "hf:").exists()
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("reasonseg.data.annotation_formats.find_spec", lambda name: None)
    for command in (common, ("export", results)):
        missing = run(*command, "--format", "datasets", code=1)
        assert "pip install datasets" in missing.stderr
    assert not (tmp_path / "new").exists()


def test_lines_of_a_killed_run_and_older_ones_do_not_count(results, tmp_path):
    lines = (results / "results.jsonl").read_bytes()
    export_results(results, ["coco"], tmp_path / "whole")
    (results / "results.jsonl").write_bytes(lines.splitlines(keepends=True)[3] + lines + b'{"image": "half a l')
    export_results(results, ["coco"], tmp_path / "killed")
    whole, killed = (COCO(tmp_path / name / "coco" / "annotations" / "instances.json") for name in ("whole", "killed"))
    assert len(killed.imgs) == len(whole.imgs) == 12
    assert killed.imgs[1]["file_name"] == "00003.png", "in the order of the file"


def test_choices(results, tmp_path):
    run("export", results, "-f", "coco", "-o", tmp_path / "a", "--masks", "polygons", "--images", "link")
    assert (tmp_path / "a" / "coco" / "images" / "00003.png").is_symlink()
    content = json.loads((tmp_path / "a" / "coco" / "annotations" / "instances.json").read_text(encoding="utf-8"))
    assert isinstance(content["annotations"][0]["segmentation"], list)
    refused = run("export", results, "-f", "voc", "-o", tmp_path / "b", "--masks", "polygons", code=1)
    assert "the format voc has exact" in refused.stderr
    tolerant = ("export", results, "-o", tmp_path / "b", "--tolerance", 1, "-f", "yolo", "-f")
    assert "Export this format by itself, or leave --tolerance out" in run(*tolerant, "voc", code=1).stderr
    assert "the format coco is written with exact masks. Add --masks polygons" in run(*tolerant, "coco", code=1).stderr
    assert not (tmp_path / "b").exists()
    assert "is an address" in run("export", results, "-f", "coco", "-o", "hf://datasets/anna/cups", code=1).stderr
    assert "choose copy, link or none" in run("export", results, "-f", "voc", "--images", "all", code=2).stderr


def test_images_that_moved_or_changed(results, tmp_path):
    (tmp_path / "in").rename(tmp_path / "moved")
    gone = run("export", results, "-f", "coco", code=1)
    assert "cannot be read (No such file or directory)" in " ".join(gone.stderr.split())
    assert "--image-folder" in gone.stderr
    assert not (results / "export" / "coco").exists()
    run("export", results, "-f", "coco", "--images", "none", "-o", tmp_path / "none")
    run("export", results, "-f", "coco", "--image-folder", tmp_path / "moved")
    draw(tmp_path / "moved", 1, size=(10, 12))
    changed = run("export", results, "-f", "coco", "--image-folder", tmp_path / "moved", "--overwrite", code=1)
    assert "is not the one that was segmented" in " ".join(changed.stderr.split())
    assert len(COCO(results / "export" / "coco" / "annotations" / "instances.json").imgs) == 12


def test_folders_without_masks_are_refused(tmp_path, results):
    assert "has no results.jsonl" in run("export", tmp_path / "in", "-f", "coco", code=1).stderr
    (tmp_path / "masked").mkdir()
    line = {"image": "a.png", "name": "a.png", "files": ["a.png"], "request": {}}
    (tmp_path / "masked" / "results.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    refused = run("export", tmp_path / "masked", "-f", "coco", code=1)
    assert "holds results without masks, of another command" in " ".join(refused.stderr.split())
    (results / "00004_mask_0.png").unlink()
    damaged = run("export", results, "-f", "coco", code=1)
    assert "00004.png" in damaged.stderr
    assert not (results / "export" / "coco").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Without fork every run would import torch again.")
def test_kills_at_random_moments_change_nothing(tmp_path):
    write_results(tmp_path / "out", draw(tmp_path / "in", 24))
    formats = ["coco", "labelme", "yolo", "voc", "reasonseg"]
    begun = time.monotonic()
    export_results(tmp_path / "out", formats, tmp_path / "whole")
    duration = time.monotonic() - begun
    moments, killed = np.random.default_rng(0).uniform(0.05, 0.9, 4) * duration, 0
    for moment in moments:
        child = forked_runs.start(lambda: export_results(tmp_path / "out", formats, tmp_path / "killed"))
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        killed += forked_runs.end(child) == -signal.SIGKILL
        for name in formats:
            folder = tmp_path / "killed" / name
            assert not folder.exists() or tree(folder) == tree(tmp_path / "whole" / name)
    assert killed, "no kill met a run"
    export_results(tmp_path / "out", formats, tmp_path / "killed")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(formats)


def test_memory_does_not_grow_with_the_images(tmp_path):
    """Four times as many images need the same memory; kept, the pixels of the others would be 4 MB."""
    size = (150, 150)
    many, few = tmp_path / "many", tmp_path / "few"
    write_results(many, draw(tmp_path / "in", 60, size), size)
    shutil.copytree(many, few)
    lines = (many / "results.jsonl").read_bytes().splitlines(keepends=True)
    (few / "results.jsonl").write_bytes(b"".join(lines[:15]))

    def peak(folder: Path, formats: list[str]) -> int:
        tracemalloc.start()
        try:
            export_results(folder, formats, folder / "export", overwrite=True)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for name in ("coco", "yolo"):
        peak(few, [name])  # what is imported and kept once
        assert peak(many, [name]) - peak(few, [name]) < 500_000


# ---- the report -----------------------------------------------------------------------------------------------------


def test_report_shows_low_scores_first_and_needs_nothing_else(results):
    assert "report.html" in run("report", results).stderr
    page = Page((results / "report.html").read_text(encoding="utf-8"))
    assert {"b", "script", "link"}.isdisjoint(page.tags), "what is said of images is text"
    assert "the <b>cup</b>: 0.90" in page.text
    assert "12 segmented images" in page.text
    assert all((results / unquote(link)).is_file() for link in page.links)
    scores = [int(Path(unquote(image)).name[:5]) % 10 for image in page.images]
    assert scores == sorted(scores)
    assert len(scores) == 12
    with Image.open(results / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 200
    # counted again from what was written
    counted = read_run(results, most=2)
    assert (counted.images, counted.masks, counted.rejected, counted.without, counted.empty) == (12, 12, 12, 0, 0)
    assert counted.histogram == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [image_score(record) for record in counted.lowest] == [0.0, 0.0]
    assert counted.phrases["a dog"].rejected == 12


def test_report_of_few_and_of_none(results):
    run("report", results, "--most", 5)
    page = Page((results / "report.html").read_text(encoding="utf-8"))
    assert "The 5 lowest of 12 images." in page.text
    (results / "results.jsonl").write_text("", encoding="utf-8")
    assert "holds no result yet" in run("report", results, code=1).stderr
