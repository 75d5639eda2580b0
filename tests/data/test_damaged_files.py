"""Hundreds of damaged files: each is read, or refused by an error that names it. Nothing else ever leaves a reader."""

import json

import numpy as np
import pytest
from PIL import Image

from reasonseg.data.annotated_images import CocoInstances
from reasonseg.data.data_files import DataFileError
from reasonseg.data.grandf import GroundedConversations
from reasonseg.data.ivm_mix import IvmMixSource, read_records
from reasonseg.data.region_conversation import sample_prompts
from reasonseg.data.region_data import RegionFile
from reasonseg.data.region_questions import build_conversation
from reasonseg.data.request_folder import read_request_folder
from reasonseg.data.vip_bench import VipBenchError, read_vip_bench
from reasonseg.evaluation.coco_instances import read_instances, score_instances
from reasonseg.evaluation.grounded_answers import read_grounded_answers
from reasonseg.evaluation.grounded_conversation import score_grounded_conversation
from reasonseg.processing.segments import mask_to_rle
from reasonseg.processing.visual_prompt_sampling import PromptRandom
from tests.support.mutations import mutations
from tests.support.parity_data import PARITY


SIZE = (20, 30)
MASK = np.zeros(SIZE, dtype=bool)
MASK[4:12, 6:20] = True
RLE, POLYGONS = mask_to_rle(MASK), [[6, 4, 20, 4, 20, 12], [1, 1, 5, 1, 5, 3, 1, 3]]
COUNTS = {"size": [20, 30], "counts": [124, 8, 468]}
COUNT = 200


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def read_all(values, write_file, read, errors, named) -> int:
    """How many were refused. A test fails on any other error, and on a message that does not name the file."""
    refused = 0
    for value in values:
        write_file(value)
        try:
            read()
        except errors as error:
            refused += 1
            if named not in str(error):
                raise AssertionError(f"{error} does not say {named!r}") from error
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} of {json.dumps(value)[:500]}") from error
    return refused


def test_folders_of_requests(tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
    Image.fromarray(MASK).save(tmp_path / "m.png")
    answer = "[SEG] [SEG] [SEG] [SEG] [REJ]"
    phrases = [{"text": "a", "type": "b", "segmentation": one} for one in (RLE, POLYGONS, COUNTS, "m.png", None)]
    row = {"file_name": "a.png", "width": 30, "height": 20, "mask_frame": "upright"}
    row["requests"] = [{"question": "Where?", "answer": answer, "phrases": phrases}]
    write(tmp_path / "metadata.jsonl", row)
    assert len(read_request_folder(tmp_path)) == 1
    refused = read_all(
        mutations(row, COUNT, 0),
        lambda value: write(tmp_path / "metadata.jsonl", value),
        lambda: [image.example() for image in read_request_folder(tmp_path)],
        DataFileError,
        "metadata.jsonl, line 1: ",
    )
    assert COUNT / 2 < refused < COUNT


def coco_file() -> dict:
    annotations = [
        {"id": number, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 9.5, "segmentation": one}
        for number, one in enumerate((RLE, POLYGONS, COUNTS))
    ]
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cup"}],
    }


def test_annotation_files(tmp_path):
    path = tmp_path / "instances.json"
    detections = [{"image_id": 7, "category_id": 1, "segmentation": RLE, "score": 0.5}]
    values = mutations(coco_file(), COUNT, 1)
    refused = read_all(
        values, lambda value: write(path, value), lambda: CocoInstances(path), ValueError, "instances.json"
    )
    assert COUNT / 4 < refused < COUNT
    for value in values:
        write(path, value)
        try:
            data = CocoInstances(path)
        except ValueError:
            continue
        listed = {image.id for image in data.images}
        score_instances(data, [one for one in detections if one["image_id"] in listed])


def test_results_files(tmp_path):
    write(tmp_path / "instances.json", coco_file())
    data = CocoInstances(tmp_path / "instances.json")
    results = [
        {"image_id": 7, "category_id": 1, "segmentation": one, "score": 0.5, "point": [7, 5], "noun_phrase": "cup"}
        for one in (RLE, POLYGONS, COUNTS)
    ]
    path = tmp_path / "results.json"
    refused = read_all(
        mutations(results, COUNT, 2),
        lambda value: write(path, value),
        lambda: score_instances(data, read_instances(path), image_folder=tmp_path),
        ValueError,
        "",
    )
    assert COUNT / 4 < refused < COUNT


