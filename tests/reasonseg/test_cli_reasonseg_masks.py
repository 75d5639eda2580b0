"""`reasonseg reasonseg-masks` as it is typed."""

import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.data.reason_seg_masks import read_masks
from tests.support.recorded_data_sets import DATA_ROOT


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DATA_ROOT / "reason_seg/ReasonSeg/val", tmp_path / "val")


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, ["reasonseg-masks", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_four_files_for_each_annotation(folder, tmp_path):
    out, annotations = tmp_path / "out", sorted(folder.glob("*.json"))
    run(folder, "--out", out)
    endings = ("labeled.png", "target.png", "ignore.png", "overlay.jpg")
    names = {f"{path.stem}_{ending}" for path in annotations for ending in endings}
    assert {path.name for path in out.iterdir()} == {*names, "results.jsonl"}
    for path in annotations:
        masks = read_masks(path)
        for name, expected in (("labeled", masks.labeled), ("target", masks.target), ("ignore", masks.ignored)):
            with Image.open(out / f"{path.stem}_{name}.png") as image:
                assert image.mode == "L"
                np.testing.assert_array_equal(image, expected if name == "labeled" else expected * np.uint8(255))
        with Image.open(out / f"{path.stem}_overlay.jpg") as image:
            assert image.size == (2 * masks.image.width, masks.image.height)


def test_a_bad_file_fails_alone_and_the_rest_is_not_done_again(folder, tmp_path):
    out, (bad, changed, *others) = tmp_path / "out", sorted(folder.glob("*.json"))
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    failed = run(folder, "--out", out, code=1)
    assert f"{bad.name} is not a JSON file" in failed.stderr
    assert f"1 of {2 + len(others)} images failed" in failed.stderr
    assert failed.stdout.count("% target") == 1 + len(others)
    assert not list(out.glob(f"{bad.stem}*"))
    untouched = (out / f"{others[0].stem}_labeled.png").stat().st_mtime_ns
    bad.write_bytes(whole)
    Image.new("RGB", (30, 20)).save(changed.with_suffix(".jpg"))  # another image: its masks are done again
    again = run(folder, "--out", out)
    assert f"{len(others)} of {2 + len(others)} annotations are done already" in again.stderr
    assert again.stdout.count("% target") == 2
    assert Image.open(out / f"{changed.stem}_target.png").size == (30, 20)
    assert (out / f"{others[0].stem}_labeled.png").stat().st_mtime_ns == untouched


def test_a_single_annotation(folder, tmp_path):
    path = sorted(folder.glob("*.json"))[0]
    assert run(path, "--out", tmp_path / "out").stdout.startswith(f"{path}: ")
    missing = run(folder / "none.json", "--out", tmp_path / "other", code=1)
    assert "none.json does not exist" in " ".join(missing.stderr.split())
    assert not (tmp_path / "other").exists()
