"""Images to answers with masks: as recorded, in one go or with stored maps, and through the command."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.conversion.convert_attend_and_segment import convert_attend_and_segment
from reasonseg.data.annotated_images import CocoInstances
from reasonseg.evaluation.coco_instances import candidate_categories, name_instances, number_instances
from reasonseg.evaluation.grounded_answers import GroundedAnswer, read_grounded_answers
from reasonseg.evaluation.phrase_grounding import QUESTION, Grounder, ground_images
from tests.support.parity_data import load_meta
from tests.support.recorded_attention import LLAVA, RECORDED, TOWER, recorded_sam


META = load_meta("attend_and_segment")
IMAGES = RECORDED / "images"
NEW_TOKENS = 12
BERT = RECORDED / "eval" / "bert-base-uncased"
INSTANCES = json.loads(gzip.decompress((RECORDED / "iseg.json.gz").read_bytes()))
# As the recordings were made: settings of instance_seg.py and ours.
RUNS = {
    "iseg_point": ({}, "chosen", 0.0),
    "iseg_point_more": ({}, "all", 0.5),
    "iseg_mask_default_temp": ({"prompt": "mask_and_box"}, "chosen", 0.0),
    "iseg_mask": (
        {"prompt": "mask_and_box", "attention_temperature": 0.05326, "box_threshold": 0.5},
        *("chosen", 0.0),
    ),
}


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "attending"
    convert_attend_and_segment(LLAVA, sam=recorded_sam(), vision_tower=TOWER, out=out, phrase_extractor="rules")
    return out


@pytest.fixture(scope="module")
def data():
    return CocoInstances(RECORDED / "instances_gt.json")


@pytest.fixture(scope="module")
def parts(repo):
    processor = AutoProcessor.from_pretrained(repo)
    processor.phrase_extractor = recorded_chunks
    return AutoModel.from_pretrained(repo).eval(), processor


def recorded_chunks(text):
    (case,) = [case for case in META["cases"] if case["answer"] == text.strip()]
    return [
        (
            chunk["start"],
            chunk["start"] + len(chunk["text"]),
            chunk["root_idx"],
            chunk["root_idx"] + len(chunk["root"]),
        )
        for chunk in case["noun_chunks"]
    ]


def word_vector(text):
    """As spaCy does it: the mean over words."""
    return np.mean([INSTANCES["spacy_vectors"][word] for word in text.split()], axis=0, dtype=np.float32)


def grounder(parts, options=None, candidates="chosen"):
    return Grounder(*parts, max_new_tokens=NEW_TOKENS, candidates=candidates, options=options or {})


@pytest.fixture(scope="module")
def attended(parts, data):
    """The model's own answers and maps, by image."""
    return {image.id: grounder(parts).attend([image.load(IMAGES)])[0] for image in data.images}


def test_the_recorded_question_is_the_default():
    assert META["config"]["question"] == QUESTION


def test_grounded_answers_are_the_recorded_ones(parts, data, attended):
    for image, case in zip(data.images, META["cases"], strict=True):
        assert attended[image.id].text == case["answer"]
        answer = GroundedAnswer.from_result(grounder(parts).segment(image.load(IMAGES), attended[image.id]))
        recorded = GroundedAnswer.from_dict(META["gcg_pad"][image.stem])
        assert (answer.caption, answer.phrases, answer.points) == (
            *(recorded.caption, recorded.phrases),
            recorded.points,
        )
        assert answer.masks == recorded.masks, "every run length"


@pytest.mark.parametrize("run", RUNS)
def test_instances_are_the_recorded_ones(parts, data, attended, run):
    options, candidates, threshold = RUNS[run]
    found = []
    for image in data.images:
        result = grounder(parts, options, candidates).segment(image.load(IMAGES), attended[image.id])
        answer, categories = GroundedAnswer.from_result(result), candidate_categories(data, image, "paper")
        found += name_instances(image, answer, categories, word_vector, threshold)
    recorded = INSTANCES[run]
    assert [list(entry) for entry in found] == [list(entry)[1:] for entry in recorded]
    for entry, expected in zip(number_instances(found), recorded, strict=True):
        assert entry.pop("score") == pytest.approx(expected["score"], abs=1e-5)
        assert entry == {name: value for name, value in expected.items() if name != "score"}


def test_every_category_may_be_meant_under_fixed(parts, data, attended):
    image = data.images[0]
    answer = GroundedAnswer.from_result(grounder(parts).segment(image.load(IMAGES), attended[image.id]))
    assert len(candidate_categories(data, image, "fixed")) > len(candidate_categories(data, image, "paper"))
    names = {entry["category_name"] for entry in INSTANCES["iseg_point"] if entry["image_id"] == image.id}
    assert names <= set(candidate_categories(data, image, "paper").values())
    everything = name_instances(image, answer, candidate_categories(data, image, "fixed"), word_vector)
    assert [entry["segmentation"] for entry in everything] == answer.masks


