"""`reasonseg segment` with a model that grounds every phrase it writes."""

import json

from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli.app import app
from tests.support.recorded_attention import RECORDED, converted_repo


IMAGE = RECORDED / "images" / "000000000001.jpg"


def test_phrases_and_coloured_answers(tmp_path):
    phrases = ("-p", "the red cup", "-p", "a dog")
    command = ("segment", IMAGE, *phrases, "-m", converted_repo(), "-o", tmp_path / "out")
    # The answers are also made where the masks are there already.
    for more in ((), ("--answers",)):
        done = CliRunner().invoke(app, [str(argument) for argument in (*command, *more)])
        assert done.exit_code == 0, done.output
    (line,) = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(line)
    assert record["phrase_extractor"] == "given"
    assert [segment["label"] for segment in record["segments"]] == ["the red cup", "a dog"]
    for segment in record["segments"]:
        assert record["text"][slice(*segment["span"])] == segment["label"]
        assert Image.open(tmp_path / "out" / segment["mask"]).size == (160, 120)
    page = (tmp_path / "out" / record["answer_html"]).read_text(encoding="utf-8")
    assert page.count("<mark") == 2
    assert Image.open(tmp_path / "out" / record["answer_png"]).width == 480
