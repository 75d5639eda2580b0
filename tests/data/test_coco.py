"""Annotation files as people have them: cleaned in a copy, or refused with the file and the annotation."""

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from reasonseg.data.annotated_images import CocoInstances
from reasonseg.data.coco import clean_annotations, clean_segmentation, run_lengths
from reasonseg.data.data_files import DataFileError
from reasonseg.data.grandf import GroundedConversations
from reasonseg.evaluation.coco_instances import read_instances, score_instances
from reasonseg.evaluation.grounded_answers import read_grounded_answers
from reasonseg.processing.segments import mask_to_rle
from tests.support.parity_data import PARITY


SIZE = (40, 60)
BOXES = {"cup": (4, 4, 24, 20), "dog": (30, 10, 55, 36)}


def polygon(name: str) -> list[float]:
    x1, y1, x2, y2 = BOXES[name]
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def mask(name: str) -> np.ndarray:
    x1, y1, x2, y2 = BOXES[name]
    filled = np.zeros(SIZE, dtype=bool)
    filled[y1:y2, x1:x2] = True
    return filled


def annotation(name: str, **fields) -> dict:
    values = {
        "id": 1,
        "image_id": 7,
        "category_id": list(BOXES).index(name) + 1,
        "iscrowd": 0,
        "area": mask(name).sum(),
    }
    values |= {"segmentation": [polygon(name)], **fields}
    values["area"] = values["area"] if values["area"] is None else int(values["area"])
    return {field: value for field, value in values.items() if value != "left out"}


def dataset(*annotations, **fields) -> dict:
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 40, "width": 60}],
        "annotations": list(annotations),
        "categories": [{"id": number, "name": name} for number, name in enumerate(BOXES, start=1)],
        **fields,
    }


def found(name: str, image_id=7, category_id=None, **fields) -> dict:
    category_id = list(BOXES).index(name) + 1 if category_id is None else category_id
    rle = mask_to_rle(mask(name))
    return {"image_id": image_id, "category_id": category_id, "segmentation": rle, "score": 0.9, **fields}


def scores(tmp_path, content: dict, *results) -> dict:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return score_instances(CocoInstances(path), list(results) or [found("cup"), found("dog")]).masks


PERFECT = {"ap": 1.0, "ap50": 1.0, "ar100": 1.0}


def assert_perfect(numbers: dict) -> None:
    assert {name: numbers[name] for name in PERFECT} == pytest.approx(PERFECT)


@pytest.mark.parametrize(
    "ids", [(0, 1), (0, 0), (5, 5), (-1, -2), (None, None), ("left out", "left out"), ("a", "b"), ("7", 7), (1.0, 2.5)]
)
def test_ids_of_every_kind(tmp_path, ids):
    """With pycocotools alone, 0 counts as "not found" and an id that occurs twice is read twice."""
    annotations = [annotation(name, id=number) for name, number in zip(BOXES, ids, strict=True)]
    assert_perfect(scores(tmp_path, dataset(*annotations)))


def test_images_and_categories_from_0_on(tmp_path):
    content = dataset(
        annotation("cup", id=0, image_id=0, category_id=0),
        images=[{"id": 0, "file_name": "a.jpg", "height": 40, "width": 60}],
        categories=[{"id": 0, "name": "cup"}],
    )
    assert_perfect(scores(tmp_path, content, found("cup", image_id=0, category_id=0)))


@pytest.mark.parametrize("fields", [{"iscrowd": "left out"}, {"area": "left out"}, {"iscrowd": None, "area": None}])
def test_fields_that_are_missing(tmp_path, fields):
    annotations = [annotation(name, id=number) for number, name in enumerate(BOXES)]
    for one in annotations:
        for name, value in fields.items():
            one[name] = value
            if value == "left out":
                del one[name]
    assert_perfect(scores(tmp_path, dataset(*annotations)))
    cleaned = clean_annotations(annotations, {7: SIZE}, "file")
    assert [(one["id"], one["iscrowd"], one["area"]) for one in cleaned] == [(1, 0, 320), (2, 0, 650)]


