"""Masks of ReasonSeg's annotations, and what shows them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from reasonseg.data.data_files import DataFileError
from reasonseg.data.reason_seg_masks import ReasonSegMasks, find_annotations, find_image, read_masks
from tests.support.recorded_data_sets import DATA_ROOT, assert_same_image, recorded, recorded_arrays


VAL = DATA_ROOT / "reason_seg/ReasonSeg/val"
SHAPES = [{"label": "target", "points": [[0, 0], [2, 0], [2, 1], [0, 1]]}]


@pytest.mark.parametrize(
    "item", recorded("lisa/mixture_candidates")["ReasonSeg maps"]["items"], ids=lambda item: item["image"]
)
def test_masks_are_the_recorded_maps(item):
    masks = read_masks((DATA_ROOT / item["image"]).with_suffix(".json"))
    arrays = recorded_arrays("lisa/mixture_candidates")
    key = next(key for key in arrays if key.startswith("map/") and item["image"].endswith(key.removeprefix("map/")))
    np.testing.assert_array_equal(masks.labeled, arrays[key])
    counts = {"1": int(masks.target.sum()), "255": int(masks.ignored.sum())}
    assert counts == {value: item["counts"][value] for value in counts}
    assert (masks.image.height, masks.image.width) == masks.labeled.shape  # upright
    if "rgb_sha256" in item:
        assert_same_image(masks.image, item)


def test_the_overlay_shows_targets_in_green_and_ignored_regions_in_red():
    image = Image.new("RGB", (3, 1), (100, 50, 201))
    labeled = np.array([[0, 1, 255]], dtype=np.uint8)
    shown = np.asarray(ReasonSegMasks(labeled, image).overlay())
    assert shown.shape == (1, 6, 3)
    assert shown[0, :4].tolist() == [[100, 50, 201]] * 4  # beside it the image alone, and the background
    assert shown[0, 4:].tolist() == [[40, 173, 80], [193, 20, 80]]
    with pytest.raises(ValueError, match="no image to show"):
        ReasonSegMasks(labeled, None).overlay()


def test_annotations_of_a_folder_or_a_file(tmp_path):
    assert find_annotations(VAL) == sorted(VAL.glob("*.json"))
    annotation = find_annotations(VAL)[0]
    assert find_annotations(annotation) == find_annotations(annotation.with_suffix(".jpg")) == [annotation]
    (tmp_path / "._a.json").touch()
    for path, reason in ((tmp_path, r"no file that ends in \.json.*split"), (tmp_path / "x.json", "does not exist")):
        with pytest.raises(DataFileError, match=reason):
            find_annotations(path)


def test_the_image_may_have_another_ending(tmp_path):
    annotation = tmp_path / "a.b.json"
    assert find_image(annotation) is None
    for name in ("a.b.PNG", "a.b.jpeg", "a.b.JPG", "a.b.jpg"):
        (tmp_path / name).touch()
        assert find_image(annotation) == tmp_path / name


def test_without_an_image_the_annotation_says_how_large_it_was(tmp_path):
    path, content = tmp_path / "a.json", {"text": ["x"], "is_sentence": False, "shapes": SHAPES}
    path.write_text(json.dumps({**content, "imageHeight": 3, "imageWidth": 4}), encoding="utf-8")
    masks = read_masks(path)
    assert masks.image is None
    assert masks.target.astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    for size, reason in (({}, r"has no image a\.jpg"), ({"imageHeight": 10**6, "imageWidth": 10**6}, "more than the")):
        path.write_text(json.dumps(content | size), encoding="utf-8")
        with pytest.raises(DataFileError, match=rf"a\.json.*{reason}"):
            read_masks(path)


def test_a_damaged_image_is_named(tmp_path):
    annotation = find_annotations(VAL)[0]
    for path in (annotation, find_image(annotation)):
        shutil.copy(path, tmp_path)
    image = tmp_path / find_image(annotation).name
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataFileError, match=rf"{annotation.name}: its image: .*{image.name}"):
        read_masks(tmp_path / annotation.name)