@pytest.mark.slow
def test_stored_maps_give_the_same_files(parts, data, tmp_path, monkeypatch):
    steps = []
    at_once = ground_images(grounder(parts), data.images, IMAGES, tmp_path / "a", {"model": "m"})
    stored = ground_images(
        *(grounder(parts), data.images, IMAGES, tmp_path / "b", {"model": "m"}),
        maps=tmp_path / "maps",
        progress=lambda *step: steps.append(step),
    )
    files = [f"{image.stem}.json" for image in data.images]
    assert [(stored / name).read_bytes() for name in files] == [(at_once / name).read_bytes() for name in files]
    assert [step for step in steps if step[1] == 2] == [("answering", 2, 2), ("segmenting", 2, 2)]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        *(f"{image.stem}.npz" for image in data.images),
        "_settings.json",
    ]

    def never(*args, **kwargs):
        raise AssertionError("the language model ran again")

    monkeypatch.setattr(type(parts[0]), "generate_with_masks", never)
    other = grounder(parts, {"prompt": "box"})
    ground_images(other, data.images, IMAGES, tmp_path / "c", {"model": "m"}, maps=tmp_path / "maps")
    boxes = read_grounded_answers(tmp_path / "c", data.images)
    assert all(answer.boxes and not answer.points for answer in boxes.values())
    (tmp_path / "b" / files[0]).unlink()
    ground_images(grounder(parts), data.images, IMAGES, tmp_path / "b", {"model": "m"}, maps=tmp_path / "maps")
    assert (stored / files[0]).read_bytes() == (at_once / files[0]).read_bytes()
    with pytest.raises(ValueError, match="heads: 'paper', now 'mean'"):
        ground_images(
            *(grounder(parts, {"heads": "mean"}), data.images, IMAGES, tmp_path / "d", {"model": "m"}),
            maps=tmp_path / "maps",
        )


def test_maps_of_the_original_are_segmented(parts, data, attended, tmp_path):
    for image in data.images:
        answer = attended[image.id]
        stored = {
            "answer": answer.text,
            "sequences": torch.tensor([1, *answer.token_ids.tolist()]),
            "attentions": torch.from_numpy(answer.maps),
        }
        torch.save(stored, tmp_path / f"{image.stem}.pth")
    out = ground_images(grounder(parts), data.images, IMAGES, tmp_path / "out", {}, original_maps=tmp_path)
    for image_id, found in read_grounded_answers(out, data.images).items():
        (image,) = [image for image in data.images if image.id == image_id]
        result = grounder(parts).segment(image.load(IMAGES), attended[image_id])
        assert found == GroundedAnswer.from_result(result)
    with pytest.raises(ValueError, match="either `maps` or `original_maps`"):
        ground_images(grounder(parts), data.images, IMAGES, tmp_path / "x", {}, tmp_path, tmp_path)
    (tmp_path / f"{data.images[0].stem}.pth").unlink()
    with pytest.raises(FileNotFoundError, match="There are no attention maps"):
        ground_images(grounder(parts), data.images, IMAGES, tmp_path / "y", {}, original_maps=tmp_path)


def test_images_answered_together_get_the_same_maps(parts, data, attended):
    together = grounder(parts).attend([image.load(IMAGES) for image in data.images])
    for image, answer in zip(data.images, together, strict=True):
        assert answer.text == attended[image.id].text
        torch.testing.assert_close(answer.maps, attended[image.id].maps, atol=1e-6, rtol=1e-4)
        np.testing.assert_array_equal(answer.grid_box, attended[image.id].grid_box)


def test_maps_of_another_image_are_refused(parts, data, attended):
    first, second = data.images
    with pytest.raises(ValueError, match=r"belong to an image of \(170, 110\) .* this one is \(120, 160\)"):
        grounder(parts).segment(first.load(IMAGES), attended[second.id])


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def every_word(text):
    """The words of an answer, which hardly holds a phrase of English."""
    return [(match.span(), match.span()) for match in re.finditer(r"\w+", text)]