LEFT_OUT = {
    "two corners": [[1, 1, 9, 9]],
    "two corners beside": [[1, 1, 9, 9], polygon("cup")],
    "four numbers in front": [[0, 0, 3, 3], polygon("cup")],
    "four numbers after": [polygon("cup"), [0, 0, 3, 3]],
    "empty beside": [[], polygon("cup"), [1, 2]],
    "flat": polygon("cup"),
    "pairs": [[4, 4], [24, 4], [24, 20], [4, 20]],
    "parts": [[4, 4, 14, 4, 14, 20, 4, 20], [14, 4, 24, 4, 24, 20, 14, 20]],
    "floats": [[float(number) for number in polygon("cup")]],
    "run lengths": mask_to_rle(mask("cup")),
    "counts": {"size": [40, 60], "counts": [164, *[16, 24] * 19, 16, 2400 - 164 - 40 * 19 - 16]},
}


@pytest.mark.parametrize("kind", [name for name in LEFT_OUT if name != "two corners"])
def test_segmentations_that_are_cleaned(tmp_path, kind):
    content = dataset(annotation("cup", segmentation=LEFT_OUT[kind]), annotation("dog", id=2))
    assert_perfect(scores(tmp_path, content))
    decoded = coco_mask.decode(run_lengths(LEFT_OUT[kind], SIZE)).astype(bool)
    np.testing.assert_array_equal(decoded, mask("cup"))


REFUSED = [
    ([], r"is \[\], which has no polygon of 3 or more corners"),
    ([[]], r"is \[\[\]\], which has no polygon"),
    ([[[]]], "which has no polygon"),
    ([[1, 1, 9, 9]], r"which has no polygon of 3 or more corners"),
    ([1, 1, 9, 9], "which has no polygon of 3 or more corners"),
    ([[1, 1, 9, 9, 5]], "even number of finite numbers"),
    ([[1, 1, 9, 9, 5, None]], "even number of finite numbers"),
    ([["1", "1", "9", "9", "5", "5"]], "even number of finite numbers"),
    ([[1, 1, 1e9, 1, 1e9, 9]], r"from \(1, 1\) to \(1e\+09, 9\), and the image is 60 x 40"),
    ([[polygon("cup"), [6, 6, 9, 6, 9, 9]]], "polygon with holes, which COCO's polygons cannot have"),
    ("abc", "must be a list of polygons or have `size` and `counts`"),
    (3, "must be a list of polygons"),
    (None, "it has no `segmentation`"),
    ({"size": [40, 60]}, "dict with size and counts"),
    ({"size": [40, 60], "counts": [100, 20]}, "counts that sum up to 120; its size 40 x 60 .* needs 2400"),
    ({"size": [40, 60], "counts": [2400, 20]}, "counts that sum up to 2420"),
    ({"size": [40, 60], "counts": mask_to_rle(mask("cup")[:, :30])["counts"]}, "counts that sum up to 1200"),
    ({"size": [60, 40], "counts": [2400]}, r"of \(60, 40\) \(height, width\) was given for an image of \(40, 60\)"),
]


@pytest.mark.parametrize(("segmentation", "message"), REFUSED)
def test_segmentations_that_are_refused(tmp_path, segmentation, message):
    content = dataset(annotation("dog", id=3), annotation("cup", id=12, segmentation=segmentation))
    with pytest.raises(DataFileError, match=rf"instances\.json, annotation 12 of image 7: .*{message}"):
        scores(tmp_path, content)
    if segmentation is not None:
        with pytest.raises(ValueError, match=message):
            clean_segmentation(segmentation, SIZE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image_id": "7"},
            "5 of image '7': its `image_id` is '7', the image's `id` 7. Both must be the same",
        ),
        ({"image_id": "left out"}, r"number 1 is \{.*it must be an object with `image_id`"),
        ({"image_id": [7]}, "same number or text"),
        (
            {"category_id": 9},
            r"5 of image 7: its `category_id` is 9; it must be one of \[1, 2\]",
        ),
        ({"category_id": "left out"}, "its `category_id` is None"),
        ({"iscrowd": 2}, "its `iscrowd` is 2; it must be 0 or 1"),
        ({"iscrowd": "no"}, "its `iscrowd` is 'no'"),
    ],
)
def test_annotations_that_are_refused(tmp_path, fields, message):
    with pytest.raises(DataFileError, match=rf"instances\.json, annotation .*{message}"):
        scores(tmp_path, dataset(annotation("cup", id=5, **fields)))


