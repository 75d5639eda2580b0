"""PACO-LVIS and PASCAL-Part: annotations one by one, their texts and masks equal to the originals'."""

import copy
import json
import logging
import shutil

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from reasonseg.data.data_files import DataFileError
from reasonseg.data.mask_targets import UndrawableMaskError, load_image
from reasonseg.data.part_segmentation import PacoLvis, PascalPart, draw_segmentation
from tests.support.recorded_data_sets import DATA_ROOT, SYSTEMS, assert_same_image, recorded, recorded_arrays


READERS = {"paco_lvis": PacoLvis, "pascal_part": PascalPart}
FILES = {
    "paco_lvis": "vlpart/paco/annotations/paco_lvis_v1_train.json",
    "pascal_part": "vlpart/pascal_part/train.json",
}
CANDIDATES = [
    (system, name, item)
    for system in SYSTEMS
    for name in READERS
    for item in recorded(f"{system}/mixture_candidates")[name]["items"]
]


@pytest.fixture
def root(tmp_path):
    """A copy of the data root to damage."""
    for folder in ("vlpart", "coco"):
        shutil.copytree(DATA_ROOT / folder, tmp_path / folder)
    return tmp_path


def changed(root, name, change):
    """The reader of a file after `change` of its content."""
    path = root / FILES[name]
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return READERS[name](root)


@pytest.mark.parametrize(("system", "name", "item"), CANDIDATES, ids=lambda value: str(value)[:40])
def test_annotations_give_the_recorded_texts_and_masks(system, name, item):
    image = READERS[name](DATA_ROOT)[item["index"]]
    arrays = recorded_arrays(f"{system}/mixture_candidates")
    assert len(image.targets) == len(item["annotations"])
    for target, annotation in zip(image.targets, item["annotations"], strict=True):
        if "names" in annotation:
            assert list(target.wordings) == annotation["names"]
        if annotation.get("outcome") == "draws again":
            with pytest.raises(UndrawableMaskError, match="has no area"):
                target.mask()
        else:
            (expected,) = arrays[annotation["masks_key"]].reshape(-1, *item["size"])
            np.testing.assert_array_equal(target.mask(), expected)
    if item.get("image"):
        assert image.path == DATA_ROOT / item["image"]
        assert_same_image(load_image(image.path), item)


@pytest.mark.parametrize("name", READERS)
def test_all_images_are_listed(name):
    assert len(READERS[name](DATA_ROOT)) == recorded("lisa/mixture_candidates")[name]["count"]


@pytest.mark.parametrize("name", READERS)
def test_categories_are_called_as_recorded(name):
    wordings = READERS[name](DATA_ROOT).wordings
    recorded_names = recorded("lisa/mixture_candidates")[name]["classes"]
    expected = {
        int(key): (f"{value[0]} {value[1]}", f"the {value[1]} of the {value[0]}")
        if isinstance(value, list)
        else (value,)
        for key, value in recorded_names.items()
    }
    assert wordings == expected


def test_polygons_are_united_and_run_lengths_taken_as_they_are():
    square, shifted = [1, 1, 5, 1, 5, 5, 1, 5], [3, 3, 8, 3, 8, 8, 3, 8]
    united = draw_segmentation([square, shifted], (10, 10))
    alone = draw_segmentation([square], (10, 10)) | draw_segmentation([shifted], (10, 10))
    np.testing.assert_array_equal(united, alone)
    assert united.dtype == np.uint8
    compressed = coco_mask.encode(np.asfortranarray(united))
    text = {**compressed, "counts": compressed["counts"].decode()}
    np.testing.assert_array_equal(draw_segmentation(text, (10, 10)), united)


def test_later_parts_may_be_too_small_to_show():
    square = [1, 1, 5, 1, 5, 5, 1, 5]
    np.testing.assert_array_equal(draw_segmentation([square, []], (8, 8)), draw_segmentation([square], (8, 8)))