@pytest.mark.slow
def test_coco_on_the_command_line(repo, data, tmp_path, monkeypatch):
    monkeypatch.setattr("reasonseg.processing.noun_phrases.rule_noun_phrases", every_word)
    common = ("--dataset", "coco", "--annotations", RECORDED / "instances_gt.json", "--images", IMAGES)
    made = run(
        *(*common, "--model", repo, "--out", tmp_path / "a", "--json"),
        *("--max-new-tokens", NEW_TOKENS, "--batch-size", 2),
        *("--set", f"maps={tmp_path / 'maps'}", "--set", f"word_vectors=encoder:{BERT}"),
    )
    assert made.exit_code == 0, made.output
    printed = json.loads(made.stdout.splitlines()[-1])
    assert printed == json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))
    assert (printed["protocol"], printed["images"]) == ("paper", 2)
    assert printed["instances"] == printed["points"] > 0
    assert 0 <= printed["point_accuracy"] <= 1
    assert (tmp_path / "a" / "cases.png").stat().st_size > 0
    entries = json.loads((tmp_path / "a" / "instances.json").read_text(encoding="utf-8"))
    assert [entry["id"] for entry in entries] == list(range(1, len(entries) + 1))

    again = run(*common, "--out", tmp_path / "b", "--set", f"results={tmp_path / 'a' / 'instances.json'}", "--json")
    assert again.exit_code == 0, again.output
    for name in ("masks", "point_accuracy", "instances"):
        assert json.loads(again.stdout.splitlines()[-1])[name] == printed[name]
    table = run(*common, "--out", tmp_path / "b", "--set", f"results={tmp_path / 'a' / 'instances.json'}")
    assert "point accuracy" in table.stdout


@pytest.mark.slow
def test_of_several_processes_one_reports(tmp_path):
    """On a machine without an accelerator, where accelerate takes several processes for one each unless told."""
    (tmp_path / "found.json").write_text(json.dumps(INSTANCES["iseg_point"]), encoding="utf-8")
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29743"),
            *("-m", "reasonseg", "evaluate", "--dataset", "coco", "--json", "--out", str(tmp_path / "out")),
            *("--annotations", str(RECORDED / "instances_gt.json"), "--set", f"results={tmp_path / 'found.json'}"),
        ],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "ACCELERATE_USE_CPU": "true"},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    lines = [line for line in finished.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1
    assert json.loads(lines[0])["instances"] == len(INSTANCES["iseg_point"])


def test_grandf_on_the_command_line(tmp_path):
    folder = RECORDED / "eval"
    common = (
        *(
            "--dataset",
            "grandf",
            "--annotations",
            folder / "gcg_mask_gt.json",
            "--set",
            f"answers={folder / 'gcg_pred'}",
        ),
        *("--set", f"text_encoder={BERT}", "--set", "captions=no"),
    )
    recorded = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    made = run(*common, "--out", tmp_path, "--json")
    assert made.exit_code == 0, made.output
    printed = json.loads(made.stdout.splitlines()[-1])
    assert printed["recall"] == pytest.approx(recorded["recall"], abs=1e-12)
    assert printed["miou"] == pytest.approx(recorded["mean_miou"], abs=1e-12)
    assert printed["masks"]["ap50"] == pytest.approx(recorded["coco_stats"][1], abs=1e-12)
    table = run(*common, "--out", tmp_path, "--protocol", "fixed")
    assert table.exit_code == 0, table.output
    assert "protocol: fixed" in table.stdout
    assert "recall" in table.stdout


def test_word_vectors_must_be_there(tmp_path, monkeypatch):
    pipeline = SimpleNamespace(vocab=SimpleNamespace(vectors_length=0), meta={"lang": "en", "name": "core_web_sm"})
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: pipeline))
    arguments = ("--dataset", "coco", "--out", tmp_path, "--annotations", RECORDED / "instances_gt.json")
    refused = run(*arguments, "--set", "word_vectors=spacy:en_core_web_sm")
    assert "The pipeline spacy:en_core_web_sm has no word vectors" in " ".join(refused.stderr.split())
    monkeypatch.setitem(sys.modules, "spacy", None)
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "or compare with a text encoder: --set word_vectors=encoder:FOLDER" in " ".join(refused.stderr.split())


def test_what_the_command_refuses(repo, lisa_repo, tmp_path):
    coco = ("--dataset", "coco", "--out", tmp_path)
    annotated = (*coco, "--annotations", RECORDED / "instances_gt.json")
    grandf = ("--dataset", "grandf", "--out", tmp_path, "--annotations", RECORDED / "eval" / "gcg_mask_gt.json")
    grandf = (*grandf, "--set", "text_encoder=none")
    for arguments, message in (
        (coco, "--dataset coco also needs --annotations"),
        ((*coco, "--annotations", tmp_path / "x.json"), "x.json does not exist"),
        ((*annotated, "--set", "word_vectors=ears"), "--set word_vectors=ears is not known"),
        ((*annotated, "--set", "word_vectors=encoder:x"), "The text encoder 'x'"),
        ((*annotated, "--set", "box_threshold=high"), "--set box_threshold=high cannot be read"),
        ((*annotated, "--protocol", "free"), "--dataset coco has no protocol 'free'; choose one of paper, fixed"),
        (grandf, "--dataset grandf also needs --model, --images"),
        ((*grandf, "--model", lisa_repo, "--images", IMAGES), "needs a model that points by its attention"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 1, (arguments, refused.output)
        assert message in " ".join(refused.stderr.split()), refused.stderr