@pytest.mark.parametrize("area", [-1, "big", float("nan"), True, [3]])
def test_areas_that_are_refused(tmp_path, area):
    wrong = {**annotation("cup"), "area": area}
    with pytest.raises(DataFileError, match="annotation 1 of image 7: its `area` is"):
        scores(tmp_path, dataset(wrong))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": []}, "has no images; an empty data set has no scores"),
        ({"images": ["a.jpg"]}, "image number 1 is 'a.jpg'; it must have an `id`"),
        ({"images": [{"file_name": "a.jpg"}]}, "it must have an `id`"),
        ({"images": [{"id": 7, "height": "40", "width": 60}]}, r"image 7: height and width are \('40', 60\)"),
        ({"images": [{"id": 7, "height": 40.5, "width": 60}]}, "height and width are"),
        ({"images": [{"id": 7, "height": 40, "width": 60, "file_name": 3}]}, "its `file_name` is 3, no text"),
        ({"categories": [{"id": 1}]}, "category number 1 is .*it must have an `id` and a `name`"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category 'b' has the id 1; each needs"),
        ({"annotations": ["x"]}, "annotation number 1 is 'x'"),
    ],
)
def test_files_that_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        scores(tmp_path, dataset(annotation("cup"), **fields))


def test_annotations_of_images_that_are_not_listed_are_counted(tmp_path):
    content = dataset(annotation("cup"), annotation("dog", id=2), annotation("dog", id=3, image_id=99))
    assert_perfect(scores(tmp_path, content))
    assert "1 annotations belong to images" in CocoInstances(tmp_path / "instances.json").notes[0]


def test_the_file_itself_is_left_alone_and_the_original_numbers_stay():
    path = PARITY / "attend_and_segment" / "eval" / "instances_gt.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    before = copy.deepcopy(content["annotations"])
    cleaned = clean_annotations(content["annotations"], sizes, "file")
    assert content["annotations"] == before
    assert [one["area"] for one in cleaned] == [one["area"] for one in before]
    for one, original in zip(cleaned, before, strict=True):
        size = sizes[one["image_id"]]
        expected = original["segmentation"]
        if isinstance(expected, list):
            expected = coco_mask.merge(coco_mask.frPyObjects(expected, *size))
        elif isinstance(expected["counts"], list):
            expected = coco_mask.frPyObjects(expected, *size)
        assert np.array_equal(coco_mask.decode(run_lengths(one["segmentation"], size)), coco_mask.decode(expected))


def test_a_byte_order_mark(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(dataset(annotation("cup"))), encoding="utf-8-sig")
    assert CocoInstances(path).categories == {1: "cup", 2: "dog"}
    path.write_text(json.dumps([found("cup")]), encoding="utf-8-sig")
    assert len(read_instances(path)) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segmentation": {"size": [40, 60], "counts": [3]}}, "Detection number 2, of image 7: .* sum up to 3"),
        ({"segmentation": [[1, 1, 9, 9]]}, "Detection number 2, of image 7: .*no polygon of 3 or more"),
        ({"score": float("nan")}, "Detection number 2, of image 7, has the score nan"),
        ({"score": "0.5"}, "has the score '0.5'"),
        ({"image_id": 8}, "1 images have detections and no annotations"),
    ],
)
def test_results_that_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        scores(tmp_path, dataset(annotation("cup")), found("cup"), found("dog", **fields))