def test_grounded_files(tmp_path):
    images = [{"id": "a", "file_name": "a.jpg", "height": 20, "width": 30}]
    masks = {**coco_file(), "images": images}
    for annotation in masks["annotations"]:
        annotation["image_id"] = "a"
    captions = {"images": images, "annotations": [{"image_id": "a", "caption": "A cup.", "labels": ["A cup"]}]}
    answer = {"caption": "A cup.", "phrases": ["A cup"], "pred_masks": [RLE], "points": [[7, 5]], "scores": [0.5]}
    files = {"x_mask_gt.json": masks, "x_caption_gt.json": captions, "a.json": answer}

    def read():
        data = GroundedConversations(tmp_path / "x_mask_gt.json")
        answers = read_grounded_answers(tmp_path, data.images)
        score_grounded_conversation(data, answers, "fixed", score_captions=False)

    for seed, name in enumerate(files):
        for other, value in files.items():
            write(tmp_path / other, value)
        read()
        values = mutations(files[name], COUNT, seed)
        errors = (ValueError, FileNotFoundError)
        refused = read_all(values, lambda value, name=name: write(tmp_path / name, value), read, errors, "")
        assert 0 < refused < COUNT


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_region_files(tmp_path, suffix):
    turns = [{"from": "human", "value": "What is <bbox0>?"}, {"from": "gpt", "value": "A cup."}]
    row = {"id": "mine", "image": "a.png", "bboxes": [[0, 0, 5, 5]], "segmentations": [RLE], "conversations": turns}
    path = tmp_path / f"rows.{suffix}"
    refused = read_all(
        mutations(row, COUNT, 3),
        lambda value: write(path, value if suffix == "jsonl" else [value]),
        lambda: RegionFile(path)[0],
        DataFileError,
        path.name,
    )
    assert COUNT / 4 < refused < COUNT


@pytest.mark.parametrize("dataset", ["refcocog", "vg_rel", "vcr", "flickr30k", "v7w", "pointQA_twice"])
def test_rows_of_published_region_data(tmp_path, dataset):
    recorded = PARITY / "vip_llava" / "visual_prompts"
    cases = json.loads((recorded / "organizer.json").read_text(encoding="utf-8"))["cases"]
    row = next(case["source"] for case in cases if case["source"]["id"].startswith(dataset))
    path = tmp_path / "rows.json"

    def read():
        rng = PromptRandom.from_seed(0)
        sample_prompts(build_conversation(RegionFile(path)[0], rng), (200, 200), rng)

    objects = json.loads((recorded / "vcr_meta.json").read_text(encoding="utf-8"))
    write(tmp_path / "vcr_meta.json", objects)
    row["image"] = "a.png"
    write(path, [row])
    read()
    refused = read_all(mutations(row, COUNT, 6), lambda value: write(path, [value]), read, DataFileError, "")
    assert COUNT / 8 < refused < COUNT
    if dataset == "vcr":
        write(path, [row])
        values = mutations(objects, COUNT, 7)
        assert read_all(values, lambda value: write(tmp_path / "vcr_meta.json", value), read, DataFileError, "")


def test_masking_files(tmp_path):
    row = {"uuid": "a", "instruction": ["find the cup"], "image": "a.jpg", "boxes": [[0.1, 0.1, 0.5, 0.5]]}
    path = tmp_path / "meta.jsonl"
    refused = read_all(
        mutations(row, COUNT, 4),
        lambda value: write(path, value),
        lambda: read_records(IvmMixSource(path, tmp_path)),
        DataFileError,
        "meta.jsonl, line 1: ",
    )
    assert COUNT / 4 < refused < COUNT


def test_vip_bench_files(tmp_path):
    (tmp_path / "bbox").mkdir()
    metadata = {"v1_0": {"question": "<obj>?", "answer": "red", "capability": ["rec"]}}
    question = {"question_id": 0, "image": "0.png", "text": "What?"}
    for path, value in (("vip-bench-meta-data.json", metadata), ("bbox/questions.jsonl", question)):
        write(tmp_path / "vip-bench-meta-data.json", metadata)
        write(tmp_path / "bbox" / "questions.jsonl", question)
        refused = read_all(
            mutations(value, COUNT, 5),
            lambda changed, path=path: write(tmp_path / path, changed),
            lambda: read_vip_bench(tmp_path, "bbox"),
            VipBenchError,
            "",
        )
        assert COUNT / 4 < refused < COUNT