@pytest.mark.parametrize("segmentation", [[], [[]], [[1, 2]], [[1, 2, 3, 4]], [[1, 2, 3, 4], [1, 1, 5, 1, 5, 5]]])
def test_what_the_originals_do_not_draw(segmentation):
    with pytest.raises(UndrawableMaskError, match="which has no area"):
        draw_segmentation(segmentation, (8, 8))


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [8, 9], "counts": [72]}, "is 9 x 8 pixels, the image 8 x 8"),
        ({"size": [8, 8], "counts": [3, 4]}, "counts that sum up to 7"),
        ({"size": [8, 8]}, "must be a dict with size and counts"),
        ([[1, 1, 5, 1, 5, "x"]], "a list of finite numbers"),
        ([[1, 1, 5, 1, 5, float("nan")]], "a list of finite numbers"),
        ([[1, 1, 5, 1, 5, 1e9]], "far beyond any image"),
        ([1, 1, 5, 1, 5, 5], "a list of finite numbers"),
        ("x", "must be polygons or run lengths"),
        (None, "must be polygons or run lengths"),
    ],
)
def test_damaged_segmentations_are_refused(segmentation, reason):
    with pytest.raises(DataFileError, match=f"(?s)annotation 7.*{reason}"):
        draw_segmentation(segmentation, (8, 8), "FILE, annotation 7")


def test_an_unknown_category_is_named(root):
    def change(content):
        content["annotations"][0]["category_id"] = 4711

    reader = changed(root, "paco_lvis", change)
    number = json.loads((root / FILES["paco_lvis"]).read_text(encoding="utf-8"))["annotations"][0]["id"]
    with pytest.raises(DataFileError, match=f"annotation {number} has the category 4711"):
        [reader[index] for index in range(len(reader))]


@pytest.mark.parametrize(
    ("name", "category", "reason"),
    [
        ("paco_lvis", "a:b:c", "'a:b:c'; names are an object, or an object and its part"),
        ("pascal_part", "dog", "'dog'; names are an object and its part"),
        ("pascal_part", 3, "`name` is a text"),
    ],
)
def test_names_that_are_no_objects_and_parts(root, name, category, reason):
    def change(content):
        content["categories"][0]["name"] = category

    with pytest.raises(DataFileError, match=f"category number 1.*{reason}"):
        changed(root, name, change)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_files_of_another_form(root, key):
    with pytest.raises(DataFileError, match="with the lists `images`, `annotations`, `categories`"):
        changed(root, "pascal_part", lambda content: content.pop(key))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"file_name": "../../etc/passwd"}, "leads out of the folder"),
        ({"file_name": None}, "is not a file name"),
        ({"height": 0}, "has the size"),
        ({"width": "5"}, "has the size"),
    ],
)
def test_images_that_cannot_be_used(root, fields, reason):
    reader = changed(root, "pascal_part", lambda content: content["images"][0].update(copy.deepcopy(fields)))
    with pytest.raises(DataFileError, match=f"image .*{reason}"):
        reader[0]


@pytest.mark.parametrize("name", READERS)
def test_missing_files_are_named(root, name):
    (root / FILES[name]).unlink()
    with pytest.raises(DataFileError, match=f"{FILES[name]} does not exist"):
        READERS[name](root)


def test_a_missing_folder_is_named(root):
    shutil.rmtree(root / "vlpart/pascal_part/VOCdevkit")
    with pytest.raises(DataFileError, match="JPEGImages does not exist"):
        PascalPart(root)


def test_what_the_originals_pass_over_is_counted_in_the_log(root, caplog):
    def change(content):
        image = {**content["images"][0], "id": "alone"}
        content["images"].append(image)
        content["annotations"] = [
            {**content["annotations"][0], "segmentation": segmentation, "image_id": image_id}
            for segmentation, image_id in (([], 1), ([[1, 2, 3, 4]], 1), ([[0, 0, 5, 0, 5, 5]], 1), ([], "nowhere"))
        ]
        for number, other in enumerate(content["images"][:-1]):
            other["id"] = 1 if not number else number + 1

    with caplog.at_level(logging.INFO, logger="reasonseg.data.mask_targets"):
        reader = changed(root, "pascal_part", change)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"pascal_part: {len(reader)} images, 3 annotations; {len(reader) - 1} images without an annotation are passed "
        "over; 2 annotations cannot be drawn; with one of them an image is passed over; 1 annotations of other images "
        "are not used."
    )
