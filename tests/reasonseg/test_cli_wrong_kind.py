"""A model of another kind is refused before its weights are read, by the name of the command that runs it."""

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModel, CLIPConfig, LlavaConfig, VipLlavaConfig, pipeline
from typer.testing import CliRunner

import reasonseg
from reasonseg.cli.app import app
from reasonseg.conversion.systems import SYSTEMS
from reasonseg.evaluation.reasoning_segmentation import Question, evaluate
from tests.support.installed import forked
from tests.support.tiny_vip_llava import write_repo


CONFIGS = {
    "lisa": reasonseg.LisaConfig,
    "gsva": reasonseg.GsvaConfig,
    "reasoning_segmentation": reasonseg.ReasoningSegmentationConfig,
    "sa2va": reasonseg.Sa2VaConfig,
    "coordinates": reasonseg.CoordinatesConfig,
    "ivm": reasonseg.IvmConfig,
    "vip_llava": VipLlavaConfig,
    "difflmm": reasonseg.DiffLmmConfig,
    "attend_and_segment": reasonseg.AttendAndSegmentConfig,
    "llava": LlavaConfig,
    "clip": CLIPConfig,
}
REFUSED = [
    ("segment", "vip_llava", ["ask"]),
    ("segment", "difflmm", ["ask"]),
    ("segment", "llava", ["ask"]),
    ("segment", "clip", []),
    ("mask", "lisa", ["segment", "ask"]),
    ("mask", "gsva", ["segment", "ask"]),
    ("mask", "attend_and_segment", ["segment", "ask"]),
    ("mask", "reasoning_segmentation", ["segment", "ask"]),
    ("mask", "sa2va", ["segment", "ask"]),
    ("mask", "coordinates", ["segment", "ask"]),
    ("mask", "vip_llava", ["ask"]),
    ("mask", "difflmm", ["ask"]),
    ("ask", "ivm", ["mask", "segment"]),
    ("ask", "clip", []),
]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in.png"
    Image.new("RGB", (40, 30), "white").save(path)
    return path


@pytest.fixture
def config_only(tmp_path):
    """Folders with a configuration and nothing else: whoever reads weights fails."""

    def write(kind: str) -> Path:
        folder = tmp_path / kind
        CONFIGS[kind]().save_pretrained(folder)
        return folder

    return write


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.stderr.split()), result.stdout


@pytest.mark.parametrize(("command", "kind", "fitting"), REFUSED)
def test_the_message_names_the_commands_that_fit(command, kind, fitting, config_only, image, tmp_path):
    repo, out = config_only(kind), tmp_path / "out"
    errors, printed = run(command, image, "Where?", "--model", repo, "--out", out, code=1)
    assert errors.startswith(f"error: reasonseg {command} cannot run '{repo}': it is of the kind {kind}, ")
    for other in ("segment", "mask", "ask"):
        assert (f"`reasonseg {other} --model {repo}`" in errors) == (other in fitting)
    assert "AttributeError" not in errors
    assert str(image) not in errors, "the image is not to blame"
    assert printed == ""
    assert not out.exists()


def test_every_system_has_a_command_and_no_command_fits_all():
    for system in SYSTEMS.values():
        refusing = {command for command, kind, _ in REFUSED if kind == system.name}
        assert refusing == {"segment", "mask", "ask"} - set(system.commands)
        assert system.commands


@pytest.mark.parametrize(
    ("dataset", "kind", "fitting"),
    [("tabletop", "vip_llava", "ask"), ("tabletop", "difflmm", "ask"), ("v7w", "ivm", "mask")],
)
def test_evaluate(dataset, kind, fitting, config_only, image, tmp_path):
    row = {
        "id": "v7w-0",
        "image": "in.png",
        "bboxes": [[0, 0, 9, 9]] * 4,
        "question": "Which?",
        "answer": [0, 0, 9, 9],
    }
    (tmp_path / "rows.json").write_text(json.dumps([row]), encoding="utf-8")
    options = ("--annotations", tmp_path / "rows.json", "--out", tmp_path / "out")
    errors, _ = run("evaluate", "--dataset", dataset, "--model", config_only(kind), *options, code=1)
    assert f"--dataset {dataset} cannot run" in errors
    assert f"`reasonseg {fitting} --model" in errors


def test_an_answer_is_given_only_to_a_model_that_reads_it(small_ivm, tmp_path):
    options = ("--dataset", "tabletop", "--scenes", 1, "--model", small_ivm, "--out", tmp_path)
    errors, _ = run("evaluate", *options, "--protocol", "paper", code=1)
    assert "Use the protocol `free`" in errors
    question = Question(image=None, text="Where?", answer="[SEG].", phrases=["a cup"], masks=[None], types=[None])
    with pytest.raises(ValueError, match=r"IvmForVisualMasking has no such token\. Use the protocol 'free'"):
        evaluate(AutoModel.from_pretrained(small_ivm), None, [question], protocol="paper")


def test_demo(config_only, tmp_path):
    errors, _ = run("demo", "--model", config_only("vip_llava"), "--out", tmp_path / "demo.png", code=1)
    assert "`reasonseg ask --model" in errors


@pytest.mark.slow
def test_the_installed_command(image, config_only, tmp_path):
    done = forked("segment", image, "Where?", "--model", config_only("difflmm"), "--out", tmp_path / "out", code=1)
    assert done.stderr.count("error:") == 1
    assert "`reasonseg ask --model" in done.stderr


def test_ask_points_to_the_command_that_draws(lisa_repo, image):
    note, answer = run("ask", image, "Where?", "--model", lisa_repo, "--max-new-tokens", 2)
    assert "draw a mask for every [SEG] in it. The command for that is `reasonseg segment`." in note
    assert answer.strip()


def test_segment_with_ivm_prints_no_empty_text(small_ivm, image, tmp_path):
    note, printed = run("segment", image, "Where?", "--model", small_ivm, "--out", tmp_path / "out")
    assert "write no text. The command for that is `reasonseg mask`." in note
    assert printed.splitlines()[0] == str(image)
    assert printed.splitlines()[1].startswith("  Where?: ")
    (line,) = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["text"] == ""


@pytest.mark.parametrize("kind", ["vip_llava", "difflmm"])
def test_the_pipeline(kind, request, tmp_path):
    repo = write_repo(tmp_path) if kind == "vip_llava" else request.getfixturevalue("difflmm_repo")
    with pytest.raises(ValueError, match=r'draws no masks.*are run by pipeline\("image-text-to-text".*reasonseg ask'):
        pipeline("reasoning-segmentation", model=str(repo))
