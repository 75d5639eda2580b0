"""COCO instance segmentation by phrases: the original's numbers, and the category a phrase gets."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from reasonseg.data.annotated_images import CocoInstances
from reasonseg.data.coco import run_lengths
from reasonseg.evaluation.coco_instances import (
    candidate_categories,
    name_instances,
    number_instances,
    point_hits,
    read_instances,
    score_instances,
)
from reasonseg.evaluation.coco_scores import coco_scores, iou_matrix
from reasonseg.evaluation.grounded_answers import GroundedAnswer
from reasonseg.evaluation.report import save_contact_sheet
from reasonseg.processing.segments import mask_to_rle
from tests.support.parity_data import PARITY


EVAL = PARITY / "attend_and_segment" / "eval"
RECORDED = json.loads((EVAL / "metrics.json").read_text(encoding="utf-8"))["instance"]
# Words that mean the same point the same way.
WORDS = {"person": (1, 0, 0), "man": (0.9, 0.1, 0), "dog": (0, 1, 0), "puppy": (0.1, 0.9, 0), "car": (0, 0, 1)}


def vector(word):
    return np.array(WORDS.get(word, (0, 0, 0)), dtype=np.float32)


@pytest.fixture(scope="module")
def data():
    return CocoInstances(EVAL / "instances_gt.json")


@pytest.fixture(scope="module")
def instances():
    return read_instances(EVAL / "instances_dt.json")


def test_every_number_is_the_original_one(data, instances):
    result = score_instances(data, instances)
    recorded = [None if value == -1 else value for value in RECORDED["coco_stats"]]
    assert list(result.masks.values()) == pytest.approx(recorded, abs=1e-12)
    assert result.point_accuracy * 100 == pytest.approx(RECORDED["point_accuracy_percent"], abs=1e-12)
    assert (result.points_right, result.points) == (RECORDED["correct"], RECORDED["total"])
    assert result.notes == []
    json.dumps(result.to_dict())


def test_scoring_leaves_its_input_alone(data, instances):
    before = json.dumps([data.dataset, instances])
    first = score_instances(data, instances)
    assert json.dumps([data.dataset, instances]) == before
    assert score_instances(data, instances) == first


def test_without_points_and_without_anything(data, instances):
    bare = [{name: value for name, value in instance.items() if name != "point"} for instance in instances]
    result = score_instances(data, bare)
    assert result.point_accuracy is None
    assert "no instance has a point" in result.notes[0]
    assert score_instances(data, []).masks["ap"] == 0


def test_only_the_first_images(instances):
    data = CocoInstances(EVAL / "instances_gt.json", limit=1)
    own = [instance for instance in instances if instance["image_id"] == data.images[0].id]
    assert score_instances(data, instances).masks == score_instances(data, own).masks
    assert point_hits(data, instances)[1] == len(own)


def test_a_category_that_is_not_in_the_image_is_a_miss(data, instances):
    image = data.images[0]
    absent = next(iter(set(data.categories) - set(candidate_categories(data, image, "paper"))), None)
    moved = {**instances[0], "category_id": absent if absent is not None else 999}
    assert point_hits(data, [moved]) == (0, 1)


def test_candidates(data):
    for image in data.images:
        assert candidate_categories(data, image, "fixed") == {1: "person", 2: "dog", 5: "car"}
        present = {annotation["category_id"] for annotation in data.annotations(image)}
        assert set(candidate_categories(data, image, "paper")) == present
    with pytest.raises(ValueError, match="no protocol 'both'"):
        candidate_categories(data, data.images[0], "both")


def filled(area):
    mask = np.zeros((60, 80), dtype=bool)
    mask.reshape(-1)[:area] = True
    return mask_to_rle(mask)


def test_phrases_get_the_most_similar_category(data):
    image = data.images[0]
    answer = GroundedAnswer(
        caption="The man with a puppy and a thing.",
        phrases=["The man", "a puppy", "a puppy", "a puppy", "a thing"],
        core_words=["The Man", "puppy", "puppy", "puppy", "thing"],
        masks=[filled(area) for area in (10, 5, 0, 7, 9)],
        scores=[1.0, 0.5, 0.6, 0.7, 0.9],
        points=[(3, 4), (5, 6), (5, 6), (5, 6), (7, 8)],
    )
    named = number_instances(name_instances(image, answer, data.categories, vector, category_threshold=0.5))
    assert [(entry["id"], entry["category_name"], entry["area"]) for entry in named] == [
        (1, "person", 10),
        (2, "dog", 5),
        (3, "dog", 7),
    ]
    assert list(named[0]) == [
        *("id", "image_id", "category_id", "category_name", "noun_phrase"),
        *("segmentation", "score", "iscrowd", "area", "point"),
    ]
    assert (named[0]["point"], named[2]["point"]) == ([3, 4], [5, 6])
    assert (named[2]["category_id"], named[2]["score"]) == (2, 0.7)
    only_car = name_instances(image, answer, {5: "car"}, vector, category_threshold=0.0)
    assert {entry["category_name"] for entry in only_car} == {"car"}, "without a threshold, anything is named"
    assert name_instances(image, answer, {}, vector) == []
    assert name_instances(image, GroundedAnswer("", [], []), data.categories, vector) == []
    bare = GroundedAnswer("", ["dog"], [filled(3)], boxes=[(1, 2, 3, 4)])
    (entry,) = name_instances(image, bare, data.categories, vector)
    assert (entry["category_name"], entry["box"], entry["score"]) == ("dog", [1, 2, 3, 4], 1.0)
    with pytest.raises(ValueError, match="1 phrases and 2 masks"):
        name_instances(image, GroundedAnswer("", ["dog"], [filled(3)] * 2), data.categories, vector)


def test_segmentations_of_all_kinds(data):
    kinds = {type(annotation["segmentation"]) for annotation in data.dataset["annotations"]}
    assert kinds == {list, dict}
    square = np.zeros((6, 8), dtype=bool)
    square[1:3, 2:6] = True
    counts = [int(n) for n in np.diff(np.flatnonzero(np.diff(square.reshape(-1, order="F"), prepend=0)), prepend=0)]
    plain = {"size": [6, 8], "counts": [*counts, 48 - sum(counts)]}
    for segmentation in (mask_to_rle(square), plain, [[2, 1, 6, 1, 6, 3, 2, 3]]):
        np.testing.assert_array_equal(coco_mask.decode(run_lengths(segmentation, (6, 8))), square)
    with pytest.raises(ValueError, match=r"of \(6, 8\) .* for an image of \(8, 6\)"):
        run_lengths(mask_to_rle(square), (8, 6))
    with pytest.raises(ValueError, match="list of polygons or have `size`"):
        run_lengths("x", (8, 6))


def test_overlaps_of_empty_masks_are_zero():
    empty, square = np.zeros((6, 8), dtype=bool), np.zeros((6, 8), dtype=bool)
    square[1:3, 2:6] = True
    masks = [run_lengths(mask_to_rle(mask), (6, 8)) for mask in (empty, square, ~square)]
    np.testing.assert_array_equal(iou_matrix(masks, masks), [[0, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert iou_matrix(masks, []).shape == (3, 0)
    assert iou_matrix([], masks).shape == (0, 3)


def test_bad_files(tmp_path, data, instances):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_instances(tmp_path / "nowhere.json")
    path = tmp_path / "dt.json"
    for text, message in (
        ("[", "is not a JSON file"),
        ('[{"image_id": 1}]', "must be a list of entries with category_id"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_instances(path)
    with pytest.raises(ValueError, match=r"1 images have detections and no annotations, such as 7"):
        coco_scores(data.dataset, [{**instances[0], "image_id": 7}])
    twice = json.loads((EVAL / "instances_gt.json").read_text(encoding="utf-8"))
    twice["images"].append(twice["images"][0])
    path.write_text(json.dumps(twice), encoding="utf-8")
    with pytest.raises(ValueError, match="Two images of the annotation file have the id 100"):
        CocoInstances(path)


def test_images_are_checked(tmp_path, data):
    image = data.images[0]
    with pytest.raises(FileNotFoundError, match="--images must be the folder"):
        image.load(tmp_path)
    Image.new("RGB", (10, 10)).save(tmp_path / image.file_name)
    with pytest.raises(ValueError, match=r"is \(10, 10\) pixels .* annotations say \(60, 80\)"):
        image.load(tmp_path)


def test_contact_sheet(tmp_path, data, instances):
    for image in data.images:
        Image.new("RGB", image.size[::-1], (128, 128, 128)).save(tmp_path / image.file_name)
    result = score_instances(data, instances, image_folder=tmp_path)
    things = [annotation for annotation in data.dataset["annotations"] if not annotation["iscrowd"]]
    assert len(result.cases) == len(things)
    assert any(case.phrase == "x -> person" for case in result.cases)
    assert Image.open(save_contact_sheet(result.cases, tmp_path / "cases.png")).size[0] > 100
