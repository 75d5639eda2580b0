"""`reasonseg import`, and the same annotations read by recipes and evaluations as they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.data.annotation_formats import FORMATS, WritingOptions
from reasonseg.data.annotation_writing import write_annotations
from reasonseg.data.data_files import DataFileError
from reasonseg.data.request_folder import read_request_folder
from reasonseg.evaluation.reasoning_segmentation import image_folder_questions
from reasonseg.training.recipe import load_recipe
from tests.support.installed import installed
from tests.support.labelled import BOX, CORNERS, RING, labelled_images


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def annotated(tmp_path) -> Path:
    """A folder for each format, with the images of [`labelled_images`]."""
    given = labelled_images(tmp_path / "images")
    for name in ("coco", "labelme"):
        write_annotations(FORMATS[name], given, tmp_path / name, WritingOptions())
    return tmp_path


@pytest.mark.slow
def test_what_is_imported_is_what_was_drawn(annotated):
    out = annotated / "out" / "train"
    result = installed("import", annotated / "coco", "--out", out, "--absent", 1, "--json")
    printed = json.loads(result.stdout)
    assert (printed["read_as"], printed["images"], printed["masks"]) == ("coco", 4, 5)
    assert "Written:" in result.stderr
    by_name = {image.source.name: image for image in read_request_folder(out)}
    (request,) = by_name["turned.jpg"].requests
    masks = {phrase.text: phrase.mask for phrase in request.phrases}
    assert set(masks) >= {"crème: brûlée", "the ring"}
    assert sum(mask is None for mask in masks.values()) == 1
    (example,) = (image.example() for image in [by_name["turned.jpg"]])
    drawn = dict(zip(masks, example.masks[0], strict=True))
    np.testing.assert_array_equal(drawn["crème: brûlée"], CORNERS)
    np.testing.assert_array_equal(drawn["the ring"], BOX)
    again = run("import", annotated / "labelme", "--out", out, "--image-files", "link")
    assert again.exit_code == 0, again.output
    assert "the ring" in (out / "metadata.jsonl").read_text(encoding="utf-8")
    assert not list(out.parent.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images", "--out", "out"], "looks like none of the formats that are read; say --format NAME"),
        (["nothing", "--out", "out"], "There is no file and no folder"),
        (["anna/cups", "--out", "out"], "A data set on the Hub is read with --format 'datasets'"),
        (["coco", "--out", "hf://datasets/anna/cups"], "is an address. Name a folder"),
        (["coco", "--out", "coco"], "same folder"),
        (["coco", "--out", "images"], "stays as it is"),
        (["coco", "--format", "x", "--out", "out"], "no format 'x'"),
        (["coco", "--out", "out", "--split", "train"], "does not heed --split 'train'"),
        (
            ["far/away", "--out", "out"],
            "lies neither beside the file nor in a folder `images` there. Say --images 'FOLDER'",
        ),
        (["coco", "--out", "out", "--column", "x"], "NAME=COLUMN"),
        (["coco", "--out", "out", "--question", "{x}?"], "may use"),
        (["coco", "--out", "out", "--inner", "x"], "must be one of refuse, hole, fill"),
    ],
)
def test_what_cannot_be_imported_is_said(annotated, arguments, words, monkeypatch):
    monkeypatch.chdir(annotated)
    (annotated / "far" / "away").mkdir(parents=True)
    (annotated / "far" / "away" / "instances.json").write_bytes(Path("coco/annotations/instances.json").read_bytes())
    before = sorted(annotated.rglob("*"))
    result = run("import", *arguments)
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())
    assert sorted(annotated.rglob("*")) == before


def test_an_object_that_cannot_be_read_leaves_nothing(annotated):
    path = annotated / "labelme" / "upright.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["shapes"][0] |= {"shape_type": "line", "mask": None}
    path.write_text(json.dumps(content), encoding="utf-8")
    result = run("import", annotated / "labelme", "--out", annotated / "out")
    assert result.exit_code == 1
    assert "upright.json, shape number 1 ('the ring') is a line" in " ".join(result.stderr.split())
    assert "--without-mask 'skip'" in " ".join(result.stderr.split())
    assert not (annotated / "out").exists()
    result = run("import", annotated / "labelme", "--out", annotated / "out", "--without-mask", "skip")
    assert result.exit_code == 0, result.output
    assert "objects without a mask (1)" in result.stderr


def test_recipes_and_evaluations_read_annotations_as_they_are(annotated):
    folder, wording = annotated / "labelme", "Where is {phrases}?"
    recipe = load_recipe(
        "lisa_image_folder",
        [f"data.path={folder}", "data.options.format=labelme", f"data.options.question='{wording}'"],
    )
    examples = {Path(example.image).name: example for example in recipe.kind.dataset(recipe)}
    questions = image_folder_questions(folder, settings={"format": "labelme", "question": wording})
    by_image = {Path(question.image).name: question for question in questions}
    assert set(examples) == set(by_image) == {"upright.png", "turned.jpg", "second split.png", "nothing.png"}
    for name, question in by_image.items():
        assert examples[name].questions == [question.text]
        assert examples[name].answers == [question.answer]
    place = by_image["upright.png"].phrases.index("the ring")
    np.testing.assert_array_equal(examples["upright.png"].masks[0][place], RING)
    with pytest.raises(DataFileError, match="There is no file and no folder"):
        image_folder_questions(annotated / "nothing", settings={"format": "reasonseg"})