def test_results_with_boxes_and_polygons_count_by_their_masks(tmp_path):
    content = dataset(annotation("cup"), annotation("dog", id=2))
    plain = scores(tmp_path, content)
    wide = [found(name, bbox=[0, 0, 60, 40]) for name in BOXES]
    outlined = [found(name, segmentation=[polygon(name)]) for name in BOXES]
    assert scores(tmp_path, content, *wide) == scores(tmp_path, content, *outlined) == plain


def test_points_outside_the_image_are_misses(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(dataset(annotation("cup"))), encoding="utf-8")
    data = CocoInstances(path)
    points = [(5, 5), (5.7, 5.2), (-50, -30), (60, 5), (5, 40)]
    result = score_instances(data, [found("cup", point=list(point)) for point in points])
    assert (result.points_right, result.points) == (2, 5)
    path.write_text(json.dumps([found("cup"), found("cup", point=[3])]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"entry number 2: its `point` is \[3\]; it must be \[x, y\]"):
        read_instances(path)


def grounded(tmp_path, masks: list, captions: list | None = None) -> GroundedConversations:
    images = [{"id": "a", "file_name": "a.jpg", "height": 40, "width": 60}]
    captions = captions or [{"id": 0, "image_id": "a", "caption": "A cup.", "labels": ["A cup"]}]
    masks = {"images": images, "annotations": masks, "categories": [{"id": 1, "name": "object"}]}
    (tmp_path / "x_mask_gt.json").write_text(json.dumps(masks), encoding="utf-8")
    captions = {"images": images, "annotations": captions}
    (tmp_path / "x_caption_gt.json").write_text(json.dumps(captions), encoding="utf-8")
    return GroundedConversations(tmp_path / "x_mask_gt.json")


def test_grounded_conversations_are_cleaned_alike(tmp_path):
    one = {"id": 0, "image_id": "a", "category_id": 1, "segmentation": [[0, 0, 3, 3], polygon("cup")]}
    data = grounded(tmp_path, [one, {**one, "segmentation": mask_to_rle(mask("dog"))}, {"id": 9, "image_id": "a"}])
    target = data.target(data.images[0])
    assert [coco_mask.area(rle) for rle in target.masks] == [320, 650]
    assert [annotation["id"] for annotation in data.mask_dataset["annotations"]] == [1, 2]
    with pytest.raises(DataFileError, match=r"x_mask_gt\.json, annotation 4 of image 'a': .*sum up to 3"):
        grounded(tmp_path, [{**one, "id": 4, "segmentation": {"size": [40, 60], "counts": [3]}}])
    for caption in ("text", {"image_id": "a"}, {"image_id": "a", "caption": "A cup.", "labels": "A cup"}):
        with pytest.raises(DataFileError, match=r"x_caption_gt\.json, caption number 1 is .*must have an `image_id`"):
            grounded(tmp_path, [one], [caption])


def test_answers_with_masks_that_cannot_be_read(tmp_path):
    data = grounded(tmp_path, [])
    for content, message in (
        ([], r"a\.json cannot be read: An answer must be an object"),
        ({"caption": "A cup.", "phrases": ["A cup"], "pred_masks": "x"}, "cannot be read: .*pred_masks"),
        (
            {"caption": "", "phrases": ["A cup"], "pred_masks": [{"size": [40, 60], "counts": [3]}]},
            r"a\.json cannot be read: Mask number 1 has counts that sum up to 3",
        ),
    ):
        (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_grounded_answers(tmp_path, data.images)
    answer = {"caption": "", "phrases": ["A cup"], "pred_masks": [[polygon("cup")]]}
    (tmp_path / "a.json").write_text(json.dumps(answer), encoding="utf-8-sig")
    assert read_grounded_answers(tmp_path, data.images)["a"].phrases == ["A cup"]
