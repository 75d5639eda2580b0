"""Each command once as it is installed, in a process of its own; what it does in detail is tested in this process.

`train` and `evaluate` are started so in `test_cli_training.py`, which publishes what was trained, too; `publish` and
`restore` in `tests/conversion/test_publish_command.py`.
"""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli.app import app
from tests.support.installed import installed
from tests.support.parity_data import PARITY
from tests.support.recorded_data_sets import DATA_ROOT


pytestmark = pytest.mark.slow

LISA = PARITY / "lisa"
IMAGE = LISA / "images" / "img0.png"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("installed") / "lisa-7b-v1"
    tower = LISA / "vision_tower"
    result = installed(
        *("convert", "lisa", LISA / "checkpoint", "--vision-tower", tower, "--card", "lisa-7b-v1", "--out", out)
    )
    assert "parameters (tensors: " in result.stdout
    return out


def test_convert_writes_what_verify_finds_right(converted):
    assert "258 tensors are right" in installed("verify", converted).stdout


def test_inspect(converted):
    assert "system: lisa; variant: a converted repository" in installed("inspect", converted, "--summary").stdout


def test_compose(tmp_path):
    """What was made says that it has learned nothing, wherever one asks; a wrong option is named as it is typed."""
    ivm, out = PARITY / "ivm", tmp_path / "ivm"
    vlm, segmenter = ("--vlm", ivm / "llava_base"), ("--segmenter", ivm / "sam_vit_h_4b8939.pth")
    result = installed("compose", "--system", "ivm", *vlm, *segmenter, "--out", out)
    assert "; 100 new, which have learned nothing yet)" in result.stdout

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    for command in (("verify", out), ("inspect", out, "--summary"), ("card", "--repo", out)):
        assert "learned nothing yet" in run(*command).stdout, command
    wrong = run("compose", "--system", "ivm", *vlm, "--out", tmp_path / "other")
    assert wrong.exit_code == 1
    assert "IVM cannot be made without --segmenter. Pass --segmenter with it" in " ".join(wrong.stderr.split())
    wrong = run("compose", "--system", "ivm", *vlm, *segmenter, "--heads", "mean", "--out", tmp_path / "other")
    assert "IVM is not made with heads. IVM takes vlm, segmenter" in " ".join(wrong.stderr.split())
    assert not (tmp_path / "other").exists()


def test_to_original(converted, tmp_path):
    assert (
        "in the original layout" in installed("convert", "to-original", converted, "--out", tmp_path / "back").stdout
    )


def test_card(converted):
    text = installed("card", "--repo", converted).stdout
    assert text == (converted / "README.md").read_text(encoding="utf-8")


def test_segment(converted, tmp_path):
    installed("segment", IMAGE, "--phrase", "the dog", "--model", converted, "--out", tmp_path / "masks")
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {
        "img0_mask_0.png",
        "img0_overlay.png",
        "results.jsonl",
    }


def test_mask(small_ivm, tmp_path):
    installed("mask", IMAGE, "the dog", "--model", small_ivm, "--out", tmp_path / "masked")
    assert (tmp_path / "masked" / "img0.png").is_file()


def test_ask(vip_llava_repo, tmp_path):
    question = "What is shown <bbox0>?"
    result = installed(
        *("ask", IMAGE, question, "--model", vip_llava_repo, "--box", "40,30,120,100", "--max-new-tokens", 4),
        cwd=tmp_path,
    )
    assert result.stdout.strip()
    assert (tmp_path / "prompted.png").is_file()


def test_demo(tmp_path):
    result = installed("demo", "--seed", 4, "--out", tmp_path / "demo.png", "--json")
    assert len(json.loads(result.stdout)) == 3
    assert Image.open(tmp_path / "demo.png").width > 480


def test_reasonseg_masks(tmp_path):
    installed("reasonseg-masks", DATA_ROOT / "reason_seg/ReasonSeg/val", "--out", tmp_path / "masks")
    labeled = sorted((tmp_path / "masks").glob("*_labeled.png"))
    assert len(labeled) == len(list((DATA_ROOT / "reason_seg/ReasonSeg/val").glob("*.json")))
